//! The VCD client. It is blocking: each calling thread sends one HTTP request after another. It knows VCD's REST API,
//! but not groups: the caller decides which requests to send, when, and what to do about errors.

mod change;
mod create;
mod errors;
mod hardware;
mod http;
pub mod inspect;
mod names;
mod properties;
mod query;
pub mod record;
mod session;
mod tasks;
mod tls;
mod token;
mod watch;
#[cfg(fuzzing)]
pub mod wire;
mod xml;

pub use change::LABEL_KEY;
pub use create::MAX_SCRIPT;
pub use http::{
    CHANGE_TIMEOUT, CONNECT_TIMEOUT, Count, FIRST_TIMEOUT, LOGOUT_TIMEOUT, MAX_BODY, READ_TIMEOUT, TOOK_BOUNDS,
};
pub use names::{Kind, check_name};
pub use properties::USER_DATA;
pub use query::{MAX_PAGES, PAGE_SIZE};
pub use session::{SessionState, SessionView, TokenKind};
#[cfg(fuzzing)]
pub use tls::read_certificates;
pub use token::Token;
pub use watch::MAX_FOUND;

use crate::cloud::{Answer, ErrorKind, Guest, Reply, Request, Secret, Source, TaskState, VcdError};
use errors::Stage;
use http::{Ask, Digest, Http, Received, Site};
use names::Names;
use session::{Pass, Session};
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use ureq::http::Method;

/// Maximum duration of [`Client::open`], whether it succeeds or fails.
pub const OPEN_TIMEOUT: Duration = Duration::from_secs(25);
/// A call with several requests starts none of them after this time.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(120);
/// A create looks up a template with a pattern again if the last lookup is older than this.
pub const PATTERN_LIFE: Duration = Duration::from_secs(5 * 60);
/// The same for a template with a full name: its name may belong to another template by now.
pub const TEMPLATE_LIFE: Duration = Duration::from_secs(60 * 60);
/// A query that VCD rejects is sent again after this time, unless VCD does not know it.
pub const QUERY_AGAIN: Duration = Duration::from_secs(60 * 60);
/// Shorter lines of a script are not secret: `exit 0`.
const MIN_SECRET_LINE: usize = 8;
/// The XML namespaces of VCD's documents, of OVF in them, and of `nil` and `type`.
const NAMESPACE: &str = "http://www.vmware.com/vcloud/v1.5";
const OVF: &str = "http://schemas.dmtf.org/ovf/envelope/1";
const XSI: &str = "http://www.w3.org/2001/XMLSchema-instance";

/// How a NIC gets its IP address (`IpAddressAllocationMode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpMode {
    /// From the network's static pool, by VCD.
    Pool,
    /// From a DHCP server. VMware Tools reports it.
    Dhcp,
}

/// The lease of a vApp that nobody deletes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// While it runs (`DeploymentLeaseInSeconds`).
    pub runtime: Duration,
    /// While it is suspended or off (`StorageLeaseInSeconds`); `None`: the org's default.
    pub storage: Option<Duration>,
}

/// Where VCD is, the login, and the properties of new VMs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `https://HOST/api`; `http://` works too.
    pub url: String,
    /// The org's name.
    pub org: String,
    /// The API token.
    pub token: Token,
    /// PEM certificates to trust in addition to the public ones and the system's.
    pub ca_file: Option<PathBuf>,
    /// Do not verify certificates.
    pub insecure_skip_tls_verify: bool,
    /// The VDC's name. Here, and in `network`, `catalog`, `template` and `storage_profile`, an id (`urn:vcloud:…`) or a
    /// link can replace a name.
    pub vdc: String,
    /// The org VDC network's name.
    pub network: String,
    /// How the NIC gets its address.
    pub ip_mode: IpMode,
    /// The catalog's name, or a pattern with `*`; `ORG/NAME` for that of another org.
    pub catalog: String,
    /// The vApp template's name. The template must have one VM. With `*` here or in `catalog` the newest match is used.
    pub template: String,
    /// A create looks up the template again if the last lookup is older than this ([`template_life`]).
    pub template_life: Duration,
    /// The storage profile's name.
    pub storage_profile: String,
    /// The VM sizing policy's name, if there is one.
    pub sizing_policy: Option<String>,
    /// The VM placement policy's name, if there is one.
    pub placement_policy: Option<String>,
    /// Number of virtual CPUs. 0: as in the policies and the template.
    pub cpus: u32,
    /// Cores per socket; divides `cpus`. 0 as above.
    pub cores_per_socket: u32,
    /// Memory in MB; 0 as above.
    pub memory_mb: u32,
    /// Size of the boot disk in GB; 0 keeps the template's.
    pub disk_gb: u32,
    /// The client finds vApps with the name `<vapp_prefix>-…`.
    pub vapp_prefix: String,
    /// Value of the metadata entry `vcd-instance-group`.
    pub label: String,
    /// Metadata entries to write in addition to that one.
    pub metadata: Vec<(String, String)>,
    /// OVF properties for the guest's OVF environment.
    pub guest_properties: Vec<(String, Secret)>,
    /// User data for cloud-init: the OVF property `user-data`.
    pub user_data: Option<Secret>,
    /// The leases of a new vApp; `None`: the org's defaults.
    pub lease: Option<Lease>,
    /// Age at which the bearer token is renewed, even if VCD lets it live longer.
    pub session_refresh: Duration,
    /// Interval between two polls when no change is expected: a connection is idle for this time.
    pub poll_interval: Duration,
    /// VMs are kept in standby: the template is looked up again even without a create.
    pub standby: bool,
    /// A hash that differs for guests with other credentials or scripts.
    pub guest_source: String,
}

