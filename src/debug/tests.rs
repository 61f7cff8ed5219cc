//! The pages in several states, held against files in `testdata`. `UPDATE_GOLDEN=1` writes them anew.

use super::*;
use crate::cloud::Power;
use crate::group::{Cause, Event, Phase, Standing, View};
use crate::journal::{Journal, Note, Shown};
use crate::status::{About, CREATES_ALERT, Polls, Process, Wire};
use crate::vcd::SessionView;
use log::Level;
use std::path::Path;
use std::time::SystemTime;

const MINUTE: u64 = 60_000;

/// A group at work, and what happened to it.
struct Scene {
    now: Time,
    about: About,
    journal: Journal,
    views: Vec<View>,
    standing: Standing,
    session: SessionView,
    polls: Polls,
}

impl Scene {
    /// Nothing has happened for three hours.
    fn empty() -> Scene {
        let text = |text: &str| text.to_owned();
        let of = |most| Limit { used: 0, most };
        Scene {
            now: Time(180 * MINUTE),
            about: About {
                group: text("ci-linux"),
                manager: text("runner-1"),
                prefix: text("ci"),
                url: text("https://vcd.example.com/api"),
                org: text("my-org"),
                vdc: text("my-vdc"),
                api_version: text("38.1"),
                guest_os: text("Ubuntu Linux (64-bit)"),
            },
            journal: Journal::default(),
            views: Vec::new(),
            standing: Standing {
                instances: of(128),
                creates: of(3),
                deletes: of(5),
                operations: of(4),
                looks: of(4),
                probes: of(16),
                interval: Duration::from_secs(10),
                max_age: Duration::from_secs(86_400),
                ..Standing::default()
            },
            session: SessionView {
                state: SessionState::Valid,
                logins: 1,
                renewed_in: Some(Duration::from_secs(17 * 3600)),
                ends_in: None,
                failure: None,
            },
            polls: Polls {
                ended: Time(180 * MINUTE - 4_000),
                took: Duration::from_millis(230),
                result: Some(Ok(0)),
                good: Time(180 * MINUTE - 4_000),
            },
        }
    }

    /// The instances are so from `at` on, for the reason that is given for each name.
    fn turn(&mut self, at: u64, notes: Vec<Note>, said: &[(&str, Level, &str)], views: &[View]) {
        let event = |(name, level, text): &(&str, Level, &str)| Event {
            level: *level,
            name: Some(*name).filter(|name| !name.is_empty()).map(Into::into),
            phase: None,
            text: (*text).to_owned(),
        };
        let said = said.iter().map(event).collect();
        self.journal.turn(Time(at), Shown::Poll, notes, said, views);
        self.views = views.to_vec();
    }

    fn show<T>(&self, show: impl FnOnce(&Status<'_>) -> T) -> T {
        show(&Status {
            now: self.now,
            wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_772_366_400),
            about: &self.about,
            session: self.session.clone(),
            polls: self.polls.clone(),
            standing: self.standing.clone(),
            wire: Wire { busy: 1, most: 4, waiting: 0, changes_waiting: 0 },
            views: self.views.clone(),
            journal: &self.journal,
            requests: Vec::new(),
            process: Process {
                memory: Some(4_300_000),
                cpu: Some(Duration::from_millis(8_400)),
                threads: Some(6),
                open_files: Some(14),
            },
        })
    }
}

/// One that VCD works on or that runs.
fn view(key: u64, phase: Phase, minutes: u64, waits_for: &'static str) -> View {
    let name = format!("ci-{:08}", key * 7_919 % 100_000_000);
    View {
        age: Duration::from_secs(minutes * 60),
        waits_for,
        vapp: Some(format!("https://vcd.example.com/api/vApp/vapp-{key}").into()),
        address: (phase == Phase::Running).then(|| [10, 20, (key / 250) as u8, (key % 250) as u8].into()),
        power: Some(Power::On),
        guest_os: Some("Ubuntu Linux (64-bit)".into()),
        seen: Some(Duration::from_secs(4)),
        ..View::example(key, &name, phase)
    }
}

