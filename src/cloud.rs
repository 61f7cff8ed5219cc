//! Requests to VCD and its answers, as plain values: the terms that the group (which decides) and the VCD client (which
//! sends) share. Nothing here does I/O or knows XML or HTTP.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// Link to a VCD entity or task: an absolute URL of the configured origin, as VCD sent it.
pub type Href = Arc<str>;

/// Milliseconds since the Unix epoch, by VCD's clock.
pub type UnixMs = u64;

/// A token, password or key. Its Debug output does not show the content.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The content, for the one place that sends it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// One request to VCD. Each changing request is one HTTP request and is sent at most once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Every VM in the VDC whose vApp carries the group's name prefix: `GET /api/query?type=vm`, one request per 128 VMs.
    /// A failed page fails the whole poll. Answered by [`Reply::Poll`].
    Poll {
        /// Request the vApp records too (`type=vApp`, one more query). They show vApps without a VM, and which vApps carry
        /// the group's metadata entry. Also request vApps that only the VDC's own document lists: the query service may
        /// lag.
        vapps: bool,
    },
    /// The VMs in the vApps with these names, at most [`MAX_NAMES_ASKED`]: one query. Answered by [`Reply::Poll`].
    PollSome {
        /// The vApps' names.
        names: Vec<Arc<str>>,
    },
    /// The vApps of the VDC that have exactly this name: one query and, because the query service may lag, the VDC's own
    /// document if the query shows none; then one `GET` for each match (at most 4). Answered by [`Reply::Vapps`].
    Find {
        /// The vApp's name.
        name: Arc<str>,
    },
    /// A lookup of one vApp: `GET` its href. Answered by [`Reply::Vapps`], empty if VCD no longer knows it.
    Look {
        /// The vApp.
        vapp: Href,
        /// Also request the state of its guest if it is powered on: one more `GET`.
        guest: bool,
    },
    /// A new vApp with its VM. Changes. Answered by [`Reply::Started`].
    Create {
        /// The name of the vApp and of its VM.
        name: Arc<str>,
        /// The description of the vApp and of its VM: the owner tag.
        description: Arc<str>,
        /// `instantiateVAppTemplate` with everything in it, powered on. The client rejects it with [`ErrorKind::TooMuch`]
        /// if that is not possible. Otherwise `composeVApp` without hardware, powered off: later requests add what [`Made`]
        /// shows to be missing.
        whole: bool,
    },
    /// Sets a part of what a powered-off VM lacks according to [`Made::differs`]. `reconfigureVm` sets its CPUs, memory,
    /// disk and adapter. If these are correct, it sets the guest properties. Repeat while `differs` changes. Changes.
    /// Answered by [`Reply::Started`].
    Configure {
        /// The VM.
        vm: Href,
    },
    /// Adds a TPM to a powered-off VM. Changes. Answered by [`Reply::Started`].
    AddTpm {
        /// The VM.
        vm: Href,
    },
    /// Powers a vApp on, or resumes a suspended one. Changes. Answered by [`Reply::Started`].
    PowerOn {
        /// The vApp.
        vapp: Href,
    },
    /// Writes the suspend mark on a vApp: what it means if the vApp is found suspended. Changes, may be repeated. Answered
    /// by [`Reply::Started`].
    Mark {
        /// The vApp.
        vapp: Href,
        /// The suspend mark.
        mark: Mark,
    },
    /// Suspends a vApp: its memory goes to disk. Changes. Answered by [`Reply::Started`].
    Suspend {
        /// The vApp.
        vapp: Href,
    },
    /// `DELETE …?force=true` of a vApp in any state. Changes. Answered by [`Reply::Started`].
    Delete {
        /// The vApp.
        vapp: Href,
    },
    /// `undeploy` with power off: necessary before a delete without force. Changes. Answered by [`Reply::Started`].
    Undeploy {
        /// The vApp.
        vapp: Href,
    },
    /// `DELETE` without force, of a vApp that does not run. Changes. Answered by [`Reply::Started`].
    DeleteStopped {
        /// The vApp.
        vapp: Href,
    },
    /// The states of several tasks. Answered by [`Reply::Tasks`], in any order, one for each task.
    Tasks {
        /// The tasks, at most [`MAX_TASKS_ASKED`].
        tasks: Vec<Href>,
    },
    /// Requests VCD to cancel a task. Changes, may be repeated. Answered by [`Reply::Done`].
    Cancel {
        /// The task.
        task: Href,
    },
    /// Writes the metadata entry `vcd-instance-group` on a vApp. Changes, may be repeated. Answered by [`Reply::Done`]:
    /// nobody waits for its task.
    Label {
        /// The vApp.
        vapp: Href,
    },
}