impl Settings {
    /// The System org has other login endpoints.
    fn is_provider(&self) -> bool {
        self.org.eq_ignore_ascii_case("System")
    }
}

/// The time after which a template with such a name is looked up again.
pub fn template_life(catalog: &str, template: &str) -> Duration {
    if query::is_pattern(catalog) || query::is_pattern(template) { PATTERN_LIFE } else { TEMPLATE_LIFE }
}

/// What the client learned at [`Client::open`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    /// The API version in use, such as "38.1".
    pub api_version: String,
    /// The template's guest OS as VCD shows it.
    pub guest_os: String,
    /// Why VMs of this template cannot be suspended, if VCD says so in advance.
    pub no_suspend: Option<&'static str>,
    /// The kind of the token.
    pub token: TokenKind,
}

/// A session with VCD. Shared by the pool's threads.
pub struct Client {
    settings: Settings,
    site: Site,
    http: Http,
    session: Session,
    names: Mutex<Known>,
    /// Locked while names are looked up again, so that one thread does it for all.
    resolving: Mutex<()>,
    last_pages: Mutex<Vec<watch::Page>>,
    began: Instant,
    /// VCD rejects the query for tasks until this second after `began`.
    no_task_query: AtomicU64,
    /// The same for the query for the VMs with several names.
    no_names_filter: AtomicU64,
    /// The same for metadata fields in vApp records.
    no_metadata_field: AtomicU64,
    /// VCD rejects a create with guest properties.
    no_properties_in_create: AtomicBool,
    /// The log line about links of VCD to another address was written.
    told_alias: AtomicBool,
}

/// The result of the last lookup of names.
struct Known {
    names: Arc<Names>,
    /// When the template was looked up last.
    at: Instant,
    /// VCD did not find one of the objects: look them up before the next create.
    stale: bool,
    /// The source of VMs that are created from them.
    source: Source,
}

impl Known {
    /// The result of a lookup now.
    fn new(names: Arc<Names>, settings: &Settings) -> Known {
        Known { source: create::source(settings, &names), names, at: Instant::now(), stale: false }
    }
}

/// One call of the caller. It may take several HTTP requests.
struct Call {
    operation: &'static str,
    /// The action and its object: the beginning of every error.
    what: String,
    changes: bool,
    deadline: Instant,
}

impl Call {
    /// A call of [`Client::call`] that begins `now`, with the description `what`.
    fn of(request: &Request, what: String, now: Instant) -> Call {
        Call { operation: request.operation(), what, changes: request.changes(), deadline: now + CALL_TIMEOUT }
    }

    /// A lookup of names that begins `now`.
    fn lookup(what: String, now: Instant) -> Call {
        Call { operation: "resolve", what, changes: false, deadline: now + OPEN_TIMEOUT }
    }

    /// The timeout of its next request. After its deadline there is none.
    fn timeout(&self) -> Result<Duration, http::Lost> {
        session::time_left(self.deadline, if self.changes { CHANGE_TIMEOUT } else { READ_TIMEOUT })
    }

    fn stage(&self) -> Stage {
        if self.changes { Stage::Change } else { Stage::Read }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({})", self.site.root)
    }
}

