//! The debug page in a real browser, with a plugin at work: it renders, it refreshes itself without a change of the
//! reader's scroll position, and the browser reports no errors. Needs Chromium (`CHROMIUM`, or `chromium` on `PATH`),
//! so it runs only by name: `cargo test --test plugin debug_browser:: -- --ignored`. Screenshots are in
//! `target/screenshots`.

use crate::common::{PluginProcess, command, until};
use crate::fleet;
use base64::Engine;
use fleeting_plugin_vcd::host::proto::fleeting::State;
use serde_json::{Value, json};
use smol::block_on;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use vcd_sim::faults::Rule;

const BINARY: &str = env!("CARGO_BIN_EXE_fleeting-plugin-vcd");
const SCALE: f64 = 20.0;
/// Maximum time for any step of the browser.
const PATIENCE: Duration = Duration::from_secs(60);
/// Width and height of a desktop window and of a phone.
const DESKTOP: (u32, u32) = (1280, 900);
const PHONE: (u32, u32) = (390, 844);

/// A browser that is controlled through its debugging pipe: JSON messages that end with a zero byte.
struct Browser {
    child: Child,
    to: ChildStdin,
    from: Receiver<Value>,
    session: Option<String>,
    sent: u64,
    /// Errors and warnings on the console, failed requests, exceptions, violations of the content security policy.
    complaints: Vec<String>,
    profile: PathBuf,
}

impl Browser {
    fn start() -> Browser {
        let program = std::env::var("CHROMIUM").unwrap_or_else(|_| "chromium".into());
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let profile = std::env::temp_dir().join(format!("vcd-browser-{}-{number}", std::process::id()));
        // The ends of the pipe are descriptors 3 and 4. The browser's sandbox does not work as root or in many
        // containers.
        let script = "exec \"$@\" 3<&0 4>&1 </dev/null >&2";
        let mut child = Command::new("sh")
            .args(["-c", script, "sh", &program])
            .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
            .args(["--disable-background-networking", "--disable-component-update", "--hide-scrollbars"])
            .arg(format!("--user-data-dir={}", profile.display()))
            .arg("--remote-debugging-pipe")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("a shell can be started");
        let to = child.stdin.take().unwrap();
        let mut reader = BufReader::new(child.stdout.take().unwrap());
        let (tell, from) = channel();
        std::thread::spawn(move || {
            loop {
                let mut message = Vec::new();
                if reader.read_until(0, &mut message).unwrap_or(0) == 0 {
                    return;
                }
                message.pop();
                if tell.send(serde_json::from_slice(&message).unwrap()).is_err() {
                    return;
                }
            }
        });
        let mut browser = Browser { child, to, from, session: None, sent: 0, complaints: Vec::new(), profile };
        let target = browser.ask("Target.createTarget", json!({"url": "about:blank"}))["targetId"].clone();
        let session = browser.ask("Target.attachToTarget", json!({"targetId": target, "flatten": true}));
        browser.session = session["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.ask(&format!("{domain}.enable"), json!({}));
        }
        browser
    }

    /// Sends a command and waits for its answer.
    fn ask(&mut self, method: &str, params: Value) -> Value {
        self.sent += 1;
        let id = self.sent;
        let mut message = json!({"id": id, "method": method, "params": params});
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        self.to.write_all(message.to_string().as_bytes()).unwrap();
        self.to.write_all(&[0]).unwrap();
        loop {
            let got = self.next(method);
            if got["id"] == id {
                assert!(got.get("error").is_none(), "{method}: {got}");
                return got["result"].clone();
            }
        }
    }

