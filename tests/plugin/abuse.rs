//! Attacks: by another user of the machine, another process of the same user, a web page in a browser, clients of the
//! debug server that keep connections open or split requests, and a VCD (or a proxy in front of it) with false
//! answers.
#![cfg(target_os = "linux")]

use crate::common::{PluginProcess, command, soon, until};
use crate::live::{BINARY, SCALE, end, reach, start};
use crate::relay::{Answer, Relay, Request, Watch};
use crate::{common, fleet, relay};
use fleeting_plugin_vcd::debug::{HEADER_TIMEOUT, MAX_CONNECTIONS};
use fleeting_plugin_vcd::host::proto::fleeting::State;
use rustix::fs::{Gid, Uid};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use serde_json::json;
use smol::process::unix::CommandExt as _;
use smol::{Timer, block_on};
use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use vcd_sim::Server;
use vcd_sim::faults::Rule;
use vcd_sim::model::{Create, Item, Model, VappId};

/// The user that runs the plugin, and another user. Neither needs an account.
const USER: u32 = 54_321;
const OTHER: u32 = 54_322;

/// A directory that everybody may enter. It is deleted at the end.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Directory {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("vcd-abuse-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        set_mode(&path, 0o755);
        Directory(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

/// True if this test can become other users. Else it prints that the test is skipped.
fn is_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("{test}: skipped: only root can act as another user");
    }
    root
}

/// Runs `act` on a thread with this user's id, without groups or privileges of this process.
fn as_user<T: Send + 'static>(user: u32, act: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::spawn(move || {
        set_thread_groups(&[]).unwrap();
        let (user, group) = (Uid::from_raw(user), Gid::from_raw(user));
        set_thread_res_gid(group, group, group).unwrap();
        set_thread_res_uid(user, user, user).unwrap();
        act()
    });
    thread.join().unwrap()
}

/// A plugin of [`USER`] after Init, with the address of its debug server.
async fn start_as_user(directory: &Directory, server: &Server, guest_port: u16) -> (PluginProcess, String) {
    let binary = directory.0.join("plugin");
    common::install(&fs::read(BINARY).unwrap(), &binary);
    let sockets = directory.0.join("sockets");
    fs::create_dir(&sockets).unwrap();
    std::os::unix::fs::chown(&sockets, Some(USER), Some(USER)).unwrap();
    let mut command = command("sh");
    command.args(["-c", &format!("{CORES_ALLOWED}; exec '{}'", binary.display())]);
    command.uid(USER).gid(USER).current_dir(&sockets);
    command.env("PLUGIN_UNIX_SOCKET_DIR", &sockets).env("VCD_TOKEN", "sim-api-token");
    let debug = format!("127.0.0.1:{}", fleet::free_port());
    let mut config = fleet::plugin_config(server);
    config.as_object_mut().unwrap().remove("token");
    config["debug_server_addr"] = debug.as_str().into();
    let plugin = PluginProcess::start(command).await;
    plugin.init(config.to_string().as_bytes(), fleet::connector(guest_port)).await.unwrap();
    until("the debug server", || TcpStream::connect(&debug).is_ok()).await;
    (plugin, debug)
}

/// All ways to read the secrets of another process, each with its result.
fn attempts(process: u32, socket: &Path) -> Vec<(String, Result<(), ErrorKind>)> {
    let place = format!("/proc/{process}");
    let mut all = Vec::new();
    let mut tried = |what: &str, result: std::io::Result<()>| all.push((what.to_owned(), result.map_err(|e| e.kind())));
    for file in ["environ", "mem", "maps", "smaps", "auxv", "syscall"] {
        tried(file, fs::File::open(format!("{place}/{file}")).and_then(|mut file| file.read(&mut [0]).map(drop)));
    }
    for link in ["exe", "cwd", "root"] {
        tried(link, fs::read_link(format!("{place}/{link}")).map(drop));
    }
    tried("fd", fs::read_dir(format!("{place}/fd")).map(drop));
    tried("connect", UnixStream::connect(socket).map(drop));
    tried("list", fs::read_dir(socket.parent().unwrap()).map(drop));
    let id = Pid::from_raw(process.try_into().unwrap()).unwrap();
    tried("kill", test_kill_process(id).map_err(Into::into));
    all
}