impl Client {
    /// A client that has sent no request yet.
    fn new(settings: Settings) -> Result<Client, VcdError> {
        let site = Site::new(&settings.url)
            .map_err(|why| VcdError::own(ErrorKind::Invalid, format!("open VCD for org {:?}", settings.org), why))?;
        let wrong = |why| VcdError::own(ErrorKind::Invalid, format!("open VCD at {}", site.root), why);
        let tls = tls::config(settings.ca_file.as_deref(), settings.insecure_skip_tls_verify).map_err(wrong)?;
        let proxy = http::proxy(&site, |name| std::env::var(name).ok()).map_err(wrong)?;
        if let Some(proxy) = &proxy {
            log::info!("requests to VCD go through the proxy {}:{} from the environment", proxy.host(), proxy.port());
        }
        let http = Http::new(tls, proxy, settings.poll_interval);
        if let Token::Text(token) = &settings.token {
            http.shown().token = Some(token.clone());
        }
        Ok(Client {
            names: Mutex::new(Known {
                names: Arc::new(Names::default()),
                at: Instant::now(),
                stale: true,
                source: Source::default(),
            }),
            http,
            session: Session::new(),
            resolving: Mutex::new(()),
            last_pages: Mutex::default(),
            began: Instant::now(),
            no_task_query: AtomicU64::new(0),
            no_names_filter: AtomicU64::new(0),
            no_metadata_field: AtomicU64::new(0),
            no_properties_in_create: AtomicBool::new(false),
            told_alias: AtomicBool::new(false),
            settings,
            site,
        })
    }

    /// For `fuzz/`: a client with the names of this one that has sent no request yet.
    #[cfg(fuzzing)]
    pub fn anew(&self) -> Result<Client, VcdError> {
        let client = Client::new(self.settings.clone())?;
        *client.known() = Known::new(self.names(), &client.settings);
        Ok(client)
    }

    /// Chooses the API version, logs in and resolves all names, within [`OPEN_TIMEOUT`] in all. Every unknown name is
    /// an error of its own, and all are returned together. The session then ends, which may take [`LOGOUT_TIMEOUT`]
    /// more.
    pub fn open(settings: Settings) -> Result<(Client, Environment), Vec<VcdError>> {
        let client = Client::new(settings).map_err(|e| vec![e])?;
        let call = Call::lookup(format!("look up names in org {:?}", client.settings.org), Instant::now());
        let opened =
            client.pass(None, call.deadline).map_err(|e| vec![e]).and_then(|pass| Ok((pass, client.resolve(&call)?)));
        match opened {
            Ok((pass, names)) => {
                let environment = Environment {
                    api_version: pass.version.to_string(),
                    guest_os: names.template.guest_os.clone(),
                    no_suspend: names.no_suspend(),
                    token: client.session.token().0,
                };
                let known = Known::new(Arc::new(names), &client.settings);
                *client.known() = known;
                Ok((client, environment))
            }
            Err(all) => {
                let told = all.into_iter().map(|e| client.finish(e, None)).collect();
                client.close();
                Err(told)
            }
        }
    }

    /// Sends a request to VCD and waits for the answer. `guest` is needed for [`Request::Create`] only. A read may be
    /// sent a second time after the session was renewed. A change is sent at most once.
    pub fn call(&self, request: &Request, guest: Option<&Guest>) -> Answer {
        let call = Call::of(request, self.what(request), Instant::now());
        let answer = match request {
            Request::Poll { vapps } => self.poll(&call, *vapps).map(Reply::Poll),
            Request::PollSome { names } => self.poll_some(&call, names).map(Reply::Poll),
            Request::Find { name } => self.find(&call, name).map(Reply::Vapps),
            Request::Look { vapp, guest } => {
                self.look(&call, vapp, *guest).map(|found| Reply::Vapps(found.into_iter().collect()))
            }
            Request::Create { name, description, whole } => self.create(&call, name, description, *whole, guest),
            Request::Configure { vm } => self.configure(&call, vm),
            Request::AddTpm { vm } => self.add_tpm(&call, vm),
            Request::PowerOn { vapp } => self.power(&call, vapp, "powerOn"),
            Request::Suspend { vapp } => self.power(&call, vapp, "suspend"),
            Request::Mark { vapp, mark } => self.mark(&call, vapp, mark),
            Request::Delete { vapp } => self.delete(&call, vapp, true),
            Request::Undeploy { vapp } => self.undeploy(&call, vapp),
            Request::DeleteStopped { vapp } => self.delete(&call, vapp, false),
            Request::Tasks { tasks } => self.tasks(&call, tasks).map(Reply::Tasks),
            Request::Cancel { task } => self.cancel(&call, task),
            Request::Label { vapp } => self.label(&call, vapp),
        };
        match answer {
            Ok(Reply::Tasks(mut tasks)) => {
                for task in &mut tasks {
                    if let TaskState::Failed(e) = &mut task.state {
                        *e = self.finish(e.clone(), guest);
                    }
                }
                Ok(Reply::Tasks(tasks))
            }
            Ok(reply) => Ok(reply),
            Err(e) => Err(self.finish(e, guest)),
        }
    }

