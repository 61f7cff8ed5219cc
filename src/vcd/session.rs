//! The session: which API version is spoken, and the bearer that an API token is exchanged for. One login serves all
//! threads. It never repeats anybody's request.

use super::errors::{self, Said, Stage};
use super::http::{Ask, Http, Lost, READ_TIMEOUT, Received, Site, encode};
use super::{Settings, Token, xml};
use crate::cloud::{ErrorKind, Secret, VcdError};
use std::fs::File;
use std::io::Read as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use ureq::http::Method;

/// The API versions that this client was made for, best first: 38 is what is known to serve in production, 39 what the
/// schemas promise; a deprecated one is taken only if there is no other.
const VERSIONS: [&str; 11] = ["38.1", "38.0", "39.1", "39.0", "37.3", "37.2", "37.1", "37.0", "36.3", "36.2", "36.1"];
/// API tokens need this version.
const OLDEST: (u32, u32) = (36, 1);
/// A bearer is renewed so long before it expires, or a tenth of its life if that is less.
const MAX_RENEW_MARGIN: Duration = Duration::from_secs(300);
/// The file that holds the token may have so many bytes.
const MAX_TOKEN_FILE: u64 = 16 * 1024;
/// After a renewal that failed while the old bearer still serves, the next try waits so long.
const RENEW_PAUSE: Duration = Duration::from_secs(60);

/// How the session stands, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionView {
    /// What it is.
    pub state: SessionState,
    /// Logins so far.
    pub logins: u64,
    /// Time until it is renewed.
    pub renewed_in: Option<Duration>,
    /// Time until VCD ends it, if VCD said when.
    pub ends_in: Option<Duration>,
    /// Why the last login failed, if it did.
    pub failure: Option<VcdError>,
}

/// What there is of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionState {
    /// VCD let us in.
    Valid,
    /// A thread logs in right now.
    LoggingIn,
    /// None, or VCD has ended it.
    Ended,
}

/// What a request needs to be let in.
#[derive(Clone)]
pub(super) struct Pass {
    pub(super) version: Arc<str>,
    pub(super) bearer: Arc<str>,
    /// Counts the logins.
    pub(super) generation: u64,
}

/// The session of one client.
pub(super) struct Session {
    state: Mutex<State>,
    /// Logins that have ended, well or badly.
    ended: AtomicU64,
}

struct State {
    version: Option<Arc<str>>,
    pass: Option<Pass>,
    renew_at: Instant,
    expires_at: Option<Instant>,
    generation: u64,
    failure: Option<VcdError>,
}

impl Session {
    /// No I/O yet.
    pub(super) fn new() -> Self {
        let state = State {
            version: None,
            pass: None,
            renew_at: Instant::now(),
            expires_at: None,
            generation: 0,
            failure: None,
        };
        Self { state: Mutex::new(state), ended: AtomicU64::new(0) }
    }

    /// The pass in force. It logs in if there is none, if it is old, or if it is of the generation `refused`; who comes
    /// while another thread does that waits for its end and shares it, good or bad.
    pub(super) fn pass(
        &self,
        http: &Http,
        site: &Site,
        settings: &Settings,
        refused: Option<u64>,
        deadline: Instant,
    ) -> Result<Pass, VcdError> {
        let ended = self.ended.load(Ordering::SeqCst);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.pass.as_ref().is_some_and(|pass| Some(pass.generation) == refused) {
            state.pass = None;
        }
        let now = Instant::now();
        let usable = state.pass.clone().filter(|_| state.expires_at.is_none_or(|at| now < at));
        if let Some(pass) = &usable
            && now < state.renew_at
        {
            return Ok(pass.clone());
        }
        if ended != self.ended.load(Ordering::SeqCst)
            && let Some(failure) = &state.failure
        {
            return usable.ok_or_else(|| failure.clone());
        }
        let result = state.log_in(http, site, settings, deadline);
        self.ended.fetch_add(1, Ordering::SeqCst);
        match (result, usable) {
            (Ok(pass), _) => {
                state.failure = None;
                Ok(pass)
            }
            (Err(e), Some(pass)) => {
                let said = errors::finish(e.clone(), &http.shown().secrets());
                log::warn!("{said}");
                state.failure = Some(e);
                state.renew_at = Instant::now() + RENEW_PAUSE;
                Ok(pass)
            }
            (Err(e), None) => {
                state.failure = Some(e.clone());
                Err(e)
            }
        }
    }

