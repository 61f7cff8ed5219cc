//! The client and VCD's answers, sessions that end, and proxies between it and VCD, with the simulator.

use crate::client::*;
use fleeting_plugin_vcd::cloud::*;
use fleeting_plugin_vcd::vcd::inspect::Inspector;
use fleeting_plugin_vcd::vcd::{Client, MAX_BODY, MAX_FOUND, MAX_PAGES, Settings, Token, TokenKind};
use serde_json::json;
use std::collections::HashSet;
use std::io::Read as _;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vcd_sim::Server;

/// The error of a poll with this answer.
fn poll_answered(server: &Server, client: &Client, answer: serde_json::Value) -> VcdError {
    fault(server, json!({"op": "query:vm", "answer_before": answer}));
    let e = poll(client, false).unwrap_err();
    server.clear_faults();
    e
}

fn error(status: u16, code: &str, message: &str) -> String {
    format!(
        "<vcloud:Error xmlns:vcloud='http://www.vmware.com/vcloud/v1.5' majorErrorCode='{status}' minorErrorCode='{code}' \
         message='[ 1-2-3 ] {message}' stackTrace='com.vmware.Trace'/>"
    )
}

#[test]
fn reads_follow_redirects_on_the_same_host_only() {
    let server = server();
    let client = open(&server);
    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    elsewhere.set_nonblocking(true).unwrap();
    let redirect = |op: &str, status: u16, location: &str, times: u32| {
        server.clear_faults();
        fault(&server, json!({"op": op, "times": times, "answer_before": {"status": status, "location": location}}));
    };
    let there = "/api/query?type=vm&format=records&page=1&pageSize=128";
    for status in [301, 302, 303, 307, 308] {
        for location in [there.to_owned(), format!("{}{there}", server.url())] {
            let before = server.requests("query:vm");
            redirect("query:vm", status, &location, 1);
            poll(&client, false).unwrap();
            assert_eq!(server.requests("query:vm"), before + 2, "{status} {location}");
        }
    }
    // Endless redirects, or redirects to another server: an error that names the target.
    let foreign = format!("http://{}{there}", elsewhere.local_addr().unwrap());
    for (location, times) in [(there, 0), (foreign.as_str(), 1), ("https://vcd.invalid/", 1), ("//vcd.invalid/api", 1)]
    {
        redirect("query:vm", 302, location, times);
        let before = server.requests("query:vm");
        let e = poll(&client, false).unwrap_err();
        assert!(e.kind == ErrorKind::Protocol && e.text.contains(location), "{location}: {e}");
        let followed = server.requests("query:vm") - before - 1;
        assert_eq!(followed, if times == 0 { 3 } else { 0 }, "{location}");
    }
    // A change is sent once, to its own URL.
    for location in [format!("{}/api/vdc/1/action/instantiateVAppTemplate", server.url()), foreign.clone()] {
        redirect("instantiate", 307, &location, 1);
        let before = server.requests("instantiate");
        let e = create(&client, "ci-1").unwrap_err();
        assert_eq!((e.kind, server.requests("instantiate")), (ErrorKind::Ambiguous, before + 1), "{location}");
    }
    assert!(elsewhere.accept().is_err(), "the client connected");
    server.with_model(|m| assert!(m.vapps.is_empty()));
}

#[test]
fn answers_that_are_too_large_too_deep_or_bombs_are_rejected() {
    let server = server();
    let client = open(&server);
    let records = |inside: &str| format!("<QueryResultRecords total='1' pageSize='128'>{inside}</QueryResultRecords>");
    let entities: String = (1..9).map(|n| format!("<!ENTITY e{n} '&e{};&e{};'>", n - 1, n - 1)).collect();
    for (body, why) in [
        (format!("<!DOCTYPE a [<!ENTITY e0 'x'>{entities}]>{}", records("<VMRecord name='&e8;'/>")), "DTD"),
        (records(&format!("{}{}", "<a>".repeat(80), "</a>".repeat(80))), "nested deeper than 64"),
        (records(&format!("<VMRecord name='{}'/>", "x".repeat(300 * 1024))), "attribute longer than"),
        (records(&"<a/>".repeat(100_001)), "nodes limit"),
        (records(&"<a xmlns='u'/>".repeat(4_100)), "namespaces"),
        ("<html><head><title>Portal</title></head></html>".into(), "the answer is a web page, \"Portal\""),
        ("<Other/>".into(), "not an answer to a query but Other"),
        ("{\"values\":[]}".into(), "unknown token"),
        (String::new(), ""),
    ] {
        let e = poll_answered(&server, &client, json!({"status": 200, "body": body}));
        assert!(e.kind == ErrorKind::Protocol && e.text.contains(why), "{why}: {e}");
        assert!(e.text.len() <= MAX_ERROR_TEXT, "{}", e.text.len());
    }
    // Compressed, it is small.
    let sent = server.sent();
    let e = poll_answered(&server, &client, json!({"status": 200, "body": " ".repeat(MAX_BODY as usize + 1)}));
    assert!(e.kind == ErrorKind::Unavailable && e.text.contains("is incomplete: "), "{e}");
    assert!(server.sent() - sent < MAX_BODY / 50, "{} bytes were sent", server.sent() - sent);
    // A change with such an answer may have been carried out.
    fault(&server, json!({"op": "instantiate", "answer_after": {"status": 201, "body": "<!DOCTYPE a><a/>"}}));
    assert_eq!(create(&client, "ci-1").unwrap_err().kind, ErrorKind::Ambiguous);
    server.with_model(|m| assert_eq!(m.vapps.len(), 1));
    poll(&client, true).unwrap();
}