/// Maximum number of tasks in one [`Request::Tasks`].
pub const MAX_TASKS_ASKED: usize = 128;
/// Maximum number of names in one [`Request::PollSome`]: VCD may reject a longer URL.
pub const MAX_NAMES_ASKED: usize = 32;

impl Request {
    /// True if it must not be sent twice. The client never repeats it after VCD may have received it.
    pub fn changes(&self) -> bool {
        match self {
            Request::Poll { .. }
            | Request::PollSome { .. }
            | Request::Find { .. }
            | Request::Look { .. }
            | Request::Tasks { .. } => false,
            Request::Create { .. }
            | Request::Configure { .. }
            | Request::AddTpm { .. }
            | Request::PowerOn { .. }
            | Request::Suspend { .. }
            | Request::Mark { .. }
            | Request::Delete { .. }
            | Request::Undeploy { .. }
            | Request::DeleteStopped { .. }
            | Request::Cancel { .. }
            | Request::Label { .. } => true,
        }
    }

    /// The operation's name in logs and metrics.
    pub fn operation(&self) -> &'static str {
        match self {
            Request::Poll { .. } => "poll",
            Request::PollSome { .. } => "poll_some",
            Request::Find { .. } => "find",
            Request::Look { .. } => "look",
            Request::Create { .. } => "create",
            Request::Configure { .. } => "configure",
            Request::AddTpm { .. } => "tpm",
            Request::PowerOn { .. } => "power_on",
            Request::Suspend { .. } => "suspend",
            Request::Mark { .. } => "mark",
            Request::Delete { .. } => "delete",
            Request::Undeploy { .. } => "undeploy",
            Request::DeleteStopped { .. } => "delete_stopped",
            Request::Tasks { .. } => "tasks",
            Request::Cancel { .. } => "cancel",
            Request::Label { .. } => "label",
        }
    }
}

/// VCD's answer to a [`Request`].
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// To `Poll`.
    Poll(Poll),
    /// To `Find` and `Look`.
    Vapps(Vec<Vapp>),
    /// To a change of a vApp or its VM: accepted, and in progress.
    Started(Started),
    /// To `Tasks`.
    Tasks(Vec<Task>),
    /// To `Cancel` and `Label`.
    Done,
}

/// What new VMs are created from, as a hash without secrets: template, hardware, network, guest and scripts. It changes when
/// one of these changes. 0 if unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Source(pub u64);

/// What it means if a vApp is found suspended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Nothing: the plugin did not suspend it, or has resumed it since.
    Running,
    /// GitLab Runner requested the suspend.
    Suspended,
    /// It is a standby VM: ready, suspended by the plugin, and never used.
    Standby {
        /// What it was created from.
        source: Source,
    },
}

/// Metadata key of the marks [`Mark::Running`] ("no") and [`Mark::Suspended`] ("yes").
pub const SUSPEND_KEY: &str = "fleeting-suspend";
/// Metadata key of [`Mark::Standby`].
pub const STANDBY_KEY: &str = "fleeting-standby";

