//! Answers of VCD that end too early, at each byte: the client returns an error or the complete result, and does not
//! repeat the request. The outcome of a change is ambiguous, unless VCD cannot have seen the request.

use crate::client::*;
use fleeting_plugin_vcd::cloud::*;
use fleeting_plugin_vcd::vcd::{Client, Settings};
use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use vcd_sim::{Options, Server};

/// How an answer shows where it ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Shape {
    /// By `Content-Length`, like the simulator.
    Length,
    /// By its last chunk.
    Chunked,
    /// By the end of the connection: only the document shows whether it was cut.
    Close,
}

const SHAPES: [Shape; 3] = [Shape::Length, Shape::Chunked, Shape::Close];

/// Shorter answers are cut at each byte.
const SMALL: usize = 3_000;

/// The answer of one operation. It is recorded once, then sent repeatedly, cut.
#[derive(Default)]
struct Plan {
    /// The start of the request's first line, and a part of it; empty: no answer is cut.
    begins: &'static str,
    holds: &'static str,
    /// Head and body.
    recorded: Option<(String, Vec<u8>)>,
    /// The bytes to send instead, and whether the connection stays open afterwards; `None`: VCD's answer.
    bytes: Option<(Vec<u8>, bool)>,
    asked: usize,
}

/// A proxy in front of the simulator, with the parts of HTTP/1 that it needs.
struct Cutter {
    port: u16,
    plan: Arc<Mutex<Plan>>,
}

impl Cutter {
    fn start(server: &Server) -> Cutter {
        let upstream: SocketAddr = server.url().trim_start_matches("http://").parse().unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let plan = Arc::new(Mutex::new(Plan::default()));
        let shared = plan.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let plan = shared.clone();
                std::thread::spawn(move || serve(client, upstream, &plan));
            }
        });
        Cutter { port, plan }
    }

    fn settings(&self, server: &Server) -> Settings {
        Settings { url: format!("http://127.0.0.1:{}/api", self.port), ..settings(server) }
    }

    /// The next answer to such a request is recorded.
    fn record(&self, begins: &'static str, holds: &'static str) {
        *self.plan.lock().unwrap() = Plan { begins, holds, ..Plan::default() };
    }

    /// The recorded answer, in another shape.
    fn recorded(&self, shape: Shape) -> Vec<u8> {
        let plan = self.plan.lock().unwrap();
        let (head, body) = plan.recorded.as_ref().expect("the request was sent");
        let lines = head.trim_end().split("\r\n");
        let kept: Vec<&str> = lines.filter(|line| !line.to_lowercase().starts_with("content-length:")).collect();
        let mut answer = kept.join("\r\n").into_bytes();
        match shape {
            Shape::Length => {
                answer = head.clone().into_bytes();
                answer.extend_from_slice(body);
            }
            Shape::Chunked => {
                answer.extend_from_slice(b"\r\ntransfer-encoding: chunked\r\n\r\n");
                for chunk in body.chunks(body.len() / 2 + 1) {
                    answer.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                    answer.extend_from_slice(chunk);
                    answer.extend_from_slice(b"\r\n");
                }
                answer.extend_from_slice(b"0\r\n\r\n");
            }
            Shape::Close => {
                answer.extend_from_slice(b"\r\nconnection: close\r\n\r\n");
                answer.extend_from_slice(body);
            }
        }
        answer
    }

    /// Such requests get these bytes as their answer. Then the connection is closed, unless `goes_on`.
    fn answer_by(&self, bytes: &[u8], goes_on: bool) {
        let mut plan = self.plan.lock().unwrap();
        plan.bytes = Some((bytes.to_vec(), goes_on));
        plan.asked = 0;
    }

    fn asked(&self) -> usize {
        self.plan.lock().unwrap().asked
    }

    fn done(&self) {
        *self.plan.lock().unwrap() = Plan::default();
    }
}

/// A head and a body, unchanged.
fn read_message(stream: &mut impl BufRead) -> Option<(String, Vec<u8>)> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        stream.read_line(&mut head).ok().filter(|read| *read > 0)?;
    }
    let length = head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).ok()?;
    Some((head, body))
}

