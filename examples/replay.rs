//! Replays a recording of `check --record` to the current client, and shows the differences from the simulator's
//! answers: `cargo run --example replay FILE`. First change the simulator to match the recording, then the plugin.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../tests/common/replay.rs"]
mod replay;

use argh::FromArgs;
use fleeting_plugin_vcd::command::check;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Replays a recording of `check --record` to the client, and compares its answers with the simulator's.
#[derive(FromArgs)]
struct Flags {
    /// the recording
    #[argh(positional)]
    file: PathBuf,
}

fn main() -> ExitCode {
    let flags: Flags = argh::from_env();
    match run(&flags) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("replay: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run(flags: &Flags) -> Result<bool, String> {
    let recording = replay::read(&flags.file)?;
    let simulated = replay::Recording::parse(&replay::on_simulator(&recording)?)?;
    println!("--- the recording, played to the client");
    let check = |path: &Path| {
        let options = check::Options { path, runner: None, offline: false, create: false, record: None };
        check::run(&options).map(drop)
    };
    let complaints = replay::play(&recording, check)?;
    println!("\n--- what the client does not understand: {}", complaints.len());
    complaints.iter().for_each(|complaint| println!("{complaint}"));
    let differences = replay::differences(&recording, &simulated);
    println!("\n--- differences from the simulator: {}", differences.len());
    differences.iter().for_each(|difference| println!("{difference}"));
    Ok(complaints.is_empty())
}
