//! The host for tests, examples and benchmarks: starts the plugin as GitLab Runner does, and calls it over gRPC.
//! Include it with `mod common;`, or from other folders with `#[path = "../tests/common/mod.rs"] mod common;`. A
//! failure is a panic that names what the code waited for. Runs on any smol executor.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use fleeting_plugin_vcd::host::proto::fleeting::*;
use fleeting_plugin_vcd::host::proto::go_plugin::{ConnInfo, StdioData};
use fleeting_plugin_vcd::host::proto::health::{HealthCheckRequest, HealthCheckResponse};
use fleeting_plugin_vcd::host::{COOKIE, COOKIE_VARIABLE, MAX_MESSAGE};
use fleeting_plugin_vcd::transport::Io;
use hyper::client::conn::http2;
use hyper::http;
use hyper::http::uri::PathAndQuery;
use prost::Message;
use smol::future::or;
use smol::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use smol::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use smol::stream::{Stream, StreamExt};
use smol::{Async, Timer};
use std::future::Future;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstCodec;

/// Maximum time for any wait.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The output of `future`. Panics with `what` if it takes longer than [`PATIENCE`].
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let late = async {
        Timer::after(PATIENCE).await;
        panic!("waited {PATIENCE:?} for {what}")
    };
    or(future, late).await
}

/// Waits until `condition` is true.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let holds = async {
        while !condition() {
            Timer::after(Duration::from_millis(5)).await;
        }
    };
    soon(what, holds).await
}

/// Compiles the library that shifts the clocks of a process.
pub fn build_clock(library: &Path) {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/plugin/clock.c");
    let built =
        std::process::Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(library).arg(source).status();
    assert!(built.expect("cc can be started").success(), "cc creates {}", library.display());
}

/// Creates an executable file. Another process writes it: a child that another test starts at that moment would keep
/// this process's open files open, and a file that is open for writing cannot be executed ("Text file busy").
pub fn install(content: &[u8], path: &Path) {
    let mut install = std::process::Command::new("install");
    install.args(["-m", "755", "/dev/stdin"]).arg(path).stdin(Stdio::piped());
    let mut install = install.spawn().expect("install can be started");
    let mut input = install.stdin.take().expect("stdin is a pipe");
    std::io::Write::write_all(&mut input, content).unwrap();
    drop(input);
    assert!(install.wait().unwrap().success(), "install {}", path.display());
}

/// A running plugin with this process as its host. It is killed when dropped. It derefs to [`Client`] for calls.
pub struct PluginProcess {
    pub child: Child,
    /// The host's end of the plugin's stdout. If it is dropped, the plugin sees the death of its host.
    pub stdout: Option<BufReader<ChildStdout>>,
    /// The line on stdout, without its line end.
    pub handshake: String,
    /// The connection for calls. `None` closes it.
    pub client: Option<Client>,
    log: Arc<Mutex<Vec<String>>>,
    log_reader: Option<smol::Task<()>>,
}

/// The command that starts `binary` as the host does. Variables and arguments can be added.
pub fn command(binary: impl AsRef<Path>) -> Command {
    hosted(Command::new(binary.as_ref()))
}