#[test]
fn another_user_has_no_access() {
    if !is_root("another_user_has_no_access") {
        return;
    }
    block_on(async {
        let directory = Directory::new();
        let (server, guest_port) = fleet::simulator(SCALE);
        let (plugin, _) = start_as_user(&directory, &server, guest_port).await;
        // The same for a plugin of root, the usual case.
        let roots = Directory::new();
        let mut command = command(BINARY);
        command.env("PLUGIN_UNIX_SOCKET_DIR", &roots.0).env("VCD_TOKEN", "sim-api-token");
        let root = PluginProcess::start(command).await;
        for plugin in [&plugin, &root] {
            let (process, socket) = (plugin.child.id(), plugin.address());
            for (what, result) in as_user(OTHER, move || attempts(process, &socket)) {
                assert_eq!(result, Err(ErrorKind::PermissionDenied), "{what}");
            }
            // Files that everybody can read contain no secret.
            for file in ["cmdline", "status", "stat", "comm"] {
                let path = format!("/proc/{process}/{file}");
                let text = as_user(OTHER, move || String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned());
                assert!(!text.is_empty() && !text.contains("sim-api-token"), "{file}: {text}");
            }
        }
        drop(root);
        end(plugin).await;
    });
}

#[test]
fn other_processes_of_the_same_user_read_no_memory_and_no_environment() {
    if !is_root("other_processes_of_the_same_user_read_no_memory_and_no_environment") {
        return;
    }
    block_on(async {
        let directory = Directory::new();
        let (server, guest_port) = fleet::simulator(SCALE);
        let (plugin, debug) = start_as_user(&directory, &server, guest_port).await;
        let (process, socket) = (plugin.child.id(), plugin.address());
        for (what, result) in as_user(USER, move || attempts(process, &socket)) {
            // GitLab Runner has the same user: it may connect and send signals.
            let may = ["connect", "list", "kill"].contains(&what.as_str());
            assert_eq!(result, if may { Ok(()) } else { Err(ErrorKind::PermissionDenied) }, "{what}");
        }
        // The plugin can still read its own figures.
        let page = get(&debug, "/metrics").1;
        for name in ["process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds"] {
            let line = page.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}: {page}"));
            assert!(line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() > 0.0, "{line}");
        }
        assert!(get(&debug, "/").1.contains(" threads"), "memory, CPU and threads on the page");
        end(plugin).await;
    });
}

#[test]
fn a_crash_leaves_no_core() {
    if !is_root("a_crash_leaves_no_core") {
        return;
    }
    block_on(async {
        let directory = Directory::new();
        let (server, guest_port) = fleet::simulator(SCALE);
        let (mut plugin, _) = start_as_user(&directory, &server, guest_port).await;
        // A crash of `sleep` in the same directory shows whether this machine writes cores at all.
        let cores = directory.0.join("sockets");
        let mut sleep = smol::process::Command::new("sh");
        sleep.args(["-c", &format!("{CORES_ALLOWED}; exec sleep 1000")]).uid(USER).gid(USER).current_dir(&cores);
        let mut sleep = sleep.spawn().unwrap();
        let is_sleep = |id| fs::read_to_string(format!("/proc/{id}/comm")).is_ok_and(|name| name.trim() == "sleep");
        let id = sleep.id();
        until("sleep", || is_sleep(id)).await;
        let mut ends = Vec::new();
        for child in [&mut sleep, &mut plugin.child] {
            let id = Pid::from_raw(child.id().try_into().unwrap()).unwrap();
            kill_process(id, Signal::ABORT).unwrap();
            ends.push(soon("its end", child.status()).await.unwrap());
        }
        assert_eq!(ends[1].signal(), Some(Signal::ABORT.as_raw()));
        assert!(!ends[1].core_dumped(), "the plugin wrote a core");
        if !ends[0].core_dumped() {
            eprintln!("a_crash_leaves_no_core: this machine writes no cores for any process");
        }
    });
}

/// In a shell: cores as large as this machine allows.
const CORES_ALLOWED: &str = "ulimit -S -c \"$(ulimit -H -c)\"";

// The directory of the socket.

/// The entries of a directory while a plugin runs there, without the plugin's own directory.
async fn left_beside_a_plugin(directory: &Path) -> Vec<String> {
    let mut command = command(BINARY);
    command.env("PLUGIN_UNIX_SOCKET_DIR", directory);
    let mut plugin = PluginProcess::start(command).await;
    plugin.health("plugin").await.unwrap();
    let own = plugin.address().parent().unwrap().to_owned();
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).filter(|path| *path != own);
    let mut names: Vec<String> = entries.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    names.sort();
    // A plugin that ends deletes its directory. A killed one leaves it, and the next plugin could find it still
    // running.
    plugin.quit().await.unwrap();
    plugin.exited().await;
    names
}

/// The process id of a process that has ended.
fn dead() -> u32 {
    let mut child = std::process::Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    child.id()
}

