//! `/metrics` in the Prometheus text format. The names are those of the Go plugin, and more; docs/monitoring.md lists them.
//! No label takes a value from outside but the group's name: their number is bounded.

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

/// What all names begin with, those of the process aside.
const PREFIX: &str = "fleeting_vcd_";

/// One metric with its samples.
#[derive(Debug)]
struct Metric {
    /// Without `_total` if it is a counter: the format adds that.
    name: String,
    help: &'static str,
    kind: MetricType,
    /// The name of the label that tells the samples apart; empty if there is one sample without.
    label: &'static str,
    samples: Vec<(&'static str, Sample)>,
    /// More labels, the same for all samples.
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

/// All metrics of one moment.
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
    // Writing to a String cannot fail.
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

    all.counter("instances_created", "Instances that came to running", tally.created);
    all.counter("instances_deleted", "Instances that VCD does not have any more", tally.deleted);
    let help = "Failures: create is a failed try, timeout an instance that was given up, others are requests and tasks";
    all.counters("instances_failed", help, "operation", &tally.failed);
    all.gauges("instances_current", "Instances by phase", "state", &states);
    all.histogram("instance_creation_duration_seconds", "From Increase to running", &tally.creation);
    let help = "From Increase to running, of VMs taken from standby, which the creation duration does not hold";
    all.histogram("standby_taken_duration_seconds", help, &tally.standby);
    all.counter("standby_created", "VMs created for the standby pool that came into it", tally.standby_created);
    all.counter("standby_taken", "VMs taken from standby that came to running", tally.standby.count);
    let help = "From the wish to remove an instance until VCD does not have it any more";
    all.histogram("instance_deletion_duration_seconds", help, &tally.deletion);

    let help = "Searches for leftovers and for what is too old";
    all.counter("gc_runs", help, tally.gc.count);
    all.counter("gc_instances_collected", "Removed for being unhealthy, too old or a leftover", tally.collected);
    all.histogram("gc_duration_seconds", help, &tally.gc);

    let requests = || status.requests.iter();
    let calls: Vec<_> = requests().map(|count| (count.operation, count.requests)).collect();
    all.counters("api_calls", "HTTP requests to VCD", "operation", &calls);
    let errors: Vec<_> = requests().map(|count| (count.operation, count.errors)).collect();
    let help = "HTTP requests to VCD without an answer, or with one of status 400 and above";
    all.counters("api_errors", help, "operation", &errors);
    let took = requests().filter(|count| count.requests > 0).map(|count| {
        let bounds = TOOK_BOUNDS.iter().map(|ms| *ms as f64 / 1000.0);
        let buckets = bounds.zip(count.took).collect();
        let sum = count.took_in_all.as_secs_f64();
        (count.operation, Sample::Spread(Spread { sum, count: count.requests, buckets }))
    });
    let took = took.collect();
    all.add(MetricType::Histogram, "api_duration_seconds", "Time of HTTP requests to VCD", "operation", took);

    all.gauge("pool_size", "Instances that count towards the largest size", f64::from(standing.instances.used));
    all.gauge("pool_max_size", "Largest size of the group", f64::from(standing.instances.most));
    let sum: u16 = counts.iter().sum();
    all.gauge("state_manager_instances_total", "Instances that are tracked, in whatever phase", f64::from(sum));
    all.gauges("state_manager_instances_by_state", "The same by the state that GitLab Runner sees", "state", &by_state);
    all.histogram("reconcile_duration_seconds", "Time of polls that succeeded", &tally.polls);
    all.counter("reconcile", "Polls that succeeded", tally.polls.count);
    all.gauge("last_reconcile_timestamp_seconds", "When the last of them ended", epoch(status.polls.good));
    all.counter("poll_failures", "Polls that failed", tally.failed_polls);

    let help = "Pauses of all changes because VCD's limit of operations was reached";
    all.counter("throttle_events", help, standing.throttled);
    let left = |duration: Option<std::time::Duration>| duration.unwrap_or_default().as_secs_f64();
    all.gauge("throttle_pause_seconds", "What is left of such a pause", left(standing.throttle));
    all.gauge("breaker_pause_seconds", "Time until creates go on after several have failed", left(standing.breaker));
    all.gauge("breaker_failures", "Creates that failed in a row", f64::from(standing.failures));
    let help = "Instances whose task hangs, or that VCD refuses to delete, suspend or resume";
    all.gauge("instances_stuck", help, f64::from(standing.stuck));
    all.gauge("stuck_seconds", "For how long the first of them has been so", left(standing.stuck_for));
    let help = "For how long the oldest create that has not begun waits";
    all.gauge("oldest_pending_create_seconds", help, left(standing.oldest_pending));
    all.counter("leftover_vapps_queued", "Leftovers that were found and have to go", tally.leftovers);
    let held = f64::from(u8::from(standing.hold.is_some()));
    all.gauge("startup_hold", "1 while creates wait for the removal of leftovers", held);
    let help = "Leftovers of an earlier life that are still there";
    all.gauge("startup_leftovers_remaining", help, f64::from(standing.leftovers));

    let help = "What the plugin added to a create, at most: queue is until VCD was asked, notice what lay between \
                progress of VCD or the guest and its notice";
    let parts = vec![("notice", (&tally.noticed).into()), ("queue", (&tally.queued).into())];
    all.add(MetricType::Histogram, "creation_overhead_seconds", help, "part", parts);
    let tasks = tally.tasks.iter().map(|(operation, took)| (*operation, took.into())).collect();
    let help = "VCD's tasks, from the request to the notice of their end";
    all.add(MetricType::Histogram, "task_duration_seconds", help, "operation", tasks);
    all.counters("task_failures", "VCD's tasks that failed", "operation", &tally.failed_tasks);
    all.gauge("tasks_awaited", "Tasks of VCD's that are awaited", f64::from(standing.tasks));
    let limits = [
        ("creates", standing.creates),
        ("deletes", standing.deletes),
        ("looks", standing.looks),
        ("operations", standing.operations),
        ("probes", standing.probes),
    ];
    let used = limits.map(|(name, limit)| (name, f64::from(limit.used)));
    all.gauges("slots_used", "Limits in use", "limit", &used);
    let most = limits.map(|(name, limit)| (name, f64::from(limit.most)));
    all.gauges("slots", "Limits", "limit", &most);
    let wire = &status.wire;
    all.gauge("request_threads_busy", "Threads that work on a request to VCD", wire.busy as f64);
    all.gauge("request_threads", "At most so many", wire.most as f64);
    let queues = [
        ("changes", wire.changes_waiting as f64),
        ("creates", f64::from(standing.creates_waiting)),
        ("deletes", f64::from(standing.deletes_waiting)),
        ("requests", wire.waiting as f64),
    ];
    all.gauges("queue_length", "What waits for a slot or thread", "queue", &queues);
    let valid = status.session.state != SessionState::Ended;
    all.gauge("session_valid", "1 while there is a session with VCD, or a login under way", f64::from(u8::from(valid)));

    let name = format!("{PREFIX}build_info");
    let samples = vec![("", Sample::Real(1.0))];
    let more = &[("version", version::VERSION), ("revision", version::REVISION), ("rust", version::COMPILER)];
    let help = "1, with the build in its labels";
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
