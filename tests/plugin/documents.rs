//! Checks the documents: generated ones are up to date, every TOML block is a valid configuration, every shell block
//! runs (in a sandbox that replaces the parts of a real system), every explained message exists.

use crate::{common, fleet, manual, reference};
use fleeting_plugin_vcd::command::advice::CAUSES;
use fleeting_plugin_vcd::command::runner::RunnerFile;
use fleeting_plugin_vcd::config::{Config, Connector, KEYS};
use fleeting_plugin_vcd::host::proto::fleeting::{ConnectorConfig, State};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use vcd_sim::{GuestKind, Options, Server};

const BINARY: &str = env!("CARGO_BIN_EXE_fleeting-plugin-vcd");
const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const DOCUMENTS: [&str; 17] = [
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "docs/README.md",
    "docs/commands.md",
    "docs/configuration.md",
    "docs/containers.md",
    "docs/guide.md",
    "docs/quickstart.md",
    "docs/migrate.md",
    "docs/troubleshooting.md",
    "docs/monitoring.md",
    "docs/reliability.md",
    "docs/dependencies.md",
    "docs/limits.md",
];

/// The text of a document; `None` if it does not exist.
fn document(name: &str) -> Option<String> {
    fs::read_to_string(Path::new(ROOT).join(name)).ok()
}

/// A fenced block: document, line, language, text.
struct Block {
    place: String,
    language: String,
    text: String,
}

fn blocks() -> Vec<Block> {
    let mut all = Vec::new();
    for name in DOCUMENTS {
        let Some(text) = document(name) else { continue };
        let mut open: Option<Block> = None;
        for (number, line) in text.lines().enumerate() {
            match (&mut open, line.trim_start().strip_prefix("```")) {
                (None, Some(language)) => {
                    let place = format!("{name}:{}", number + 1);
                    open = Some(Block { place, language: language.trim().into(), text: String::new() });
                }
                (Some(_), Some(_)) => all.extend(open.take()),
                (Some(block), None) => {
                    block.text += line;
                    block.text.push('\n');
                }
                (None, None) => {}
            }
        }
        assert!(open.is_none(), "{name}: a block has no end");
    }
    all
}

fn of(language: &str) -> Vec<Block> {
    blocks().into_iter().filter(|block| block.language == language).collect()
}

/// A folder that is deleted when this is dropped.
struct Sandbox(PathBuf);

impl Sandbox {
    fn new(name: &str) -> Sandbox {
        let place = std::env::temp_dir().join(format!("vcd-documents-{name}-{}", std::process::id()));
        fs::create_dir_all(&place).unwrap();
        Sandbox(place)
    }

