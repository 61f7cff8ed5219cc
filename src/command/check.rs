//! `check`: shows a person, line by line, whether the runners of a config.toml would get VMs from VCD, and how to fix problems.
//! It changes nothing without `--create`.

use super::advice::{self, advice};
use super::life::{self, DELETE_TIMEOUT, Life};
use super::output::{Paper, Verdict, log_for_people, print, say, short, size, tenths};
use super::runner::{Runner, RunnerFile};
use crate::access::{self, Login as GuestLogin, Protocol};
use crate::cloud::{ALLOW_SCRIPTS, ErrorKind, Href, VcdError, is_windows};
use crate::config::{Config, Draft, MAX_PREFIX, SEED_CHANGES, nearest};
use crate::driver::Plugin;
use crate::group::{OnShutdown, State};
use crate::pool::Pool;
use crate::vcd::inspect::{DiskFacts, Inspector, Login, is_about_names};
use crate::vcd::record::{self, Written};
use crate::vcd::{IpMode, Kind, Token, TokenKind};
use crate::version::{self, with_addresses};
use serde_json::Value;
use smol::{LocalExecutor, Timer};
use std::fmt;
use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// The rights that creates and deletes need, with VCD's names.
const NEEDED_RIGHTS: [&str; 4] =
    ["vApp: Create / Reconfigure", "vApp: Delete", "vApp: Power Operations", "vApp: Edit Properties"];
/// With this right a forced delete of a running vApp always works.
const FORCE_RIGHT: &str = "vApp: VM Migrate, Force Undeploy, Relocate, Consolidate";
/// Maximum time for a login to a new guest.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(120);
/// Pause between two attempts.
const LOGIN_PAUSE: Duration = Duration::from_secs(2);
/// The reason of a failed login is printed again after this time.
const LOGIN_WORD: Duration = Duration::from_secs(10);
/// Maximum number of VCD's names in the advice for a wrong name, if none is similar.
const MAX_NAMES_TOLD: usize = 5;
/// Options of ssh. The host key of a new guest is not known in advance.
const SSH_OPTIONS: [&str; 8] = [
    "-Fnone",
    "-oStrictHostKeyChecking=no",
    "-oUserKnownHostsFile=/dev/null",
    "-oGlobalKnownHostsFile=/dev/null",
    "-oLogLevel=INFO",
    "-oConnectTimeout=10",
    "-oNumberOfPasswordPrompts=1",
    "-oIdentityAgent=none",
];
/// The exit status of `env` if it does not find the program.
const NO_SUCH_PROGRAM: i32 = 127;
/// Maximum number of bytes of ssh's output that are read, from its end.
const MAX_SSH_ERRORS: u64 = 64 * 1024;
/// A shutdown_timeout below this may be too short for VCD to delete.
const SHORT_SHUTDOWN: Duration = Duration::from_secs(60);
/// After this time systemd kills GitLab Runner, and the plugin exits, unless TimeoutStopSec is longer.
const LONG_SHUTDOWN: Duration = Duration::from_secs(90);
/// Suffix of names, so that the test VM of `--create` has its own owner.
const SUFFIX: &str = "-check";

/// The options of `check`.
pub struct Options<'a> {
    /// The config.toml.
    pub path: &'a Path,
    /// Only the runner with this name.
    pub runner: Option<&'a str>,
    /// Send nothing to VCD.
    pub offline: bool,
    /// Create a test VM, log in, delete it.
    pub create: bool,
    /// Record the requests to VCD and its answers in this new file.
    pub record: Option<&'a Path>,
}

/// One runner's findings, printed as they come.
struct Report {
    paper: Paper,
    failed: usize,
    warned: usize,
}

impl Report {
    #[inline(never)]
    fn say(&mut self, verdict: Verdict, topic: &str, text: &str, advice: &str) {
        self.failed += usize::from(verdict == Verdict::Fail);
        self.warned += usize::from(verdict == Verdict::Warn);
        self.paper.finding(verdict, topic, text, &with_addresses(advice));
    }

    fn ok(&mut self, topic: &str, text: &str) {
        self.say(Verdict::Ok, topic, text, "");
    }

    fn fail(&mut self, topic: &str, error: &VcdError) {
        self.say(Verdict::Fail, topic, &error.to_string(), advice(error));
    }

    /// The same for what `name` names. If there is nothing of this name, what there is says what may be meant.
    fn unknown(&mut self, topic: &str, error: &VcdError, name: &str, names: impl FnOnce() -> Vec<String>) {
        if error.kind != ErrorKind::NotFound || !is_about_names(error) || advice::by_cause(&error.text).is_some() {
            return self.fail(topic, error);
        }
        let advice = meant(name, &names()).unwrap_or_else(|| advice(error).to_owned());
        self.say(Verdict::Fail, topic, &error.to_string(), &advice);
    }
}

/// A hint at the names that VCD has, for a name that it does not have.
fn meant(name: &str, names: &[String]) -> Option<String> {
    if let Some(meant) = nearest(name, names.iter().map(String::as_str)) {
        return Some(format!("did you mean {meant:?}?"));
    }
    let told: Vec<String> = names.iter().take(MAX_NAMES_TOLD).map(|name| format!("{name:?}")).collect();
    let more = if names.len() > told.len() { ", and more" } else { "" };
    (!told.is_empty()).then(|| format!("the user can see {}{more}", told.join(", ")))
}

