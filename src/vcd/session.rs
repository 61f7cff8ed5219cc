//! The session: the API version, and the bearer token that VCD returns for an API token. One login serves all threads.
//! This module never repeats a request of a caller.

use super::errors::{self, Said, Stage};
use super::http::{Ask, Http, Lost, READ_TIMEOUT, Received, Site, encode};
use super::token::{self, Held, Token};
use super::{Settings, xml};
use crate::cloud::{ErrorKind, Secret, VcdError};
use std::cmp::Reverse;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use ureq::http::Method;

/// The major API versions that this client supports, best first: 38 is known to work in production, 39 is supported
/// according to its schemas. Of each the highest minor version is used.
const MAJORS: [u32; 4] = [38, 39, 37, 36];
/// API tokens need this version.
const OLDEST: (u32, u32) = (36, 1);
/// A bearer token is renewed this long before it expires, or a tenth of its life before if that is less.
const MAX_RENEW_MARGIN: Duration = Duration::from_secs(300);
/// Minimum life of a bearer token, even if VCD says less: otherwise each request could log in. If VCD ends it earlier,
/// the client notices.
const MIN_LIFE: Duration = Duration::from_secs(5);
/// Pause before the next renewal after one that failed while the old bearer token is still valid, unless VCD says how
/// long to wait.
const RENEW_PAUSE: Duration = Duration::from_secs(60);
/// Maximum pause before the next login if VCD says how long to wait: VCD may recover sooner.
const ASKED_MAX: Duration = Duration::from_secs(5 * 60);
/// Pause before the next attempt to write a token that could not be written.
const SAVE_PAUSE: Duration = Duration::from_secs(10);

/// The state of the session, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionView {
    /// The state.
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

/// The state of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionState {
    /// VCD accepted the login.
    Valid,
    /// A thread is logging in.
    LoggingIn,
    /// None, or VCD has ended it.
    Ended,
}

/// What a request needs for authentication.
#[derive(Clone)]
pub(super) struct Pass {
    pub(super) version: Arc<str>,
    pub(super) bearer: Arc<str>,
    /// Number of the login.
    pub(super) generation: u64,
}

/// The session of one client.
pub(super) struct Session {
    state: Mutex<State>,
    /// Logins that have ended, successful or not.
    ended: AtomicU64,
}

struct State {
    version: Option<Arc<str>>,
    pass: Option<Pass>,
    renew_at: Instant,
    expires_at: Option<Instant>,
    generation: u64,
    failure: Option<VcdError>,
    /// VCD said when to try again.
    not_before: Option<Instant>,
    kind: TokenKind,
    /// A token that VCD did not replace: nothing has to be written for it.
    lasting: Option<Secret>,
    unsaved: Option<Unsaved>,
}

/// The kind of a token, as far as VCD has shown it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TokenKind {
    /// A user's token. It stays valid.
    #[default]
    Lasting,
    /// A service account's token. VCD replaces it at each login.
    Replaced,
}

/// A token that could not be written into its file. VCD accepts no other.
struct Unsaved {
    token: Secret,
    /// The token that the file still contains.
    spent: Secret,
    /// Where it is saved for now.
    rescue: Option<PathBuf>,
    tried: Instant,
    error: VcdError,
}

/// VCD's answer to a token.
struct Granted {
    /// Or why there is none. A next token may be there even then.
    bearer: Result<Arc<str>, VcdError>,
    life: Option<Duration>,
    /// The token for the next login, if VCD sends one.
    next: Option<Secret>,
}

impl Session {
    /// Does no I/O.
    pub(super) fn new() -> Self {
        let state = State {
            version: None,
            pass: None,
            renew_at: Instant::now(),
            expires_at: None,
            generation: 0,
            failure: None,
            not_before: None,
            kind: TokenKind::default(),
            lasting: None,
            unsaved: None,
        };
        Self { state: Mutex::new(state), ended: AtomicU64::new(0) }
    }

