//! A TCP proxy in front of the simulated VCD with the faults of networks: refused, dropped, reset, silent, cut and
//! slow connections. It runs on smol's global executor.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

use crate::common::until;
use rustix::net::{AddressFamily, SocketType, bind, ipproto, listen, socket, sockopt};
use smol::Timer;
use smol::channel::{Receiver, Sender, bounded};
use smol::future::or;
use smol::io::{AsyncReadExt as _, AsyncWriteExt as _};
use smol::net::{TcpListener, TcpStream};
use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A local connection that is answered at all is answered within this time.
const SOON: Duration = Duration::from_millis(200);

/// What happens to connections. A change also affects open ones.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mode {
    /// They are forwarded to VCD.
    Pass,
    /// Nobody listens, and open connections are reset.
    Refuse,
    /// Packets are dropped: new connections are not answered, and open ones pass no byte.
    Drop,
    /// New connections are accepted, but none passes a byte.
    Hold,
    /// Each is reset as soon as it is accepted.
    Reset,
    /// VCD's bytes arrive one by one, with this pause between them.
    Drip(Duration),
    /// Each is closed after this many bytes from VCD.
    Cut(usize),
    /// They are forwarded to another port.
    To(u16),
}

/// A proxy with its own port.
pub struct Proxy {
    pub port: u16,
    shared: Arc<Shared>,
    _accepting: smol::Task<()>,
}

struct Shared {
    upstream: u16,
    state: Mutex<State>,
    /// Number of open connections.
    live: AtomicUsize,
}

struct State {
    mode: Mode,
    /// Connections of an earlier epoch are reset.
    epoch: u64,
    changed: (Sender<()>, Receiver<()>),
}

impl Shared {
    /// The mode, and a channel that closes when the mode changes.
    fn now(&self) -> (Mode, Receiver<()>) {
        let state = self.state.lock().unwrap();
        (state.mode, state.changed.1.clone())
    }

    fn epoch(&self) -> u64 {
        self.state.lock().unwrap().epoch
    }
}

impl Proxy {
    /// Listens on the first free port of `ports`, and forwards to the port `upstream`, both on this machine.
    pub fn start(mut ports: impl FnMut() -> u16, upstream: u16) -> Proxy {
        let state = State { mode: Mode::Pass, epoch: 0, changed: bounded(1) };
        let shared = Arc::new(Shared { upstream, state: Mutex::new(state), live: AtomicUsize::new(0) });
        let (port, first) = loop {
            let port = ports();
            if let Ok(listener) = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
                break (port, listener);
            }
        };
        let accepting = smol::spawn(accept(shared.clone(), first.try_into().unwrap(), port));
        Proxy { port, shared, _accepting: accepting }
    }

    /// Sets the mode, and returns when it is in effect.
    pub async fn set(&self, mode: Mode) {
        {
            let mut state = self.shared.state.lock().unwrap();
            state.mode = mode;
            state.changed = bounded(1);
        }
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        // On the way to `Drop` connections are refused for a moment.
        let fails = match mode {
            Mode::Refuse => Some(io::ErrorKind::ConnectionRefused),
            Mode::Drop => Some(io::ErrorKind::TimedOut),
            _ => None,
        };
        let tried = || std::net::TcpStream::connect_timeout(&address, SOON).err().map(|error| error.kind());
        until("the new mode of the network", || tried() == fails).await;
    }

    /// Resets all open connections, and returns when they are closed: the other sides can see it then.
    pub async fn cut(&self) {
        {
            let mut state = self.shared.state.lock().unwrap();
            state.epoch += 1;
            state.changed = bounded(1);
        }
        until("all connections to close", || self.shared.live.load(Ordering::SeqCst) == 0).await;
    }
}

