//! What is observed of an instance's vApp, its VM and its guest: by operations, by looks, and by polls, which may lag.

use super::Time;
use super::instance::Mark;
use super::limits::Slot;
use super::time::{Seen, Stopwatch};
use crate::cloud::{self, Customization, Href, Made, Power, SeenGuest, Source, VcdError, Vm, is_windows};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// Three polls in a row without an instance ask for a direct look.
pub const MISSED_POLLS: u32 = 3;
/// Looks that find what polls do not show are at most so many polls apart.
pub const MISSED_POLLS_MAX: u32 = 64;
/// A made VM's hardware is asked for at most so many times if VCD does not answer.
pub const CHECKS: u32 = 3;
/// What a direct look has shown of a VM that is made counts for so long: somebody may move it meanwhile.
pub const DOCUMENT_AGE: Duration = Duration::from_secs(15);
/// A guest whose customization reports nothing is taken when its login port has answered every probe for so long.
pub const CUSTOMIZATION_GRACE: Duration = Duration::from_secs(60);
/// The same for a Windows, whose customization takes many minutes and several reboots.
pub const CUSTOMIZATION_GRACE_WINDOWS: Duration = Duration::from_secs(5 * 60);

/// A vApp of an instance.
pub(super) struct Vapp {
    pub href: Href,
    /// Since when it is known: polls that were sent before say nothing of it.
    pub known: Time,
    /// Its own document has shown that it is ours, and no poll the contrary since: nothing is changed before.
    pub proven: bool,
    /// It has to go, whatever is desired: its create failed. Why it is made anew is in the instance's error.
    pub doomed: bool,
    /// How it is as far as operations and looks tell. Polls lag: they only contradict.
    pub power: Power,
    pub guest: Guest,
    /// How far it is made.
    pub build: Build,
    /// Its VM, once seen.
    pub vm: Option<Href>,
    /// What the last poll that showed the VM said.
    pub record: Option<Record>,
    /// What the last direct look showed, until something is done to it.
    pub document: Option<Box<Document>>,
    /// Something does not fit: a look settles it.
    pub doubt: bool,
    /// Another VM than ours is in it.
    pub shared: bool,
    /// Polls in a row, sent after `known`, that did not show it.
    pub missed: u32,
    /// So many missed polls ask for a direct look; doubles when the look finds it.
    pub patience: u32,
    /// Polls in a row that contradict what is believed of it.
    pub against: u32,
    /// Polls in a row that show it down while a task holds it.
    pub held: u32,
    /// The record shows no address any more: the last one is kept.
    pub address_kept: bool,
    /// When its login port was probed first, since nothing else is missing.
    pub probed: Option<Time>,
    /// Off or broken, and not by us.
    pub unhealthy: Option<Unhealthy>,
    /// How it is deleted next.
    pub removal: Removal,
    /// When VCD will suspend or delete it by itself.
    pub lease_end: Option<Time>,
    /// What it was created from.
    pub source: Source,
    /// Its address outside the NAT of its vApp, if a look at that showed one: the vApps that are made here have no NAT.
    pub external: Option<IpAddr>,
    pub label: Label,
    /// The group's label was on it when it was found, or was written since.
    pub labelled: bool,
    /// What it carries; `None` while a request that writes it is under way, or its outcome is not known.
    pub mark: Option<Mark>,
}

/// The guest of a vApp, as far as this process has to do with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Guest {
    /// It has not been on.
    New,
    /// It is on for the first time: `since` then, and its login port `answers` every probe since.
    Booting { since: Stopwatch, answers: Option<Time>, probing: bool },
    /// Its login port has answered, and nobody has used it: it is to be suspended, is suspended, or is resumed for the
    /// first time that it is used.
    Standby,
    /// Its login port has answered.
    Ready,
    /// It has run, was suspended, and is wanted again: `since` it is on.
    Returning { since: Option<Stopwatch>, answers: Option<Time>, probing: bool },
}

impl Guest {
    /// It has answered once: nobody makes it anew.
    pub fn has_run(&self) -> bool {
        matches!(self, Guest::Ready | Guest::Returning { .. })
    }

    /// It is on, and its login port has yet to answer.
    pub fn boots(&self) -> bool {
        matches!(self, Guest::Booting { .. } | Guest::Returning { since: Some(_), .. })
    }

    pub fn is_probed(&self) -> bool {
        matches!(self, Guest::Booting { probing: true, .. } | Guest::Returning { probing: true, .. })
    }

    /// The watch that judges it, and whether its port answers steadily.
    pub fn watch(&mut self) -> Option<(&mut Stopwatch, &mut Option<Time>, &mut bool)> {
        match self {
            Guest::Booting { since, answers, probing } | Guest::Returning { since: Some(since), answers, probing } => {
                Some((since, answers, probing))
            }
            _ => None,
        }
    }
}

/// How far a VM is made.
#[derive(Default)]
pub(super) struct Build {
    /// Its create carried everything, and powers it on.
    pub whole: bool,
    /// Its hardware was set by a request of its own.
    pub configured: bool,
    /// It was given a TPM, or does not take one.
    pub tpm: bool,
    /// Its guest has been ready before.
    pub customized: bool,
    /// How often its hardware was asked for, to compare it with the wish; [`CHECKS`] when that is done.
    pub checks: u32,
    /// Its create's task has failed so: a look tells whether it can be used all the same.
    pub failed: Option<Box<VcdError>>,
    /// Between two steps that follow each other at once, the second has the slot of the first.
    pub slot: Option<Slot>,
}

/// Off or broken, and not by us. Heartbeat says so.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unhealthy {
    pub since: Stopwatch,
    pub why: &'static str,
    /// It is deleted if it stays so.
    pub ends: bool,
}

