//! All values that the debug pages show at one moment.

use crate::group::{STUCK_ALERT, Standing, State, Time, View};
use crate::journal::Journal;
use crate::vcd::{Count, READ_TIMEOUT, SessionState, SessionView};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Polls are fresh if one succeeded within this many intervals plus [`READ_TIMEOUT`].
const FRESH_INTERVALS: u32 = 3;
/// Maximum number of stuck instances that are named.
const MAX_STUCK_TOLD: usize = 5;
/// `/healthz` fails if GitLab Runner waits longer than this for an instance whose creates fail.
pub const CREATES_ALERT: Duration = Duration::from_secs(15 * 60);

/// One moment.
pub struct Status<'a> {
    /// The time since Init.
    pub now: Time,
    /// The same by the system's clock.
    pub wall: SystemTime,
    /// The names of the group and its place.
    pub about: &'a About,
    /// The session with VCD.
    pub session: SessionView,
    /// The polls.
    pub polls: Polls,
    /// Limits, and the reasons for pauses.
    pub standing: Standing,
    /// Requests to VCD.
    pub wire: Wire,
    /// Every instance.
    pub views: Vec<View>,
    /// The history.
    pub journal: &'a Journal,
    /// HTTP requests by operation.
    pub requests: Vec<Count>,
    /// This process.
    pub process: Process,
}

/// The names of the group and its place.
#[derive(Clone, Debug, Default)]
pub struct About {
    /// `instance_group_name`.
    pub group: String,
    /// The runner manager's name.
    pub manager: String,
    /// `vapp_name_prefix`.
    pub prefix: String,
    /// VCD's URL.
    pub url: String,
    /// The org.
    pub org: String,
    /// The VDC.
    pub vdc: String,
    /// The API version in use at Init.
    pub api_version: String,
    /// The template's guest OS.
    pub guest_os: String,
}

/// The polls.
#[derive(Clone, Debug, Default)]
pub struct Polls {
    /// When the last poll ended, successful or not.
    pub ended: Time,
    /// Its duration.
    pub took: Duration,
    /// Number of VMs in it, or its error.
    pub result: Option<Result<usize, Arc<str>>>,
    /// When the last successful poll ended.
    pub good: Time,
}

/// Requests to VCD.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wire {
    /// Threads that process one.
    pub busy: usize,
    /// Number of threads.
    pub most: usize,
    /// Requests that wait for a thread.
    pub waiting: usize,
    /// Changes that wait because the maximum number of them is in progress.
    pub changes_waiting: usize,
}

/// This process, as far as the system reports it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Process {
    /// Resident memory in bytes.
    pub memory: Option<u64>,
    /// CPU time.
    pub cpu: Option<Duration>,
    /// Threads.
    pub threads: Option<u64>,
    /// Open file descriptors.
    pub open_files: Option<u64>,
}

/// A problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// What happened, why, and what happens next.
    pub text: String,
    /// The document with the fix.
    pub fix: &'static str,
    /// It lasts, or does harm: `/healthz` fails.
    pub grave: bool,
}

