//! go-plugin's handshake: the environment variables from the host, and the answer in one line on stdout.

use std::io::{self, Write};

/// Shows that a host of fleeting plugins started the process, not a person.
pub const COOKIE_VARIABLE: &str = "FLEETING_INSTANCE_GROUP_PLUGIN";

/// The value of [`COOKIE_VARIABLE`].
pub const COOKIE: &str = "4c6410b1-cb78-4962-8c76-ab936d0ea908";

/// go-plugin's own protocol.
const CORE_PROTOCOL: u32 = 1;

/// fleeting's protocol, the only one. It is the answer whatever the host offers: the host compares and reports a
/// difference.
const APP_PROTOCOL: u32 = 0;

/// The host's requests before the plugin serves.
#[derive(Debug, PartialEq, Eq)]
pub struct Handshake {
    /// The folder for the socket. If it is not set, the system's folder for temporary files.
    pub socket_dir: Option<String>,
    /// Name or number of a group that may use the socket too.
    pub socket_group: Option<String>,
    /// The host wants to know whether one connection can carry several: it cannot.
    pub multiplex: bool,
}

/// Why the plugin does not serve.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No cookie or a wrong one: a person started it, not a host.
    NoHost,
    /// The host requests something that this plugin does not support.
    Unsupported(&'static str),
}

impl Handshake {
    /// Reads the environment through `variable`. An empty variable counts as not set.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Handshake, Refusal> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        if variable(COOKIE_VARIABLE).as_deref() != Some(COOKIE) {
            return Err(Refusal::NoHost);
        }
        if variable("PLUGIN_CLIENT_CERT").is_some() {
            let message = "the program that started this plugin requests AutoMTLS (PLUGIN_CLIENT_CERT), which the \
                           plugin does not support: its socket is private to the user instead. Disable AutoMTLS there";
            return Err(Refusal::Unsupported(message));
        }
        if let Some(offered) = variable("PLUGIN_PROTOCOL_VERSIONS")
            && !offered.split(',').any(|version| version.trim().parse() == Ok(APP_PROTOCOL))
        {
            log::warn!(
                "GitLab Runner offers the protocol versions {offered:?}, but this plugin supports only {APP_PROTOCOL}: it continues with that one"
            );
        }
        Ok(Handshake {
            socket_dir: variable("PLUGIN_UNIX_SOCKET_DIR"),
            socket_group: variable("PLUGIN_UNIX_SOCKET_GROUP"),
            multiplex: variable("PLUGIN_MULTIPLEX_GRPC").is_some(),
        })
    }

    /// Writes the socket's address for the host. Nothing else is ever written to stdout.
    pub fn answer(&self, network: &str, address: &str) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(self.line(network, address).as_bytes())?;
        stdout.flush()
    }

    /// The fields: core protocol, app protocol, network, address, transport, server certificate (none), and, only if
    /// the host wants to know, whether connections are multiplexed.
    pub(super) fn line(&self, network: &str, address: &str) -> String {
        let multiplex = if self.multiplex { "|false" } else { "" };
        format!("{CORE_PROTOCOL}|{APP_PROTOCOL}|{network}|{address}|grpc|{multiplex}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Handshake, Refusal> {
        let find = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Handshake::read(find)
    }

    #[test]
    fn the_cookie_decides() {
        assert_eq!(read(&[]), Err(Refusal::NoHost));
        assert_eq!(read(&[(COOKIE_VARIABLE, "wrong")]), Err(Refusal::NoHost));
        let plain = Handshake { socket_dir: None, socket_group: None, multiplex: false };
        assert_eq!(read(&[(COOKIE_VARIABLE, COOKIE), ("PLUGIN_MULTIPLEX_GRPC", "")]), Ok(plain));
    }

    #[test]
    fn the_line_has_six_fields_or_seven() {
        let plain = read(&[(COOKIE_VARIABLE, COOKIE)]).unwrap();
        assert_eq!(plain.line("unix", "/tmp/x"), "1|0|unix|/tmp/x|grpc|\n");
        let asked = read(&[(COOKIE_VARIABLE, COOKIE), ("PLUGIN_MULTIPLEX_GRPC", "true")]).unwrap();
        assert_eq!(asked.line("unix", "/tmp/x"), "1|0|unix|/tmp/x|grpc||false\n");
    }
}
