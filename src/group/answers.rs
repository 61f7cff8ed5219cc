//! Handles VCD's answer to a request that starts an operation. `changes.rs` handles the end of an operation, and
//! `failures.rs` the consequences of a failure.

use super::failures::{WHOLE_AGAIN, will_not_pass};
use super::instance::{Attempts, Desired, Kind, Mark, Operation, Question, Stage};
use super::limits::{DELETE_RETRY_MAX, Lane, RETRY_BASE, RETRY_MAX, doubled};
use super::next::{CANCEL_PATIENCE, UNKNOWN_WINDOW};
use super::time::Stopwatch;
use super::vapp::{Guest, Label, Removal, Vapp};
use super::{Group, Key};
use crate::cloud::{Answer, ErrorKind, Power, Reply, Started, VcdError};
use log::Level;
use std::time::Duration;

/// Pause between lookups of a name or vApp whose state is unclear.
pub const LOOK_PAUSE: Duration = Duration::from_secs(5);
/// Pause before the lookup of a busy vApp. Doubles each time that it is still busy.
pub const BUSY_PAUSE: Duration = Duration::from_secs(3);
/// Pause before the lookup after a lost answer.
pub const FIND_PAUSE: Duration = Duration::from_secs(1);
/// The metadata entry is written this long after the instance runs: its task would delay an immediate delete.
pub const LABEL_DELAY: Duration = Duration::from_secs(30);
/// Attempts to write data that nothing depends on: the metadata entry, and the end of a suspend mark.
pub const LABEL_TRIES: u32 = 3;
/// After VCD rejected a forced delete because of a right, VMs are stopped first for this long. The reason may concern one vApp.
pub const FORCE_AGAIN: Duration = Duration::from_secs(60 * 60);

impl Group {
    /// VCD's answer to a request that starts an operation.
    pub(super) fn operation_answered(&mut self, key: Key, answer: Answer) {
        let Some(kind) = self.instances.get(&key).and_then(|i| Some(i.operation.as_ref()?.kind)) else { return };
        let error = match answer {
            Ok(Reply::Started(started)) => match self.started(key, kind, started) {
                Ok(()) => return,
                Err(error) => error,
            },
            Ok(other) => wrong_reply("an operation", &other),
            Err(error) => error,
        };
        match error.kind {
            // Nothing was done.
            ErrorKind::Limit => {
                self.over(key);
                self.throttled(key, &error);
                // The result of a lookup may be outdated after the pause.
                let (now, until) = (self.now, self.throttle.until(self.now));
                let Some(i) = self.instances.get_mut(&key) else { return };
                if matches!(kind.lane(), Some(Lane::Create | Lane::Delete)) && i.vapp().is_some() {
                    i.attempts.look.next = until.unwrap_or(now);
                    i.vapp_mut().into_iter().for_each(|vapp| vapp.document = None);
                }
            }
            ErrorKind::Ambiguous | ErrorKind::Protocol => self.lost(key, kind, &error),
            _ => match kind {
                Kind::Create { whole } => self.create_refused(key, whole, &error),
                Kind::Configure | Kind::AddTpm | Kind::PowerOn => self.step_refused(key, kind, &error),
                Kind::Suspend | Kind::Resume | Kind::Mark(_) => self.change_refused(key, kind, &error),
                Kind::Delete(removal) => self.delete_refused(key, removal, &error),
                Kind::Other => self.over(key),
            },
        }
    }

    /// The operation has ended in VCD.
    pub(super) fn over(&mut self, key: Key) {
        if let Some(i) = self.instances.get_mut(&key) {
            i.operation = None;
        }
    }