fn note(key: u64, operation: &'static str, task: &str, took: u64, error: Option<&str>) -> Note {
    let task = Some(task).filter(|task| !task.is_empty()).map(|task| format!("https://vcd/api/task/{task}").into());
    Note { key: Some(key), operation, task, took: Duration::from_secs(took), error: error.map(Into::into) }
}

fn creating() -> Scene {
    let mut scene = Scene::empty();
    let (one, two) = ("ci-00007919", "ci-00015838");
    let first = view(1, Phase::Creating, 0, "VCD to accept the create");
    scene.turn(176 * MINUTE, vec![], &[(one, Level::Info, "accepted")], &[first]);
    let making =
        || View { task: Some("https://vcd/api/task/77".into()), ..view(1, Phase::Creating, 0, "the create's task") };
    let took = vec![note(1, "create", "77", 1, None)];
    scene.turn(176 * MINUTE + 1_000, took, &[(one, Level::Info, "create task started")], &[making()]);
    let both =
        [view(1, Phase::Creating, 1, "guest customization"), view(2, Phase::PendingCreate, 0, "a free create slot")];
    let ended = vec![note(1, "create", "77", 41, None)];
    let text = [(one, Level::Info, "VM powered on, waiting for the guest"), (two, Level::Info, "accepted")];
    scene.turn(177 * MINUTE, ended, &text, &both);
    let up = [
        view(1, Phase::Running, 4, ""),
        View { retries: 1, ..view(2, Phase::Creating, 3, "guest customization") },
        view(3, Phase::Creating, 1, "a lookup after a lost answer"),
        View { vapp: None, ..view(4, Phase::PendingCreate, 0, "a free create slot") },
    ];
    let text = [(one, Level::Info, "running, 108 s after it was accepted")];
    scene.turn(178 * MINUTE, vec![note(1, "probe", "", 0, None)], &text, &up);
    scene.standing.instances.used = 4;
    (scene.standing.creates.used, scene.standing.operations.used) = (2, 2);
    scene.standing.creates_waiting = 1;
    scene.polls.result = Some(Ok(3));
    scene
}

fn breaker_open() -> Scene {
    let mut scene = Scene::empty();
    let error = "create vApp ci-00007919: VCD answered 400 BAD_REQUEST: The requested operation will exceed the VDC's \
                 storage quota: storage policy \"ssd\" has 12 GB left, 40 GB requested";
    let trying = view(1, Phase::Creating, 9, "VCD to accept the create");
    let failed = |retries| View {
        retries,
        error: Some(error.into()),
        next_try: Some(Duration::from_secs(252)),
        vapp: None,
        ..view(1, Phase::PendingCreate, 9, "the create breaker")
    };
    for retry in 0..3 {
        scene.turn((171 + 3 * retry) * MINUTE, vec![], &[], std::slice::from_ref(&trying));
        let text = format!("{error}; next try in 3{retry}1 s");
        let notes = vec![note(1, "create", "", 2, Some(error))];
        let open = (
            "",
            Level::Error,
            "creates fail: no VM is created for 60 s, then one is tried; deletes continue. Fix the last error (see docs/troubleshooting.md), of ci-00007919: no",
        );
        let said = [("ci-00007919", Level::Warn, &*text), open];
        let said = if retry == 2 { &said[..] } else { &said[..1] };
        scene.turn((171 + 3 * retry) * MINUTE + 2_000, notes, said, &[failed(retry as u32 + 1)]);
    }
    scene.standing.instances.used = 1;
    scene.standing.creates_waiting = 1;
    (scene.standing.failures, scene.standing.breaker) = (3, Some(Duration::from_secs(122)));
    scene
}