/// Runs the checks and prints the findings. True if nothing failed.
pub fn run(options: &Options<'_>) -> Result<bool, String> {
    let file = RunnerFile::read(options.path)?;
    let runners = file.select(options.runner)?;
    if options.create || options.record.is_some() {
        file.only(options.runner)?;
    }
    let record = options.record.map(begin_recording).transpose()?;
    log_for_people(if options.create { log::LevelFilter::Info } else { log::LevelFilter::Warn });
    let paper = Paper::new();
    print(&format!("{}: {} of {} runners use this plugin\n", file.path.display(), file.runners.len(), file.count));
    let (mut failed, mut warned) = (0, 0);
    for runner in runners {
        print(&format!("\n{}\n", paper.paint("1", &format!("runner {:?} ({})", runner.name, runner.executor))));
        let mut report = Report { paper, failed: 0, warned: 0 };
        check(&mut report, &file, runner, options);
        if let (Some(mut record), Some(path)) = (record.as_ref(), options.record) {
            match recorded(runner, options) {
                None => {
                    let _ = fs::remove_file(path);
                    report.say(
                        Verdict::Note,
                        "recording",
                        "no file was written, because no request was sent to VCD",
                        "",
                    );
                }
                Some(written) => match record.write_all(written.text.as_bytes()) {
                    Err(error) => report.say(Verdict::Fail, "recording", &format!("{}: {error}", path.display()), ""),
                    Ok(()) => told(&mut report, path, &written),
                },
            }
        }
        failed += report.failed;
        warned += report.warned;
    }
    let plural = |count: usize, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
    let end = match (failed, warned) {
        (0, 0) => paper.paint("32", "everything works"),
        (0, _) => paper.paint("33", &format!("it works, with {}", plural(warned, "warning"))),
        _ => paper.paint("1;31", &format!("{}, {}", plural(failed, "failure"), plural(warned, "warning"))),
    };
    print(&format!("\n{end}\n"));
    Ok(failed == 0)
}

/// Creates the file before the first request to VCD, readable for its owner only.
fn begin_recording(path: &Path) -> Result<fs::File, String> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(path).map_err(|error| format!("record into {}: {error}", path.display()))?;
    record::start();
    Ok(file)
}

/// The recording of the requests for a runner.
fn recorded(runner: &Runner, options: &Options<'_>) -> Option<Written> {
    let config = runner.config(false).ok()?;
    let (vcd, policy) = (&config.vcd, &config.policy);
    let host = vcd.url.split_once("://").map_or("", |(_, rest)| rest.split('/').next().unwrap_or_default());
    let prefix = checked_prefix(&config);
    let checked = |name: &str| format!("{name}{SUFFIX}");
    let (group, manager) = (checked(&policy.group), checked(&policy.manager));
    let policies = [&vcd.sizing_policy, &vcd.placement_policy].map(|name| name.as_deref().unwrap_or_default());
    let names = [
        ("host", host),
        ("org", &vcd.org),
        ("vdc", &vcd.vdc),
        ("network", &vcd.network),
        ("catalog", &vcd.catalog),
        ("template", &vcd.template),
        ("storage", &vcd.storage_profile),
        ("sizing", policies[0]),
        ("placement", policies[1]),
        ("prefix", &prefix),
        ("prefix", &policy.prefix),
        ("group", &group),
        ("group", &policy.group),
        ("manager", &manager),
        ("manager", &policy.manager),
    ];
    let has = |name: &Option<String>| if name.is_some() { "yes" } else { "no" };
    let head = format!(
        "fleeting-plugin-vcd's recording, format 1: its requests to VCD, and VCD's answers\n\
         plugin {}\n\
         settings create={} ip_allocation_mode={} cpu_count={} cores_per_socket={} memory_mb={} disk_size_gb={} \
         sizing_policy={} placement_policy={}\n",
        version::VERSION,
        options.create,
        if vcd.ip_mode == IpMode::Pool { "POOL" } else { "DHCP" },
        vcd.cpus,
        vcd.cores_per_socket,
        vcd.memory_mb,
        vcd.disk_gb,
        has(&vcd.sizing_policy),
        has(&vcd.placement_policy),
    );
    record::text(&head, &names)
}

fn told(report: &mut Report, path: &Path, written: &Written) {
    let left_out = match written.left_out {
        0 => String::new(),
        more => format!(", {more} more did not fit"),
    };
    let text = format!(
        "{} requests and answers are in {}{left_out}: tokens, passwords, scripts, names, addresses and ids are replaced",
        written.requests,
        path.display()
    );
    report.say(Verdict::Ok, "recording", &text, "read it before you pass it on");
}

/// The prefix of the test VM of `--create`.
fn checked_prefix(config: &Config) -> String {
    let prefix: String = config.policy.prefix.chars().take(MAX_PREFIX - SUFFIX.len()).collect();
    format!("{prefix}{SUFFIX}")
}

fn check(report: &mut Report, file: &RunnerFile, runner: &Runner, options: &Options<'_>) {
    let Draft { config, errors } = runner.draft(options.offline);
    let policy = &config.policy;
    match errors.split_last() {
        None => report.ok(
            "configuration",
            &format!(
                "group {:?} of {:?}, vApps {}-*, at most {} instances",
                policy.group, policy.manager, policy.prefix, policy.max_size
            ),
        ),
        Some((last, others)) => {
            for mistake in others {
                report.say(Verdict::Fail, "configuration", mistake, "");
            }
            report.say(Verdict::Fail, "configuration", last, "docs/configuration.md explains each key");
        }
    }
    for warning in &config.warnings {
        report.say(Verdict::Warn, "configuration", warning, "");
    }
    runner_itself(report, file, runner, &config);
    if runner.key_unread.is_none() || options.offline {
        credentials(report, runner, options.offline);
    }
    if options.offline {
        report.say(Verdict::Note, "VCD", "not checked", "");
        return;
    }
    let has_token = match &config.vcd.token {
        Token::Text(token) => !token.reveal().is_empty(),
        Token::File(_) => true,
    };
    if config.vcd.url.is_empty() || config.vcd.org.is_empty() || !has_token {
        report.say(Verdict::Note, "VCD", "not checked: this needs url, org and a token", "");
        return;
    }
    vcd(report, runner, &config);
    if options.create {
        match report.failed {
            0 => create(report, runner, &config),
            _ => report.say(Verdict::Note, "create", "not tried: fix the failures above first", ""),
        }
    }
}