#[test]
fn every_refusal_is_typed_with_code_text_and_request_id() {
    let server = server();
    let client = open(&server);
    let json_error = r#"{"minorErrorCode":"BUSY_ENTITY","message":"[ 1-2-3 ] The entity is busy","stackTrace":null}"#;
    for (status, body, kind, code) in [
        (400, error(400, "BAD_REQUEST", "Unknown property name"), ErrorKind::Invalid, "BAD_REQUEST"),
        (
            403,
            error(403, "ACCESS_TO_RESOURCE_IS_FORBIDDEN", "rights"),
            ErrorKind::Forbidden,
            "ACCESS_TO_RESOURCE_IS_FORBIDDEN",
        ),
        (404, error(404, "RESOURCE_NOT_FOUND", "No access to entity"), ErrorKind::NotFound, "RESOURCE_NOT_FOUND"),
        (400, json_error.to_owned(), ErrorKind::Busy, "BUSY_ENTITY"),
        (
            500,
            error(500, "INTERNAL_SERVER_ERROR", "Unable to perform this action."),
            ErrorKind::Unavailable,
            "INTERNAL_SERVER_ERROR",
        ),
        (503, "<html><body>down</body></html>".to_owned(), ErrorKind::Unavailable, ""),
        (504, String::new(), ErrorKind::Unavailable, ""),
    ] {
        let e = poll_answered(&server, &client, json!({"status": status, "body": body}));
        assert_eq!((e.kind, e.status, e.code.as_str()), (kind, status, code), "{e}");
        assert!(!e.text.contains("Trace") && (code.is_empty() || e.text.contains("[ 1-2-3 ]")), "{e}");
        assert!(e.to_string().starts_with("poll VDC \"ci-vdc\" for ci-*: VCD answered "), "{e}");
    }
    for status in [429, 503] {
        let e = poll_answered(&server, &client, json!({"status": status, "retry_after": 11}));
        assert_eq!(e.retry_after, Some(Duration::from_secs(11)), "{e}");
    }
    // The header has the request id if the body has none.
    fault(&server, json!({"op": "vapp", "html": true}));
    let unknown = format!("{}/api/vApp/vapp-00000000-0000-4000-8000-000000000000", server.url());
    let e = look(&client, &unknown.as_str().into()).unwrap_err();
    assert!(e.kind == ErrorKind::Protocol && e.text.starts_with("[ 00000001-0000-4000-9000-"), "{e}");
}