/// The same for an existing command.
pub fn hosted(mut command: Command) -> Command {
    command
        .env(COOKIE_VARIABLE, COOKIE)
        .env("PLUGIN_PROTOCOL_VERSIONS", "0")
        .env("PLUGIN_MIN_PORT", "10000")
        .env("PLUGIN_MAX_PORT", "25000")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

impl PluginProcess {
    /// Starts the plugin, reads its handshake and connects.
    pub async fn start(command: Command) -> PluginProcess {
        PluginProcess::start_below(Path::new("/"), command).await
    }

    /// The same for a plugin whose root directory is `root`.
    pub async fn start_below(root: &Path, mut command: Command) -> PluginProcess {
        let mut child = command.spawn().expect("the plugin can be started");
        let mut stdout = BufReader::new(child.stdout.take().expect("stdout is a pipe"));
        let log = Arc::new(Mutex::new(Vec::new()));
        let log_reader = child.stderr.take().map(|stderr| {
            let log = log.clone();
            smol::spawn(async move {
                let mut lines = BufReader::new(stderr).lines();
                while let Some(Ok(line)) = lines.next().await {
                    log.lock().unwrap().push(line);
                }
            })
        });
        let mut handshake = String::new();
        let read = soon("the handshake", stdout.read_line(&mut handshake)).await;
        assert!(read.is_ok_and(|length| length > 0), "no handshake; log: {:#?}", log.lock().unwrap());
        let handshake = handshake.trim_end_matches('\n').to_owned();
        let address = address_of(&handshake);
        let client = Some(Client::connect(&root.join(address.strip_prefix("/").unwrap())).await);
        PluginProcess { child, stdout: Some(stdout), handshake, client, log, log_reader }
    }

    /// The socket's path.
    pub fn address(&self) -> PathBuf {
        address_of(&self.handshake)
    }

    /// The lines on stderr so far.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// Waits for a line on stderr that contains `text`.
    pub async fn logged(&self, text: &str) {
        until(&format!("a log line with {text:?}"), || self.log().iter().any(|line| line.contains(text))).await
    }

    /// Closes the host's end of stderr.
    pub async fn close_stderr(&mut self) {
        if let Some(reader) = self.log_reader.take() {
            reader.cancel().await;
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let id = rustix::process::Pid::from_raw(self.child.id().try_into().unwrap()).unwrap();
        rustix::process::kill_process(id, signal).expect("the plugin runs");
    }

    /// Waits until the process ends. Returns its status, and its output on stdout after the handshake.
    pub async fn exited(&mut self) -> (ExitStatus, String) {
        let status = soon("the plugin's end", self.child.status()).await.unwrap();
        let mut rest = String::new();
        if let Some(stdout) = &mut self.stdout {
            soon("the end of stdout", stdout.read_to_string(&mut rest)).await.unwrap();
        }
        if let Some(reader) = self.log_reader.take() {
            soon("the end of stderr", reader).await;
        }
        (status, rest)
    }
}

impl std::ops::Deref for PluginProcess {
    type Target = Client;

    fn deref(&self) -> &Client {
        self.client.as_ref().expect("still connected")
    }
}

/// The socket's path in a handshake line.
pub fn address_of(handshake: &str) -> PathBuf {
    handshake.split('|').nth(3).unwrap_or_else(|| panic!("no handshake: {handshake:?}")).into()
}

/// One connection to a plugin. Clones share it. It is closed with the last clone.
#[derive(Clone)]
pub struct Client {
    sender: http2::SendRequest<Body>,
    time_limit: Option<Duration>,
}

impl Client {
    /// Connects to the socket at `address`.
    pub async fn connect(address: &Path) -> Client {
        let stream = soon("a connection", Async::<UnixStream>::connect(address)).await.expect("somebody listens");
        let (sender, connection) = http2::handshake(Spawn, Io(stream)).await.expect("HTTP/2 begins");
        smol::spawn(connection).detach();
        Client { sender, time_limit: None }
    }

    /// The same connection, with a deadline for its calls.
    pub fn with_time_limit(&self, limit: Duration) -> Client {
        Client { sender: self.sender.clone(), time_limit: Some(limit) }
    }

    pub async fn init(&self, config: &[u8], connector: ConnectorConfig) -> Result<InitResponse, Status> {
        let settings = Some(Settings { connector_config: Some(connector) });
        self.unary("/proto.InstanceGroup/Init", InitRequest { config: config.to_vec(), settings }).await
    }

    /// All instances with their states.
    pub async fn update(&self) -> Result<Vec<(String, State)>, Status> {
        let mut stream = self.server_streaming::<_, UpdateResponse>("/proto.InstanceGroup/Update", ()).await?;
        let mut instances = Vec::new();
        while let Some(update) = stream.message().await? {
            let state = update.state();
            instances.push((update.instance, state));
        }
        Ok(instances)
    }

    pub async fn increase(&self, n: u32) -> Result<u32, Status> {
        let answer: IncreaseResponse = self.unary("/proto.InstanceGroup/Increase", IncreaseRequest { n }).await?;
        Ok(answer.succeeded)
    }

    pub async fn decrease(&self, instances: &[&str]) -> Result<Vec<String>, Status> {
        let request = DecreaseRequest { instances: owned(instances) };
        let answer: DecreaseResponse = self.unary("/proto.InstanceGroup/Decrease", request).await?;
        Ok(answer.succeeded)
    }

    pub async fn connect_info(&self, instance: &str) -> Result<ConnectInfoResponse, Status> {
        self.unary("/proto.InstanceGroup/ConnectInfo", ConnectInfoRequest { instance: instance.into() }).await
    }

    pub async fn heartbeat(&self, instance: &str) -> Result<(), Status> {
        self.unary("/proto.InstanceGroup/Heartbeat", HeartbeatRequest { instance: instance.into() }).await
    }

    pub async fn suspend(&self, instances: &[&str]) -> Result<Vec<String>, Status> {
        let request = SuspendRequest { instances: owned(instances) };
        let answer: SuspendResponse = self.unary("/proto.InstanceGroup/Suspend", request).await?;
        Ok(answer.succeeded)
    }

    pub async fn resume(&self, instances: &[&str]) -> Result<Vec<String>, Status> {
        let request = ResumeRequest { instances: owned(instances) };
        let answer: ResumeResponse = self.unary("/proto.InstanceGroup/Resume", request).await?;
        Ok(answer.succeeded)
    }

    /// InstanceGroup/Shutdown.
    pub async fn shutdown(&self) -> Result<(), Status> {
        self.unary("/proto.InstanceGroup/Shutdown", ()).await
    }

    /// GRPCController/Shutdown: the plugin exits.
    pub async fn quit(&self) -> Result<(), Status> {
        self.unary("/plugin.GRPCController/Shutdown", ()).await
    }

    pub async fn health(&self, service: &str) -> Result<HealthCheckResponse, Status> {
        self.unary("/grpc.health.v1.Health/Check", HealthCheckRequest { service: service.into() }).await
    }

    pub async fn watch_health(&self, service: &str) -> Result<Streaming<HealthCheckResponse>, Status> {
        self.server_streaming("/grpc.health.v1.Health/Watch", HealthCheckRequest { service: service.into() }).await
    }

    pub async fn stdio(&self) -> Result<Streaming<StdioData>, Status> {
        self.server_streaming("/plugin.GRPCStdio/StreamStdio", ()).await
    }

    pub async fn broker(
        &self,
        messages: impl Stream<Item = ConnInfo> + Send + 'static,
    ) -> Result<Streaming<ConnInfo>, Status> {
        self.streaming("/plugin.GRPCBroker/StartStream", messages).await
    }

    /// Any call with one request and one answer.
    pub async fn unary<Q, A>(&self, path: &'static str, message: Q) -> Result<A, Status>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let call = async {
            let mut grpc = self.grpc();
            let codec = ProstCodec::new();
            grpc.unary(self.request(message), PathAndQuery::from_static(path), codec).await
        };
        soon(path, call).await.map(tonic::Response::into_inner)
    }

    /// Any call with a stream of answers.
    pub async fn server_streaming<Q, A>(&self, path: &'static str, message: Q) -> Result<Streaming<A>, Status>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        self.streaming(path, smol::stream::once(message)).await
    }

    /// Any call with a stream in each direction.
    pub async fn streaming<Q, A>(
        &self,
        path: &'static str,
        messages: impl Stream<Item = Q> + Send + 'static,
    ) -> Result<Streaming<A>, Status>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let call = async {
            let mut grpc = self.grpc();
            let codec = ProstCodec::new();
            grpc.streaming(self.request(messages), PathAndQuery::from_static(path), codec).await
        };
        soon(path, call).await.map(tonic::Response::into_inner)
    }

    /// Any HTTP request, also those that tonic would not send.
    pub async fn http(&self, request: http::Request<Body>) -> hyper::Result<http::Response<hyper::body::Incoming>> {
        soon("an HTTP answer", self.sender.clone().send_request(request)).await
    }

    fn grpc(&self) -> Grpc<Channel> {
        Grpc::with_origin(Channel(self.sender.clone()), http::Uri::from_static("http://plugin"))
            .max_decoding_message_size(MAX_MESSAGE)
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(limit) = self.time_limit {
            request.set_timeout(limit);
        }
        request
    }
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Adapts hyper's connection for tonic's client.
struct Channel(http2::SendRequest<Body>);

impl tonic::codegen::Service<http::Request<Body>> for Channel {
    type Response = http::Response<hyper::body::Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = hyper::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

/// The client's tasks run on smol's global executor, in addition to the test's.
#[derive(Clone)]
struct Spawn;

impl<F> hyper::rt::Executor<F> for Spawn
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        smol::spawn(future).detach();
    }
}
