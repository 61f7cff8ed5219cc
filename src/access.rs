//! Access to the guests: keys and passwords, the customization scripts that install them, and the probe of a guest's
//! login port. It does not log in: that is the task of GitLab Runner.

mod generated;
mod key;
mod probe;
mod script;

pub use generated::Seed;
pub use key::Key;
pub use probe::probe;
pub use script::MAX_SCRIPT;

use crate::cloud::{Guest, Secret, is_windows};

/// VCD's maximum length of a computer name for Linux.
const MAX_LINUX_NAME: usize = 63;
/// The maximum length of a computer name in Windows (NetBIOS).
const MAX_WINDOWS_NAME: usize = 15;
/// Length of the unique end of an instance's name: `-` and 8 characters.
const UNIQUE_TAIL: usize = 9;

/// Bytes of the hash that differs for guests with other credentials or scripts.
const SOURCE_BYTES: usize = 8;

/// The protocol for logins to a guest.
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
    /// The default port.
    pub fn default_port(self) -> u16 {
        match self {
            Protocol::Ssh => 22,
            Protocol::Winrm => 5985,
            Protocol::WinrmHttps => 5986,
        }
    }
}

/// The checked connector_config.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `linux` or `windows`; `None`: by the guest OS.
    pub os: Option<String>,
    /// Go's name of the architecture; `None`: by the guest OS.
    pub arch: Option<String>,
    /// ssh if not set.
    pub protocol: Protocol,
    /// The login port; the protocol's default if not set.
    pub port: u16,
    /// The user; `None`: root or Administrator.
    pub username: Option<String>,
    /// The static password.
    pub password: Option<Secret>,
    /// The static private key from the host (PEM), and its public key as a line for `authorized_keys`.
    pub key: Option<Key>,
    /// Generates credentials for each instance: then there is no static password or key.
    pub seed: Option<Seed>,
    /// The user's script, which each new guest runs after the plugin's own. For Linux: sh, or the interpreter in its
    /// `#!` line. For Windows: a batch file, or PowerShell if its first line begins with `#ps1`.
    pub custom_script: Option<Secret>,
    /// A script sets up the login for GitLab Runner. Without it, the template or the user data has to. The user's own
    /// script does not depend on this.
    pub login_script: bool,
    /// Returned to the host unchanged, nanoseconds.
    pub keepalive: i64,
    /// Returned to the host unchanged, nanoseconds.
    pub timeout: i64,
}

/// The values that the host needs to log in to one guest.
#[derive(Clone, Debug)]
pub struct Login {
    /// `linux` or `windows`.
    pub os: String,
    /// `amd64`, or `386` for a guest that VCD calls 32-bit.
    pub arch: String,
    /// The protocol.
    pub protocol: Protocol,
    /// Never empty.
    pub username: String,
    /// If there is one.
    pub password: Option<Secret>,
    /// PEM, if there is one.
    pub key: Option<Secret>,
    /// Port.
    pub port: u16,
    /// From the host, unchanged.
    pub keepalive: i64,
    /// From the host, unchanged.
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

/// Identifies the source of generated credentials, for the suspend mark; empty if they are static.
pub fn fingerprint(settings: &Settings) -> String {
    let user = settings.username.as_deref().unwrap_or_default();
    settings.seed.as_ref().and_then(|seed| seed.fingerprint(user)).unwrap_or_default()
}

/// A hash that differs for guests with other credentials or scripts, whatever their OS: 16 hexadecimal digits.
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

/// A warning for the user before the first instance is created, when the template's guest OS is known.
pub fn warning(settings: &Settings, guest_os: &str) -> Option<String> {
    let windows = windows(settings, guest_os);
    if !windows && settings.protocol != Protocol::Ssh {
        return Some(format!(
            "connector_config: protocol: winrm is for windows, but the template's guest is {guest_os:?}"
        ));
    }
    let password = settings.password.as_ref()?.reveal();
    let user = username(settings, windows);
    (windows && !is_complex(password, user)).then(|| {
        "connector_config: password: Windows rejects it by default (required: 8 characters or more, three kinds of upper case, \
         lower case, digits and others, no part of the user's name): if the template does so too, guest customization fails"
            .into()
    })
}

/// Whether Windows accepts the password if "must meet complexity requirements" is on.
fn is_complex(password: &str, user: &str) -> bool {
    let has = |is: fn(char) -> bool| usize::from(password.contains(is));
    let other = |c: char| !c.is_alphanumeric();
    let kinds = has(char::is_uppercase) + has(char::is_lowercase) + has(|c| c.is_ascii_digit()) + has(other);
    let (password, user) = (password.to_lowercase(), user.to_lowercase());
    let names = user.split([',', '.', '-', '_', ' ', '#', '\t', '\\']).filter(|part| part.chars().count() > 2);
    kinds >= 3 && password.chars().count() >= 8 && !names.into_iter().any(|part| password.contains(part))
}

/// Checks that the customization script is text and fits into [`MAX_SCRIPT`] for the template's guest OS. Before that
/// is known (`None`): for at least one OS.
pub fn check(settings: &Settings, guest_os: Option<&str>) -> Result<(), String> {
    let custom = settings.custom_script.as_ref().map_or("", Secret::reveal);
    if custom.contains(|c: char| c.is_control() && !matches!(c, '\t' | '\r' | '\n')) {
        return Err("customization_script_file: contains control characters: it is not a text file".into());
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
            "customization_script_file: with the plugin's own part, the script has {length} characters, more than VCD's \
             {MAX_SCRIPT}"
        )),
        _ => Ok(()),
    }
}

/// The credentials for one instance.
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

/// Whether the guest runs Windows: the user's setting overrides VCD's guest OS.
fn windows(settings: &Settings, guest_os: &str) -> bool {
    settings.os.as_ref().map_or_else(|| is_windows(guest_os), |os| os == "windows")
}

/// Go's name of the guest's architecture. VCD's VMs are x86, and its names of guests end in their bits.
fn arch(guest_os: &str) -> &'static str {
    if guest_os.contains("(32-bit)") { "386" } else { "amd64" }
}

/// The user for logins.
fn username(settings: &Settings, windows: bool) -> &str {
    settings.username.as_deref().unwrap_or(if windows { "Administrator" } else { "root" })
}

/// The customization script, if one is needed: for a key, for a user whose password VCD does not set, for an sshd that
/// does not allow passwords, or for the user's own script.
fn script(settings: &Settings, credentials: &Credentials, windows: bool) -> Option<String> {
    let user = username(settings, windows);
    let administrator = if windows { user.eq_ignore_ascii_case("Administrator") } else { user == "root" };
    let account = script::Account {
        user,
        administrator,
        password: credentials.password.as_ref().map(Secret::reveal).filter(|_| !administrator),
        key: credentials.key.as_ref().map(|key| key.public.as_str()),
        // With a key, root needs no login by password.
        by_password: !windows && credentials.password.is_some() && !(administrator && credentials.key.is_some()),
    };
    // Windows editors often begin a file with a byte order mark.
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

/// A host name from an instance's name: letters, digits and inner hyphens, not only digits, short enough for the OS. If
/// it must be cut, the unique end stays whole.
fn computer_name(name: &str, windows: bool) -> String {
    let longest = if windows { MAX_WINDOWS_NAME } else { MAX_LINUX_NAME };
    let plain: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let plain = plain.trim_matches('-');
    // From here on all is ASCII: a byte is a character.
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
