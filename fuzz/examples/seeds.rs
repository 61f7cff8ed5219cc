//! Writes the generated seeds: answers of the simulated VCD, and sessions on the gRPC socket.
//!
//!     RUSTFLAGS="--cfg fuzzing" cargo run --manifest-path fuzz/Cargo.toml --example seeds

use fleeting_plugin_vcd::cloud::{Reply, Request};
use fleeting_plugin_vcd::driver::Plugin;
use fleeting_plugin_vcd::host;
use fleeting_plugin_vcd::host::proto::fleeting::*;
use fleeting_plugin_vcd::host::proto::health::HealthCheckRequest;
use fleeting_plugin_vcd::transport::{Io, Tasks};
use fleeting_plugin_vcd::vcd::inspect::Inspector;
use fleeting_plugin_vcd::vcd::{Client, wire};
use fleeting_plugin_vcd_fuzz::vcd::{PASSWORD, SCRIPT_LINE, guest, settings};
use fleeting_plugin_vcd_fuzz::{MARK, PAUSE, plugin_config, request, simulator};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use prost::Message;
use smol::io::{AsyncRead, AsyncWrite};
use smol::{Async, LocalExecutor};
use std::cell::RefCell;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

type Answers = Arc<Mutex<Vec<u8>>>;

fn main() -> io::Result<()> {
    let heard = Answers::default();
    vcd(&heard)?;
    grpc()
}

fn write(target: &str, name: &str, bytes: &[u8]) -> io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
    std::fs::create_dir_all(&folder)?;
    // In an answer of VCD, the target replaces this word by secrets.
    let word = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes).replace(MARK, "SECRET");
        text.replace(PASSWORD, "PASSWORD").replace(SCRIPT_LINE, "SCRIPT").into_bytes()
    };
    let bytes = if target == "grpc" { bytes.to_vec() } else { word(bytes) };
    std::fs::write(folder.join(name), bytes)
}

/// Records the simulator's answers from now on, those of the start of a session only if `all`.
fn listen(heard: &Answers, all: Arc<Mutex<bool>>) {
    let (mut simulator, heard) = (simulator(), heard.clone());
    wire::answer_with(move |bytes| {
        let answer = simulator(bytes);
        let asked = request(bytes);
        let session = asked.path == "/api/versions" || asked.path.starts_with("/oauth/");
        if *all.lock().unwrap() || !session {
            let split = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
            let status = String::from_utf8_lossy(&answer[9..12]).into_owned();
            let mut heard = heard.lock().unwrap();
            heard.extend(format!("\n%% {status}\n").bytes());
            heard.extend(&answer[split + 4..]);
        }
        answer
    });
}