    /// The next message. Errors in it are kept.
    fn next(&mut self, what: &str) -> Value {
        let got = self.from.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("waited for {what}"));
        let params = &got["params"];
        let complaint = match got["method"].as_str().unwrap_or_default() {
            "Runtime.exceptionThrown" | "Network.loadingFailed" => true,
            "Runtime.consoleAPICalled" => matches!(params["type"].as_str(), Some("error" | "warning" | "assert")),
            "Log.entryAdded" => matches!(params["entry"]["level"].as_str(), Some("error" | "warning")),
            _ => false,
        };
        if complaint {
            self.complaints.push(got.to_string());
        }
        got
    }

    fn size(&mut self, (width, height): (u32, u32)) {
        let mobile = width < 600;
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile});
        self.ask("Emulation.setDeviceMetricsOverride", size);
    }

    fn scheme(&mut self, scheme: &str) {
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.ask("Emulation.setEmulatedMedia", features);
    }

    /// Opens `url` and waits until it is loaded.
    fn go(&mut self, url: &str) {
        self.ask("Page.navigate", json!({"url": url}));
        while self.next(url)["method"] != "Page.loadEventFired" {}
    }

    /// The value of a JavaScript expression.
    fn value(&mut self, expression: &str) -> Value {
        let answer = self.ask("Runtime.evaluate", json!({"expression": expression, "returnByValue": true}));
        assert!(answer.get("exceptionDetails").is_none(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// Waits until a JavaScript expression is true.
    fn until(&mut self, expression: &str) {
        let end = Instant::now() + PATIENCE;
        while self.value(expression) != true {
            assert!(Instant::now() < end, "{expression} did not become true");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// A picture of the whole page.
    fn screenshot(&mut self, file: &Path) {
        let page = &self.ask("Page.getLayoutMetrics", json!({}))["cssContentSize"];
        let whole = json!({"x": 0, "y": 0, "width": page["width"], "height": page["height"], "scale": 1});
        let shot = json!({"format": "png", "clip": whole, "captureBeyondViewport": true});
        let shot = self.ask("Page.captureScreenshot", shot);
        let image = base64::engine::general_purpose::STANDARD.decode(shot["data"].as_str().unwrap()).unwrap();
        assert!(image.len() > 5_000, "an empty picture: {} bytes", image.len());
        std::fs::write(file, image).unwrap();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.profile);
    }
}

/// The folder of the screenshots.
fn pictures() -> PathBuf {
    let pictures = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("screenshots");
    std::fs::create_dir_all(&pictures).unwrap();
    pictures
}

/// VCD rejects each request of this kind.
fn refuses(server: &vcd_sim::Server, operation: &str, status: u16, code: &str, message: &str) {
    let body = format!(
        "<Error xmlns=\"http://www.vmware.com/vcloud/v1.5\" majorErrorCode=\"{status}\" minorErrorCode=\"{code}\" \
         message=\"{message}\"/>"
    );
    let rule = json!({"op": operation, "times": 0, "answer_before": {"status": status, "body": body}});
    assert!(server.add_fault(Rule::from_json(&rule).unwrap()));
}

/// A state of the page: its name, text in the page's first line, and whether /healthz fails in it.
type Look = (&'static str, &'static str, bool);

const STATES: [Look; 6] = [
    ("empty", "OK", false),
    ("working", "OK", false),
    ("creates-fail", "creates fail: no VM is created for ", false),
    ("delete-fails", "is stuck: ", false),
    ("vcd-silent", "the last poll failed", false),
    ("token-revoked", "there is no session with VCD", true),
];

/// Counts words that are broken in short cells, and cells wider than the window.
const BROKEN: &str = "[...document.querySelectorAll('#instances td:not(.w)')].filter(cell => {
    const range = document.createRange();
    range.selectNodeContents(cell);
    return new Set([...range.getClientRects()].map(box => Math.round(box.bottom))).size > 2;
}).length";

#[test]
#[ignore = "needs Chromium"]
fn the_page_in_six_states() {
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        let debug = format!("127.0.0.1:{}", fleet::free_port());
        let mut config = fleet::plugin_config(&server);
        config["debug_server_addr"] = debug.as_str().into();
        config["reconcile_interval"] = "1s".into();
        let plugin = PluginProcess::start(command(BINARY)).await;
        plugin.init(config.to_string().as_bytes(), fleet::connector(guest_port)).await.unwrap();
        until("the debug server", || std::net::TcpStream::connect(&debug).is_ok()).await;
        let mut browser = Browser::start();
        let url = format!("http://{debug}/");
        for (state, words, unhealthy) in STATES {
            match state {
                "working" => {
                    plugin.increase(5).await.unwrap();
                    crate::live::reach(&plugin, 5, State::Running).await;
                    plugin.increase(1).await.unwrap();
                }
                "creates-fail" => {
                    crate::live::reach(&plugin, 6, State::Running).await;
                    let reason = "The user is not allowed to use storage policy &quot;ssd&quot; of organization VDC \
                                  &quot;ci-vdc&quot; (https://vcd.example.com/api/vdcStorageProfile/0123456789abcdef)";
                    refuses(&server, "instantiate", 403, "ACCESS_TO_RESOURCE_IS_FORBIDDEN", reason);
                    // More failures than successful creates before.
                    for _ in 0..9 {
                        let before = server.refusals("instantiate");
                        plugin.increase(1).await.unwrap();
                        until("a refusal", || server.refusals("instantiate") > before).await;
                        std::thread::sleep(Duration::from_millis(300));
                    }
                }
                "delete-fails" => {
                    refuses(&server, "delete", 403, "ACCESS_TO_RESOURCE_IS_FORBIDDEN", "No right vApp: Delete");
                    refuses(
                        &server,
                        "undeploy",
                        403,
                        "ACCESS_TO_RESOURCE_IS_FORBIDDEN",
                        "No right vApp: Power Operations",
                    );
                    let all = plugin.update().await.unwrap();
                    let running = all.iter().find(|(_, state)| *state == State::Running).unwrap();
                    plugin.decrease(&[&running.0]).await.unwrap();
                }
                "vcd-silent" => refuses(&server, "query:vm", 500, "INTERNAL_SERVER_ERROR", "No cell answers"),
                "token-revoked" => {
                    server.with_model(|model| {
                        model.admin_revoke_token("sim-api-token");
                        model.admin_expire_bearers();
                    });
                    // VCD answers again, and rejects the login.
                    server.clear_faults();
                }
                _ => {}
            }
            browser.size(DESKTOP);
            browser.go(&url);
            let top = "[...document.querySelectorAll('dt')].filter(name => name.textContent === 'status')
                .map(name => name.nextElementSibling)";
            browser.until(&format!("{top}.some(line => line.textContent.includes({words:?}))"));
            let class = if words == "OK" { "good" } else { "bad" };
            assert_eq!(browser.value(&format!("{top}.every(line => line.className === {class:?})")), true, "{state}");
            let links = format!("{top}.every(line => line.querySelector('a') || line.textContent === 'OK')");
            assert_eq!(browser.value(&links), true, "{state}");
            let health =
                ureq::get(format!("{url}healthz")).config().http_status_as_error(false).build().call().unwrap();
            assert_eq!(health.status().as_u16(), if unhealthy { 503 } else { 200 }, "{state}");
            for width in [1280, 800, 390] {
                browser.size((width, 900));
                for scheme in ["light", "dark"] {
                    browser.scheme(scheme);
                    let fits = browser.value("document.documentElement.scrollWidth <= innerWidth");
                    assert_eq!(fits, true, "{state} at {width}: no horizontal scrolling");
                    if width == 1280 {
                        assert_eq!(browser.value(BROKEN), 0, "{state}: no word is broken");
                    }
                    browser.screenshot(&pictures().join(format!("{state}-{width}-{scheme}.png")));
                }
            }
        }
        // The page's content security policy forbids requests to other servers. The browser would report them.
        assert!(browser.complaints.is_empty(), "{:#?}", browser.complaints);
        println!("screenshots in {}", pictures().display());
    });
}