    /// Ends the session with VCD, if there is one, within [`LOGOUT_TIMEOUT`]. For the end of the process: a later call
    /// would log in again.
    pub fn close(&self) {
        let Some(pass) = self.session.end() else { return };
        let ask = Ask {
            operation: "logout",
            method: Method::DELETE,
            url: &format!("{}/cloudapi/1.0.0/sessions/current", self.site.root),
            accept: &format!("application/json;version={}", pass.version),
            bearer: Some(&pass.bearer),
            content: None,
            timeout: Some(LOGOUT_TIMEOUT),
            known: None,
        };
        match self.http.exchange(&ask) {
            Ok(got) if got.status < 400 => {}
            Ok(got) => log::debug!("log out: VCD answered {}; the session ends by itself", got.status),
            Err(lost) => log::debug!("log out: {}; the session ends by itself", lost.text),
        }
    }

    /// Waits until a current login ends. If the process ended in between, the next token could be lost.
    pub fn settle(&self) {
        self.session.settle();
    }

    /// `error` without the secrets of `guest`: VCD may echo them long after the request that contained them.
    pub fn redact(&self, error: VcdError, guest: &Guest) -> VcdError {
        self.finish(error, Some(guest))
    }

    /// The state of the session. Never waits.
    pub fn session(&self) -> SessionView {
        self.session.view(&self.http)
    }

    /// HTTP requests sent so far, by operation.
    pub fn counts(&self) -> Vec<Count> {
        self.http.counts()
    }

    fn what(&self, request: &Request) -> String {
        match request {
            Request::Poll { .. } => format!("poll VDC {:?} for {}-*", self.settings.vdc, self.settings.vapp_prefix),
            Request::PollSome { names } => format!("poll VDC {:?} for {} vApps", self.settings.vdc, names.len()),
            Request::Find { name } => format!("find vApp {name}"),
            Request::Look { vapp, .. } => format!("look up vApp {}", last_part(vapp)),
            Request::Create { name, .. } => format!("create vApp {name}"),
            Request::Configure { vm } => format!("configure VM {}", last_part(vm)),
            Request::AddTpm { vm } => format!("add a TPM to VM {}", last_part(vm)),
            Request::PowerOn { vapp } => format!("power on vApp {}", last_part(vapp)),
            Request::Suspend { vapp } => format!("suspend vApp {}", last_part(vapp)),
            Request::Mark { vapp, .. } => format!("write the suspend mark on vApp {}", last_part(vapp)),
            Request::Delete { vapp } => format!("delete vApp {}", last_part(vapp)),
            Request::Undeploy { vapp } => format!("stop vApp {}", last_part(vapp)),
            Request::DeleteStopped { vapp } => format!("delete the stopped vApp {}", last_part(vapp)),
            Request::Tasks { tasks } => match tasks.as_slice() {
                [task] => format!("read task {}", last_part(task)),
                many => format!("read {} tasks", many.len()),
            },
            Request::Cancel { task } => format!("cancel task {}", last_part(task)),
            Request::Label { vapp } => format!("write metadata on vApp {}", last_part(vapp)),
        }
    }

    /// Sends one request of a call in the session. Returns only answers with a good status. After a 401 it renews the
    /// session, and sends a read again, but not a change. If VCD no longer supports the API version, which it checks
    /// first, it sends both again with another version.
    fn send(
        &self,
        call: &Call,
        method: Method,
        url: &str,
        content: Option<(&str, &str)>,
    ) -> Result<Received, VcdError> {
        self.send_for("application/*+xml", call, method, url, content, None)
    }