fn vcd(heard: &Answers) -> io::Result<()> {
    let all = Arc::new(Mutex::new(true));
    let save = |target: &str, name: &str, operation: &str| {
        let answers = std::mem::take(&mut *heard.lock().unwrap());
        write(target, name, &[operation.as_bytes(), &answers].concat())
    };
    listen(heard, all.clone());
    let (client, _) = Client::open(settings()).expect("the client opens");
    let create = Request::Create { name: "ci-abc12345".into(), description: "d".into(), whole: true };
    let _ = client.call(&create, Some(&guest()));
    client.close();
    save("vcd_answers", "open", "open")?;
    let mut windows = settings();
    windows.template = "windows-2022".into();
    Client::open(windows).expect("it opens").0.close();
    save("vcd_answers", "open-windows", "open-windows")?;
    let mut patterns = settings();
    (patterns.template, patterns.catalog) = ("ubuntu-*".into(), "ci-*".into());
    (patterns.sizing_policy, patterns.placement_policy) = (Some("small".into()), Some("rack-1".into()));
    Client::open(patterns).expect("it opens").0.close();
    save("vcd_answers", "open-patterns", "open-patterns")?;
    let mut wrong = settings();
    (wrong.vdc, wrong.network, wrong.storage_profile) = ("x".into(), "x".into(), "x".into());
    assert!(Client::open(wrong).is_err());
    save("vcd_answers", "open-unknown", "open")?;
    let (inspector, login) = Inspector::log_in(settings()).expect("it logs in");
    let _ = (inspector.rights(&login), inspector.lease_rules(&login));
    let vdc = inspector.vdc().expect("a VDC").href;
    let _ = (inspector.network(Some(&vdc)), inspector.storage(Some(&vdc)), inspector.template());
    inspector.close();
    save("vcd_answers", "inspect", "inspect")?;

    // The life of an instance.
    *all.lock().unwrap() = false;
    listen(heard, all);
    let (client, _) = Client::open(settings()).expect("it opens");
    heard.lock().unwrap().clear();
    let name: Arc<str> = "ci-abc12345".into();
    let description: Arc<str> = "fleeting-plugin-vcd/1 manager=m group=g id=ci-abc12345".into();
    let call = |request: &Request, target: &str, name: &str, operation: &str| {
        let answer = client.call(request, Some(&guest()));
        save(target, name, operation).map(|()| answer)
    };
    let started = |answer: Result<Reply, _>| match answer {
        Ok::<_, fleeting_plugin_vcd::cloud::VcdError>(Reply::Started(started)) => started,
        other => panic!("{other:?}"),
    };
    let create = Request::Create { name: name.clone(), description: description.clone(), whole: true };
    let made = started(call(&create, "vcd_answers", "create", "create")?);
    let (vapp, task) = (made.vapp.unwrap(), made.task.unwrap());
    call(&create, "vcd_answers", "duplicate", "create")?.expect_err("the name is taken");
    let tasks = |n| Request::Tasks { tasks: vec![task.clone(); n] };
    call(&tasks(1), "vcd_answers", "task-running", "task")?.unwrap();
    call(&Request::Look { vapp: vapp.clone(), guest: false }, "vcd_answers", "look-busy", "look")?.unwrap();
    call(&Request::Delete { vapp: vapp.clone() }, "vcd_answers", "delete-busy", "delete")?.expect_err("it is busy");
    for _ in 0..90 {
        client.call(&tasks(1), None).unwrap();
    }
    heard.lock().unwrap().clear();
    call(&tasks(1), "vcd_answers", "task-done", "task")?.unwrap();
    call(&tasks(3), "vcd_pages", "tasks", "tasks")?.unwrap();
    let found = call(&Request::Look { vapp: vapp.clone(), guest: false }, "vcd_answers", "look", "look")?.unwrap();
    call(&Request::Find { name }, "vcd_pages", "find", "find")?.unwrap();
    call(&Request::Find { name: "ci-nothing1".into() }, "vcd_pages", "find-nothing", "find")?.unwrap();
    call(&Request::Poll { vapps: false }, "vcd_pages", "poll", "poll")?.unwrap();
    let names = vec!["ci-abc12345".into(), "ci-def67890".into()];
    call(&Request::PollSome { names }, "vcd_pages", "poll-some", "poll-some")?.unwrap();
    call(&Request::Label { vapp: vapp.clone() }, "vcd_answers", "label", "label")?.unwrap();
    call(&Request::Poll { vapps: true }, "vcd_pages", "poll-vapps", "poll-vapps")?.unwrap();
    let Reply::Vapps(found) = found else { panic!("{found:?}") };
    let vm = found[0].made.clone().unwrap().vm;
    let _ = call(&Request::Configure { vm: vm.clone() }, "vcd_answers", "configure", "configure")?;
    let _ = call(&Request::AddTpm { vm }, "vcd_answers", "tpm", "tpm")?;
    let wait = || (0..90).for_each(|_| drop(client.call(&tasks(1), None)));
    for (request, name) in [
        (Request::Suspend { vapp: vapp.clone() }, "suspend"),
        (Request::PowerOn { vapp: vapp.clone() }, "power-on"),
        (Request::Undeploy { vapp: vapp.clone() }, "undeploy"),
        (Request::DeleteStopped { vapp: vapp.clone() }, "delete-stopped"),
        (Request::Cancel { task: task.clone() }, "cancel"),
    ] {
        wait();
        heard.lock().unwrap().clear();
        let _ = call(&request, "vcd_answers", name, name)?;
    }
    wait();
    heard.lock().unwrap().clear();
    call(&Request::Look { vapp: vapp.clone(), guest: false }, "vcd_answers", "look-gone", "look")?.unwrap();
    call(&Request::Delete { vapp }, "vcd_answers", "delete-gone", "delete")?.unwrap();
    let compose = Request::Create { name: "ci-abc12346".into(), description, whole: false };
    call(&compose, "vcd_answers", "compose", "compose")?.unwrap();

    let raw = "\n%% raw\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nDate: Thu, 01 Jan 2026 10:00:02 GMT\r\n\r\n";
    let body = "<QueryResultRecords total=\"0\" page=\"1\" pageSize=\"128\"/>";
    let chunked = format!("poll{raw}{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    write("vcd_pages", "chunked", chunked.as_bytes())?;
    let json =
        r#"{"minorErrorCode":"BUSY_ENTITY","message":"[ 1-2 ] The entity SECRET is busy completing an operation"}"#;
    write("vcd_answers", "error-json", format!("delete\n%% 400\n{json}").as_bytes())?;
    write("vcd_answers", "limit", b"power-on\n%% 429 Retry-After: 30\n\n%% 200\n<x/>")?;
    write(
        "vcd_answers",
        "unauthorized",
        b"look\n%% 401\n\n%% 404\n<Error minorErrorCode=\"SECRET\" message=\"SECRET\"/>",
    )?;
    write("vcd_answers", "redirect", b"look\n%% 302 Location: /api/SECRET\n\n%% 307 Location: http://elsewhere/api\n")?;
    write("vcd_answers", "proxy", b"delete\n%% 502\n<html><h1>Bad gateway PASSWORD SECRET</h1></html>")?;
    let failed = "task\n%% 200\n<Task href=\"http://vcd.sim/api/task/3\" status=\"error\" operationName=\"vdcInstantiateVapp\">\
        <Owner name=\"ci-abc12345 SECRET\"/><Details>SECRET</Details><Error majorErrorCode=\"500\" minorErrorCode=\"X\" \
        message=\"Not enough memory; SECRET; SCRIPT\"><TenantError message=\"no SECRET\"/></Error></Task>";
    write("vcd_answers", "task-failed", failed.as_bytes())
}

/// A stream that keeps a copy of what was written to it.
struct Tee(Async<UnixStream>, Rc<RefCell<Vec<u8>>>);

impl AsyncRead for Tee {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut [u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_read(cx, to)
    }
}

impl AsyncWrite for Tee {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.0).poll_write(cx, bytes);
        if let Poll::Ready(Ok(n)) = result {
            self.1.borrow_mut().extend(&bytes[..n]);
        }
        result
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_close(cx)
    }
}