/// The metadata label, written once the instance runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Label {
    Wanted { tries: u32, not_before: Time },
    OnWire { tries: u32 },
    Settled,
}

/// What the last poll that showed the VM said.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub seen: Time,
    pub power: Power,
    /// A task held it.
    pub busy: bool,
    pub address: Option<IpAddr>,
    pub customization: Customization,
    pub guest_os: Arc<str>,
}

impl Record {
    /// `customized`: its customization was over before, whatever is told of it now.
    pub fn of(vm: &Vm, customized: bool, seen: Time) -> Record {
        let (power, busy, address) = (vm.power, vm.busy, vm.address);
        let customization = if customized { Customization::Complete } else { vm.customization };
        Record { seen, power, busy, address, customization, guest_os: vm.guest_os.as_str().into() }
    }

    /// As a look shows it, which counts for more than what polls have shown before.
    pub fn of_look(seen: &SeenGuest, busy: bool, old: Option<&Record>, now: Time) -> Record {
        let customization = match (seen.customization, old) {
            (Customization::Unknown, Some(old)) => old.customization,
            (told, _) => told,
        };
        let guest_os = match old {
            Some(old) if seen.guest_os.is_empty() => old.guest_os.clone(),
            _ => seen.guest_os.as_str().into(),
        };
        let address = seen.address.or(old.and_then(|old| old.address));
        Record { seen: now, power: Power::On, busy, address, customization, guest_os }
    }

    /// Nothing but the login port is missing.
    pub fn complete(&self) -> bool {
        self.power == Power::On
            && self.address.is_some()
            && matches!(self.customization, Customization::Complete | Customization::Unknown)
    }

    /// The same, and customization has said so.
    pub fn is_final(&self) -> bool {
        self.complete() && self.customization == Customization::Complete
    }

    /// Customization has reported nothing yet, and perhaps never will: old Tools do not.
    pub fn silent(&self) -> bool {
        self.power == Power::On && self.address.is_some() && self.customization == Customization::Pending
    }

    /// How long its login port must answer steadily if customization reports nothing.
    pub fn grace(&self) -> Duration {
        if is_windows(&self.guest_os) { CUSTOMIZATION_GRACE_WINDOWS } else { CUSTOMIZATION_GRACE }
    }
}

/// What a direct look showed.
#[derive(Clone, Debug)]
pub(super) struct Document {
    pub at: Time,
    pub busy: bool,
    /// VCD shows what made it and what it lacks.
    pub made: Option<Made>,
}

impl Document {
    pub fn of(seen: &cloud::Vapp, at: Time) -> Box<Document> {
        Box::new(Document { at, busy: seen.busy, made: seen.made.clone() })
    }
}

/// How a vApp is deleted: by force, or stopped first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Removal {
    Force,
    Stop,
    Stopped,
}

impl Vapp {
    pub fn new(href: Href, now: Time) -> Vapp {
        Vapp {
            href,
            known: now,
            proven: false,
            doomed: false,
            power: Power::Other,
            guest: Guest::New,
            build: Build { whole: true, ..Build::default() },
            vm: None,
            record: None,
            document: None,
            doubt: false,
            shared: false,
            missed: 0,
            patience: MISSED_POLLS,
            against: 0,
            held: 0,
            address_kept: false,
            probed: None,
            unhealthy: None,
            removal: Removal::Force,
            lease_end: None,
            external: None,
            label: Label::Settled,
            labelled: false,
            source: Source::default(),
            mark: Some(Mark::Running),
        }
    }

    /// It is suspended and marked as in standby.
    pub fn is_at_rest(&self) -> bool {
        self.guest == Guest::Standby && self.power == Power::Suspended && self.mark == Some(Mark::Standby)
    }

    /// Its customization is over, whatever records tell of it.
    pub fn is_customized(&self) -> bool {
        self.build.customized || self.guest == Guest::Standby || self.guest.has_run()
    }

    /// Polls do not show it, and a look is due.
    pub fn is_missing(&self) -> bool {
        self.missed >= self.patience
    }

    /// A look shows it: if it was missing, the polls lag behind. Tells whether it was.
    pub fn is_found(&mut self) -> bool {
        let missing = self.is_missing();
        if missing {
            self.missed = 0;
            self.patience = (self.patience * 2).min(MISSED_POLLS_MAX);
        }
        missing
    }

    /// Something is to be settled by a direct look.
    pub fn wants_look(&self) -> bool {
        self.is_missing() || self.doubt || self.is_unchecked()
    }

    /// It was made now, and its hardware has not been compared with the wish yet.
    pub fn is_unchecked(&self) -> bool {
        matches!(self.guest, Guest::Booting { .. }) && self.build.checks < CHECKS
    }

    /// What a look showed, if that counts still.
    pub fn document(&self, now: Time) -> Option<&Document> {
        self.document.as_deref().filter(|document| now - document.at <= DOCUMENT_AGE)
    }

    /// It is on for the first time.
    pub fn boots(&mut self, now: Time, seen: Seen) {
        self.guest = Guest::Booting { since: Stopwatch::start(seen), answers: None, probing: false };
        // No step follows, whoever powered it on.
        self.build.slot = None;
        self.settle(Power::On, now);
    }

    /// It was in standby, or about to be, and is on for its first use: it may be created anew if it does not come up.
    pub fn first_use(&mut self, now: Time, seen: Seen) {
        (self.build.customized, self.build.checks) = (true, CHECKS);
        self.boots(now, seen);
    }

    /// It is known to be so since `now`: what polls said before does not count.
    pub fn settle(&mut self, power: Power, now: Time) {
        self.power = power;
        self.known = now;
        self.probed = None;
        self.doubt = false;
        (self.against, self.missed, self.patience) = (0, 0, MISSED_POLLS);
    }
}
