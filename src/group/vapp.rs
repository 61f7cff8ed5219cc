//! The observed state of an instance's vApp, VM and guest: from operations, from lookups, and from polls, which may lag.

use super::instance::Mark;
use super::limits::Slot;
use super::time::{Seen, Stopwatch};
use super::{Owner, Time};
use crate::cloud::{self, Customization, Href, Made, Power, SeenGuest, Source, VcdError, Vm, is_windows};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// A lookup follows when this many polls in a row do not show an instance.
pub const MISSED_POLLS: u32 = 3;
/// Maximum number of polls between two lookups of a vApp that lookups find and polls do not show.
pub const MISSED_POLLS_MAX: u32 = 24;
/// Maximum number of lookups of a VM's hardware if VCD does not answer.
pub const CHECKS: u8 = 3;
/// The result of a lookup of a created VM is valid for this long: somebody may move the VM meanwhile.
pub const DOCUMENT_AGE: Duration = Duration::from_secs(15);
/// After this time without a poll that shows a vApp, a lookup precedes each change: a person may have renamed it meanwhile,
/// or moved a VM into it.
pub const RECORD_AGE: Duration = Duration::from_secs(60);
/// A guest whose customization reports nothing is ready when its login port has answered every probe for this long.
pub const CUSTOMIZATION_GRACE: Duration = Duration::from_secs(60);
/// The same for Windows, whose customization takes many minutes and several reboots.
pub const CUSTOMIZATION_GRACE_WINDOWS: Duration = Duration::from_secs(5 * 60);

/// A vApp of an instance.
pub(super) struct Vapp {
    pub href: Href,
    /// When it became known: polls that were sent before do not show it.
    pub known: Time,
    /// When it was created, or a poll or lookup last showed its name and text.
    pub shown: Time,
    /// Its own document has shown the owner tag, and no poll contradicts it since. No change before that.
    pub proven: bool,
    /// It is to be deleted even if the instance is wanted: its create failed. The instance's error has the reason.
    pub doomed: bool,
    /// Its power state according to operations and lookups. Polls lag: they can only contradict.
    pub power: Power,
    pub guest: Guest,
    /// The progress of its create.
    pub build: Build,
    /// Its VM, when known.
    pub vm: Option<Href>,
    /// The VM's record in the last poll that showed it.
    pub record: Option<Record>,
    /// The result of the last lookup, until an operation starts.
    pub document: Option<Box<Document>>,
    /// Observations contradict each other: a lookup decides.
    pub doubt: bool,
    /// It contains a foreign VM.
    pub shared: bool,
    /// The text of its VM in the last poll, if it is not the instance's tag.
    pub noted: Option<Arc<str>>,
    /// Polls in a row, sent after `known`, that did not show it.
    pub missed: u32,
    /// A lookup follows after this many missed polls. Doubles when the lookup finds it.
    pub patience: u32,
    /// Polls in a row that contradict its known state.
    pub against: u32,
    /// Polls show it down while a task works on it, since then.
    pub held: Option<Stopwatch>,
    /// The record no longer shows an address: the last one is kept.
    pub address_kept: bool,
    /// The first probe of its login port, when nothing else is missing.
    pub probed: Option<Time>,
    /// Powered off or failed, not by the plugin.
    pub unhealthy: Option<Unhealthy>,
    /// How the next delete works.
    pub removal: Removal,
    /// When its lease in VCD ends.
    pub lease_end: Option<Time>,
    /// What it was created from.
    pub source: Source,
    /// Its address outside the NAT of its vApp, if a lookup showed one. The vApps of this plugin have no NAT.
    pub external: Option<IpAddr>,
    pub label: Label,
    /// It was found with the group's metadata entry, and its VMs had no tag: see [`Vapp::is_the_go_plugins`].
    pub labelled: bool,
    /// Its suspend mark. `None` while a request that writes it is on the wire, or its outcome is unknown.
    pub mark: Option<Mark>,
}

/// The guest of a vApp, as far as this process knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Guest {
    /// It has not been powered on.
    New,
    /// It boots for the first time, on `since` then. Its login port `answers` every probe since.
    Booting { since: Stopwatch, answers: Option<Time>, probing: bool },
    /// Its login port has answered, and nobody has used it: it is to be suspended, is suspended, or is being resumed for
    /// its first use.
    Standby,
    /// Its login port has answered.
    Ready,
    /// It has run, was suspended, and is wanted again. Powered on `since`.
    Returning { since: Option<Stopwatch>, answers: Option<Time>, probing: bool },
}

impl Guest {
    /// It was ready once: it is not created again.
    pub fn has_run(&self) -> bool {
        matches!(self, Guest::Ready | Guest::Returning { .. })
    }

