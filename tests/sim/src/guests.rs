//! The guests' own addresses: while a guest's SSH is up, something listens there. Either it says an SSH banner and holds
//! the connection for a moment, or it passes bytes on to a real SSH server, from the guest's own address.

use crate::model::Model;
use smol::future::FutureExt as _;
use smol::io::{AsyncReadExt as _, AsyncWriteExt as _};
use smol::net::{TcpListener, TcpStream};
use smol::{Async, LocalExecutor, Task, Timer};
use socket2::{Domain, Socket, Type};
use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Weak;
use std::time::Duration;

/// Connections to one guest at once; more are closed at once.
const MAX_CONNECTIONS: usize = 16;
/// A banner's connection is held so long, if the client does not close it.
const HOLD: Duration = Duration::from_secs(2);
/// What a guest says.
const BANNER: &[u8] = b"SSH-2.0-vcd-sim\r\n";

/// The guests that listen.
pub struct Guests {
    port: u16,
    forward: Option<SocketAddr>,
    open: BTreeMap<Ipv4Addr, Task<()>>,
    seen: Option<u64>,
}

impl Guests {
    /// None yet.
    pub fn new(port: u16, forward: Option<SocketAddr>) -> Self {
        Self { port, forward, open: BTreeMap::new(), seen: None }
    }

    /// True if guests came up or went down since it was last asked.
    pub fn is_outdated(&mut self, model: &Model) -> bool {
        self.seen.replace(model.guest_changes) != Some(model.guest_changes)
    }

    /// Listens on these addresses and on no others. False if one could not be had: it is tried again.
    pub fn open_only(&mut self, executor: &Weak<LocalExecutor<'static>>, up: &[Ipv4Addr]) -> bool {
        let Some(spawner) = executor.upgrade() else { return false };
        self.open.retain(|address, _| up.contains(address));
        let mut all = true;
        for address in up {
            if self.open.contains_key(address) {
                continue;
            }
            let at = SocketAddr::from((*address, self.port));
            match std::net::TcpListener::bind(at).and_then(TcpListener::try_from) {
                Ok(listener) => {
                    let task = spawner.spawn(listen(executor.clone(), listener, *address, self.forward));
                    self.open.insert(*address, task);
                }
                Err(_) => all = false,
            }
        }
        if !all {
            self.seen = None;
        }
        all
    }
}

async fn listen(
    executor: Weak<LocalExecutor<'static>>,
    listener: TcpListener,
    address: Ipv4Addr,
    forward: Option<SocketAddr>,
) {
    // Dropped with the guest, which ends its connections.
    let mut connections: Vec<Task<()>> = Vec::new();
    loop {
        let Ok((client, _)) = listener.accept().await else {
            Timer::after(Duration::from_millis(50)).await;
            continue;
        };
        connections.retain(|c| !c.is_finished());
        if connections.len() >= MAX_CONNECTIONS {
            continue;
        }
        let Some(executor) = executor.upgrade() else { return };
        connections.push(executor.spawn(async move {
            // The client's end of the connection is no error.
            let _ = match forward {
                Some(server) => pass_on(client, address, server).await,
                None => say_banner(client).await,
            };
        }));
    }
}

async fn say_banner(mut client: TcpStream) -> io::Result<()> {
    client.write_all(BANNER).await?;
    let heard = async {
        let mut buffer = [0u8; 512];
        while client.read(&mut buffer).await? > 0 {}
        Ok(())
    };
    let late = async {
        Timer::after(HOLD).await;
        Ok(())
    };
    heard.or(late).await
}

async fn pass_on(client: TcpStream, from: Ipv4Addr, server: SocketAddr) -> io::Result<()> {
    let connected = smol::unblock(move || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::from((from, 0)).into())?;
        socket.connect_timeout(&server.into(), Duration::from_secs(5))?;
        io::Result::Ok(std::net::TcpStream::from(socket))
    });
    let server = Async::new(connected.await?)?;
    let server = TcpStream::from(server);
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);
    let there = copy(client.clone(), server.clone());
    let back = copy(server, client);
    smol::future::try_zip(there, back).await.map(|_| ())
}

/// Copies until the end, and passes the end on.
async fn copy(from: TcpStream, mut to: TcpStream) -> io::Result<()> {
    smol::io::copy(from, &mut to).await?;
    to.shutdown(std::net::Shutdown::Write)
}
