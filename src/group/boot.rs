//! Checks whether a guest becomes ready: the result of its login port, and the consequences if it fails.

use super::answers::LABEL_DELAY;
use super::instance::{Cause, Desired};
use super::time::Stopwatch;
use super::vapp::{CHECKS, Guest, Label, Record};
use super::{Group, Instance, Key, Time};
use crate::cloud::{ErrorKind, VcdError};
use log::Level;
use std::net::IpAddr;
use std::time::Duration;

/// Pause between two probes of a login port after customization has ended.
pub const PROBE_PAUSE: Duration = Duration::from_millis(250);
/// The same when the port has not answered for [`PROBE_PATIENCE`].
pub const PROBE_PAUSE_LONG: Duration = Duration::from_secs(1);
/// A login server usually starts within this time.
pub const PROBE_PATIENCE: Duration = Duration::from_secs(30);
/// Pause between two probes of a login port while customization reports nothing: short enough to notice a reboot.
pub const STEADY_PROBE_PAUSE: Duration = Duration::from_secs(5);

impl Group {
    /// The stopwatch of a guest that boots, since when its port answers, and whether a probe is on the wire.
    pub(super) fn guest_watch(&mut self, key: Key) -> Option<(&mut Stopwatch, &mut Option<Time>, &mut bool)> {
        self.instances.get_mut(&key)?.vapp_mut()?.guest.watch()
    }

    pub(super) fn probe_answered(&mut self, key: Key, address: IpAddr, result: Result<(), String>) {
        let (now, labels) = (self.now, self.labels);
        let Some(i) = self.instances.get_mut(&key) else { return };
        let stands_by = i.desired == Desired::Standby;
        let wanted = (i.desired == Desired::Running || stands_by) && !i.goes();
        let Some(vapp) = i.vapp_mut() else { return };
        let record = vapp.record.clone();
        let silent = record.as_ref().is_some_and(Record::silent);
        let complete = record.as_ref().is_some_and(Record::complete);
        let probed = record.as_ref().is_some_and(|record| record.address == Some(address));
        let returns = vapp.guest.has_run();
        let late = !silent && now - *vapp.probed.get_or_insert(now) >= PROBE_PATIENCE;
        let Some((_, answers, probing)) = vapp.guest.watch() else { return };
        *probing = false;
        match result {
            // Polls have shown a change since the probe was sent.
            Ok(()) if !wanted || !probed || !(silent || complete) => {}
            // A poll must have shown this at the end of that time: polls may have failed meanwhile.
            Ok(()) if silent && record.is_some_and(|r| r.seen < *answers.get_or_insert(now) + r.grace()) => {
                i.attempts.probe = now + STEADY_PROBE_PAUSE;
            }
            Ok(()) if stands_by => {
                (vapp.guest, vapp.document, vapp.unhealthy) = (Guest::Standby, None, None);
                (i.error, self.progress) = (None, now);
                self.breaker.success(now);
                i.attempts.create.reset();
                self.say_of(Level::Info, key, "guest ready, to be suspended for standby".into());
            }
            Ok(()) => {
                // A lookup during its create says nothing about it now.
                (vapp.guest, vapp.document, vapp.unhealthy) = (Guest::Ready, None, None);
                if !returns && labels {
                    vapp.label = Label::Wanted { tries: 0, not_before: now + LABEL_DELAY };
                }
                i.error = None;
                i.attempts.create.reset();
                self.progress = now;
                if returns {
                    return self.say_of(Level::Info, key, "running again".into());
                }
                let took = i.age(now).as_secs();
                self.breaker.success(now);
                if silent {
                    let text = "the login port answers steadily, but VCD still shows guest customization as pending: \
                                the plugin accepts the VM. Newer VMware Tools in the template would report the end";
                    self.say_of(Level::Warn, key, text.into());
                }
                self.say_of(Level::Info, key, format!("running, {took} s after it was accepted"));
            }
            Err(seen) => {
                *answers = None;
                i.error = Some(format!("login port: {seen}").into());
                i.attempts.probe = now
                    + match silent {
                        true => STEADY_PROBE_PAUSE,
                        false if late => PROBE_PAUSE_LONG,
                        false => PROBE_PAUSE,
                    };
            }
        }
    }

    /// Its guest is not ready within ready_timeout.
    pub(super) fn not_ready(&mut self, key: Key) {
        let Some(i) = self.instances.get(&key) else { return };
        let seen = i.error.as_ref().map(|error| format!(" ({error})")).unwrap_or_default();
        let why = format!("not ready within ready_timeout, still waiting for {}{seen}", i.waits_for(self.now));
        self.boot_failed(key, &why);
    }

    /// A guest that cannot become ready: the vApp is deleted, then created again. A vApp of another process is given up.
    pub(super) fn boot_failed(&mut self, key: Key, why: &str) {
        let Some(i) = self.instances.get_mut(&key) else { return };
        let what = format!("VM {}", i.name);
        if i.has_run() {
            i.error = Some(why.into());
            self.say_of(Level::Warn, key, format!("{why}: the plugin gives it up"));
            return self.delete_for(key, Cause::Unhealthy);
        }
        let error = VcdError::own(ErrorKind::Failed, what, why);
        self.made_badly(key, &error);
    }

    /// The VM differs from the request: it is created again, once, in steps.
    pub(super) fn compare(&mut self, key: Key, differs: Option<String>) {
        let now = self.now;
        let Some(i) = self.instances.get_mut(&key) else { return };
        let Some(vapp) = i.vapp_mut() else { return };
        vapp.build.checks = CHECKS;
        let Some(differs) = differs else { return };
        if vapp.build.whole {
            // After the first boot, some changes are no longer possible.
            vapp.doomed = true;
            i.attempts.create.next = now;
            self.say_of(Level::Warn, key, format!("{differs}: the plugin creates the VM again"));
            self.whole_failures = 0;
            self.take_apart(&format!("VCD ignores a part of the create request ({differs})"), None);
        } else {
            self.say_of(Level::Warn, key, format!("{differs}: VCD does not change that, the VM is used as it is"));
        }
    }
}

impl Instance {
    /// A lookup of its hardware failed. It is not worth a long wait.
    pub(super) fn checked_in_vain(&mut self) -> Option<u8> {
        let vapp = self.vapp_mut().filter(|vapp| vapp.is_unchecked())?;
        vapp.build.checks += 1;
        Some(vapp.build.checks)
    }
}