/// Settings of GitLab Runner itself that are known to break jobs.
fn runner_itself(report: &mut Report, file: &RunnerFile, runner: &Runner, config: &Config) {
    if !matches!(runner.executor.as_str(), "instance" | "docker-autoscaler") {
        let text = format!("executor {:?} does not autoscale", runner.executor);
        report.say(Verdict::Fail, "runner", &text, "use \"instance\" or \"docker-autoscaler\"");
    }
    let most = u64::from(config.policy.max_size);
    for (text, advice) in &runner.warnings {
        report.say(Verdict::Warn, "runner", text, advice);
    }
    if runner.executor == "docker-autoscaler" && !runner.has_docker {
        let text = "executor \"docker-autoscaler\" without [runners.docker]: jobs fail";
        report.say(Verdict::Warn, "runner", text, "add [runners.docker] with an image");
    }
    if runner.policies == 0 {
        let text = "no [[runners.autoscaler.policy]]: no VM is kept ready, and each job waits until one is created";
        report.say(Verdict::Warn, "runner", text, "add one, with idle_count and idle_time");
    }
    if most > 0 && runner.max_instances > most {
        let text =
            format!("max_instances {} is above max_size {most}: GitLab Runner does not start", runner.max_instances);
        report.say(Verdict::Fail, "runner", &text, "lower max_instances, or raise max_size in plugin_config");
    }
    if runner.max_instances == 0 {
        let text = "max_instances is not set: the number of instances is limited only by the jobs and max_size";
        report.say(Verdict::Warn, "runner", text, "set max_instances");
    }
    if runner.capacity == 0 {
        report.say(Verdict::Warn, "runner", "capacity_per_instance is not set", "set it, usually to 1");
    }
    if runner.executor == "instance" && runner.max_use_count != 1 {
        let text = "jobs run one after another on the same VM and see what earlier ones left (max_use_count is not 1)";
        report.say(Verdict::Warn, "runner", text, "set max_use_count = 1 for a fresh VM for each job");
    }
    standby(report, config, wanted(runner, config).runner);
    let jobs = wanted(runner, config).runner * runner.capacity.max(1);
    if runner.idle_count > jobs {
        let text = format!("a policy keeps {} idle, but only {jobs} jobs fit on all instances", runner.idle_count);
        report.say(Verdict::Warn, "runner", &text, "lower idle_count, or raise max_instances");
    }
    if file.concurrent > 0 && runner.max_instances > 0 && file.concurrent < jobs {
        let text =
            format!("concurrent = {} allows fewer jobs than the {jobs} that fit on all instances", file.concurrent);
        report.say(Verdict::Note, "runner", &text, "");
    }
    let deletes = runner.delete_on_shutdown || config.policy.on_shutdown == OnShutdown::Delete;
    if deletes && file.shutdown_timeout < SHORT_SHUTDOWN {
        let text =
            format!("shutdown_timeout is {} s: VCD may take longer to delete the VMs", file.shutdown_timeout.as_secs());
        report.say(Verdict::Warn, "runner", &text, "set shutdown_timeout = 80; the next start deletes the rest");
    }
    if file.shutdown_timeout > LONG_SHUTDOWN {
        let text = format!(
            "shutdown_timeout is {} s: after {} s systemd kills GitLab Runner and the plugin anyway",
            file.shutdown_timeout.as_secs(),
            LONG_SHUTDOWN.as_secs()
        );
        report.say(Verdict::Warn, "runner", &text, "set shutdown_timeout = 80 (docs/guide.md#4-systemd)");
    }
    if deletes && runner.state_storage {
        let text = "state_storage is enabled, but VMs are deleted when GitLab Runner stops";
        report.say(Verdict::Warn, "runner", text, "set on_shutdown = \"keep\" in plugin_config");
    }
    // Two plugins with the same identity adopt each other's VMs.
    for other in file.runners.iter().filter(|other| !std::ptr::eq(*other, runner)) {
        if other.config(true).is_ok_and(|other| other.identity() == config.identity()) {
            let text = format!("runner {:?} has the same name, instance_group_name and vapp_name_prefix", other.name);
            report.say(
                Verdict::Fail,
                "runner",
                &text,
                "each would delete the other's VMs: set another vapp_name_prefix for one of them",
            );
        }
    }
}

/// The credentials for logins to guests.
fn credentials(report: &mut Report, runner: &Runner, offline: bool) {
    let connector = &runner.connector;
    let user = if connector.username.is_empty() { "root or Administrator" } else { &connector.username };
    match (&runner.key_unread, connector.use_static_credentials) {
        (Some(why), _) if offline => {
            report.say(Verdict::Warn, "credentials", why, "the file must exist on the machine of GitLab Runner");
        }
        (_, false) => report.ok("credentials", &format!("{user}, with a separate key for each VM")),
        (_, true) => {
            let key = runner.key_path.as_deref().map(|path| format!("the key {}", path.display()));
            let password = (!connector.password.is_empty()).then(|| "a password".to_owned());
            let with: Vec<String> = key.into_iter().chain(password).collect();
            report.ok("credentials", &format!("{user}, with {}", with.join(" and ")));
        }
    }
    #[cfg(unix)]
    for path in runner.key_path.iter() {
        use std::os::unix::fs::PermissionsExt as _;
        if fs::metadata(path).is_ok_and(|file| file.permissions().mode() & 0o077 != 0) {
            let text = format!("{} can be read by others", path.display());
            report.say(Verdict::Warn, "credentials", &text, &format!("chmod 600 {}", path.display()));
        }
    }
}

/// Maximum number of VMs.
#[derive(Clone, Copy)]
struct Wanted {
    /// GitLab Runner's instances.
    runner: u64,
    /// VMs in standby, in addition.
    standby: u64,
}