    /// The same, for an answer of another media type. `known`: see [`Ask::known`].
    fn send_for(
        &self,
        accept: &str,
        call: &Call,
        method: Method,
        url: &str,
        content: Option<(&str, &str)>,
        known: Option<&Digest>,
    ) -> Result<Received, VcdError> {
        if !self.site.holds(url) {
            let why = format!("{url} is not at {}: the plugin does not follow it", self.site.root);
            return Err(VcdError::own(ErrorKind::Protocol, call.what.clone(), why));
        }
        let exchange = |pass: &Pass| {
            let lost = |lost| errors::lost(&call.what, call.stage(), lost);
            let kind = match content {
                Some((kind, _)) if !kind.is_empty() => format!("{kind};version={}", pass.version),
                _ => String::new(),
            };
            let ask = Ask {
                operation: call.operation,
                method: method.clone(),
                url,
                accept: &format!("{accept};version={}", pass.version),
                bearer: Some(&pass.bearer),
                content: content.map(|(_, body)| (kind.as_str(), body)),
                timeout: Some(call.timeout().map_err(lost)?),
                known,
            };
            self.http.exchange(&ask).map_err(lost)
        };
        let pass = self.pass(None, call.deadline)?;
        let got = exchange(&pass)?;
        let got = match got.status {
            401 => {
                let pass = self.pass(Some(pass.generation), call.deadline)?;
                if call.changes {
                    let mut e = errors::refused(&call.what, call.stage(), &got);
                    e.text = format!(
                        "the session had ended and is renewed; VCD rejected this request, and the plugin does not repeat it: {}",
                        e.text
                    );
                    return Err(e);
                }
                let again = exchange(&pass)?;
                if again.status == 401 {
                    let mut e = errors::refused(&call.what, call.stage(), &again);
                    e.text =
                        format!("VCD accepted the token, but rejects the session that it started for it: {}", e.text);
                    return Err(e);
                }
                again
            }
            406 if !call.changes || errors::is_about_version(&got) => {
                match self.session.agree_anew(&self.http, &self.site, &pass)? {
                    Some(pass) => exchange(&pass)?,
                    None => got,
                }
            }
            _ => got,
        };
        match got.status {
            200..=299 => match errors::web_page(&got.body) {
                Some(page) => Err(errors::unusable(&call.what, call.stage(), got.status, page)),
                None => Ok(got),
            },
            _ => Err(errors::refused(&call.what, call.stage(), &got)),
        }
    }