#[test]
fn files_that_only_look_like_leftovers_stay() {
    block_on(async {
        let (directory, precious) = (Directory::new(), Directory::new());
        drop(UnixListener::bind(precious.0.join("socket")).unwrap());
        let link = format!("fleeting-plugin-vcd-{}-00000001", dead());
        symlink(&precious.0, directory.0.join(&link)).unwrap();
        let file = format!("fleeting-plugin-vcd-{}-00000002", dead());
        fs::write(directory.0.join(&file), "").unwrap();
        let mut expected = vec![link, file];
        if is_root("files_that_only_look_like_leftovers_stay (in part)") {
            let others = format!("fleeting-plugin-vcd-{}-00000003", dead());
            fs::create_dir(directory.0.join(&others)).unwrap();
            std::os::unix::fs::chown(directory.0.join(&others), Some(OTHER), None).unwrap();
            expected.push(others);
        }
        expected.sort();
        assert_eq!(left_beside_a_plugin(&directory.0).await, expected);
        assert!(precious.0.join("socket").exists());
        // If the socket in an owned leftover is a link, only the link is deleted, not its target.
        let own = directory.0.join(format!("fleeting-plugin-vcd-{}-00000004", dead()));
        fs::create_dir(&own).unwrap();
        symlink(precious.0.join("socket"), own.join("socket")).unwrap();
        assert_eq!(left_beside_a_plugin(&directory.0).await, expected);
        assert!(precious.0.join("socket").exists());
    });
}

#[test]
fn a_folder_that_others_can_write_to_causes_a_warning() {
    block_on(async {
        let directory = Directory::new();
        let mut cases = vec![(0o777, None, true), (0o1777, None, false), (0o755, None, false)];
        if is_root("a_folder_that_others_can_write_to_causes_a_warning (in part)") {
            cases.push((0o755, Some(OTHER), true));
        }
        for (bits, owner, warned) in cases {
            // The socket is in a subdirectory.
            let place = directory.0.join("place");
            fs::create_dir(&place).unwrap();
            let below = place.join("below");
            fs::create_dir(&below).unwrap();
            std::os::unix::fs::chown(&place, owner, None).unwrap();
            set_mode(&place, bits);
            let mut command = command(BINARY);
            command.env("PLUGIN_UNIX_SOCKET_DIR", &below);
            let mut plugin = PluginProcess::start(command).await;
            plugin.quit().await.unwrap();
            plugin.exited().await;
            let log = plugin.log();
            let text = format!("other users may write to {}, ", place.display());
            assert_eq!(log.iter().any(|line| line.contains(&text)), warned, "{bits:o} {owner:?} {log:#?}");
            fs::remove_dir_all(&place).unwrap();
        }
    });
}

#[test]
fn sockets_are_private_whatever_the_umask() {
    block_on(async {
        for group in [None, Some(fs::metadata("/proc/self").unwrap().gid())] {
            let directory = Directory::new();
            let mut command = smol::process::Command::new("sh");
            command.args(["-c", &format!("umask 0; exec '{BINARY}'")]);
            command.env("PLUGIN_UNIX_SOCKET_DIR", &directory.0);
            for (name, value) in common::command(BINARY).get_envs() {
                command.env(name, value.unwrap());
            }
            if let Some(group) = group {
                command.env("PLUGIN_UNIX_SOCKET_GROUP", group.to_string());
            }
            command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::piped());
            command.stderr(std::process::Stdio::piped()).kill_on_drop(true);
            let plugin = PluginProcess::start(command).await;
            let socket = plugin.address();
            let modes = (mode(&socket), mode(socket.parent().unwrap()));
            assert_eq!(modes, if group.is_some() { (0o660, 0o710) } else { (0o600, 0o700) });
            // Files that the plugin creates later have the modes of the umask.
            let status = fs::read_to_string(format!("/proc/{}/status", plugin.child.id())).unwrap();
            assert!(status.contains("Umask:\t0000"), "{status}");
        }
    });
}

// The debug server.

fn connect(debug: &str) -> TcpStream {
    let stream = TcpStream::connect(debug).unwrap();
    stream.set_read_timeout(Some(common::PATIENCE)).unwrap();
    stream
}