fn serve(mut client: TcpStream, upstream: SocketAddr, plan: &Mutex<Plan>) {
    let _ = client.set_nodelay(true);
    let mut server: Option<BufReader<TcpStream>> = None;
    let mut requests = BufReader::new(client.try_clone().unwrap());
    while let Some((head, body)) = read_message(&mut requests) {
        let line = head.lines().next().unwrap_or_default().to_owned();
        let meant = {
            let mut plan = plan.lock().unwrap();
            let meant = !plan.begins.is_empty() && line.starts_with(plan.begins) && line.contains(plan.holds);
            plan.asked += usize::from(meant);
            meant.then(|| plan.bytes.clone())
        };
        if let Some(Some((bytes, whole))) = meant {
            if client.write_all(&bytes).is_ok() && whole {
                continue;
            }
            let _ = client.shutdown(Shutdown::Write);
            // Reads until the client closes the connection, so that it is not reset.
            while client.read(&mut [0; 512]).is_ok_and(|n| n > 0) {}
            return;
        }
        let server = server.get_or_insert_with(|| BufReader::new(TcpStream::connect(upstream).unwrap()));
        server.get_mut().write_all(&[head.as_bytes(), &body].concat()).unwrap();
        let (head, body) = read_message(server).unwrap();
        if meant.is_some() {
            plan.lock().unwrap().recorded = Some((head.clone(), body.clone()));
        }
        if client.write_all(&[head.as_bytes(), &body].concat()).is_err() {
            return;
        }
    }
}

/// An operation whose answers are cut.
struct Operation<'a> {
    name: &'static str,
    begins: &'static str,
    holds: &'static str,
    changes: bool,
    call: &'a dyn Fn() -> Result<String, VcdError>,
}

/// Cuts an operation's answer at each byte, in each shape. Returns the number of cuts.
fn cut(cutter: &Cutter, operation: &Operation) -> usize {
    let Operation { name, begins, holds, changes, call } = operation;
    cutter.record(begins, holds);
    let whole = call();
    let mut cuts = 0;
    for shape in SHAPES {
        let answer = cutter.recorded(shape);
        let head = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
        // Heads are alike. If only the document shows the end of the body, it is cut at each byte, and long lists at
        // each seventh.
        let (first, step) = match shape {
            Shape::Length if *changes || answer.len() < SMALL => (0, 1),
            Shape::Close if answer.len() < SMALL => (head, 1),
            Shape::Length | Shape::Close => (0, 7),
            Shape::Chunked => (head, 11),
        };
        for end in (first..answer.len()).step_by(step).chain([answer.len()]) {
            cutter.answer_by(&answer[..end], end == answer.len() && shape != Shape::Close);
            let place = || format!("{name}, {shape:?}, {end} of {} bytes", answer.len());
            let result = call();
            assert_eq!(cutter.asked(), 1, "{}: it is sent once: {result:?}", place());
            match result {
                Ok(result) => {
                    assert_eq!(whole.as_ref(), Ok(&result), "{}", place());
                    // After the last chunk, or the end of the document, nothing can be missing.
                    let spare = match shape {
                        Shape::Length => 0,
                        Shape::Chunked => 2,
                        Shape::Close => answer.len(),
                    };
                    assert!(end + spare >= answer.len(), "{}", place());
                }
                Err(error) if end == answer.len() => assert_eq!(whole.as_ref(), Err(&error), "{}", place()),
                // If only the document shows the end, VCD's error may be complete.
                Err(error) if shape == Shape::Close && whole.as_ref() == Err(&error) => {}
                Err(error) => {
                    let unclear = match changes {
                        true => error.kind == ErrorKind::Ambiguous,
                        false => matches!(error.kind, ErrorKind::Unavailable | ErrorKind::Protocol),
                    };
                    assert!(unclear, "{}: {error:?}", place());
                }
            }
            cuts += 1;
        }
    }
    cutter.done();
    cuts
}

fn shown<T: std::fmt::Debug>(result: Result<T, VcdError>) -> Result<String, VcdError> {
    result.map(|value| format!("{value:?}"))
}

/// A simulator with such short latencies that thousands of requests take seconds.
fn quick() -> Server {
    server_with(|options| options.scale = 2_000.0)
}

