//! The man page and the completions of the shells. They are generated from the table behind `--help`
//! (`src/arguments.rs`). The environment variables come from docs/commands.md.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use argh::{ArgsInfo, CommandInfoWithArgs, FlagInfo, FlagInfoKind};
use std::fmt::Write;

#[path = "../../src/arguments.rs"]
mod arguments;

const NAME: &str = "fleeting-plugin-vcd";
const COMMANDS: &str = include_str!("../../docs/commands.md");
/// Options with a file as their value.
const FILES: [&str; 2] = ["--config", "--record"];

/// The text for `examples/manual.rs` with `man`, `bash`, `zsh` or `fish`.
pub fn page(kind: &str) -> Option<String> {
    let program = arguments::Arguments::get_args_info();
    match kind {
        "man" => Some(man(&program)),
        "bash" => Some(bash(&program)),
        "zsh" => Some(zsh(&program)),
        "fish" => Some(fish(&program)),
        _ => None,
    }
}

/// The names of all commands, each with its options.
pub fn commands() -> Vec<(String, Vec<String>)> {
    let program = arguments::Arguments::get_args_info();
    let options = |command: &CommandInfoWithArgs| flags(command).map(|flag| flag.long.to_owned()).collect();
    program.commands.iter().map(|sub| (sub.name.to_owned(), options(&sub.command))).collect()
}

fn flags(command: &CommandInfoWithArgs) -> impl Iterator<Item = &FlagInfo<'static>> {
    command.flags.iter().filter(|flag| !flag.hidden)
}

fn has_value(flag: &FlagInfo) -> bool {
    matches!(flag.kind, FlagInfoKind::Option { .. })
}

/// The first sentence, without its full stop.
fn short(text: &str) -> &str {
    text.split(". ").next().unwrap().trim_end_matches('.')
}

/// Escapes a text for roff.
fn plain(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    match text.starts_with(['.', '\'']) {
        true => format!("\\&{text}"),
        false => text,
    }
}

/// Converts Markdown in a table cell to roff.
fn cell(text: &str) -> String {
    plain(&text.replace('`', ""))
}

fn man(program: &CommandInfoWithArgs) -> String {
    let mut page = format!(".TH {} 1 \"\" \"{NAME} {}\"\n", NAME.to_uppercase(), env!("CARGO_PKG_VERSION"));
    write!(page, ".SH NAME\n{} \\- {}\n", plain(NAME), plain(short(program.description))).unwrap();
    write!(page, ".SH SYNOPSIS\n.B {}\n[\\fICOMMAND\\fR [\\fIOPTION\\fR...]]\n", plain(NAME)).unwrap();
    write!(page, ".SH DESCRIPTION\n{}\n", plain(program.description)).unwrap();
    page += ".SH COMMANDS\n";
    for sub in &program.commands {
        let command = &sub.command;
        let arguments: Vec<_> =
            command.positionals.iter().map(|p| format!(" \\fI{}\\fR", plain(&p.name.to_uppercase()))).collect();
        write!(page, ".SS \"{}{}\"\n{}\n", plain(sub.name), arguments.concat(), plain(command.description)).unwrap();
        for positional in command.positionals {
            write!(page, ".TP\n.I {}\n{}\n", plain(&positional.name.to_uppercase()), plain(positional.description))
                .unwrap();
        }
        for flag in flags(command) {
            let value = match flag.kind {
                FlagInfoKind::Option { arg_name } => format!(" \\fI{}\\fR", plain(&arg_name.to_uppercase())),
                FlagInfoKind::Switch => String::new(),
            };
            write!(page, ".TP\n\\fB{}\\fR{value}\n{}\n", plain(flag.long), plain(flag.description)).unwrap();
        }
        for example in command.examples {
            let lines = example.replace("{command_name}", &format!("{NAME} {}", sub.name));
            write!(page, ".PP\nExamples:\n.nf\n.RS\n{}\n.RE\n.fi\n", plain(&lines)).unwrap();
        }
        for code in command.error_codes {
            write!(page, ".PP\nExit status {}: {}\n", code.code, plain(code.description)).unwrap();
        }
    }
    page += ".SH ENVIRONMENT\n";
    let (_, table) = COMMANDS.split_once("| variable | meaning |\n| --- | --- |\n").expect("the table of variables");
    for row in table.lines().map_while(|line| line.strip_prefix("| ")) {
        let (variables, meaning) = row.trim_end_matches(" |").split_once(" | ").unwrap();
        write!(page, ".TP\n.B {}\n{}\n", cell(variables), cell(meaning)).unwrap();
    }
    write!(page, ".SH FILES\n.TP\n.I /etc/gitlab\\-runner/config.toml\nGitLab Runner's configuration\n").unwrap();
    write!(
        page,
        ".TP\n.I /usr/share/doc/{NAME}/\nAll documents and an example configuration, in the packages\n",
        NAME = plain(NAME)
    )
    .unwrap();
    page += ".SH SEE ALSO\n.BR gitlab\\-runner (1)\n";
    page
}