/// Sends these bytes and reads until the server closes the connection.
fn send(debug: &str, bytes: &[u8]) -> String {
    let mut stream = connect(debug);
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    // The connection is reset if the server has not read everything.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn get(debug: &str, path: &str) -> (u16, String) {
    let answer = send(debug, format!("GET {path} HTTP/1.1\r\nHost: {debug}\r\nConnection: close\r\n\r\n").as_bytes());
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

async fn start_debug(server: &Server, guest_port: u16) -> (PluginProcess, String) {
    let debug = format!("127.0.0.1:{}", fleet::free_port());
    let plugin = start(server, guest_port, json!({ "debug_server_addr": debug })).await;
    until("the debug server", || TcpStream::connect(&debug).is_ok()).await;
    (plugin, debug)
}

#[test]
fn open_connections_to_the_debug_server_block_nobody() {
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        let (plugin, debug) = start_debug(&server, guest_port).await;
        let process = plugin.child.id();
        let files = move || fs::read_dir(format!("/proc/{process}/fd")).unwrap().count();
        let before = files();
        // Some clients send nothing, some a byte now and then, some half a head, some wait after an answer.
        let mut held = Vec::new();
        for n in 0..4 * MAX_CONNECTIONS {
            let mut stream = connect(&debug);
            let _ = match n % 4 {
                0 => Ok(()),
                1 => stream.write_all(b"G"),
                2 => stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-A: b"),
                _ => stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"),
            };
            held.push(stream);
        }
        let began = Instant::now();
        while began.elapsed() < HEADER_TIMEOUT * 2 {
            // Meanwhile, other requests are answered, and so are GitLab Runner's calls.
            let debug = debug.clone();
            let (status, body) = smol::unblock(move || get(&debug, "/healthz")).await;
            assert_eq!((status, body.as_str()), (200, "ok\n"));
            assert_eq!(plugin.update().await.unwrap(), []);
            assert!(files() <= before + MAX_CONNECTIONS + 1, "{} descriptors, {before} before", files());
            for stream in held.iter_mut().skip(1).step_by(4) {
                let _ = stream.write_all(b"E");
            }
            Timer::after(Duration::from_millis(100)).await;
        }
        // All of these connections are closed, although the clients continue.
        until("the end of the idle connections", || files() <= before).await;
        end(plugin).await;
    });
}

#[test]
fn concurrent_readers_are_served_up_to_the_limit() {
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        let (plugin, debug) = start_debug(&server, guest_port).await;
        // The connections of the check above are closed by then.
        assert_eq!(get(&debug, "/healthz").0, 200);
        let mut streams: Vec<TcpStream> = (0..MAX_CONNECTIONS).map(|_| connect(&debug)).collect();
        for stream in &mut streams {
            stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        }
        for stream in &mut streams {
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
        end(plugin).await;
    });
}

/// Requests that two servers could split at different points. The second part is never answered as a request.
#[test]
fn no_request_is_smuggled_in_another() {
    const SECOND: &str = "GET /api/status HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let length = SECOND.len();
    let cases = [
        (
            "a length and chunks",
            format!("Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{SECOND}"),
        ),
        ("chunks and a length", format!("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{SECOND}")),
        ("two lengths", format!("Content-Length: 0\r\nContent-Length: {length}\r\n\r\n{SECOND}")),
        ("two lengths in one", format!("Content-Length: 0, {length}\r\n\r\n{SECOND}")),
        ("a length with a sign", format!("Content-Length: +{length}\r\n\r\n{SECOND}")),
        ("a body", format!("Content-Length: {length}\r\n\r\n{SECOND}")),
        ("half a body", format!("Content-Length: {}\r\n\r\n{SECOND}", length + 1)),
        ("chunks spelt oddly", format!("Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{SECOND}")),
        ("chunks twice", format!("Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n{SECOND}")),
        ("chunks, then something", format!("Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{SECOND}")),
        ("a folded line", format!("X-A: b\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{SECOND}")),
        ("a space before the colon", format!("Content-Length : {length}\r\n\r\n{SECOND}")),
        ("a chunk that is too long", format!("Transfer-Encoding: chunked\r\n\r\nffffffffffffffff1\r\n{SECOND}")),
        ("a carriage return in a header", format!("X-A: b\rContent-Length: {length}\r\n\r\n{SECOND}")),
        ("a zero in a header", format!("X-A: \0\r\n\r\n{SECOND}")),
        (
            "another protocol",
            format!("Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nContent-Length: {length}\r\n\r\n{SECOND}"),
        ),
        ("an expectation", format!("Expect: 100-continue\r\nContent-Length: {length}\r\n\r\n{SECOND}")),
    ];
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        let (plugin, debug) = start_debug(&server, guest_port).await;
        for method in ["GET", "POST", "HEAD"] {
            for (what, rest) in &cases {
                let answer =
                    send(&debug, format!("{method} /healthz HTTP/1.1\r\nHost: localhost\r\n{rest}").as_bytes());
                let finals = answer.matches("HTTP/1.1 ").count() - answer.matches("HTTP/1.1 100").count();
                assert!(finals <= 1 && !answer.contains("application/json"), "{method}, {what}: {answer}");
                assert!(!answer.contains("HTTP/1.1 200"), "{method}, {what}: {answer}");
            }
        }
        // Requests that are invalid or too large.
        let long = "x".repeat(1 << 20);
        let many: String = (0..10_000).map(|n| format!("X-{n}: 1\r\n")).collect();
        for bytes in [
            format!("GET /{long} HTTP/1.1\r\nHost: localhost\r\n\r\n"),
            format!("GET / HTTP/1.1\r\nHost: localhost\r\nX-A: {long}\r\n\r\n"),
            format!("GET / HTTP/1.1\r\nHost: localhost\r\n{many}\r\n"),
            format!("{long} / HTTP/1.1\r\n\r\n"),
            "GET / HTTP/3.0\r\n\r\n".into(),
            "\x16\x03\x01\x02\0\x01\0\x01".into(),
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(),
            "CONNECT example.com:443 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".into(),
            "OPTIONS * HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".into(),
            "DELETE /instances/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".into(),
            "TRACE / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".into(),
        ] {
            let answer = send(&debug, bytes.as_bytes());
            assert!(!answer.contains("HTTP/1.1 200"), "{}: {answer}", &bytes[..bytes.len().min(60)]);
        }
        // Complete requests on one connection are answered one after another.
        let one = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n";
        let two = format!("{one}\r\n{one}Connection: close\r\n\r\n");
        assert_eq!(send(&debug, two.as_bytes()).matches("HTTP/1.1 200 OK").count(), 2);
        assert_eq!(get(&debug, "/healthz").0, 200);
        assert_eq!(plugin.update().await.unwrap(), []);
        end(plugin).await;
    });
}