    /// VCD does not speak `version` any more: the next pass agrees on one anew.
    pub(super) fn forget_version(&self, version: &str) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.version.as_deref() == Some(version) {
            state.version = None;
            state.renew_at = Instant::now();
        }
    }

    /// The pass, which is not to be used again; `None` if there is none or another thread is logging in.
    pub(super) fn end(&self) -> Option<Pass> {
        self.state.try_lock().ok()?.pass.take()
    }

    /// How it stands. Never waits: it says so if a thread is logging in.
    pub(super) fn view(&self, http: &Http) -> SessionView {
        let Ok(state) = self.state.try_lock() else {
            let state = SessionState::LoggingIn;
            return SessionView { state, logins: 0, renewed_in: None, ends_in: None, failure: None };
        };
        let now = Instant::now();
        let valid = state.pass.is_some() && state.expires_at.is_none_or(|at| now < at);
        SessionView {
            state: if valid { SessionState::Valid } else { SessionState::Ended },
            logins: state.generation,
            renewed_in: valid.then(|| state.renew_at.saturating_duration_since(now)),
            ends_in: state.expires_at.filter(|_| valid).map(|at| at.saturating_duration_since(now)),
            failure: state.failure.clone().map(|failure| errors::finish(failure, &http.shown().secrets())),
        }
    }
}

impl State {
    fn log_in(&mut self, http: &Http, site: &Site, settings: &Settings, deadline: Instant) -> Result<Pass, VcdError> {
        let version = match &self.version {
            Some(version) => version.clone(),
            None => self.version.insert(agree(http, site)?).clone(),
        };
        let token = read_token(settings, site)?;
        http.shown().token = Some(token.clone());
        let began = Instant::now();
        let (bearer, life) = exchange_token(http, site, settings, &token, deadline)?;
        http.shown().bearer = Some(bearer.clone());
        self.generation += 1;
        self.expires_at = life.and_then(|life| began.checked_add(life));
        self.renew_at = began.checked_add(renewal(life, settings.session_refresh)).unwrap_or(began);
        let pass = Pass { version, bearer, generation: self.generation };
        self.pass = Some(pass.clone());
        Ok(pass)
    }
}

/// How old a bearer may become that VCD ends after `life`; `most` is the configured age.
fn renewal(life: Option<Duration>, most: Duration) -> Duration {
    let early = life.map(|life| life.saturating_sub(MAX_RENEW_MARGIN.min(life / 10)));
    early.map_or(most, |early| early.min(most))
}

/// The time left for one request of a call that ends at `deadline`.
pub(super) fn time_left(deadline: Instant, most: Duration) -> Result<Duration, Lost> {
    let left = deadline.saturating_duration_since(Instant::now()).min(most);
    if left.is_zero() {
        return Err(Lost { sent: false, text: "VCD was too slow: no time is left for this request".into() });
    }
    Ok(left)
}

fn agree(http: &Http, site: &Site) -> Result<Arc<str>, VcdError> {
    let what = format!("read the API versions of {}", site.root);
    let url = format!("{}/api/versions", site.root);
    let ask = Ask {
        operation: "versions",
        method: Method::GET,
        url: &url,
        accept: "*/*",
        bearer: None,
        content: None,
        timeout: None,
    };
    let got = http.exchange(&ask).map_err(|lost| errors::lost(&what, Stage::Read, lost))?;
    if got.status != 200 {
        return Err(not_from_here(errors::refused(&what, Stage::Read, &got)));
    }
    let unusable = |why: String| errors::unusable(&what, Stage::Read, got.status, why);
    let document = xml::read(&got.body).map_err(&unusable)?;
    choose(document.root_element()).map_err(unusable)
}

