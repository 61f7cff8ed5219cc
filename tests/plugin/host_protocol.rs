//! GitLab Runner's view of the plugin process: handshake, socket, gRPC services, log lines, and the end of the
//! process. No call here needs a configured plugin.

use crate::common;
use crate::common::{Client, PluginProcess, address_of, command, soon, until};
use fleeting_plugin_vcd::host::MAX_MESSAGE;
use fleeting_plugin_vcd::host::proto::fleeting::HeartbeatRequest;
use fleeting_plugin_vcd::host::proto::go_plugin::ConnInfo;
use fleeting_plugin_vcd::host::proto::health::health_check_response::ServingStatus;
use hyper::http;
use rustix::process::Signal;
use smol::block_on;
use smol::future::poll_once;
use smol::process::{Command, Output};
use smol::stream;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tonic::Code;
use tonic::body::Body;

const BINARY: &str = env!("CARGO_BIN_EXE_fleeting-plugin-vcd");

/// A directory for one test, which is deleted at its end.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Directory {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("host-protocol-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Directory(path)
    }

    fn entries(&self) -> Vec<PathBuf> {
        fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().path()).collect()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn command_in(directory: &Directory) -> Command {
    let mut command = command(BINARY);
    command.env("PLUGIN_UNIX_SOCKET_DIR", &directory.0);
    command
}