impl Wanted {
    fn all(self) -> u64 {
        self.runner.saturating_add(self.standby)
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.standby {
            0 => write!(f, "{}", self.runner),
            standby => write!(f, "{}, and {standby} are in standby", self.runner),
        }
    }
}

fn wanted(runner: &Runner, config: &Config) -> Wanted {
    let instances = match (runner.max_instances, u64::from(config.policy.max_size)) {
        (0, most) => most,
        // This is reported separately.
        (wanted, 0) => wanted,
        (wanted, most) => wanted.min(most),
    };
    Wanted { runner: instances, standby: config.policy.standby_count.into() }
}

/// Standby VMs, in addition to at most `most` instances of GitLab Runner.
fn standby(report: &mut Report, config: &Config, most: u64) {
    let count = u64::from(config.policy.standby_count);
    if count == 0 {
        return;
    }
    let text = format!(
        "{count} suspended VMs in addition to max_size: they count for the VM quota, the static IP pool and the storage"
    );
    report.say(Verdict::Note, "standby", &text, "");
    if most > 0 && count > most {
        let text = format!("standby_count is {count}, but GitLab Runner wants at most {most} instances");
        report.say(Verdict::Warn, "standby", &text, "lower standby_count");
    }
    if config.vcd.ip_mode == IpMode::Dhcp {
        let text =
            "addresses by DHCP: after the lease of its address, another guest may get the address of a VM in standby";
        let advice = "set standby_max_age below half the lease time of the DHCP server";
        report.say(Verdict::Note, "standby", text, advice);
    }
}

/// VCD shows that the VMs cannot be suspended.
fn not_suspended(report: &mut Report, config: &Config, why: Option<&'static str>) {
    if let (1.., Some(why)) = (config.policy.standby_count, why) {
        let text = format!("{why}: VMs cannot be suspended, and none is kept in standby");
        report.say(Verdict::Warn, "standby", &text, "set standby_count = 0, or use another template or policy");
    }
}

fn vcd(report: &mut Report, runner: &Runner, config: &Config) {
    let settings = &config.vcd;
    let (inspector, login) = match Inspector::log_in(settings.clone()) {
        Ok(logged_in) => logged_in,
        Err(error) => {
            let is_of_token = error.what.contains("log in") && error.kind != ErrorKind::Unavailable;
            let topic = if is_of_token { "token" } else { "URL and TLS" };
            return report.fail(topic, &error);
        }
    };
    let trust = match (&settings.ca_file, settings.insecure_skip_tls_verify, settings.url.starts_with("https")) {
        (_, _, false) => "without TLS".into(),
        (_, true, _) => "TLS without verification of certificates".into(),
        (Some(ca), ..) => format!("TLS, trusted: {}, the public CAs and the system's", ca.display()),
        (None, ..) => "TLS, trusted: the public CAs and the system's".to_owned(),
    };
    report.ok("URL and TLS", &format!("{} answers, API version {}, {trust}", settings.url, login.api_version));
    token(report, config, &login);
    match login.user.is_empty() {
        true => report.ok("org", &format!("{:?}", settings.org)),
        false => {
            report.ok("org", &format!("{:?}, as user {:?} ({})", settings.org, login.user, login.roles.join(", ")))
        }
    }
    let wanted = wanted(runner, config);
    // Keys that are not set, or wrong already, are not checked.
    let given = |name: &str| !name.is_empty();
    let vdc = if given(&settings.vdc) { check_vdc(report, &inspector, config, wanted) } else { None };
    if given(&settings.network) {
        check_network(report, &inspector, config, vdc.as_ref(), wanted);
    }
    let has_template = given(&settings.catalog) && given(&settings.template);
    let disk_mb = if has_template { check_template(report, &inspector, config, runner) } else { None };
    if given(&settings.storage_profile) {
        check_storage(report, &inspector, config, vdc.as_ref(), disk_mb, wanted);
    }
    if let Some(vdc) = &vdc {
        for (name, sizing, topic) in
            [(&settings.sizing_policy, true, "sizing policy"), (&settings.placement_policy, false, "placement policy")]
        {
            let Some(name) = name else { continue };
            match inspector.policy(vdc, name, sizing) {
                Ok(no_suspend) => {
                    report.ok(topic, &format!("{name:?}"));
                    not_suspended(report, config, no_suspend);
                }
                Err(error) => report.fail(topic, &error),
            }
        }
    }
    check_rights(report, &inspector, &login);
    check_lease(report, &inspector, &login, config);
    inspector.close();
}

/// The facts about the token that the login has shown.
fn token(report: &mut Report, config: &Config, login: &Login) {
    let place = match &config.vcd.token {
        Token::Text(_) => String::new(),
        Token::File(path) => format!(" in {}", path.display()),
    };
    // The remaining life, shortly after the login.
    let life = login.life.map(|life| Duration::from_secs(life.as_secs().div_ceil(60) * 60));
    let life = life.map_or("for an unknown time".into(), short);
    let kind = match (login.token, &login.unsaved) {
        (_, Some(error)) => return report.fail("token", error),
        (TokenKind::Lasting, _) => "a user's API token: it does not expire, but can be revoked",
        (TokenKind::Replaced, _) => {
            "a service account's token: VCD replaces it at each login, and the next one is in the file"
        }
    };
    report.ok("token", &format!("accepted{place}; a session lasts {life} and is renewed; {kind}"));
    if login.token == TokenKind::Replaced && config.seed_is_token {
        report.say(Verdict::Warn, "credentials", SEED_CHANGES, "set credentials_seed in plugin_config");
    }
}

