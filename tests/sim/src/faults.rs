//! Faults: rules that say what goes wrong, when and how often, and a random mode with a seed. This module only
//! decides. The front, or a driver of the model, carries the faults out.
//!
//! A rule as JSON. All keys are optional, but one effect is required:
//!
//! ```json
//! {"op": "instantiate", "method": "POST", "path": "/action/", "nth": 1, "times": 1, "probability": 1.0,
//!  "answer_before": {"status": 503, "body": "…", "content_type": "text/html", "retry_after": 3, "location": "/"},
//!  "reset_before": true, "reset_after": true, "answer_after": {"status": 500},
//!  "delay_before_ms": 100, "delay_after_ms": 100, "truncate": 40, "html": true,
//!  "task_fails": {"step": 1, "major": 500, "minor": "INTERNAL_SERVER_ERROR", "message": "…"}, "task_hangs": 0, "slow": 3.0,
//!  "guest": "gc_failed | gc_pending | no_address | no_ssh | shuts_down", "query": "empty | partial | stale", "stale_ms": 5000}
//! ```
//!
//! `op` is the name of the operation (`login`, `instantiate`, `delete`, `query:vm`, `task`, …) or the part before its
//! colon.
//! `nth` is the first matching request that the rule hits (default 1). `times` is the number of matches that it hits
//! from there (default 1; 0: all). `delay_…_ms` are real milliseconds.

use crate::model::{GuestFault, Inject, QueryFault, Rng, TaskError, TaskFault, TaskFaultKind};
use serde_json::Value;

/// An answer that replaces VCD's.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The body; empty by default.
    pub body: String,
    /// `Content-Type`.
    pub content_type: String,
    /// `Retry-After` in seconds.
    pub retry_after: Option<u64>,
    /// `Location`.
    pub location: Option<String>,
}

/// What goes wrong in one request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Effect {
    /// Answer this and do nothing.
    pub answer_before: Option<Answer>,
    /// Reset the connection and do nothing.
    pub reset_before: bool,
    /// Do the work, then reset the connection.
    pub reset_after: bool,
    /// Do the work, then answer this.
    pub answer_after: Option<Answer>,
    /// Real milliseconds before the work.
    pub delay_before_ms: u64,
    /// Real milliseconds after the work.
    pub delay_after_ms: u64,
    /// Cut the body after this many bytes and close the connection.
    pub truncate: Option<usize>,
    /// Answer with an HTML page instead of the body. The status stays.
    pub html: bool,
    /// What happens to the task and the guest that the request starts.
    pub inject: Inject,
    /// What happens to the records of the query.
    pub query: Option<QueryFault>,
}

/// Which requests an effect hits.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Operation name, or the part before its colon; empty: any.
    pub op: String,
    /// HTTP method; empty: any.
    pub method: String,
    /// Part of the path and query; empty: any.
    pub path: String,
    /// The first match that the rule hits, from 1.
    pub nth: u64,
    /// Number of matches that the rule hits; 0: all.
    pub times: u64,
    /// Probability with which each of these matches is hit.
    pub probability: f64,
    /// What goes wrong.
    pub effect: Effect,
    seen: u64,
}

/// All rules, and the random mode.
#[derive(Clone, Debug)]
pub struct Faults {
    rules: Vec<Rule>,
    rng: Rng,
    rate: f64,
    /// Number of requests that were hit.
    pub hits: u64,
}

/// Maximum number of rules.
const MAX_RULES: usize = 4096;

impl Answer {
    /// An answer without a body.
    pub fn status(status: u16) -> Self {
        Self { status, body: String::new(), content_type: "text/html".into(), retry_after: None, location: None }
    }
}

impl Rule {
    /// A rule that hits the first request of an operation.
    pub fn new(op: &str, effect: Effect) -> Self {
        Self {
            op: op.into(),
            method: String::new(),
            path: String::new(),
            nth: 1,
            times: 1,
            probability: 1.0,
            effect,
            seen: 0,
        }
    }