fn full() -> Scene {
    let mut scene = Scene::empty();
    let views: Vec<View> = (1..=128)
        .map(|key| match key % 16 {
            3 if key < 40 => view(key, Phase::Deleting, 200, "the delete's task"),
            7 => view(key, Phase::Creating, 2, "guest customization"),
            11 => view(key, Phase::PendingDelete, 1_500, "a free delete slot"),
            _ => view(key, Phase::Running, key * 11, ""),
        })
        .collect();
    scene.turn(100 * MINUTE, vec![], &[], &views[..64]);
    scene.turn(130 * MINUTE, vec![], &[], &views);
    scene.standing.instances.used = 128;
    (scene.standing.creates.used, scene.standing.deletes.used, scene.standing.operations.used) = (1, 3, 4);
    scene.standing.deletes_waiting = 8;
    scene.polls.result = Some(Ok(128));
    scene
}

/// VCD does not answer, and what it last said has markup in it.
fn error_storm() -> Scene {
    let mut scene = Scene::empty();
    let error = |name: &str| {
        format!(
            "delete vApp {name}: VCD answered 500 INTERNAL_SERVER_ERROR: <script>alert('{name}')</script> & \"more\""
        )
    };
    let ways = [Phase::Deleting, Phase::PendingDelete];
    for round in 0..30 {
        let views: Vec<View> = (1..=12)
            .map(|key| {
                let view = View { cause: Some(Cause::Asked), ..view(key, ways[round % 2], 50, "the next try") };
                View { error: Some(error(&view.name).into()), next_try: Some(Duration::from_secs(31)), ..view }
            })
            .collect();
        let texts: Vec<String> = views.iter().map(|view| error(&view.name) + "; tried again").collect();
        let said: Vec<_> =
            views.iter().zip(&texts).map(|(view, text)| (&*view.name, Level::Warn, text.as_str())).collect();
        let failed = round % 2 == 1;
        let notes = views.iter().filter(|_| failed).map(|v| note(v.key, "delete", "", 3, Some(&error(&v.name))));
        scene.turn((170 * 60 + 20 * round as u64) * 1000, notes.collect(), if failed { &said } else { &[] }, &views);
    }
    let poll = "poll VDC \"my-vdc\" for ci-*: no answer: Connection refused (os error 111)";
    let views = scene.views.clone();
    for at in 0..5 {
        let text = format!("{poll}; instances are reported in their last known state");
        let error = Some(poll.into());
        let note = Note { key: None, operation: "poll", task: None, took: Duration::ZERO, error };
        scene.turn((10_790 + at) * 1000, vec![note], &[("", Level::Warn, &text)], &views);
    }
    scene.polls.result = Some(Err(poll.into()));
    scene.polls.good = Time(170 * MINUTE);
    (scene.standing.failed_polls, scene.standing.unreachable) = (5, true);
    scene.standing.throttle = Some(Duration::from_secs(14));
    (scene.standing.hold, scene.standing.leftovers) = (Some(Duration::from_secs(1_500)), 2);
    scene.session.state = SessionState::Ended;
    scene.session.failure = Some(crate::cloud::VcdError {
        kind: crate::cloud::ErrorKind::Auth,
        what: "log in to org \"my-org\" at https://vcd.example.com with the API token".into(),
        status: 401,
        code: String::new(),
        text: "VCD rejected the API token".into(),
        retry_after: None,
    });
    scene
}

fn scenes() -> [(&'static str, Scene); 5] {
    [
        ("empty", Scene::empty()),
        ("creating", creating()),
        ("breaker", breaker_open()),
        ("full", full()),
        ("storm", error_storm()),
    ]
}

/// `text` is what the file holds.
fn golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/debug/testdata").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let text = text.replace(env!("CARGO_PKG_VERSION"), "VERSION");
    let wanted = std::fs::read_to_string(&path).unwrap().replace(env!("CARGO_PKG_VERSION"), "VERSION");
    assert!(text == wanted, "{name} is not as it was; it is now:\n{text}");
}