    /// It is powered on, and its login port has not answered yet.
    pub fn boots(&self) -> bool {
        matches!(self, Guest::Booting { .. } | Guest::Returning { since: Some(_), .. })
    }

    pub fn is_probed(&self) -> bool {
        matches!(self, Guest::Booting { probing: true, .. } | Guest::Returning { probing: true, .. })
    }

    /// Its stopwatch, since when its port answers, and whether a probe is on the wire.
    pub fn watch(&mut self) -> Option<(&mut Stopwatch, &mut Option<Time>, &mut bool)> {
        match self {
            Guest::Booting { since, answers, probing } | Guest::Returning { since: Some(since), answers, probing } => {
                Some((since, answers, probing))
            }
            _ => None,
        }
    }
}

/// The progress of a VM's create.
#[derive(Default)]
pub(super) struct Build {
    /// The create used the combined request, with power-on.
    pub whole: bool,
    /// How it differed from the request when the last reconfigure began: the next one sets another part, or VCD does not
    /// change that.
    pub configured: Option<String>,
    /// It got a TPM, or VCD rejected one.
    pub tpm: bool,
    /// Its guest has been ready before.
    pub customized: bool,
    /// Its address before it was resumed. With DHCP another guest may have it now.
    pub old_address: Option<IpAddr>,
    /// Number of lookups to compare its hardware with the request. [`CHECKS`] when this is done.
    pub checks: u8,
    /// The error of its create task: a lookup shows whether the VM can still be used.
    pub failed: Option<Box<VcdError>>,
    /// The slot of a step, kept for a step that follows at once.
    pub slot: Option<Slot>,
}

/// Powered off or failed, not by the plugin. Heartbeat reports it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unhealthy {
    pub since: Stopwatch,
    pub why: &'static str,
    /// It is deleted if this lasts.
    pub ends: bool,
}

/// The metadata entry, written when the instance runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Label {
    Wanted { tries: u32, not_before: Time },
    OnWire { tries: u32 },
    Settled,
}

/// The VM's record in the last poll that showed it.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub seen: Time,
    pub power: Power,
    /// A task works on it.
    pub busy: bool,
    pub address: Option<IpAddr>,
    pub customization: Customization,
    pub guest_os: Arc<str>,
}

impl Record {
    /// `customized`: its customization ended before, whatever the record shows.
    pub fn of(vm: &Vm, customized: bool, seen: Time) -> Record {
        let (power, busy, address) = (vm.power, vm.busy, vm.address);
        let customization = if customized { Customization::Complete } else { vm.customization };
        Record { seen, power, busy, address, customization, guest_os: vm.guest_os.clone() }
    }

    /// The result of a lookup, which counts more than earlier polls.
    pub fn of_look(seen: &SeenGuest, busy: bool, old: Option<&Record>, now: Time) -> Record {
        let customization = match (seen.customization, old) {
            (Customization::Unknown, Some(old)) => old.customization,
            (told, _) => told,
        };
        let guest_os = match old {
            Some(old) if seen.guest_os.is_empty() => old.guest_os.clone(),
            _ => seen.guest_os.clone(),
        };
        let address = seen.address.or(old.and_then(|old| old.address));
        Record { seen: now, power: Power::On, busy, address, customization, guest_os }
    }

    /// Only the login port is missing.
    pub fn complete(&self) -> bool {
        self.power == Power::On
            && self.address.is_some()
            && matches!(self.customization, Customization::Complete | Customization::Unknown)
    }

    /// The same, and customization has reported its end.
    pub fn is_final(&self) -> bool {
        self.complete() && self.customization == Customization::Complete
    }

    /// Customization has reported nothing yet, and perhaps never will: old VMware Tools do not.
    pub fn silent(&self) -> bool {
        self.power == Power::On && self.address.is_some() && self.customization == Customization::Pending
    }

    /// How long its login port must answer steadily if customization reports nothing.
    pub fn grace(&self) -> Duration {
        if is_windows(&self.guest_os) { CUSTOMIZATION_GRACE_WINDOWS } else { CUSTOMIZATION_GRACE }
    }
}

/// The result of a lookup.
#[derive(Clone, Debug)]
pub(super) struct Document {
    pub at: Time,
    pub busy: bool,
    /// VCD shows what the VM is and what it lacks.
    pub made: Option<Made>,
}

impl Document {
    pub fn of(seen: &cloud::Vapp, at: Time) -> Box<Document> {
        Box::new(Document { at, busy: seen.busy, made: seen.made.clone() })
    }
}