fn check_vdc(report: &mut Report, inspector: &Inspector, config: &Config, wanted: Wanted) -> Option<Href> {
    let vdc = match inspector.vdc() {
        Ok(vdc) => vdc,
        Err(error) => {
            report.unknown("VDC", &error, &config.vcd.vdc, || inspector.names(Kind::Vdc, None));
            return None;
        }
    };
    let (limit, used) = vdc.memory_mb;
    let quota = vdc.vm_quota.map_or("no VM quota".into(), |quota| format!("{quota} VMs allowed"));
    let memory = limit.map_or("no memory limit".into(), |limit| format!("{} of memory", size(limit)));
    report.ok(
        "VDC",
        &format!("{:?}: {} VMs, {quota}; {} of memory in use, {memory}", config.vcd.vdc, vdc.vms, size(used)),
    );
    if let Some(quota) = vdc.vm_quota
        && quota.saturating_sub(vdc.vms) < wanted.all()
    {
        let text = format!("room for {} more VMs, but GitLab Runner may want {wanted}", quota.saturating_sub(vdc.vms));
        report.say(Verdict::Warn, "quota", &text, "ask for a larger VM quota, remove VMs, or lower max_instances");
    }
    let each = u64::from(config.vcd.memory_mb);
    if let Some(limit) = limit
        && each > 0
        && limit.saturating_sub(used) / each < wanted.runner
    {
        let fit = limit.saturating_sub(used) / each;
        let text = format!("memory for {fit} more VMs of {}, but GitLab Runner may want {}", size(each), wanted.runner);
        report.say(Verdict::Warn, "quota", &text, "ask for more memory, lower memory_mb, or lower max_instances");
    }
    Some(vdc.href)
}

fn check_network(report: &mut Report, inspector: &Inspector, config: &Config, vdc: Option<&Href>, wanted: Wanted) {
    let network = match inspector.network(vdc) {
        Ok(network) => network,
        Err(error) => {
            return report.unknown("network", &error, &config.vcd.network, || inspector.names(Kind::Network, vdc));
        }
    };
    let name = &network.name;
    if config.vcd.ip_mode == IpMode::Dhcp {
        let text = format!("{name:?}, addresses by DHCP: VCD cannot tell how many are free");
        return report.ok("network", &text);
    }
    let Some(used) = network.used else {
        let text =
            format!("{name:?}: {} addresses in its static pool; VCD does not tell how many are free", network.pool);
        match network.pool {
            0 => report.say(Verdict::Fail, "network", &text, "give the network a static IP pool, or use DHCP"),
            pool if pool < wanted.all() => {
                report.say(Verdict::Warn, "network", &text, "enlarge the pool, or lower max_instances")
            }
            _ => report.ok("network", &text),
        }
        return;
    };
    let free = network.pool.saturating_sub(used);
    let text = format!("{name:?}: {free} of {} addresses of its static pool are free", network.pool);
    match free {
        0 => report.say(Verdict::Fail, "network", &text, "enlarge the static IP pool, or remove VMs"),
        free if free < wanted.all() => {
            let text = format!("{text}, but GitLab Runner may want {wanted}");
            report.say(Verdict::Warn, "network", &text, "enlarge the static IP pool, or lower max_instances");
        }
        _ => report.ok("network", &text),
    }
}

/// The text about a template's disks, and their size in MB in a VM, if known.
fn disks(disks: &[DiskFacts], wish: u64) -> (String, Option<u64>) {
    let grown = |boot: &DiskFacts| match wish {
        0 => size(boot.mb),
        wish => format!("{}, which becomes {}", size(boot.mb), size(wish)),
    };
    let at = |disk: &DiskFacts| format!("{}:{}", disk.place.0, disk.place.1);
    let (boot, others) = match disks {
        [] => return ("with a disk that VCD does not show".into(), Some(wish).filter(|mb| *mb > 0)),
        [boot, others @ ..] => (boot, others),
    };
    let total = if wish > 0 { wish } else { boot.mb } + others.iter().map(|disk| disk.mb).sum::<u64>();
    if others.is_empty() {
        return (format!("a disk of {}", grown(boot)), Some(total));
    }
    let others: Vec<String> = others.iter().map(|disk| format!("{} of {}", at(disk), size(disk.mb))).collect();
    let text = format!(
        "{} disks by controller and unit: the boot disk {} of {}; {}",
        disks.len(),
        at(boot),
        grown(boot),
        others.join(", ")
    );
    (text, Some(total))
}

/// The size of a VM's disks, if known.
fn check_template(report: &mut Report, inspector: &Inspector, config: &Config, runner: &Runner) -> Option<u64> {
    let template = match inspector.template() {
        Ok(template) => template,
        Err(error) => {
            let (topic, kind, name) = match error.what.contains("catalog") {
                true => ("catalog", Kind::Catalog, &config.vcd.catalog),
                false => ("template", Kind::Template, &config.vcd.template),
            };
            report.unknown(topic, &error, name, || inspector.names(kind, None));
            return None;
        }
    };
    report.ok("catalog", &format!("{:?}", template.catalog));
    let wish = u64::from(config.vcd.disk_gb) * 1024;
    let (text, disk_mb) = disks(&template.disks, wish);
    report.ok("template", &format!("{:?}: one VM, {}, {text}", template.name, template.guest_os));
    if template.disks.is_empty() && wish > 0 {
        let text = "the plugin sets the disk size when the VM shows its disk: VMs are created in three steps, with one task each";
        report.say(Verdict::Note, "template", text, "");
    }
    let own: Vec<String> = template.networks.iter().map(|name| format!("{name:?}")).collect();
    if !own.is_empty() {
        let text = format!("its adapters are on {}: in VMs the network in plugin_config replaces that", own.join(", "));
        report.say(Verdict::Note, "template", &text, "");
    }
    if template.tools.as_deref().is_some_and(|version| matches!(version, "" | "0")) {
        let text = "VMware Tools are not installed: no address and no guest customization";
        report.say(
            Verdict::Fail,
            "template",
            text,
            "install open-vm-tools (Linux) or VMware Tools, and capture it again",
        );
    }
    if template.tools.is_none() {
        report.say(Verdict::Note, "template", "VCD does not show whether VMware Tools are installed", "");
    }
    if template.customizes == Some(false) {
        let text = "guest customization is disabled in the template; the plugin enables it for each VM";
        report.say(Verdict::Note, "template", text, "");
    }
    if template.nics > 1 {
        let text = format!("has {} NICs: VMs get one, on {:?}", template.nics, config.vcd.network);
        report.say(Verdict::Note, "template", &text, "");
    }
    not_suspended(report, config, template.no_suspend);
    if is_windows(&template.guest_os) && runner.connector.os == "linux" {
        let text = "the guest runs Windows, but connector_config has os = \"linux\"";
        report.say(Verdict::Fail, "template", text, "remove os, or use another template");
    }
    if let Some(warning) = access::warning(&config.access, &template.guest_os) {
        report.say(Verdict::Warn, "credentials", &warning, "");
    }
    disk_mb
}

