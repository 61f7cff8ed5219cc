//! The command line.

use argh::{EarlyExit, FromArgs};
use fleeting_plugin_vcd::{debug, driver::Plugin, host, version};
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
}

/// Serve the GitLab Runner that started this process.
#[derive(FromArgs)]
#[argh(subcommand, name = "serve")]
struct Serve {}

/// Show which build this is.
#[derive(FromArgs)]
#[argh(subcommand, name = "version")]
struct Version {}

fn main() -> ExitCode {
    let mut words = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
    let program = words.next().unwrap_or_default();
    // fleeting's tools give the flag as Go writes it, with one dash.
    let words: Vec<_> = words.map(|word| if word == "-version" { "--version".to_owned() } else { word }).collect();
    let words: Vec<_> = words.iter().map(String::as_str).collect();

    match Arguments::from_args(&[&program], &words) {
        Err(EarlyExit { output, status: Ok(()) }) => print(&output),
        Err(EarlyExit { output, status: Err(()) }) => {
            let _ = std::io::stderr().write_all(output.as_bytes());
            ExitCode::FAILURE
        }
        Ok(Arguments { version: true, .. } | Arguments { command: Some(Command::Version(_)), .. }) => {
            print(&version::text())
        }
        Ok(Arguments { command: None | Some(Command::Serve(_)), .. }) => {
            let executor = Rc::new(LocalExecutor::new());
            let plugin = Plugin::new(executor.clone(), debug::start);
            smol::block_on(executor.run(host::serve(executor.clone(), plugin)))
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