fn bash(program: &CommandInfoWithArgs) -> String {
    let names: Vec<&str> = program.commands.iter().map(|sub| sub.name).collect();
    let global: Vec<&str> = flags(program).map(|flag| flag.long).collect();
    let mut script = format!(
        "# bash completion for {NAME}\n_{function}() {{\n  local word=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}}\n  \
         if [ \"$COMP_CWORD\" -eq 1 ]; then\n    mapfile -t COMPREPLY < <(compgen -W \"{} {}\" -- \"$word\")\n    return\n  fi\n  \
         case $previous in\n    {})\n      mapfile -t COMPREPLY < <(compgen -f -- \"$word\")\n      return\n      ;;\n    --runner)\n      return\n      ;;\n  esac\n  \
         case ${{COMP_WORDS[1]}} in\n",
        names.join(" "),
        global.join(" "),
        FILES.join(" | "),
        function = NAME.replace('-', "_"),
    );
    for sub in &program.commands {
        let options: Vec<&str> = flags(&sub.command).map(|flag| flag.long).collect();
        writeln!(
            script,
            "    {}) mapfile -t COMPREPLY < <(compgen -W \"{}\" -- \"$word\") ;;",
            sub.name,
            options.join(" ")
        )
        .unwrap();
    }
    write!(script, "  esac\n}}\ncomplete -o filenames -F _{} {NAME}\n", NAME.replace('-', "_")).unwrap();
    script
}

/// Escapes a text for single quotes in zsh and fish.
fn quoted(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\'', "'\\''")
}

fn zsh(program: &CommandInfoWithArgs) -> String {
    let option = |flag: &FlagInfo| {
        let text = quoted(flag.description).replace(['[', ']'], "").replace(':', "\\:");
        let value = match (has_value(flag), FILES.contains(&flag.long)) {
            (false, _) => "",
            (true, true) => ":file:_files",
            (true, false) => ":name:",
        };
        format!("'{}[{text}]{value}'", flag.long)
    };
    let mut script = format!("#compdef {NAME}\nlocal -a commands=(\n");
    for sub in &program.commands {
        writeln!(script, "  '{}:{}'", sub.name, quoted(short(sub.command.description)).replace(':', "\\:")).unwrap();
    }
    script += ")\nif (( CURRENT == 2 )); then\n  _describe command commands\n";
    let global: Vec<String> = flags(program).map(option).collect();
    writeln!(script, "  _arguments {}\n  return\nfi\ncase $words[2] in", global.join(" ")).unwrap();
    for sub in &program.commands {
        let options: Vec<String> = flags(&sub.command).map(option).collect();
        writeln!(script, "  {}) shift words; (( CURRENT-- )); _arguments {} ;;", sub.name, options.join(" ")).unwrap();
    }
    script + "esac\n"
}

fn fish(program: &CommandInfoWithArgs) -> String {
    let option = |condition: &str, flag: &FlagInfo| {
        let value = match (has_value(flag), FILES.contains(&flag.long)) {
            (false, _) => "",
            (true, true) => " -rF",
            (true, false) => " -x",
        };
        let long = flag.long.trim_start_matches('-');
        format!("complete -c {NAME} -n {condition} -l {long}{value} -d '{}'\n", quoted(flag.description))
    };
    let mut script = format!("# fish completion for {NAME}\ncomplete -c {NAME} -f\n");
    for flag in flags(program) {
        script += &option("__fish_use_subcommand", flag);
    }
    for sub in &program.commands {
        let text = quoted(short(sub.command.description));
        writeln!(script, "complete -c {NAME} -n __fish_use_subcommand -a {} -d '{text}'", sub.name).unwrap();
        for flag in flags(&sub.command) {
            script += &option(&format!("'__fish_seen_subcommand_from {}'", sub.name), flag);
        }
    }
    script
}