#[test]
fn a_cut_answer_fails_the_start() {
    let server = quick();
    let cutter = Cutter::start(&server);
    let open = || {
        let opened = Client::open(cutter.settings(&server)).map(|(_, environment)| environment);
        shown(opened.map_err(|mut errors| errors.remove(0)))
    };
    let versions = Operation { name: "versions", begins: "GET /api/versions", holds: "", changes: false, call: &open };
    let login = Operation { name: "login", begins: "POST /oauth/", holds: "", changes: false, call: &open };
    let cuts = cut(&cutter, &versions) + cut(&cutter, &login);
    println!("{cuts} cuts");
    assert!(cuts > 1_000, "{cuts}");
}

#[test]
fn a_cut_answer_fails_a_read() {
    let server = quick();
    let cutter = Cutter::start(&server);
    let client = Client::open(cutter.settings(&server)).unwrap().0;
    let started = create(&client, "ci-abc12345").unwrap();
    let vapp = started.vapp.clone().unwrap();
    let task = started.task.clone().unwrap();
    assert_eq!(ended(&client, &started), TaskState::Success);
    until("a customized VM with an address", || {
        let vms = poll(&client, false).unwrap().vms;
        vms.into_iter().find(|vm| vm.customization == Customization::Complete && vm.address.is_some())
    });
    let gone = create(&client, "ci-gone").unwrap().vapp.unwrap();
    server.with_model(|model| {
        let id = model.vapps_named("ci-gone")[0];
        model.admin_delete_vapp(id);
    });
    let read = |name, holds, call| Operation { name, begins: "GET /api/", holds, changes: false, call };
    let vm_poll = || {
        // The time of the answer is not part of the result.
        shown(poll(&client, false).map(|poll| poll.vms))
    };
    let find = || shown(vapps(&client, &Request::Find { name: "ci-abc12345".into() }));
    let look_at = || shown(look(&client, &vapp));
    let look_at_nothing = || shown(look(&client, &gone));
    let one_task = || shown(states(&client, std::slice::from_ref(&task)));
    let tasks = || shown(states(&client, &[task.clone(), task.clone()]));
    assert_eq!(look_at_nothing(), Ok("[]".into()), "a missing vApp is no error");
    let mut cuts = 0;
    for operation in [
        read("poll", "query?type=vm&", &vm_poll as &dyn Fn() -> _),
        read("find", "query?type=vApp&", &find),
        read("look", "/vApp/", &look_at),
        read("look up a missing vApp", "/vApp/", &look_at_nothing),
        read("one task", "/task/", &one_task),
        read("tasks", "query?type=task&", &tasks),
    ] {
        cuts += cut(&cutter, &operation);
    }
    // Some VCDs answer 404 instead of 403.
    server.with_model(|model| model.settings.gone_is_404 = true);
    cuts += cut(&cutter, &read("look up a missing vApp, by 404", "/vApp/", &look_at_nothing));
    println!("{cuts} cuts");
    assert!(cuts > 5_000, "{cuts}");
}

#[test]
fn a_change_with_a_cut_answer_is_ambiguous() {
    let server = quick();
    let cutter = Cutter::start(&server);
    let client = Client::open(cutter.settings(&server)).unwrap().0;
    let vapp = create(&client, "ci-to-go").map(|started| ended(&client, &started)).map(|_| ()).map(|()| {
        let found = vapps(&client, &Request::Find { name: "ci-to-go".into() }).unwrap();
        found[0].href.clone()
    });
    let vapp = vapp.unwrap();
    // The proxy repeats VCD's answer: only the first of these calls reaches VCD.
    let make = || shown(create(&client, "ci-abc12345"));
    let remove = || shown(delete(&client, &vapp));
    let instantiate =
        |name, call| Operation { name, begins: "POST /api/vdc/", holds: "instantiate", changes: true, call };
    let mut cuts = cut(&cutter, &instantiate("create", &make as &dyn Fn() -> _));
    cuts += cut(
        &cutter,
        &Operation { name: "delete", begins: "DELETE /api/vApp/", holds: "", changes: true, call: &remove },
    );
    server.with_model(|model| model.vdcs.values_mut().for_each(|vdc| vdc.vm_limit = Some(0)));
    let too_many = || shown(create(&client, "ci-refused1"));
    let refused = too_many().unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Quota, "{refused}");
    cuts += cut(&cutter, &instantiate("create that is rejected", &too_many));
    println!("{cuts} cuts");
    assert!(cuts > 5_000, "{cuts}");
    assert_eq!(server.with_model(|model| model.vapps_named("ci-abc12345").len()), 1);
}

