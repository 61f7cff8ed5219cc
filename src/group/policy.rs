//! What the configuration decides for a group, and its defaults.

use std::time::Duration;

/// The group's policy, from the plugin's configuration.
#[derive(Clone, Debug)]
pub struct Policy {
    /// The runner manager's name (`name`): part of the ownership.
    pub manager: String,
    /// `instance_group_name`.
    pub group: String,
    /// `vapp_name_prefix`.
    pub prefix: String,
    /// At most so many instances. 128.
    pub max_size: u32,
    /// Creates that VCD works on at a time. 3.
    pub max_creates: u32,
    /// Deletes that VCD works on at a time. 5.
    pub max_deletes: u32,
    /// Creates, deletes, suspends and resumes together. While a create or resume waits, deletes and suspends get one slot. 4.
    pub max_operations: u32,
    /// A create that is not done by then is given up and reported as `timeout`. 20 min.
    pub create_timeout: Duration,
    /// A create whose guest is not ready so long after VCD made it has failed. 10 min.
    pub ready_timeout: Duration,
    /// Creates wait so long for the removal of leftovers that were found on start. 30 min.
    pub startup_cleanup_timeout: Duration,
    /// Pause between polls when nothing is awaited. 10 s.
    pub reconcile_interval: Duration,
    /// Past this age Heartbeat answers unhealthy, past twice of it the instance is deleted. 24 h; zero: never.
    pub max_instance_age: Duration,
    /// An instance that is suspended for longer is deleted. 72 h; zero: never.
    pub suspended_max_age: Duration,
    /// Instances are suspended and resumed when the host asks. Without it, what is found suspended is a leftover.
    pub suspend_resume: bool,
    /// So many VMs are kept in standby, beside `max_size`. 0.
    pub standby_count: u32,
    /// A VM that is in standby for longer is replaced. 24 h; zero: never.
    pub standby_max_age: Duration,
    /// Which vApps are given the metadata label, and what else of metadata is wanted.
    pub labels: Labels,
    /// What becomes of the instances at the host's Shutdown.
    pub on_shutdown: OnShutdown,
    /// Fingerprint of what generated credentials are derived from, one word; empty if they are static. Instances that were
    /// made with another one are unhealthy: nobody can log in to them.
    pub credentials: String,
}

impl Default for Policy {
    /// The configuration's defaults, and no names.
    fn default() -> Policy {
        Policy {
            manager: String::new(),
            group: String::new(),
            prefix: String::new(),
            max_size: 128,
            max_creates: 3,
            max_deletes: 5,
            max_operations: 4,
            create_timeout: Duration::from_secs(20 * 60),
            ready_timeout: Duration::from_secs(10 * 60),
            startup_cleanup_timeout: Duration::from_secs(30 * 60),
            reconcile_interval: Duration::from_secs(10),
            max_instance_age: Duration::from_secs(24 * 3600),
            suspended_max_age: Duration::from_secs(72 * 3600),
            suspend_resume: true,
            standby_count: 0,
            standby_max_age: Duration::from_secs(24 * 3600),
            labels: Labels::Found,
            on_shutdown: OnShutdown::Delete,
            credentials: String::new(),
        }
    }
}

/// Which vApps are given the metadata label. Ownership does not need it, and each costs a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Labels {
    /// All, once vApps of the Go plugin are found at the start.
    Found,
    /// All.
    All,
    /// None.
    None,
}

/// What becomes of the instances at the host's Shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnShutdown {
    /// All are deleted.
    Delete,
    /// Running and suspended ones are kept, half-made ones deleted.
    Keep,
}
