//! The command line's table of commands and options. `--help` comes from it, and so do the man page and the shells' completions
//! (`examples/manual.rs`).
#![allow(missing_docs, reason = "the doc comments of fields are what --help says")]

use argh::{ArgsInfo, FromArgs};
use fleeting_plugin_vcd::command::runner::DEFAULT_PATH;
use std::path::PathBuf;

/// GitLab Runner fleeting plugin for VMware Cloud Director. Without a command: serve.
#[derive(ArgsInfo, FromArgs)]
pub struct Arguments {
    /// show which build this is
    #[argh(switch)]
    pub version: bool,
    #[argh(subcommand)]
    pub command: Option<Command>,
}

#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand)]
pub enum Command {
    Serve(Serve),
    Version(Version),
    Check(Check),
    List(List),
    Clean(Clean),
    Bootstrap(Bootstrap),
}

/// Serve the GitLab Runner that started this process.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "serve")]
pub struct Serve {}

/// Show which build this is.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "version")]
pub struct Version {}

/// Tell whether the runners of a config.toml would get VMs from VCD, and what to do where not. Changes nothing without
/// --create.
#[derive(ArgsInfo, FromArgs)]
#[argh(
    subcommand,
    name = "check",
    example = "{command_name} --runner vcd\n{command_name} --create\n{command_name} --record vcd.txt\n{command_name} --offline --config config.toml",
    error_code(0, "it works; there may be warnings"),
    error_code(1, "something does not work, or the file cannot be read")
)]
pub struct Check {
    /// the runner's configuration (/etc/gitlab-runner/config.toml)
    #[argh(option, default = "DEFAULT_PATH.into()")]
    pub config: PathBuf,
    /// only the runner of this name
    #[argh(option)]
    pub runner: Option<String>,
    /// read the file only, ask nothing of VCD
    #[argh(switch)]
    pub offline: bool,
    /// make one instance, log in to it, delete it
    #[argh(switch)]
    pub create: bool,
    /// write what VCD is asked and answers into this new file, with stand-ins for secrets and names
    #[argh(option)]
    pub record: Option<PathBuf>,
}

/// List the vApps in VCD that are named like the group's, and whose they are.
#[derive(ArgsInfo, FromArgs)]
#[argh(
    subcommand,
    name = "list",
    example = "{command_name}\n{command_name} --runner vcd --json",
    error_code(0, "listed"),
    error_code(1, "not listed; the reason is on stderr")
)]
pub struct List {
    /// the runner's configuration (/etc/gitlab-runner/config.toml)
    #[argh(option, default = "DEFAULT_PATH.into()")]
    pub config: PathBuf,
    /// the runner of this name, if several use this plugin
    #[argh(option)]
    pub runner: Option<String>,
    /// as JSON, for scripts
    #[argh(switch)]
    pub json: bool,
}

/// Delete what the group has left in VCD, after showing it and asking. Stop the runner first.
#[derive(ArgsInfo, FromArgs)]
#[argh(
    subcommand,
    name = "clean",
    example = "{command_name}\n{command_name} --runner vcd --yes",
    error_code(0, "nothing of the group is left"),
    error_code(1, "something is left, or nothing was tried; the reason is on stderr")
)]
pub struct Clean {
    /// the runner's configuration (/etc/gitlab-runner/config.toml)
    #[argh(option, default = "DEFAULT_PATH.into()")]
    pub config: PathBuf,
    /// the runner of this name, if several use this plugin
    #[argh(option)]
    pub runner: Option<String>,
    /// do not ask
    #[argh(switch)]
    pub yes: bool,
}

/// Install this plugin from its OCI image into the runner's plugin folder ($FLEETING_PLUGIN_PATH, /plugins).
#[derive(ArgsInfo, FromArgs)]
#[argh(
    subcommand,
    name = "bootstrap",
    example = "FLEETING_PLUGIN_PATH=~/.config/fleeting/plugins {command_name} registry.example.com/ci/fleeting-plugin-vcd",
    error_code(1, "not installed; the reason is on stdout, as fleeting's tools expect it")
)]
pub struct Bootstrap {
    /// where the plugin comes from: HOST/GROUP/NAME, GROUP/NAME at GitLab's registry, or the NAME of one of fleeting's own
    #[argh(positional)]
    pub repo: String,
}