#[test]
fn the_text_page_in_several_states() {
    for (name, scene) in scenes() {
        for width in [80, 120] {
            let page = scene.show(|status| text::overview(status, width));
            for line in page.lines() {
                let is_address = line.trim_start().starts_with("https://") && !line.trim_start().contains(' ');
                assert!(line.chars().count() <= width || is_address, "{name}: wider than {width}: {line:?}");
                assert!(line.bytes().all(|byte| (32..127).contains(&byte)), "{name}: {line:?}");
            }
            golden(&format!("{name}-{width}.txt"), &page);
        }
    }
    let life = creating().show(|status| text::instance(status, "ci-00007919", 80));
    golden("life-80.txt", &life);
}

#[test]
fn lines_are_wrapped_and_cut() {
    let wrapped = |label: &str, text: &str, width| {
        let mut page = String::new();
        text::wrap(&mut page, label, text, 4, width);
        page
    };
    assert_eq!(wrapped("ab  ", "one two three", 12), "ab  one two\n    three\n");
    assert_eq!(wrapped("", "a\u{1b}[31mb\r\nc", 20), "a [31mb c\n", "no escape sequence gets through");
    let long = wrapped("label: ", &"x".repeat(30), 20);
    assert_eq!(long, format!("label: {}\n    {}\n    x\n", "x".repeat(13), "x".repeat(16)));
    let endless = wrapped("", &"word ".repeat(100), 20);
    assert_eq!(endless.lines().count(), 4);
    assert!(endless.ends_with(" ...\n") && endless.lines().all(|line| line.len() <= 20), "{endless}");
}

#[test]
fn markup_from_outside_is_text() {
    let scene = error_storm();
    let mut pages: Vec<String> = scenes().iter().map(|(_, scene)| scene.show(html::overview)).collect();
    pages.extend(scene.views.iter().map(|view| scene.show(|status| html::instance(status, &view.name))));
    for page in &pages {
        assert_eq!(page.matches("<script").count(), 1, "the page's own: {page}");
        assert!(!page.contains("alert('"), "{page}");
    }
    let storm = scene.show(html::overview);
    assert!(storm.contains("&lt;script&gt;alert(&#39;ci-00007919&#39;)&lt;/script&gt; &amp; &quot;more&quot;"));

    let evil = "x\"><img src=x onerror=alert(1)>'&";
    let mut scene = creating();
    scene.about.group = evil.into();
    scene.about.url = evil.into();
    let strange =
        View { error: Some(evil.into()), guest_os: Some(evil.into()), ..View::example(9, evil, Phase::Running) };
    scene.turn(179 * MINUTE, vec![note(9, "probe", evil, 1, Some(evil))], &[(evil, Level::Warn, evil)], &[strange]);
    for page in [scene.show(html::overview), scene.show(|status| html::instance(status, evil)), html::missing(evil)] {
        assert!(page.contains("&lt;img src=x onerror=alert(1)&gt;&#39;&amp;"), "{page}");
        assert!(!page.contains("<img") && !page.contains("x\">"), "{page}");
    }
    let json: serde_json::Value = serde_json::from_str(&scene.show(json::status)).unwrap();
    assert_eq!(json["Instances"][0]["LastError"], evil);
    // In the one label that comes from outside, quotes are escaped.
    let metrics = scene.show(metrics::page);
    let label = "{instance_group=\"x\\\"><img src=x onerror=alert(1)>'&\"}";
    assert!(metrics.contains(&format!("fleeting_vcd_instances_created_total{label} 1\n")), "{metrics}");
}

#[test]
fn the_policy_allows_the_pages_own_style_and_script_only() {
    let page = Scene::empty().show(html::overview);
    let between = |from: &str, to: &str| {
        let (_, rest) = page.split_once(from).unwrap();
        rest.split_once(to).unwrap().0.to_owned()
    };
    use base64::Engine;
    for (kind, text) in [("style", between("<style>", "</style>")), ("script", between("<script>", "</script>"))] {
        let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
        let hash = base64::engine::general_purpose::STANDARD.encode(digest);
        assert!(html::policy().contains(&format!("{kind}-src 'sha256-{hash}';")), "{kind}");
    }
    assert!(html::policy().starts_with("default-src 'none';"));
    assert!(
        !page.contains("http://") && !page.contains("src=\"") && !page.contains("style=\""),
        "nothing from elsewhere"
    );
}

