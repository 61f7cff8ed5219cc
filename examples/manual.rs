//! Prints the man page, or a shell's completions:
//!
//!     cargo run --example manual man|bash|zsh|fish

#[path = "../tests/common/manual.rs"]
mod manual;

fn main() -> std::process::ExitCode {
    let kind = std::env::args().nth(1).unwrap_or_default();
    let Some(page) = manual::page(&kind) else {
        eprintln!("manual: use man, bash, zsh or fish");
        return std::process::ExitCode::FAILURE;
    };
    print!("{page}");
    std::process::ExitCode::SUCCESS
}
