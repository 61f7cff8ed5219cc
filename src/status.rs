//! Everything that the debug pages show at one moment, as plain values.

use crate::group::{STUCK_ALERT, Standing, Time, View};
use crate::journal::Journal;
use crate::vcd::{Count, READ_TIMEOUT, SessionState, SessionView};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Polls are fresh if one ended well within this many intervals, and [`READ_TIMEOUT`].
const FRESH_INTERVALS: u32 = 3;
/// No more stuck instances are named.
const MAX_STUCK_TOLD: usize = 5;

/// One moment.
pub struct Status<'a> {
    /// Now, since Init.
    pub now: Time,
    /// The same by the system's clock.
    pub wall: SystemTime,
    /// Who and where.
    pub about: &'a About,
    /// The session with VCD.
    pub session: SessionView,
    /// The polls.
    pub polls: Polls,
    /// Limits, and what holds the group up.
    pub standing: Standing,
    /// Requests to VCD.
    pub wire: Wire,
    /// Every instance.
    pub views: Vec<View>,
    /// What has happened.
    pub journal: &'a Journal,
    /// HTTP requests by operation.
    pub requests: Vec<Count>,
    /// This process.
    pub process: Process,
}

/// Who and where.
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
    /// When the last one ended, well or badly.
    pub ended: Time,
    /// How long it took.
    pub took: Duration,
    /// How many VMs it showed, or why it failed.
    pub result: Option<Result<usize, Arc<str>>>,
    /// When the last one ended well.
    pub good: Time,
}

/// Requests to VCD.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wire {
    /// Threads that work on one.
    pub busy: usize,
    /// At most so many.
    pub most: usize,
    /// Requests that wait for a thread.
    pub waiting: usize,
    /// Changing requests that wait because enough of them are on the wire.
    pub changes_waiting: usize,
}

/// This process, where the system tells.
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

impl Status<'_> {
    /// What is not as it should be, if something is: for a health check.
    pub fn ailments(&self) -> Vec<String> {
        let mut all = Vec::new();
        let limit = self.standing.interval * FRESH_INTERVALS + READ_TIMEOUT;
        let age = self.now - self.polls.good;
        if age > limit {
            let why = match &self.polls.result {
                Some(Err(error)) => format!(": {error}"),
                _ => String::new(),
            };
            all.push(format!("no poll has succeeded for {} s{why}", age.as_secs()));
        }
        if self.session.state == SessionState::Ended {
            let why = self.session.failure.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
            all.push(format!("there is no session with VCD{why}"));
        }
        let stuck = |view: &&View| view.stuck.is_some_and(|time| time >= STUCK_ALERT);
        let stuck: Vec<&View> = self.views.iter().filter(stuck).collect();
        for view in stuck.iter().take(MAX_STUCK_TOLD) {
            let minutes = view.stuck.unwrap_or_default().as_secs() / 60;
            let why = view.error.as_deref().unwrap_or(view.waits_for);
            all.push(format!("instance {} has been stuck for {minutes} minutes: {why}", view.name));
        }
        if let Some(more) = stuck.len().checked_sub(MAX_STUCK_TOLD).filter(|more| *more > 0) {
            all.push(format!("{more} more instances are stuck"));
        }
        all
    }

    /// `time` by the system's clock.
    pub fn wall(&self, time: Time) -> SystemTime {
        self.wall.checked_sub(self.now - time).unwrap_or(SystemTime::UNIX_EPOCH)
    }
}

impl Process {
    /// Asks the system.
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
