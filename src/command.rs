//! The commands for people and for fleeting's tools, one module each. `main` reads the command line and calls them. A
//! plugin that serves GitLab Runner uses none of this.

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
/// The options that take a value.
const WITH_VALUE: [&str; 3] = ["--config", "--runner", "--record"];
/// The other options.
const SWITCHES: [&str; 6] = ["--offline", "--create", "--json", "--yes", "--help", "--version"];

/// Why the command line could not be read, and what the user probably meant. `None` if neither is clear.
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
                return Some(format!(
                    "{word:?} is not an option or its value; did you mean {command} --config {word}?"
                ));
            }
        };
        let known = known.map(|known| format!("; did you mean {known}?")).unwrap_or_default();
        return Some(format!("unknown {kind} {word:?}{known}"));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_command_line_is_reported_with_the_wrong_word_and_a_suggestion() {
        for (line, expected) in [
            ("chekc", "unknown command \"chekc\"; did you mean check?"),
            ("frobnicate", "unknown command \"frobnicate\""),
            (
                "check config.toml",
                "\"config.toml\" is not an option or its value; did you mean check --config config.toml?",
            ),
            ("check --ofline", "unknown option \"--ofline\"; did you mean --offline?"),
            ("list --runner vcd --jsn", "unknown option \"--jsn\"; did you mean --json?"),
            ("list --runner lst x", "\"x\" is not an option or its value; did you mean list --config x?"),
        ] {
            assert_eq!(meant(&line.split(' ').collect::<Vec<_>>()).as_deref(), Some(expected), "{line}");
        }
        for line in ["check --config", "bootstrap", "bootstrap a b"] {
            assert_eq!(meant(&line.split(' ').collect::<Vec<_>>()), None, "{line}");
        }
    }
}