    fn write(&self, path: &str, text: &str, mode: u32) -> PathBuf {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        if mode == 0o755 {
            common::install(text.as_bytes(), &path);
        } else {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        path
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The Rust files below these folders of the project: path and text.
fn sources(folders: &[&str]) -> Vec<(String, String)> {
    let mut files = Vec::new();
    let mut folders: Vec<String> = folders.iter().map(|&folder| folder.to_owned()).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(Path::new(ROOT).join(&folder)).unwrap() {
            let entry = entry.unwrap();
            let name = format!("{folder}/{}", entry.file_name().to_str().unwrap());
            if entry.path().is_dir() {
                folders.push(name);
            } else if name.ends_with(".rs") {
                let text = fs::read_to_string(entry.path()).unwrap();
                files.push((name, text));
            }
        }
    }
    files
}

#[test]
fn every_block_has_a_language_that_is_tested() {
    for block in blocks() {
        assert!(
            matches!(block.language.as_str(), "toml" | "sh" | "ini" | "yaml" | "text"),
            "{}: {:?}",
            block.place,
            block.language
        );
    }
    assert!(of("toml").len() >= 4 && of("sh").len() >= 8, "the blocks are found");
}

#[test]
fn configuration_md_is_up_to_date() {
    let expected = reference::configuration();
    let found = document("docs/configuration.md").unwrap();
    assert!(found == expected, "update it: cargo run --example configuration > docs/configuration.md");
    for key in KEYS {
        assert!(found.contains(&format!("### {}\n", key.name)));
    }
}

/// A complete file is checked as it is. A part of a file (tables without a list of runners) is inserted into the
/// example.
#[test]
fn toml_blocks_are_configurations() {
    let sandbox = Sandbox::new("toml");
    for (index, block) in of("toml").into_iter().enumerate() {
        let name = format!("{index}.toml");
        if !block.text.contains("[[runners]]") {
            is_part(&block, &sandbox.write(&name, &runner_of(&block.text), 0o600));
            continue;
        }
        let file = sandbox.write(&name, &block.text, 0o600);
        let output = Command::new(BINARY).args(["check", "--offline", "--config"]).arg(&file).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{}: {said}{}", block.place, String::from_utf8_lossy(&output.stderr));
        assert!(!said.contains("unknown key"), "{}: {said}", block.place);
    }
}

/// A complete file with the tables of a part.
fn runner_of(part: &str) -> String {
    let plugin = "[runners.autoscaler]\n  plugin = \"fleeting-plugin-vcd\"\n";
    match part.contains("[runners.autoscaler]") {
        true => format!("[[runners]]\n{}", part.replacen("[runners.autoscaler]\n", plugin, 1)),
        // Only keys of plugin_config.
        false => format!("[[runners]]\n{plugin}[runners.autoscaler.plugin_config]\n{part}"),
    }
}

/// The example's plugin_config, with the part's keys, is valid.
fn is_part(block: &Block, file: &Path) {
    let read = |path: &Path| RunnerFile::read(path).unwrap_or_else(|error| panic!("{}: {error}", block.place));
    let (example, part) = (read(&Path::new(ROOT).join("config.example.toml")), read(file));
    let (example, part) = (&example.runners[0], part.runners.first().expect("the part contains [runners.autoscaler]"));
    let mut config = example.plugin_config.clone();
    config.extend(part.plugin_config.clone());
    let connector = Connector { use_static_credentials: true, password: "password".into(), ..Connector::default() };
    let parsed = Config::parse(serde_json::Value::Object(config).to_string().as_bytes(), &connector);
    let parsed = parsed.unwrap_or_else(|mistakes| panic!("{}: {mistakes}", block.place));
    assert_eq!(parsed.warnings, [""; 0], "{}", block.place);
}

/// Programs that would change a real system or need one. In the sandbox, they only record their arguments.
const STUBS: [&str; 11] = [
    "cargo",
    "vmware-toolbox-cmd",
    "systemctl",
    "journalctl",
    "rustup",
    "curl",
    "gitlab-runner",
    "release/footprint",
    "release/build",
    "release/package",
    ".ci/deep",
];

#[test]
fn shell_blocks_run() {
    let ci = [".ci/run", ".ci/deep"].map(|name| fs::read_to_string(Path::new(ROOT).join(name)).unwrap()).concat();
    let guest_port = fleet::free_port();
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let server = Server::start(Options { listen: any, scale: 50.0, guest_port, ..Options::default() }).unwrap();
    for (index, block) in of("sh").into_iter().enumerate() {
        let sandbox = Sandbox::new(&format!("sh-{index}"));
        prepare(&sandbox, &server, guest_port);
        // Absolute paths are moved into the sandbox.
        let root = sandbox.0.display().to_string();
        let mut text = block.text.clone();
        for place in ["/etc/", "/usr/local/bin/"] {
            text = text.replace(&format!(" {place}"), &format!(" {root}{place}"));
        }
        let script = sandbox.write("script", &format!("set -eu\n{text}"), 0o755);
        // Without --config, the stub passes the file in the sandbox.
        let path = format!("{root}/stubs:{}", std::env::var("PATH").unwrap());
        let mut shell = Command::new("sh");
        shell.arg(&script).current_dir(sandbox.0.join("work")).env("PATH", path).env("LOG", sandbox.0.join("log"));
        let mut child = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"an-api-token\n").ok();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {}\n{said}", block.place, output.status);

        // CI must run the same cargo command, apart from --locked.
        let log = fs::read_to_string(sandbox.0.join("log")).unwrap_or_default();
        for line in log.lines().filter(|line| line.starts_with("cargo ")) {
            // "plugin kill::", for example: the tests of one file.
            let test = line.strip_prefix("cargo test --test ").and_then(|rest| rest.strip_suffix("::"));
            let is_test =
                test.is_some_and(|test| Path::new(ROOT).join(format!("tests/{}.rs", test.replace(' ', "/"))).exists());
            let known = is_test || ci.replace(" --locked", "").contains(line) || CARGO_ELSEWHERE.contains(&line);
            assert!(known, "{}: {line:?} is in neither .ci/run nor .ci/deep", block.place);
        }
    }
}

/// The quick start's first VM without a VCD: the simulator is a separate process, and the check logs in to its guest.
/// Only two commands are stubs: `cargo`, and `sleep`, which waits until the simulator is ready.
#[test]
fn a_first_check_without_a_vcd_creates_a_vm_logs_in_and_deletes_it() {
    let simulator =
        std::env::var_os("SIM_BIN").map_or_else(|| Path::new(BINARY).with_file_name("vcd-sim"), PathBuf::from);
    let options = Options { guest_port: fleet::free_port(), guests: GuestKind::Auto, ..Options::default() };
    let trial = Server::start(options).unwrap();
    let Some(user) = trial.guest_user() else { return println!("skipped: guests are {}", trial.guests()) };
    if !simulator.exists() {
        return println!("skipped: cargo build --workspace builds {}", simulator.display());
    }
    let block = of("sh").into_iter().find(|block| block.text.contains("vcd-sim")).unwrap();
    let sandbox = Sandbox::new("first-check");
    let [vcd, control, guests] = [(); 3].map(|()| fleet::free_port());
    let example = fs::read_to_string(Path::new(ROOT).join("examples/simulator.toml")).unwrap();
    assert!(example.contains("8080") && example.contains("2222"));
    let example = example.replace("8080", &vcd.to_string()).replace("2222", &guests.to_string());
    sandbox.write("work/examples/simulator.toml", &example, 0o600);
    sandbox.write("stubs/cargo", "#!/bin/sh\n", 0o755);
    sandbox.write("stubs/sleep", "#!/bin/sh\nuntil grep -q ^control \"$SAID\"; do /bin/sleep 0.1; done\n", 0o755);
    let ports = format!("--listen 127.0.0.1:{vcd} --control 127.0.0.1:{control} --guest-port {guests}");
    let simulator = format!("#!/bin/sh\nexec {} \"$@\" {ports} >\"$SAID\"\n", simulator.display());
    sandbox.write("work/target/release/vcd-sim", &simulator, 0o755);
    let plugin = format!("#!/bin/sh\nexec {BINARY} \"$@\"\n");
    sandbox.write("work/target/release/fleeting-plugin-vcd", &plugin, 0o755);
    let said = sandbox.write("said", "", 0o644);

    let path = format!("{}:{}", sandbox.0.join("stubs").display(), std::env::var("PATH").unwrap());
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("set -eu\ntrap 'kill $! 2>/dev/null || :' EXIT\n{}", block.text)]);
    shell.current_dir(sandbox.0.join("work"));
    let output = shell.env("PATH", path).env("SAID", &said).output().unwrap();
    let said = fs::read_to_string(said).unwrap() + &String::from_utf8_lossy(&output.stderr);
    let checks = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}: {}\n{said}{checks}", block.place, output.status);
    assert!(said.contains(&format!("guests: OpenSSH, login as {user} with a key\n")), "{said}");
    for line in [format!("  ok    SSH              logged in as {user}@127.0.10."), "  ok    delete ".into()] {
        assert!(checks.contains(&line), "{line}\n{checks}");
    }
    assert_eq!(checks.matches("\nit works, ").count(), 2, "{checks}");
}

