//! Access to the guests: keys and passwords, the customization scripts that install them, and the probe that tells whether
//! a guest answers on its login port. It does not log in: that is the runner's part.

mod generated;
mod key;
mod probe;
mod script;

pub use generated::Seed;
pub use key::Key;
pub use probe::probe;
pub use script::MAX_SCRIPT;

use crate::cloud::{Guest, Secret, is_windows};

/// VCD's longest computer name for Linux.
const MAX_LINUX_NAME: usize = 63;
/// The longest computer name of a Windows (NetBIOS).
const MAX_WINDOWS_NAME: usize = 15;
/// The part at the end of an instance's name that tells it from the others: `-` and 8 characters.
const UNIQUE_TAIL: usize = 9;

/// Bytes of the hash that tells guests of other credentials or scripts apart.
const SOURCE_BYTES: usize = 8;

/// How a runner logs in to a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// SSH, port 22.
    Ssh,
    /// WinRM over HTTP, port 5985.
    Winrm,
    /// WinRM over HTTPS, port 5986.
    WinrmHttps,
}

impl Protocol {
    /// The port that is used when none is set.
    pub fn default_port(self) -> u16 {
        match self {
            Protocol::Ssh => 22,
            Protocol::Winrm => 5985,
            Protocol::WinrmHttps => 5986,
        }
    }
}

/// The connector_config of the runner, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `linux` or `windows`; `None`: by the guest OS.
    pub os: Option<String>,
    /// Go's name of the architecture; `None`: by the guest OS.
    pub arch: Option<String>,
    /// ssh if not set.
    pub protocol: Protocol,
    /// The port to log in at; the protocol's default if not set.
    pub port: u16,
    /// The user; `None`: root or Administrator.
    pub username: Option<String>,
    /// The static password.
    pub password: Option<Secret>,
    /// The static private key as the host gave it (PEM), and its public half as a line for `authorized_keys`.
    pub key: Option<Key>,
    /// Makes credentials for each instance: then there is no static password or key.
    pub seed: Option<Seed>,
    /// A script of the user's, run in each new guest after ours. For Linux sh, or what its `#!` line names; for Windows a
    /// batch file, or PowerShell if its first line begins with `#ps1`.
    pub custom_script: Option<Secret>,
    /// A script lets the runner in; without one the template or the user data has to. The user's own is not concerned.
    pub login_script: bool,
    /// Passed back to the host as it came, nanoseconds.
    pub keepalive: i64,
    /// Passed back to the host as it came, nanoseconds.
    pub timeout: i64,
}

/// What the host needs to log in to one guest.
#[derive(Clone, Debug)]
pub struct Login {
    /// `linux` or `windows`.
    pub os: String,
    /// `amd64`, or `386` for what VCD calls a guest of 32 bits.
    pub arch: String,
    /// How.
    pub protocol: Protocol,
    /// Never empty.
    pub username: String,
    /// If there is one.
    pub password: Option<Secret>,
    /// PEM, if there is one.
    pub key: Option<Secret>,
    /// Port.
    pub port: u16,
    /// As it came from the host.
    pub keepalive: i64,
    /// As it came from the host.
    pub timeout: i64,
}

/// The guest customization of the new instance `name`. The settings must have passed [`check`].
pub fn guest(settings: &Settings, guest_os: &str, name: &str) -> Guest {
    let windows = windows(settings, guest_os);
    let credentials = credentials(settings, windows, name);
    Guest {
        computer_name: computer_name(name, windows),
        script: script(settings, &credentials, windows).map(Secret::new),
        password: credentials.password,
    }
}

/// The login of the instance `name`.
pub fn login(settings: &Settings, guest_os: &str, name: &str) -> Login {
    let windows = windows(settings, guest_os);
    let credentials = credentials(settings, windows, name);
    Login {
        os: if windows { "windows" } else { "linux" }.into(),
        arch: settings.arch.as_deref().unwrap_or_else(|| arch(guest_os)).into(),
        protocol: settings.protocol,
        username: username(settings, windows).into(),
        password: credentials.password,
        key: credentials.key.map(|key| key.private),
        port: settings.port,
        keepalive: settings.keepalive,
        timeout: settings.timeout,
    }
}

/// Tells the source of generated credentials from others, for the mark on what is made with them; empty if they are static.
pub fn fingerprint(settings: &Settings) -> String {
    let user = settings.username.as_deref().unwrap_or_default();
    settings.seed.as_ref().and_then(|seed| seed.fingerprint(user)).unwrap_or_default()
}

/// Tells guests of other credentials or scripts apart, whatever their OS: a hash, 16 hexadecimal digits.
pub fn source(settings: &Settings) -> String {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    for guest_os in ["", "windows"] {
        let guest = guest(settings, guest_os, "");
        for part in [&guest.password, &guest.script] {
            context.update(part.as_ref().map_or(&b"\0"[..], |part| part.reveal().as_bytes()));
        }
    }
    context.finish().as_ref().iter().take(SOURCE_BYTES).map(|byte| format!("{byte:02x}")).collect()
}

/// What the user should know before the first instance is made, once the template's guest OS is known.
pub fn warning(settings: &Settings, guest_os: &str) -> Option<String> {
    let windows = windows(settings, guest_os);
    if !windows && settings.protocol != Protocol::Ssh {
        return Some(format!(
            "connector_config: protocol: winrm is for windows, and the template's guest is {guest_os:?}"
        ));
    }
    let password = settings.password.as_ref()?.reveal();
    let user = username(settings, windows);
    (windows && !is_complex(password, user)).then(|| {
        "connector_config: password: Windows refuses it by default (8 characters or more, three kinds of upper case, lower \
         case, digits and others, no part of the user's name): where the template does so too, guest customization fails"
            .into()
    })
}

