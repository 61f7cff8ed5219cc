//! What can be asked of VCD and what it answers, as plain values: the words that the group (which decides) and the VCD
//! client (which asks) share. Nothing here does I/O, and nothing here knows XML or HTTP.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// Link to a VCD entity or task: an absolute URL on the configured origin, as VCD gave it.
pub type Href = Arc<str>;

/// Milliseconds since the Unix epoch, by VCD's clock.
pub type UnixMs = u64;

/// A token, password or key. Its Debug output says nothing of its content.
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

/// One thing to ask of VCD. Each changing request is one HTTP request and is sent at most once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Every VM in the VDC whose vApp carries the group's name prefix: `GET /api/query?type=vm`, one request per 128 VMs.
    /// A failed page fails the whole poll. Answered by [`Reply::Poll`].
    Poll {
        /// Ask for the vApp records too (`type=vApp`, one more query; shows vApps that have no VM, and which carry the
        /// group's metadata label), and for those that only the VDC's own document lists: the query service may lag.
        vapps: bool,
    },
    /// The VMs in the vApps of these names, at most [`MAX_NAMES_ASKED`]: one query. Answered by [`Reply::Poll`].
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
    /// A direct look at one vApp: `GET` its href. Answered by [`Reply::Vapps`], empty if VCD no longer knows it.
    Look {
        /// The vApp.
        vapp: Href,
        /// Ask how far its guest is, too, if it is on: one more `GET`.
        guest: bool,
    },
    /// A new vApp with its VM. Changes. Answered by [`Reply::Started`].
    Create {
        /// The name of the vApp and of its VM.
        name: Arc<str>,
        /// The description of the vApp and of its VM: the ownership tag.
        description: Arc<str>,
        /// `instantiateVAppTemplate` with everything in it, powered on; refused as [`ErrorKind::TooMuch`] where that
        /// cannot be. Else `composeVApp` without hardware, off: what [`Made`] shows to be missing has to follow.
        whole: bool,
    },
    /// Gives a VM that is off a part of what was wished for and [`Made::differs`] tells that it lacks: by `reconfigureVm` its
    /// CPUs, memory, disk and adapter; where only these are as they should be, its guest properties. To be asked again while
    /// `differs` tells of something else than before. Changes. Answered by [`Reply::Started`].
    Configure {
        /// The VM.
        vm: Href,
    },
    /// Gives a VM that is off a TPM. Changes. Answered by [`Reply::Started`].
    AddTpm {
        /// The VM.
        vm: Href,
    },
    /// Powers a vApp on, or resumes a suspended one. Changes. Answered by [`Reply::Started`].
    PowerOn {
        /// The vApp.
        vapp: Href,
    },
    /// Writes on a vApp what it means if it is found suspended. Changes, may be repeated. Answered by [`Reply::Started`].
    Mark {
        /// The vApp.
        vapp: Href,
        /// What it means.
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
    /// `undeploy` with power off: what has to come before a delete without force. Changes. Answered by
    /// [`Reply::Started`].
    Undeploy {
        /// The vApp.
        vapp: Href,
    },
    /// `DELETE` without force, of a vApp that does not run. Changes. Answered by [`Reply::Started`].
    DeleteStopped {
        /// The vApp.
        vapp: Href,
    },
    /// The states of several tasks. Answered by [`Reply::Tasks`], in any order, one for each asked.
    Tasks {
        /// The tasks, at most [`MAX_TASKS_ASKED`].
        tasks: Vec<Href>,
    },
    /// Asks VCD to cancel a task. Changes, may be repeated. Answered by [`Reply::Done`].
    Cancel {
        /// The task.
        task: Href,
    },
    /// Writes the metadata label `vcd-instance-group` on a vApp. Changes, may be repeated. Answered by [`Reply::Done`]:
    /// its task is not waited for.
    Label {
        /// The vApp.
        vapp: Href,
    },
}

/// At most so many tasks in one [`Request::Tasks`].
pub const MAX_TASKS_ASKED: usize = 128;
/// At most so many names in one [`Request::PollSome`]: a longer address may be refused.
pub const MAX_NAMES_ASKED: usize = 32;

impl Request {
    /// True if sending it twice could do something twice: never repeated by the client after it may have been received.
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
    /// To what changes a vApp or its VM: accepted, and going on.
    Started(Started),
    /// To `Tasks`.
    Tasks(Vec<Task>),
    /// To `Cancel` and `Label`.
    Done,
}

/// What VMs are created from, as a hash without secrets: template, hardware, network, guest and scripts. It changes when one
/// of these does. 0 if that is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Source(pub u64);

/// What it means if a vApp is found suspended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Nothing: the plugin did not suspend it, or has resumed it since.
    Running,
    /// GitLab Runner had it suspended.
    Suspended,
    /// It is a standby VM: complete, suspended by the plugin, and never used.
    Standby {
        /// What it was created from.
        source: Source,
    },
}

