//! The output of commands: plain text for pipes, colours on a terminal only. Results go to stdout, progress to stderr.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Colours, if stdout shows them.
#[derive(Clone, Copy)]
pub struct Paper {
    colours: bool,
}

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It works.
    Ok,
    /// Information.
    Note,
    /// It works, but can break jobs.
    Warn,
    /// It does not work.
    Fail,
}

impl Verdict {
    fn word(self) -> (&'static str, &'static str) {
        match self {
            Verdict::Ok => ("ok", "32"),
            Verdict::Note => ("note", "36"),
            Verdict::Warn => ("warn", "33"),
            Verdict::Fail => ("FAIL", "1;31"),
        }
    }
}

impl Paper {
    /// Colours where stdout is a terminal and `NO_COLOR` is not set.
    pub fn new() -> Paper {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Paper { colours: wanted && std::io::stdout().is_terminal() }
    }

    /// `text`, with an SGR code around it where there are colours.
    pub fn paint(self, code: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// One finding: `  ok    topic            text`, and below it the advice.
    pub fn finding(self, verdict: Verdict, topic: &str, text: &str, advice: &str) {
        let (word, code) = verdict.word();
        let word = self.paint(code, &format!("{word:4}"));
        print(&format!("  {word}  {topic:16} {text}\n"));
        if !advice.is_empty() {
            print(&format!("        {:16} -> {advice}\n", ""));
        }
    }
}

impl Default for Paper {
    fn default() -> Paper {
        Paper::new()
    }
}

/// Prints on stdout. A closed stdout is not an error: the rest of the work still counts.
pub fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// Prints on stderr.
pub fn say(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// Prints log lines of this level and above on stderr, for people: the elapsed time, then the text.
pub fn log_for_people(level: log::LevelFilter) {
    let began = Instant::now();
    let format = move |to: &mut env_logger::fmt::Formatter, record: &log::Record| {
        let name = record.key_values().get("instance".into()).map(|name| format!("{name}: ")).unwrap_or_default();
        writeln!(to, "  {:>6} s  {name}{}", tenths(began.elapsed()), record.args())
    };
    // Fails only if there is a logger already. That one stays.
    let _ = env_logger::Builder::new().filter_module(env!("CARGO_CRATE_NAME"), level).format(format).try_init();
}

/// Prints a question on stderr and reads the answer from the terminal. The error says that there is no terminal.
pub fn confirm(question: &str) -> Result<bool, String> {
    if !std::io::stdin().is_terminal() {
        return Err("stdin is not a terminal: use --yes to delete without confirmation".into());
    }
    say(&format!("{question} [y/N] "));
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).map_err(|error| format!("read the answer: {error}"))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// One number and its unit: `47s`, `12m`, `3h`, `9d`.
pub fn short(duration: Duration) -> String {
    match duration.as_secs() {
        s @ 0..120 => format!("{s}s"),
        s @ 120..7200 => format!("{}m", s / 60),
        s @ 7200..172_800 => format!("{}h", s / 3600),
        s => format!("{}d", s / 86_400),
    }
}

/// Seconds with one decimal.
pub fn tenths(duration: Duration) -> String {
    format!("{}.{}", duration.as_secs(), duration.subsec_millis() / 100)
}

/// MB in a readable unit.
pub fn size(mb: u64) -> String {
    if mb < 10 * 1024 { format!("{mb} MB") } else { format!("{} GB", mb / 1024) }
}