#[test]
fn every_status_of_a_task_has_a_meaning() {
    let server = server();
    let client = open(&server);
    let task = create(&client, "ci-1").unwrap().task.unwrap();
    let said = |status: &str, inside: &str| {
        let body = format!(
            "<Task status='{status}' operationName='vdcInstantiateVapp' href='{task}'><Owner name='ci-1'/>{inside}</Task>"
        );
        fault(&server, json!({"op": "task", "answer_before": {"status": 200, "body": body}}));
        let state = states(&client, std::slice::from_ref(&task)).unwrap().remove(0);
        server.clear_faults();
        state
    };
    for going_on in ["queued", "preRunning", "running", "postRunning", "somethingNew", ""] {
        assert_eq!(said(going_on, ""), TaskState::Running, "{going_on}");
    }
    assert_eq!(said("success", ""), TaskState::Success);
    for (status, inside, text) in [
        ("aborted", "", "the task ended as aborted"),
        ("canceled", "<Details>by ci</Details>", "by ci"),
        ("error", "", "the task ended as error"),
        (
            "error",
            &error(400, "X", "outer").replace("/>", "><TenantError message='for tenants'/></vcloud:Error>"),
            "for tenants",
        ),
    ] {
        let inside = inside.replace("<vcloud:Error xmlns:vcloud='http://www.vmware.com/vcloud/v1.5'", "<Error");
        let inside = inside.replace("</vcloud:Error>", "</Error>");
        let TaskState::Failed(e) = said(status, &inside) else { panic!("{status} is not failed") };
        assert_eq!((e.text.as_str(), e.what.as_str()), (text, "vdcInstantiateVapp of ci-1"), "{status}");
    }
    // In a query too: a task that did not succeed is read separately.
    for (status, gets) in
        [("queued", 0), ("postRunning", 0), ("somethingNew", 0), ("success", 0), ("aborted", 2), ("canceled", 2)]
    {
        let record = format!("<TaskRecord objectName='ci-1' href='{task}' status='{status}'/>");
        let body = format!("<QueryResultRecords total='1' pageSize='128'>{record}</QueryResultRecords>");
        fault(&server, json!({"op": "query:task", "answer_before": {"status": 200, "body": body}}));
        let before = server.requests("task");
        states(&client, &[task.clone(), task.clone()]).unwrap();
        assert_eq!(server.requests("task"), before + gets, "{status}");
        server.clear_faults();
    }
}

#[test]
fn a_thousand_vms_are_eight_pages_and_one_that_fails_discards_the_poll() {
    // With TLS, a page is larger than the buffers below it.
    let server = server_with(|options| options.https_listen = Some(options.listen));
    let url = format!("{}/api", server.https_url().unwrap());
    let client = Client::open(Settings { url, insecure_skip_tls_verify: true, ..settings(&server) }).unwrap().0;
    server.with_model(|m| m.durations.ssh = u64::MAX / 2);
    for n in 0..1000 {
        foreign(&server, &format!("ci-{n:08}"));
    }
    until("all VMs", || poll(&client, false).ok().filter(|p| p.vms.len() == 1000));
    let before = server.requests("query:vm");
    let all = poll(&client, false).unwrap();
    assert_eq!((all.vms.len(), server.requests("query:vm") - before), (1000, 8));
    // What all VMs of a page have in common is in memory once.
    let copies: HashSet<_> = all.vms.iter().map(|vm| Arc::as_ptr(&vm.guest_os)).collect();
    assert_eq!(copies.len(), 8);
    for page in 1..=8 {
        for answer in [
            json!({"status": 503}),
            json!({"status": 200, "body": "<QueryResultRecords total='1000' pageSize='128'/>"}),
        ] {
            fault(&server, json!({"op": "query:vm", "path": format!("page={page}&"), "answer_before": answer}));
            let outcome = poll(&client, false);
            server.clear_faults();
            // The last page may be empty: its VMs may have been deleted in the meantime.
            assert!(outcome.is_err() || (page == 8 && answer["status"] == 200), "page {page}, {answer}");
        }
    }
    // Together with the vApps: two queries, with the same number of pages.
    let (vms, vapps) = (server.requests("query:vm"), server.requests("query:vApp"));
    assert_eq!(poll(&client, true).unwrap().vapps.unwrap().len(), 1000);
    assert_eq!((server.requests("query:vm") - vms, server.requests("query:vApp") - vapps), (8, 8));
}

#[test]
fn versions_from_10_4_to_10_6_and_later_ones_are_supported() {
    for version in ["37.0", "37.3", "38.0", "38.1", "39.0", "39.1", "39.2", "40.0"] {
        let alpha = "41.0.0-alpha-1700000000";
        let versions = [("36.0", true), (version, false), (alpha, false)].map(|(v, deprecated)| (v.into(), deprecated));
        let server = server_with(|o| o.api.versions = versions.into());
        let (client, environment) = Client::open(settings(&server)).unwrap();
        assert_eq!(environment.api_version, version);
        let begun = create(&client, "ci-1").unwrap();
        assert_eq!(ended(&client, &begun), TaskState::Success);
        let gone = delete(&client, &begun.vapp.unwrap()).unwrap();
        assert_eq!(ended(&client, &gone), TaskState::Success);
    }
}

#[test]
fn pages_may_be_smaller_than_requested() {
    let server = server_with(|o| o.api.largest_page = 25);
    let client = open(&server);
    server.with_model(|m| m.durations.ssh = u64::MAX / 2);
    for n in 0..60 {
        foreign(&server, &format!("ci-{n:08}"));
    }
    until("all VMs", || poll(&client, false).ok().filter(|p| p.vms.len() == 60));
    let before = server.requests("query:vm");
    poll(&client, false).unwrap();
    assert_eq!(server.requests("query:vm") - before, 3);
}

