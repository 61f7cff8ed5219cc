//! Makes the released program smaller, by the linker: without the tables for unwinding (it aborts when it panics), an eighth
//! of it; and with its addresses packed where this machine's loader can unpack them.

use std::env;
use std::process::Command;

/// The first glibc whose loader knows packed addresses (`DT_RELR`).
const GLIBC_WITH_RELR: (u32, u32) = (2, 36);

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=unwind.ld");
    let variable = |name| env::var(name).unwrap_or_default();
    if variable("CARGO_CFG_TARGET_OS") != "linux" || variable("PROFILE") != "release" {
        return;
    }
    // A linker that is called by itself, not by a compiler, takes its words as they are.
    let linker = variable("RUSTC_LINKER");
    let plain = linker.ends_with("ld");
    let to_linker = if plain { "" } else { "-Wl," };
    println!("cargo::rustc-link-arg-bins={to_linker}--script={}/unwind.ld", variable("CARGO_MANIFEST_DIR"));
    let for_this_machine = variable("HOST") == variable("TARGET") && variable("CARGO_CFG_TARGET_ENV") == "gnu";
    if for_this_machine && glibc().is_some_and(|version| version >= GLIBC_WITH_RELR) {
        println!("cargo::rustc-link-arg-bins={to_linker}-zpack-relative-relocs");
    }
}

/// This machine's, such as 2.36.
fn glibc() -> Option<(u32, u32)> {
    let said = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok()?;
    let said = String::from_utf8(said.stdout).ok()?;
    let (major, minor) = said.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.split('.').next()?.parse().ok()?))
}