    /// The current pass. Logs in if there is none, if it is old, or if it is of the generation `refused`. A thread that
    /// calls this while another one logs in waits and shares the result, good or bad.
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
        state.save(settings, site);
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
        if let (Some(at), Some(failure)) = (state.not_before.filter(|at| now < *at), &state.failure) {
            let left = at.saturating_duration_since(now);
            return usable.ok_or_else(|| VcdError { retry_after: Some(left), ..failure.clone() });
        }
        let result = state.log_in(http, site, settings, deadline);
        let asked = result.as_ref().err().and_then(|e| e.retry_after).map(|asked| asked.min(ASKED_MAX));
        state.not_before = asked.map(|asked| Instant::now() + asked);
        self.ended.fetch_add(1, Ordering::SeqCst);
        match (result, usable) {
            (Ok(pass), _) => {
                state.failure = state.unsaved.as_ref().map(|unsaved| unsaved.error.clone());
                Ok(pass)
            }
            (Err(e), Some(pass)) => {
                let said = errors::finish(e.clone(), &http.shown().secrets());
                let pause = asked.unwrap_or(RENEW_PAUSE);
                log::warn!(
                    "{said}; the session is still valid, and the plugin retries to renew it in {} s",
                    pause.as_secs()
                );
                state.renew_at = Instant::now() + pause;
                state.failure = Some(e);
                Ok(pass)
            }
            (Err(e), None) => {
                state.failure = Some(e.clone());
                Err(e)
            }
        }
    }

    /// VCD no longer supports the API version of `pass`: the same pass with another version. `None` if there is no
    /// other.
    pub(super) fn agree_anew(&self, http: &Http, site: &Site, pass: &Pass) -> Result<Option<Pass>, VcdError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.version.as_ref() == Some(&pass.version) {
            state.version = None;
        }
        let version = state.version(http, site)?;
        if let Some(current) = &mut state.pass {
            current.version = version.clone();
        }
        Ok((version != pass.version).then(|| Pass { version, ..pass.clone() }))
    }

    /// The kind of the token after the last login, and why its next token could not be written, if so.
    pub(super) fn token(&self) -> (TokenKind, Option<VcdError>) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        (state.kind, state.unsaved.as_ref().map(|unsaved| unsaved.error.clone()))
    }

    /// Waits until a current login ends.
    pub(super) fn settle(&self) {
        drop(self.state.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The pass, for the last time. `None` if there is none or another thread is logging in.
    pub(super) fn end(&self) -> Option<Pass> {
        self.state.try_lock().ok()?.pass.take()
    }

    /// The state. Never waits: it says if a thread is logging in.
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
    /// The API version. Chooses one if there is none yet.
    fn version(&mut self, http: &Http, site: &Site) -> Result<Arc<str>, VcdError> {
        match &self.version {
            Some(version) => Ok(version.clone()),
            None => Ok(self.version.insert(agree(http, site)?).clone()),
        }
    }

    fn log_in(&mut self, http: &Http, site: &Site, settings: &Settings, deadline: Instant) -> Result<Pass, VcdError> {
        let version = self.version(http, site)?;
        let began = Instant::now();
        let trade = Trade { http, site, settings, deadline };
        let granted = match &settings.token {
            Token::Text(given) => self.trade_text(&trade, given),
            Token::File(path) => self.trade_file(&trade, path),
        }?;
        let bearer = granted.bearer?;
        http.shown().bearer = Some(bearer.clone());
        let life = granted.life.map(|life| life.max(MIN_LIFE));
        self.generation += 1;
        self.expires_at = life.and_then(|life| began.checked_add(life));
        self.renew_at = began.checked_add(renewal(life, settings.session_refresh)).unwrap_or(began);
        let pass = Pass { version, bearer, generation: self.generation };
        self.pass = Some(pass.clone());
        Ok(pass)
    }

    /// A login with a token from the configuration or the environment. The next token could not be written there.
    fn trade_text(&mut self, trade: &Trade, given: &Secret) -> Result<Granted, VcdError> {
        if self.kind == TokenKind::Replaced
            && let Some(failure) = &self.failure
        {
            return Err(failure.clone());
        }
        let granted = trade.exchange(given)?;
        let Some(next) = &granted.next else { return Ok(granted) };
        self.kind = TokenKind::Replaced;
        let place = match token::rescue(next) {
            Ok(path) => {
                format!(
                    "the next one is in {}: set token_file to this file, or to the path to which you move it",
                    path.display()
                )
            }
            Err(why) => format!(
                "the next one could not be saved ({why}): create another one in VCD, and put it into a file for token_file"
            ),
        };
        let why =
            "VCD accepts this token once, as one of a service account; token and VCD_TOKEN cannot save the next one";
        let text = format!("{why}; {place}. No login works until then");
        let error = VcdError::own(ErrorKind::Auth, trade.what(), text);
        // The full text, not cut.
        log::error!("{error}");
        Err(error)
    }

    /// A login with the token in a file. If VCD sends a next token, it is written there.
    fn trade_file(&mut self, trade: &Trade, path: &Path) -> Result<Granted, VcdError> {
        let wrong = |why: String| VcdError::own(ErrorKind::Auth, trade.what(), format!("token_file {why}"));
        let known = trade.settings.token.read().map_err(wrong)?;
        if self.lasting.as_ref() == Some(&known) {
            let granted = trade.exchange(&known)?;
            if let Some(next) = &granted.next {
                // The file was readable until now.
                let written = Held::take(path, trade.deadline).map_err(|_| "it cannot be read".to_owned());
                self.written(trade.what(), path, known, next, written.and_then(|held| held.replace(next)));
                (self.kind, self.lasting) = (TokenKind::Replaced, None);
            }
            return Ok(granted);
        }
        let held = Held::take(path, trade.deadline).map_err(|refused| match refused {
            token::Refused::File(why) => wrong(why),
            token::Refused::Busy => {
                let text = format!(
                    "other processes keep logging in with token_file {}: use a separate token for each plugin",
                    path.display()
                );
                VcdError::own(ErrorKind::Unavailable, trade.what(), text)
            }
        })?;
        // If another process has written another token, that one is responsible for it.
        self.unsaved.take_if(|unsaved| unsaved.spent != *held.token());
        let shown = self.unsaved.as_ref().map_or(held.token(), |unsaved| &unsaved.token).clone();
        let mut traded = trade.exchange(&shown);
        if let (Err(e), Some(earlier)) = (&traded, held.earlier())
            && e.kind == ErrorKind::Auth
        {
            let said = errors::finish(e.clone(), &trade.http.shown().secrets());
            log::warn!("{said}; the plugin tries a newer token that an earlier process left beside token_file");
            traded = trade.exchange(earlier);
        }
        let granted = match traded {
            Ok(granted) => granted,
            Err(e) => {
                if held.earlier().is_none() {
                    held.keep();
                }
                return Err(e);
            }
        };
        match &granted.next {
            None => {
                self.kind = TokenKind::Lasting;
                self.lasting = Some(shown);
                held.keep();
            }
            Some(next) => {
                self.kind = TokenKind::Replaced;
                let spent = held.token().clone();
                let written = held.replace(next);
                self.written(trade.what(), path, spent, next, written);
            }
        }
        Ok(granted)
    }

    /// Records whether a new token is in its file. If not, saves it elsewhere and reports it.
    fn written(&mut self, what: String, path: &Path, spent: Secret, next: &Secret, written: Result<(), String>) {
        let before = self.unsaved.take();
        let old = before.and_then(|unsaved| unsaved.rescue);
        if let Err(why) = written {
            let rescue = token::rescue(next);
            let place = match &rescue {
                Ok(rescue) => format!("if the plugin ends before that, move {} to token_file", rescue.display()),
                Err(why) => {
                    format!(
                        "only the plugin's memory has it ({why}): if the plugin ends before that, create another token in VCD"
                    )
                }
            };
            let path = path.display();
            let text = format!(
                "token_file {path}: VCD no longer accepts the token in it, and the next one could not be written ({why}). The \
                 plugin uses the next one and retries to write it every {} s: allow it to write this file and its folder; \
                 {place}",
                SAVE_PAUSE.as_secs()
            );
            let error = VcdError::own(ErrorKind::Auth, what, text);
            log::error!("{error}");
            let rescue = rescue.ok();
            self.unsaved = Some(Unsaved { token: next.clone(), spent, rescue, tried: Instant::now(), error });
        }
        let Some(old) = old else { return };
        let _ = fs::remove_file(&old);
        if self.unsaved.is_none() {
            log::info!("token_file {}: the new token is in it now; {} is deleted", path.display(), old.display());
        }
    }

    /// Retries the write of a token that could not be written.
    fn save(&mut self, settings: &Settings, site: &Site) {
        let Token::File(path) = &settings.token else { return };
        let Some(unsaved) = &mut self.unsaved else { return };
        if unsaved.tried.elapsed() < SAVE_PAUSE {
            return;
        }
        unsaved.tried = Instant::now();
        let Ok(held) = Held::take(path, Instant::now()) else { return };
        let (spent, next) = (unsaved.spent.clone(), unsaved.token.clone());
        if *held.token() != spent {
            self.unsaved = None;
        } else if held.replace(&next).is_ok() {
            self.written(login(settings, site), path, spent, &next, Ok(()));
        } else {
            return;
        }
        self.failure = None;
    }
}

/// One login.
struct Trade<'a> {
    http: &'a Http,
    site: &'a Site,
    settings: &'a Settings,
    deadline: Instant,
}

