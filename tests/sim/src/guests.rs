//! The guests' own addresses: while a guest's SSH is up, something listens there. It says an SSH banner and holds the
//! connection for a moment, passes bytes on to a real SSH server, from the guest's own address, or is OpenSSH's server itself,
//! which knows the keys that the guest's customization script brought.

use crate::model::Model;
use smol::future::FutureExt as _;
use smol::io::{AsyncReadExt as _, AsyncWriteExt as _};
use smol::net::{TcpListener, TcpStream};
use smol::{Async, LocalExecutor, Task, Timer};
use socket2::{Domain, Socket, Type};
use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Weak;
use std::sync::Arc;
use std::time::Duration;

/// Connections to one guest at once; more are closed at once.
const MAX_CONNECTIONS: usize = 16;
/// A banner's connection is held so long, if the client does not close it.
const HOLD: Duration = Duration::from_secs(2);
/// What a guest says.
const BANNER: &[u8] = b"SSH-2.0-vcd-sim\r\n";

/// What is at a guest's port.
#[derive(Clone)]
pub enum Login {
    /// A banner only.
    Banner,
    /// A server elsewhere.
    Forward(SocketAddr),
    /// The system's OpenSSH.
    OpenSsh(Arc<OpenSsh>),
}

/// OpenSSH's server, one process for each connection. It lets the user in that runs this program, or whom root may be, by the
/// guest's keys, and runs no command of theirs.
pub struct OpenSsh {
    folder: PathBuf,
}

/// Where OpenSSH's server is.
const SSHD: &str = "/usr/sbin/sshd";
/// Nothing of the system's own configuration.
const SSHD_CONFIG: &str = "UsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin yes\n\
                           StrictModes no\nUseDNS no\nForceCommand true\nDisableForwarding yes\nLogLevel QUIET\n";
/// What a public key begins with.
const KEYS: [&str; 4] = ["ssh-ed25519 ", "ssh-rsa ", "ecdsa-sha2-", "sk-ssh-ed25519"];

impl OpenSsh {
    /// Makes a host key in a folder of its own.
    pub fn new() -> io::Result<OpenSsh> {
        let folder = std::env::temp_dir().join(format!("vcd-sim-sshd-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        // For its unprivileged part, where it is root's.
        let _ = std::fs::create_dir_all("/run/sshd");
        let host_key = folder.join("host_key");
        let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&host_key).status()?;
        if !made.success() || !Path::new(SSHD).exists() {
            return Err(io::Error::other("OpenSSH's server and ssh-keygen are needed"));
        }
        std::fs::write(folder.join("config"), format!("HostKey {}\n{SSHD_CONFIG}", host_key.display()))?;
        Ok(OpenSsh { folder })
    }

    /// Lets in who has a key in the script.
    fn knows(&self, address: Ipv4Addr, script: &str) -> io::Result<()> {
        let keys = script.split(['\'', '"', '\n']).filter(|text| KEYS.iter().any(|start| text.starts_with(start)));
        std::fs::write(self.folder.join(address.to_string()), keys.map(|key| format!("{key}\n")).collect::<String>())
    }

    /// Serves one connection to its end.
    fn serve(&self, client: std::net::TcpStream, address: Ipv4Addr) -> io::Result<()> {
        client.set_nonblocking(false)?;
        let keys = format!("-oAuthorizedKeysFile={}", self.folder.join(address.to_string()).display());
        let (input, output) = (OwnedFd::from(client.try_clone()?), OwnedFd::from(client));
        Command::new(SSHD)
            .args(["-i", "-f"])
            .arg(self.folder.join("config"))
            .arg(keys)
            .stdin(input)
            .stdout(output)
            .stderr(Stdio::null())
            .status()
            .map(|_| ())
    }
}

impl Drop for OpenSsh {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A guest whose SSH is up: its address, and the script that customized it.
pub type Up = (Ipv4Addr, Option<Arc<str>>);

/// The guests that listen.
pub struct Guests {
    port: u16,
    login: Login,
    open: BTreeMap<Ipv4Addr, Task<()>>,
    seen: Option<u64>,
}

impl Guests {
    /// None yet.
    pub fn new(port: u16, login: Login) -> Self {
        Self { port, login, open: BTreeMap::new(), seen: None }
    }

    /// True if guests came up or went down since it was last asked.
    pub fn is_outdated(&mut self, model: &Model) -> bool {
        self.seen.replace(model.guest_changes) != Some(model.guest_changes)
    }

    /// Listens on these addresses and on no others. False if one could not be had: it is tried again.
    pub fn open_only(&mut self, executor: &Weak<LocalExecutor<'static>>, up: &[Up]) -> bool {
        let Some(spawner) = executor.upgrade() else { return false };
        self.open.retain(|address, _| up.iter().any(|(other, _)| other == address));
        let mut all = true;
        for (address, script) in up {
            if self.open.contains_key(address) {
                continue;
            }
            let at = SocketAddr::from((*address, self.port));
            match std::net::TcpListener::bind(at).and_then(TcpListener::try_from) {
                Ok(listener) => {
                    if let Login::OpenSsh(server) = &self.login {
                        let _ = server.knows(*address, script.as_deref().unwrap_or_default());
                    }
                    let task = spawner.spawn(listen(executor.clone(), listener, *address, self.login.clone()));
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

async fn listen(executor: Weak<LocalExecutor<'static>>, listener: TcpListener, address: Ipv4Addr, login: Login) {
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
        let login = login.clone();
        connections.push(executor.spawn(async move {
            // The client's end of the connection is no error.
            let _ = match login {
                Login::Forward(server) => pass_on(client, address, server).await,
                Login::Banner => say_banner(client).await,
                Login::OpenSsh(server) => hand_over(client, address, server).await,
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

async fn hand_over(client: TcpStream, address: Ipv4Addr, server: Arc<OpenSsh>) -> io::Result<()> {
    let client = Arc::<Async<std::net::TcpStream>>::from(client);
    let client = client.get_ref().try_clone()?;
    smol::unblock(move || server.serve(client, address)).await
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