    /// Reads a rule; see the module's documentation.
    pub fn from_json(json: &Value) -> Result<Rule, String> {
        let map = json.as_object().ok_or("a rule is a JSON object")?;
        let mut rule = Rule::new("", Effect::default());
        let effect = &mut rule.effect;
        let mut stale_ms = 5000;
        for (key, value) in map {
            let wrong = || format!("{key}: invalid value {value}");
            let text = || value.as_str().map(String::from).ok_or_else(wrong);
            let number = || value.as_u64().ok_or_else(wrong);
            let flag = || value.as_bool().ok_or_else(wrong);
            match key.as_str() {
                "op" => rule.op = text()?,
                "method" => rule.method = text()?,
                "path" => rule.path = text()?,
                "nth" => rule.nth = number()?.max(1),
                "times" => rule.times = number()?,
                "probability" => rule.probability = value.as_f64().ok_or_else(wrong)?,
                "answer_before" => effect.answer_before = Some(answer(value)?),
                "answer_after" => effect.answer_after = Some(answer(value)?),
                "reset_before" => effect.reset_before = flag()?,
                "reset_after" => effect.reset_after = flag()?,
                "delay_before_ms" => effect.delay_before_ms = number()?,
                "delay_after_ms" => effect.delay_after_ms = number()?,
                "truncate" => effect.truncate = Some(number()? as usize),
                "html" => effect.html = flag()?,
                "task_fails" => {
                    let get = |k: &str| value.get(k).and_then(Value::as_str).map(String::from);
                    let error = TaskError {
                        major: value
                            .get("major")
                            .and_then(Value::as_u64)
                            .and_then(|m| m.try_into().ok())
                            .unwrap_or(500),
                        minor: get("minor").unwrap_or_else(|| "INTERNAL_SERVER_ERROR".into()).into(),
                        message: get("message").unwrap_or_else(|| UNABLE.into()),
                    };
                    let step = value.get("step").and_then(Value::as_u64).and_then(|s| s.try_into().ok());
                    effect.inject.task =
                        Some(TaskFault { step: step.unwrap_or(u8::MAX), kind: TaskFaultKind::Fail(error) });
                }
                "task_hangs" => {
                    let step = number()?.try_into().unwrap_or(u8::MAX);
                    effect.inject.task = Some(TaskFault { step, kind: TaskFaultKind::Hang });
                }
                "slow" => effect.inject.slow = Some(value.as_f64().filter(|s| *s >= 0.0).ok_or_else(wrong)?),
                "guest" => {
                    effect.inject.guest = Some(match value.as_str() {
                        Some("gc_failed") => GuestFault::CustomizationFails,
                        Some("gc_pending") => GuestFault::NeverCustomizes,
                        Some("gc_silent") => GuestFault::NeverReports,
                        Some("no_address") => GuestFault::NoAddress,
                        Some("no_ssh") => GuestFault::NoSsh,
                        Some("shuts_down") => GuestFault::ShutsDown,
                        _ => return Err(wrong()),
                    });
                }
                "query" => {
                    effect.query = Some(match value.as_str() {
                        Some("empty") => QueryFault::Empty,
                        Some("partial") => QueryFault::Partial,
                        Some("stale") => QueryFault::Stale(0),
                        _ => return Err(wrong()),
                    });
                }
                "stale_ms" => stale_ms = number()?,
                _ => return Err(format!("unknown key {key}")),
            }
        }
        if let Some(QueryFault::Stale(ago)) = &mut effect.query {
            *ago = stale_ms;
        }
        Ok(rule)
    }

    fn matches(&self, op: &str, method: &str, path: &str) -> bool {
        (self.op.is_empty() || self.op == op || op.split(':').next() == Some(&self.op))
            && (self.method.is_empty() || self.method == method)
            && path.contains(&self.path)
    }
}

/// VMware's text for errors whose cause is not shown to tenants.
const UNABLE: &str = "Unable to perform this action. Contact your cloud administrator.";

