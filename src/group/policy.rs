//! The configuration of a group, and its defaults.

use std::time::Duration;

/// The group's policy, from the plugin's configuration.
#[derive(Clone, Debug)]
pub struct Policy {
    /// The runner manager's name (`name`): part of the owner tag.
    pub manager: String,
    /// `instance_group_name`.
    pub group: String,
    /// `vapp_name_prefix`.
    pub prefix: String,
    /// Maximum number of instances. 128.
    pub max_size: u32,
    /// Maximum number of concurrent creates in VCD. 3.
    pub max_creates: u32,
    /// Maximum number of concurrent deletes in VCD. 5.
    pub max_deletes: u32,
    /// Maximum number of concurrent creates, deletes, suspends and resumes. While a create or resume waits, deletes and
    /// suspends get one slot. 4.
    pub max_operations: u32,
    /// Maximum duration of a create. After it, the create is given up and reported as `timeout`. 20 min.
    pub create_timeout: Duration,
    /// Maximum time from the end of the create task until the guest is ready. After it, the create has failed. 10 min.
    pub ready_timeout: Duration,
    /// Maximum time that creates wait for the delete of leftovers that were found at the start. 30 min.
    pub startup_cleanup_timeout: Duration,
    /// Pause between polls when nothing is in progress. 10 s.
    pub reconcile_interval: Duration,
    /// Past this age, Heartbeat returns an error. Past twice this age, the instance is deleted. 24 h; zero: never.
    pub max_instance_age: Duration,
    /// An instance that is suspended for longer is deleted. 72 h; zero: never.
    pub suspended_max_age: Duration,
    /// The host may suspend and resume instances. Without it, a vApp that is found suspended is a leftover.
    pub suspend_resume: bool,
    /// Number of VMs in standby, in addition to `max_size`. 0.
    pub standby_count: u32,
    /// A VM that is in standby for longer is replaced. 24 h; zero: never.
    pub standby_max_age: Duration,
    /// Which vApps get the metadata entry, and which other metadata is written.
    pub labels: Labels,
    /// What happens to the instances when the host calls Shutdown.
    pub on_shutdown: OnShutdown,
    /// Guests get their addresses by DHCP.
    pub dhcp: bool,
    /// Fingerprint of the source of generated credentials, one word. Empty if the credentials are static. Instances with
    /// another fingerprint are unhealthy: nobody can log in to them.
    pub credentials: String,
}

impl Default for Policy {
    /// The defaults of the configuration, without names.
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
            dhcp: false,
            credentials: String::new(),
        }
    }
}

/// Which vApps get the metadata entry. Ownership does not need it, and each entry costs a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Labels {
    /// All, if vApps of the Go plugin are found at the start.
    Found,
    /// All.
    All,
    /// None.
    None,
}

/// What happens to the instances when the host calls Shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnShutdown {
    /// All are deleted.
    Delete,
    /// Running and suspended ones are kept, incomplete ones are deleted.
    Keep,
}