    /// VCD has accepted the request.
    fn started(&mut self, key: Key, kind: Kind, started: Started) -> Result<(), VcdError> {
        let (now, seen, stopping) = (self.now, self.sight.at(self.now), self.stopping);
        let Some(i) = self.instances.get_mut(&key) else { return Ok(()) };
        if let Kind::Create { whole } = kind {
            let Started { vapp: Some(href), source, .. } = &started else {
                return Err(wrong_reply("create", &Reply::Started(started)));
            };
            let mut vapp = Vapp::new(href.clone(), now);
            (vapp.build.whole, vapp.source) = (whole, *source);
            i.observe(vapp);
            i.refused = None;
        }
        if let Some(vapp) = i.vapp_mut() {
            let document = vapp.document.take();
            match kind {
                Kind::Configure => vapp.build.configured = document.and_then(|document| document.made?.differs),
                Kind::AddTpm => vapp.build.tpm = true,
                _ => {}
            }
        }
        i.attempts.not_busy();
        self.throttle.accepted();
        self.progress = now;
        if let Some(text) = began(kind) {
            self.say_of(Level::Info, key, text.into());
        }
        let Some(i) = self.instances.get_mut(&key) else { return Ok(()) };
        match (started.task, &mut i.operation) {
            (Some(task), Some(operation)) => {
                operation.stage = Stage::Task { task, cancelled: false, found: false };
                (operation.began, operation.watch) = (now, Stopwatch::start(seen));
                if stopping {
                    operation.slot = None;
                }
            }
            // Done at once, without a task.
            (None, _) => self.done(key, kind),
            (Some(_), None) => {}
        }
        Ok(())
    }

    /// The outcome is unknown: it was carried out, may be carried out later, or never.
    fn lost(&mut self, key: Key, kind: Kind, error: &VcdError) {
        if let Kind::Delete(_) = kind {
            self.delete_failed(key, error, false);
        }
        let (now, seen, stopping) = (self.now, self.sight.at(self.now), self.stopping);
        let Some(i) = self.instances.get_mut(&key) else { return };
        // Until the outcome is known, it keeps its slot.
        i.attempts.look.next = now + FIND_PAUSE;
        if let Some(vapp) = i.vapp_mut() {
            vapp.document = None;
        }
        if let Some(operation) = &mut i.operation {
            operation.stage = Stage::Unknown { until: now + UNKNOWN_WINDOW, looks: 0 };
            // VCD may still start it.
            operation.watch = Stopwatch::start(seen);
            operation.watch.hold(UNKNOWN_WINDOW);
            if stopping {
                operation.slot = None;
            }
        }
        match kind {
            Kind::Delete(_) => {}
            Kind::Create { .. } => self.blame(key, error, "a lookup by name shows whether VCD created it"),
            _ => self.blame(key, error, "a lookup shows whether it worked"),
        }
    }

    fn create_refused(&mut self, key: Key, whole: bool, error: &VcdError) {
        match error.kind {
            ErrorKind::Duplicate => self.lost(key, Kind::Create { whole }, error),
            ErrorKind::TooMuch if whole => {
                self.over(key);
                // VCD may not have shown the disk, for a moment.
                self.take_apart(&error.to_string(), Some(self.now + WHOLE_AGAIN));
            }
            // VCD was not available: this is no failure of the create.
            ErrorKind::Unavailable | ErrorKind::Auth | ErrorKind::Busy => {
                self.over(key);
                self.create_failed(key, Some(error));
            }
            kind => {
                self.over(key);
                self.create_failed(key, Some(error));
                let counts = match whole {
                    true => kind != ErrorKind::Invalid || self.whole_failed(error),
                    false => {
                        if kind != ErrorKind::Quota {
                            self.steps_failed();
                        }
                        true
                    }
                };
                if counts {
                    self.count_create_failure(key, false);
                }
            }
        }
    }