impl Trade<'_> {
    fn what(&self) -> String {
        login(self.settings, self.site)
    }
}

/// The action and its object for the errors of a login.
fn login(settings: &Settings, site: &Site) -> String {
    format!("log in to org {:?} at {}", settings.org, site.root)
}

/// Age at which a bearer token is renewed that VCD ends after `life`. `most` is the configured age.
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
        known: None,
    };
    let got = http.exchange(&ask).map_err(|lost| errors::lost(&what, Stage::Read, lost))?;
    if got.is_for_https {
        return Err(VcdError { kind: ErrorKind::Invalid, ..errors::refused(&what, Stage::Read, &got) });
    }
    if got.status != 200 {
        return Err(not_from_here(errors::refused(&what, Stage::Read, &got)));
    }
    let unusable = |why: String| errors::unusable(&what, Stage::Read, got.status, why);
    if let Some(page) = errors::web_page(&got.body) {
        return Err(unusable(page));
    }
    let document = xml::read(&got.body).map_err(&unusable)?;
    let (version, is_newer) = choose(document.root_element()).map_err(unusable)?;
    if is_newer {
        log::warn!("VCD offers no API version that this plugin knows; it uses {version}, which is newer");
    }
    Ok(version)
}

/// The API version to use, of those in a `SupportedVersions` element, and whether it is newer than those known here. A
/// deprecated one is used only if no other is known. An alpha version is never used.
fn choose(root: roxmltree::Node) -> Result<(Arc<str>, bool), String> {
    if xml::local(root) != "SupportedVersions" {
        return Err(format!("not a list of versions but {}", xml::local(root)));
    }
    let offered = xml::children(root, "VersionInfo").filter_map(|info| {
        let name = xml::text(info, "Version")?;
        let (major, minor) = name.split_once('.')?;
        let number: (u32, u32) = (major.parse().ok()?, minor.parse().ok()?);
        Some((number, xml::attribute(info, "deprecated") == Some("true"), name))
    });
    let (usable, old): (Vec<_>, Vec<_>) = offered.partition(|(number, ..)| *number >= OLDEST);
    // Of the unknown versions, the one nearest to the known ones.
    let best = usable.into_iter().min_by_key(|((major, minor), deprecated, _)| {
        let known = MAJORS.iter().position(|known| known == major);
        let rank = known.map_or(u64::from(*major), |at| at as u64);
        (known.is_none(), *deprecated, rank, Reverse(*minor))
    });
    match (best, old.into_iter().max()) {
        (Some(((major, _), _, name)), _) => Ok((name.into(), !MAJORS.contains(&major))),
        (None, Some((.., name))) => {
            Err(format!("VCD offers API versions up to {name} only; API tokens need 36.1 (VCD 10.3.1) or later"))
        }
        (None, None) => Err("VCD offers no released API version".into()),
    }
}