fn check_storage(
    report: &mut Report,
    inspector: &Inspector,
    config: &Config,
    vdc: Option<&Href>,
    disk_mb: Option<u64>,
    wanted: Wanted,
) {
    let storage = match inspector.storage(vdc) {
        Ok(storage) => storage,
        Err(error) => {
            let names = || inspector.names(Kind::StorageProfile, vdc);
            return report.unknown("storage profile", &error, &config.vcd.storage_profile, names);
        }
    };
    let name = &storage.name;
    let Some(limit) = storage.limit_mb else {
        return report.ok("storage profile", &format!("{name:?}: {} in use, no limit", size(storage.used_mb)));
    };
    let left = limit.saturating_sub(storage.used_mb);
    let text = format!("{name:?}: {} of {} left", size(left), size(limit));
    match disk_mb {
        // A VM's swap file takes its memory's size too.
        Some(disk) if left / (disk + u64::from(config.vcd.memory_mb)).max(1) < wanted.all() => {
            let fit = left / (disk + u64::from(config.vcd.memory_mb)).max(1);
            let text = format!("{text}: enough for {fit} VMs, but GitLab Runner may want {wanted}");
            let verdict = if fit == 0 { Verdict::Fail } else { Verdict::Warn };
            report.say(verdict, "storage profile", &text, "ask for more storage, or lower max_instances");
        }
        _ => report.ok("storage profile", &text),
    }
}

fn check_rights(report: &mut Report, inspector: &Inspector, login: &Login) {
    let Some(rights) = inspector.rights(login) else {
        let text = "the user may not read its own rights: --create shows whether they are enough";
        return report.say(Verdict::Note, "rights", text, "");
    };
    let has = |name: &str| rights.iter().any(|right| right == name);
    let missing: Vec<&str> = NEEDED_RIGHTS.into_iter().filter(|name| !has(name)).collect();
    match missing.is_empty() {
        true => report.ok("rights", "the rights to create, change, power and delete vApps are there"),
        false => {
            let text = format!("missing: {}", missing.join(", "));
            report.say(
                Verdict::Fail,
                "rights",
                &text,
                "ask for more rights for the user's role; docs/guide.md#1-in-vcd lists all",
            );
        }
    }
    if !has(FORCE_RIGHT) {
        let text = format!("{FORCE_RIGHT:?} is missing: if VCD rejects a forced delete, a delete takes two tasks");
        report.say(Verdict::Note, "rights", &text, "");
    }
}

fn check_lease(report: &mut Report, inspector: &Inspector, login: &Login, config: &Config) {
    let age = config.policy.max_instance_age;
    let Some(rules) = inspector.lease_rules(login) else {
        let text = "the user may not read the org's lease settings: `list` shows each VM's own lease";
        return report.say(Verdict::Note, "lease", text, "");
    };
    match rules.runtime {
        Duration::ZERO => report.ok("lease", "the org sets no limit for the runtime of vApps"),
        runtime if !age.is_zero() && runtime > age => {
            let text = format!("the org lets vApps run for {}, longer than max_instance_age", short(runtime));
            report.ok("lease", &text);
        }
        runtime => {
            let text = format!("the org suspends vApps after {}: it may be in the middle of a job", short(runtime));
            let advice =
                format!("set max_instance_age below {}, or ask for a longer runtime lease of the org", short(runtime));
            report.say(Verdict::Warn, "lease", &text, &advice);
        }
    }
}

/// Creates a VM as GitLab Runner would, logs in, deletes it.
fn create(report: &mut Report, runner: &Runner, config: &Config) {
    let began = Instant::now();
    let suffixed = |text: &str| Value::from(format!("{text}{SUFFIX}"));
    // With its own owner: neither the serving plugin nor the Go plugin may adopt it.
    let changes = [
        ("name", suffixed(&config.policy.manager)),
        ("instance_group_name", suffixed(&config.policy.group)),
        ("vapp_name_prefix", checked_prefix(config).into()),
        ("max_size", 1.into()),
    ];
    let limit = config.policy.create_timeout + config.policy.startup_cleanup_timeout;
    let executor = Rc::new(LocalExecutor::new());
    life::run(&executor.clone(), async {
        let mut life = match Life::begin(&executor, runner, &changes).await {
            Ok(life) => life,
            Err(error) => {
                report.say(Verdict::Fail, "create", &error, "");
                return ExitCode::FAILURE;
            }
        };
        let ended = life::interruptible(try_one(report, &mut life, began, limit)).await;
        if ended.is_none() {
            report.say(Verdict::Fail, "create", &format!("interrupted{}", life.waits()), "");
        }
        let deleting = Instant::now();
        match life::interruptible(life.end(DELETE_TIMEOUT)).await {
            None => {
                let text = "interrupted again: VCD continues what it has started";
                report.say(
                    Verdict::Fail,
                    "delete",
                    text,
                    "the next check --create deletes the rest; otherwise its lease ends",
                );
            }
            Some(true) => report.ok("delete", &format!("deleted in VCD after {} s", tenths(deleting.elapsed()))),
            Some(false) => {
                let text = format!("the VM still exists after {} min", DELETE_TIMEOUT.as_secs() / 60);
                report.say(
                    Verdict::Fail,
                    "delete",
                    &text,
                    "the next check --create deletes it; otherwise its lease ends",
                );
            }
        }
        ExitCode::SUCCESS
    });
}