#[test]
fn the_debug_server_rejects_the_host_names_of_web_pages() {
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        let debug = format!("localhost:{}", fleet::free_port());
        let plugin = start(&server, guest_port, json!({ "debug_server_addr": debug })).await;
        until("the debug server", || TcpStream::connect(&debug).is_ok()).await;
        let port = debug.rsplit(':').next().unwrap();
        let status = |host: &str| {
            let answer = send(&debug, format!("GET / HTTP/1.1\r\n{host}Connection: close\r\n\r\n").as_bytes());
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            (head.split(' ').nth(1).unwrap().parse::<u16>().unwrap(), body.contains("ci-linux"))
        };
        for own in ["localhost", "LOCALHOST", "127.0.0.1", "[::1]", "10.1.2.3"] {
            assert_eq!(status(&format!("Host: {own}:{port}\r\n")), (200, true), "{own}");
        }
        assert_eq!(status(""), (200, true), "no browser sends no Host");
        for other in ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "x@localhost:1:2", ""] {
            assert_eq!(status(&format!("Host: {other}:{port}\r\n")), (421, false), "{other}");
        }
        assert!(!status(&format!("Host: localhost\r\nHost: evil.example:{port}\r\n")).1, "two hosts");
        end(plugin).await;

        // A server that listens on all addresses accepts many host names.
        let debug = format!("0.0.0.0:{}", fleet::free_port());
        let plugin = start(&server, guest_port, json!({ "debug_server_addr": debug })).await;
        until("the debug server", || TcpStream::connect(&debug).is_ok()).await;
        let answer = send(&debug, b"GET /healthz HTTP/1.1\r\nHost: runner.example\r\nConnection: close\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        end(plugin).await;
    });
}

// A VCD with false answers.

type Lie = dyn Fn(&Request, Answer) -> Answer + Send + Sync;

/// Changes answers, and records requests.
struct Liar {
    lie: Box<Lie>,
    /// The requests that change something, and the requests with a session.
    changes: Mutex<Vec<String>>,
}

impl Liar {
    fn new(lie: impl Fn(&Request, Answer) -> Answer + Send + Sync + 'static) -> Arc<Liar> {
        Arc::new(Liar { lie: Box::new(lie), changes: Mutex::default() })
    }

    fn changes(&self) -> Vec<String> {
        self.changes.lock().unwrap().clone()
    }
}

impl Watch for Liar {
    fn before(&self, request: &mut Request) -> bool {
        if request.changes() {
            self.changes.lock().unwrap().push(format!("{} {}", request.method, request.path));
        }
        true
    }

    fn after(&self, request: &Request, answer: Answer) -> Option<Answer> {
        Some((self.lie)(request, answer))
    }
}

const FOREIGN: &str = "ci-foreign1";

/// A running foreign vApp whose name matches the group's prefix.
async fn foreign(server: &Server) -> VappId {
    let id = server.with_model(|model| {
        let (vdc, network) = (*model.vdcs.keys().next().unwrap(), *model.networks.keys().next().unwrap());
        let template = *model.templates.iter().find(|(_, template)| &*template.name == "ubuntu-22.04").unwrap().0;
        model.admin_foreign_vm(vdc, FOREIGN, &tag("runner-2", FOREIGN), template, network).unwrap()
    });
    let is_on = |model: &mut Model| {
        let vm = model.vms.get_mut(model.vapps[&id].vms.first()?)?;
        vm.gc = vcd_sim::model::GcStatus::Complete;
        (vm.address().is_some() && vm.power == vcd_sim::model::Power::On).then_some(())
    };
    until("the foreign vApp", || server.with_model(is_on).is_some()).await;
    id
}

