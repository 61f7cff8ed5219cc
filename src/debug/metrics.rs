//! `/metrics` in the Prometheus text format. It has the names of the Go plugin, and more. docs/monitoring.md lists
//! them. The group's name is the only label value from outside, so the number of time series is limited.

use crate::group::{Phase, State, Time, View};
use crate::status::Status;
use crate::tally::Histogram;
use crate::vcd::{SessionState, TOOK_BOUNDS};
use crate::version;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, prometheus_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use std::borrow::Cow;
use std::fmt::Error;
use std::time::UNIX_EPOCH;

pub use prometheus_text::CONTENT_TYPE;

/// The prefix of all names, except those about the process.
const PREFIX: &str = "fleeting_vcd_";

/// One metric with its samples.
#[derive(Debug)]
struct Metric {
    /// Without `_total` for a counter: the format adds it.
    name: String,
    help: &'static str,
    kind: MetricType,
    /// The name of the label that differs between samples; empty if there is only one sample.
    label: &'static str,
    samples: Vec<(&'static str, Sample)>,
    /// Further labels, the same for all samples.
    more: &'static [(&'static str, &'static str)],
}

#[derive(Debug)]
enum Sample {
    Whole(u64),
    Real(f64),
    Spread(Spread),
}

/// A histogram.
#[derive(Debug)]
struct Spread {
    sum: f64,
    count: u64,
    buckets: Vec<(f64, u64)>,
}

impl From<&Histogram> for Sample {
    fn from(of: &Histogram) -> Sample {
        let buckets = of.bounds.iter().copied().zip(of.buckets.iter().copied()).collect();
        Sample::Spread(Spread { sum: of.sum, count: of.count, buckets })
    }
}

/// All metrics at one moment.
#[derive(Debug, Default)]
struct Moment(Vec<Metric>);

impl Moment {
    fn add(
        &mut self,
        kind: MetricType,
        name: &str,
        help: &'static str,
        label: &'static str,
        samples: Vec<(&'static str, Sample)>,
    ) {
        let name = if name.starts_with("process_") { name.to_owned() } else { format!("{PREFIX}{name}") };
        self.0.push(Metric { name, help, kind, label, samples, more: &[] });
    }

    fn counter(&mut self, name: &str, help: &'static str, value: u64) {
        self.add(MetricType::Counter, name, help, "", vec![("", Sample::Whole(value))]);
    }

    fn counters(&mut self, name: &str, help: &'static str, label: &'static str, values: &[(&'static str, u64)]) {
        let samples = values.iter().map(|(value, count)| (*value, Sample::Whole(*count))).collect();
        self.add(MetricType::Counter, name, help, label, samples);
    }

    fn gauge(&mut self, name: &str, help: &'static str, value: f64) {
        self.add(MetricType::Gauge, name, help, "", vec![("", Sample::Real(value))]);
    }

    fn gauges(&mut self, name: &str, help: &'static str, label: &'static str, values: &[(&'static str, f64)]) {
        let samples = values.iter().map(|(value, number)| (*value, Sample::Real(*number))).collect();
        self.add(MetricType::Gauge, name, help, label, samples);
    }

    fn histogram(&mut self, name: &str, help: &'static str, of: &Histogram) {
        self.add(MetricType::Histogram, name, help, "", vec![("", of.into())]);
    }
}

/// The page.
pub fn page(status: &Status<'_>) -> String {
    let group = (Cow::from("instance_group"), Cow::from(status.about.group.clone()));
    let mut registry = Registry::with_labels([group].into_iter());
    registry.register_collector(Box::new(gather(status)));
    let mut page = String::new();
    // Writing to a String never fails.
    let _ = prometheus_text::encode(&mut page, &registry);
    page
}

fn gather(status: &Status<'_>) -> Moment {
    let (tally, standing) = (&status.journal.tally, &status.standing);
    let mut all = Moment::default();
    let known = status.views.iter().filter(|view| !view.undecided);
    let counts = crate::journal::count(known.map(|view| view.phase));
    let states: Vec<(&'static str, f64)> =
        Phase::ALL.iter().map(|phase| phase.name()).zip(counts.map(f64::from)).collect();
    let by_state = State::ALL.map(|state| {
        let seen = |view: &&View| !view.undecided && view.phase != Phase::Standby && view.state == state;
        let known = status.views.iter().filter(seen);
        (state.name(), known.count() as f64)
    });
    let epoch = |time: Time| status.wall(time).duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();

    all.counter("instances_created", "Instances that became running", tally.created);
    all.counter("instances_deleted", "Instances that VCD no longer has", tally.deleted);
    let help =
        "Failures: create is a failed attempt, timeout a create that was given up, others are requests and tasks";
    all.counters("instances_failed", help, "operation", &tally.failed);
    all.gauges("instances_current", "Instances by phase", "state", &states);
    all.histogram(
        "instance_creation_duration_seconds",
        "Time from Increase until the instance is running, without VMs from standby",
        &tally.creation,
    );
    let help = "Time from Increase until a VM from standby is running";
    all.histogram("standby_taken_duration_seconds", help, &tally.standby);
    all.counter("standby_created", "VMs that the plugin created for the standby pool", tally.standby_created);
    all.counter("standby_taken", "VMs from standby that are running for GitLab Runner", tally.standby.count);
    let help = "Time from the delete request until VCD no longer has the instance";
    all.histogram("instance_deletion_duration_seconds", help, &tally.deletion);

    let help = "Searches for leftovers and for instances that are too old";
    all.counter("gc_runs", help, tally.gc.count);
    all.counter(
        "gc_instances_collected",
        "Instances deleted because they are unhealthy, too old or leftovers",
        tally.collected,
    );
    all.histogram("gc_duration_seconds", help, &tally.gc);

    let requests = || status.requests.iter();
    let calls: Vec<_> = requests().map(|count| (count.operation, count.requests)).collect();
    all.counters("api_calls", "HTTP requests to VCD", "operation", &calls);
    let errors: Vec<_> = requests().map(|count| (count.operation, count.errors)).collect();
    let help = "HTTP requests to VCD without an answer, or with status 400 and above";
    all.counters("api_errors", help, "operation", &errors);
    let took = requests().filter(|count| count.requests > 0).map(|count| {
        let bounds = TOOK_BOUNDS.iter().map(|ms| *ms as f64 / 1000.0);
        let buckets = bounds.zip(count.took).collect();
        let sum = count.took_in_all.as_secs_f64();
        (count.operation, Sample::Spread(Spread { sum, count: count.requests, buckets }))
    });
    let took = took.collect();
    all.add(MetricType::Histogram, "api_duration_seconds", "Duration of HTTP requests to VCD", "operation", took);

    all.gauge("pool_size", "Instances that count towards max_size", f64::from(standing.instances.used));
    all.gauge("pool_max_size", "Maximum number of instances (max_size)", f64::from(standing.instances.most));
    let sum: u16 = counts.iter().sum();
    all.gauge("state_manager_instances_total", "All tracked instances", f64::from(sum));
    all.gauges(
        "state_manager_instances_by_state",
        "Tracked instances by the state that GitLab Runner sees",
        "state",
        &by_state,
    );
    all.histogram("reconcile_duration_seconds", "Duration of successful polls", &tally.polls);
    all.counter("reconcile", "Successful polls", tally.polls.count);
    all.gauge(
        "last_reconcile_timestamp_seconds",
        "End of the last successful poll since the Unix epoch in seconds",
        epoch(status.polls.good),
    );
    all.counter("poll_failures", "Failed polls", tally.failed_polls);

    let help = "Pauses of all changes after VCD's operation limit was reached";
    all.counter("throttle_events", help, standing.throttled);
    let left = |duration: Option<std::time::Duration>| duration.unwrap_or_default().as_secs_f64();
    all.gauge("throttle_pause_seconds", "Remaining time of the current pause", left(standing.throttle));
    all.gauge("breaker_pause_seconds", "Remaining time until creates continue after failures", left(standing.breaker));
    all.gauge(
        "breaker_failures",
        "By how much recent failed creates exceed recent successful ones",
        f64::from(standing.failures),
    );
    let help = "Instances with a task that hangs, or a delete, suspend or resume that VCD rejects";
    all.gauge("instances_stuck", help, f64::from(standing.stuck));
    all.gauge("stuck_seconds", "Time since the first of them has been stuck", left(standing.stuck_for));
    let help = "Waiting time of the oldest create that has not started";
    all.gauge("oldest_pending_create_seconds", help, left(standing.oldest_pending));
    all.counter("leftover_vapps_queued", "Leftovers found", tally.leftovers);
    let held = f64::from(u8::from(standing.hold.is_some()));
    all.gauge("startup_hold", "1 while creates wait until leftovers are deleted", held);
    let help = "Leftovers of an earlier run that still exist";
    all.gauge("startup_leftovers_remaining", help, f64::from(standing.leftovers));

    let help = "Time that the plugin adds to a create, at most: queue is until the first request to VCD, notice from a change in VCD \
                or the guest until the plugin sees it";
    let parts = vec![("notice", (&tally.noticed).into()), ("queue", (&tally.queued).into())];
    all.add(MetricType::Histogram, "creation_overhead_seconds", help, "part", parts);
    let tasks = tally.tasks.iter().map(|(operation, took)| (*operation, took.into())).collect();
    let help = "Duration of VCD tasks, from the request until the plugin sees their end";
    all.add(MetricType::Histogram, "task_duration_seconds", help, "operation", tasks);
    all.counters("task_failures", "Failed VCD tasks", "operation", &tally.failed_tasks);
    all.gauge("tasks_awaited", "VCD tasks that the plugin waits for", f64::from(standing.tasks));
    let limits = [
        ("creates", standing.creates),
        ("deletes", standing.deletes),
        ("looks", standing.looks),
        ("operations", standing.operations),
        ("probes", standing.probes),
    ];
    let used = limits.map(|(name, limit)| (name, f64::from(limit.used)));
    all.gauges("slots_used", "Slots in use by limit", "limit", &used);
    let most = limits.map(|(name, limit)| (name, f64::from(limit.most)));
    all.gauges("slots", "Maximum number of slots by limit", "limit", &most);
    let wire = &status.wire;
    all.gauge("request_threads_busy", "Threads that process a request to VCD", wire.busy as f64);
    all.gauge("request_threads", "Maximum number of threads for requests to VCD", wire.most as f64);
    let queues = [
        ("changes", wire.changes_waiting as f64),
        ("creates", f64::from(standing.creates_waiting)),
        ("deletes", f64::from(standing.deletes_waiting)),
        ("requests", wire.waiting as f64),
    ];
    all.gauges("queue_length", "Length of each queue for a slot or thread", "queue", &queues);
    let valid = status.session.state != SessionState::Ended;
    all.gauge("session_valid", "1 with a session, or during a login", f64::from(u8::from(valid)));

    let name = format!("{PREFIX}build_info");
    let samples = vec![("", Sample::Real(1.0))];
    let more = &[("version", version::VERSION), ("revision", version::REVISION), ("rust", version::COMPILER)];
    let help = "Always 1, with the build in its labels";
    all.0.push(Metric { name, help, kind: MetricType::Gauge, label: "", samples, more });

    let process = &status.process;
    let mut told = |name, help, value: Option<u64>| {
        if let Some(value) = value {
            all.gauge(name, help, value as f64);
        }
    };
    told("process_resident_memory_bytes", "Resident memory size in bytes", process.memory);
    told("process_open_fds", "Number of open file descriptors", process.open_files);
    told("process_threads", "Number of threads", process.threads);
    if let Some(cpu) = process.cpu {
        let help = "Total user and system CPU time spent in seconds";
        let samples = vec![("", Sample::Real(cpu.as_secs_f64()))];
        all.add(MetricType::Counter, "process_cpu_seconds", help, "", samples);
    }
    all.gauge("process_start_time_seconds", "Start of Init since the Unix epoch in seconds", epoch(Time::default()));
    all
}

impl Collector for Moment {
    fn encode(&self, mut to: DescriptorEncoder) -> Result<(), Error> {
        for metric in &self.0 {
            let mut samples = to.encode_descriptor(&metric.name, metric.help, None, metric.kind)?;
            for (value, sample) in &metric.samples {
                let label = Some((metric.label, *value)).filter(|(label, _)| !label.is_empty());
                let labels: Vec<(&str, &str)> = label.into_iter().chain(metric.more.iter().copied()).collect();
                let labels = labels.as_slice();
                let mut to = samples.encode_family(&labels)?;
                match (sample, metric.kind) {
                    (Sample::Whole(number), MetricType::Counter) => ConstCounter::new(*number).encode(to)?,
                    (Sample::Real(number), MetricType::Counter) => ConstCounter::new(*number).encode(to)?,
                    (Sample::Whole(number), _) => ConstGauge::new(*number as f64).encode(to)?,
                    (Sample::Real(number), _) => ConstGauge::new(*number).encode(to)?,
                    (Sample::Spread(spread), _) => {
                        to.encode_histogram::<[(&str, &str); 0]>(spread.sum, spread.count, &spread.buckets, None)?
                    }
                }
            }
        }
        Ok(())
    }
}
