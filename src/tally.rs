//! Counters and distributions, as plain numbers. They do not depend on Prometheus or on their source.

use std::time::Duration;

/// Measurements in buckets.
#[derive(Clone, Debug)]
pub struct Histogram {
    /// Upper limits in seconds, ascending.
    pub bounds: &'static [f64],
    /// Number of values above the previous limit and not above this one. Values above the last limit are only in
    /// `count`.
    pub buckets: Vec<u64>,
    /// Number of values.
    pub count: u64,
    /// Sum in seconds.
    pub sum: f64,
}

impl Histogram {
    /// Empty.
    pub fn new(bounds: &'static [f64]) -> Histogram {
        Histogram { bounds, buckets: vec![0; bounds.len()], count: 0, sum: 0.0 }
    }

    /// Adds a value.
    pub fn add(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        self.count += 1;
        self.sum += seconds;
        if let Some((bucket, _)) = self.buckets.iter_mut().zip(self.bounds).find(|(_, bound)| seconds <= **bound) {
            *bucket += 1;
        }
    }
}

/// Buckets of creates: from 30 s, VCD's minimum.
const CREATION: &[f64] = &[30.0, 60.0, 90.0, 120.0, 180.0, 300.0, 600.0, 900.0, 1200.0];
/// Buckets of resumes. They take VCD a few seconds.
const STANDBY: &[f64] = &[5.0, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 300.0, 1200.0];
const DELETION: &[f64] = &[10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0];
const GC: &[f64] = &[1.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];
const RECONCILE: &[f64] = &[0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0];
const OVERHEAD: &[f64] = &[0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];
const TASK: &[f64] = &[1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0];

/// Everything that is counted since Init, except HTTP requests.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Instances that became running.
    pub created: u64,
    /// Instances that VCD no longer has.
    pub deleted: u64,
    /// Failures by operation: `create` counts attempts, `timeout` creates that were given up, others requests and
    /// tasks.
    pub failed: Vec<(&'static str, u64)>,
    /// From Increase until running.
    pub creation: Histogram,
    /// VMs that were created for the standby pool, and are or were in it.
    pub standby_created: u64,
    /// From Increase until running, of VMs from standby. They are not in `creation`.
    pub standby: Histogram,
    /// From the delete request until VCD no longer has it.
    pub deletion: Histogram,
    /// The part of `creation` before the first request to VCD.
    pub queued: Histogram,
    /// The part of `creation` between a change in VCD or the guest and its notice by the plugin, at most.
    pub noticed: Histogram,
    /// Polls with vApps, which find leftovers and instances that are too old.
    pub gc: Histogram,
    /// Instances deleted because they are unhealthy, too old or leftovers.
    pub collected: u64,
    /// Leftovers found.
    pub leftovers: u64,
    /// Successful polls.
    pub polls: Histogram,
    /// Polls that failed.
    pub failed_polls: u64,
    /// Duration of VCD tasks from the request until the plugin sees their end, by operation.
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
    /// A VCD task has ended.
    pub fn task(&mut self, operation: &'static str, took: Duration, failed: bool) {
        of(&mut self.tasks, operation, || Histogram::new(TASK)).add(took);
        *of(&mut self.failed_tasks, operation, || 0) += u64::from(failed);
    }

    /// An operation has failed.
    pub fn fail(&mut self, operation: &'static str) {
        *of(&mut self.failed, operation, || 0) += 1;
    }
}

/// The entry of the operation. It is created if it is the first. There are few operations.
fn of<'a, T>(all: &'a mut Vec<(&'static str, T)>, operation: &'static str, new: impl FnOnce() -> T) -> &'a mut T {
    let at = all.iter().position(|(name, _)| *name == operation).unwrap_or(all.len());
    if at == all.len() {
        all.push((operation, new()));
    }
    #[expect(clippy::indexing_slicing, reason = "it is there now")]
    &mut all[at].1
}