    fn step_refused(&mut self, key: Key, kind: Kind, error: &VcdError) {
        let now = self.now;
        self.over(key);
        let Some(i) = self.instances.get_mut(&key) else { return };
        match error.kind {
            ErrorKind::Busy => self.busy(key),
            ErrorKind::Unavailable | ErrorKind::Auth => {
                i.vapp_mut().into_iter().for_each(|vapp| vapp.document = None);
                self.change_failed(key, error);
            }
            // Its VM is gone, or the whole vApp, or VCD lags.
            ErrorKind::NotFound if !i.attempts.change.is_last() => {
                i.vapp_mut().into_iter().for_each(|vapp| vapp.document = None);
                i.attempts.change.note(now);
                i.attempts.change.next = now + LOOK_PAUSE;
                self.blame(key, error, "a lookup follows");
            }
            // A template may have a TPM that VCD does not show.
            _ if kind == Kind::AddTpm => self.no_tpm(key, error),
            _ => self.made_badly(key, error),
        }
    }

    /// A task works on the vApp. A lookup follows, because the task may never end.
    fn busy(&mut self, key: Key) {
        let now = self.now;
        let Some(i) = self.instances.get_mut(&key) else { return };
        let goes = i.goes();
        let most = if goes { DELETE_RETRY_MAX } else { RETRY_MAX };
        let until = now + busy_pause(&mut i.attempts, most);
        let backoff = if goes { &mut i.attempts.delete } else { &mut i.attempts.change };
        backoff.since.get_or_insert(now);
        (backoff.next, i.attempts.look.next) = (until, until);
        if let Some(vapp) = i.vapp_mut() {
            vapp.document = None;
            vapp.doubt |= goes || vapp.guest != Guest::New;
        }
    }

    pub(super) fn no_tpm(&mut self, key: Key, error: &VcdError) {
        if let Some(i) = self.instances.get_mut(&key) {
            i.attempts.change.reset();
            i.vapp_mut().into_iter().for_each(|vapp| (vapp.build.tpm, vapp.document) = (true, None));
        }
        self.blame(key, error, "powered on without a new TPM");
    }

    fn change_refused(&mut self, key: Key, kind: Kind, error: &VcdError) {
        let now = self.now;
        self.over(key);
        let Some(i) = self.instances.get_mut(&key) else { return };
        match error.kind {
            ErrorKind::Unavailable | ErrorKind::Auth => self.change_failed(key, error),
            ErrorKind::Busy => self.busy(key),
            _ if kind == Kind::Mark(Mark::Running) => self.not_unmarked(key, error),
            _ if kind == Kind::Resume => {
                // It may be on: an earlier request was carried out late.
                self.not_resumed(key, error);
                let Some(i) = self.instances.get_mut(&key) else { return };
                i.attempts.look.next = i.attempts.change.next;
                i.vapp_mut().into_iter().for_each(|vapp| vapp.doubt = true);
            }
            _ => {
                if let Some(vapp) = i.vapp_mut() {
                    // It may already be suspended.
                    vapp.doubt = kind == Kind::Suspend;
                    if let Kind::Mark(_) = kind {
                        vapp.mark = Some(Mark::Running);
                    }
                }
                self.not_suspended(key, error);
            }
        }
        if error.kind == ErrorKind::NotFound
            && let Some(i) = self.instances.get_mut(&key)
        {
            // It is gone, or VCD lags.
            i.attempts.look.next = now;
            i.vapp_mut().into_iter().for_each(|vapp| vapp.doubt = true);
        }
    }

    /// A suspend failed finally: the instance keeps running, or is not usable for the standby pool.
    pub(super) fn not_suspended(&mut self, key: Key, error: &VcdError) {
        let Some(i) = self.instances.get_mut(&key) else { return };
        match i.desired {
            Desired::Standby => return self.pool_failed(key, Some(error)),
            Desired::Suspended => i.wake_up(),
            Desired::Running | Desired::Deleted(_) => {}
        }
        // Somebody else may have suspended it.
        let is_suspended = i.vapp().is_some_and(|vapp| vapp.power == Power::Suspended);
        self.blame(
            key,
            error,
            if is_suspended { "not suspended, the VM is resumed" } else { "not suspended, the VM keeps running" },
        );
    }

