//! The listener on Windows, where go-plugin uses TCP on the loopback interface.

use smol::Async;
use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};

/// The network's name in the handshake.
pub const NETWORK: &str = "tcp";

/// The first and the last of [`PORTS`], unless the host sets others.
const PORTS: (u16, u16) = (10_000, 25_000);

/// A listening socket.
pub struct Socket {
    listener: Async<TcpListener>,
    address: String,
}

impl Socket {
    /// Listens on the first free port of the host's range. Directory and group are ignored.
    pub fn bind(_parent: Option<&str>, _group: Option<&str>) -> Result<Socket, String> {
        let port = |name, default| std::env::var(name).ok().and_then(|port| port.parse().ok()).unwrap_or(default);
        let (first, last): (u16, u16) = (port("PLUGIN_MIN_PORT", PORTS.0), port("PLUGIN_MAX_PORT", PORTS.1));
        for port in first..=last {
            if let Ok(listener) = Async::<TcpListener>::bind((Ipv4Addr::LOCALHOST, port)) {
                return Ok(Socket { listener, address: format!("{}:{port}", Ipv4Addr::LOCALHOST) });
            }
        }
        Err(format!("no free port from {first} to {last} on {}", Ipv4Addr::LOCALHOST))
    }

    /// Address and port, for the handshake.
    pub fn address(&self) -> String {
        self.address.clone()
    }

    /// Waits for the next connection.
    pub async fn accept(&self) -> io::Result<Async<TcpStream>> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }

    /// A closed TCP socket leaves nothing behind.
    pub async fn remove_leftovers(&self) {}
}