    fn pass(&self, refused: Option<u64>, deadline: Instant) -> Result<Pass, VcdError> {
        self.session.pass(&self.http, &self.site, &self.settings, refused, deadline)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn names(&self) -> Arc<Names> {
        self.known().names.clone()
    }

    /// The names. They are looked up again if VCD did not find one of the objects last time. The template alone is
    /// looked up again if its lookup is old: there may be a newer one.
    fn names_for_create(&self, call: &Call) -> Result<Arc<Names>, VcdError> {
        let current = |known: &Known| !known.stale && known.at.elapsed() < self.settings.template_life;
        if current(&self.known()) {
            return Ok(self.names());
        }
        let _one_at_a_time = self.resolving.lock().unwrap_or_else(PoisonError::into_inner);
        if current(&self.known()) {
            return Ok(self.names());
        }
        let deadline = call.deadline.min(Instant::now() + OPEN_TIMEOUT);
        let reading = Call { operation: "resolve", what: call.what.clone(), changes: false, deadline };
        let stale = self.known().stale;
        let old = self.names();
        let found = if stale { self.resolve(&reading) } else { self.resolve_template(&reading, &old) };
        let names = match found {
            Ok(names) => Arc::new(names),
            Err(all) if stale => {
                let nothing =
                    || VcdError::own(ErrorKind::Unavailable, call.what.clone(), "names could not be looked up");
                return Err(all.into_iter().next().unwrap_or_else(nothing));
            }
            Err(all) => {
                for e in all {
                    log::warn!("{}; the plugin uses the template of the last lookup", self.finish(e, None));
                }
                old.clone()
            }
        };
        let (new, old) = (&names.template, &old.template);
        if new.href != old.href {
            log::info!("new VMs are created from template {:?} in catalog {:?}", new.name, new.catalog);
        }
        let known = Known::new(names.clone(), &self.settings);
        *self.known() = known;
        Ok(names)
    }

    fn has_pattern(&self) -> bool {
        query::is_pattern(&self.settings.template) || query::is_pattern(&self.settings.catalog)
    }

    /// One of these names no longer exists.
    fn distrust(&self, names: &Arc<Names>) {
        let mut known = self.known();
        known.stale |= Arc::ptr_eq(&known.names, names);
    }

    /// VCD rejects this query: others replace it.
    fn is_off(&self, query: &AtomicU64) -> bool {
        self.began.elapsed().as_secs() < query.load(Ordering::Relaxed)
    }

    /// Replaces a query that VCD rejected. Other errors are returned.
    fn turn_off(&self, call: &Call, query: &AtomicU64, e: VcdError) -> Result<(), VcdError> {
        if !watch::is_dispensable(call, &e) {
            return Err(e);
        }
        let again = match e.kind {
            // It may be temporary.
            _ if e.status >= 500 => return Ok(()),
            ErrorKind::Invalid => u64::MAX,
            // A right may be granted.
            _ => self.began.elapsed().as_secs() + QUERY_AGAIN.as_secs(),
        };
        query.store(again, Ordering::Relaxed);
        Ok(())
    }

    /// The last step of every error: it takes out secrets and cuts the text.
    fn finish(&self, error: VcdError, guest: Option<&Guest>) -> VcdError {
        let shown = self.http.shown().clone();
        let script = guest.and_then(|g| g.script.as_ref()).map(Secret::reveal);
        let password = guest.and_then(|g| g.password.as_ref()).map(Secret::reveal);
        let user_data = self.settings.user_data.as_ref().map(properties::encoded);
        let properties = self.settings.guest_properties.iter().map(|(_, value)| value.reveal());
        let mut secrets = shown.secrets();
        secrets.extend(user_data.as_deref());
        secrets.extend(properties.filter(|value| value.len() >= MIN_SECRET_LINE));
        secrets.extend(password);
        secrets.extend(script);
        secrets
            .extend(script.iter().flat_map(|s| s.lines()).map(str::trim).filter(|line| line.len() >= MIN_SECRET_LINE));
        errors::finish(error, &secrets)
    }
}

/// The text after the last slash: the id in a link.
fn last_part(href: &str) -> &str {
    href.rsplit('/').next().unwrap_or(href)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A token whose role gets a right does not change.
    #[test]
    fn a_query_that_vcd_forbids_is_sent_again_after_an_hour() {
        use ErrorKind::{Forbidden, Invalid, NotFound, Unavailable};
        let hour = QUERY_AGAIN.as_secs();
        for (kind, status, off_until) in
            [(Invalid, 400, u64::MAX), (Forbidden, 403, hour), (NotFound, 404, hour), (Unavailable, 500, 0)]
        {
            let mut client = Client::new(create::tests::example()).unwrap();
            let call = Call::lookup(String::new(), client.began);
            let refusal = VcdError { status, ..VcdError::own(kind, "", "") };
            client.turn_off(&call, &client.no_task_query, refusal).unwrap();
            for passed in [0, hour - 60, hour + 60, 1_000 * hour] {
                client.began = Instant::now() - Duration::from_secs(passed);
                assert_eq!(client.is_off(&client.no_task_query), passed < off_until, "{status}, {passed} s later");
            }
        }
        let client = Client::new(create::tests::example()).unwrap();
        let call = Call::lookup(String::new(), client.began);
        let lost = VcdError { status: 503, ..VcdError::own(Unavailable, "", "") };
        assert!(client.turn_off(&call, &client.no_task_query, lost).is_err());
    }

    #[test]
    fn a_call_ends_and_so_does_each_of_its_requests() {
        let now = Instant::now();
        let (poll, delete) = (Request::Poll { vapps: true }, Request::Delete { vapp: "v".into() });
        assert_eq!(Call::of(&poll, String::new(), now).deadline, now + CALL_TIMEOUT);
        assert_eq!(Call::lookup(String::new(), now).deadline, now + OPEN_TIMEOUT);
        let timeout = |request: &Request, left: Duration| {
            Call { deadline: Instant::now() + left, ..Call::of(request, String::new(), now) }.timeout()
        };
        let (long, short) = (Duration::from_secs(3600), Duration::from_secs(7));
        for (request, most) in [(&poll, READ_TIMEOUT), (&delete, CHANGE_TIMEOUT)] {
            assert_eq!(timeout(request, long).unwrap(), most);
            assert!(timeout(request, short).unwrap() <= short);
            assert!(!timeout(request, Duration::ZERO).unwrap_err().sent, "no request begins after the call's end");
        }
    }
}
