//! The table of commands and options on the command line. `--help`, the man page and the shell completions come from it
//! (`examples/manual.rs`).
#![allow(missing_docs, reason = "the doc comments of fields are what --help says")]

use argh::{ArgsInfo, FromArgs};
use fleeting_plugin_vcd::command::runner::DEFAULT_PATH;
use std::path::PathBuf;

/// GitLab Runner fleeting plugin for VMware Cloud Director. Without a command: serve.
#[derive(ArgsInfo, FromArgs)]
pub struct Arguments {
    /// show version and build
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

/// Show version and build.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "version")]
pub struct Version {}

/// Check a config.toml against VCD and suggest fixes. Read-only without --create.
#[derive(ArgsInfo, FromArgs)]
#[argh(
    subcommand,
    name = "check",
    example = "{command_name} --runner vcd\n{command_name} --create\n{command_name} --record vcd.txt\n{command_name} --offline --config config.toml",
    error_code(0, "success; there may be warnings"),
    error_code(1, "an error was found, or the file cannot be read")
)]
pub struct Check {
    /// configuration of GitLab Runner (/etc/gitlab-runner/config.toml)
    #[argh(option, default = "DEFAULT_PATH.into()")]
    pub config: PathBuf,
    /// check only the runner with this name
    #[argh(option)]
    pub runner: Option<String>,
    /// read only the file, send nothing to VCD
    #[argh(switch)]
    pub offline: bool,
    /// create a test VM, log in to it, delete it
    #[argh(switch)]
    pub create: bool,
    /// record the requests and VCD's answers in this new file, without secrets and names
    #[argh(option)]
    pub record: Option<PathBuf>,
}

/// List the vApps whose names begin with the group's prefix, and their owners.
#[derive(ArgsInfo, FromArgs)]
#[argh(
    subcommand,
    name = "list",
    example = "{command_name}\n{command_name} --runner vcd --json",
    error_code(0, "success"),
    error_code(1, "failure; the reason is on stderr")
)]
pub struct List {
    /// configuration of GitLab Runner (/etc/gitlab-runner/config.toml)
    #[argh(option, default = "DEFAULT_PATH.into()")]
    pub config: PathBuf,
    /// the runner with this name, if several use this plugin
    #[argh(option)]
    pub runner: Option<String>,
    /// print JSON, for scripts
    #[argh(switch)]
    pub json: bool,
}

/// Delete all vApps of the group in VCD, after confirmation. Stop GitLab Runner first.
#[derive(ArgsInfo, FromArgs)]
#[argh(
    subcommand,
    name = "clean",
    example = "{command_name}\n{command_name} --runner vcd --yes",
    error_code(0, "success; no vApp of the group is left"),
    error_code(1, "failure; vApps may be left, and the reason is on stderr")
)]
pub struct Clean {
    /// configuration of GitLab Runner (/etc/gitlab-runner/config.toml)
    #[argh(option, default = "DEFAULT_PATH.into()")]
    pub config: PathBuf,
    /// the runner with this name, if several use this plugin
    #[argh(option)]
    pub runner: Option<String>,
    /// delete without confirmation
    #[argh(switch)]
    pub yes: bool,
}

/// Install this plugin from its OCI image into GitLab Runner's plugin folder ($FLEETING_PLUGIN_PATH, /plugins).
#[derive(ArgsInfo, FromArgs)]
#[argh(
    subcommand,
    name = "bootstrap",
    example = "FLEETING_PLUGIN_PATH=~/.config/fleeting/plugins {command_name} registry.example.com/ci/fleeting-plugin-vcd",
    error_code(1, "failure; the reason is on stdout, as fleeting's tools expect it")
)]
pub struct Bootstrap {
    /// repository of the plugin: HOST/GROUP/NAME, GROUP/NAME in GitLab's registry, or the NAME of one of fleeting's plugins
    #[argh(positional)]
    pub repo: String,
}
