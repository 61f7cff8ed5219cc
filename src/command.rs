//! The commands for people and for fleeting's tools, one module each. `main` reads the command line and calls them; a
//! plugin that serves runs none of this.

use crate::config::nearest;

pub mod advice;
pub mod bootstrap;
pub mod check;
pub mod clean;
mod life;
pub mod list;
pub mod output;
pub mod runner;

pub use life::run;

/// The commands.
const COMMANDS: [&str; 6] = ["serve", "version", "check", "list", "clean", "bootstrap"];
/// Their options that are followed by a value.
const WITH_VALUE: [&str; 3] = ["--config", "--runner", "--record"];
/// Their others.
const SWITCHES: [&str; 6] = ["--offline", "--create", "--json", "--yes", "--help", "--version"];

/// What is wrong with a command line that could not be read, and what may be meant by it; `None` if nobody can tell.
pub fn meant(words: &[&str]) -> Option<String> {
    let options = || WITH_VALUE.iter().chain(&SWITCHES).copied();
    let mut value = false;
    for (at, word) in words.iter().enumerate() {
        if std::mem::replace(&mut value, WITH_VALUE.contains(word)) {
            continue;
        }
        let (kind, known) = match (at, word.starts_with('-')) {
            (_, true) if options().any(|option| option == *word) => continue,
            (_, true) => ("option", nearest(word, options())),
            (0, false) if COMMANDS.contains(word) => continue,
            (0, false) => ("command", nearest(word, COMMANDS.into_iter())),
            (_, false) if words.first() == Some(&"bootstrap") => continue,
            (_, false) => {
                let command = words.first().copied().unwrap_or_default();
                return Some(format!("{word:?} belongs to no option; did you mean {command} --config {word}?"));
            }
        };
        let known = known.map(|known| format!("; did you mean {known}?")).unwrap_or_default();
        return Some(format!("there is no {kind} {word:?}{known}"));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_wrong_command_line_the_wrong_word_and_the_one_that_is_meant_are_named() {
        for (line, expected) in [
            ("chekc", "there is no command \"chekc\"; did you mean check?"),
            ("frobnicate", "there is no command \"frobnicate\""),
            ("check config.toml", "\"config.toml\" belongs to no option; did you mean check --config config.toml?"),
            ("check --ofline", "there is no option \"--ofline\"; did you mean --offline?"),
            ("list --runner vcd --jsn", "there is no option \"--jsn\"; did you mean --json?"),
            ("list --runner lst x", "\"x\" belongs to no option; did you mean list --config x?"),
        ] {
            assert_eq!(meant(&line.split(' ').collect::<Vec<_>>()).as_deref(), Some(expected), "{line}");
        }
        for line in ["check --config", "bootstrap", "bootstrap a b"] {
            assert_eq!(meant(&line.split(' ').collect::<Vec<_>>()), None, "{line}");
        }
    }
}
