//! A VCD with the answers of the input. An input is text: the first line is the operation. Each answer follows a line
//! `%% STATUS`, with an optional header `NAME: VALUE`, or a line `%% raw` and the bytes of an answer from its first
//! line on.

use crate::{BASE, MARK, assert_no_secret, http, init, request, simulator};
use fleeting_plugin_vcd::cloud::{Answer, Guest, MAX_ERROR_TEXT, Reply, Request, Secret, TaskState, VcdError};
use fleeting_plugin_vcd::vcd::{Client, IpMode, Lease, MAX_FOUND, MAX_PAGES, Settings, TEMPLATE_LIFE, Token, wire};
use std::collections::HashSet;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

/// Maximum length of an error: what was tried, a status, a code, and VCD's text.
const MAX_ERROR: usize = 2 * MAX_ERROR_TEXT + 200;
/// Maximum number of requests in one call: all pages of the poll's three queries, or that many lookups, each
/// redirected.
const MAX_REQUESTS: usize = 4 * (4 * MAX_PAGES + MAX_FOUND + 8);

/// A line of the guests' script. In an input, SCRIPT and PASSWORD are replaced by it and by the password.
pub const SCRIPT_LINE: &str = "echo a-l1ne-0f-the-script >> /root/x";
/// See [`SCRIPT_LINE`].
pub const PASSWORD: &str = "the-Pa55word-0f-the-guest";

/// The next answers, in reverse order.
pub type Answers = Vec<Vec<u8>>;

/// The requests of one call.
#[derive(Default)]
struct Asked {
    all: usize,
    changes: usize,
}

static ASKED: LazyLock<Arc<Mutex<Asked>>> = LazyLock::new(Arc::default);
static CLIENT: LazyLock<Client> = LazyLock::new(|| {
    wire::answer_with(simulator());
    match Client::open(settings()) {
        Ok((client, _)) => client,
        Err(errors) => panic!("{errors:?}"),
    }
});

/// Runs before the first input.
pub fn start() {
    init();
    LazyLock::force(&CLIENT);
}

/// Settings for the VCD in memory.
pub fn settings() -> Settings {
    Settings {
        url: format!("{BASE}/api"),
        org: "ci-org".into(),
        token: Token::Text(Secret::new(MARK)),
        ca_file: None,
        insecure_skip_tls_verify: true,
        vdc: "ci-vdc".into(),
        network: "ci-net".into(),
        ip_mode: IpMode::Pool,
        catalog: "ci-catalog".into(),
        template: "ubuntu-22.04".into(),
        template_life: TEMPLATE_LIFE,
        storage_profile: "ssd".into(),
        sizing_policy: None,
        placement_policy: None,
        cpus: 4,
        cores_per_socket: 2,
        memory_mb: 8192,
        disk_gb: 40,
        vapp_prefix: "ci".into(),
        label: "ci linux".into(),
        metadata: vec![("owner".into(), "ci".into())],
        guest_properties: vec![("license".into(), Secret::new(MARK))],
        user_data: Some(Secret::new("#cloud-config\n")),
        lease: Some(Lease { runtime: Duration::from_secs(3600), storage: Some(Duration::from_secs(7200)) }),
        session_refresh: Duration::from_secs(3600),
        poll_interval: Duration::from_secs(10),
        standby: true,
        guest_source: String::new(),
    }
}

/// The script and password of new guests.
pub fn guest() -> Guest {
    Guest {
        computer_name: "ci-abc12345".into(),
        script: Some(Secret::new(format!("#!/bin/sh\n{SCRIPT_LINE}\nexit 0\n"))),
        password: Some(Secret::new(PASSWORD)),
    }
}

/// The operation and the answers of an input.
pub fn split(data: &[u8]) -> (&str, Answers) {
    let line_end = |data: &[u8]| data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let (operation, mut rest) = data.split_at(line_end(data));
    let mut answers = Vec::new();
    const BEGIN: &[u8] = b"\n%% ";
    while let Some(at) = rest.windows(BEGIN.len()).position(|window| window == BEGIN) {
        let (head, body) = rest[at + BEGIN.len()..].split_at(line_end(&rest[at + BEGIN.len()..]));
        let body = body.strip_prefix(b"\n").unwrap_or(body);
        let end = body.windows(BEGIN.len()).position(|window| window == BEGIN).unwrap_or(body.len());
        let head = std::str::from_utf8(head).unwrap_or("200");
        let length = head.len();
        let head = head.replace("SECRET", MARK);
        // VCD may repeat secrets.
        let echoed = String::from_utf8_lossy(&body[..end])
            .replace("SECRET", MARK)
            .replace("PASSWORD", PASSWORD)
            .replace("SCRIPT", SCRIPT_LINE)
            .into_bytes();
        let body = if std::str::from_utf8(&body[..end]).is_err() { &body[..end] } else { &echoed };
        answers.push(match head.as_str() {
            "raw" => body.to_vec(),
            _ => {
                let (status, header) = head.split_once(' ').unwrap_or((&head, ""));
                http(status.parse().unwrap_or(200), header.split_once(": ").as_slice(), body)
            }
        });
        rest = &rest[at + BEGIN.len() + (rest.len() - at - BEGIN.len()).min(length + 1)..];
    }
    answers.reverse();
    (std::str::from_utf8(operation).unwrap_or_default(), answers)
}