/// Whether Windows takes the password where "must meet complexity requirements" is on.
fn is_complex(password: &str, user: &str) -> bool {
    let has = |is: fn(char) -> bool| usize::from(password.contains(is));
    let other = |c: char| !c.is_alphanumeric();
    let kinds = has(char::is_uppercase) + has(char::is_lowercase) + has(|c| c.is_ascii_digit()) + has(other);
    let (password, user) = (password.to_lowercase(), user.to_lowercase());
    let names = user.split([',', '.', '-', '_', ' ', '#', '\t', '\\']).filter(|part| part.chars().count() > 2);
    kinds >= 3 && password.chars().count() >= 8 && !names.into_iter().any(|part| password.contains(part))
}

/// Checks that the customization script is text and fits into [`MAX_SCRIPT`], for the template's guest OS; before that is
/// known (`None`), that it fits for one OS at least.
pub fn check(settings: &Settings, guest_os: Option<&str>) -> Result<(), String> {
    let custom = settings.custom_script.as_ref().map_or("", Secret::reveal);
    if custom.contains(|c: char| c.is_control() && !matches!(c, '\t' | '\r' | '\n')) {
        return Err("customization_script_file: holds control characters: it is no text".into());
    }
    let known = match guest_os {
        Some(guest_os) => Some(windows(settings, guest_os)),
        None => settings.os.as_ref().map(|_| windows(settings, "")),
    };
    let length = |windows: bool| {
        let credentials = credentials(settings, windows, "");
        script(settings, &credentials, windows).map_or(0, |script| script.chars().count())
    };
    match known.map_or_else(|| length(false).min(length(true)), length) {
        length if length > MAX_SCRIPT => Err(format!(
            "customization_script_file: with what the plugin adds, the script has {length} characters, more than VCD's \
             {MAX_SCRIPT}"
        )),
        _ => Ok(()),
    }
}

/// What lets a runner in to one instance.
struct Credentials {
    password: Option<Secret>,
    key: Option<Key>,
}

/// The static credentials, or else the instance's own: a key, and on Windows a password too.
fn credentials(settings: &Settings, windows: bool, name: &str) -> Credentials {
    match &settings.seed {
        None => Credentials { password: settings.password.clone(), key: settings.key.clone() },
        Some(seed) => Credentials {
            password: if windows { seed.password(name) } else { None },
            key: if settings.protocol == Protocol::Ssh { seed.key(name) } else { None },
        },
    }
}

/// Whether the guest is a Windows: what the user says wins over what VCD shows.
fn windows(settings: &Settings, guest_os: &str) -> bool {
    settings.os.as_ref().map_or_else(|| is_windows(guest_os), |os| os == "windows")
}

/// Go's name of the guest's architecture: VCD's VMs are x86, and its names of guests end in their bits.
fn arch(guest_os: &str) -> &'static str {
    if guest_os.contains("(32-bit)") { "386" } else { "amd64" }
}

/// The user to log in as.
fn username(settings: &Settings, windows: bool) -> &str {
    settings.username.as_deref().unwrap_or(if windows { "Administrator" } else { "root" })
}

/// The customization script, if one is needed: for a key, for a user whose password VCD does not set, for a sshd that lets
/// nobody in by password, or the user's own.
fn script(settings: &Settings, credentials: &Credentials, windows: bool) -> Option<String> {
    let user = username(settings, windows);
    let administrator = if windows { user.eq_ignore_ascii_case("Administrator") } else { user == "root" };
    let account = script::Account {
        user,
        administrator,
        password: credentials.password.as_ref().map(Secret::reveal).filter(|_| !administrator),
        key: credentials.key.as_ref().map(|key| key.public.as_str()),
        // Where a key does, nobody needs to open root's account to passwords.
        by_password: !windows && credentials.password.is_some() && !(administrator && credentials.key.is_some()),
    };
    // Editors of Windows like to begin with a mark.
    let custom = settings.custom_script.as_ref().map(Secret::reveal);
    let custom = custom.map(|custom| custom.strip_prefix(script::BOM).unwrap_or(custom));
    let account = match settings.login_script {
        true => account,
        false => script::Account { password: None, key: None, by_password: false, ..account },
    };
    if account.password.is_none() && account.key.is_none() && !account.by_password && custom.is_none() {
        return None;
    }
    Some(if windows { script::windows(&account, custom) } else { script::linux(&account, custom) })
}

/// A host name made of an instance's name: letters, digits and inner hyphens, not digits only, short enough for the OS.
/// When it must be cut, the unique tail stays whole.
fn computer_name(name: &str, windows: bool) -> String {
    let longest = if windows { MAX_WINDOWS_NAME } else { MAX_LINUX_NAME };
    let plain: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let plain = plain.trim_matches('-');
    // All is ASCII from here on: bytes are characters.
    let (head, tail) = match plain.len() > longest {
        true => plain.split_at(plain.len() - UNIQUE_TAIL),
        false => (plain, ""),
    };
    let head = head.get(..longest - tail.len()).unwrap_or(head).trim_end_matches('-');
    let short = format!("{head}{tail}");
    let short = short.trim_matches('-');
    if short.chars().all(|c| c.is_ascii_digit()) { format!("vm{short:.13}") } else { short.into() }
}

#[cfg(test)]
mod tests;
