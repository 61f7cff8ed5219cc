//! `/api/status`. Its keys are those that users of the Go plugin know, and more; docs/monitoring.md lists them.

use crate::driver::last_part;
use crate::group::{Limit, Time, View};
use crate::journal::{Entry, Life};
use crate::status::Status;
use crate::timestamp::timestamp;
use crate::vcd::SessionState;
use serde_json::{Map, Value, json};
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
    let ailments = status.ailments();
    let all = json!({
        "Healthy": ailments.is_empty(),
        "Ailments": ailments,
        "Plugin": {
            "Name": env!("CARGO_PKG_NAME"),
            "Version": env!("CARGO_PKG_VERSION"),
            "Time": timestamp(status.wall),
            "StartedAt": at(status, Some(Time::default())),
            "MemoryBytes": status.process.memory,
            "CPUSeconds": seconds(status.process.cpu),
            "Threads": status.process.threads,
            "OpenFiles": status.process.open_files,
        },
        "Group": {"Name": about.group, "Manager": about.manager, "Prefix": about.prefix, "Stopping": standing.stopping},
        "VCD": {
            "URL": about.url,
            "Org": about.org,
            "VDC": about.vdc,
            "APIVersion": about.api_version,
            "TemplateOSType": about.guest_os,
            "Unreachable": standing.unreachable,
        },
        "Session": {
            "State": match session.state {
                SessionState::Valid => "valid",
                SessionState::LoggingIn => "logging in",
                SessionState::Ended => "none",
            },
            "Logins": session.logins,
            "RenewedInSeconds": seconds(session.renewed_in),
            "EndsInSeconds": seconds(session.ends_in),
            "LastError": session.failure.as_ref().map(|error| error.to_string()),
        },
        "Poll": {
            "EndedAt": at(status, Some(polls.ended)),
            "Seconds": seconds(Some(polls.took)),
            "VMs": shown,
            "LastError": failure,
            "FailedInARow": standing.failed_polls,
            "LastGoodAt": at(status, Some(polls.good)),
        },
        "ReconcilerConfig": {
            "MaxConcurrentCreates": standing.creates.most,
            "MaxConcurrentDeletes": standing.deletes.most,
            "MaxConcurrentOperations": standing.operations.most,
            "MaxSize": standing.instances.most,
            "Interval": nanoseconds(standing.interval),
            "MaxInstanceAge": nanoseconds(standing.max_age),
        },
        "InUse": {
            "Instances": used(standing.instances),
            "Creates": used(standing.creates),
            "Deletes": used(standing.deletes),
            "Operations": used(standing.operations),
            "Probes": used(standing.probes),
            "Looks": used(standing.looks),
            "Tasks": standing.tasks,
            "RequestThreads": status.wire.busy,
        },
        "Waiting": {
            "Creates": standing.creates_waiting,
            "Deletes": standing.deletes_waiting,
            "Requests": status.wire.waiting,
            "ChangingRequests": status.wire.changes_waiting,
        },
        "Breaker": {
            "Open": standing.breaker.is_some(),
            "Trying": standing.breaker_tries,
            "Failures": standing.failures,
            "RemainingSeconds": seconds(standing.breaker),
        },
        "Throttle": {
            "Active": standing.throttle.is_some(),
            "RemainingSeconds": seconds(standing.throttle),
            "Events": standing.throttled,
        },
        "Startup": {
            "Hold": standing.hold.is_some(),
            "RemainingSeconds": seconds(standing.hold),
            "Leftovers": standing.leftovers,
        },
        "Instances": instances,
        "Events": events,
        "EventsDropped": status.journal.dropped,
    });
    all.to_string() + "\n"
}

fn instance(status: &Status<'_>, view: &View) -> Value {
    let life = status.journal.life(view.key);
    let time = |of: fn(&Life) -> Option<Time>| at(status, life.and_then(of));
    let collected = |life: &Life| life.condemned.filter(|(_, cause)| matches!(*cause, "aged" | "ill" | "leftover"));
    let power = view.power.map(|power| power.name());
    let mut object = Map::new();
    let mut put = |key: &str, value: Value| object.insert(key.to_owned(), value);
    put("ID", json!(*view.name));
    put("IntentID", json!(*view.name));
    put("Name", json!(*view.name));
    put("VMName", json!(*view.name));
    put("Phase", json!(view.phase.name()));
    put("Since", time(|life| Some(life.since)));
    put("WaitsFor", json!(view.waits_for));
    put("IPAddress", json!(view.address.map(|address| address.to_string()).unwrap_or_default()));
    put("VAppStatus", json!(power));
    put("VMStatus", json!(power));
    put("OSType", json!(view.guest_os.as_deref()));
    put("Href", json!(view.vapp.as_deref()));
    put("Task", json!(view.task.as_deref()));
    put("CreatedAt", json!(timestamp(status.wall.checked_sub(view.age).unwrap_or(status.wall))));
    put("CreateStartedAt", time(|life| life.create_asked));
    put("CreateCompletedAt", time(|life| life.created));
    put("DeleteRequestedAt", time(|life| life.condemned.map(|(time, _)| time)));
    put("DeleteStartedAt", time(|life| life.delete_asked));
    put("DeleteCompletedAt", time(|life| life.ended));
    put("GCMarkedAt", at(status, life.and_then(collected).map(|(time, _)| time)));
    put("LastUpdated", at(status, view.seen.map(|ago| Time(status.now.0.saturating_sub(ago.as_millis() as u64)))));
    put("RetryCount", json!(view.retries));
    put("LastError", json!(view.error.as_deref().unwrap_or_default()));
    put("NextRetryAfter", at(status, view.next_try.map(|left| status.now + left)));
    put("MissedPolls", json!(view.missed));
    put("Cause", json!(view.cause));
    put("Reported", json!(view.reported));
    put("Stranger", json!(view.stranger));
    Value::Object(object)
}

fn event(status: &Status<'_>, entry: &Entry) -> Value {
    json!({
        "Time": at(status, Some(entry.at)),
        "First": at(status, Some(entry.first)),
        "Times": entry.times,
        "Level": entry.level.as_str().to_ascii_lowercase(),
        "Instance": entry.name.as_deref(),
        "From": entry.from.map(|phase| phase.name()),
        "Phase": entry.phase.map(|phase| phase.name()),
        "Message": *entry.text,
        "Operation": entry.operation,
        "Task": entry.task.as_deref().map(last_part),
        "Seconds": seconds(entry.took),
        "Error": entry.error.as_deref(),
    })
}

/// Time in RFC 3339, or null. What lies ahead counts from now.
fn at(status: &Status<'_>, time: Option<Time>) -> Value {
    let wall = time.map(|time| match time > status.now {
        true => status.wall + (time - status.now),
        false => status.wall(time),
    });
    json!(wall.map(timestamp))
}

fn seconds(duration: Option<Duration>) -> Value {
    json!(duration.map(|duration| duration.as_millis() as f64 / 1000.0))
}

/// As Go writes a `time.Duration`.
fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn used(limit: Limit) -> u32 {
    limit.used
}