#[test]
fn health_is_fresh_polls_and_a_session() {
    assert_eq!(Scene::empty().show(|status| status.health_problems()), Vec::<String>::new());
    let sick = error_storm().show(|status| status.health_problems());
    let poll =
        "no poll has succeeded for 600 s: poll VDC \"my-vdc\" for ci-*: no answer: Connection refused (os error 111)";
    assert_eq!(sick[0], poll);
    assert!(sick[1].starts_with("there is no session with VCD: log in to org"), "{sick:?}");
    let mut scene = Scene::empty();
    scene.polls.good = Time(scene.now.0 - 90_000);
    assert!(scene.show(|status| status.health_problems()).is_empty(), "three intervals and a slow answer");
    scene.polls.good = Time(scene.now.0 - 91_000);
    assert_eq!(scene.show(|status| status.health_problems()).len(), 1);
}

#[test]
fn an_hour_of_being_stuck_is_a_failure() {
    let stuck = |minutes: &[u64]| {
        let mut scene = Scene::empty();
        let view = |(n, minutes): (usize, &u64)| View {
            stuck: Some(Duration::from_secs(minutes * 60)),
            error: Some("delete vApp: VCD answered 403: no".into()),
            ..view(n as u64, Phase::PendingDelete, 90, "the next try")
        };
        scene.views = minutes.iter().enumerate().map(view).collect();
        scene.standing.deletes_waiting = 1;
        (scene.standing.stuck, scene.standing.stuck_for) = (minutes.len() as u32, Some(Duration::from_secs(3660)));
        (scene.show(|status| status.health_problems()), scene.show(|status| text::overview(status, 120)))
    };
    assert_eq!(stuck(&[59]).0, [""; 0]);
    let (problems, page) = stuck(&[61, 59]);
    assert_eq!(problems, ["instance ci-00000000 has been stuck for 61 minutes: delete vApp: VCD answered 403: no"]);
    assert!(page.contains("2 instances, for up to 61m") && page.contains(" 0 creates, 1 delete, "), "{page}");
    let (problems, _) = stuck(&[60; 7]);
    assert_eq!((problems.len(), &*problems[5]), (6, "2 more instances are stuck"));
}

