//! Writes `src/host/proto.rs` from `proto/*.proto`: the messages only, one Rust module for each protobuf package. With
//! `--check` it writes nothing and exits with status 1 if the file differs from what it would write. Needs no `protoc`.

use prost_build::Module;
use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

/// The contract's files, and the Rust module that each becomes.
const FILES: [(&str, &str); 4] = [
    ("instance_group.proto", "fleeting"),
    ("go_plugin.proto", "go_plugin"),
    ("health.proto", "health"),
    ("status.proto", "status"),
];

/// Messages that carry secrets, or hold one that does: no `Debug`.
const SECRET: [&str; 4] =
    [".proto.InitRequest", ".proto.Settings", ".proto.ConnectorConfig", ".proto.ConnectInfoResponse"];

/// What stands above the generated code.
const HEADER: &str = "\
// Generated from proto/*.proto by proto/generate. Do not edit; to generate it again:
//     cargo run --manifest-path proto/generate/Cargo.toml
#![allow(missing_docs)]
";

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let check = match std::env::args().nth(1).as_deref() {
        None => false,
        Some("--check") => true,
        Some(other) => return Err(format!("unknown argument {other:?}: only --check is known").into()),
    };
    let proto = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let target = proto.join("../src/host/proto.rs");
    let text = generate(&proto)?;

    if !check {
        std::fs::write(&target, text)?;
        return Ok(ExitCode::SUCCESS);
    }
    // A checkout may have turned line ends.
    if std::fs::read_to_string(&target)?.replace("\r\n", "\n") == text {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("src/host/proto.rs is not what proto/*.proto gives: run the generator without --check");
    Ok(ExitCode::FAILURE)
}

/// The text of `proto.rs`.
fn generate(proto: &Path) -> Result<String, Box<dyn Error>> {
    let mut text = HEADER.to_owned();
    for (file, module) in FILES {
        let mut config = prost_build::Config::new();
        config.skip_debug(SECRET);
        let descriptors = protox::compile([file], [proto])?;
        let requests = descriptors
            .file
            .into_iter()
            .filter(|descriptor| descriptor.name() == file)
            .map(|descriptor| (Module::from_parts([module]), descriptor))
            .collect();
        for code in config.generate(requests)?.into_values() {
            text += &format!("\npub mod {module} {{\n");
            for line in code.lines().filter(|line| !line.starts_with("// This file is @generated")) {
                text += if line.is_empty() { "" } else { "    " };
                text += line;
                text += "\n";
            }
            text += "}\n";
        }
    }
    Ok(text)
}
