//! `/api/status`. It has the keys of the Go plugin, and more. docs/monitoring.md lists them.

use crate::driver::last_part;
use crate::group::{Cause, Time, View};
use crate::journal::{Entry, Life};
use crate::status::Status;
use crate::timestamp::timestamp;
use crate::vcd::SessionState;
use serde_json::{Map, Value};
use std::time::Duration;

/// The whole status.
pub fn status(status: &Status<'_>) -> String {
    let (about, standing, session, polls) = (status.about, &status.standing, &status.session, &status.polls);
    let (shown, failure) = match &polls.result {
        Some(Ok(vms)) => (Some(*vms), None),
        Some(Err(error)) => (None, Some(&**error)),
        None => (None, None),
    };
    let instances: Vec<Value> = status.views.iter().map(|view| instance(status, view)).collect();
    let events: Vec<Value> = status.journal.events.iter().rev().map(|entry| event(status, entry)).collect();
    let troubles = status.troubles();
    let reasons: Vec<String> =
        troubles.iter().filter(|trouble| trouble.grave).map(|trouble| trouble.text.clone()).collect();
    let troubles: Vec<String> = troubles.into_iter().map(|trouble| trouble.text).collect();
    let plugin = object(&mut [
        ("Name", env!("CARGO_PKG_NAME").into()),
        ("Version", env!("CARGO_PKG_VERSION").into()),
        ("Time", timestamp(status.wall).into()),
        ("StartedAt", at(status, Some(Time::default()))),
        ("MemoryBytes", status.process.memory.into()),
        ("CPUSeconds", seconds(status.process.cpu)),
        ("Threads", status.process.threads.into()),
        ("OpenFiles", status.process.open_files.into()),
    ]);
    let group = object(&mut [
        ("Name", text(&about.group)),
        ("Manager", text(&about.manager)),
        ("Prefix", text(&about.prefix)),
        ("Stopping", standing.stopping.into()),
    ]);
    let vcd = object(&mut [
        ("URL", text(&about.url)),
        ("Org", text(&about.org)),
        ("VDC", text(&about.vdc)),
        ("APIVersion", text(&about.api_version)),
        ("TemplateOSType", text(&about.guest_os)),
        ("Unreachable", standing.unreachable.into()),
    ]);
    let state = match session.state {
        SessionState::Valid => "valid",
        SessionState::LoggingIn => "logging in",
        SessionState::Ended => "none",
    };
    let session = object(&mut [
        ("State", text(state)),
        ("Logins", session.logins.into()),
        ("RenewedInSeconds", seconds(session.renewed_in)),
        ("EndsInSeconds", seconds(session.ends_in)),
        ("LastError", session.failure.as_ref().map(|error| error.to_string()).into()),
    ]);
    let poll = object(&mut [
        ("EndedAt", at(status, Some(polls.ended))),
        ("Seconds", seconds(Some(polls.took))),
        ("VMs", shown.into()),
        ("LastError", failure.into()),
        ("FailedInARow", standing.failed_polls.into()),
        ("LastGoodAt", at(status, Some(polls.good))),
    ]);
    let config = object(&mut [
        ("MaxConcurrentCreates", standing.creates.most.into()),
        ("MaxConcurrentDeletes", standing.deletes.most.into()),
        ("MaxConcurrentOperations", standing.operations.most.into()),
        ("MaxSize", standing.instances.most.into()),
        ("Interval", nanoseconds(standing.interval).into()),
        ("MaxInstanceAge", nanoseconds(standing.max_age).into()),
    ]);
    let in_use = object(&mut [
        ("Instances", standing.instances.used.into()),
        ("Creates", standing.creates.used.into()),
        ("Deletes", standing.deletes.used.into()),
        ("Operations", standing.operations.used.into()),
        ("Probes", standing.probes.used.into()),
        ("Looks", standing.looks.used.into()),
        ("Tasks", standing.tasks.into()),
        ("RequestThreads", status.wire.busy.into()),
    ]);
    let waiting = object(&mut [
        ("Creates", standing.creates_waiting.into()),
        ("Deletes", standing.deletes_waiting.into()),
        ("Requests", status.wire.waiting.into()),
        ("ChangingRequests", status.wire.changes_waiting.into()),
    ]);
    let breaker = object(&mut [
        ("Open", standing.breaker.is_some().into()),
        ("Trying", standing.breaker_tries.into()),
        ("Failures", standing.failures.into()),
        ("RemainingSeconds", seconds(standing.breaker)),
    ]);
    let stuck = object(&mut [("Instances", standing.stuck.into()), ("Seconds", seconds(standing.stuck_for))]);
    let throttle = object(&mut [
        ("Active", standing.throttle.is_some().into()),
        ("RemainingSeconds", seconds(standing.throttle)),
        ("Events", standing.throttled.into()),
    ]);
    let startup = object(&mut [
        ("Hold", standing.hold.is_some().into()),
        ("RemainingSeconds", seconds(standing.hold)),
        ("Leftovers", standing.leftovers.into()),
    ]);
    let all = object(&mut [
        ("Healthy", reasons.is_empty().into()),
        ("Reasons", reasons.into()),
        ("Troubles", troubles.into()),
        ("Plugin", plugin),
        ("Group", group),
        ("VCD", vcd),
        ("Session", session),
        ("Poll", poll),
        ("ReconcilerConfig", config),
        ("InUse", in_use),
        ("Waiting", waiting),
        ("Breaker", breaker),
        ("Stuck", stuck),
        ("Throttle", throttle),
        ("Startup", startup),
        ("Instances", Value::Array(instances)),
        ("Events", Value::Array(events)),
        ("EventsDropped", status.journal.dropped.into()),
    ]);
    all.to_string() + "\n"
}

