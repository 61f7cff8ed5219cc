//! The HTTP/2 server: accepts a few connections, keeps them alive, ends them in order. `calls` knows the meaning of a
//! call.

use super::calls;
use super::socket::Socket;
use crate::driver::Plugin;
use crate::transport::{Clock, Io, Tasks};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use smol::channel::{Receiver, Sender};
use smol::future::or;
use smol::io::{AsyncRead, AsyncWrite};
use smol::lock::Semaphore;
use smol::{LocalExecutor, Timer};
use std::cell::Cell;
use std::convert::Infallible;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Maximum number of connections. The host has one. Further ones wait until one ends.
const MAX_CONNECTIONS: usize = 8;

/// Maximum number of concurrent calls on one connection, including open streams. The host holds back further ones.
const MAX_CALLS: u32 = 128;

/// Maximum number of unread bytes of requests on a connection, for one call and for all calls.
const CALL_WINDOW: u32 = 64 * 1024;
/// See [`CALL_WINDOW`].
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// Maximum size of the headers of a request, in bytes.
const MAX_HEADERS: u32 = 16 * 1024;

/// A connection without a call is closed after this time: it is not the host's.
const FIRST_CALL_LIMIT: Duration = Duration::from_secs(60);

/// Interval of pings on a quiet connection.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(60);

/// A connection that does not answer a ping for this time is closed. The time is long: the peer is on the same machine,
/// and at worst a stopped process.
const KEEP_ALIVE_LIMIT: Duration = Duration::from_secs(60);

/// Pause after a connection could not be accepted, for example without free file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

/// The state that the calls and the end of the process share.
pub struct Server {
    /// The plugin that the calls use.
    pub plugin: Rc<Plugin>,
    executor: Rc<LocalExecutor<'static>>,
    connections: Cell<usize>,
    shutdown: Cell<bool>,
    /// A token in it means: `connections` or `shutdown` has changed.
    changed: (Sender<()>, Receiver<()>),
    /// Never carries a message. It is closed when everything has to end.
    stop: (Sender<Infallible>, Receiver<Infallible>),
}

impl Server {
    /// A server without a connection.
    pub fn new(executor: Rc<LocalExecutor<'static>>, plugin: Rc<Plugin>) -> Rc<Server> {
        let (changed, stop) = (smol::channel::bounded(1), smol::channel::bounded(1));
        Rc::new(Server { plugin, executor, connections: Cell::new(0), shutdown: Cell::new(false), changed, stop })
    }