fn answer(request_bytes: &[u8], answers: &mut Answers) -> Vec<u8> {
    let request = request(request_bytes);
    let head = String::from_utf8_lossy(request_bytes).to_ascii_lowercase();
    assert!(head.contains("\r\nhost: vcd.sim\r\n"), "VCD's session is sent to another host: {head}");
    let mut asked = ASKED.lock().unwrap();
    asked.all += 1;
    asked.changes +=
        usize::from(matches!(request.method.as_str(), "POST" | "DELETE" | "PUT") && request.path.starts_with("/api/"));
    answers.pop().unwrap_or_default()
}

/// From now on each request gets the next answer, and then none.
pub fn answer_all(mut answers: Answers) {
    wire::answer_with(move |request| answer(request, &mut answers));
}

/// One call with these answers. The session is created without them.
pub fn ask(asked: &Request, mut answers: Answers) {
    wire::answer_with(move |bytes| {
        let asked = request(bytes);
        match asked.path.as_str() {
            "/api/versions" => http(200, &[], VERSIONS.as_bytes()),
            path if path.starts_with("/oauth/") => {
                http(200, &[], format!(r#"{{"access_token":"bearer-{MARK}","expires_in":3600}}"#).as_bytes())
            }
            _ => answer(bytes, &mut answers),
        }
    });
    *ASKED.lock().unwrap() = Asked::default();
    let client = CLIENT.anew().expect("a client with the same settings");
    let answer = client.call(asked, Some(&guest()));
    if let Err(error) = &answer {
        let text = format!("{error} {error:?}");
        assert!(
            !text.contains(PASSWORD) && !text.contains(SCRIPT_LINE),
            "an error contains a guest's script or password: {text}"
        );
    }
    check(asked, answer);
    let count = ASKED.lock().unwrap();
    assert!(count.all <= MAX_REQUESTS, "{} requests for one call", count.all);
    assert!(count.changes <= usize::from(asked.changes()), "{} changing requests for {asked:?}", count.changes);
}

const VERSIONS: &str = "<SupportedVersions xmlns=\"http://www.vmware.com/vcloud/versions\"><VersionInfo deprecated=\"false\">\
    <Version>38.1</Version></VersionInfo></SupportedVersions>";

/// An error is short, and contains no secret.
pub fn check_error(error: &VcdError) {
    let (text, debug) = (error.to_string(), format!("{error:?}"));
    assert!(error.text.len() <= MAX_ERROR_TEXT && error.what.len() <= MAX_ERROR_TEXT, "{error:?}");
    assert!(
        text.len() <= MAX_ERROR,
        "an error of {} bytes: {}",
        text.len(),
        text.chars().take(200).collect::<String>()
    );
    assert_no_secret("an error", &text);
    assert_no_secret("an error's Debug", &debug);
}

/// The answer has the right kind, and no link to another server.
pub fn check(asked: &Request, answer: Answer) {
    let here =
        |href: &str| assert!(href.to_ascii_lowercase().starts_with("http://vcd.sim"), "{href} leads to another server");
    let reply = match answer {
        Ok(reply) => reply,
        Err(error) => return check_error(&error),
    };
    match (asked, reply) {
        (Request::Poll { .. } | Request::PollSome { .. }, Reply::Poll(poll)) => {
            assert_eq!(poll.vapps.is_some(), *asked == Request::Poll { vapps: true });
            let mut seen = HashSet::new();
            for vm in &poll.vms {
                here(&vm.vm);
                here(&vm.vapp);
                assert!(vm.vapp_name.starts_with("ci-") && seen.insert(&vm.vm), "{vm:?}");
            }
            for vapp in poll.vapps.iter().flatten() {
                here(&vapp.href);
                assert!(vapp.name.starts_with("ci-"), "{vapp:?}");
            }
        }
        (Request::Find { .. } | Request::Look { .. }, Reply::Vapps(vapps)) => {
            assert!(vapps.len() <= MAX_FOUND);
            if let Request::Look { vapp: asked, .. } = asked {
                assert!(vapps.len() <= 1 && vapps.iter().all(|vapp| vapp.href == *asked), "{vapps:?}");
            }
            for vapp in &vapps {
                here(&vapp.href);
                vapp.tasks.iter().for_each(|task| here(task));
                vapp.made.iter().for_each(|made| here(&made.vm));
                assert_eq!(vapp.busy, !vapp.tasks.is_empty());
            }
        }
        (Request::Tasks { tasks }, Reply::Tasks(told)) => {
            assert!(told.iter().map(|task| &task.href).eq(tasks), "each task once: {told:?}");
            for task in &told {
                if let TaskState::Failed(error) = &task.state {
                    check_error(error);
                }
            }
        }
        (Request::Cancel { .. } | Request::Label { .. }, Reply::Done) => {}
        (asked, Reply::Started(started)) if asked.changes() => {
            started.vapp.iter().chain(&started.task).for_each(|href| here(href));
            assert_eq!(started.vapp.is_some(), matches!(asked, Request::Create { .. }));
        }
        (asked, reply) => panic!("{reply:?} is the answer to {asked:?}"),
    }
}