/// How a vApp is deleted: with force, or after a stop.
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
            shown: now,
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
            noted: None,
            missed: 0,
            patience: MISSED_POLLS,
            against: 0,
            held: None,
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

    /// By its records and its document, the Go plugin created it. A poll may have missed its VM.
    pub fn is_the_go_plugins(&self, seen: &cloud::Vapp) -> bool {
        self.labelled && !Owner::has_tag(seen)
    }

    /// Its own document, which shows the owner tag and all its VMs. True if one of them is the instance's.
    pub fn show(&mut self, seen: &cloud::Vapp, now: Time) -> bool {
        (self.proven, self.shown) = (true, now);
        if self.vm.is_none() {
            // The Go plugin's VMs have names of their own.
            let any = self.is_the_go_plugins(seen);
            let own = seen.made.as_ref().filter(|made| made.own || any);
            self.vm = own.map(|made| made.vm.clone());
        }
        let ours = self.vm.as_ref().is_some_and(|vm| seen.vms.contains(vm));
        self.shared = seen.vms.len() > usize::from(ours);
        self.document = Some(Document::of(seen, now));
        let made = seen.made.as_ref().filter(|made| self.vm.as_ref() == Some(&made.vm));
        self.external = made.and_then(|made| made.external).or(self.external);
        if let (Power::On, Some(guest)) = (seen.power, made.and_then(|made| made.guest.as_ref())) {
            let mut record = Record::of_look(guest, seen.busy, self.record.as_ref(), now);
            if self.is_customized() {
                record.customization = Customization::Complete;
            }
            self.record = Some(record);
        }
        ours
    }

    /// It is suspended and marked as standby.
    pub fn is_at_rest(&self) -> bool {
        self.guest == Guest::Standby && self.power == Power::Suspended && self.mark == Some(Mark::Standby)
    }

    /// A task works on it, according to the last poll or the last lookup.
    pub fn is_busy(&self) -> bool {
        let document = self.document.as_ref().is_some_and(|document| document.busy);
        document || self.record.as_ref().is_some_and(|record| record.busy)
    }

    /// Its customization has ended, whatever records show.
    pub fn is_customized(&self) -> bool {
        self.build.customized || self.guest == Guest::Standby || self.guest.has_run()
    }

    /// When it became known, or a poll or lookup last showed its VM. Earlier polls say nothing.
    pub fn last_seen(&self) -> Time {
        self.record.as_ref().map_or(self.known, |record| record.seen.max(self.known))
    }

    /// Polls do not show it, and a lookup is due.
    pub fn is_missing(&self) -> bool {
        self.missed >= self.patience
    }

    /// A lookup shows it: if polls missed it, they lag. Returns whether they did.
    pub fn is_found(&mut self) -> bool {
        let missing = self.is_missing();
        if missing {
            self.missed = 0;
            self.patience = (self.patience * 2).min(MISSED_POLLS_MAX);
        }
        missing
    }

    /// A lookup has to decide something.
    pub fn wants_look(&self) -> bool {
        self.is_missing() || self.doubt || self.is_unchecked()
    }

    /// The group owns it according to its own document, and a poll or a lookup has just shown it.
    pub fn is_known(&self, now: Time) -> bool {
        let is_fresh = self.missed == 0 && now - self.shown <= RECORD_AGE;
        self.proven && (is_fresh || self.document(now).is_some())
    }

    /// It was created just now, and its hardware has not been compared with the request yet.
    pub fn is_unchecked(&self) -> bool {
        matches!(self.guest, Guest::Booting { .. }) && self.build.checks < CHECKS
    }

    /// The result of a lookup, if it is still valid.
    pub fn document(&self, now: Time) -> Option<&Document> {
        self.document.as_deref().filter(|document| now - document.at <= DOCUMENT_AGE)
    }

    /// It is powered on for the first time.
    pub fn boots(&mut self, now: Time, seen: Seen) {
        self.guest = Guest::Booting { since: Stopwatch::start(seen), answers: None, probing: false };
        // No create step follows, whoever powered it on.
        self.build.slot = None;
        self.settle(Power::On, now);
    }

    /// It was in standby, or about to be, and is powered on for its first use. If it does not become ready, it may be
    /// created again.
    pub fn first_use(&mut self, now: Time, seen: Seen) {
        (self.build.customized, self.build.checks) = (true, CHECKS);
        self.boots(now, seen);
    }

    /// Its power state is known since `now`: earlier polls do not count.
    pub fn settle(&mut self, power: Power, now: Time) {
        self.power = power;
        self.known = now;
        self.probed = None;
        self.doubt = false;
        (self.against, self.missed, self.patience) = (0, 0, MISSED_POLLS);
    }
}
