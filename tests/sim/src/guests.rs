//! The guests' addresses: while a guest's SSH is up, something listens there. It sends an SSH banner and holds the
//! connection for a moment, or forwards to a real SSH server from the guest's own address, or is OpenSSH's server,
//! which accepts the keys from the guest's customization script.

use crate::model::Model;
use smol::future::FutureExt as _;
use smol::io::{AsyncReadExt as _, AsyncWriteExt as _};
use smol::net::{TcpListener, TcpStream};
use smol::{Async, LocalExecutor, Task, Timer};
use socket2::{Domain, Socket, Type};
use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::hash::{BuildHasher as _, RandomState};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Weak;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};

/// Maximum number of connections to one guest. More are closed immediately.
const MAX_CONNECTIONS: usize = 16;
/// After the banner, a connection is held for at most this long.
const HOLD: Duration = Duration::from_secs(2);
/// The banner of a guest.
const BANNER: &[u8] = b"SSH-2.0-vcd-sim\r\n";

/// What serves a guest's port, if nothing is forwarded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GuestKind {
    /// OpenSSH if a login works, else a banner.
    Auto,
    /// OpenSSH. If no login works, the simulator does not start.
    OpenSsh,
    /// A banner only.
    #[default]
    Banner,
}

impl FromStr for GuestKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(GuestKind::Auto),
            "openssh" => Ok(GuestKind::OpenSsh),
            "banner" => Ok(GuestKind::Banner),
            _ => Err("expected auto, openssh or banner".into()),
        }
    }
}

/// What serves a guest's port.
#[derive(Clone)]
pub enum Login {
    /// A banner only, and the reason.
    Banner(String),
    /// An SSH server at another address.
    Forward(SocketAddr),
    /// The system's OpenSSH.
    OpenSsh(Arc<OpenSsh>),
}

impl Login {
    /// `forward` takes precedence over the kind.
    pub fn new(kind: GuestKind, forward: Option<SocketAddr>) -> io::Result<Login> {
        if let Some(server) = forward {
            return Ok(Login::Forward(server));
        }
        match kind {
            GuestKind::Banner => Ok(Login::Banner("no other kind was requested".into())),
            GuestKind::OpenSsh => OpenSsh::new().map(|server| Login::OpenSsh(Arc::new(server))),
            GuestKind::Auto => Ok(match OpenSsh::new() {
                Ok(server) => Login::OpenSsh(Arc::new(server)),
                Err(error) => Login::Banner(error.to_string()),
            }),
        }
    }

    /// The user that guests accept.
    pub fn user(&self) -> Option<&str> {
        match self {
            Login::OpenSsh(server) => Some(&server.user),
            Login::Banner(_) | Login::Forward(_) => None,
        }
    }
}

impl fmt::Display for Login {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Login::Banner(why) => write!(f, "an SSH banner only: {why}"),
            Login::Forward(server) => write!(f, "the SSH server at {server}"),
            Login::OpenSsh(server) => write!(f, "OpenSSH, login as {} with a key", server.user),
        }
    }
}

/// OpenSSH's server, one process for each connection. It accepts the user that runs this program, root or not, with
/// the guest's keys, and runs no command that the client sends. Passwords are disabled: they are the system's.
pub struct OpenSsh {
    folder: PathBuf,
    server: &'static str,
    user: String,
}

/// Where OpenSSH's server may be. It must be called by its absolute path.
const SSHD: [&str; 3] = ["/usr/sbin/sshd", "/usr/local/sbin/sshd", "/usr/bin/sshd"];
/// Nothing from the system's own configuration. Others may write to the parent of the folder of keys, but not to the
/// folder.
const SSHD_CONFIG: &str = "UsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin yes\n\
                           StrictModes no\nUseDNS no\nForceCommand true\nDisableForwarding yes\nLoginGraceTime 20\n\
                           LogLevel QUIET\n";
/// A public key starts with one of these.
const KEYS: [&str; 4] = ["ssh-ed25519 ", "ssh-rsa ", "ecdsa-sha2-", "sk-ssh-ed25519"];
/// The name of the key for the trial login, and of the file that has its host key.
const TRIED: &str = "tried";

