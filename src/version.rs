//! The build: from environment variables at compile time. For an optimized build build.rs sets those that are missing
//! from git, except `VCD_VERSION`.

/// This program's version: the package's, or `VCD_VERSION` at compile time (`dev` for a build between releases).
pub const VERSION: &str = or(option_env!("VCD_VERSION"), env!("CARGO_PKG_VERSION"));

/// The commit: `VCD_GIT_REVISION` at compile time.
pub const REVISION: &str = or(option_env!("VCD_GIT_REVISION"), "unknown");

/// The branch or tag: `VCD_GIT_REF` at compile time.
pub const REFERENCE: &str = or(option_env!("VCD_GIT_REF"), "HEAD");

/// The output of `rustc --version`: `VCD_RUSTC_VERSION` at compile time.
pub const COMPILER: &str = or(option_env!("VCD_RUSTC_VERSION"), "unknown");

/// The build time: `VCD_BUILT` at compile time.
pub const BUILT: &str = or(option_env!("VCD_BUILT"), "unknown");

const fn or(value: Option<&'static str>, fallback: &'static str) -> &'static str {
    match value {
        Some(value) => value,
        None => fallback,
    }
}

/// The address of this version's documents, for people who have only the binary: `VCD_DOCUMENTS` at compile time.
pub const DOCUMENTS: &str = or(
    option_env!("VCD_DOCUMENTS"),
    concat!("https://github.com/OWNER/fleeting-plugin-vcd/blob/v", env!("CARGO_PKG_VERSION"), "/docs"),
);

/// `text` with the full address in place of each document that it names, such as `docs/guide.md`.
pub fn with_addresses(text: &str) -> String {
    text.replace("docs/", &format!("{DOCUMENTS}/"))
}

/// OS and architecture as Go names them, such as `linux/amd64`.
pub fn platform() -> String {
    let os = match std::env::consts::OS {
        "macos" => "darwin",
        os => os,
    };
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "x86" => "386",
        "aarch64" => "arm64",
        architecture => architecture,
    };
    format!("{os}/{architecture}")
}

/// Everything except the name and the version, in one line.
pub fn build_info() -> String {
    format!("sha={REVISION}; ref={REFERENCE}; rust={COMPILER}; built_at={BUILT}; os_arch={}", platform())
}

/// The output of `version`: one fact per line, in the order that fleeting's tools expect.
pub fn text() -> String {
    format!(
        "Name:         {}\nVersion:      {VERSION}\nGit revision: {REVISION}\nGit ref:      {REFERENCE}\n\
         Rust version: {COMPILER}\nBuilt:        {BUILT}\nOS/Arch:      {}\n",
        env!("CARGO_PKG_NAME"),
        platform()
    )
}