/// The version to speak, of those in a `SupportedVersions` element.
fn choose(root: roxmltree::Node) -> Result<Arc<str>, String> {
    if xml::local(root) != "SupportedVersions" {
        return Err(format!("not a list of versions but {}", xml::local(root)));
    }
    let mut offered: Vec<(bool, (u32, u32), &str)> = xml::children(root, "VersionInfo")
        .filter_map(|info| {
            let name = xml::text(info, "Version")?;
            let (major, minor) = name.split_once('.')?;
            let deprecated = xml::attribute(info, "deprecated") == Some("true");
            Some((deprecated, (major.parse().ok()?, minor.parse().ok()?), name))
        })
        .collect();
    offered.sort();
    for unwanted in [false, true] {
        for version in VERSIONS {
            if offered.iter().any(|(deprecated, _, name)| *deprecated == unwanted && *name == version) {
                return Ok(version.into());
            }
        }
    }
    match offered.iter().max_by_key(|(_, number, _)| *number) {
        None => Err("VCD offers no API version".into()),
        Some((_, number, name)) if *number < OLDEST => Err(format!(
            "VCD offers API versions up to {name} only; 36.1 (VCD 10.3.1) is the oldest that knows API tokens"
        )),
        Some((.., name)) => {
            Err(format!("VCD offers API versions up to {name}, and none of those known here: {}", VERSIONS.join(", ")))
        }
    }
}

/// The API token as it is now.
fn read_token(settings: &Settings, site: &Site) -> Result<Secret, VcdError> {
    settings.token.read().map_err(|why| {
        let what = format!("log in to org {:?} at {}", settings.org, site.root);
        errors::own(ErrorKind::Auth, what, format!("token_file {why}"))
    })
}

impl Token {
    /// The API token as it is now. The error names the file, and says what is wrong with it.
    pub fn read(&self) -> Result<Secret, String> {
        let path = match self {
            Token::Text(token) => return Ok(token.clone()),
            Token::File(path) => path,
        };
        let refuse = |why: String| format!("{}: {why}", path.display());
        let mut text = String::new();
        let file = File::open(path).map_err(|e| refuse(e.to_string()))?;
        file.take(MAX_TOKEN_FILE + 1).read_to_string(&mut text).map_err(|e| refuse(e.to_string()))?;
        if text.len() as u64 > MAX_TOKEN_FILE {
            return Err(refuse(format!("has more than the {MAX_TOKEN_FILE} bytes allowed")));
        }
        let token = text.trim();
        if token.is_empty() {
            return Err(refuse("is empty".into()));
        }
        if !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(refuse("holds more than one word, or characters that no token has".into()));
        }
        Ok(Secret::new(token))
    }
}

/// The bearer and how long it lives.
fn exchange_token(
    http: &Http,
    site: &Site,
    settings: &Settings,
    token: &Secret,
    deadline: Instant,
) -> Result<(Arc<str>, Option<Duration>), VcdError> {
    let what = format!("log in to org {:?} at {} with the API token", settings.org, site.root);
    let place = if settings.is_provider() { "provider".into() } else { format!("tenant/{}", encode(&settings.org)) };
    let url = format!("{}/oauth/{place}/token", site.root);
    let form = format!("grant_type=refresh_token&refresh_token={}", encode(token.reveal()));
    let timeout = time_left(deadline, READ_TIMEOUT).map_err(|lost| errors::lost(&what, Stage::Read, lost))?;
    let ask = Ask {
        operation: "login",
        method: Method::POST,
        url: &url,
        accept: "application/json",
        bearer: None,
        content: Some(("application/x-www-form-urlencoded", &form)),
        timeout: Some(timeout),
    };
    let got = http.exchange(&ask).map_err(|lost| errors::lost(&what, Stage::Read, lost))?;
    if got.status != 200 {
        return Err(login_refused(&what, settings, &got));
    }
    let unusable = || errors::own(ErrorKind::Unavailable, what.clone(), "the answer holds no usable access token");
    let json: serde_json::Value = serde_json::from_str(&got.body).map_err(|_| unusable())?;
    let bearer = json.get("access_token").and_then(|t| t.as_str());
    let bearer = bearer.filter(|t| !t.is_empty() && t.bytes().all(|b| b.is_ascii_graphic())).ok_or_else(unusable)?;
    let life = json.get("expires_in").and_then(|n| n.as_u64()).map(Duration::from_secs);
    Ok((bearer.into(), life))
}

