//! The program: reads the command line, and serves or runs a command.

mod arguments;

use argh::{EarlyExit, FromArgs};
use arguments::{Arguments, Bootstrap, Check, Clean, Command, List, Serve};
use fleeting_plugin_vcd::command::{self, check};
use fleeting_plugin_vcd::{debug, driver::Plugin, host, version};
use smol::LocalExecutor;
use std::io::Write;
use std::process::ExitCode;
use std::rc::Rc;

fn main() -> ExitCode {
    guard_memory();
    let mut words = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
    let program = words.next().unwrap_or_default();
    // fleeting's tools pass the flag as Go writes it, with one dash, and an empty word for no command.
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

/// Forbids core dumps, and reading or tracing of this process by other processes, including those of the same user: its
/// memory and environment contain secrets. Only root can still do it.
fn guard_memory() {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{DumpableBehavior, set_dumpable_behavior};
        let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    }
}

/// The exit code of a command: success, or why it failed.
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

/// Prints on stdout. `println!` would panic if stdout is closed.
fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Prints on stderr. A closed stderr is not an error.
fn complain(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}
