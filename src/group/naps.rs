//! Suspended and resumed instances: what VCD's answers mean for them, and what is done when it is not clear how they are.

use super::answers::{begun, wrong_reply};
use super::instance::{Goal, There, Work};
use super::steps::{BUSY_PAUSE, FIND_PAUSE, LOOK_PAUSE, UNCLEAR_WINDOW};
use super::{Group, Key};
use crate::cloud::{Answer, ErrorKind, Href, Power, Reply, Started, Vapp, VcdError};
use log::Level;

impl Group {
    /// The answer to a suspend or a resume.
    pub(super) fn nap_answered(&mut self, key: Key, work: Work, answer: Answer) {
        let now = self.now;
        let Some(i) = self.instances.get_mut(&key) else { return };
        let Some(vapp) = i.vapp().cloned() else { return };
        let error = match answer {
            Ok(Reply::Started(Started { task, .. })) => {
                i.stumbles = 0;
                match task {
                    Some(task) => i.place(begun(work, vapp, Some(task), now), now),
                    // Done at once, or never begun: a look tells.
                    None => i.unsure = Some(now + UNCLEAR_WINDOW),
                }
                self.throttle.accepted();
                self.progress = now;
                let text = if work == Work::Suspend { "VCD suspends it" } else { "VCD resumes it" };
                return self.say_of(Level::Info, key, text.into());
            }
            Ok(other) => wrong_reply("suspend or resume", &other),
            Err(error) => error,
        };
        match error.kind {
            ErrorKind::Limit => self.throttled(key, &error),
            ErrorKind::Busy => {
                // What holds it is looked at: it may never end.
                i.unsure = Some(now);
                i.not_before = now + BUSY_PAUSE;
            }
            ErrorKind::Ambiguous | ErrorKind::Protocol => {
                i.unsure = Some(now + UNCLEAR_WINDOW);
                i.not_before = now + FIND_PAUSE;
                self.blame(key, &error, "whether it worked is looked up");
            }
            ErrorKind::NotFound => self.vanished(key),
            ErrorKind::Unavailable | ErrorKind::Auth => self.stumble(key, &error),
            // It may be suspended already, or on: an earlier request was carried out late.
            _ => {
                i.unsure = Some(now);
                match work {
                    Work::Suspend => self.not_suspended(key, &error),
                    _ => self.stumble(key, &error),
                }
            }
        }
    }

    /// A suspend failed for good: the instance runs on.
    pub(super) fn not_suspended(&mut self, key: Key, error: &VcdError) {
        if let Some(i) = self.instances.get_mut(&key)
            && i.goal == Goal::Asleep
        {
            i.goal = Goal::Live;
        }
        self.blame(key, error, "not suspended, it runs on");
    }

    /// A look at an instance that should run or be suspended, after a request whose outcome is not known, or because polls
    /// show something else.
    pub(super) fn unsure_seen(&mut self, key: Key, vapp: &Vapp) {
        let now = self.now;
        let deadline = now + self.policy.create_timeout;
        let Some(i) = self.instances.get_mut(&key) else { return };
        if i.goal.is_gone() {
            // It goes however it is.
            return;
        }
        let Some(until) = i.unsure else { return };
        let (href, wants_sleep) = (vapp.href.clone(), i.goal == Goal::Asleep);
        let asleep = matches!(i.there, There::Suspended { .. });
        match (&i.there, vapp.power) {
            (There::Ready { .. } | There::Suspended { .. }, _) if wants_sleep != asleep && !vapp.tasks.is_empty() => {
                i.unsure = None;
                i.place(begun(Work::Held { asleep }, href, vapp.tasks.first().cloned(), now), now);
            }
            _ if vapp.busy && now < until => i.not_before = now + LOOK_PAUSE,
            (There::Ready { .. }, Power::Suspended) => self.asleep(key, href),
            (There::Suspended { .. }, Power::On) => {
                if wants_sleep {
                    i.rouse(deadline);
                    let text = "on again, not by us: reported as running when its login port answers";
                    self.say_of(Level::Warn, key, text.into());
                }
                self.wakes(key, href);
            }
            (There::Booting { .. }, power) if power != Power::On => {
                i.unsure = None;
                self.boot_failed(key, "it is off, though it was resumed");
            }
            // The request may yet be carried out.
            _ if wants_sleep != asleep && now < until => i.not_before = now + LOOK_PAUSE,
            _ => {
                i.unsure = None;
                i.off = 0;
            }
        }
    }

    /// Its memory is on disk.
    pub(super) fn asleep(&mut self, key: Key, vapp: Href) {
        let now = self.now;
        let deadline = now + self.policy.create_timeout;
        let Some(i) = self.instances.get_mut(&key) else { return };
        i.unsure = None;
        if i.goal == Goal::Live {
            // Not wanted so, or not any more: it is resumed.
            i.rouse(deadline);
        }
        i.place(There::Suspended { vapp, since: now }, now);
        self.say_of(Level::Info, key, "suspended".into());
    }

    /// Its memory is back: what polls showed before says nothing of it.
    pub(super) fn wakes(&mut self, key: Key, vapp: Href) {
        let now = self.now;
        let deadline = now + self.policy.ready_timeout;
        let Some(i) = self.instances.get_mut(&key) else { return };
        (i.unsure, i.facts, i.deadline) = (None, None, deadline);
        i.place(There::Booting { vapp }, now);
    }
}