/// The token, the org or the user was refused: trying again at once will not help.
fn login_refused(what: &str, settings: &Settings, got: &Received) -> VcdError {
    let mut error = errors::refused(what, Stage::Read, got);
    match got.status {
        404 => {
            error.kind = ErrorKind::Auth;
            error.text = format!("org {:?} is not known there: {}", settings.org, error.text);
        }
        400 | 401 | 403 if Said::of_body(&got.body).is_some() || got.status == 401 => {
            error.kind = ErrorKind::Auth;
            // VCD does not tell an unknown org from a token that is not of it.
            error.text = format!("the API token was refused, or is not one of org {:?}: {}", settings.org, error.text);
        }
        _ if error.kind != ErrorKind::Limit => error.kind = ErrorKind::Unavailable,
        _ => {}
    }
    error
}

/// What the login or the versions answer says nothing about the thing that the caller asked for.
fn not_from_here(mut error: VcdError) -> VcdError {
    if error.kind != ErrorKind::Limit {
        error.kind = ErrorKind::Unavailable;
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(versions: &[(&str, bool)]) -> Result<String, String> {
        let infos =
            versions.iter().map(|(v, d)| format!("<VersionInfo deprecated='{d}'><Version>{v}</Version></VersionInfo>"));
        let text = format!(
            "<SupportedVersions xmlns='http://www.vmware.com/vcloud/versions'>{}</SupportedVersions>",
            infos.collect::<String>()
        );
        choose(xml::read(&text).unwrap().root_element()).map(|v| v.to_string())
    }

    #[test]
    fn the_best_tested_version_is_chosen() {
        assert_eq!(chosen(&[("37.3", false), ("38.1", false), ("39.1", false)]), Ok("38.1".into()));
        assert_eq!(chosen(&[("39.1", false), ("38.1", true)]), Ok("39.1".into()));
        assert_eq!(chosen(&[("36.1", false), ("36.3", false), ("9.0", false)]), Ok("36.3".into()));
        assert_eq!(chosen(&[("36.0", false), ("37.0", true)]), Ok("37.0".into()));
        assert_eq!(chosen(&[("40.0.0-alpha", false), ("37.2", false)]), Ok("37.2".into()));
    }

    #[test]
    fn no_common_version_is_said_clearly() {
        assert!(chosen(&[("9.0", false), ("36.0", false)]).unwrap_err().contains("up to 36.0 only; 36.1"));
        assert!(chosen(&[("40.0", false)]).unwrap_err().contains("up to 40.0, and none"));
        assert!(chosen(&[]).unwrap_err().contains("no API version"));
        assert!(choose(xml::read("<html/>").unwrap().root_element()).unwrap_err().contains("html"));
    }

    #[test]
    fn a_bearer_is_renewed_a_tenth_of_its_life_before_its_end_and_five_minutes_at_most() {
        let seconds = Duration::from_secs;
        for (life, most, age) in [
            (None, 3600, 3600),
            (Some(1000), 3600, 900),
            (Some(3000), 3600, 2700),
            (Some(30_000), 86_400, 29_700),
            (Some(30_000), 3600, 3600),
            (Some(0), 3600, 0),
        ] {
            assert_eq!(renewal(life.map(seconds), seconds(most)), seconds(age), "{life:?} {most}");
        }
    }
}
