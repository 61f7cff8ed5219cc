//! The command line.

use argh::{EarlyExit, FromArgs};
use fleeting_plugin_vcd::command::{self, check, runner::DEFAULT_PATH};
use fleeting_plugin_vcd::{debug, driver::Plugin, host, version};
use smol::LocalExecutor;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;

/// GitLab Runner fleeting plugin for VMware Cloud Director. Without a command: serve.
#[derive(FromArgs)]
struct Arguments {
    /// show which build this is
    #[argh(switch)]
    version: bool,
    #[argh(subcommand)]
    command: Option<Command>,
}

#[derive(FromArgs)]
#[argh(subcommand)]
enum Command {
    Serve(Serve),
    Version(Version),
    Check(Check),
    List(List),
    Clean(Clean),
    Bootstrap(Bootstrap),
}

/// Serve the GitLab Runner that started this process.
#[derive(FromArgs)]
#[argh(subcommand, name = "serve")]
struct Serve {}

/// Show which build this is.
#[derive(FromArgs)]
#[argh(subcommand, name = "version")]
struct Version {}

/// Tell whether the runners of a config.toml would get VMs from VCD, and what to do where not. Changes nothing without
/// --create.
#[derive(FromArgs)]
#[argh(
    subcommand,
    name = "check",
    example = "{command_name} --runner vcd\n{command_name} --create\n{command_name} --record vcd.txt\n{command_name} --offline --config config.toml",
    error_code(0, "it works; there may be warnings"),
    error_code(1, "something does not work, or the file cannot be read")
)]
struct Check {
    /// the runner's configuration (/etc/gitlab-runner/config.toml)
    #[argh(option, default = "DEFAULT_PATH.into()")]
    config: PathBuf,
    /// only the runner of this name
    #[argh(option)]
    runner: Option<String>,
    /// read the file only, ask nothing of VCD
    #[argh(switch)]
    offline: bool,
    /// make one instance, log in to it, delete it
    #[argh(switch)]
    create: bool,
    /// write what VCD is asked and answers into this new file, with stand-ins for secrets and names
    #[argh(option)]
    record: Option<PathBuf>,
}

/// List the vApps in VCD that are named like the group's, and whose they are.
#[derive(FromArgs)]
#[argh(
    subcommand,
    name = "list",
    example = "{command_name}\n{command_name} --runner vcd --json",
    error_code(0, "listed"),
    error_code(1, "not listed; the reason is on stderr")
)]
struct List {
    /// the runner's configuration (/etc/gitlab-runner/config.toml)
    #[argh(option, default = "DEFAULT_PATH.into()")]
    config: PathBuf,
    /// the runner of this name, if several use this plugin
    #[argh(option)]
    runner: Option<String>,
    /// as JSON, for scripts
    #[argh(switch)]
    json: bool,
}

/// Delete what the group has left in VCD, after showing it and asking. Stop the runner first.
#[derive(FromArgs)]
#[argh(
    subcommand,
    name = "clean",
    example = "{command_name}\n{command_name} --runner vcd --yes",
    error_code(0, "nothing of the group is left"),
    error_code(1, "something is left, or nothing was tried; the reason is on stderr")
)]
struct Clean {
    /// the runner's configuration (/etc/gitlab-runner/config.toml)
    #[argh(option, default = "DEFAULT_PATH.into()")]
    config: PathBuf,
    /// the runner of this name, if several use this plugin
    #[argh(option)]
    runner: Option<String>,
    /// do not ask
    #[argh(switch)]
    yes: bool,
}

/// Install this plugin from its OCI image into the runner's plugin folder ($FLEETING_PLUGIN_PATH, /plugins).
#[derive(FromArgs)]
#[argh(
    subcommand,
    name = "bootstrap",
    example = "FLEETING_PLUGIN_PATH=~/.config/fleeting/plugins {command_name} registry.example.com/ci/fleeting-plugin-vcd",
    error_code(1, "not installed; the reason is on stdout, as fleeting's tools expect it")
)]
struct Bootstrap {
    /// where the plugin comes from: HOST/GROUP/NAME, GROUP/NAME at GitLab's registry, or the NAME of one of fleeting's own
    #[argh(positional)]
    repo: String,
}

fn main() -> ExitCode {
    guard_memory();
    let mut words = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
    let program = words.next().unwrap_or_default();
    // fleeting's tools give the flag as Go writes it, with one dash, and an empty word for no command.
    let words = words.map(|word| match word.as_str() {
        "-version" => "--version".to_owned(),
        "-h" => "--help".to_owned(),
        _ => word,
    });
    let words: Vec<_> = words.collect();
    let mut words: Vec<_> = words.iter().map(String::as_str).collect();
    if words == [""] {
        words.clear();
    }
    let program = program.rsplit('/').next().unwrap_or_default();

    match Arguments::from_args(&[program], &words) {
        Err(EarlyExit { output, status: Ok(()) }) => print(&output),
        Err(EarlyExit { output, status: Err(()) }) => {
            let meant =
                command::meant(&words).map(|meant| format!("{meant}\n\nRun {program} --help for all commands.\n"));
            complain(&meant.unwrap_or(output));
            ExitCode::FAILURE
        }
        Ok(Arguments { version: true, .. }) => print(&version::text()),
        Ok(Arguments { command, .. }) => match command.unwrap_or(Command::Serve(Serve {})) {
            Command::Serve(_) => {
                let executor = Rc::new(LocalExecutor::new());
                let plugin = Plugin::new(executor.clone(), debug::start);
                command::run(&executor, host::serve(executor.clone(), plugin))
            }
            Command::Version(_) => print(&version::text()),
            Command::Check(Check { config, runner, offline, create, record }) => {
                let (runner, record) = (runner.as_deref(), record.as_deref());
                let options = check::Options { path: &config, runner, offline, create, record };
                end(check::run(&options))
            }
            Command::List(List { config, runner, json }) => {
                end(command::list::run(&config, runner.as_deref(), json).map(|()| true))
            }
            Command::Clean(Clean { config, runner, yes }) => {
                end(command::clean::run(&config, runner.as_deref(), yes).map(|()| true))
            }
            Command::Bootstrap(Bootstrap { repo }) => match command::bootstrap::run(&repo) {
                Ok(installed) => {
                    if let Some(warning) = installed.warning {
                        complain(&format!("{warning}\n"));
                    }
                    print(&format!("{}\n", installed.folder.display()))
                }
                Err(reason) => {
                    print(&format!("{reason}\n"));
                    ExitCode::FAILURE
                }
            },
        },
    }
}

/// No core dumps, and no other process, not even of the same user, reads this one's memory or environment or traces it: both
/// hold secrets. Only root may.
fn guard_memory() {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{DumpableBehavior, set_dumpable_behavior};
        let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    }
}

/// The end of a command: whether all is well, or why it could not be done.
fn end(result: Result<bool, String>) -> ExitCode {
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(reason) => {
            complain(&format!("{}: {reason}\n", env!("CARGO_PKG_NAME")));
            ExitCode::FAILURE
        }
    }
}

/// Prints on stdout. `println!` would panic if nobody reads it.
fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Prints on stderr, if anybody reads it.
fn complain(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}