#[test]
fn each_poll_shows_what_a_first_poll_would_show() {
    let server = server_with(|o| (o.api.largest_page, o.scale) = (25, 10.0));
    let client = open(&server);
    server.with_model(|m| m.durations.ssh = u64::MAX / 2);
    for n in 0..60 {
        foreign(&server, &format!("ci-{n:08}"));
    }
    let same = |what: &str| {
        // Nothing changes between the two polls.
        server.with_model(|m| m.advance(m.now() + 600_000));
        let (next, first) = (poll(&client, true).unwrap(), poll(&open(&server), true).unwrap());
        assert_eq!((&next.vms, next.vapps), (&first.vms, first.vapps), "{what}");
        next.vms.len()
    };
    assert_eq!(same("all VMs are new"), 60);
    same("nothing changed");
    for at in [0, 24, 25, 40, 59] {
        let id = server.with_model(|m| *m.vapps.keys().nth(at).unwrap());
        server.with_model(|m| m.admin_power(id, vcd_sim::model::Power::Off));
        assert_eq!(poll(&client, false).unwrap().vms.iter().filter(|vm| vm.power == Power::Off).count(), 1);
        same("one is powered off");
        server.with_model(|m| m.admin_power(id, vcd_sim::model::Power::On));
        same("it is powered on");
    }
    for at in [57, 3, 30] {
        server.with_model(|m| m.admin_delete_vapp(*m.vapps.keys().nth(at).unwrap()));
        same("one is deleted");
    }
    foreign(&server, "ci-00000000-a");
    assert_eq!(same("one is new"), 58);
    // Those of some names are other pages.
    let one = Request::PollSome { names: vec!["ci-00000005".into()] };
    assert!(matches!(client.call(&one, None), Ok(Reply::Poll(some)) if some.vms.len() == 1));
    same("one was polled by its name");
}