fn answer(value: &Value) -> Result<Answer, String> {
    let status = value.get("status").and_then(Value::as_u64).and_then(|s| u16::try_from(s).ok());
    let mut answer = Answer::status(status.filter(|s| (200..600).contains(s)).ok_or("status: 200 to 599")?);
    let get = |key: &str| value.get(key).and_then(Value::as_str).map(String::from);
    answer.body = get("body").unwrap_or_default();
    answer.content_type = get("content_type").unwrap_or(answer.content_type);
    answer.retry_after = value.get("retry_after").and_then(Value::as_u64);
    answer.location = get("location");
    Ok(answer)
}

impl Faults {
    /// No faults.
    pub fn new(seed: u64) -> Self {
        Self { rules: Vec::new(), rng: Rng::new(seed ^ 0xfa17), rate: 0.0, hits: 0 }
    }

    /// Adds a rule; false if there are too many.
    pub fn add(&mut self, rule: Rule) -> bool {
        let fits = self.rules.len() < MAX_RULES;
        if fits {
            self.rules.push(rule);
        }
        fits
    }

    /// From now on, each request is hit with this probability, by a random fault that fits the request.
    pub fn random(&mut self, seed: u64, rate: f64) {
        self.rng = Rng::new(seed);
        self.rate = rate;
    }

    /// Ends all faults.
    pub fn clear(&mut self) {
        self.rules.clear();
        self.rate = 0.0;
    }

    /// The largest age of stale queries in milliseconds: the model keeps its history for this long.
    pub fn history(&self) -> u64 {
        let stale = |r: &Rule| match r.effect.query {
            Some(QueryFault::Stale(ago)) => ago,
            _ => 0,
        };
        self.rules.iter().map(stale).max().unwrap_or(0)
    }

    /// What goes wrong in this request. `changes`: the request changes something, so other random faults fit.
    pub fn decide(&mut self, op: &str, method: &str, path: &str, changes: bool) -> Option<Effect> {
        for rule in &mut self.rules {
            if !rule.matches(op, method, path) {
                continue;
            }
            rule.seen += 1;
            let in_turn = rule.seen >= rule.nth && (rule.times == 0 || rule.seen < rule.nth + rule.times);
            if in_turn && (rule.probability >= 1.0 || self.rng.chance(rule.probability)) {
                self.hits += 1;
                return Some(rule.effect.clone());
            }
        }
        if !self.rng.chance(self.rate) {
            return None;
        }
        self.hits += 1;
        Some(self.random_effect(op, changes))
    }

    fn random_effect(&mut self, op: &str, changes: bool) -> Effect {
        let mut e = Effect::default();
        match (self.rng.below(if changes { 12 } else { 7 }), op.starts_with("query:")) {
            (0, _) => e.reset_before = true,
            (1, _) => e.answer_before = Some(Answer { retry_after: Some(1), ..Answer::status(503) }),
            (2, _) => e.truncate = Some(self.rng.below(200) as usize),
            (3, _) => e.delay_after_ms = self.rng.below(50),
            (4, false) => e.html = true,
            (4, true) => e.query = Some(QueryFault::Empty),
            (5, true) => e.query = Some(QueryFault::Partial),
            (5, false) => e.answer_before = Some(Answer::status(502)),
            (6 | 7, _) => e.reset_after = true,
            (8, _) => e.answer_after = Some(Answer::status(500)),
            (9, _) => {
                let error = TaskError { major: 500, minor: "INTERNAL_SERVER_ERROR".into(), message: UNABLE.into() };
                let step = self.rng.below(2) as u8;
                e.inject.task = Some(TaskFault { step, kind: TaskFaultKind::Fail(error) });
            }
            (10, _) => e.inject.task = Some(TaskFault { step: self.rng.below(2) as u8, kind: TaskFaultKind::Hang }),
            _ => e.inject.slow = Some(1.0 + self.rng.below(5) as f64),
        }
        e
    }
}