    /// A suspend of its vApp would suspend another VM, too.
    pub(super) fn kept_on(&mut self, key: Key) {
        let Some(i) = self.instances.get(&key) else { return };
        let what = format!("suspend vApp {}", i.name);
        self.not_suspended(key, &VcdError::own(ErrorKind::State, what, "it contains another VM"));
    }

    /// A resume failed: the plugin retries. A VM that nobody has used is created again instead, unless a quota is full: that
    /// would also prevent its create.
    pub(super) fn not_resumed(&mut self, key: Key, error: &VcdError) {
        let Some(i) = self.instances.get_mut(&key) else { return };
        i.refused = Some(error.kind);
        let fresh = i.vapp().is_some_and(|vapp| vapp.guest == Guest::Standby) && !i.goes();
        if fresh && error.kind != ErrorKind::Quota {
            i.vapp_mut().into_iter().for_each(|vapp| vapp.doomed = true);
            // Its time starts with the new create request.
            (i.attempts.create.next, i.creating) = (self.now, None);
            return self.blame(key, error, "a new VM is created in place of the standby VM");
        }
        self.change_failed(key, error);
    }

    /// Nothing depends on a mark that stays on a running VM.
    pub(super) fn not_unmarked(&mut self, key: Key, error: &VcdError) {
        if self.instances.get(&key).is_some_and(|i| i.vapp().is_some_and(|vapp| vapp.guest == Guest::Standby)) {
            // It must not be used before its mark is deleted.
            return self.not_resumed(key, error);
        }
        self.change_failed(key, error);
        let Some(i) = self.instances.get_mut(&key) else { return };
        if i.attempts.change.tries >= LABEL_TRIES {
            i.attempts.change.reset();
            i.vapp_mut().into_iter().for_each(|vapp| vapp.mark = Some(Mark::Running));
        }
    }

    fn delete_refused(&mut self, key: Key, removal: Removal, error: &VcdError) {
        if error.kind == ErrorKind::NotFound {
            // It is gone, or VCD lags: nothing runs there.
            self.instances.get_mut(&key).and_then(|i| i.operation.as_mut()).into_iter().for_each(|op| op.slot = None);
            return self.look_what_became(key, self.now);
        }
        self.over(key);
        let now = self.now;
        let Some(i) = self.instances.get_mut(&key) else { return };
        let Some(vapp) = i.vapp_mut() else { return };
        match (error.kind, removal) {
            (ErrorKind::Busy, _) => {
                self.busy(key);
                self.blame_quietly(key, error, format!("{error}; a lookup follows"));
            }
            (ErrorKind::Forbidden | ErrorKind::Invalid | ErrorKind::State, Removal::Force) => {
                vapp.removal = Removal::Stop;
                if error.kind == ErrorKind::Forbidden {
                    self.no_force_until = now + FORCE_AGAIN;
                }
                self.say_of(Level::Warn, key, format!("{error}; the plugin stops the vApp first, then deletes it"));
            }
            // A powered-off vApp may still need a stop, if its guest shut down by itself: only VCD knows.
            (ErrorKind::Invalid | ErrorKind::State, Removal::Stop) => {
                vapp.removal = Removal::Stopped;
                self.say_of(Level::Debug, key, format!("{error}; no stop is needed, the plugin deletes it"));
            }
            // A vApp that cannot be deleted may be running, or needs force after all.
            (ErrorKind::Invalid | ErrorKind::State, Removal::Stopped) => {
                self.delete_failed(key, &VcdError { kind: ErrorKind::State, ..error.clone() }, true);
            }
            _ => self.delete_failed(key, error, false),
        }
    }

    fn blame_quietly(&mut self, key: Key, error: &VcdError, text: String) {
        if let Some(i) = self.instances.get_mut(&key) {
            i.error = Some(error.to_string().into());
        }
        self.say_of(Level::Debug, key, text);
    }