/// Commands that run elsewhere: in the scripts in release, in a test above, or, with fewer seeds, in
/// `tests/group/lives.rs`. The lints build those that only print figures.
const CARGO_ELSEWHERE: [&str; 8] = [
    "cargo run --example configuration",
    "cargo run --example manual man",
    "cargo run --example manual bash",
    "cargo run --example replay tests/recordings/simulator-check.txt",
    "cargo build --release --target x86_64-unknown-linux-musl",
    "cargo run --release --example sim -- --seeds 100000",
    "cargo run --release --example soak -- --minutes 60",
    "cargo run --release --example load",
];

/// The files of the project that the documents use, a runner's configuration, and stubs for the system.
fn prepare(sandbox: &Sandbox, server: &Server, guest_port: u16) {
    for name in STUBS {
        let stub = "#!/bin/sh\necho \"${0##*/} $*\" >> \"$LOG\"\n";
        let place = if name.contains('/') { format!("work/{name}") } else { format!("stubs/{name}") };
        sandbox.write(&place, stub, 0o755);
    }
    let example = fs::read_to_string(Path::new(ROOT).join("examples/simulator.toml")).unwrap();
    let example = example.replace("http://127.0.0.1:8080", &server.url()).replace("2222", &guest_port.to_string());
    sandbox.write("work/examples/simulator.toml", &example, 0o600);
    sandbox.write("etc/gitlab-runner/config.toml", &example, 0o600);
    let file = sandbox.0.join("etc/gitlab-runner/config.toml");
    // The plugin, with the sandbox's configuration if the block names none. A real login needs real guests, which the
    // test below and those with GitLab's own library have.
    let plugin = format!(
        "#!/bin/sh\necho \"${{0##*/}} $*\" >> \"$LOG\"\ncase \"$*\" in\n  \
         'check --create --config '*) shift 2; exec {BINARY} check \"$@\" ;;\n  \
         *--config*|version) exec {BINARY} \"$@\" ;;\n  \
         'check --create') exec {BINARY} check --config {file} ;;\n  *) exec {BINARY} \"$@\" --config {file} ;;\nesac\n",
        file = file.display()
    );
    for place in
        ["stubs", "work", "work/target/release", "work/target/x86_64-unknown-linux-musl/release", "usr/local/bin"]
    {
        sandbox.write(&format!("{place}/fleeting-plugin-vcd"), &plugin, 0o755);
    }
    // The simulator is already running.
    sandbox.write("work/target/release/vcd-sim", "#!/bin/sh\nexec sleep 60\n", 0o755);
    sandbox.write("usr/local/bin/fleeting-plugin-vcd.go", "", 0o755);
    sandbox.write("etc/machine-id", "0123456789abcdef", 0o644);
    sandbox.write("etc/ssh/ssh_host_test", "", 0o600);
    fs::create_dir_all(sandbox.0.join("work/docs")).unwrap();
    fs::create_dir_all(sandbox.0.join("etc/systemd/system/gitlab-runner.service.d")).unwrap();
    let _ = symlink(Path::new(ROOT).join("config.example.toml"), sandbox.0.join("work/config.example.toml"));
}