    /// Accepts connections without end, and serves each in a separate task.
    pub async fn accept(self: Rc<Self>, socket: &Socket) -> Infallible {
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let slot = slots.acquire_arc().await;
            match socket.accept().await {
                Ok(stream) => {
                    let server = self.clone();
                    let connected = Connected::new(&self);
                    let task = async move {
                        server.serve(stream).await;
                        drop((connected, slot));
                    };
                    self.executor.spawn(task).detach();
                }
                Err(error) => {
                    log::warn!("cannot accept a connection of GitLab Runner: {error}; the plugin tries again");
                    Timer::after(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Serves one connection until the peer or [`Server::stop`] ends it, or until it is silent for too long.
    pub(super) async fn serve(self: Rc<Self>, stream: impl AsyncRead + AsyncWrite + Unpin + 'static) {
        self.serve_within(stream, FIRST_CALL_LIMIT, (KEEP_ALIVE_INTERVAL, KEEP_ALIVE_LIMIT)).await;
    }

    async fn serve_within(
        self: Rc<Self>,
        stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
        first_call: Duration,
        keep_alive: (Duration, Duration),
    ) {
        let called = Rc::new(Cell::new(false));
        let service = service_fn(|request| {
            called.set(true);
            let server = self.clone();
            async move { Ok::<_, Infallible>(calls::answer(server, request).await) }
        });
        let connection = http2::Builder::new(Tasks(self.executor.clone()))
            .timer(Clock)
            .max_concurrent_streams(MAX_CALLS)
            .initial_stream_window_size(CALL_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(MAX_HEADERS)
            .keep_alive_interval(keep_alive.0)
            .keep_alive_timeout(keep_alive.1)
            .serve_connection(Io(stream), service);
        let mut connection = pin!(connection);

        enum Event {
            Ended(Result<(), hyper::Error>),
            Silent,
            Stop,
        }
        let ended = async { Event::Ended(connection.as_mut().await) };
        let silent = async {
            Timer::after(first_call).await;
            if called.get() { smol::future::pending().await } else { Event::Silent }
        };
        let stop = async {
            self.stopped().await;
            Event::Stop
        };
        match or(ended, or(silent, stop)).await {
            Event::Ended(Ok(())) => log::debug!("a connection of GitLab Runner has ended"),
            Event::Ended(Err(error)) => log::debug!("a connection of GitLab Runner has ended: {error}"),
            Event::Silent => log::warn!("closing a connection: no call in {} s", first_call.as_secs()),
            Event::Stop => {
                connection.as_mut().graceful_shutdown();
                let _ = connection.await;
            }
        }
    }

    /// The host has sent its last call.
    pub fn shut_down(&self) {
        self.shutdown.set(true);
        self.notify();
    }

    /// True after [`Server::shut_down`].
    pub fn is_shut_down(&self) -> bool {
        self.shutdown.get()
    }

    /// True if there is a connection.
    pub fn is_connected(&self) -> bool {
        self.connections.get() > 0
    }

    /// Waits until [`Server::is_shut_down`] or [`Server::is_connected`] may have changed. Only one caller may wait.
    pub async fn changed(&self) {
        let _ = self.changed.1.recv().await;
    }

    /// Ends the open streams, and each connection after its calls are answered.
    pub fn stop(&self) {
        self.stop.0.close();
    }

    /// Resolves at [`Server::stop`]. It can be sent to other threads, as tonic requires of streams.
    pub fn stopped(&self) -> impl Future<Output = ()> + Send + use<> {
        let stop = self.stop.1.clone();
        async move {
            // Nothing is ever sent: this ends with an error when the channel closes.
            let _ = stop.recv().await;
        }
    }

    fn notify(&self) {
        // Full: there is a token already.
        let _ = self.changed.0.try_send(());
    }
}

/// Counts a connection while it exists.
pub(super) struct Connected(Rc<Server>);

impl Connected {
    pub(super) fn new(server: &Rc<Server>) -> Connected {
        server.connections.set(server.connections.get() + 1);
        server.notify();
        Connected(server.clone())
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.connections.set(self.0.connections.get().saturating_sub(1));
        self.0.notify();
    }
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use super::*;
    use smol::Async;
    use smol::io::{AsyncReadExt, AsyncWriteExt};
    use std::os::unix::net::UnixStream;

    const SHORT: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(60);
    /// How a client begins: HTTP/2's preface, and its own settings, which are the usual ones.
    const BEGIN: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

    /// What `client` makes of its end of a connection that is served with these limits, or `None` when the server ends it.
    fn served<T>(
        first_call: Duration,
        keep_alive: (Duration, Duration),
        client: impl AsyncFnOnce(&mut Async<UnixStream>) -> T,
    ) -> Option<T> {
        let executor = Rc::new(LocalExecutor::new());
        let server = Server::new(executor.clone(), Plugin::new(executor.clone(), |_, _, _| {}));
        let (theirs, mut ours) = Async::<UnixStream>::pair().unwrap();
        let ends = async {
            server.serve_within(theirs, first_call, keep_alive).await;
            None
        };
        let late = async {
            Timer::after(LONG).await;
            panic!("the connection goes on")
        };
        smol::block_on(executor.run(or(ends, or(async { Some(client(&mut ours).await) }, late))))
    }

    #[test]
    fn silent_connections_are_closed() {
        let silent = async |ours: &mut Async<UnixStream>, say: &[u8]| {
            ours.write_all(say).await.unwrap();
            std::future::pending::<()>().await;
        };
        // Nothing is said, no call comes, no sign of life is given.
        for (say, first_call, keep_alive) in
            [(b"".as_slice(), SHORT, (LONG, LONG)), (BEGIN, SHORT, (LONG, LONG)), (BEGIN, LONG, (SHORT, SHORT))]
        {
            assert_eq!(served(first_call, keep_alive, async |ours| silent(ours, say).await), None);
        }
    }

    #[test]
    fn the_host_learns_the_limits_of_a_connection() {
        let told = served(LONG, (LONG, LONG), async |ours| {
            ours.write_all(BEGIN).await.unwrap();
            let mut told = Vec::new();
            loop {
                let mut head = [0; 9];
                ours.read_exact(&mut head).await.unwrap();
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
                let mut body = vec![0; length as usize];
                ours.read_exact(&mut body).await.unwrap();
                match head[3] {
                    // Settings: pairs of a number and a value.
                    4 => told.extend(
                        body.chunks(6)
                            .map(|s| (u16::from_be_bytes([s[0], s[1]]), u32::from_be_bytes([s[2], s[3], s[4], s[5]]))),
                    ),
                    // How much more than the usual window all calls have together.
                    8 => return (told, u32::from_be_bytes([body[0], body[1], body[2], body[3]])),
                    _ => {}
                }
            }
        });
        let (settings, more) = told.unwrap();
        for (number, value) in [(3, MAX_CALLS), (4, CALL_WINDOW), (6, MAX_HEADERS)] {
            assert!(settings.contains(&(number, value)), "{number}: {settings:?}");
        }
        assert_eq!(65_535 + more, CONNECTION_WINDOW);
    }
}