#[test]
fn vms_are_polled_by_the_names_of_their_vapps_or_with_all_others() {
    let server = server();
    let client = open(&server);
    server.with_model(|m| m.durations.ssh = u64::MAX / 2);
    for name in ["ci-a1", "ci-b2", "ci-b22", "ci-c3"] {
        foreign(&server, name);
    }
    until("all VMs", || poll(&client, false).ok().filter(|p| p.vms.len() == 4));
    let some = |names: &[&str]| {
        let before = server.requests("query:vm");
        let names = names.iter().map(|name| (*name).into()).collect();
        let poll = match client.call(&Request::PollSome { names }, None)? {
            Reply::Poll(poll) => poll,
            other => panic!("{other:?}"),
        };
        assert_eq!(poll.vapps, None);
        let mut names: Vec<String> = poll.vms.iter().map(|vm| vm.vapp_name.to_string()).collect();
        names.sort();
        Ok::<_, VcdError>((names.join(" "), server.requests("query:vm") - before))
    };
    assert_eq!(some(&["ci-b2"]), Ok(("ci-b2".into(), 1)));
    assert_eq!(some(&["ci-c3", "ci-a1", "ci-gone"]), Ok(("ci-a1 ci-c3".into(), 1)));
    assert_eq!(some(&["ci-gone"]), Ok((String::new(), 1)));
    let many: Vec<String> = (0..=MAX_NAMES_ASKED).map(|n| format!("ci-{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert!(some(&many[1..]).is_ok());
    assert_eq!(some(&many).unwrap_err().kind, ErrorKind::Invalid);

    let refused = json!({"status": 400, "body": error(400, "BAD_REQUEST", "The filter is not valid.")});
    fault(&server, json!({"op": "query:vm", "path": "(containerName==", "times": 0, "answer_before": refused}));
    let all = "ci-a1 ci-b2 ci-b22 ci-c3";
    assert_eq!(some(&["ci-a1", "ci-b2"]), Ok((all.into(), 2)));
    assert_eq!(some(&["ci-a1", "ci-b2"]), Ok((all.into(), 1)), "a rejected query is not repeated");
}

#[test]
fn metadata_is_queried_separately_if_records_show_none() {
    let server = server();
    let client = open(&server);
    let begun = create(&client, "ci-1").unwrap();
    assert_eq!(ended(&client, &begun), TaskState::Success);
    client.call(&Request::Label { vapp: begun.vapp.unwrap() }, None).unwrap();
    let labelled = |client: &Client| poll(client, true).unwrap().vapps.unwrap()[0].labelled;
    until("the label", || labelled(&client).then_some(()));
    let queries = |client: &Client| {
        let before = server.requests("query:vApp");
        assert!(labelled(client));
        server.requests("query:vApp") - before
    };
    assert_eq!(queries(&client), 1);
    let refused =
        json!({"status": 400, "body": error(400, "BAD_REQUEST", "Unknown property name metadata in fields.")});
    fault(&server, json!({"op": "query:vApp", "path": "fields=", "times": 0, "answer_before": refused}));
    assert_eq!(queries(&client), 3);
    assert_eq!(queries(&client), 2, "a rejected query is not repeated");

    // One search that fails must not hide the entry: the group would ignore the vApp for good.
    let search = |status: u16, times: u64| {
        let answer = json!({"status": status, "body": error(status, "X", "m")});
        fault(&server, json!({"op": "query:vApp", "path": "==STRING", "times": times, "answer_before": answer}));
    };
    search(500, 1);
    assert_eq!(queries(&client), 3, "the search is repeated");
    for (status, asked) in [(500, 3), (403, 2), (400, 2)] {
        server.clear_faults();
        search(status, 0);
        let before = server.requests("query:vApp");
        assert!(!labelled(&client), "{status}");
        assert_eq!(server.requests("query:vApp") - before, asked, "{status}");
    }

    let client = open(&server);
    server.clear_faults();
    let href = server.with_model(|m| m.uuid(m.vapps_named("ci-1")[0]));
    let record = format!("<VAppRecord name='ci-1' href='{}/api/vApp/vapp-{href}'/>", server.url());
    let body = format!("<QueryResultRecords total='1' pageSize='128'>{record}</QueryResultRecords>");
    fault(&server, json!({"op": "query:vApp", "path": "fields=", "answer_before": {"status": 200, "body": body}}));
    assert_eq!(queries(&client), 2, "VCD ignored the fields");
}

#[test]
fn a_token_file_is_read_again_for_each_login() {
    let server = server();
    let file = std::env::temp_dir().join(format!("vcd-token-{}", std::process::id()));
    std::fs::write(&file, "sim-api-token\n").unwrap();
    let client = Client::open(Settings { token: Token::File(file.clone()), ..settings(&server) }).unwrap().0;
    server.with_model(|m| {
        let user = m.tokens.remove("sim-api-token").unwrap();
        m.tokens.insert("a-newer-token".into(), user);
        m.admin_expire_bearers();
    });
    let e = poll(&client, false).unwrap_err();
    assert!(e.kind == ErrorKind::Auth && e.text.contains("VCD rejected the API token"), "{e}");
    std::fs::write(&file, " a-newer-token \n").unwrap();
    poll(&client, false).unwrap();
    let long = "x".repeat(16 * 1024 + 1);
    for (text, why) in [
        ("", "is empty"),
        ("two words", "more than one word"),
        ("\u{1}", "characters that a token cannot have"),
        ("\"a-newer-token\"", "contains quotes"),
        ("VCD_TOKEN=a-newer-token", "contains NAME="),
        ("{\"access_token\": \"x\"}", "without refresh_token"),
        (&long, "more than the 16384 bytes allowed"),
    ] {
        server.with_model(|m| m.admin_expire_bearers());
        std::fs::write(&file, text).unwrap();
        let e = poll(&client, false).unwrap_err();
        assert!(e.kind == ErrorKind::Auth && e.text.contains(why) && e.text.contains("token_file"), "{e}");
    }
    std::fs::write(&file, "\u{feff}a-newer-token").unwrap();
    poll(&client, false).unwrap();
    std::fs::remove_file(&file).unwrap();
    server.with_model(|m| m.admin_expire_bearers());
    assert!(poll(&client, false).unwrap_err().text.contains("No such file"));
}

/// A folder with a token file. It is deleted when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let folder = std::env::temp_dir().join(format!("vcd-tokens-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        Folder(folder)
    }

    fn token(&self) -> PathBuf {
        self.0.join("token")
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.0).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().to_str().unwrap().to_owned()).collect();
        names.sort();
        names
    }

    fn settings(&self, server: &Server) -> Settings {
        Settings { token: Token::File(self.token()), ..settings(server) }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn service_token(server: &Server) -> String {
    server.with_model(|m| {
        let user = m.user("ci").unwrap();
        m.new_service_token(user).to_string()
    })
}

/// The service account tokens that VCD accepts.
fn good_tokens(server: &Server) -> Vec<String> {
    server.with_model(|m| m.service_tokens.keys().map(|token| token.to_string()).collect())
}

#[cfg(unix)]
#[test]
fn a_service_accounts_next_token_replaces_the_used_one() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    let server = server();
    let folder = Folder::new("next");
    let link = folder.0.join("link");
    std::os::unix::fs::symlink("token", &link).unwrap();
    for as_json in [false, true] {
        let first = service_token(&server);
        let json =
            json!({"token_type": "Service Account", "refresh_token": first, "updated_by": "terraform", "more": 1});
        std::fs::write(folder.token(), if as_json { json.to_string() } else { first.clone() }).unwrap();
        std::fs::set_permissions(folder.token(), std::fs::Permissions::from_mode(0o644)).unwrap();
        let mut old = std::fs::File::open(folder.token()).unwrap();
        let before = old.metadata().unwrap();
        let settings = Settings { token: Token::File(link.clone()), ..settings(&server) };
        let (client, environment) = Client::open(settings).unwrap();
        assert_eq!(environment.token, TokenKind::Replaced);
        for _ in 0..3 {
            server.with_model(|m| m.admin_expire_bearers());
            poll(&client, false).unwrap();
            let text = std::fs::read_to_string(folder.token()).unwrap();
            let now = match as_json {
                true => {
                    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
                    assert_eq!(
                        (json["token_type"].as_str(), json["more"].as_u64()),
                        (Some("Service Account"), Some(1))
                    );
                    assert!(json["updated_by"].as_str().unwrap().starts_with("fleeting-plugin-vcd/"), "{json}");
                    json["refresh_token"].as_str().unwrap().to_owned()
                }
                false => text.trim().to_owned(),
            };
            assert_eq!(good_tokens(&server), [now]);
        }
        let after = std::fs::metadata(folder.token()).unwrap();
        let mut text = String::new();
        old.read_to_string(&mut text).unwrap();
        assert!(
            after.ino() != before.ino() && text.contains(&first),
            "a new file replaces it, which is never incomplete"
        );
        assert_eq!((after.mode() & 0o777, after.uid(), after.gid()), (0o600, before.uid(), before.gid()));
        assert_eq!(folder.names(), ["link", "token"]);
        server.with_model(|m| m.service_tokens.clear());
    }
    // A user's own token does not change, nor does its file.
    std::fs::write(folder.token(), "sim-api-token").unwrap();
    let before = std::fs::metadata(folder.token()).unwrap();
    let (client, environment) = Client::open(folder.settings(&server)).unwrap();
    server.with_model(|m| m.admin_expire_bearers());
    poll(&client, false).unwrap();
    assert_eq!(environment.token, TokenKind::Lasting);
    assert_eq!(std::fs::metadata(folder.token()).unwrap().ino(), before.ino());
    assert_eq!(folder.names(), ["link", "token"]);
}