impl Trade<'_> {
    /// Exchanges `token` for a bearer token.
    fn exchange(&self, token: &Secret) -> Result<Granted, VcdError> {
        let (http, site, settings) = (self.http, self.site, self.settings);
        http.shown().token = Some(token.clone());
        let what = format!("{} with the API token", self.what());
        let place =
            if settings.is_provider() { "provider".into() } else { format!("tenant/{}", encode(&settings.org)) };
        let url = format!("{}/oauth/{place}/token", site.root);
        let form = format!("grant_type=refresh_token&refresh_token={}", encode(token.reveal()));
        let timeout = time_left(self.deadline, READ_TIMEOUT).map_err(|lost| errors::lost(&what, Stage::Read, lost))?;
        let ask = Ask {
            operation: "login",
            method: Method::POST,
            url: &url,
            accept: "application/json",
            bearer: None,
            content: Some(("application/x-www-form-urlencoded", &form)),
            timeout: Some(timeout),
            known: None,
        };
        let got = http.exchange(&ask).map_err(|lost| errors::lost(&what, Stage::Read, lost))?;
        if got.status != 200 {
            return Err(login_refused(&what, settings, &got));
        }
        let unusable = |why: String| VcdError::own(ErrorKind::Unavailable, what.clone(), why);
        if let Some(page) = errors::web_page(&got.body) {
            return Err(unusable(page));
        }
        let none = || unusable("the answer contains no usable access token".into());
        let json: serde_json::Value = serde_json::from_str(&got.body).map_err(|_| none())?;
        let word = |key: &str| {
            let word = json.get(key).and_then(|t| t.as_str());
            word.filter(|t| !t.is_empty() && t.bytes().all(|b| b.is_ascii_graphic()))
        };
        let next = word("refresh_token").filter(|next| *next != token.reveal()).map(Secret::new);
        http.shown().next = next.clone();
        let bearer = word("access_token").map(Arc::from).ok_or_else(none);
        let life = json.get("expires_in").and_then(|n| n.as_u64()).map(Duration::from_secs);
        Ok(Granted { bearer, life, next })
    }
}