/// A [`Mark`] as metadata holds it. Older versions know the first two.
const MARK_WORDS: [&str; 3] = ["no", "yes", "standby"];

impl Mark {
    /// The mark in metadata. What is not ours, or of another version, means nothing.
    pub fn read(value: &str) -> Mark {
        let [_, suspended, standby] = MARK_WORDS;
        let mut words = value.split(' ');
        match (words.next(), words.next(), words.next()) {
            (Some(word), None, None) if word == suspended => Mark::Suspended,
            (Some(word), Some(source), None) if word == standby => match u64::from_str_radix(source, 16) {
                Ok(source) => Mark::Standby { source: Source(source) },
                Err(_) => Mark::Running,
            },
            _ => Mark::Running,
        }
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [running, suspended, standby] = MARK_WORDS;
        match self {
            Mark::Running => f.write_str(running),
            Mark::Suspended => f.write_str(suspended),
            Mark::Standby { source } => write!(f, "{standby} {:016x}", source.0),
        }
    }
}

/// The end of one request.
pub type Answer = Result<Reply, VcdError>;

/// A whole poll: all pages came.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Poll {
    /// VCD's clock when it answered (HTTP `Date`), if it said so.
    pub now: Option<UnixMs>,
    /// The VM records.
    pub vms: Vec<Vm>,
    /// The vApp records, if asked for.
    pub vapps: Option<Vec<Vapp>>,
    /// What new VMs are created from now.
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
    /// The VM's description: for a vApp of ours the same tag as the vApp's.
    pub description: String,
    /// `status`.
    pub power: Power,
    /// `isBusy`: a task works on it. Where its record does not tell, as for the provider's users, that of its vApp counts.
    pub busy: bool,
    /// `ipAddress`: the primary NIC's, once known.
    pub address: Option<IpAddr>,
    /// `gcStatus`.
    pub customization: Customization,
    /// `guestOs`, as VCD shows it ("Ubuntu Linux (64-bit)").
    pub guest_os: String,
    /// `dateCreated`.
    pub created: Option<UnixMs>,
    /// `numberOfCpus`, 0 if not told.
    pub cpus: u32,
    /// `memoryMB`, 0 if not told.
    pub memory_mb: u32,
    /// When VCD will suspend it or power it off, if it has a lease and its record tells (`autoUndeployDate`).
    pub undeploy_at: Option<UnixMs>,
    /// When VCD will delete it, if it has a lease and its record tells (`autoDeleteDate`).
    pub delete_at: Option<UnixMs>,
}

/// The VM in a vApp that was looked at, held against what was wished for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// The VM.
    pub vm: Href,
    /// It bears its vApp's name, as all that are made here do.
    pub own: bool,
    /// How its CPUs, memory, disk, adapter or guest properties differ from the wish, in words, if they do.
    pub differs: Option<String>,
    /// It needs a TPM and has none.
    pub lacks_tpm: bool,
    /// The primary NIC's address from outside its vApp, if a NAT of the vApp's gives it one.
    pub external: Option<IpAddr>,
    /// Its guest (only asked by a look at one that is on).
    pub guest: Option<SeenGuest>,
}

/// A guest as a look shows it, which lags behind nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenGuest {
    /// The primary NIC's address, once known.
    pub address: Option<IpAddr>,
    /// `Unknown` if VCD does not tell.
    pub customization: Customization,
    /// As VCD shows it, or empty.
    pub guest_os: String,
}

/// A vApp, from a `type=vApp` record (then `description` and `tasks` are not known) or from its own document.
#[derive(Clone, Debug, PartialEq)]
pub struct Vapp {
    /// The vApp.
    pub href: Href,
    /// Its name.
    pub name: Arc<str>,
    /// Its description; `None` when it came from a query record.
    pub description: Option<String>,
    /// Its state.
    pub power: Power,
    /// A task works on it.
    pub busy: bool,
    /// The tasks that run on it; empty when it came from a query record.
    pub tasks: Vec<Href>,
    /// One of them deletes it.
    pub deleting: bool,
    /// One of them suspends it.
    pub suspending: bool,
    /// The VMs in it; in a poll, those of its VM records that the poll shows.
    pub vms: Vec<Href>,
    /// The VM that has its name, or its first; `None` if it has none yet, or when it came from a query record.
    pub made: Option<Made>,
    /// When it was made.
    pub created: Option<UnixMs>,
    /// It carries the metadata label `vcd-instance-group` with our group's name (only asked by [`Request::Poll`] with vApps).
    pub labelled: bool,
    /// What its mark says (only asked by a look at one that is suspended, or is being suspended).
    pub mark: Mark,
}