#[test]
fn unit_files_are_well_formed() {
    for block in of("ini") {
        for line in block.text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let section = line.starts_with('[') && line.ends_with(']');
            let setting = line.split_once('=').is_some_and(|(key, _)| key.chars().all(|c| c.is_ascii_alphanumeric()));
            assert!(section || setting, "{}: {line}", block.place);
        }
    }
}

/// Each message in the tables of docs/troubleshooting.md is in the source, or is VCD's own.
#[test]
fn explained_messages_exist() {
    /// Texts of VCD, of its login, or of a library, which the plugin shows.
    const OTHERS: [&str; 4] =
        ["VCD answered 400 invalid_grant", "VCD answered 403", "maximum number of simultaneous operations", "quota"];
    let source: String = sources(&["src"]).into_iter().map(|(_, text)| text).collect();
    // A string can continue in the next line.
    let source: String = source.split("\\\n").map(|part| part.trim_start_matches(' ')).collect();
    let text = document("docs/troubleshooting.md").unwrap();
    let rows: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    assert!(rows.len() > 30, "the tables are found");
    for row in rows {
        assert!(source.contains(row) || OTHERS.contains(&row), "no message says {row:?}");
    }
}

/// docs/troubleshooting.md explains everything that an instance can wait for, and nothing else.
#[test]
fn what_an_instance_waits_for_is_explained() {
    let source = fs::read_to_string(Path::new(ROOT).join("src/group/view.rs")).unwrap();
    let source = source.split("\n#[cfg(test)]").next().unwrap();
    let mut said: Vec<&str> = Vec::new();
    for function in ["fn held_by", "fn waits_for", "fn rests_for", "fn accepts", "fn works"] {
        let (_, rest) = source.split_once(&format!("{function}(")).unwrap_or_else(|| panic!("{function}"));
        let body = rest.split("\n    }\n").next().unwrap().split("\n}\n").next().unwrap();
        said.extend(body.split('"').skip(1).step_by(2).filter(|text| !text.is_empty()));
    }
    said.sort();
    said.dedup();
    assert!(said.len() > 25, "{said:?}");
    let text = document("docs/troubleshooting.md").unwrap();
    let (_, table) = text.split_once("| waits for | look at |").unwrap();
    let table = table.split("\n\n").next().unwrap();
    let cells = table.lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
    let mut explained: Vec<&str> = cells.flat_map(|cell| cell.trim_end_matches('`').split("`, `")).collect();
    explained.sort();
    assert_eq!(explained, said);
}