fn tag(manager: &str, name: &str) -> String {
    format!("fleeting-plugin-vcd/1 manager={manager} group=ci-linux id={name}")
}

/// What must not change.
fn face(model: &Model, id: VappId) -> String {
    let vapp = &model.vapps[&id];
    let vms: Vec<_> = vapp.vms.iter().map(|vm| (model.vms[vm].name.clone(), model.vms[vm].power)).collect();
    format!("{} {} {:?} {:?} {vms:?}", vapp.name, vapp.description, vapp.metadata, vapp.last_task)
}

/// The link to a vApp, as the plugin sees it, and the id in the link.
fn vapp_id(server: &Server, id: VappId) -> String {
    format!("vapp-{}", server.with_model(|model| model.uuid(id)))
}

/// A plugin that reaches VCD through `liar`.
async fn deceived(server: &Server, guest_port: u16, liar: &Arc<Liar>) -> (PluginProcess, Relay) {
    let relay = Relay::start(&server.url(), liar.clone());
    let keys = json!({ "url": format!("{}/api", relay.url()), "reconcile_interval": "1s" });
    (start(server, guest_port, keys).await, relay)
}

/// Only reads have reached this vApp.
fn assert_untouched(liar: &Liar, server: &Server, id: VappId, before: &str) {
    let (uuid, after) = server.with_model(|model| (model.uuid(id), face(model, id)));
    assert_eq!(after, before);
    let vm = server.with_model(|model| model.uuid(model.vapps[&id].vms[0]));
    let changes = liar.changes();
    assert!(!changes.iter().any(|change| change.contains(&uuid) || change.contains(&vm)), "{changes:#?}");
}

#[test]
fn a_foreign_vapp_with_a_wrong_record_is_not_touched() {
    block_on(async {
        for redirected in [false, true] {
            let (server, guest_port) = fleet::simulator(SCALE);
            let id = foreign(&server).await;
            let before = server.with_model(|model| face(model, id));
            let theirs = vapp_id(&server, id);
            let (ours, place) = (Arc::new(Mutex::new(String::new())), theirs.clone());
            let copy = ours.clone();
            let liar = Liar::new(move |request, mut answer| {
                if request.path.contains("type=vm&") {
                    answer.body = answer.body.replace("manager=runner-2", "manager=runner-1");
                }
                // Its own document is not shown. Its link leads to the document of an owned vApp.
                let ours = copy.lock().unwrap().clone();
                if request.path.ends_with(&place) && !ours.is_empty() {
                    answer.status = 302;
                    answer.headers.push(format!("Location: /api/vApp/{ours}"));
                }
                answer
            });
            let (plugin, _relay) = deceived(&server, guest_port, &liar).await;
            assert_eq!(reach(&plugin, 1, State::Running).await, [FOREIGN], "the false record was believed");
            if redirected {
                plugin.increase(1).await.unwrap();
                reach(&plugin, 2, State::Running).await;
                let id = server.with_model(|model| *model.vapps.keys().find(|one| **one != id).unwrap());
                *ours.lock().unwrap() = vapp_id(&server, id);
            }
            plugin.suspend(&[FOREIGN]).await.unwrap();
            match redirected {
                true => plugin.logged("the document of another vApp").await,
                false => plugin.logged("the plugin no longer manages it").await,
            }
            plugin.decrease(&[FOREIGN]).await.unwrap();
            let shutdown = plugin.with_time_limit(Duration::from_secs(5)).shutdown().await;
            assert!(shutdown.is_ok(), "{shutdown:?}");
            assert_untouched(&liar, &server, id, &before);
            assert_eq!(fleet::vapps(&server), [FOREIGN], "the owned vApps are deleted");
        }
    });
}

