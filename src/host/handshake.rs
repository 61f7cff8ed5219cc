//! go-plugin's handshake: what the host puts in the environment, and the one line that answers it on stdout.

use std::io::{self, Write};

/// Says that the process was started by a host of fleeting plugins, and not by hand.
pub const COOKIE_VARIABLE: &str = "FLEETING_INSTANCE_GROUP_PLUGIN";

/// The value of [`COOKIE_VARIABLE`].
pub const COOKIE: &str = "4c6410b1-cb78-4962-8c76-ab936d0ea908";

/// go-plugin's own protocol.
const CORE_PROTOCOL: u32 = 1;

/// fleeting's protocol, the only one there is. It is the answer whatever the host offers: the host compares and complains.
const APP_PROTOCOL: u32 = 0;

/// What the host asks of this process before anything is served.
#[derive(Debug, PartialEq, Eq)]
pub struct Handshake {
    /// Where the socket is to be; the system's place for temporary files if not told.
    pub socket_dir: Option<String>,
    /// Name or number of a group that may use the socket too.
    pub socket_group: Option<String>,
    /// The host wants to know whether one connection can carry several: it cannot.
    pub multiplex: bool,
}

/// Why nothing is served.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No cookie or a wrong one: a person reads this, not a host.
    NoHost,
    /// The host wants what this plugin does not do.
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
            let message = "the host asks for AutoMTLS (PLUGIN_CLIENT_CERT), which this plugin does not support: \
                 its socket is private to the user instead. Turn AutoMTLS off in the host";
            return Err(Refusal::Unsupported(message));
        }
        if let Some(offered) = variable("PLUGIN_PROTOCOL_VERSIONS")
            && !offered.split(',').any(|version| version.trim().parse() == Ok(APP_PROTOCOL))
        {
            log::warn!(
                "the host offers the protocol versions {offered:?}, and this plugin speaks {APP_PROTOCOL} only: tried anyway"
            );
        }
        Ok(Handshake {
            socket_dir: variable("PLUGIN_UNIX_SOCKET_DIR"),
            socket_group: variable("PLUGIN_UNIX_SOCKET_GROUP"),
            multiplex: variable("PLUGIN_MULTIPLEX_GRPC").is_some(),
        })
    }

    /// Tells the host where to connect. Nothing else is ever written to stdout.
    pub fn answer(&self, network: &str, address: &str) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(self.line(network, address).as_bytes())?;
        stdout.flush()
    }

    /// The fields: core protocol, app protocol, network, address, transport, server certificate (none), and, only if the host
    /// asked, whether connections are multiplexed.
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