/// Calls, as the bytes that a client sends.
fn grpc() -> io::Result<()> {
    let connector = ConnectorConfig {
        username: "ci".into(),
        password: "made-up".into(),
        use_static_credentials: true,
        ..ConnectorConfig::default()
    };
    let config = plugin_config().to_string().into_bytes();
    let init = InitRequest { config, settings: Some(Settings { connector_config: Some(connector) }) }.encode_to_vec();
    let init = ("/proto.InstanceGroup/Init", init);
    let some = |n: u32| ("/proto.InstanceGroup/Increase", IncreaseRequest { n }.encode_to_vec());
    let names = || vec!["ci-abc12345".to_owned(), "x".to_owned()];
    let update = ("/proto.InstanceGroup/Update", Vec::new());
    let wrong = InitRequest { config: b"{\"name\":7}".to_vec(), settings: None }.encode_to_vec();
    let calls: [(&str, Vec<(&str, Vec<u8>)>); 4] = [
        ("increase", vec![init.clone(), some(2), update.clone()]),
        (
            "calls",
            vec![
                init,
                ("/proto.InstanceGroup/Decrease", DecreaseRequest { instances: names() }.encode_to_vec()),
                ("/proto.InstanceGroup/ConnectInfo", ConnectInfoRequest { instance: "x".into() }.encode_to_vec()),
                ("/proto.InstanceGroup/Heartbeat", HeartbeatRequest { instance: "x".into() }.encode_to_vec()),
                ("/proto.InstanceGroup/Suspend", SuspendRequest { instances: names() }.encode_to_vec()),
                ("/proto.InstanceGroup/Resume", ResumeRequest { instances: names() }.encode_to_vec()),
                ("/proto.InstanceGroup/Shutdown", Vec::new()),
                ("/plugin.GRPCController/Shutdown", Vec::new()),
            ],
        ),
        ("mistakes", vec![("/proto.InstanceGroup/Init", wrong), update, ("/no/such", b"\x0a\xff".to_vec()), some(1)]),
        (
            "health",
            vec![
                ("/grpc.health.v1.Health/Check", HealthCheckRequest { service: "plugin".into() }.encode_to_vec()),
                ("/grpc.health.v1.Health/Check", HealthCheckRequest { service: "x".into() }.encode_to_vec()),
            ],
        ),
    ];
    for (name, calls) in calls {
        wire::answer_with(simulator());
        let sent = Rc::new(RefCell::new(vec![0]));
        let executor = Rc::new(LocalExecutor::new());
        let plugin = Plugin::new(executor.clone(), |_, _, _| {});
        let (host, ours) = UnixStream::pair()?;
        let (host, ours) = (Async::new(host)?, Async::new(ours)?);
        let serving = executor.spawn(host::serve_connection(executor.clone(), plugin, ours));
        smol::block_on(executor.run(async {
            let stream = Io(Tee(host, sent.clone()));
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(Tasks(executor.clone()), stream).await.expect("HTTP/2 begins");
            let connection = executor.spawn(connection);
            for (path, message) in calls {
                let mut body = vec![0];
                body.extend((message.len() as u32).to_be_bytes());
                body.extend(message);
                let request = hyper::Request::post(format!("http://plugin{path}"))
                    .header("content-type", "application/grpc")
                    .header("te", "trailers")
                    .header("grpc-timeout", "30S")
                    .body(Full::new(Bytes::from(body)))
                    .unwrap();
                let answer = sender.send_request(request).await.expect("it answers");
                let _ = answer.into_body().collect().await;
                sent.borrow_mut().extend(PAUSE);
            }
            drop(sender);
            let _ = connection.await;
            serving.await;
        }));
        write("grpc", name, &sent.borrow())?;
    }
    Ok(())
}
