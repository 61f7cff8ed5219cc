//! A host that behaves like fleeting: it keeps the desired number of instances, and relies on Update. It deletes an
//! unwanted instance until it is gone, replaces lost instances, calls Heartbeat before it uses an instance, and
//! trusts new ones.

use super::audit::Audit;
use super::plan::{Dice, MINUTE};
use super::{Happening, World};
use fleeting_plugin_vcd::group::{Group, Name, State, Time};
use std::collections::{BTreeMap, BTreeSet};
use vcd_sim::model::Model;

/// Pause between two turns, while it waits for something and while it does not.
const BUSY_TURN: u64 = 2_000;
const TURN: u64 = MINUTE;
/// A delete is repeated after this time.
const REMOVAL: u64 = MINUTE;
/// An instance is forgotten when this many Updates in a row do not show it.
const MISSED: u32 = 5;
/// An instance is replaced after this many failed heartbeats.
const UNHEALTHY: u32 = 3;
/// Maximum duration of a job.
const JOB: u64 = 3 * MINUTE;
/// Percentage of jobs after which the instance is not used again.
const USED_UP: u64 = 30;

/// An instance that the host knows.
struct Known {
    state: State,
    missed: u32,
    unhealthy: u32,
    /// A job runs on it until then.
    job: u64,
    /// To be deleted, and the time of the last call.
    removal: Option<u64>,
}

impl Known {
    /// It is reported as deleted or timed out for a while.
    fn ended(&self) -> bool {
        matches!(self.state, State::Deleted | State::Timeout)
    }

    /// It counts towards the desired number.
    fn counts(&self) -> bool {
        self.removal.is_none() && !self.ended()
    }
}

pub struct Host {
    pub wished: u32,
    /// It remembers its instances after a restart, and uses them.
    keeps: bool,
    /// It has not called Update yet.
    first: bool,
    /// Requested, and not seen yet.
    pending: u32,
    known: BTreeMap<Name, Known>,
    dice: Dice,
}

impl Host {
    pub fn new(seed: u64, keeps: bool) -> Host {
        Host { wished: 0, keeps, first: true, pending: 0, known: BTreeMap::new(), dice: Dice(seed) }
    }

    /// The plugin has been restarted, and the host with it.
    pub fn restart(&mut self) {
        (self.first, self.pending) = (true, 0);
        self.known.clear();
    }

    /// The host deletes it from the next turn on.
    pub fn remove(&mut self, name: &Name) {
        if let Some(known) = self.known.get_mut(name) {
            known.removal.get_or_insert(0);
        }
    }

    /// Nothing is requested, deleted or expected, and the number is the desired one.
    pub fn rests(&self) -> bool {
        let counted = self.known.values().filter(|known| known.counts()).count();
        let left = self.known.values().all(|known| known.counts() || known.ended());
        self.pending == 0 && counted == self.wished as usize && left
    }

    /// One turn: Decrease, Update, Increase, and jobs. Returns the pause until the next.
    fn turn(
        &mut self,
        group: &mut Group,
        audit: &mut Audit,
        model: &Model,
        time: Time,
        now: u64,
        jobs: bool,
    ) -> Result<u64, String> {
        self.ask_removals(group, audit, time, now);
        self.update(group)?;
        self.jobs(group, time, now, jobs);
        let live = self.known.values().filter(|known| known.counts()).count() as u32 + self.pending;
        if live < self.wished {
            let before: BTreeSet<Name> = group.update().map(|(name, _)| name.clone()).collect();
            let accepted = group.increase(time, self.wished - live);
            audit.increased(accepted, &before, group, model);
            self.pending += accepted;
        } else if live > self.wished {
            let idle = self.known.iter_mut().filter(|(_, known)| known.counts() && known.job <= now);
            idle.take((live - self.wished) as usize).for_each(|(_, known)| known.removal = Some(0));
        }
        let moves = |known: &Known| {
            !known.ended() && (known.removal.is_some() || !matches!(known.state, State::Running | State::Suspended))
        };
        let awaits = self.pending > 0 || live != self.wished || self.known.values().any(moves);
        Ok(if awaits { BUSY_TURN } else { TURN })
    }

    fn ask_removals(&mut self, group: &mut Group, audit: &mut Audit, time: Time, now: u64) {
        let due =
            |known: &Known| !known.ended() && known.removal.is_some_and(|asked| asked == 0 || now >= asked + REMOVAL);
        let mut names = Vec::new();
        for (name, known) in self.known.iter_mut().filter(|(_, known)| due(known)) {
            known.removal = Some(now);
            names.push(name.clone());
        }
        if !names.is_empty() {
            names.iter().for_each(|name| audit.asked(name));
            let done = group.decrease(time, &names);
            audit.decreased(&names, &done);
        }
    }

    fn update(&mut self, group: &Group) -> Result<(), String> {
        let told: BTreeMap<Name, State> = group.update().map(|(name, state)| (name.clone(), state)).collect();
        for (name, state) in &told {
            if let Some(known) = self.known.get_mut(name) {
                (known.state, known.missed) = (*state, 0);
            } else if self.first || self.pending > 0 {
                self.pending -= u32::from(!self.first);
                // Without state storage it deletes unknown instances.
                let removal = (self.first && !self.keeps).then_some(0);
                self.known.insert(name.clone(), Known { state: *state, missed: 0, unhealthy: 0, job: 0, removal });
            } else {
                return Err(format!(
                    "13: {name} is {state:?} and was not requested: a host would use it for a job as new"
                ));
            }
        }
        self.first = false;
        self.known.retain(|name, known| {
            known.missed += u32::from(!told.contains_key(name));
            let gone = known.missed > 0 && !known.counts();
            !gone && known.missed <= MISSED
        });
        Ok(())
    }

    /// Gives jobs to healthy running instances, and replaces instances that are used up or often unhealthy.
    fn jobs(&mut self, group: &mut Group, time: Time, now: u64, jobs: bool) {
        for (name, known) in &mut self.known {
            let free = known.state == State::Running && known.removal.is_none() && known.job <= now;
            if !free || !self.dice.percent(20) {
                continue;
            }
            if group.heartbeat(time, name).is_err() {
                known.unhealthy += 1;
                if known.unhealthy >= UNHEALTHY {
                    known.removal = Some(0);
                }
            } else if jobs {
                if known.job > 0 && self.dice.percent(USED_UP) {
                    known.removal = Some(0);
                } else {
                    known.job = now + self.dice.between(1_000, JOB);
                }
            }
        }
    }
}

impl World {
    pub fn host_turn(&mut self, n: usize) -> Result<(), String> {
        let (time, now, jobs) = (self.time(n), self.now, !self.calm);
        let whom = self.process(n);
        let plugin = &mut self.plugins[n];
        if plugin.shutting_down.is_some() || plugin.audit.shutdown {
            return Ok(());
        }
        if let (Some(host), Some(group)) = (&mut plugin.host, &mut plugin.group) {
            let before = host.pending;
            let pause = host.turn(group, &mut plugin.audit, &self.model, time, now, jobs)?;
            self.score.created += u64::from(host.pending.saturating_sub(before));
            self.at(now + pause, Happening::HostTurn { whom });
        }
        Ok(())
    }
}
