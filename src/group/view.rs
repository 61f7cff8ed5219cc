//! How the group and its instances look to people: plain values for the log, the debug pages and the metrics. Decides
//! nothing, and nothing is decided by it.

use super::instance::{Asked, Goal, There};
use super::{Group, Instance, Key, MAX_LOOKS, MAX_PROBES, Name, Phase, Purpose, Ticket, Time};
use crate::cloud::{Href, Power};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// One instance as the debug pages show it.
#[derive(Clone, Debug)]
pub struct View {
    /// Tells it from all others that the group ever had; the id may come twice.
    pub key: u64,
    /// The id.
    pub name: Name,
    /// The host knows it; else it is a leftover.
    pub reported: bool,
    /// It is named like ours, and whether it is ours is not known yet.
    pub stranger: bool,
    /// Where it is in its life.
    pub phase: Phase,
    /// Why it has to go, in one word; `None` as long as it is wanted.
    pub cause: Option<&'static str>,
    /// Its vApp, once known.
    pub vapp: Option<Href>,
    /// The task of VCD's that is awaited.
    pub task: Option<Href>,
    /// The VM's power state in the last poll that showed it.
    pub power: Option<Power>,
    /// The guest OS as VCD shows it.
    pub guest_os: Option<Arc<str>>,
    /// The address, once known.
    pub address: Option<IpAddr>,
    /// Time since it was accepted or, if adopted, since VCD made it.
    pub age: Duration,
    /// What it waits for, in a few words.
    pub waits_for: &'static str,
    /// Time until the next try, if one is awaited.
    pub next_try: Option<Duration>,
    /// Failed tries so far.
    pub retries: u32,
    /// Polls in a row that did not show it.
    pub missed: u32,
    /// Time since a poll showed it.
    pub seen: Option<Duration>,
    /// What went wrong last.
    pub error: Option<Arc<str>>,
}

/// How much of a limit is in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limit {
    /// In use now.
    pub used: u32,
    /// At most.
    pub most: u32,
}

/// How the group stands: its limits, and what holds it up.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    /// Instances that count towards `max_size`.
    pub instances: Limit,
    /// Creates that VCD works on, or has been asked for.
    pub creates: Limit,
    /// Deletes that VCD works on, or has been asked for.
    pub deletes: Limit,
    /// Both together, and suspends and resumes.
    pub operations: Limit,
    /// Direct looks at vApps.
    pub looks: Limit,
    /// Probes of login ports.
    pub probes: Limit,
    /// Creates that wait for a slot, a pause or the next try.
    pub creates_waiting: u32,
    /// Deletes that wait for the same.
    pub deletes_waiting: u32,
    /// Tasks of VCD's that are awaited.
    pub tasks: u32,
    /// Creates that failed in a row.
    pub failures: u32,
    /// Time until creates go on, if the breaker is open.
    pub breaker: Option<Duration>,
    /// The breaker's pause is over and its one create decides: it has not shut yet.
    pub breaker_tries: bool,
    /// Time until changes go on, if VCD's operation limit was reached.
    pub throttle: Option<Duration>,
    /// How often that limit began a pause.
    pub throttled: u64,
    /// Time that creates wait for leftovers of an earlier life, at most.
    pub hold: Option<Duration>,
    /// Those leftovers.
    pub leftovers: u32,
    /// VCD could not be asked last time: changes wait for a poll that succeeds.
    pub unreachable: bool,
    /// Polls that failed in a row.
    pub failed_polls: u32,
    /// The host has said Shutdown.
    pub stopping: bool,
    /// Pause between polls when nothing is awaited.
    pub interval: Duration,
    /// `max_instance_age`.
    pub max_age: Duration,
}

impl Group {
    /// Every instance, leftovers and strangers included, in the order in which they came.
    pub fn views(&self, now: Time) -> Vec<View> {
        let view = |(key, instance): (&Key, &Instance)| {
            let mut view = instance.view(*key, now);
            if let Some(words) = self.held_by(instance, now) {
                view.waits_for = words;
            }
            view
        };
        self.instances.iter().map(view).collect()
    }

