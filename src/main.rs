//! The command line.

use argh::{EarlyExit, FromArgs};
use fleeting_plugin_vcd::{command, debug, driver::Plugin, host, version};
use smol::LocalExecutor;
use std::io::Write;
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
    let mut words = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
    let program = words.next().unwrap_or_default();
    // fleeting's tools give the flag as Go writes it, with one dash, and an empty word for no command.
    let words: Vec<_> = words.map(|word| if word == "-version" { "--version".to_owned() } else { word }).collect();
    let mut words: Vec<_> = words.iter().map(String::as_str).collect();
    if words == [""] {
        words.clear();
    }
    let program = program.rsplit('/').next().unwrap_or_default();

    match Arguments::from_args(&[program], &words) {
        Err(EarlyExit { output, status: Ok(()) }) => print(&output),
        Err(EarlyExit { output, status: Err(()) }) => {
            complain(&output);
            ExitCode::FAILURE
        }
        Ok(Arguments { version: true, .. }) => print(&version::text()),
        Ok(Arguments { command, .. }) => match command.unwrap_or(Command::Serve(Serve {})) {
            Command::Serve(_) => {
                let executor = Rc::new(LocalExecutor::new());
                let plugin = Plugin::new(executor.clone(), debug::start);
                smol::block_on(executor.run(host::serve(executor.clone(), plugin)))
            }
            Command::Version(_) => print(&version::text()),
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