#[test]
fn a_create_answer_that_names_a_foreign_vapp_does_not_harm_it() {
    block_on(async {
        // GitLab Runner waits for the instance, or deletes it immediately. The task in the answer is the real one, or
        // a foreign one.
        for (waits, true_task) in [(true, true), (false, true), (false, false)] {
            let (server, guest_port) = fleet::simulator(SCALE);
            let id = foreign(&server).await;
            let before = server.with_model(|model| face(model, id));
            let theirs = vapp_id(&server, id);
            // A foreign create that is in progress.
            let other = server.with_model(|model| {
                let (user, vdc) = (*model.users.keys().next().unwrap(), *model.vdcs.keys().next().unwrap());
                let (template, source) = model.templates.iter().next().map(|(id, one)| (*id, one.vms[0])).unwrap();
                let items = vec![Item::new(source)];
                let create =
                    Create { name: "other".into(), items, power_on: false, deploy: false, ..Create::default() };
                model.inject.slow = Some(1000.0);
                let (other, task) = model.instantiate(user, vdc, template, create).unwrap();
                model.inject.slow = None;
                (other, model.uuid(task))
            });
            let (vapp, task) = (theirs.clone(), other.1.clone());
            let lied = Arc::new(AtomicUsize::new(0));
            let count = lied.clone();
            let liar = Liar::new(move |request, mut answer| {
                if request.path.contains("/action/instantiateVAppTemplate") && count.fetch_add(1, Ordering::SeqCst) == 0
                {
                    answer.body = with_ids(&answer.body, "/api/vApp/", &vapp);
                    if !true_task {
                        answer.body = with_ids(&answer.body, "/api/task/", &task);
                    }
                }
                answer
            });
            let (plugin, _relay) = deceived(&server, guest_port, &liar).await;
            plugin.increase(1).await.unwrap();
            until("a create", || lied.load(Ordering::SeqCst) > 0).await;
            if !waits {
                let names: Vec<String> = plugin.update().await.unwrap().into_iter().map(|(name, _)| name).collect();
                plugin.decrease(&[&names[0]]).await.unwrap();
            }
            plugin.logged("the plugin no longer manages it").await;
            plugin.shutdown().await.unwrap();
            assert_untouched(&liar, &server, id, &before);
            let running = server.with_model(|model| {
                model.vapps[&other.0].task.is_some_and(|task| {
                    let task = &model.tasks[&task];
                    task.status == vcd_sim::model::TaskStatus::Running && !task.cancel_requested
                })
            });
            assert!(running, "the foreign task continues");
            // The plugin finds the created vApp by its description, and deletes it.
            let mut left = fleet::vapps(&server);
            left.sort();
            assert_eq!(left, [FOREIGN, "other"], "{:#?}", liar.changes());
        }
    });
}

/// `body`, with all ids after `place` replaced.
fn with_ids(body: &str, place: &str, id: &str) -> String {
    let mut parts = body.split(place);
    let mut all = parts.next().unwrap().to_owned();
    for part in parts {
        let end = part.find(|c: char| !(c.is_ascii_alphanumeric() || c == '-')).unwrap_or(part.len());
        all += &format!("{place}{id}{}", &part[end..]);
    }
    all
}

/// A listener that nobody must connect to: the plugin would send its session there.
struct Elsewhere {
    listener: std::net::TcpListener,
    origin: String,
}

impl Elsewhere {
    fn new() -> Elsewhere {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let origin = format!("http://{}", listener.local_addr().unwrap());
        Elsewhere { listener, origin }
    }

    fn assert_uncalled(&self, what: &str) {
        assert!(self.listener.accept().is_err(), "{what}: the plugin connected");
    }
}

/// The kinds of answers, as a part of the request's path.
const KINDS: [&str; 14] = [
    "/api/versions",
    "/oauth/",
    "type=orgVdc&",
    "type=orgVdcNetwork",
    "type=orgVdcStorageProfile",
    "type=vm&",
    "type=vApp",
    "type=task",
    "/api/vApp/",
    "/api/vAppTemplate/",
    "/api/vdc/",
    "/api/task/",
    "/action/instantiateVAppTemplate",
    "?force=true",
];

/// Every link in every kind of answer leads to another server, one kind after another. So do redirects of all kinds.
#[test]
fn links_and_redirects_to_other_servers_are_not_followed() {
    let redirects = [301, 302, 303, 307, 308];
    let mut lies: Vec<(&str, Option<u16>)> = KINDS.iter().map(|kind| (*kind, None)).collect();
    lies.extend(KINDS.iter().enumerate().map(|(n, kind)| (*kind, Some(redirects[n % redirects.len()]))));
    let told = std::thread::scope(|scope| {
        let work = |lies| move || block_on(lead_elsewhere(lies));
        let all: Vec<_> = lies.chunks(4).map(|lies| scope.spawn(work(lies))).collect();
        all.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>()
    });
    println!("{told} kinds of answers led to another server, of {}", lies.len());
    assert!(told >= 24, "{told}");
}