/// Runs a program. The error is the last line of its output.
fn run(program: &mut Command) -> Result<String, String> {
    let name = program.get_program().display().to_string();
    let output = program.stdin(Stdio::null()).output().map_err(|error| format!("{name} cannot be run: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).lines().last().unwrap_or_default().trim().to_owned();
    match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => Err(format!("{name} said: {}", text(&output.stderr))),
    }
}

impl OpenSsh {
    /// Creates a host key in a new folder, and tries a login. The error is a reason, such as "there is no sshd".
    pub fn new() -> io::Result<OpenSsh> {
        let server = SSHD.into_iter().find(|place| Path::new(place).exists());
        let server = server.ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, "there is no sshd: install openssh-server for logins")
        })?;
        let user = run(Command::new("id").arg("-un")).map_err(io::Error::other)?;
        let random = RandomState::new().hash_one(0);
        let folder = std::env::temp_dir().join(format!("vcd-sim-{random:016x}"));
        DirBuilder::new().mode(0o700).create(&folder)?;
        // Its unprivileged part needs this folder, if root runs the server.
        let _ = std::fs::create_dir_all("/run/sshd");
        let openssh = OpenSsh { folder, server, user };
        openssh.prepare().map_err(io::Error::other)?;
        Ok(openssh)
    }

    fn prepare(&self) -> Result<(), String> {
        let [host_key, tried] = ["host_key", TRIED].map(|name| self.folder.join(name));
        for key in [&host_key, &tried] {
            run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(key))?;
        }
        let config = self.folder.join("config");
        let written = std::fs::write(&config, format!("HostKey {}\n{SSHD_CONFIG}", host_key.display()));
        written.map_err(|error| format!("write {}: {error}", config.display()))?;
        // Without a network: ssh talks to a server that it starts itself.
        let (keys, config) = (self.folder.join(format!("{TRIED}.pub")), config.display());
        let server = format!("ProxyCommand={} -i -f {config} -oAuthorizedKeysFile={}", self.server, keys.display());
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "/dev/null", "-oBatchMode=yes", "-oIdentitiesOnly=yes", "-oIdentityAgent=none"]);
        ssh.args(["-oStrictHostKeyChecking=no", "-oUserKnownHostsFile=/dev/null", "-oLogLevel=ERROR"]);
        ssh.args(["-o", &server, "-l", &self.user, "-i"]).arg(&tried).args(["guest", "true"]);
        run(&mut ssh).map(drop).map_err(|why| format!("a login as {} does not work: {why}", self.user))
    }

    /// Writes the keys in a guest's script to the file that its server reads.
    fn knows(&self, address: Ipv4Addr, script: &str) -> io::Result<()> {
        let keys = script.split(['\'', '"', '\n']).filter(|text| KEYS.iter().any(|start| text.starts_with(start)));
        std::fs::write(self.folder.join(address.to_string()), keys.map(|key| format!("{key}\n")).collect::<String>())
    }

    /// Serves one connection until it ends.
    fn serve(&self, client: std::net::TcpStream, address: Ipv4Addr) -> io::Result<()> {
        client.set_nonblocking(false)?;
        let keys = format!("-oAuthorizedKeysFile={}", self.folder.join(address.to_string()).display());
        let (input, output) = (OwnedFd::from(client.try_clone()?), OwnedFd::from(client));
        Command::new(self.server)
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
    /// No guests yet.
    pub fn new(port: u16, login: Login) -> Self {
        Self { port, login, open: BTreeMap::new(), seen: None }
    }

    /// True if guests came up or went down since the last call.
    pub fn is_outdated(&mut self, model: &Model) -> bool {
        self.seen.replace(model.guest_changes) != Some(model.guest_changes)
    }

    /// Listens on these addresses and on no others. False if one is not available: the caller tries again.
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
    // Dropped together with the guest, which closes its connections.
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
            // A client that disconnects is no error.
            let _ = match login {
                Login::Forward(server) => pass_on(client, address, server).await,
                Login::Banner(_) => say_banner(client).await,
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

/// Copies until the end of the stream, and closes the other side.
async fn copy(from: TcpStream, mut to: TcpStream) -> io::Result<()> {
    smol::io::copy(from, &mut to).await?;
    to.shutdown(std::net::Shutdown::Write)
}