#[test]
#[ignore = "needs Chromium"]
fn the_page_in_a_browser() {
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        let body = "<Error xmlns=\"http://www.vmware.com/vcloud/v1.5\" majorErrorCode=\"400\" \
                    minorErrorCode=\"BAD_REQUEST\" message=\"&lt;img src=x onerror=alert(1)&gt; is no template\"/>";
        let refusal = json!({"op": "instantiate", "answer_before": {"status": 400, "body": body}});
        assert!(server.add_fault(Rule::from_json(&refusal).unwrap()));
        let debug = format!("127.0.0.1:{}", fleet::free_port());
        let mut config = fleet::plugin_config(&server);
        config["debug_server_addr"] = debug.as_str().into();
        let mut plugin = PluginProcess::start(command(BINARY)).await;
        plugin.init(config.to_string().as_bytes(), fleet::connector(guest_port)).await.unwrap();
        plugin.increase(6).await.unwrap();
        until("the debug server", || std::net::TcpStream::connect(&debug).is_ok()).await;

        let pictures = pictures();
        let url = format!("http://{debug}/");
        let mut browser = Browser::start();
        browser.size(DESKTOP);
        browser.scheme("light");
        browser.go(&url);
        assert_eq!(browser.value("document.querySelector('h1').textContent"), "ci-linux");
        assert_eq!(browser.value("document.querySelectorAll('#instances tbody tr').length"), 6);
        browser.until("document.body.textContent.includes('<img src=x onerror=alert(1)> is no template')");
        assert_eq!(browser.value("document.images.length"), 0, "markup from VCD is text");
        let back = "getComputedStyle(document.body).backgroundColor";
        let light = browser.value(back);

        // The page refreshes itself: changes appear, and the scroll position stays.
        browser.size((DESKTOP.0, 300));
        let place = browser.value("scrollTo(0, 200); scrollY");
        assert_eq!(place, 200, "there is something to scroll");
        let refreshed = "Number(document.documentElement.dataset.refreshed || 0)";
        let before = browser.value(refreshed).as_u64().unwrap();
        browser.until("[...document.querySelectorAll('#instances td:nth-child(2)')].filter(cell => cell.textContent === 'Running').length === 5");
        browser.until(&format!("{refreshed} >= {}", before + 2));
        assert_eq!(browser.value("scrollY"), 200);
        assert_eq!(browser.value("document.getElementById('lost').hidden"), true);
        browser.until("document.querySelectorAll('svg polygon').length >= 2");
        browser.value("scrollTo(0, 0)");

        browser.size(DESKTOP);
        browser.screenshot(&pictures.join("desktop-light.png"));
        browser.scheme("dark");
        assert_ne!(browser.value(back), light);
        browser.screenshot(&pictures.join("desktop-dark.png"));
        browser.size(PHONE);
        let fits = "document.documentElement.scrollWidth <= innerWidth";
        assert_eq!(browser.value(fits), true, "no horizontal scrolling on a phone");
        browser.screenshot(&pictures.join("phone-dark.png"));
        browser.scheme("light");
        browser.screenshot(&pictures.join("phone-light.png"));
        let link = "document.querySelector('#instances .why').closest('tr').querySelector('a').href";
        let life = browser.value(link).as_str().unwrap().to_owned();
        browser.go(&life);
        assert_eq!(browser.value(fits), true);
        browser.screenshot(&pictures.join("phone-instance.png"));
        browser.size(DESKTOP);
        assert_eq!(
            browser.value("document.body.textContent.includes('BAD_REQUEST')"),
            true,
            "the first instance's history"
        );
        browser.screenshot(&pictures.join("desktop-instance.png"));
        assert!(browser.complaints.is_empty(), "{:#?}", browser.complaints);

        // Without an answer, the page shows that it is old, and retries.
        browser.go(&url);
        let running = plugin.update().await.unwrap().iter().filter(|(_, state)| *state == State::Running).count();
        assert_eq!(running, 5);
        plugin.child.kill().unwrap();
        browser.until("!document.getElementById('lost').hidden");
        browser.until("document.getElementById('lost').textContent.startsWith('No answer since')");
        assert_eq!(browser.value("document.querySelectorAll('#instances tbody tr').length"), 6);
        println!("screenshots in {}", pictures.display());
    });
}