/// A relay that closes each connection after a number of bytes from the server.
struct Fuse {
    port: u16,
    most: Arc<AtomicUsize>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Fuse {
    fn start(upstream: u16) -> Fuse {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let most = Arc::new(AtomicUsize::new(usize::MAX));
        let open: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
        let (limit, all) = (most.clone(), open.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let limit = limit.load(Ordering::SeqCst);
                all.lock().unwrap().push(client.try_clone().unwrap());
                let server = TcpStream::connect((Ipv4Addr::LOCALHOST, upstream)).unwrap();
                let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Write);
                });
                std::thread::spawn(move || {
                    let (mut from, mut to) = (server, client);
                    let mut left = limit;
                    let mut buffer = [0; 4096];
                    while let Ok(n @ 1..) = from.read(&mut buffer) {
                        let n = n.min(left);
                        left -= n;
                        if to.write_all(&buffer[..n]).is_err() || left == 0 {
                            break;
                        }
                    }
                    let _ = to.shutdown(Shutdown::Write);
                    let _ = from.shutdown(Shutdown::Both);
                });
            }
        });
        Fuse { port, most, open }
    }

    /// Closes the open connections, and new ones after `most` bytes.
    fn set(&self, most: usize) {
        self.most.store(most, Ordering::SeqCst);
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// With TLS, each of VCD's bytes matters, including the handshake: before its end, no request can have been sent.
#[test]
fn a_create_is_ambiguous_only_after_the_handshake() {
    let any = Options::default().listen;
    let server = server_with(|options| (options.https_listen, options.scale) = (Some(any), 2_000.0));
    // The simulator's clock runs fast, so that tasks end soon. On a busy machine, this test takes longer than a day
    // of it.
    server.with_model(|model| model.settings.bearer_s = 1_000 * 86_400);
    let ca = std::env::temp_dir().join(format!("vcd-cut-{}.pem", std::process::id()));
    std::fs::write(&ca, server.ca_pem().unwrap()).unwrap();
    let upstream = server.https_url().unwrap().rsplit(':').next().unwrap().parse().unwrap();
    let fuse = Fuse::start(upstream);
    let url = format!("https://localhost:{}/api", fuse.port);
    let client = Client::open(Settings { url, ca_file: Some(ca.clone()), ..settings(&server) }).unwrap().0;
    std::fs::remove_file(&ca).unwrap();
    let (mut clear, mut unclear, mut end) = (0, 0, 0);
    loop {
        fuse.set(end);
        let name = format!("ci-{end}");
        let made = create(&client, &name);
        // A request whose answer is cut can arrive after the client has given it up.
        let came = server.requests("instantiate");
        match made {
            Ok(_) => break,
            Err(error) if error.kind == ErrorKind::Unavailable => {
                assert!(error.text.contains("TLS handshake"), "{end} bytes: {error}");
                assert_eq!(came, 0, "{end} bytes: {error}");
                assert_eq!(unclear, 0, "{end} bytes: {error}");
                clear += 1;
            }
            Err(error) => {
                assert_eq!(error.kind, ErrorKind::Ambiguous, "{end} bytes: {error}");
                unclear += 1;
            }
        }
        assert!(came <= unclear, "{end} bytes: it is sent once");
        server.with_model(|model| {
            for id in model.vapps_named(&name) {
                model.admin_delete_vapp(id);
            }
        });
        // Each byte of the handshake, and samples of the answer, which the tests above cut at each byte.
        end += if unclear == 0 { 1 } else { 13 };
    }
    println!("{clear} cuts in the handshake, {unclear} after it");
    assert!(clear > 500 && unclear > 20, "{clear} {unclear}");
}
