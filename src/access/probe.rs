//! The probe of a guest's login port: one TCP connection, and a read of the first bytes.

use super::Protocol;
use crate::crypto;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use smol::Timer;
use smol::future::FutureExt;
use smol::io::{AsyncReadExt, AsyncWriteExt};
use smol::net::TcpStream;
use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Maximum number of bytes before the banner: an SSH server may send lines before it (RFC 4253, 4.2).
const MAX_BEFORE_BANNER: usize = 8 * 1024;
/// Maximum number of bytes that are read from a TLS server: its first bytes contain the version.
const MAX_HELLO: usize = 16 * 1024;
/// Size of one read.
const CHUNK: usize = 512;

/// Probes the login port of a guest within `timeout`: the SSH banner, or for WinRM an HTTP answer. For WinRM over HTTPS
/// the start of a TLS handshake is enough, whatever the certificate. The error says briefly what came instead.
pub async fn probe(address: SocketAddr, protocol: Protocol, timeout: Duration) -> Result<(), String> {
    let connected = Cell::new(false);
    let ask = async {
        let mut stream = TcpStream::connect(address).await.map_err(|error| format!("not connected: {error}"))?;
        connected.set(true);
        match protocol {
            Protocol::Ssh => banner(&mut stream).await,
            Protocol::Winrm => http(&mut stream, address).await,
            Protocol::WinrmHttps => tls(&mut stream, address).await,
        }
    };
    let give_up = async {
        Timer::after(timeout).await;
        let what = if connected.get() { "connected, but no useful answer" } else { "not connected" };
        Err(format!("{what} within {timeout:?}"))
    };
    ask.or(give_up).await
}

/// Reads until the SSH identification line of protocol 2.
async fn banner(stream: &mut TcpStream) -> Result<(), String> {
    let mut seen = Vec::new();
    let mut chunk = [0; CHUNK];
    while seen.len() < MAX_BEFORE_BANNER {
        let read = stream.read(&mut chunk).await.map_err(|error| format!("connected, no SSH banner: {error}"))?;
        if read == 0 {
            return Err("connected, but closed without an SSH banner".into());
        }
        seen.extend_from_slice(chunk.get(..read).unwrap_or_default());
        let whole_lines = seen.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"));
        for line in whole_lines {
            if line.starts_with(b"SSH-2.0-") || line.starts_with(b"SSH-1.99-") {
                return Ok(());
            }
            if line.starts_with(b"SSH-") {
                return Err("connected, but to an SSH server that does not speak protocol 2".into());
            }
        }
    }
    Err("connected, but not to an SSH server".into())
}

/// Sends a request to WinRM's path. Any HTTP answer is enough, "unauthorized" included.
async fn http(stream: &mut TcpStream, address: SocketAddr) -> Result<(), String> {
    const EXPECTED: &[u8; 7] = b"HTTP/1.";
    let gone = |error: std::io::Error| format!("connected, no HTTP answer: {error}");
    let request = format!("POST /wsman HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.map_err(gone)?;
    let mut start = [0; EXPECTED.len()];
    stream.read_exact(&mut start).await.map_err(gone)?;
    if start == *EXPECTED { Ok(()) } else { Err("connected, but not to WinRM".into()) }
}

/// Starts a TLS handshake. It accepts no certificate: a handshake that fails there has come far enough.
async fn tls(stream: &mut TcpStream, address: SocketAddr) -> Result<(), String> {
    let gone = |error: std::io::Error| format!("connected, no TLS answer: {error}");
    let unable = |error: rustls::Error| format!("connected, but TLS is not possible: {error}");
    let config = ClientConfig::builder_with_provider(Arc::new(crypto::provider()))
        .with_safe_default_protocol_versions()
        .map_err(unable)?
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = ServerName::IpAddress(address.ip().into());
    let mut connection = ClientConnection::new(Arc::new(config), name).map_err(unable)?;
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).map_err(gone)?;
    stream.write_all(&hello).await.map_err(gone)?;
    let mut chunk = [0; CHUNK];
    let mut heard = 0;
    while heard < MAX_HELLO {
        let read = stream.read(&mut chunk).await.map_err(gone)?;
        if read == 0 {
            return Err("connected, but closed without a TLS answer".into());
        }
        heard += read;
        let mut rest = chunk.get(..read).unwrap_or_default();
        while !rest.is_empty() {
            connection.read_tls(&mut rest).map_err(gone)?;
            match connection.process_new_packets() {
                Err(rustls::Error::AlertReceived(_) | rustls::Error::InvalidCertificate(_)) => return Ok(()),
                Err(_) => return Err("connected, but not to a TLS server".into()),
                Ok(_) if connection.protocol_version().is_some() => return Ok(()),
                Ok(_) => {}
            }
        }
    }
    Err("connected, but not to a TLS server".into())
}
