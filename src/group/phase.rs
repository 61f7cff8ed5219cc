//! The words for the phases of an instance and the causes of its delete, as people see them.

use super::instance::Cause;

/// The phase of an instance, as the debug page and the log show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Accepted: no request to VCD yet, or the vApp of a failed try is deleted.
    PendingCreate,
    /// VCD creates it, or it boots.
    Creating,
    /// Its login port answered.
    Running,
    /// To be suspended, or being suspended.
    Suspending,
    /// Its memory is on disk.
    Suspended,
    /// Suspended, never used, and kept for a later Increase. The host does not know of it.
    Standby,
    /// To be resumed, being resumed, or its login port does not answer yet.
    Resuming,
    /// To be deleted: no request to VCD yet.
    PendingDelete,
    /// VCD deletes it.
    Deleting,
    /// VCD no longer knows it.
    Deleted,
}

impl Phase {
    /// All phases, in the order of a life.
    pub const ALL: [Phase; 10] = [
        Phase::PendingCreate,
        Phase::Creating,
        Phase::Running,
        Phase::Suspending,
        Phase::Suspended,
        Phase::Standby,
        Phase::Resuming,
        Phase::PendingDelete,
        Phase::Deleting,
        Phase::Deleted,
    ];

    /// True if an instance may stay in this phase without limit: it waits for nothing.
    pub fn rests(self) -> bool {
        match self {
            Phase::Running | Phase::Suspended | Phase::Standby | Phase::Deleted => true,
            Phase::PendingCreate | Phase::Creating | Phase::PendingDelete | Phase::Deleting => false,
            Phase::Suspending | Phase::Resuming => false,
        }
    }

    /// The names that users of the Go plugin know.
    pub fn name(self) -> &'static str {
        match self {
            Phase::PendingCreate => "PendingCreate",
            Phase::Creating => "Creating",
            Phase::Running => "Running",
            Phase::Suspending => "Suspending",
            Phase::Suspended => "Suspended",
            Phase::Standby => "Standby",
            Phase::Resuming => "Resuming",
            Phase::PendingDelete => "PendingDelete",
            Phase::Deleting => "Deleting",
            Phase::Deleted => "Deleted",
        }
    }
}

impl Cause {
    /// One word, for the debug pages.
    pub fn name(self) -> &'static str {
        match self {
            Cause::Asked => "asked",
            Cause::Shutdown => "shutdown",
            Cause::Timeout => "timeout",
            Cause::Lost => "lost",
            Cause::Unhealthy => "unhealthy",
            Cause::Aged => "aged",
            Cause::Leftover => "leftover",
            Cause::Spoiled => "spoiled",
            Cause::Outdated => "outdated",
        }
    }

    /// The plugin itself decided it.
    pub fn is_collected(self) -> bool {
        matches!(self, Cause::Unhealthy | Cause::Aged | Cause::Leftover | Cause::Spoiled | Cause::Outdated)
    }

    /// Log level and text.
    pub fn words(self) -> (log::Level, &'static str) {
        match self {
            Cause::Asked => (log::Level::Info, "GitLab Runner requested the delete"),
            Cause::Shutdown => (log::Level::Info, "shutdown: the plugin deletes it"),
            Cause::Timeout => (
                log::Level::Error,
                "not running within create_timeout: given up, and its vApp is deleted. Fix the cause (see \
                 docs/troubleshooting.md) or raise create_timeout",
            ),
            Cause::Lost => (log::Level::Warn, "no longer in VCD: reported as deleted"),
            Cause::Unhealthy => {
                (log::Level::Warn, "powered off, failed or not ready after a resume for too long: deleted")
            }
            Cause::Aged => (
                log::Level::Warn,
                "older than twice max_instance_age, or suspended for longer than suspended_max_age: deleted",
            ),
            Cause::Leftover => (log::Level::Info, "leftover that nobody uses: deleted"),
            Cause::Spoiled => (log::Level::Info, "no longer usable for standby: deleted"),
            Cause::Outdated => {
                (log::Level::Info, "in standby, but created from an older template or configuration: replaced")
            }
        }
    }
}
