//! The server: its options, its thread, its URLs.

use crate::faults::{Faults, Rule};
use crate::front::{self, Listeners, Shared, World};
use crate::guests::{GuestKind, Guests, Login};
use crate::model::Model;
use crate::routes::Api;
use crate::tls::{Acceptor, Authority, Certificate};
use smol::channel;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;

/// How to start a [`Server`].
#[derive(Clone, Debug)]
pub struct Options {
    /// The address for HTTP. Port 0 takes a free port.
    pub listen: SocketAddr,
    /// The address for HTTPS, if it is served.
    pub https_listen: Option<SocketAddr>,
    /// The address of the control port.
    pub control: SocketAddr,
    /// Logical milliseconds per real millisecond.
    pub scale: f64,
    /// Seed for ids, passwords and random faults.
    pub seed: u64,
    /// The port of the guests at their own addresses. Two servers at the same time need different ports, or different
    /// address pools.
    pub guest_port: u16,
    /// What serves the guests.
    pub guests: GuestKind,
    /// A real SSH server for all guests instead. It identifies a guest by the source address.
    pub guest_forward: Option<SocketAddr>,
    /// The world at the start; `None`: [`Model::standard`].
    pub model: Option<Model>,
    /// Versions and XML prefixes.
    pub api: Api,
}

impl Default for Options {
    fn default() -> Self {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self {
            listen: any,
            https_listen: None,
            control: any,
            scale: 1.0,
            seed: 1,
            guest_port: 2222,
            guests: GuestKind::default(),
            guest_forward: None,
            model: None,
            api: Api::default(),
        }
    }
}

/// A running simulator. Dropping it stops it.
pub struct Server {
    shared: Arc<Shared>,
    http: SocketAddr,
    https: Option<SocketAddr>,
    control: SocketAddr,
    tls: Option<(Authority, Acceptor)>,
    guests: String,
    guest_user: Option<String>,
    stop: channel::Sender<()>,
    thread: Option<JoinHandle<()>>,
}

fn listen(at: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let listener =
        TcpListener::bind(at).map_err(|error| io::Error::new(error.kind(), format!("listen on {at}: {error}")))?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

impl Server {
    /// Listens, and serves on its own thread.
    pub fn start(options: Options) -> io::Result<Server> {
        if !(0.001..=1_000_000.0).contains(&options.scale) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "scale must be 0.001 to 1000000"));
        }
        let (http_listener, http) = listen(options.listen)?;
        let (control_listener, control) = listen(options.control)?;
        let (mut https, mut https_listener, mut tls) = (None, None, None);
        if let Some(at) = options.https_listen {
            let (listener, address) = listen(at)?;
            let authority = Authority::new("vcd-sim CA")?;
            let acceptor = Acceptor::new(authority.acceptor(Certificate::Good)?.0);
            https = Some(address);
            https_listener = Some((listener, acceptor.clone()));
            tls = Some((authority, acceptor));
        }
        let model = options.model.unwrap_or_else(|| Model::standard(options.seed));
        let world = World::new(model, Faults::new(options.seed), options.api, options.scale);
        let (shared, heard) = Shared::new(world);
        let (stop, stopped) = channel::bounded(1);
        let listeners = Listeners { http: http_listener, https: https_listener, control: control_listener };
        let login = Login::new(options.guests, options.guest_forward)?;
        let (guests, guest_user) = (login.to_string(), login.user().map(str::to_owned));
        let behind = Guests::new(options.guest_port, login);
        let on_thread = shared.clone();
        let thread = std::thread::Builder::new().name("vcd-sim".into()).spawn(move || {
            if let Err(error) = front::run(&on_thread, &heard, listeners, behind, &stopped) {
                eprintln!("vcd-sim: {error}");
            }
        })?;
        Ok(Server { shared, http, https, control, tls, guests, guest_user, stop, thread: Some(thread) })
    }

    /// `http://127.0.0.1:PORT`; the API is below `/api`.
    pub fn url(&self) -> String {
        format!("http://{}", self.http)
    }

    /// `https://localhost:PORT`, if HTTPS is served.
    pub fn https_url(&self) -> Option<String> {
        self.https.map(|a| format!("https://localhost:{}", a.port()))
    }

    /// The control port's URL.
    pub fn control_url(&self) -> String {
        format!("http://{}", self.control)
    }

    /// What serves its guests, and why, in words.
    pub fn guests(&self) -> &str {
        &self.guests
    }

    /// The user that its guests accept with a key, if they are OpenSSH.
    pub fn guest_user(&self) -> Option<&str> {
        self.guest_user.as_deref()
    }

    /// The CA's certificate, if HTTPS is served.
    pub fn ca_pem(&self) -> Option<&str> {
        self.tls.as_ref().map(|(authority, _)| authority.pem.as_str())
    }

    /// From now on, HTTPS connections get this certificate, which is returned as PEM. Without HTTPS, nothing happens.
    pub fn set_certificate(&self, which: Certificate) -> io::Result<String> {
        let Some((authority, acceptor)) = &self.tls else { return Ok(String::new()) };
        let (new, pem) = authority.acceptor(which)?;
        acceptor.set(new);
        Ok(pem)
    }

    /// Changes what the front serves: versions, targets of links and redirects.
    pub fn with_api<T>(&self, f: impl FnOnce(&mut Api) -> T) -> T {
        f(&mut self.shared.lock().api)
    }

    /// Calls a function with the current model, to read or change it.
    pub fn with_model<T>(&self, f: impl FnOnce(&mut Model) -> T) -> T {
        let result = {
            let mut world = self.shared.lock();
            world.catch_up();
            f(&mut world.model)
        };
        self.shared.ring();
        result
    }

    /// Adds a fault; false if there are too many.
    pub fn add_fault(&self, rule: Rule) -> bool {
        let mut world = self.shared.lock();
        let fits = world.faults.add(rule);
        let history = world.faults.history();
        if history > 0 {
            world.model.keep_history(history);
        }
        fits
    }

    /// Each request is hit with this probability, by a fault that fits it.
    pub fn random_faults(&self, seed: u64, rate: f64) {
        self.shared.lock().faults.random(seed, rate);
    }

    /// Number of requests that faults have hit.
    pub fn hits(&self) -> u64 {
        self.shared.lock().faults.hits
    }

    /// Ends all faults.
    pub fn clear_faults(&self) {
        self.shared.lock().faults.clear();
    }

    /// Number of requests of an operation (as in `GET /counts`).
    pub fn requests(&self, operation: &str) -> u64 {
        self.shared.lock().counts.requests.get(operation).copied().unwrap_or(0)
    }

    /// Bytes of the answers' bodies, as sent.
    pub fn sent(&self) -> u64 {
        self.shared.lock().counts.sent
    }

    /// Number of connections to the API.
    pub fn connections(&self) -> u64 {
        self.shared.lock().counts.connections
    }

    /// Number of an operation's requests that were answered with an error (as in `GET /counts`).
    pub fn refusals(&self, operation: &str) -> u64 {
        self.shared.lock().counts.refusals.get(operation).copied().unwrap_or(0)
    }

    /// Number of an operation's requests that changed something and were accepted (as in `GET /counts`).
    pub fn accepted(&self, operation: &str) -> u64 {
        self.shared.lock().counts.accepted.get(operation).copied().unwrap_or(0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.stop.try_send(());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
