//! Prints what is linked into the plugin for a target, as CycloneDX 1.5, from Cargo.lock and cargo's own view of it:
//!
//!     cargo run --example sbom -- x86_64-unknown-linux-musl

#![allow(clippy::indexing_slicing)]

use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, ExitCode};
use toml::de::{DeTable, DeValue};

fn main() -> ExitCode {
    let Some(target) = std::env::args().nth(1) else {
        eprintln!("usage: sbom TARGET");
        return ExitCode::FAILURE;
    };
    match bill(&target) {
        Ok(bill) => {
            println!("{bill:#}");
            ExitCode::SUCCESS
        }
        Err(reason) => {
            eprintln!("sbom: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn bill(target: &str) -> Result<Value, String> {
    let root = env!("CARGO_MANIFEST_DIR");
    let metadata = cargo(&["metadata", "--format-version=1", "--locked", "--filter-platform", target])?;
    let metadata: Value = serde_json::from_str(&metadata).map_err(|error| format!("cargo metadata: {error}"))?;
    let lock = std::fs::read_to_string(format!("{root}/Cargo.lock")).map_err(|error| format!("Cargo.lock: {error}"))?;
    let sums = checksums(&lock)?;

    let list = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let packages: BTreeMap<String, Value> =
        list(&metadata, "packages").into_iter().map(|package| (text(&package["id"]), package)).collect();
    let nodes: BTreeMap<String, Value> =
        list(&metadata["resolve"], "nodes").into_iter().map(|node| (text(&node["id"]), node)).collect();
    let start = text(&metadata["resolve"]["root"]);

    // The crates that are linked. The metadata alone would also show features of the tests' dependencies, and macros,
    // which run in the compiler.
    let tree =
        ["tree", "--locked", "--edges=normal,no-proc-macro", "--prefix=none", "--format={p}", "--target", target];
    let tree = cargo(&tree)?;
    let names = tree.lines().filter_map(|line| {
        let (name, rest) = line.split_once(" v")?;
        Some((name, rest.split(' ').next()?))
    });
    let names: BTreeSet<(&str, &str)> = names.collect();
    let mut linked: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut open = vec![start.clone()];
    while let Some(id) = open.pop() {
        if linked.contains_key(&id) {
            continue;
        }
        let normal = |dependency: &Value| list(dependency, "dep_kinds").iter().any(|kind| kind["kind"].is_null());
        let node = nodes.get(&id).cloned().unwrap_or_default();
        let mut below: Vec<String> =
            list(&node, "deps").iter().filter(|dep| normal(dep)).map(|dep| text(&dep["pkg"])).collect();
        let is_linked = |id: &String| {
            let of = |key: &str| packages[id][key].as_str().unwrap_or_default();
            names.contains(&(of("name"), of("version")))
        };
        below.retain(is_linked);
        below.sort();
        open.extend(below.iter().cloned());
        linked.insert(id, below);
    }

    let url = |id: &String| {
        let package = packages.get(id).cloned().unwrap_or_default();
        format!("pkg:cargo/{}@{}", text(&package["name"]), text(&package["version"]))
    };
    let component = |id: &String| {
        let package = packages.get(id).cloned().unwrap_or_default();
        let (name, version) = (text(&package["name"]), text(&package["version"]));
        let kind = if *id == start { "application" } else { "library" };
        let mut component =
            json!({"type": kind, "bom-ref": url(id), "name": name, "version": version, "purl": url(id)});
        if let Some(license) = package["license"].as_str() {
            component["licenses"] = json!([{"expression": license.replace('/', " OR ")}]);
        }
        if let Some(sum) = sums.get(&(name, version)) {
            component["hashes"] = json!([{"alg": "SHA-256", "content": sum}]);
        }
        component
    };
    let components: Vec<Value> = linked.keys().filter(|id| **id != start).map(component).collect();
    let depends = |(id, below): (&String, &Vec<String>)| {
        let on: BTreeSet<String> = below.iter().map(url).collect();
        json!({"ref": url(id), "dependsOn": on})
    };
    let mut bill = Map::new();
    bill.insert("bomFormat".into(), "CycloneDX".into());
    bill.insert("specVersion".into(), "1.5".into());
    bill.insert("version".into(), 1.into());
    let about = json!({"component": component(&start), "properties": [{"name": "cargo:target", "value": target}]});
    bill.insert("metadata".into(), about);
    bill.insert("components".into(), components.into());
    bill.insert("dependencies".into(), linked.iter().map(depends).collect());
    Ok(bill.into())
}

/// What cargo prints.
fn cargo(words: &[&str]) -> Result<String, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo).args(words).current_dir(env!("CARGO_MANIFEST_DIR")).output();
    let output = output.map_err(|error| format!("run cargo {}: {error}", words[0]))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!("cargo {}: {}", words[0], String::from_utf8_lossy(&output.stderr))),
    }
}

/// The SHA-256 of each package in Cargo.lock that has one, by name and version.
fn checksums(lock: &str) -> Result<BTreeMap<(String, String), String>, String> {
    let table = DeTable::parse(lock).map_err(|error| format!("Cargo.lock: {error}"))?;
    let Some(DeValue::Array(packages)) = table.get_ref().get("package").map(|value| value.get_ref()) else {
        return Err("Cargo.lock names no packages".into());
    };
    let mut sums = BTreeMap::new();
    for package in packages.iter() {
        let DeValue::Table(package) = package.get_ref() else { continue };
        let field = |name: &str| match package.get(name).map(|value| value.get_ref()) {
            Some(DeValue::String(text)) => Some(text.to_string()),
            _ => None,
        };
        if let (Some(name), Some(version), Some(sum)) = (field("name"), field("version"), field("checksum")) {
            sums.insert((name, version), sum);
        }
    }
    Ok(sums)
}