#[test]
fn clients_with_one_service_accounts_token_log_in_one_after_another() {
    let server = server();
    let folder = Folder::new("turns");
    std::fs::write(folder.token(), service_token(&server)).unwrap();
    // Nobody ends sessions meanwhile: Init does not retry.
    let clients: Vec<Client> = std::thread::scope(|scope| {
        let open = || Client::open(folder.settings(&server)).unwrap().0;
        let opening: Vec<_> = (0..6).map(|_| scope.spawn(open)).collect();
        opening.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    std::thread::scope(|scope| {
        for client in &clients {
            scope.spawn(|| {
                for _ in 0..5 {
                    server.with_model(|m| m.admin_expire_bearers());
                    // Another client may end the session between the login and the request.
                    until("a poll", || poll(client, false).ok());
                }
            });
        }
    });
    assert!(server.requests("login") >= 6, "each has logged in");
    assert_eq!(server.refusals("login"), 0, "no client used an old token");
    assert_eq!(good_tokens(&server), [std::fs::read_to_string(folder.token()).unwrap().trim()]);
}

#[test]
fn a_next_token_that_a_dead_process_left_is_used() {
    let server = server();
    let folder = Folder::new("left");
    let (spent, newest) = ("a-token-that-is-used-up", service_token(&server));
    std::fs::write(folder.token(), spent).unwrap();
    std::fs::write(folder.0.join(".token.next"), &newest).unwrap();
    Client::open(folder.settings(&server)).unwrap();
    assert_eq!((server.requests("login"), server.refusals("login")), (2, 1));
    assert_eq!(good_tokens(&server), [std::fs::read_to_string(folder.token()).unwrap().trim()]);
    assert_eq!(folder.names(), ["token"]);
    // If the token in the file is valid, the saved one is old.
    std::fs::write(folder.0.join(".token.next"), spent).unwrap();
    Client::open(folder.settings(&server)).unwrap();
    assert_eq!((server.requests("login"), server.refusals("login")), (3, 1));
    assert_eq!(good_tokens(&server), [std::fs::read_to_string(folder.token()).unwrap().trim()]);
    assert_eq!(folder.names(), ["token"]);
}

#[test]
fn a_token_file_that_cannot_be_replaced_is_overwritten_or_prevents_the_login() {
    let server = server();
    let folder = Folder::new("place");
    // No file can be created in its folder.
    std::fs::create_dir(folder.0.join(".token.next")).unwrap();
    let first = service_token(&server);
    let json = json!({"token_type": "Service Account", "refresh_token": first}).to_string();
    std::fs::write(folder.token(), &json).unwrap();
    let e = errors_of(folder.settings(&server)).remove(0);
    assert!(e.kind == ErrorKind::Auth && e.text.contains("could not be written"), "{e}");
    assert!(e.text.contains("the plugin did not log in") && server.requests("login") == 0, "{e}");
    assert_eq!((good_tokens(&server), std::fs::read_to_string(folder.token()).unwrap()), (vec![first.clone()], json));
    // From plain text, the plugin cannot know this in advance. The token is not lost.
    std::fs::write(folder.token(), &first).unwrap();
    Client::open(folder.settings(&server)).unwrap();
    assert_eq!(good_tokens(&server), [std::fs::read_to_string(folder.token()).unwrap().trim()]);
}

#[test]
fn an_answer_without_a_bearer_still_returns_the_next_token() {
    let server = server();
    let folder = Folder::new("no-bearer");
    let (first, second) = (service_token(&server), service_token(&server));
    std::fs::write(folder.token(), first).unwrap();
    let body = json!({"access_token": null, "refresh_token": second}).to_string();
    fault(&server, json!({"op": "login", "answer_before": {"status": 200, "body": body}}));
    let e = errors_of(folder.settings(&server)).remove(0);
    assert!(e.text.contains("no usable access token") && !e.to_string().contains(&second), "{e}");
    assert_eq!(std::fs::read_to_string(folder.token()).unwrap().trim(), second);
    Client::open(folder.settings(&server)).unwrap();
}

#[test]
fn a_session_lifetime_of_zero_causes_no_login_for_each_request() {
    let server = server();
    let bearer = server.with_model(|m| m.login_token("ci-org", "sim-api-token").unwrap().bearer);
    let body = json!({"access_token": &*bearer, "expires_in": 0}).to_string();
    fault(&server, json!({"op": "login", "times": 0, "answer_before": {"status": 200, "body": body}}));
    let client = open(&server);
    for _ in 0..5 {
        poll(&client, false).unwrap();
    }
    assert_eq!(server.requests("login"), 1);
}

#[test]
fn a_login_waits_for_vcds_retry_after() {
    let server = server();
    let client = open(&server);
    server.with_model(|m| m.admin_expire_bearers());
    fault(&server, json!({"op": "login", "answer_before": {"status": 503, "retry_after": 2}}));
    let logins = server.requests("login");
    let began = Instant::now();
    let e = poll(&client, false).unwrap_err();
    assert_eq!((e.kind, e.retry_after), (ErrorKind::Unavailable, Some(Duration::from_secs(2))), "{e}");
    // The client sends nothing before that time.
    let e = poll(&client, false).unwrap_err();
    assert!(e.retry_after.is_some_and(|left| left <= Duration::from_secs(2)), "{e:?}");
    until("the login", || poll(&client, false).ok());
    assert_eq!(server.requests("login"), logins + 2);
    assert!(began.elapsed() >= Duration::from_secs(2));
    // The client does not wait for an hour: VCD may be back earlier.
    server.with_model(|m| m.admin_expire_bearers());
    fault(&server, json!({"op": "login", "answer_before": {"status": 503, "retry_after": 3600}}));
    assert!(poll(&client, false).is_err());
    let left = poll(&client, false).unwrap_err().retry_after.unwrap();
    assert!(left > Duration::from_secs(200) && left <= Duration::from_secs(300), "{left:?}");
}

#[test]
fn a_rejected_session_is_distinguished_from_a_rejected_token() {
    let server = server();
    let client = open(&server);
    fault(&server, json!({"op": "query:vm", "times": 0, "answer_before": {"status": 401}}));
    let e = poll(&client, false).unwrap_err();
    assert!(e.kind == ErrorKind::Auth && e.text.contains("rejects the session that it started for it"), "{e}");
    server.clear_faults();
    for (answer, what) in [
        (json!({"status": 404}), "VCD has no token endpoint for org \"ci-org\""),
        (json!({"status": 200, "body": "<html><title>Sign in</title>"}), "the answer is a web page, \"Sign in\""),
    ] {
        fault(&server, json!({"op": "login", "answer_before": answer}));
        let e = errors_of(settings(&server)).remove(0);
        assert!(e.what.contains("log in to org") && e.text.contains(what), "{e}");
    }
}

#[test]
fn a_session_is_renewed_before_it_expires() {
    let server = server_with(|o| o.scale = 1.0);
    server.with_model(|m| m.settings.bearer_s = 20);
    let client = open(&server);
    let logins = server.requests("login");
    // The renewal comes before the end: the old bearer is still valid if VCD creates no new one.
    fault(&server, json!({"op": "login", "answer_before": {"status": 503}}));
    until("a renewal", || {
        poll(&client, false).unwrap();
        (server.requests("login") > logins).then_some(())
    });
    // After the end, a login comes first.
    until("the next login", || {
        poll(&client, false).unwrap();
        (server.requests("login") > logins + 1).then_some(())
    });
    assert_eq!(server.requests("versions"), 1, "the version is chosen once");
}

#[test]
fn the_session_ends_after_the_last_request() {
    let server = server();
    let client = open(&server);
    let sessions = || server.with_model(|m| m.bearers.len());
    assert_eq!(sessions(), 1);
    client.close();
    client.close();
    assert_eq!((sessions(), server.requests("logout")), (0, 1));
    // The session also ends if a name is wrong.
    errors_of(Settings { network: "no-such".into(), ..settings(&server) });
    assert_eq!((sessions(), server.requests("logout")), (0, 2));
    // Without a session, no such request is sent.
    errors_of(Settings { token: Token::Text(Secret::new("wrong")), ..settings(&server) });
    assert_eq!(server.requests("logout"), 2);
}

#[test]
fn a_vcd_that_does_not_end_the_session_delays_nothing() {
    let server = server();
    let client = open(&server);
    fault(&server, json!({"op": "logout", "delay_before_ms": 10 * DEADLINE.as_millis() as u64}));
    let (done, closed) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        client.close();
        done.send(()).unwrap();
    });
    closed.recv_timeout(DEADLINE).expect("the logout is given up");
}

