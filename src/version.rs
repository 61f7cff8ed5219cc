//! Which build this is: from variables while compiling. Those but `VCD_VERSION` are set by build.rs, from git, for a build
//! with optimization that is not given them.

/// This program's version: the package's, or `VCD_VERSION` while compiling (`dev` for a build between releases).
pub const VERSION: &str = or(option_env!("VCD_VERSION"), env!("CARGO_PKG_VERSION"));

/// The commit: `VCD_GIT_REVISION` while compiling.
pub const REVISION: &str = or(option_env!("VCD_GIT_REVISION"), "unknown");

/// The branch or tag: `VCD_GIT_REF` while compiling.
pub const REFERENCE: &str = or(option_env!("VCD_GIT_REF"), "HEAD");

/// What `rustc --version` says: `VCD_RUSTC_VERSION` while compiling.
pub const COMPILER: &str = or(option_env!("VCD_RUSTC_VERSION"), "unknown");

/// When it was built: `VCD_BUILT` while compiling.
pub const BUILT: &str = or(option_env!("VCD_BUILT"), "unknown");

const fn or(value: Option<&'static str>, fallback: &'static str) -> &'static str {
    match value {
        Some(value) => value,
        None => fallback,
    }
}

/// Where this version's documents are, for people who have the binary alone: `VCD_DOCUMENTS` while compiling.
pub const DOCUMENTS: &str = or(
    option_env!("VCD_DOCUMENTS"),
    concat!("https://github.com/OWNER/fleeting-plugin-vcd/blob/v", env!("CARGO_PKG_VERSION"), "/docs"),
);

/// `text` with the whole address of each document that it names, as `docs/guide.md`.
pub fn with_addresses(text: &str) -> String {
    text.replace("docs/", &format!("{DOCUMENTS}/"))
}

/// OS and architecture under the names that Go gives them, such as `linux/amd64`.
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

/// All but the name and the version, in one line.
pub fn build_info() -> String {
    format!("sha={REVISION}; ref={REFERENCE}; rust={COMPILER}; built_at={BUILT}; os_arch={}", platform())
}

/// The text of `version`, one fact a line, in the order that fleeting's tools know.
pub fn text() -> String {
    format!(
        "Name:         {}\nVersion:      {VERSION}\nGit revision: {REVISION}\nGit ref:      {REFERENCE}\n\
         Rust version: {COMPILER}\nBuilt:        {BUILT}\nOS/Arch:      {}\n",
        env!("CARGO_PKG_NAME"),
        platform()
    )
}