impl Mark {
    /// Reads a suspend mark from the values of its two metadata entries. A foreign value, or one of another version, means
    /// nothing. An entry `fleeting-suspend` shows that the VM may have been used, whatever VCD writes later for a process
    /// that died.
    pub fn read(suspend: Option<&str>, standby: Option<&str>) -> Mark {
        match (suspend, standby.map(|source| u64::from_str_radix(source, 16))) {
            (Some("yes"), _) => Mark::Suspended,
            (None, Some(Ok(source))) => Mark::Standby { source: Source(source) },
            _ => Mark::Running,
        }
    }

    /// The key and value of its metadata entry.
    pub fn entry(&self) -> (&'static str, String) {
        match self {
            Mark::Running => (SUSPEND_KEY, "no".into()),
            Mark::Suspended => (SUSPEND_KEY, "yes".into()),
            Mark::Standby { source } => (STANDBY_KEY, format!("{:016x}", source.0)),
        }
    }
}

/// The result of one request.
pub type Answer = Result<Reply, VcdError>;

/// A complete poll: all pages arrived.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Poll {
    /// VCD's clock when it answered (HTTP `Date`), if present.
    pub now: Option<UnixMs>,
    /// The VM records.
    pub vms: Vec<Vm>,
    /// The vApp records, if requested.
    pub vapps: Option<Vec<Vapp>>,
    /// What new VMs are created from.
    pub source: Source,
}

/// One VM of a poll (`VMRecord`).
#[derive(Clone, Debug, PartialEq)]
pub struct Vm {
    /// Its vApp (`container`).
    pub vapp: Href,
    /// Its vApp's name (`containerName`).
    pub vapp_name: Arc<str>,
    /// The VM itself.
    pub vm: Href,
    /// The VM's description: for an owned vApp the same tag as the vApp's.
    pub description: Arc<str>,
    /// `status`.
    pub power: Power,
    /// `isBusy`: a task works on it. If its record does not show it, as for users of the provider, the record of its vApp
    /// counts.
    pub busy: bool,
    /// `ipAddress`: the primary NIC's, when known.
    pub address: Option<IpAddr>,
    /// `gcStatus`.
    pub customization: Customization,
    /// `guestOs`, as VCD shows it ("Ubuntu Linux (64-bit)").
    pub guest_os: Arc<str>,
    /// `dateCreated`.
    pub created: Option<UnixMs>,
    /// `numberOfCpus`, 0 if unknown.
    pub cpus: u32,
    /// `memoryMB`, 0 if unknown.
    pub memory_mb: u32,
    /// When VCD will suspend it or power it off, if it has a lease and its record shows it (`autoUndeployDate`).
    pub undeploy_at: Option<UnixMs>,
    /// When VCD will delete it, if it has a lease and its record shows it (`autoDeleteDate`).
    pub delete_at: Option<UnixMs>,
}

/// The VM in a vApp that was looked up, compared with the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// The VM.
    pub vm: Href,
    /// It has its vApp's name, as all VMs of this plugin do.
    pub own: bool,
    /// How its CPUs, memory, disk, adapter or guest properties differ from the request, in words, if they do.
    pub differs: Option<String>,
    /// It needs a TPM and has none.
    pub lacks_tpm: bool,
    /// The primary NIC's address outside its vApp, if a NAT of the vApp maps it.
    pub external: Option<IpAddr>,
    /// Its guest (only in a lookup of a powered-on VM).
    pub guest: Option<SeenGuest>,
}

/// A guest in the result of a lookup, which does not lag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenGuest {
    /// The primary NIC's address, when known.
    pub address: Option<IpAddr>,
    /// `Unknown` if VCD does not show it.
    pub customization: Customization,
    /// As VCD shows it, or empty.
    pub guest_os: Arc<str>,
}