#[test]
fn a_query_or_a_search_without_end_is_given_up() {
    let server = server();
    let client = open(&server);
    let records = |records: &str| {
        let body = format!("<QueryResultRecords total='1000000' pageSize='128'>{records}</QueryResultRecords>");
        json!({"status": 200, "body": body})
    };
    fault(
        &server,
        json!({"op": "query:vm", "times": 0, "answer_before": records("<VMRecord containerName='other'/>")}),
    );
    let before = server.requests("query:vm");
    let e = poll(&client, false).unwrap_err();
    assert!(e.kind == ErrorKind::Protocol && e.text.contains("more than 64 pages of vm records"), "{e}");
    assert_eq!(server.requests("query:vm") - before, MAX_PAGES as u64);

    let hrefs = (0..2 * MAX_FOUND).map(|n| create(&client, &format!("ci-{n}")).unwrap().vapp.unwrap());
    let many: String = hrefs.map(|vapp| format!("<VAppRecord name='ci-1' href='{vapp}'/>")).collect();
    let body = format!("<QueryResultRecords total='8' pageSize='128'>{many}</QueryResultRecords>");
    fault(&server, json!({"op": "query:vApp", "answer_before": {"status": 200, "body": body}}));
    let before = server.requests("vapp");
    let found = vapps(&client, &Request::Find { name: "ci-1".into() }).unwrap();
    assert_eq!((found.len(), server.requests("vapp") - before), (MAX_FOUND, MAX_FOUND as u64));
}

#[test]
fn a_limited_number_of_roles_and_rights_is_read() {
    let server = server();
    let roles: Vec<String> = (0..20).map(|n| format!("role-{n}")).collect();
    let refs: Vec<_> = roles.iter().map(|role| json!({"id": role})).collect();
    let session = json!({"user": {"name": "u"}, "roles": roles, "roleRefs": refs}).to_string();
    let page = json!({"values": vec![json!({"name": "a right"}); 128]}).to_string();
    fault(&server, json!({"op": "session", "answer_before": {"status": 200, "body": session}}));
    fault(&server, json!({"op": "rights", "times": 0, "answer_before": {"status": 200, "body": page}}));
    let (inspector, login) = Inspector::log_in(settings(&server)).unwrap();
    assert_eq!(login.roles, roles[..8]);
    // Eight roles, and eight full pages of each.
    assert_eq!(inspector.rights(&login).map(|rights| rights.len()), Some(8 * 8 * 128));
    assert_eq!(server.requests("rights"), 8 * 8);
}