/// VCD rejected the token, the org or the user. An immediate retry does not help.
fn login_refused(what: &str, settings: &Settings, got: &Received) -> VcdError {
    let mut error = errors::refused(what, Stage::Read, got);
    match got.status {
        404 => {
            error.kind = ErrorKind::Auth;
            error.text = format!("VCD has no token endpoint for org {:?}: {}", settings.org, error.text);
        }
        400 | 401 | 403 if Said::of_body(&got.body).is_some() || got.status == 401 => {
            error.kind = ErrorKind::Auth;
            // VCD answers the same for an unknown org and for a token of another org.
            error.text = format!("VCD rejected the API token, or it is not of org {:?}: {}", settings.org, error.text);
        }
        _ if error.kind != ErrorKind::Limit => error.kind = ErrorKind::Unavailable,
        _ => {}
    }
    error
}

/// The answer to the login or the version request says nothing about the object of the caller's request.
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
        choose(xml::read(&text).unwrap().root_element())
            .map(|(version, is_newer)| format!("{version}{}", if is_newer { " (newer)" } else { "" }))
    }

    #[test]
    fn the_best_tested_version_is_chosen() {
        for (offered, expected) in [
            (&[("37.3", false), ("38.1", false), ("39.1", false)][..], "38.1"),
            (&[("39.1", false), ("38.1", true)], "39.1"),
            (&[("36.1", false), ("36.3", false), ("9.0", false)], "36.3"),
            (&[("36.0", false), ("37.0", true)], "37.0"),
            // Minor ones come without our knowing.
            (&[("39.2", false)], "39.2"),
            (&[("38.2", false), ("40.0", false)], "38.2"),
            (&[("38.9", false), ("38.10", false)], "38.10"),
            // New majors: the nearest, and only where nothing known is left.
            (&[("41.0", false), ("40.0", false), ("40.1", false)], "40.1 (newer)"),
            (&[("40.0", false), ("39.1", true)], "39.1"),
            (&[("41.0", false), ("40.0", true)], "41.0 (newer)"),
            // Never one that is not finished, and nothing that is no version.
            (&[("40.0.0-alpha", false), ("37.2", false)], "37.2"),
            (&[("38.2.0-alpha-1690000000", false), ("39.0-alpha", false), ("39", false), ("37.3", true)], "37.3"),
        ] {
            assert_eq!(chosen(offered).as_deref(), Ok(expected), "{offered:?}");
        }
    }

    #[test]
    fn no_common_version_is_said_clearly() {
        assert!(
            chosen(&[("9.0", false), ("36.0", false)]).unwrap_err().contains("up to 36.0 only; API tokens need 36.1")
        );
        assert!(chosen(&[("39.0.0-alpha-1", false)]).unwrap_err().contains("no released API version"));
        assert!(chosen(&[]).unwrap_err().contains("no released API version"));
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