/// What a changing request that VCD accepted has begun.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Started {
    /// The vApp, for a create.
    pub vapp: Option<Href>,
    /// What it is created from, for a create.
    pub source: Source,
    /// The task that does it; `None` if it was done at once (a delete of what is gone already).
    pub task: Option<Href>,
}

/// The state of a task.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// The task, as asked.
    pub href: Href,
    /// Its state.
    pub state: TaskState,
}

/// How far a task is.
#[derive(Clone, Debug, PartialEq)]
pub enum TaskState {
    /// queued, preRunning, running, postRunning, or a status that is not known to us.
    Running,
    /// success.
    Success,
    /// error, aborted or canceled, with what VCD says of it.
    Failed(VcdError),
    /// VCD does not know it any more: look at its owner instead.
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
    /// FAILED_CREATION, INCONSISTENT_STATE, UNRECOGNIZED: it will not get better by waiting.
    Failed,
    /// UNRESOLVED, RESOLVED, DEPLOYED, MIXED, UNKNOWN and all else: on its way, or not known to us.
    Other,
}

impl Power {
    /// One word, VCD's where it has one.
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
    /// GC_PENDING: it has not begun, or the Tools do not report it.
    Pending,
    /// POST_GC_PENDING, REBOOT_PENDING: the Tools report that it is under way.
    Working,
    /// GC_COMPLETE.
    Complete,
    /// GC_FAILED.
    Failed,
    /// Not told.
    Unknown,
}

/// By default VMware Tools in a Linux guest run no script, and so no key gets into it: this, done in the template, lets them.
pub const ALLOW_SCRIPTS: &str = "vmware-toolbox-cmd config set deployPkg enable-custom-scripts true";

/// True if VCD's guest OS text names a Windows.
pub fn is_windows(guest_os: &str) -> bool {
    guest_os.to_lowercase().contains("windows")
}

/// What goes into a new VM's guest customization.
#[derive(Clone, Debug)]
pub struct Guest {
    /// The guest's host name.
    pub computer_name: String,
    /// The script that installs the public key and, where needed, the user.
    pub script: Option<Secret>,
    /// The administrator's password (root, Administrator).
    pub password: Option<Secret>,
}

/// A failed request, or a failed task: what was tried, on what, and what VCD said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VcdError {
    /// What follows from it.
    pub kind: ErrorKind,
    /// What was tried, on what: "create vApp ci-abc12345".
    pub what: String,
    /// HTTP status, or a task's `majorErrorCode`; 0 if no answer came.
    pub status: u16,
    /// VCD's `minorErrorCode`, or empty.
    pub code: String,
    /// VCD's words or the transport's, cut to [`MAX_ERROR_TEXT`] bytes, without secrets.
    pub text: String,
    /// `Retry-After`, if given.
    pub retry_after: Option<Duration>,
}

/// VCD's error texts are cut to so many bytes.
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
    /// VCD does not know the thing (any more). Nothing was done.
    NotFound,
    /// Another task holds the thing. Nothing was done; try again soon.
    Busy,
    /// Wrong state for this request ("Stop the vApp and try again"). Nothing was done.
    State,
    /// Rights are missing. Nothing was done.
    Forbidden,
    /// The session was refused and could not be renewed, or was renewed but the request changes things and is not repeated
    /// by the client. Nothing was done: VCD checks the session first.
    Auth,
    /// The org's limit of simultaneous operations, or 429. Nothing was done; repeat after a pause.
    Limit,
    /// A quota or a pool is used up. Nothing was done, or the task failed; wait long.
    Quota,
    /// The name is taken: perhaps by an earlier request of ours.
    Duplicate,
    /// VCD refuses the request for what it carries. Permanent.
    Invalid,
    /// Nothing was done: this VCD does not take a create that carries everything. Another with less can work.
    TooMuch,
    /// VCD could not be reached, or refused before doing anything. Nothing was done; try again.
    Unavailable,
    /// A changing request whose outcome is not known: it may have been carried out, or may yet be.
    Ambiguous,
    /// An answer that is no VCD answer (cut, foreign, too large). For a changing request `Ambiguous` is used instead.
    Protocol,
    /// The task failed for a reason that has no kind of its own.
    Failed,
    /// VCD broke the task off, as it does when one of its cells restarts.
    Aborted,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_as_it_was_written_and_any_other_text_means_nothing() {
        for mark in [Mark::Running, Mark::Suspended, Mark::Standby { source: Source(0x0a1b) }] {
            assert_eq!(Mark::read(&mark.to_string()), mark);
        }
        for text in ["", "yes ", "no", "maybe", "standby", "standby 0a1b x", "standby xyz"] {
            assert_eq!(Mark::read(text), Mark::Running, "{text:?}");
        }
    }
}