/// A vApp, from a `type=vApp` record (then `description` and `tasks` are unknown) or from its own document.
#[derive(Clone, Debug, PartialEq)]
pub struct Vapp {
    /// The vApp.
    pub href: Href,
    /// Its name.
    pub name: Arc<str>,
    /// Its description. `None` if it comes from a query record.
    pub description: Option<String>,
    /// Its state.
    pub power: Power,
    /// A task works on it.
    pub busy: bool,
    /// The tasks that run on it. Empty if it comes from a query record.
    pub tasks: Vec<Href>,
    /// One of them deletes it.
    pub deleting: bool,
    /// One of them suspends it.
    pub suspending: bool,
    /// The VMs in it. In a poll, those of its VM records that the poll shows.
    pub vms: Vec<Href>,
    /// The descriptions of its VMs. Empty if it comes from a query record.
    pub vm_descriptions: Vec<String>,
    /// The VM that has its name, or its first. `None` if it has none yet, or if it comes from a query record.
    pub made: Option<Made>,
    /// When it was created.
    pub created: Option<UnixMs>,
    /// It carries the metadata entry `vcd-instance-group` with the group's name (only in a [`Request::Poll`] with vApps).
    pub labelled: bool,
    /// Its suspend mark (only in a lookup of a vApp that is suspended, or is being suspended).
    pub mark: Mark,
}

/// The result of a changing request that VCD accepted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Started {
    /// The vApp, for a create.
    pub vapp: Option<Href>,
    /// What it is created from, for a create.
    pub source: Source,
    /// Its task. `None` if it was done at once.
    pub task: Option<Href>,
}

/// The state of a task.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// The task, as requested.
    pub href: Href,
    /// Its state.
    pub state: TaskState,
}

/// The progress of a task.
#[derive(Clone, Debug, PartialEq)]
pub enum TaskState {
    /// queued, preRunning, running, postRunning, or an unknown status.
    Running,
    /// success.
    Success,
    /// error, aborted or canceled, with VCD's error.
    Failed(VcdError),
    /// VCD no longer knows it: look up its owner instead.
    Unknown,
}

/// Power state of a VM or vApp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    /// POWERED_ON.
    On,
    /// POWERED_OFF, PARTIALLY_POWERED_OFF.
    Off,
    /// SUSPENDED, PARTIALLY_SUSPENDED.
    Suspended,
    /// FAILED_CREATION, INCONSISTENT_STATE, UNRECOGNIZED: waiting does not help.
    Failed,
    /// UNRESOLVED, RESOLVED, DEPLOYED, MIXED, UNKNOWN and all others: in transition, or unknown.
    Other,
}

impl Power {
    /// One word, VCD's own if it has one.
    pub fn name(self) -> &'static str {
        match self {
            Power::On => "POWERED_ON",
            Power::Off => "POWERED_OFF",
            Power::Suspended => "SUSPENDED",
            Power::Failed => "FAILED",
            Power::Other => "UNKNOWN",
        }
    }
}

/// Guest customization as VMware Tools report it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Customization {
    /// GC_PENDING: it has not started, or VMware Tools do not report it.
    Pending,
    /// POST_GC_PENDING, REBOOT_PENDING: VMware Tools report that it is in progress.
    Working,
    /// GC_COMPLETE.
    Complete,
    /// GC_FAILED.
    Failed,
    /// Not shown.
    Unknown,
}

/// By default VMware Tools in a Linux guest run no script, and so no key gets into the guest. This command in the template
/// allows scripts.
pub const ALLOW_SCRIPTS: &str = "vmware-toolbox-cmd config set deployPkg enable-custom-scripts true";

/// True if VCD's guest OS text names Windows.
pub fn is_windows(guest_os: &str) -> bool {
    guest_os.to_lowercase().contains("windows")
}

/// The guest customization of a new VM.
#[derive(Clone, Debug)]
pub struct Guest {
    /// The guest's host name.
    pub computer_name: String,
    /// The script that installs the public key and, where needed, the user.
    pub script: Option<Secret>,
    /// The administrator's password (root, Administrator).
    pub password: Option<Secret>,
}