/// docs/troubleshooting.md explains every advice of `check`.
#[test]
fn every_cause_with_an_advice_is_explained() {
    let text = document("docs/troubleshooting.md").unwrap();
    let rows: Vec<&str> = text.lines().filter(|line| line.starts_with("| `")).collect();
    assert!(CAUSES.len() > 20);
    for (parts, _) in CAUSES {
        assert!(rows.iter().any(|row| parts.iter().all(|part| row.contains(part))), "{parts:?}");
    }
}

/// docs/limits.md names each constant of src that is a number or duration, except in tests: in a table, with its
/// value and with tests that exist, or in the list of numbers that are no limits.
#[test]
fn every_limit_is_documented_with_its_value_and_its_test() {
    let all = sources(&["src", "tests"]);
    let mut constants = Vec::new();
    for (path, text) in all.iter().filter(|(path, _)| path.starts_with("src/") && !path.ends_with("/tests.rs")) {
        let product = ["#[cfg(test)]\nmod tests {", "#[cfg(all(test"]
            .iter()
            .fold(text.as_str(), |text, tests| text.split(tests).next().unwrap());
        for line in product.split(';').filter_map(|statement| statement.split_once("const ").map(|(_, rest)| rest)) {
            let Some((name, (kind, value))) =
                line.split_once(": ").and_then(|(name, rest)| Some((name, rest.split_once(" =")?)))
            else {
                continue;
            };
            if ["usize", "u8", "u16", "u32", "u64", "Duration"].contains(&kind) {
                let value = value.trim();
                let time = |unit: &str| value.strip_prefix(unit)?.strip_suffix(')');
                let value = match (time("Duration::from_secs("), time("Duration::from_millis(")) {
                    (Some(secs), _) => format!("{secs} s"),
                    (_, Some(ms)) => format!("{ms} ms"),
                    _ => value.to_owned(),
                };
                constants.push((name.to_owned(), path.clone(), value));
            }
        }
    }
    assert!(constants.len() > 150, "the constants are found: {}", constants.len());

    let text = document("docs/limits.md").unwrap();
    let (tables, others) = text.split_once("\n## Numbers that are no limits\n").unwrap();
    let mut named = Vec::new();
    for row in tables.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [name, value, path, what, tests] = cells[..] else { panic!("{row}") };
        let (name, path) = (name.trim_matches('`'), path.trim_matches('`'));
        let is = constants.iter().find(|(known, place, _)| (known.as_str(), place.as_str()) == (name, path));
        assert_eq!(is.map(|(.., value)| value.as_str()), Some(value), "{row}");
        assert!(!what.is_empty(), "{row}");
        for test in tests.split(", ").filter(|_| !tests.starts_with("none: ")) {
            let head = format!("#[test]\nfn {}() {{", test.trim_matches('`'));
            let is_there = |text: &str| text.replace("\n    fn", "\nfn").contains(&head);
            assert!(all.iter().any(|(_, text)| is_there(text)), "{name}: there is no test {test}");
        }
        named.push((name.to_owned(), path.to_owned()));
    }
    let others: Vec<&str> = others.split('`').skip(1).step_by(2).collect();
    named.extend(others.chunks(2).map(|pair| (pair[0].to_owned(), pair[1].to_owned())));
    let mut known: Vec<_> = constants.into_iter().map(|(name, path, _)| (name, path)).collect();
    named.sort();
    known.sort();
    assert_eq!(named, known);
}