async fn try_one(report: &mut Report, life: &mut Life, began: Instant, limit: Duration) {
    // The leftovers of an earlier check.
    let names = |plugin: &Plugin| plugin.update().unwrap_or_default();
    let old: Vec<String> = names(&life.plugin).into_iter().map(|(name, _)| name.to_string()).collect();
    if !old.is_empty() {
        let _ = life.plugin.decrease(old);
        life.watch(limit, |plugin| names(plugin).iter().all(|(_, state)| *state == State::Deleted)).await;
    }
    if life.plugin.increase(1).unwrap_or(0) != 1 {
        return report.say(Verdict::Fail, "create", "the plugin did not accept the request", "");
    }
    let live = |plugin: &Plugin| names(plugin).into_iter().find(|(_, state)| *state != State::Deleted);
    // An error that a person has to fix is not retried.
    let refused = |plugin: &Plugin| {
        plugin.views().iter().any(|view| view.refused.is_some() || view.error.as_deref().is_some_and(is_of_scripts))
    };
    let settled = |plugin: &Plugin| live(plugin).is_none_or(|(_, s)| matches!(s, State::Running | State::Timeout));
    life.watch(limit, |plugin| settled(plugin) || refused(plugin)).await;
    let Some((name, State::Running)) = live(&life.plugin) else {
        let (why, kind) = life.plugin.views().into_iter().find_map(|view| Some((view.error?, view.refused))).unzip();
        let Some(why) = why else {
            let text = format!("no VM became running{}", life.waits());
            return report.say(Verdict::Fail, "create", &text, advice::of_create("", None));
        };
        let advice = if is_of_scripts(&why) { scripts() } else { advice::of_create(&why, kind.flatten()).to_owned() };
        return report.say(Verdict::Fail, "create", &format!("no VM became running: {why}"), &advice);
    };
    report.ok("create", &format!("{name} runs {} s after its request", tenths(began.elapsed())));
    match life.plugin.connect_info(&name) {
        Ok(info) if info.login.protocol == Protocol::Ssh => {
            let trying = Instant::now();
            let shown = format!("{}@{}:{}", info.login.username, info.internal, info.login.port);
            let host = info.internal.to_string();
            let pool = Pool::default();
            let log_in = || {
                let (login, host) = (info.login.clone(), host.clone());
                pool.run(move || log_in(&login, &host))
            };
            let word = |why: &str| {
                say(&format!(
                    "  {:>6} s  no login as {shown} yet: {why}; retrying for at most {} s\n",
                    tenths(trying.elapsed()),
                    LOGIN_TIMEOUT.as_secs()
                ));
            };
            match until_let_in(LOGIN_TIMEOUT, LOGIN_PAUSE, log_in, word).await {
                Some(Ok(())) => {
                    let took = tenths(trying.elapsed());
                    report.ok("SSH", &format!("logged in as {shown} in {took} s"));
                }
                Some(Err(NoLogin::Refused(why))) => {
                    let text = format!("no login as {shown}: {why}");
                    report.say(Verdict::Fail, "SSH", &text, &scripts());
                }
                Some(Err(NoLogin::NotTried(why))) => {
                    report.say(Verdict::Note, "SSH", &format!("{shown} shows its banner; {why}"), "");
                }
                None => report.say(Verdict::Note, "SSH", &format!("{shown} shows its banner"), ""),
            }
        }
        Ok(info) => report.ok("WinRM", &format!("{} answers on port {}", info.internal, info.login.port)),
        Err(error) => report.say(Verdict::Fail, "SSH", &life::text(error), ""),
    }
}

/// True for the error of a guest that did not run the plugin's script.
fn is_of_scripts(error: &str) -> bool {
    error.contains("GC_FAILED")
}

/// The usual fix for a guest that got no key.
fn scripts() -> String {
    format!("in a Linux template: {ALLOW_SCRIPTS} (see docs/guide.md#2-the-template)")
}

