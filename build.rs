//! Leaves the tables for unwinding out of the released program, which aborts when it panics: a tenth of its size.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=unwind.ld");
    let variable = |name| std::env::var(name).unwrap_or_default();
    let gnu_linker = variable("CARGO_CFG_TARGET_OS") == "linux";
    if gnu_linker && variable("PROFILE") == "release" {
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{}/unwind.ld", variable("CARGO_MANIFEST_DIR"));
    }
}