#[test]
fn links_have_a_target() {
    for name in DOCUMENTS {
        let Some(text) = document(name) else { continue };
        let folder = Path::new(ROOT).join(name).parent().unwrap().to_owned();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.starts_with("http") {
                continue;
            }
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match path {
                "" => Ok(text.clone()),
                _ => fs::read_to_string(folder.join(path)),
            };
            let target = target.unwrap_or_else(|_| panic!("{name}: {link} has no target"));
            let heads = target.lines().filter(|line| line.starts_with('#')).map(|line| {
                let plain = line.trim_start_matches('#').trim().to_lowercase();
                plain
                    .chars()
                    .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
                    .collect::<String>()
                    .replace(' ', "-")
            });
            assert!(anchor.is_empty() || heads.into_iter().any(|head| head == anchor), "{name}: {link} has no target");
        }
    }
}

#[test]
fn every_dependency_is_explained() {
    let manifest = fs::read_to_string(Path::new(ROOT).join("Cargo.toml")).unwrap();
    let manifest = toml::de::DeTable::parse(&manifest).unwrap();
    let mut linked = Vec::new();
    let mut add = |table: &toml::de::DeTable| {
        for (name, value) in table {
            let renamed = value.get_ref().get("package").and_then(|package| package.get_ref().as_str());
            linked.push(renamed.unwrap_or(name.get_ref()).to_owned());
        }
    };
    add(manifest.get_ref()["dependencies"].get_ref().as_table().unwrap());
    for platform in manifest.get_ref()["target"].get_ref().as_table().unwrap().values() {
        add(platform.get_ref()["dependencies"].get_ref().as_table().unwrap());
    }
    linked.sort();
    let text = document("docs/dependencies.md").unwrap();
    let (_, text) = text.split_once("\n## Dependencies\n").unwrap();
    let rows = text.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    let explained: Vec<&str> = rows.filter(|row| !["crate", "---"].contains(row)).collect();
    assert_eq!(explained, linked);
}

/// A group runs with the Go plugin's config.toml in docs/migrate.md, with the simulator's names.
#[test]
fn a_group_runs_with_the_go_plugins_configuration() {
    let block = of("toml").into_iter().find(|block| block.place.starts_with("docs/migrate.md")).unwrap();
    let sandbox = Sandbox::new("migrate");
    let file =
        RunnerFile::read(&sandbox.write("config.toml", &block.text, 0o600)).unwrap_or_else(|error| panic!("{error}"));
    let runner = file.only(None).unwrap_or_else(|error| panic!("{error}"));
    let (server, guest_port) = fleet::simulator(50.0);
    let mut config = runner.plugin_config.clone();
    let places = fleet::plugin_config(&server);
    for key in ["url", "org", "token", "virtual_datacenter", "network", "catalog", "template", "storage_profile"] {
        assert!(config.insert(key.into(), places[key].clone()).is_some(), "{key} is in the file");
    }
    config.insert("debug_server_addr".into(), format!("127.0.0.1:{}", fleet::free_port()).into());
    let connector = ConnectorConfig {
        username: runner.connector.username.clone(),
        password: runner.connector.password.clone(),
        use_static_credentials: runner.connector.use_static_credentials,
        protocol_port: guest_port.into(),
        ..ConnectorConfig::default()
    };
    smol::block_on(async {
        let mut plugin = common::PluginProcess::start(common::command(BINARY)).await;
        let bytes = serde_json::Value::Object(config).to_string();
        plugin.init(bytes.as_bytes(), connector).await.unwrap();
        plugin.increase(2).await.unwrap();
        let running = async {
            while plugin.update().await.unwrap().iter().filter(|(_, state)| *state == State::Running).count() < 2 {
                smol::Timer::after(Duration::from_millis(20)).await;
            }
        };
        common::soon("a running group", running).await;
        plugin.shutdown().await.unwrap();
        plugin.quit().await.unwrap();
        assert!(plugin.exited().await.0.success());
    });
    assert!(fleet::vapps(&server).is_empty());
}

