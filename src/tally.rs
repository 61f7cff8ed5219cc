//! Counts and distributions, as plain numbers. They know neither Prometheus nor where they come from.

use std::time::Duration;

/// What was measured, in buckets.
#[derive(Clone, Debug)]
pub struct Histogram {
    /// Upper bounds in seconds, ascending.
    pub bounds: &'static [f64],
    /// How many were above the bound before and not above this one; those above the last are in `count` only.
    pub buckets: Vec<u64>,
    /// How many.
    pub count: u64,
    /// Seconds in all.
    pub sum: f64,
}

impl Histogram {
    /// Empty.
    pub fn new(bounds: &'static [f64]) -> Histogram {
        Histogram { bounds, buckets: vec![0; bounds.len()], count: 0, sum: 0.0 }
    }

    /// One more.
    pub fn add(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        self.count += 1;
        self.sum += seconds;
        if let Some((bucket, _)) = self.buckets.iter_mut().zip(self.bounds).find(|(_, bound)| seconds <= **bound) {
            *bucket += 1;
        }
    }
}

/// Buckets of creates: from 30 s, which is what VCD needs at least.
const CREATION: &[f64] = &[30.0, 60.0, 90.0, 120.0, 180.0, 300.0, 600.0, 900.0, 1200.0];
/// Buckets of resumes, which take VCD seconds.
const STANDBY: &[f64] = &[5.0, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 300.0, 1200.0];
const DELETION: &[f64] = &[10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0];
const GC: &[f64] = &[1.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];
const RECONCILE: &[f64] = &[0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0];
const OVERHEAD: &[f64] = &[0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];
const TASK: &[f64] = &[1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0];

/// Everything that is counted since Init, HTTP requests aside.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Instances that came to running.
    pub created: u64,
    /// Instances that VCD does not have any more.
    pub deleted: u64,
    /// What failed, by operation: `create` counts tries, `timeout` instances that were given up, others
    /// requests and tasks.
    pub failed: Vec<(&'static str, u64)>,
    /// From Increase to running.
    pub creation: Histogram,
    /// VMs that were created for the standby pool, and are in it or were.
    pub standby_created: u64,
    /// From Increase to running, of VMs that were taken from standby: these are not in `creation`.
    pub standby: Histogram,
    /// From the wish to remove it until VCD does not have it any more.
    pub deletion: Histogram,
    /// The part of `creation` until VCD was first asked.
    pub queued: Histogram,
    /// The part of `creation` between VCD's or the guest's progress and our notice of it, at most.
    pub noticed: Histogram,
    /// Polls with vApps, which find leftovers and what is too old.
    pub gc: Histogram,
    /// Instances that were removed for being unhealthy, too old or a leftover.
    pub collected: u64,
    /// Leftovers that were found.
    pub leftovers: u64,
    /// Polls that ended well.
    pub polls: Histogram,
    /// Polls that failed.
    pub failed_polls: u64,
    /// VCD's tasks from the request to the notice of their end, by operation.
    pub tasks: Vec<(&'static str, Histogram)>,
    /// Tasks that failed, by operation.
    pub failed_tasks: Vec<(&'static str, u64)>,
}

impl Default for Tally {
    fn default() -> Tally {
        Tally {
            created: 0,
            deleted: 0,
            failed: ["create", "delete", "resume", "suspend", "timeout"].map(|operation| (operation, 0)).into(),
            creation: Histogram::new(CREATION),
            standby_created: 0,
            standby: Histogram::new(STANDBY),
            deletion: Histogram::new(DELETION),
            queued: Histogram::new(OVERHEAD),
            noticed: Histogram::new(OVERHEAD),
            gc: Histogram::new(GC),
            collected: 0,
            leftovers: 0,
            polls: Histogram::new(RECONCILE),
            failed_polls: 0,
            tasks: Vec::new(),
            failed_tasks: Vec::new(),
        }
    }
}

impl Tally {
    /// A task of VCD's has ended.
    pub fn task(&mut self, operation: &'static str, took: Duration, failed: bool) {
        of(&mut self.tasks, operation, || Histogram::new(TASK)).add(took);
        *of(&mut self.failed_tasks, operation, || 0) += u64::from(failed);
    }

    /// An operation has failed.
    pub fn fail(&mut self, operation: &'static str) {
        *of(&mut self.failed, operation, || 0) += 1;
    }
}

/// The operation's, made if it is the first. There are few operations.
fn of<'a, T>(all: &'a mut Vec<(&'static str, T)>, operation: &'static str, new: impl FnOnce() -> T) -> &'a mut T {
    let at = all.iter().position(|(name, _)| *name == operation).unwrap_or(all.len());
    if at == all.len() {
        all.push((operation, new()));
    }
    #[expect(clippy::indexing_slicing, reason = "it is there now")]
    &mut all[at].1
}