/// Number of these false answers that were sent and not followed.
async fn lead_elsewhere(lies: &[(&'static str, Option<u16>)]) -> usize {
    let mut seen = 0;
    for (kind, redirect) in lies.iter().copied() {
        let (server, guest_port) = fleet::simulator(SCALE);
        let elsewhere = Elsewhere::new();
        let (origin, told) = (elsewhere.origin.clone(), Arc::new(AtomicUsize::new(0)));
        let count = told.clone();
        let liar = Liar::new(move |request, mut answer| {
            if !request.path.contains(kind) {
                return answer;
            }
            count.fetch_add(1, Ordering::SeqCst);
            match redirect {
                Some(status) => {
                    answer.status = status;
                    answer.headers.push(format!("Location: {origin}{}", request.path));
                }
                None => {
                    let host = request.headers.iter().find_map(|line| relay::value(line, "host")).unwrap();
                    answer.body = answer.body.replace(&format!("http://{host}"), &origin);
                }
            }
            answer
        });
        let relay = Relay::start(&server.url(), liar.clone());
        let mut config = fleet::plugin_config(&server);
        config["url"] = format!("{}/api", relay.url()).into();
        config["reconcile_interval"] = "1s".into();
        let plugin = PluginProcess::start(command(BINARY)).await;
        if plugin.init(config.to_string().as_bytes(), fleet::connector(guest_port)).await.is_ok() {
            plugin.increase(2).await.unwrap();
            // With some of these answers the instances run, with some they do not.
            let tried = Instant::now();
            while tried.elapsed() < Duration::from_secs(3) {
                Timer::after(Duration::from_millis(20)).await;
                let instances = plugin.update().await.unwrap();
                if instances.iter().all(|(_, state)| *state == State::Running) {
                    break;
                }
            }
            let names: Vec<String> = plugin.update().await.unwrap().into_iter().map(|(name, _)| name).collect();
            plugin.decrease(&[&names[0]]).await.unwrap();
            Timer::after(Duration::from_millis(500)).await;
        }
        seen += usize::from(told.load(Ordering::SeqCst) > 0);
        elsewhere.assert_uncalled(&format!("{kind} {redirect:?}"));
        let log = plugin.log();
        assert!(!log.iter().any(|line| line.contains("panicked")), "{log:#?}");
    }
    seen
}

/// Invalid answers, and answers that would use memory or time without limit.
#[test]
fn huge_answers_cost_little_and_the_plugin_continues() {
    let laughs: String = (1..30).fold("<!ENTITY a0 \"ha\">".into(), |text, n| {
        let inner = format!("&a{};", n - 1).repeat(10);
        format!("{text}<!ENTITY a{n} \"{inner}\">")
    });
    let wrap = |inside: &str| format!("<QueryResultRecords total='1' pageSize='128'>{inside}</QueryResultRecords>");
    let bodies = [
        ("a billion laughs", format!("<!DOCTYPE x [{laughs}]><QueryResultRecords>&a29;</QueryResultRecords>")),
        ("an external entity", "<!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]><x>&e;</x>".into()),
        ("deeply nested", wrap(&("<a>".repeat(200_000) + &"</a>".repeat(200_000)))),
        ("no end tags", "<a>".repeat(1_000_000)),
        ("many elements", wrap(&"<VMRecord/>".repeat(500_000))),
        ("a long attribute", wrap(&format!("<VMRecord name='{}'/>", "x".repeat(4_000_000)))),
        (
            "many attributes",
            wrap(&format!("<VMRecord {}/>", (0..200_000).map(|n| format!("a{n}='' ")).collect::<String>())),
        ),
        ("many namespaces", wrap(&(0..100_000).map(|n| format!("<a xmlns:b{n}='c{n}'>")).collect::<String>())),
        ("too large", "x".repeat(9 * 1024 * 1024)),
        ("a web page", "<html><body><h1>502</h1></body></html>".into()),
        ("nothing", String::new()),
        ("JSON", "[".repeat(1_000_000)),
        ("endless pages", "<QueryResultRecords total='99999999' pageSize='1'><VMRecord/></QueryResultRecords>".into()),
    ];
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        let plugin = start(&server, guest_port, json!({"reconcile_interval": "1s"})).await;
        plugin.increase(1).await.unwrap();
        let names = reach(&plugin, 1, State::Running).await;
        let process = plugin.child.id();
        let peak = || -> u64 {
            let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
            let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        let before = peak();
        for (what, body) in &bodies {
            let rule = json!({"op": "query:vm", "answer_before": {"status": 200, "body": body}});
            assert!(server.add_fault(Rule::from_json(&rule).unwrap()), "{what}");
            let polls = server.requests("query:vm");
            until(what, || server.requests("query:vm") > polls + 1).await;
            assert_eq!(plugin.update().await.unwrap(), [(names[0].clone(), State::Running)], "{what}");
        }
        let grown = peak() - before;
        println!("{} kB more at most, after {} huge answers", grown, bodies.len());
        assert!(grown < 64 * 1024, "{grown} kB");
        // Such an answer to a login: JSON.
        server.with_model(|model| model.admin_expire_bearers());
        let rule = json!({"op": "login", "answer_before": {"status": 200, "body": "[".repeat(1_000_000)}});
        assert!(server.add_fault(Rule::from_json(&rule).unwrap()));
        plugin.logged("no usable access token").await;
        plugin.decrease(&[&names[0]]).await.unwrap();
        let log = end(plugin).await;
        assert!(fleet::vapps(&server).is_empty());
        assert!(!log.iter().any(|line| line.contains("root:x:0")), "a file of this machine in the log");
    });
}