/// Phrases that documents do not use: the glossary in CONTRIBUTING.md has the word for each. A phrase is matched in
/// lower case and as whole words. The texts after `|` are allowed contexts.
const BANNED: &[&str] = &[
    "ailment",
    "anew",
    "ask|ask the|ask for|so ask|ask vcd's",
    "asked",
    "asks|asks for confirmation|asks the plugin|runner asks",
    "at a time",
    "at it",
    "awaited",
    "be rid of",
    "fitting",
    "half made",
    "half-made",
    "hold up",
    "holds up",
    "ill|(unhealthy)",
    "look is",
    "looked at",
    "looks at",
    "a look",
    "of ours",
    "ours",
    "not ours",
    "made",
    "passed over",
    "passes over",
    "patience",
    "refuses to start",
    "removal",
    "removes it",
    "scrap",
    "shut|shut down|shut it down",
    "so long",
    "so many",
    "so much",
    "so often",
    "so old",
    "stranger",
    "take in",
    "taken in",
    "takes in",
    "tell apart",
    "the host|the host name|the host of",
    "the hosts",
    "the host's",
    "the mark",
    "told",
    "under way",
    "whose it is",
    "whose they are",
    "with a look",
];

/// The lines of a document in which banned phrases are searched, with their numbers. The glossary, fenced blocks and
/// text in backquotes (names and the program's own texts) are skipped.
fn own_words(name: &str, text: &str) -> Vec<(usize, String)> {
    let mut lines = Vec::new();
    let (mut glossary, mut fenced) = (false, false);
    for (number, line) in text.lines().enumerate() {
        glossary |= line == "<!-- glossary -->";
        glossary &= line != "<!-- /glossary -->";
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            continue;
        }
        if glossary || (fenced && !name.ends_with(".toml")) {
            continue;
        }
        // Text in backquotes belongs to programs.
        let plain: String = line.split('`').step_by(2).collect::<Vec<_>>().join("`");
        lines.push((number + 1, plain.to_lowercase()));
    }
    lines
}

/// The banned phrase in a line, if there is one.
fn banned(line: &str) -> Option<&'static str> {
    let is_word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '-');
    BANNED.iter().find_map(|rule| {
        let mut parts = rule.split('|');
        let phrase = parts.next()?;
        let allowed: Vec<&str> = parts.collect();
        let found = line.match_indices(phrase).any(|(at, _)| {
            let (before, after) = (&line[..at], &line[at + phrase.len()..]);
            !is_word(before.chars().next_back()) && !is_word(after.chars().next())
        });
        (found && !allowed.iter().any(|right| line.contains(right))).then_some(phrase)
    })
}

#[test]
fn documents_use_the_words_of_the_glossary() {
    let others = ["config.example.toml", "docs/alerts.yml", "docs/grafana-dashboard.json"];
    let mut wrong = Vec::new();
    for name in DOCUMENTS.iter().chain(&others) {
        let text = document(name).unwrap_or_else(|| panic!("{name} is there"));
        for (number, line) in own_words(name, &text) {
            wrong.extend(banned(&line).map(|phrase| format!("{name}:{number}: {phrase:?}: {line}")));
        }
    }
    assert!(wrong.is_empty(), "{} lines with banned phrases:\n{}", wrong.len(), wrong.join("\n"));
    let glossary = document("CONTRIBUTING.md").unwrap();
    let (_, glossary) = glossary.split_once("<!-- glossary -->").unwrap();
    let glossary = glossary.split("<!-- /glossary -->").next().unwrap();
    assert!(glossary.lines().filter(|line| line.starts_with("| ")).count() > 25);
}