async fn accept(shared: Arc<Shared>, first: TcpListener, port: u16) {
    let mut listener = Some(first);
    loop {
        let (mode, changed) = shared.now();
        match mode {
            Mode::Refuse => {
                listener = None;
                let _ = changed.recv().await;
            }
            Mode::Drop => {
                listener = None;
                if let Ok(full) = smol::unblock(move || full_listener(port)).await {
                    let _ = changed.recv().await;
                    drop(full);
                }
            }
            _ => {
                let open = match listener.take() {
                    Some(open) => open,
                    None => match TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await {
                        Ok(open) => open,
                        Err(_) => {
                            Timer::after(Duration::from_millis(5)).await;
                            continue;
                        }
                    },
                };
                let accepted = async { open.accept().await.ok() };
                let new = or(accepted, async {
                    let _ = changed.recv().await;
                    None
                })
                .await;
                if let Some((client, _)) = new {
                    let shared = shared.clone();
                    shared.live.fetch_add(1, Ordering::SeqCst);
                    smol::spawn(async move {
                        let _ = carry(&shared, client).await;
                        shared.live.fetch_sub(1, Ordering::SeqCst);
                    })
                    .detach();
                }
                listener = Some(open);
            }
        }
    }
}

/// A listener with a full queue, so that the kernel drops further connections, and the connections that fill it.
pub fn full_listener(port: u16) -> io::Result<(rustix::fd::OwnedFd, Vec<std::net::TcpStream>)> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let listener = socket(AddressFamily::INET, SocketType::STREAM, Some(ipproto::TCP))?;
    sockopt::set_socket_reuseaddr(&listener, true)?;
    bind(&listener, &address)?;
    listen(&listener, 0)?;
    let mut waiting = Vec::new();
    while let Ok(stream) = std::net::TcpStream::connect_timeout(&address, SOON) {
        waiting.push(stream);
    }
    Ok((listener, waiting))
}

/// Serves one connection until it ends.
async fn carry(shared: &Shared, client: TcpStream) -> io::Result<()> {
    client.set_nodelay(true)?;
    // If this function returns an error, the client's connection is reset.
    sockopt::set_socket_linger(&client, Some(Duration::ZERO))?;
    let ((mode, _), epoch) = (shared.now(), shared.epoch());
    if matches!(mode, Mode::Refuse | Mode::Drop | Mode::Reset) {
        return Ok(());
    }
    gate(shared).await?;
    let upstream = if let Mode::To(port) = mode { port } else { shared.upstream };
    let server = TcpStream::connect((Ipv4Addr::LOCALHOST, upstream)).await?;
    server.set_nodelay(true)?;
    let up = pump(shared, client.clone(), server.clone(), false);
    let down = pump(shared, server.clone(), client.clone(), true);
    let both = async { smol::future::try_zip(up, down).await.map(|_| ()) };
    let ended = async {
        let mut before = mode;
        loop {
            let (mode, changed) = shared.now();
            let calm = |mode| matches!(mode, Mode::Pass | Mode::Drip(_) | Mode::Hold | Mode::Drop);
            if shared.epoch() != epoch || (mode != before && !(calm(mode) && calm(before))) {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            before = mode;
            let _ = changed.recv().await;
        }
    };
    or(both, ended).await
}

/// Waits while no byte may pass. After a wait, the connection is of no use.
async fn gate(shared: &Shared) -> io::Result<()> {
    let (mode, changed) = shared.now();
    if matches!(mode, Mode::Hold | Mode::Drop) {
        let _ = changed.recv().await;
        return Err(io::ErrorKind::ConnectionReset.into());
    }
    Ok(())
}

/// Copies until the end of the stream, and closes the other side.
async fn pump(shared: &Shared, mut from: TcpStream, mut to: TcpStream, answers: bool) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    let mut passed = 0;
    loop {
        let amount = from.read(&mut buffer).await?;
        gate(shared).await?;
        if amount == 0 {
            return to.shutdown(Shutdown::Write);
        }
        let bytes = &buffer[..amount];
        match shared.now().0 {
            Mode::Drip(pause) if answers => {
                // Fixed times instead of pauses: a busy machine wakes the task late.
                let mut due = Instant::now();
                for byte in bytes {
                    due += pause;
                    Timer::at(due).await;
                    gate(shared).await?;
                    to.write_all(std::slice::from_ref(byte)).await?;
                }
            }
            Mode::Cut(most) if answers && passed + amount > most => {
                to.write_all(&bytes[..most.saturating_sub(passed)]).await?;
                sockopt::set_socket_linger(&to, None)?;
                to.shutdown(Shutdown::Write)?;
                // The rest of the answer is discarded.
                while from.read(&mut buffer).await? > 0 {}
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            _ => to.write_all(bytes).await?,
        }
        passed += amount;
    }
}