    /// VCD's answer to a lookup or a request to cancel.
    pub(super) fn question_answered(&mut self, key: Key, answer: Answer) {
        let Some(question) = self.instances.get_mut(&key).and_then(|i| i.question.take()) else { return };
        match question {
            Question::Find => self.find_answered(key, answer),
            Question::Look => self.look_answered(key, answer),
            Question::Cancel => self.cancel_answered(key, answer),
        }
    }

    fn cancel_answered(&mut self, key: Key, answer: Answer) {
        let (now, seen) = (self.now, self.sight.at(self.now));
        match answer {
            // A second request to cancel does no harm.
            Err(error)
                if !matches!(
                    error.kind,
                    ErrorKind::NotFound | ErrorKind::Invalid | ErrorKind::State | ErrorKind::Forbidden
                ) && self.instances.get(&key).is_some_and(|i| !i.attempts.change.is_last()) =>
            {
                self.change_failed(key, &error);
            }
            // VCD accepted it, or rejects it, as it does when the task has already ended: wait for the end of the task.
            _ => {
                let Some(i) = self.instances.get_mut(&key) else { return };
                if let Some(Operation { stage: Stage::Task { cancelled, .. }, watch, stuck, .. }) =
                    i.operation.as_deref_mut()
                {
                    *cancelled = true;
                    *watch = Stopwatch::start(seen);
                    if stuck.is_some() {
                        i.attempts.look.next = i.attempts.look.next.max(now + CANCEL_PATIENCE);
                    }
                }
            }
        }
    }

    pub(super) fn label_answered(&mut self, key: Key, answer: Answer) {
        let now = self.now;
        let Some(vapp) = self.instances.get_mut(&key).and_then(|i| i.vapp_mut()) else { return };
        let Label::OnWire { tries } = vapp.label else { return };
        let error = match answer {
            Ok(_) => {
                vapp.label = Label::Settled;
                return;
            }
            Err(error) => error,
        };
        let again = tries + 1 < LABEL_TRIES && !will_not_pass(error.kind);
        let pause = self.rng.jitter(doubled(RETRY_BASE, tries, RETRY_MAX), 25);
        vapp.label = if again { Label::Wanted { tries: tries + 1, not_before: now + pause } } else { Label::Settled };
        let follows = match again {
            true => "the plugin tries again",
            false => "the plugin gives up. Only the Go plugin needs the entry",
        };
        // If VCD is not available, other lines say so, about more important things.
        let unasked = matches!(error.kind, ErrorKind::Unavailable | ErrorKind::Auth);
        let level = if unasked { Level::Debug } else { Level::Warn };
        self.say_of(level, key, format!("metadata entry not written: {error}; {follows}"));
    }
}

/// The pause before the next lookup of a busy vApp.
pub(super) fn busy_pause(attempts: &mut Attempts, most: Duration) -> Duration {
    let pause = doubled(BUSY_PAUSE, attempts.busy, most);
    attempts.busy += 1;
    pause
}

/// What VCD does now, for the log.
fn began(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::Create { .. } => Some("create task started"),
        Kind::Configure => Some("reconfigure task started"),
        Kind::AddTpm => Some("TPM task started"),
        Kind::PowerOn => Some("power-on task started"),
        Kind::Suspend => Some("suspend task started"),
        Kind::Resume => Some("resume task started"),
        Kind::Delete(Removal::Stop) => Some("stop task started"),
        Kind::Delete(_) => Some("delete task started"),
        Kind::Mark(_) | Kind::Other => None,
    }
}

pub(super) fn wrong_reply(what: &str, reply: &Reply) -> VcdError {
    let kind = match reply {
        Reply::Poll(_) => "a poll",
        Reply::Vapps(_) => "vApps",
        Reply::Started(_) => "a started operation without a vApp",
        Reply::Tasks(_) => "tasks",
        Reply::Done => "nothing",
    };
    VcdError::own(ErrorKind::Protocol, what, format!("the answer contains {kind}"))
}
