//! Makes the released program smaller with linker options: it leaves out the tables for unwinding (the program aborts
//! on a panic), an eighth of the file, and the code that reads them, and packs the relocations where the loader can
//! unpack them. It also sets the facts about the build.

use std::env;
use std::path::Path;
use std::process::Command;

/// The first glibc whose loader can read packed relocations (`DT_RELR`).
const GLIBC_WITH_RELR: (u32, u32) = (2, 36);
/// The first Rust whose own musl (1.2.5) can read them, for static programs.
const RUST_WITH_RELR: (u32, u32) = (1, 93);

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // A build without optimization is one of many during work on a commit: it is not repeated for each commit.
    if variable("PROFILE") == "release" {
        say_which_build();
        if variable("CARGO_CFG_TARGET_OS") == "linux" {
            make_smaller();
        }
    }
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_default()
}

fn make_smaller() {
    println!("cargo::rerun-if-changed=unwind.ld");
    // A linker that is called directly, not through a compiler, uses other options.
    let linker = variable("RUSTC_LINKER");
    let plain = linker.ends_with("ld");
    let to_linker = if plain { "" } else { "-Wl," };
    println!("cargo::rustc-link-arg-bins={to_linker}--script={}/unwind.ld", variable("CARGO_MANIFEST_DIR"));
    // Without the tables a backtrace is empty. If std's backtrace finds these functions, musl's unwinder is not linked.
    // getpid accepts any arguments and changes nothing.
    if variable("CARGO_CFG_TARGET_ENV") == "musl" && variable("CARGO_CFG_TARGET_ARCH") != "arm" {
        for function in ["_Unwind_Backtrace", "_Unwind_GetIP"] {
            println!("cargo::rustc-link-arg-bins={to_linker}--defsym={function}=getpid");
        }
    }
    // Without its large tables (release/build), ring lacks two functions that its code for this processor calls. Its
    // portable ones do the same.
    println!("cargo::rerun-if-env-changed=CFLAGS");
    if let Some(ring) = ring_prefix().filter(|_| variable("CFLAGS").contains("-DOPENSSL_SMALL")) {
        for (fast, portable) in [
            ("p256_point_mul_base_vartime", "p256_point_mul_base"),
            ("x25519_scalar_mult_adx", "x25519_scalar_mult_generic_masked"),
        ] {
            println!("cargo::rustc-link-arg-bins={to_linker}--defsym={ring}{fast}={ring}{portable}");
        }
    }
    let for_this_machine = variable("HOST") == variable("TARGET");
    let unpacks = match &*variable("CARGO_CFG_TARGET_ENV") {
        "gnu" => for_this_machine && glibc().is_some_and(|version| version >= GLIBC_WITH_RELR),
        "musl" => rust().is_some_and(|version| version >= RUST_WITH_RELR),
        _ => false,
    };
    if unpacks {
        println!("cargo::rustc-link-arg-bins={to_linker}-zpack-relative-relocs");
    }
}

/// What the names of ring's C functions begin with: ring_core_0_17_14__.
fn ring_prefix() -> Option<String> {
    println!("cargo::rerun-if-changed=Cargo.lock");
    let lock = std::fs::read_to_string("Cargo.lock").ok()?;
    let (_, after) = lock.split_once("name = \"ring\"\nversion = \"")?;
    Some(format!("ring_core_{}__", after.split('"').next()?.replace('.', "_")))
}

/// This machine's version, such as 2.36.
fn glibc() -> Option<(u32, u32)> {
    version(said(Command::new("getconf").arg("GNU_LIBC_VERSION"))?.strip_prefix("glibc ")?)
}

/// The compiler's version, such as 1.93.
fn rust() -> Option<(u32, u32)> {
    version(said(Command::new(variable("RUSTC")).arg("--version"))?.strip_prefix("rustc ")?)
}

/// The first two numbers.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// The facts that `version` shows in addition to the version, unless the environment sets them (src/version.rs).
fn say_which_build() {
    let folder = variable("CARGO_MANIFEST_DIR");
    let mut facts = git_facts(Path::new(&folder));
    facts.extend(said(Command::new(variable("RUSTC")).arg("--version")).map(|version| ("VCD_RUSTC_VERSION", version)));
    for (name, value) in facts {
        println!("cargo::rerun-if-env-changed={name}");
        if env::var_os(name).is_none() {
            println!("cargo::rustc-env={name}={value}");
        }
    }
}

/// The commit of this folder, its branch or tag, and its time: builds of the same commit report the same at any time.
/// Empty if the folder is not a clone of its own, but an archive, perhaps inside another repository.
pub fn git_facts(folder: &Path) -> Vec<(&'static str, String)> {
    if !folder.join(".git").exists() {
        return Vec::new();
    }
    let git = |words: &[&str]| said(Command::new("git").arg("-C").arg(folder).args(words).env("TZ", "UTC0"));
    // The files that change with a new commit or another branch.
    for file in ["HEAD", "logs/HEAD"] {
        let path = git(&["rev-parse", "--git-path", file]).map(|path| folder.join(path));
        if let Some(path) = path.filter(|path| path.exists()) {
            println!("cargo::rerun-if-changed={}", path.display());
        }
    }
    let name = git(&["describe", "--tags", "--exact-match"]).or_else(|| git(&["rev-parse", "--abbrev-ref", "HEAD"]));
    let facts = [
        ("VCD_GIT_REVISION", git(&["rev-parse", "--short=12", "HEAD"])),
        ("VCD_GIT_REF", name),
        ("VCD_BUILT", git(&["log", "-1", "--format=%cd", "--date=format-local:%Y-%m-%dT%H:%M:%SZ"])),
    ];
    facts.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

/// The output of a command, if it succeeded and is not empty.
fn said(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    Some(text).filter(|text| !text.is_empty())
}