    /// What holds the instance's next step up beside the limits, if it is not its own pause.
    fn held_by(&self, i: &Instance, now: Time) -> Option<&'static str> {
        if i.asked.is_some() || i.ended.is_some() || i.not_before > now {
            return None;
        }
        let wanted = i.goal == Goal::Live;
        match i.there {
            There::Absent if !wanted || i.create_after > now => None,
            There::Absent if self.breaker.allows(now) < u32::MAX => Some("the breaker on creates"),
            There::Absent if self.hold_until.is_some_and(|until| until > now) => Some("leftovers to be gone"),
            There::Absent | There::Scrap { .. } if self.throttle.until(now).is_some() => Some("VCD's operation limit"),
            There::Absent | There::Scrap { .. } if self.unreachable => Some("VCD to answer polls"),
            _ => None,
        }
    }

    /// The instance that a request or probe on the wire is about ([`View::key`]).
    pub fn about(&self, ticket: Ticket) -> Option<u64> {
        match *self.flights.get(&ticket)? {
            Purpose::Label(key) | Purpose::Probe(key) | Purpose::Instance(key) => Some(key),
            Purpose::Poll { .. } | Purpose::Tasks => None,
        }
    }

    /// How the group stands now.
    pub fn standing(&self, now: Time) -> Standing {
        let live = || self.instances.values().filter(|i| i.ended.is_none());
        let count = |which: fn(&Instance) -> bool| live().filter(|i| which(i)).count() as u32;
        let (creates, deletes) = (count(Instance::create_slot), count(Instance::delete_slot));
        let others = count(Instance::other_slot);
        let leftovers = count(|i| i.earlier && !i.reported);
        let policy = &self.policy;
        Standing {
            instances: Limit { used: count(|i| i.reported), most: policy.max_size },
            creates: Limit { used: creates, most: policy.max_creates },
            deletes: Limit { used: deletes, most: policy.max_deletes },
            operations: Limit { used: creates + deletes + others, most: policy.max_operations },
            looks: Limit {
                used: count(|i| matches!(i.asked, Some(Asked::Look | Asked::Find))),
                most: MAX_LOOKS as u32,
            },
            probes: Limit { used: count(|i| i.probing), most: MAX_PROBES as u32 },
            creates_waiting: count(|i| i.phase() == Phase::PendingCreate),
            deletes_waiting: count(|i| i.phase() == Phase::PendingDelete && !matches!(i.there, There::Stranger { .. })),
            tasks: count(|i| i.task().is_some()),
            failures: self.breaker.failures(),
            breaker: self.breaker.until(now).map(|until| until - now),
            breaker_tries: self.breaker.allows(now) == 1,
            throttle: self.throttle.until(now).map(|until| until - now),
            throttled: self.throttle.pauses(),
            hold: self.hold_until.filter(|until| leftovers > 0 && *until > now).map(|until| until - now),
            leftovers,
            unreachable: self.unreachable,
            failed_polls: self.poll.fails,
            stopping: self.stopping,
            interval: policy.reconcile_interval,
            max_age: policy.max_instance_age,
        }
    }
}

impl Instance {
    /// The task of VCD's that is awaited.
    fn task(&self) -> Option<&Href> {
        match &self.there {
            There::Working { task, .. } => Some(task),
            _ => None,
        }
    }

    fn view(&self, key: Key, now: Time) -> View {
        let waiting = matches!(self.there, There::Absent) && self.goal == Goal::Live && self.asked.is_none();
        let next = if waiting { self.not_before.max(self.create_after) } else { self.not_before };
        let facts = self.facts.as_ref();
        View {
            key,
            name: self.name.clone(),
            reported: self.reported,
            stranger: matches!(self.there, There::Stranger { .. }),
            phase: self.phase(),
            cause: match self.goal {
                Goal::Live | Goal::Asleep => None,
                Goal::Gone(cause) => Some(cause.name()),
            },
            vapp: self.vapp().cloned(),
            task: self.task().cloned(),
            power: facts.map(|facts| facts.power),
            guest_os: facts.map(|facts| facts.guest_os.clone()),
            address: facts.and_then(|facts| facts.address),
            age: self.age(now),
            waits_for: self.waits_for(now),
            next_try: Some(next - now).filter(|left| self.asked.is_none() && self.ended.is_none() && !left.is_zero()),
            retries: self.retries,
            missed: self.missed,
            seen: facts.map(|_| now - self.seen),
            error: self.error.clone(),
        }
    }
}

#[cfg(test)]
impl View {
    /// One that the host knows, without anything else known.
    pub fn example(key: u64, name: &str, phase: Phase) -> View {
        View {
            key,
            name: name.into(),
            reported: true,
            stranger: false,
            phase,
            cause: None,
            vapp: None,
            task: None,
            power: None,
            guest_os: None,
            address: None,
            age: Duration::ZERO,
            waits_for: "",
            next_try: None,
            retries: 0,
            missed: 0,
            seen: None,
            error: None,
        }
    }
}