fn instance(status: &Status<'_>, view: &View) -> Value {
    let life = status.journal.life(view.key);
    let time = |of: fn(&Life) -> Option<Time>| at(status, life.and_then(of));
    let collected = |life: &Life| life.removal.filter(|(_, cause)| cause.is_collected());
    let power = || view.power.map(|power| power.name()).into();
    object(&mut [
        ("ID", text(&view.name)),
        ("IntentID", text(&view.name)),
        ("Name", text(&view.name)),
        ("VMName", text(&view.name)),
        ("Phase", text(view.phase.name())),
        ("State", text(view.state.name())),
        ("Since", time(|life| Some(life.since))),
        ("WaitsFor", text(view.waits_for)),
        ("IPAddress", view.address.map(|address| address.to_string()).unwrap_or_default().into()),
        ("VAppStatus", power()),
        ("VMStatus", power()),
        ("OSType", view.guest_os.as_deref().into()),
        ("Href", view.vapp.as_deref().into()),
        ("Task", view.task.as_deref().into()),
        ("CreatedAt", timestamp(status.wall.checked_sub(view.age).unwrap_or(status.wall)).into()),
        ("CreateStartedAt", time(|life| life.create_asked)),
        ("CreateCompletedAt", time(|life| life.created)),
        ("DeleteRequestedAt", time(|life| life.removal.map(|(time, _)| time))),
        ("DeleteStartedAt", time(|life| life.delete_asked)),
        ("DeleteCompletedAt", time(|life| life.ended)),
        ("GCMarkedAt", at(status, life.and_then(collected).map(|(time, _)| time))),
        ("LastUpdated", at(status, view.seen.map(|ago| Time(status.now.0.saturating_sub(ago.as_millis() as u64))))),
        ("RetryCount", view.retries.into()),
        ("LastError", text(view.error.as_deref().unwrap_or_default())),
        ("NextRetryAfter", at(status, view.next_try.map(|left| status.now + left))),
        ("MissedPolls", view.missed.into()),
        ("Cause", view.cause.map(Cause::name).into()),
        ("Reported", view.reported.into()),
        ("Undecided", view.undecided.into()),
    ])
}

fn event(status: &Status<'_>, entry: &Entry) -> Value {
    object(&mut [
        ("Time", at(status, Some(entry.at))),
        ("First", at(status, Some(entry.first))),
        ("Times", entry.times.into()),
        ("Level", entry.level.as_str().to_ascii_lowercase().into()),
        ("Instance", entry.name.as_deref().into()),
        ("From", entry.from.map(|phase| phase.name()).into()),
        ("Phase", entry.phase.map(|phase| phase.name()).into()),
        ("Message", text(&entry.text)),
        ("Operation", entry.operation.into()),
        ("Task", entry.task.as_deref().map(last_part).into()),
        ("Seconds", seconds(entry.took)),
        ("Error", entry.error.as_deref().into()),
    ])
}

/// An object with these entries. Takes their values.
fn object(entries: &mut [(&str, Value)]) -> Value {
    let mut object = Map::new();
    for (key, value) in entries {
        object.insert((*key).to_owned(), value.take());
    }
    Value::Object(object)
}

fn text(text: &str) -> Value {
    Value::String(text.to_owned())
}

/// Time in RFC 3339, or null. A future time is shown as now.
fn at(status: &Status<'_>, time: Option<Time>) -> Value {
    let wall = time.map(|time| match time > status.now {
        true => status.wall + (time - status.now),
        false => status.wall(time),
    });
    wall.map(timestamp).into()
}

fn seconds(duration: Option<Duration>) -> Value {
    duration.map(|duration| duration.as_millis() as f64 / 1000.0).into()
}

/// As Go writes a `time.Duration`.
fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