/// The comments and string literals of a source without its unit tests: the line, whether it is a comment, and the
/// text.
fn words_of_source(text: &str) -> Vec<(usize, bool, String)> {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let mut words = Vec::new();
    let mut at = 0;
    while let Some(next) = text[at..].find(['/', '"', '\'']) {
        let (before, from) = text.split_at(at + next);
        let end_after = |skip: usize, end: &str| from[skip..].find(end).map(|found| skip + found + end.len());
        let plain = before.trim_end_matches('#');
        let length = match from.as_bytes()[0] {
            b'/' if from.starts_with("//") => from.find('\n'),
            b'"' if plain.ends_with('r') => end_after(1, &format!("\"{}", &before[plain.len()..])),
            b'"' => {
                let mut escaped = false;
                let ends = |c: char| {
                    c == '"' && !escaped || {
                        escaped = c == '\\' && !escaped;
                        false
                    }
                };
                from[1..].find(ends).map(|found| found + 2)
            }
            b'\'' if from.starts_with("'\\") => end_after(3, "'"),
            // A quoted character, or the quote of a lifetime.
            b'\'' => Some(from.char_indices().nth(2).filter(|(_, c)| *c == '\'').map_or(1, |(third, _)| third + 1)),
            _ => Some(1),
        };
        let length = length.unwrap_or(from.len());
        if length > 1 && !from.starts_with('\'') {
            let first = before.matches('\n').count() + 1;
            let lines = from[..length].split('\n').enumerate();
            words.extend(lines.map(|(n, line)| (first + n, from.starts_with('/'), line.replace("\\n", " "))));
        }
        at += next + length;
    }
    words
}

/// The program's texts and all comments use these words too. In comments, GitLab Runner is the host. The texts of tests are not
/// checked: some are VCD's.
#[test]
fn sources_use_the_words_of_the_glossary() {
    let sample = "let a = 'b'; // one\nf::<'c>(\"two \\\" \\\n  three\", r#\"four \" five\"#, '\"'); /// six\n";
    let found = words_of_source(sample);
    let expected = [
        (1, true, "// one"),
        (2, false, "\"two \\\" \\"),
        (3, false, "  three\""),
        (3, false, "\"four \" five\"#"),
        (3, true, "/// six"),
    ];
    assert_eq!(found, expected.map(|(line, is_comment, text)| (line, is_comment, text.to_owned())));

    let mut wrong = Vec::new();
    let mut count = 0;
    let product = sources(&["src", "examples"]).into_iter().map(|source| (source, true));
    let tests = sources(&["tests", "fuzz/src", "fuzz/fuzz_targets", "fuzz/examples"]);
    for ((path, text), with_texts) in product.chain(tests.into_iter().map(|source| (source, false))) {
        if path.ends_with("/tests.rs") {
            continue;
        }
        for (line, is_comment, text) in words_of_source(&text) {
            // A text without a space is a name.
            if !(is_comment || with_texts && text.trim().contains(' ')) {
                continue;
            }
            count += 1;
            let plain: String = text.split('`').step_by(2).collect::<Vec<_>>().join("`").to_lowercase();
            let plain = if is_comment { plain.replace("the host", "") } else { plain };
            wrong.extend(banned(&plain).map(|phrase| format!("{path}:{line}: {phrase:?}: {text}")));
        }
    }
    assert!(count > 6000, "the words are found: {count}");
    assert!(wrong.is_empty(), "{} lines with banned phrases:\n{}", wrong.len(), wrong.join("\n"));
}

/// The man page and the completions contain each command and option that `--help` shows.
#[test]
fn the_man_page_and_the_completions_contain_what_help_shows() {
    let commands = manual::commands();
    assert_eq!(commands.len(), 6);
    let pages = ["man", "bash", "zsh", "fish"].map(|kind| (kind, manual::page(kind).unwrap()));
    for (command, options) in &commands {
        let output = Command::new(BINARY).args([command, "--help"]).output().unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        let words = help.split(|c: char| c != '-' && !c.is_ascii_alphanumeric()).filter(|word| *word != "--");
        let shown: std::collections::BTreeSet<&str> = words.filter(|word| word.starts_with("--")).collect();
        assert_eq!(shown, options.iter().map(String::as_str).collect(), "{command}");
        for (kind, page) in &pages {
            for option in options {
                let written = match *kind {
                    "man" => option.replace('-', "\\-"),
                    "fish" => option.replace("--", "-l "),
                    _ => option.clone(),
                };
                assert!(page.contains(&written), "{kind}: {command} {option}");
            }
            assert!(page.contains(command.as_str()), "{kind}: {command}");
        }
    }
    // Runs the completion in bash, which is on every machine.
    let script = format!(
        "{}\nCOMP_WORDS=(x check --of) COMP_CWORD=2\n_fleeting_plugin_vcd\necho \"${{COMPREPLY[*]}}\"",
        pages[1].1
    );
    let output = Command::new("bash").args(["-c", &script]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "--offline\n");
}