impl Status<'_> {
    /// All problems, serious ones first.
    pub fn troubles(&self) -> Vec<Trouble> {
        let mut all = Vec::new();
        let mut add = |text: String, fix, grave| all.push(Trouble { text, fix, grave });
        let (standing, polls) = (&self.standing, &self.polls);
        let failed = polls.result.as_ref().and_then(|result| result.as_ref().err());
        let limit = standing.interval * FRESH_INTERVALS + READ_TIMEOUT;
        let age = self.now - polls.good;
        if age > limit || failed.is_some() {
            let why = failed.map(|error| format!(": {error}")).unwrap_or_default();
            let text = match age > limit {
                true => format!("no poll has succeeded for {} s{why}", age.as_secs()),
                false => format!("the last poll failed{why}"),
            };
            add(text, "docs/troubleshooting.md#while-running", age > limit);
        }
        if self.session.state == SessionState::Ended {
            let why = self.session.failure.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
            let fix = "docs/troubleshooting.md#the-token-and-the-session";
            add(format!("there is no session with VCD{why}"), fix, true);
        }
        let creates = "docs/troubleshooting.md#creates";
        // The oldest instance that does not exist yet and whose creates fail.
        let late = |view: &&View| view.reported && view.state == State::Creating && view.error.is_some();
        let late = self.views.iter().filter(late).max_by_key(|view| view.age);
        let why = late.and_then(|view| view.error.as_deref()).map(|error| format!(". Last error: {error}"));
        let why = why.unwrap_or_default();
        let grave = late.is_some_and(|view| view.age >= CREATES_ALERT);
        if standing.breaker.is_some() || standing.breaker_tries {
            let follows = match standing.breaker {
                Some(left) => format!("no VM is created for {} s", left.as_secs()),
                None => "one create is tried".to_owned(),
            };
            add(format!("creates fail: {follows}; deletes continue{why}"), creates, grave);
        } else if let Some(view) = late.filter(|_| grave) {
            let minutes = view.age.as_secs() / 60;
            add(format!("instance {} has not become running for {minutes} minutes{why}", view.name), creates, grave);
        }
        // The longest first.
        let mut stuck: Vec<&View> = self.views.iter().filter(|view| view.stuck.is_some()).collect();
        stuck.sort_unstable_by_key(|view| std::cmp::Reverse(view.stuck));
        for view in stuck.iter().take(MAX_STUCK_TOLD) {
            let time = view.stuck.unwrap_or_default();
            let why = view.error.as_deref().unwrap_or(view.waits_for);
            let text = match time.as_secs() / 60 {
                0 => format!("instance {} is stuck: {why}", view.name),
                minutes => format!("instance {} has been stuck for {minutes} minutes: {why}", view.name),
            };
            add(text, "docs/troubleshooting.md#what-an-instance-waits-for", time >= STUCK_ALERT);
        }
        if let Some(more) = stuck.get(MAX_STUCK_TOLD..).filter(|more| !more.is_empty()) {
            let grave = more.iter().any(|view| view.stuck.is_some_and(|time| time >= STUCK_ALERT));
            add(
                format!("{} more instances are stuck", more.len()),
                "docs/troubleshooting.md#what-an-instance-waits-for",
                grave,
            );
        }
        if let Some(left) = standing.throttle {
            let text =
                format!("the organization's operation limit was reached: all changes pause for {} s", left.as_secs());
            add(text, creates, false);
        }
        if let Some(left) = standing.hold {
            let text = format!(
                "creates wait for {} leftovers of an earlier run to be deleted, for at most {} s",
                standing.leftovers,
                left.as_secs()
            );
            add(text, "docs/troubleshooting.md#what-an-instance-waits-for", false);
        }
        let (mut first, rest): (Vec<_>, Vec<_>) = all.into_iter().partition(|trouble| trouble.grave);
        first.extend(rest);
        first
    }

    /// The serious problems, for a health check.
    pub fn health_problems(&self) -> Vec<String> {
        self.troubles().into_iter().filter(|trouble| trouble.grave).map(|trouble| trouble.text).collect()
    }

    /// `time` by the system's clock.
    pub fn wall(&self, time: Time) -> SystemTime {
        self.wall.checked_sub(self.now - time).unwrap_or(SystemTime::UNIX_EPOCH)
    }
}

impl Process {
    /// Reads it from the system.
    #[cfg(target_os = "linux")]
    pub fn read() -> Process {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let number = |key: &str| {
            let rest = status.lines().find_map(|line| line.strip_prefix(key))?;
            rest.split_whitespace().next()?.parse::<u64>().ok()
        };
        let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        Process {
            memory: number("VmRSS:").map(|kb| kb * 1024),
            cpu: Duration::try_from(cpu).ok(),
            threads: number("Threads:"),
            // Reading the folder opens one more.
            open_files: std::fs::read_dir("/proc/self/fd").ok().map(|files| (files.count() as u64).saturating_sub(1)),
        }
    }

    /// Nothing is known.
    #[cfg(not(target_os = "linux"))]
    pub fn read() -> Process {
        Process::default()
    }
}