/// The output of a plugin that ends by itself.
fn output(mut command: Command) -> (Output, String, String) {
    let output = block_on(soon("the plugin's end", command.output())).unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    (output, stdout, stderr)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

async fn is_serving(client: &Client) {
    assert_eq!(client.health("plugin").await.unwrap().status(), ServingStatus::Serving);
}

/// A raw connection whose reads and writes have a timeout.
fn raw(address: &Path) -> UnixStream {
    let stream = UnixStream::connect(address).unwrap();
    stream.set_read_timeout(Some(common::PATIENCE)).unwrap();
    stream.set_write_timeout(Some(common::PATIENCE)).unwrap();
    stream
}

#[test]
fn without_the_cookie_it_explains_that_it_is_a_plugin() {
    for cookie in [None, Some("")] {
        let mut command = command(BINARY);
        match cookie {
            None => command.env_remove("FLEETING_INSTANCE_GROUP_PLUGIN"),
            Some(cookie) => command.env("FLEETING_INSTANCE_GROUP_PLUGIN", cookie),
        };
        let (output, stdout, stderr) = output(command);
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(stdout, "");
        assert!(stderr.contains("This binary is a plugin."), "{stderr}");
    }
}

#[test]
fn auto_mtls_is_refused() {
    let mut command = command(BINARY);
    command.env("PLUGIN_CLIENT_CERT", "-----BEGIN CERTIFICATE-----");
    let (output, stdout, stderr) = output(command);
    assert_eq!((output.status.code(), stdout.as_str()), (Some(1), ""));
    assert!(stderr.contains("PLUGIN_CLIENT_CERT"), "{stderr}");
}

#[test]
fn the_command_line_shows_the_version_and_rejects_unknown_arguments() {
    for word in ["version", "-version", "--version"] {
        let mut command = command(BINARY);
        command.arg(word);
        let (output, stdout, _) = output(command);
        assert_eq!(output.status.code(), Some(0));
        let names: Vec<_> = stdout.lines().map(|line| line.split(':').next().unwrap()).collect();
        assert_eq!(names, ["Name", "Version", "Git revision", "Git ref", "Rust version", "Built", "OS/Arch"]);
        assert!(stdout.contains(fleeting_plugin_vcd::version::VERSION), "{stdout}");
    }
    let mut command = command(BINARY);
    command.arg("swerve");
    let (output, stdout, stderr) = output(command);
    assert_eq!((output.status.code(), stdout.as_str()), (Some(1), ""));
    assert!(stderr.contains("swerve"), "{stderr}");
}

#[test]
fn the_handshake_is_the_only_line_on_stdout() {
    block_on(async {
        for (multiplex, end) in [(None, "|grpc|"), (Some("true"), "|grpc||false")] {
            let mut command = command(BINARY);
            command.arg("serve");
            if let Some(multiplex) = multiplex {
                command.env("PLUGIN_MULTIPLEX_GRPC", multiplex);
            }
            let mut plugin = PluginProcess::start(command).await;
            let expected = format!("1|0|unix|{}{end}", plugin.address().display());
            assert_eq!(plugin.handshake, expected);
            is_serving(&plugin).await;
            plugin.quit().await.unwrap();
            let (status, rest) = plugin.exited().await;
            assert_eq!((status.code(), rest.as_str()), (Some(0), ""));
        }
    });
}

#[test]
fn the_socket_is_private() {
    block_on(async {
        let directory = Directory::new();
        let plugin = PluginProcess::start(command_in(&directory)).await;
        let socket = plugin.address();
        assert!(socket.starts_with(&directory.0), "{socket:?}");
        assert_eq!((mode(&socket), mode(socket.parent().unwrap())), (0o600, 0o700));
    });
}

#[test]
fn a_group_may_share_the_socket() {
    block_on(async {
        let directory = Directory::new();
        let group = fs::metadata(&directory.0).unwrap().gid();
        let names = fs::read_to_string("/etc/group").unwrap();
        let name = names.lines().map(|line| line.split(':').collect::<Vec<_>>());
        let name = name.filter(|fields| fields[2] == group.to_string()).map(|fields| fields[0].to_owned()).next();
        for group_text in [Some(group.to_string()), name].into_iter().flatten() {
            let mut command = command_in(&directory);
            command.env("PLUGIN_UNIX_SOCKET_GROUP", group_text);
            let plugin = PluginProcess::start(command).await;
            let socket = plugin.address();
            assert_eq!((mode(&socket), mode(socket.parent().unwrap())), (0o660, 0o710));
            assert_eq!(fs::metadata(&socket).unwrap().gid(), group);
            is_serving(&plugin).await;
        }
    });
}

#[test]
fn the_cause_of_a_missing_socket_is_reported_clearly() {
    let directory = Directory::new();
    let long = directory.0.join("x".repeat(100));
    fs::create_dir(&long).unwrap();
    let cases = [
        ("PLUGIN_UNIX_SOCKET_GROUP", "no-such-group", "no-such-group"),
        ("PLUGIN_UNIX_SOCKET_DIR", long.to_str().unwrap(), "107 bytes"),
        ("PLUGIN_UNIX_SOCKET_DIR", "/no/such/place", "/no/such/place"),
        ("PLUGIN_UNIX_SOCKET_DIR", "/tmp/a|b", "which the handshake does not allow"),
    ];
    for (variable, value, expected) in cases {
        let mut command = command_in(&directory);
        command.env(variable, value);
        let (output, stdout, stderr) = output(command);
        assert_eq!((output.status.code(), stdout.as_str()), (Some(1), ""), "{value}");
        let line: serde_json::Value = serde_json::from_str(stderr.trim()).unwrap();
        assert_eq!(line["@level"], "error");
        assert!(line["@message"].as_str().unwrap().contains(expected), "{stderr}");
    }
    assert_eq!(directory.entries(), [long.as_path()]);
    assert_eq!(fs::read_dir(long).unwrap().count(), 0);
}

#[test]
fn leftovers_of_dead_processes_are_removed() {
    block_on(async {
        let directory = Directory::new();
        // The process id of a process that has ended.
        let mut child = Command::new("true").spawn().unwrap();
        let dead = child.id();
        child.status().await.unwrap();
        let make = |name: String, socket: bool| {
            let path = directory.0.join(name);
            fs::create_dir(&path).unwrap();
            (socket.then(|| UnixListener::bind(path.join("socket")).unwrap()), path)
        };
        let (listener, stale) = make(format!("fleeting-plugin-vcd-{dead}-00000001"), true);
        drop(listener);
        let (_, empty) = make(format!("fleeting-plugin-vcd-{dead}-00000002"), false);
        // Its process id does not exist here, as with another container, but somebody listens.
        let (_listener, listening) = make(format!("fleeting-plugin-vcd-{dead}-00000003"), true);
        let (listener, alive) = make(format!("fleeting-plugin-vcd-{}-00000004", std::process::id()), true);
        drop(listener);
        let (_, full) = make(format!("fleeting-plugin-vcd-{dead}-00000005"), false);
        fs::write(full.join("other"), "").unwrap();
        let (_, other) = make("something-else".into(), false);

        let plugin = PluginProcess::start(command_in(&directory)).await;
        is_serving(&plugin).await;
        assert!(!stale.exists() && !empty.exists());
        assert!(listening.join("socket").exists() && alive.join("socket").exists());
        assert!(full.join("other").exists() && other.exists());
    });
}

#[test]
fn health_is_reported_and_watched() {
    block_on(async {
        let mut plugin = PluginProcess::start(command(BINARY)).await;
        for service in ["plugin", ""] {
            assert_eq!(plugin.health(service).await.unwrap().status(), ServingStatus::Serving);
        }
        assert_eq!(plugin.health("other").await.unwrap_err().code(), Code::NotFound);

        let mut known = plugin.watch_health("plugin").await.unwrap();
        assert_eq!(known.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
        let mut unknown = plugin.watch_health("other").await.unwrap();
        assert_eq!(unknown.message().await.unwrap().unwrap().status(), ServingStatus::ServiceUnknown);
        is_serving(&plugin).await;
        assert!(poll_once(known.message()).await.is_none(), "the watch stays open");
        plugin.quit().await.unwrap();
        assert!(soon("the watch's end", known.message()).await.unwrap().is_none());
        assert_eq!(plugin.exited().await.0.code(), Some(0));
    });
}

#[test]
fn calls_before_init_are_rejected() {
    block_on(async {
        let plugin = PluginProcess::start(command(BINARY)).await;
        let codes = [
            plugin.update().await.unwrap_err().code(),
            plugin.increase(1).await.unwrap_err().code(),
            plugin.decrease(&["a"]).await.unwrap_err().code(),
            plugin.connect_info("a").await.err().unwrap().code(),
            plugin.heartbeat("a").await.unwrap_err().code(),
            plugin.suspend(&["a"]).await.unwrap_err().code(),
            plugin.resume(&["a"]).await.unwrap_err().code(),
        ];
        assert_eq!(codes, [Code::FailedPrecondition; 7]);
    });
}

#[test]
fn unknown_methods_are_unimplemented() {
    block_on(async {
        let plugin = PluginProcess::start(command(BINARY)).await;
        for path in ["/proto.InstanceGroup/Explode", "/proto.Other/Init", "/", "/grpc.health.v1.Health/Check/"] {
            let answer: Result<(), _> = plugin.unary(path, ()).await;
            assert_eq!(answer.unwrap_err().code(), Code::Unimplemented, "{path}");
        }
        is_serving(&plugin).await;
    });
}

#[test]
fn stdio_and_broker_stay_open_and_silent() {
    block_on(async {
        let mut plugin = PluginProcess::start(command(BINARY)).await;
        let mut stdio = plugin.stdio().await.unwrap();
        let (sender, messages) = smol::channel::bounded(1);
        let mut broker = plugin.broker(messages).await.unwrap();
        let mut forever = plugin.broker(stream::pending()).await.unwrap();
        sender.send(ConnInfo { service_id: 1, ..ConnInfo::default() }).await.unwrap();
        is_serving(&plugin).await;
        assert!(poll_once(stdio.message()).await.is_none());
        assert!(poll_once(broker.message()).await.is_none());

        sender.close();
        assert_eq!(soon("the broker's end", broker.message()).await.unwrap(), None);
        assert!(poll_once(forever.message()).await.is_none());
        plugin.quit().await.unwrap();
        assert_eq!(soon("the end of stdio", stdio.message()).await.unwrap(), None);
        assert_eq!(soon("the end of the broker", forever.message()).await.unwrap(), None);
        assert_eq!(plugin.exited().await.0.code(), Some(0));
    });
}

#[test]
fn messages_have_a_size_limit() {
    block_on(async {
        let plugin = PluginProcess::start(command(BINARY)).await;
        // A tag and a length of four bytes precede the text.
        let fits = "x".repeat(MAX_MESSAGE - 5);
        assert_eq!(plugin.heartbeat(&fits).await.unwrap_err().code(), Code::FailedPrecondition);
        let status = plugin.heartbeat(&(fits + "x")).await.unwrap_err();
        assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
        is_serving(&plugin).await;
    });
}

#[test]
fn a_call_ends_at_its_deadline() {
    block_on(async {
        let plugin = PluginProcess::start(command(BINARY)).await;
        // The message never arrives, so only the deadline can end the call.
        let client = plugin.with_time_limit(Duration::from_millis(50));
        let path = "/proto.InstanceGroup/Heartbeat";
        let answer = client.streaming::<HeartbeatRequest, ()>(path, stream::pending()).await;
        assert_eq!(answer.unwrap_err().code(), Code::DeadlineExceeded);
        // A call within its deadline.
        is_serving(&plugin.with_time_limit(Duration::from_secs(3600))).await;
    });
}

#[test]
fn malformed_requests_are_answered() {
    block_on(async {
        let plugin = PluginProcess::start(command(BINARY)).await;
        let cases: [(&str, &[u8]); 6] = [
            ("an empty body", b""),
            ("half a prefix", b"\0\0"),
            ("a truncated message", b"\0\0\0\0\x09\x0a"),
            ("a compressed message", b"\x01\0\0\0\0"),
            ("an unknown flag", b"\x07\0\0\0\0"),
            ("no protobuf", b"\0\0\0\0\x04\xff\xff\xff\xff"),
        ];
        for (what, bytes) in cases {
            let request = http::Request::post("http://plugin/proto.InstanceGroup/Heartbeat");
            let request = request.header("content-type", "application/grpc").header("te", "trailers");
            let response = plugin.http(request.body(body(bytes)).unwrap()).await.unwrap();
            let status = response.headers().get("grpc-status").unwrap_or_else(|| panic!("{what}: {response:?}"));
            assert_ne!(status, "0", "{what}");
        }
        for value in ["soon", "1", "999999999S"] {
            let request = http::Request::post("http://plugin/proto.InstanceGroup/Update");
            let response = plugin.http(request.header("grpc-timeout", value).body(body(b"")).unwrap()).await.unwrap();
            let status = response.headers().get("grpc-status").unwrap();
            assert_eq!(status.to_str().unwrap(), (Code::InvalidArgument as i32).to_string(), "{value}");
        }
        is_serving(&plugin).await;
    });
}

fn body(bytes: &'static [u8]) -> Body {
    use tonic::codegen::Bytes;
    struct Whole(Option<Bytes>);
    impl hyper::body::Body for Whole {
        type Data = Bytes;
        type Error = std::convert::Infallible;

        fn poll_frame(
            mut self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, Self::Error>>> {
            std::task::Poll::Ready(self.0.take().map(|bytes| Ok(hyper::body::Frame::data(bytes))))
        }
    }
    Body::new(Whole(Some(Bytes::from_static(bytes))))
}

#[test]
fn garbage_ends_its_own_connection_only() {
    block_on(async {
        let plugin = PluginProcess::start(command(BINARY)).await;
        let address = plugin.address();
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice();
        let settings = b"\0\0\0\x04\0\0\0\0\0".as_slice();
        let mut inputs = vec![
            b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
            preface[..10].to_vec(),
            // HEADERS with an invalid header block; DATA on a stream that is not open; a frame above the size limit.
            [preface, settings, b"\0\0\x04\x01\x05\0\0\0\x01\xff\xff\xff\xff"].concat(),
            [preface, settings, b"\0\0\x01\0\0\0\0\0\x07x"].concat(),
            [preface, settings, b"\xff\xff\xff\0\0\0\0\0\x01"].concat(),
        ];
        // Noise: xorshift, the same in every run.
        let mut state = 0x2545_F491_4F6C_DD1D_u64;
        for round in 0..40 {
            let mut noise = if round % 2 == 0 { Vec::new() } else { [preface, settings].concat() };
            for _ in 0..64 * round {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                noise.push(state.to_le_bytes()[0]);
            }
            inputs.push(noise);
        }
        for input in inputs {
            let mut stream = raw(&address);
            // The plugin may close the connection in the middle.
            let _ = stream.write_all(&input);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            smol::unblock(move || {
                let mut rest = Vec::new();
                match stream.read_to_end(&mut rest) {
                    Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => {
                        panic!("the connection stays open: {error}")
                    }
                    _ => {}
                }
            })
            .await;
        }
        is_serving(&plugin).await;
    });
}

#[test]
fn connections_above_the_limit_wait() {
    block_on(async {
        let plugin = PluginProcess::start(command(BINARY)).await;
        let mut clients = Vec::new();
        for _ in 1..8 {
            let client = Client::connect(&plugin.address()).await;
            is_serving(&client).await;
            clients.push(client);
        }
        let late = Client::connect(&plugin.address()).await;
        let mut call = Box::pin(late.health("plugin"));
        assert!(poll_once(&mut call).await.is_none());
        // Enough calls for an answer to arrive on the other connection.
        for _ in 0..200 {
            is_serving(&plugin).await;
        }
        assert!(poll_once(&mut call).await.is_none(), "one connection above the limit is served");
        drop(clients.pop());
        assert_eq!(call.await.unwrap().status(), ServingStatus::Serving);
    });
}

#[test]
fn cancelled_calls_make_room_for_others() {
    block_on(async {
        let plugin = PluginProcess::start(command(BINARY)).await;
        is_serving(&plugin).await;
        let mut streams = Vec::new();
        for _ in 0..128 {
            streams.push(plugin.stdio().await.unwrap());
        }
        let mut call = Box::pin(plugin.health("plugin"));
        assert!(poll_once(&mut call).await.is_none());
        // Meanwhile, calls on another connection are answered, but not on this one.
        is_serving(&Client::connect(&plugin.address()).await).await;
        assert!(poll_once(&mut call).await.is_none(), "one call above the limit is served");
        drop(streams);
        assert_eq!(call.await.unwrap().status(), ServingStatus::Serving);
    });
}

#[test]
fn headers_have_a_size_limit() {
    block_on(async {
        let plugin = PluginProcess::start(command(BINARY)).await;
        for (length, answered) in [(15_000, true), (17_000, false)] {
            let request = http::Request::post("http://plugin/proto.InstanceGroup/Update");
            let request = request.header("x-long", "x".repeat(length)).body(body(b"")).unwrap();
            let response = plugin.http(request).await.unwrap();
            let too_large = http::StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
            assert_eq!(response.status() != too_large, answered, "{response:?}");
        }
        is_serving(&plugin).await;
    });
}

#[test]
fn without_file_descriptors_a_connection_waits() {
    use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
    block_on(async {
        let plugin = PluginProcess::start(command(BINARY)).await;
        is_serving(&plugin).await;
        let process = Pid::from_raw(plugin.child.id().try_into().unwrap());
        let hard = getrlimit(Resource::Nofile).maximum;
        let none = Rlimit { current: Some(1), maximum: hard };
        let before = prlimit(process, Resource::Nofile, none).unwrap();
        let client = Client::connect(&plugin.address()).await;
        let warnings = || plugin.log().iter().filter(|line| line.contains("cannot accept a connection")).count();
        until("a second try", || warnings() > 1).await;
        is_serving(&plugin).await;
        prlimit(process, Resource::Nofile, before).unwrap();
        is_serving(&client).await;
        assert!(warnings() < 100, "it tries without a pause: {} times", warnings());
    });
}

#[test]
fn after_the_hosts_last_call_the_process_and_its_socket_are_gone() {
    block_on(async {
        let directory = Directory::new();
        let mut plugin = PluginProcess::start(command_in(&directory)).await;
        let _stdio = plugin.stdio().await.unwrap();
        let _broker = plugin.broker(stream::pending()).await.unwrap();
        // A silent connection does not delay the end.
        let _silent = raw(&plugin.address());
        plugin.quit().await.unwrap();
        assert_eq!(plugin.exited().await.0.code(), Some(0));
        assert_eq!(directory.entries(), [] as [PathBuf; 0]);
    });
}

#[test]
fn it_ends_when_the_host_dies() {
    block_on(async {
        let directory = Directory::new();
        // With and without an open connection: a stopped copy of the host may have one.
        for connected in [true, false] {
            let mut plugin = PluginProcess::start(command_in(&directory)).await;
            is_serving(&plugin).await;
            if !connected {
                plugin.client = None;
            }
            plugin.close_stderr().await;
            plugin.stdout = None;
            assert_eq!(plugin.exited().await.0.code(), Some(0));
            assert_eq!(directory.entries(), [] as [PathBuf; 0]);
        }
    });
}

#[test]
fn without_a_pipe_it_ends_when_its_parent_dies() {
    block_on(async {
        let directory = Directory::new();
        let line = directory.0.join("line");
        let mut command = command_in(&directory);
        let script = format!("'{BINARY}' >'{}' & read end", line.display());
        let mut shell = Command::new("sh");
        shell.args(["-c", &script]).stdin(Stdio::piped()).stderr(Stdio::null());
        command.stdout(Stdio::null());
        for (name, value) in [
            (fleeting_plugin_vcd::host::COOKIE_VARIABLE, fleeting_plugin_vcd::host::COOKIE),
            ("PLUGIN_UNIX_SOCKET_DIR", directory.0.to_str().unwrap()),
        ] {
            shell.env(name, value);
        }
        let mut shell = shell.spawn().unwrap();
        let handshake = || fs::read_to_string(&line).unwrap_or_default();
        until("the handshake", || handshake().ends_with('\n')).await;
        let client = Client::connect(&address_of(&handshake())).await;
        is_serving(&client).await;

        // The parent is gone, but a connection is open: the plugin serves it for longer than its check for the parent
        // takes.
        drop(shell.stdin.take());
        shell.status().await.unwrap();
        let parted = Instant::now();
        while parted.elapsed() < Duration::from_millis(1500) {
            is_serving(&client).await;
        }
        drop(client);
        until("the end of the socket", || directory.entries() == [line.as_path()]).await;
    });
}

#[test]
fn signals_other_than_sigterm_are_ignored() {
    block_on(async {
        let mut plugin = PluginProcess::start(command(BINARY)).await;
        for (signal, name) in [(Signal::INT, "Int"), (Signal::QUIT, "Quit"), (Signal::HUP, "Hup")] {
            plugin.signal(signal);
            plugin.logged(&format!("{name}: ignored")).await;
            is_serving(&plugin).await;
        }
        plugin.quit().await.unwrap();
        assert_eq!(plugin.exited().await.0.code(), Some(0));
    });
}

#[test]
fn sigterm_without_a_connection_ends_it() {
    block_on(async {
        let directory = Directory::new();
        let mut plugin = PluginProcess::start(command_in(&directory)).await;
        is_serving(&plugin).await;
        disconnect(&mut plugin).await;
        plugin.signal(Signal::TERM);
        assert_eq!(plugin.exited().await.0.code(), Some(0));
        assert_eq!(directory.entries(), [] as [PathBuf; 0]);
    });
}

#[test]
fn after_sigterm_a_connected_host_is_served_until_it_leaves() {
    block_on(async {
        for quit in [true, false] {
            let directory = Directory::new();
            let mut plugin = PluginProcess::start(command_in(&directory)).await;
            is_serving(&plugin).await;
            plugin.signal(Signal::TERM);
            plugin.logged("SIGTERM: the plugin serves").await;
            is_serving(&plugin).await;
            assert!(plugin.child.try_status().unwrap().is_none());
            if quit {
                plugin.quit().await.unwrap();
            } else {
                disconnect(&mut plugin).await;
            }
            assert_eq!(plugin.exited().await.0.code(), Some(0));
            assert_eq!(directory.entries(), [] as [PathBuf; 0]);
        }
    });
}

/// Closes the plugin's only connection, and waits until the plugin notices.
async fn disconnect(plugin: &mut PluginProcess) {
    plugin.client = None;
    plugin.logged("connection of GitLab Runner has ended").await;
}

#[test]
fn every_log_line_has_hclogs_format() {
    block_on(async {
        let mut plugin = PluginProcess::start(command(BINARY)).await;
        plugin.unary::<(), ()>("/proto.InstanceGroup/%22", ()).await.unwrap_err();
        plugin.health(&"x".repeat(100_000)).await.unwrap_err();
        plugin.quit().await.unwrap();
        plugin.exited().await;
        let lines = plugin.log();
        assert!(lines.len() > 2, "{lines:?}");
        for line in lines {
            let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&line).unwrap();
            let text = |key: &str| object[key].as_str().unwrap_or_else(|| panic!("{key} in {line}")).to_owned();
            assert!(["debug", "info"].contains(&text("@level").as_str()), "{line}");
            assert!(!text("@message").is_empty());
            let shape: String = text("@timestamp").chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
            assert_eq!(shape, "0000-00-00T00:00:00.000000Z");
        }
    });
}

#[test]
fn the_log_level_can_be_set() {
    block_on(async {
        let mut command = command(BINARY);
        command.env("VCD_LOG", "warn");
        let mut plugin = PluginProcess::start(command).await;
        is_serving(&plugin).await;
        plugin.quit().await.unwrap();
        plugin.exited().await;
        assert_eq!(plugin.log(), [] as [&str; 0]);
    });
}