#[test]
fn problems_are_on_top_with_a_fix_and_fail_health_if_they_last() {
    let tops = |scene: &Scene| {
        let page = scene.show(|status| text::overview(status, 400));
        let top: Vec<String> =
            page.lines().skip(1).take_while(|line| !line.contains("VCD  ")).map(str::to_owned).collect();
        (top, scene.show(|status| status.health_problems()))
    };
    let ok = || (vec![" status    OK".to_owned()], Vec::<String>::new());
    assert_eq!(tops(&Scene::empty()), ok());
    assert_eq!(tops(&creating()), ok());

    let mut scene = breaker_open();
    let (top, health) = tops(&scene);
    assert!(
        top[0].starts_with(
            "!status    creates fail: no VM is created for 122 s; deletes continue. Last error: create vApp"
        ),
        "{top:?}"
    );
    assert!(top[1].ends_with("/docs/troubleshooting.md#creates") && top.len() == 2, "{top:?}");
    assert_eq!(health, [""; 0], "not yet");
    scene.views[0].age = CREATES_ALERT;
    assert!(tops(&scene).1[0].starts_with("creates fail: "));
    // In the pause after which one is tried, and when it closed again.
    (scene.standing.breaker, scene.standing.breaker_tries) = (None, true);
    assert!(tops(&scene).1[0].contains(": one create is tried; deletes continue"));
    scene.standing.breaker_tries = false;
    assert!(tops(&scene).1[0].starts_with("instance ci-00007919 has not become running for 15 minutes. Last error: "));
    scene.views[0].age -= Duration::from_secs(1);
    assert_eq!(tops(&scene), ok());

    // A delete that fails is told at once.
    let mut scene = Scene::empty();
    let refused = View {
        stuck: Some(Duration::from_secs(5)),
        error: Some("delete vApp: VCD answered 403: no".into()),
        ..view(1, Phase::PendingDelete, 90, "the next try")
    };
    scene.views = vec![refused];
    let (top, health) = tops(&scene);
    assert_eq!(
        (top[0].as_str(), health.len()),
        ("!status    instance ci-00007919 is stuck: delete vApp: VCD answered 403: no", 0)
    );
    for page in [scene.show(html::overview), scene.show(html::instances)] {
        assert!(page.contains("<tr class=\"bad\"><td><a href=\"/instances/ci-00007919\">"), "{page}");
    }
    let page = scene.show(html::overview);
    let told = "<dd class=\"bad\">instance ci-00007919 is stuck: delete vApp: VCD answered 403: no <a href=\"https://";
    assert!(page.contains(told) && !page.contains("class=\"good\""), "{page}");
    let page = scene.show(|status| text::instances(status, 80));
    assert!(page.starts_with("NAME") && page.contains("\n!   delete vApp: VCD answered 403: no\n"), "{page}");

    // What passes by itself is told and fails nothing.
    let mut scene = Scene::empty();
    scene.standing.throttle = Some(Duration::from_secs(14));
    (scene.standing.hold, scene.standing.leftovers) = (Some(Duration::from_secs(60)), 2);
    scene.polls.result = Some(Err("poll: no answer".into()));
    let (top, health) = tops(&scene);
    for words in ["all changes pause for 14 s", "creates wait for 2 leftovers", "the last poll failed: poll: no answer"]
    {
        assert!(top.iter().any(|line| line.starts_with("!status") && line.contains(words)), "{words}: {top:?}");
    }
    assert_eq!(health, [""; 0]);
}

#[test]
fn the_chart_is_stacked_and_ends_now() {
    let page = full().show(html::overview);
    let polygons: Vec<&str> = page.lines().filter(|line| line.starts_with("<polygon")).collect();
    // Creating, Running, PendingDelete, Deleting.
    assert_eq!(polygons.len(), 4, "{polygons:#?}");
    assert!(page.contains("last 2h (times in UTC)</h2>") && page.contains("<span>128</span><span>0</span>"), "{page}");
    let times = "<span>10:00</span><span>10:30</span><span>11:00</span><span>11:30</span><span>12:00</span></div>";
    assert!(page.contains(times), "{page}");
    // What does not occur is not listed.
    let key = page.split_once("<p class=\"key\">").unwrap().1.split_once("</p>").unwrap().0;
    for (phase, occurs) in
        [("Creating 8", true), ("PendingDelete 8", true), ("Suspended", false), ("PendingCreate", false)]
    {
        assert_eq!(key.contains(phase), occurs, "{key}");
    }
    for polygon in polygons {
        assert!(polygon.contains("1000,"), "up to now: {polygon}");
        let points = polygon.split_once("points=\"").unwrap().1.trim_end_matches("\"/>");
        for (x, y) in points.split(' ').map(|point| point.split_once(',').unwrap()) {
            let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
            assert!((0.0..=1000.0).contains(&x) && (0.0..=160.0).contains(&y), "{polygon}");
        }
    }
}

#[test]
fn a_page_shows_few_events_and_is_neither_narrow_nor_wide() {
    let mut scene = Scene::empty();
    for n in 0..2 * SHOWN_EVENTS {
        scene.turn(n as u64 * 1000, vec![], &[("", Level::Info, &format!("event {}", "x".repeat(n + 1)))], &[]);
    }
    for page in [scene.show(|status| text::overview(status, 400)), scene.show(html::overview)] {
        assert_eq!(page.matches("event x").count(), SHOWN_EVENTS);
    }
    for (query, columns) in
        [("", WIDTH), ("width=10", 60), ("a=b&width=100", 100), ("width=9999", 400), ("width=x", WIDTH)]
    {
        assert_eq!(width(query), columns, "{query}");
    }
}