/// A failed request, or a failed task: what was tried, on which object, and VCD's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VcdError {
    /// The kind of failure.
    pub kind: ErrorKind,
    /// What was tried, on which object: "create vApp ci-abc12345".
    pub what: String,
    /// HTTP status, or a task's `majorErrorCode`; 0 if no answer came.
    pub status: u16,
    /// VCD's `minorErrorCode`, or empty.
    pub code: String,
    /// VCD's text or the transport's, cut to [`MAX_ERROR_TEXT`] bytes, without secrets.
    pub text: String,
    /// `Retry-After`, if present.
    pub retry_after: Option<Duration>,
}

impl VcdError {
    /// One that is not VCD's answer to a request.
    pub fn own(kind: ErrorKind, what: impl Into<String>, text: impl Into<String>) -> VcdError {
        VcdError { kind, what: what.into(), status: 0, code: String::new(), text: text.into(), retry_after: None }
    }
}

/// Maximum length of VCD's error texts, in bytes.
pub const MAX_ERROR_TEXT: usize = 400;

impl fmt::Display for VcdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.what)?;
        match (self.status, self.code.is_empty()) {
            (0, _) => {}
            (status, true) => write!(f, "VCD answered {status}: ")?,
            (status, false) => write!(f, "VCD answered {status} {}: ", self.code)?,
        }
        f.write_str(if self.text.is_empty() { "no reason given" } else { &self.text })
    }
}

impl std::error::Error for VcdError {}

/// Kinds of failure, by what the caller must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ErrorKind {
    /// VCD does not know the object, or no longer. Nothing was done.
    NotFound,
    /// Another task works on the object. Nothing was done. Try again soon.
    Busy,
    /// Wrong state for this request ("Stop the vApp and try again"). Nothing was done.
    State,
    /// A right is missing. Nothing was done.
    Forbidden,
    /// VCD rejected the session. It could not be renewed, or it was renewed and the request changes something, so that the
    /// client does not repeat it. Nothing was done: VCD checks the session first.
    Auth,
    /// The organization's limit of simultaneous operations, or 429. Nothing was done. Repeat after a pause.
    Limit,
    /// A quota or a pool is used up. Nothing was done, or the task failed. Wait long.
    Quota,
    /// The name exists: perhaps from an earlier request of this plugin.
    Duplicate,
    /// VCD rejects the request because of its content. Permanent.
    Invalid,
    /// Nothing was done: this VCD does not accept the combined create request. A smaller one can work.
    TooMuch,
    /// VCD could not be reached, or rejected the request before doing anything. Nothing was done. Try again.
    Unavailable,
    /// A changing request with an unknown outcome: it may have been carried out, or may still be.
    Ambiguous,
    /// An answer that is not VCD's (cut, foreign, too large). For a changing request, `Ambiguous` is used instead.
    Protocol,
    /// The task failed for another reason.
    Failed,
    /// VCD aborted the task, as it does when one of its cells restarts.
    Aborted,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_as_it_was_written_and_any_other_text_means_nothing() {
        for mark in [Mark::Running, Mark::Suspended, Mark::Standby { source: Source(0x0a1b) }] {
            let (key, value) = mark.entry();
            let of = |wanted| (key == wanted).then_some(value.as_str());
            assert_eq!(Mark::read(of(SUSPEND_KEY), of(STANDBY_KEY)), mark);
        }
        for text in ["", "yes ", "no", "maybe", "standby 0a1b"] {
            assert_eq!(Mark::read(Some(text), None), Mark::Running, "{text:?}");
        }
        for text in ["", "yes", "standby", "0a1b x", "xyz"] {
            assert_eq!(Mark::read(None, Some(text)), Mark::Running, "{text:?}");
        }
    }

    #[test]
    fn a_vm_that_may_have_been_used_is_never_a_standby_vm() {
        assert_eq!(Mark::read(Some("no"), Some("0a1b")), Mark::Running);
        assert_eq!(Mark::read(Some("yes"), Some("0a1b")), Mark::Suspended);
        assert_eq!(Mark::read(Some("standby 0a1b"), Some("0a1b")), Mark::Running);
    }
}