/// Why there was no login.
enum NoLogin {
    /// The guest rejected the login, or ssh failed: the last line of its output.
    Refused(String),
    /// This machine cannot try a login.
    NotTried(&'static str),
}

/// Retries after each `pause` while the guest rejects the login, for at most `limit`. Returns the last result. `word` gets the reason
/// when it is new, and each [`LOGIN_WORD`].
async fn until_let_in<F>(
    limit: Duration,
    pause: Duration,
    mut log_in: impl FnMut() -> F,
    word: impl Fn(&str),
) -> Option<Result<(), NoLogin>>
where
    F: Future<Output = Option<Result<(), NoLogin>>>,
{
    let began = Instant::now();
    let mut heard: Option<(String, Instant)> = None;
    loop {
        let result = log_in().await;
        let Some(Err(NoLogin::Refused(why))) = &result else { return result };
        if heard.as_ref().is_none_or(|(last, at)| last != why || at.elapsed() >= LOGIN_WORD) {
            word(why);
            heard = Some((why.clone(), Instant::now()));
        }
        if began.elapsed() + pause >= limit {
            return result;
        }
        Timer::after(pause).await;
    }
}

/// The end of a file with ssh's output; empty if it cannot be read.
fn last_words(path: &Path) -> String {
    let mut said = Vec::new();
    let read = fs::File::open(path).and_then(|mut file| {
        file.seek(SeekFrom::Start(file.metadata()?.len().saturating_sub(MAX_SSH_ERRORS)))?;
        file.take(MAX_SSH_ERRORS).read_to_end(&mut said)
    });
    read.map_or_else(|_| String::new(), |_| String::from_utf8_lossy(&said).into_owned())
}

/// One login with the system's ssh.
fn log_in(login: &GuestLogin, host: &str) -> Result<(), NoLogin> {
    let absent = NoLogin::NotTried("there is no ssh client on this machine to try a login");
    let folder = Private::new().map_err(|error| NoLogin::Refused(format!("a private folder for the key: {error}")))?;
    let prepare = |error: std::io::Error| NoLogin::Refused(format!("write into {}: {error}", folder.0.display()));
    // With `env`, which sets ssh's environment.
    let mut ssh = Command::new("env");
    let mut words: Vec<String> = Vec::new();
    if let Some(password) = &login.password {
        // ssh runs a program to get the password.
        folder.write("password", password.reveal(), 0o600).map_err(prepare)?;
        let program =
            folder.write("password-program", "#!/bin/sh\ncat \"${0%/*}/password\"\n", 0o700).map_err(prepare)?;
        words.extend([
            format!("SSH_ASKPASS={}", program.display()),
            "SSH_ASKPASS_REQUIRE=force".into(),
            "DISPLAY=:0".into(),
        ]);
    }
    words.push("ssh".into());
    if login.password.is_none() {
        words.push("-oBatchMode=yes".into());
    }
    if let Some(key) = &login.key {
        let path = folder.write("key", key.reveal(), 0o600).map_err(prepare)?;
        words.extend(["-oIdentitiesOnly=yes".into(), format!("-i{}", path.display())]);
    }
    words.extend(SSH_OPTIONS.map(str::to_owned));
    words.extend([format!("-p{}", login.port), format!("-l{}", login.username), host.to_owned(), "exit 0".into()]);
    ssh.args(words);
    let errors = folder.file("errors", 0o600).map_err(prepare)?;
    let end = ssh.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors).status();
    match end {
        Ok(status) if status.success() => Ok(()),
        Ok(status) if status.code() == Some(NO_SUCH_PROGRAM) => Err(absent),
        Ok(_) => {
            let text = last_words(&folder.0.join("errors"));
            let said = |line: &&str| !line.trim().is_empty() && !line.starts_with("Warning: Permanently added");
            let line = text.lines().rev().find(said).unwrap_or("ssh printed nothing");
            if text.lines().any(|line| line.starts_with("Load key ")) {
                return Err(NoLogin::NotTried(
                    "the ssh client here cannot read the key's format, but GitLab Runner can",
                ));
            }
            Err(NoLogin::Refused(line.trim().escape_debug().to_string()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(absent),
        Err(error) => Err(NoLogin::Refused(format!("run ssh: {error}"))),
    }
}

/// A folder for this user only. It is deleted on drop.
struct Private(PathBuf);

impl Private {
    fn new() -> std::io::Result<Private> {
        let random = getrandom::u64().map_err(std::io::Error::other)?;
        let folder = std::env::temp_dir().join(format!("vcd-check-{random:016x}"));
        #[cfg_attr(windows, allow(unused_mut))]
        let mut builder = fs::DirBuilder::new();
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(&folder)?;
        Ok(Private(folder))
    }

    fn file(&self, name: &str, mode: u32) -> std::io::Result<fs::File> {
        let mut options = fs::OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
        #[cfg(not(unix))]
        let _ = mode;
        options.open(self.0.join(name))
    }

    fn write(&self, name: &str, text: &str, mode: u32) -> std::io::Result<PathBuf> {
        self.file(name, mode)?.write_all(text.as_bytes())?;
        Ok(self.0.join(name))
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn a_login_that_a_guest_rejects_is_retried_for_a_while() {
        let (limit, pause) = (Duration::from_secs(1), Duration::from_millis(1));
        let (tries, words) = (Cell::new(0), Cell::new(0));
        let outcome = |refusals: u32, after: fn() -> Option<Result<(), NoLogin>>| {
            tries.set(0);
            words.set(0);
            let log_in = || {
                tries.set(tries.get() + 1);
                let refused = tries.get() <= refusals;
                async move { if refused { Some(Err(NoLogin::Refused("no".into()))) } else { after() } }
            };
            smol::block_on(until_let_in(limit, pause, log_in, |_| words.set(words.get() + 1)))
        };
        assert!(matches!(outcome(u32::MAX, || None), Some(Err(NoLogin::Refused(_)))));
        assert!(tries.get() > 1 && words.get() == 1, "{} tries, said {} times", tries.get(), words.get());
        assert!(matches!(outcome(1, || Some(Ok(()))), Some(Ok(()))));
        assert!(matches!(outcome(0, || Some(Err(NoLogin::NotTried("no ssh")))), Some(Err(NoLogin::NotTried(_)))));
        assert_eq!(tries.get(), 1, "what cannot be tried is not tried again");
    }

    #[test]
    fn of_many_names_the_first_are_shown() {
        let names = |count: usize| (0..count).map(|n| format!("name-{n}")).collect::<Vec<_>>();
        let told = "the user can see \"name-0\", \"name-1\", \"name-2\", \"name-3\", \"name-4\"";
        assert_eq!(meant("far off", &names(MAX_NAMES_TOLD)).as_deref(), Some(told));
        assert_eq!(meant("far off", &names(MAX_NAMES_TOLD + 1)), Some(format!("{told}, and more")));
        assert_eq!(meant("NAME-4", &names(9)).as_deref(), Some("did you mean \"name-4\"?"));
        assert_eq!(meant("far off", &[]), None);
    }

    #[test]
    fn of_what_ssh_says_the_end_is_read() {
        let folder = Private::new().unwrap();
        let all = format!("{}the last line\n", "noise\n".repeat(MAX_SSH_ERRORS as usize));
        let path = folder.write("errors", &all, 0o600).unwrap();
        let said = last_words(&path);
        assert_eq!((said.len() as u64, said.lines().last()), (MAX_SSH_ERRORS, Some("the last line")));
        assert_eq!(last_words(&folder.0.join("none")), "");
    }
}
