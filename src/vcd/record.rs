//! A recording of the requests to VCD and its answers, for people who report a problem. It is unchanged in memory. In
//! the written text, placeholders replace all secrets and all names of the user, the same one for each occurrence. Only
//! words that are known to be VCD's, numbers and dates stay. Nothing is recorded before [`start`].

use super::http::{Ask, Lost, Received, encode};
use super::xml;
use percent_encoding::percent_decode_str;
use roxmltree::Node;
use serde_json::Value;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Maximum size of a recording, in bytes. Later requests are only counted.
pub const MAX_RECORDING: usize = 8 * 1024 * 1024;
/// Maximum length of a word of letters and digits. A longer one may be a token, whatever its name is.
const MAX_WORD: usize = 24;

/// The format of an id.
const UUID: &str = "00000000-0000-0000-0000-000000000000";

/// VCD's own names: these attributes, elements and keys contain its own words.
const VCD_WORDS: [&str; 48] = [
    "rel",
    "type",
    "status",
    "operationName",
    "majorErrorCode",
    "minorErrorCode",
    "Version",
    "FenceMode",
    "nil",
    "IpAddressAllocationMode",
    "NetworkAdapterType",
    "gcStatus",
    "guestOs",
    "detectedGuestOs",
    "OsType",
    "hardwareVersion",
    "HardwareVersion",
    "vmToolsVersion",
    "VmToolsVersion",
    "vmToolsStatus",
    "AllocationModel",
    "AllocationUnits",
    "Units",
    "ElementName",
    "ResourceSubType",
    "busType",
    "busSubType",
    "VirtualQuantityUnits",
    "VirtualSystemType",
    "linkType",
    "taskStatus",
    "taskStatusName",
    "containerStatus",
    "token_type",
    "scope",
    "grant_type",
    "required",
    "entityType",
    "objectType",
    "serviceNamespace",
    "UndeployPowerAction",
    "Info",
    "Domain",
    "Visibility",
    "visibility",
    "policyType",
    "AdapterType",
    "Firmware",
];
/// These contain VCD's sentences, with names in them.
const SENTENCES: [&str; 9] = [
    "message",
    "operation",
    "operationFull",
    "Details",
    "details",
    "taskDetails",
    "schemaLocation",
    "error_description",
    "error",
];
/// These contain secrets: their values are replaced as a whole.
const SECRETS: [&str; 9] = [
    "AdminPassword",
    "DomainUserPassword",
    "DomainUserName",
    "CustomizationScript",
    "access_token",
    "refresh_token",
    "assertion",
    "stackTrace",
    "UserName",
];
/// Host names in namespaces. They are not hosts.
const NAMESPACES: [&str; 3] = ["www.vmware.com", "schemas.dmtf.org", "www.w3.org"];

static RECORDER: OnceLock<Mutex<Recording>> = OnceLock::new();

struct Recording {
    began: Instant,
    exchanges: Vec<Exchange>,
    bytes: usize,
    left_out: usize,
}

/// A request and its answer.
struct Exchange {
    operation: &'static str,
    at: Duration,
    took: Duration,
    method: String,
    url: String,
    accept: String,
    content_type: String,
    body: String,
    answer: Result<Answer, String>,
}

struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: String,
}

/// Records from now on all requests of this process to any VCD, and deletes earlier recordings.
pub fn start() {
    let new = Recording::new();
    match RECORDER.get() {
        Some(recorder) => *recorder.lock().unwrap_or_else(PoisonError::into_inner) = new,
        None => _ = RECORDER.set(Mutex::new(new)),
    }
}

/// A recording is on: it needs whole answers.
pub(super) fn is_on() -> bool {
    RECORDER.get().is_some()
}

/// Records one request, if a recording is on.
pub(super) fn note(ask: &Ask, result: &Result<Received, Lost>, took: Duration) {
    if let Some(recorder) = RECORDER.get() {
        recorder.lock().unwrap_or_else(PoisonError::into_inner).add(ask, result, took);
    }
}

/// The recording, with placeholders. `head` is put before it; `names` are the known names and their kinds. `None` if
/// nothing was recorded.
pub fn text(head: &str, names: &[(&'static str, &str)]) -> Option<Written> {
    RECORDER.get()?.lock().unwrap_or_else(PoisonError::into_inner).text(head, names)
}

impl Recording {
    fn new() -> Recording {
        Recording { began: Instant::now(), exchanges: Vec::new(), bytes: 0, left_out: 0 }
    }

    fn add(&mut self, ask: &Ask, result: &Result<Received, Lost>, took: Duration) {
        let (content_type, body) = ask.content.unwrap_or_default();
        let size = body.len() + result.as_ref().map_or(0, |got| got.body.len());
        if self.bytes.saturating_add(size) > MAX_RECORDING {
            self.left_out += 1;
            return;
        }
        self.bytes += size;
        let answer = match result {
            Err(lost) => Err(lost.text.clone()),
            Ok(got) => {
                let seconds = got.retry_after.map(|wait| wait.as_secs().to_string());
                let headers = [("Location", got.location.clone()), ("Retry-After", seconds)];
                let headers = headers.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
                Ok(Answer { status: got.status, headers, body: got.body.clone() })
            }
        };
        self.exchanges.push(Exchange {
            operation: ask.operation,
            at: self.began.elapsed(),
            took,
            method: ask.method.to_string(),
            url: ask.url.to_owned(),
            accept: ask.accept.to_owned(),
            content_type: content_type.to_owned(),
            body: body.to_owned(),
            answer,
        });
    }

    fn text(&self, head: &str, names: &[(&'static str, &str)]) -> Option<Written> {
        let mut disguise = Disguise::default();
        for (class, name) in names.iter().filter(|(_, name)| !name.is_empty()) {
            disguise.stand_in(class, name);
            if *class == "prefix" {
                disguise.prefixes.push((*name).to_owned());
            }
        }
        // Names may occur in sentences before they occur alone.
        for exchange in &self.exchanges {
            disguise.exchange(exchange);
        }
        let mut written = Written { text: head.to_owned(), requests: 0, left_out: self.left_out };
        for (index, exchange) in self.exchanges.iter().enumerate() {
            let text = disguise.exchange(exchange);
            if written.text.len() + text.len() > MAX_RECORDING {
                written.left_out += self.exchanges.len() - index;
                break;
            }
            written.text.push_str(&text);
            written.requests += 1;
        }
        (!self.exchanges.is_empty()).then_some(written)
    }
}

/// A written recording.
pub struct Written {
    /// The whole text.
    pub text: String,
    /// Number of requests in it.
    pub requests: usize,
    /// Number of requests that did not fit.
    pub left_out: usize,
}

/// The placeholders.
#[derive(Default)]
struct Disguise {
    known: HashMap<String, String>,
    counts: HashMap<String, usize>,
    /// Prefixes of vApp names.
    prefixes: Vec<String>,
}

impl Disguise {
    fn exchange(&mut self, exchange: &Exchange) -> String {
        let (at, took) = (exchange.at.as_millis(), exchange.took.as_millis());
        let mut text = format!("\n# {}, {at} ms after the beginning, in {took} ms\n", exchange.operation);
        let mut lines = |mark: char, all: &str| {
            for line in all.lines() {
                let _ = writeln!(text, "{mark} {line}");
            }
        };
        lines('>', &format!("{} {}", exchange.method, self.place(&exchange.url)));
        lines('>', &format!("Accept: {}", exchange.accept));
        if !exchange.content_type.is_empty() {
            lines('>', &format!("Content-Type: {}", exchange.content_type));
        }
        lines('>', &format!("\n{}", self.body(&exchange.body, &exchange.url)));
        match &exchange.answer {
            Err(why) => lines('<', &format!("no answer: {}", self.sentence(why))),
            Ok(Answer { status, headers, body }) => {
                lines('<', &status.to_string());
                for (name, value) in headers {
                    lines('<', &format!("{name}: {}", self.sentence(value)));
                }
                lines('<', &format!("\n{}", self.body(body, &exchange.url)));
            }
        }
        text
    }

    fn body(&mut self, body: &str, url: &str) -> String {
        let body = body.trim();
        if body.is_empty() {
            return String::new();
        }
        if let Ok(document) = xml::read(body)
            && super::errors::web_page(body).is_none()
        {
            let mut out = String::new();
            self.element(document.root_element(), 0, &mut out);
            return out;
        }
        if let Ok(json) = serde_json::from_str::<Value>(body) {
            let path = url.split('?').next().unwrap_or_default();
            return format!("{:#}", self.json(json, "", super::last_part(path)));
        }
        if body.starts_with("grant_type=") {
            let pair = |pair: &str| {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                let value = percent_decode_str(value).decode_utf8_lossy().into_owned();
                format!("{key}={}", self.value(key, "", &value))
            };
            return body.split('&').map(pair).collect::<Vec<_>>().join("&");
        }
        match super::errors::web_page(body) {
            Some(title) => format!("<html><title>{}</title></html>", self.sentence(&title)),
            None => format!("({} bytes that are neither XML nor JSON)", body.len()),
        }
    }

    /// An element with its content, one per line. Documents that were read are not nested deeply.
    fn element(&mut self, node: Node, depth: usize, out: &mut String) {
        let indent = "  ".repeat(depth);
        let prefixed = |uri: Option<&str>, name: &str| match uri.and_then(|uri| node.lookup_prefix(uri)) {
            Some(prefix) if !prefix.is_empty() => format!("{prefix}:{name}"),
            _ => name.to_owned(),
        };
        let local = node.tag_name().name();
        let name = prefixed(node.tag_name().namespace(), local);
        let _ = write!(out, "{indent}<{name}");
        let above = node.parent_element();
        for space in node.namespaces() {
            let is_new = above.is_none_or(|above| !above.namespaces().any(|known| known == space));
            if is_new && space.name() != Some("xml") {
                let prefix = space.name().map(|name| format!(":{name}")).unwrap_or_default();
                let _ = write!(out, " xmlns{prefix}=\"{}\"", escape(space.uri()));
            }
        }
        for attribute in node.attributes() {
            let value = self.value(attribute.name(), local, attribute.value());
            let _ = write!(out, " {}=\"{}\"", prefixed(attribute.namespace(), attribute.name()), escape(&value));
        }
        let text = node.text().map(str::trim).unwrap_or_default();
        let mut children = node.children().filter(Node::is_element).peekable();
        if children.peek().is_some() {
            out.push_str(">\n");
            for child in children {
                self.element(child, depth + 1, out);
            }
            let _ = writeln!(out, "{indent}</{name}>");
        } else if text.is_empty() {
            out.push_str("/>\n");
        } else {
            let within = above.map(|above| above.tag_name().name()).unwrap_or_default();
            let _ = writeln!(out, ">{}</{name}>", escape(&self.value(local, within, text)));
        }
    }

    fn json(&mut self, value: Value, key: &str, within: &str) -> Value {
        match value {
            Value::String(text) => self.value(key, within, &text).into(),
            Value::Array(all) => all.into_iter().map(|value| self.json(value, key, within)).collect(),
            Value::Object(mut all) => {
                let within = if key.is_empty() { within } else { key };
                for (key, value) in &mut all {
                    *value = self.json(value.take(), key, within);
                }
                all.into()
            }
            other => other,
        }
    }

    /// The value of an attribute, an element or a key `name` within an element `within`.
    fn value(&mut self, name: &str, within: &str, text: &str) -> String {
        if text.is_empty() {
            return String::new();
        }
        // What somebody writes for a guest may be a secret.
        let is_of_guest = name == "value" && matches!(within, "Property" | "Value");
        if is_of_guest || SECRETS.contains(&name) {
            // VCD may quote a part of a request.
            let lines = text.lines().map(str::trim).filter(|line| line.len() >= super::MIN_SECRET_LINE);
            for line in lines.filter(|_| name != "stackTrace") {
                self.stand_in("secret", line);
            }
            return self.stand_in("secret", text);
        }
        if text.parse::<IpAddr>().is_ok() || text.parse::<SocketAddr>().is_ok() || is_mac(text) {
            return self.word(text);
        }
        let is_plain = |c: char| c.is_ascii_digit() || matches!(c, '.' | ':' | '-' | '+' | 'T' | 'Z');
        let is_of_item = within == "Item" && name == "Description";
        // The names of rights are VCD's.
        let is_right = within == "values" && name == "name" && text.contains(": ");
        if matches!(text, "true" | "false") || (text.len() <= 32 && text.chars().all(is_plain)) {
            return text.to_owned();
        }
        // The name of a query or a task is its kind.
        let is_kind = name == "name" && matches!(within, "QueryResultRecords" | "Task");
        if VCD_WORDS.contains(&name) || is_of_item || is_right || is_kind {
            return text.to_owned();
        }
        if text.starts_with("http://") || text.starts_with("https://") {
            return self.url(text);
        }
        if text.starts_with("urn:vcloud:") || SENTENCES.contains(&name) || text.starts_with("fleeting-plugin-vcd/") {
            return self.sentence(text);
        }
        let class = match name {
            "name" | "Name" | "containerName" | "objectName" | "entityName" | "ComputerName" | "VAppScopedLocalId" => {
                within.trim_end_matches("Record").to_lowercase()
            }
            "Connection" | "networkName" => "network".into(),
            other => other.trim_end_matches("Name").to_lowercase(),
        };
        self.name(&class, text)
    }

    /// A name. If it begins with a known prefix, its placeholder begins with the placeholder of the prefix.
    fn name(&mut self, class: &str, name: &str) -> String {
        let is_of = |prefix: &&String| name.strip_prefix(prefix.as_str()).is_some_and(|rest| rest.starts_with('-'));
        if self.known.contains_key(name) {
            return self.stand_in(class, name);
        }
        let Some(prefix) = self.prefixes.iter().find(is_of).cloned() else { return self.stand_in(class, name) };
        let count = self.counts.entry("named".into()).or_default();
        *count += 1;
        // As long as the ids in the group's names.
        let rest = format!("x{:07}", *count);
        let new = format!("{}-{rest}", self.stand_in("prefix", &prefix));
        self.known.insert(name.to_owned(), new.clone());
        new
    }

    fn stand_in(&mut self, class: &str, value: &str) -> String {
        if let Some(known) = self.known.get(value) {
            return known.clone();
        }
        let class: String = class.chars().filter(char::is_ascii_alphanumeric).take(MAX_WORD).collect();
        let class = if class.is_empty() { "text" } else { &*class };
        let count = self.counts.entry(class.to_owned()).or_default();
        *count += 1;
        let number = *count;
        let new = match class {
            "uuid" => format!("00000000-0000-4000-8000-{number:012x}"),
            "mac" => format!("02:00:00:00:{:02x}:{:02x}", number / 256 % 256, number % 256),
            "host" => format!("host-{number}.example"),
            _ => format!("{class}-{number}"),
        };
        self.known.insert(value.to_owned(), new.clone());
        new
    }

    /// An IP address. Private addresses keep their end, so that pools keep their size.
    fn address(&mut self, address: IpAddr) -> String {
        match address {
            IpAddr::V4(v4) => {
                let [a, b, c, d] = v4.octets();
                match a {
                    0 | 255 => v4.to_string(),
                    10 | 127 | 172 | 192 => {
                        let net = self.number("net", &format!("{a}.{b}.0.0/16"));
                        Ipv4Addr::new(10, net, c, d).to_string()
                    }
                    _ => Ipv4Addr::new(192, 0, 2, self.number("address", &v4.to_string())).to_string(),
                }
            }
            IpAddr::V6(v6) => {
                Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, self.number("address", &v6.to_string()).into()).to_string()
            }
        }
    }

    fn number(&mut self, class: &str, value: &str) -> u8 {
        let stand_in = self.stand_in(class, value);
        let number = stand_in.rsplit('-').next().and_then(|number| number.parse::<usize>().ok()).unwrap_or_default();
        u8::try_from(number % 256).unwrap_or_default()
    }

    /// A link: another host, and only VCD's words in its path and query.
    fn url(&mut self, url: &str) -> String {
        let Some((scheme, rest)) = url.split_once("://") else { return self.stand_in("text", url) };
        let (host, _) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let place = self.place(url);
        match NAMESPACES.contains(&host) {
            true => format!("{scheme}://{host}{place}"),
            false => format!("https://{}{place}", self.stand_in("host", host)),
        }
    }

    /// The same without scheme and host.
    fn place(&mut self, url: &str) -> String {
        let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
        let rest = rest.get(rest.find(['/', '?']).unwrap_or(rest.len())..).unwrap_or_default();
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut before = "";
        let mut segments = Vec::new();
        for segment in path.split('/') {
            segments.push(self.segment(before, segment));
            before = segment;
        }
        let path = segments.join("/");
        if query.is_empty() {
            return path;
        }
        let pairs = query.split('&').map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let decoded = percent_decode_str(value).decode_utf8_lossy().into_owned();
            match key {
                "filter" => format!("filter={}", self.filter(&decoded)),
                _ if value.chars().all(|c| c.is_ascii_alphanumeric() || ",:_-.".contains(c)) => pair.to_owned(),
                _ => format!("{key}={}", encode(&self.name("text", &decoded))),
            }
        });
        format!("{path}?{}", pairs.collect::<Vec<_>>().join("&"))
    }

    /// A part of a path after `before`: a word of VCD's, or a name of the user.
    fn segment(&mut self, before: &str, segment: &str) -> String {
        let decoded = percent_decode_str(segment).decode_utf8_lossy().into_owned();
        if let Some(known) = self.known.get(&decoded) {
            return encode(known);
        }
        let without_ids = self.ids(&decoded);
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '*' | ':' | '-');
        let is_word = without_ids.len() <= 80 && without_ids.chars().all(is_plain);
        let is_named = ["tenant", "org", "metadata"].contains(&before);
        let has_id = without_ids != decoded;
        match is_word && (has_id || !(is_named || decoded.contains('-'))) {
            true => without_ids,
            false => encode(&self.name("text", &decoded)),
        }
    }

    /// A query filter: comparisons of an attribute with a value, and characters between them.
    fn filter(&mut self, filter: &str) -> String {
        let mut out = String::new();
        let (mut part, mut escaped) = (String::new(), false);
        for c in filter.chars().chain([';']) {
            match c {
                '\\' if !escaped => {
                    escaped = true;
                    continue;
                }
                ';' | ',' | '(' | ')' if !escaped => {
                    out.push_str(&self.comparison(&part));
                    out.push(c);
                    part.clear();
                }
                _ => part.push(c),
            }
            escaped = false;
        }
        out.pop();
        out
    }

    fn comparison(&mut self, part: &str) -> String {
        let Some(at) = part.find(['=', '!', '<', '>']) else { return part.to_owned() };
        let (attribute, rest) = part.split_at(at);
        // As in `==` and `=ge=`.
        let end = if rest.starts_with("=") && !rest.starts_with("==") {
            rest.get(1..).and_then(|r| r.find('=')).map_or(1, |n| n + 2)
        } else {
            2
        };
        let (sign, value) = rest.split_at_checked(end).unwrap_or((rest, ""));
        let (value, star) = value.strip_suffix('*').map_or((value, ""), |value| (value, "*"));
        let (value, dash) =
            if star.is_empty() { (value, "") } else { value.strip_suffix('-').map_or((value, ""), |v| (v, "-")) };
        format!("{attribute}{sign}{}{dash}{star}", encode(&self.value(attribute, "", value)))
    }

    /// A sentence, with placeholders for all known names and everything that looks like one.
    fn sentence(&mut self, text: &str) -> String {
        let text = super::http::tidy(text);
        let is_end = |c: char| c.is_whitespace() || "\"'()[]<>,;=|“”".contains(c);
        // Host names and mail addresses as a whole, before the names in them.
        for word in text.split(is_end).filter(|word| word.contains(['.', '@']) && !word.contains("://")) {
            self.word(word);
        }
        let mut known: Vec<(String, String)> = self.known.iter().map(|(from, to)| (from.clone(), to.clone())).collect();
        known.sort_unstable_by(|(one, _), (other, _)| other.len().cmp(&one.len()).then_with(|| one.cmp(other)));
        // Placeholders are not searched again: they are between control characters until the end.
        let mut marked = text;
        for (at, (from, _)) in known.iter().enumerate() {
            marked = replace_words(&marked, from, &format!("\u{1}{at}\u{2}"));
        }
        let mut out = String::new();
        let mut rest = marked.as_str();
        let mut quoted = false;
        while !rest.is_empty() {
            let end = rest.find(is_end).unwrap_or(rest.len());
            let (word, after) = rest.split_at(end);
            let sign = after.chars().next();
            // A name is usually in quotes.
            let whole = if quoted { rest.find('"').and_then(|end| rest.split_at_checked(end)) } else { None };
            if let Some((name, after)) = whole
                && !name.is_empty()
            {
                out.push_str(&if name.contains('\u{1}') { self.word(name) } else { self.name("text", name) });
                rest = after;
                quoted = false;
                if let Some(after) = rest.strip_prefix('"') {
                    out.push('"');
                    rest = after;
                }
                continue;
            }
            out.push_str(&self.word(word));
            if let Some(sign) = sign {
                out.push(sign);
                quoted = sign == '"' && !quoted;
            }
            rest = after.get(sign.map_or(0, char::len_utf8)..).unwrap_or_default();
        }
        for (at, (_, to)) in known.iter().enumerate() {
            out = out.replace(&format!("\u{1}{at}\u{2}"), to);
        }
        out
    }

    /// A word of a sentence.
    fn word(&mut self, word: &str) -> String {
        let bare = word.trim_end_matches(['.', ':', '!', '?']);
        let end = word.get(bare.len()..).unwrap_or_default();
        if bare.is_empty() || bare.contains('\u{1}') {
            return self.ids(word);
        }
        if bare.contains("://") {
            return self.url(bare) + end;
        }
        if let Ok(address) = bare.parse::<IpAddr>() {
            return self.address(address) + end;
        }
        if let Some((host, port)) = bare.rsplit_once(':')
            && let (Ok(address), Ok(_)) = (host.parse::<IpAddr>(), port.parse::<u16>())
        {
            return self.address(address) + end;
        }
        if is_mac(bare) {
            return self.stand_in("mac", &bare.to_lowercase()) + end;
        }
        let without_ids = self.ids(bare);
        if without_ids != bare {
            return without_ids + end;
        }
        if bare.contains('@') {
            return self.stand_in("user", bare) + end;
        }
        let is_vmwares = ["com.vmware.", "org.", "java", "application/"].iter().any(|start| bare.starts_with(start));
        let parts: Vec<&str> = bare.split('.').collect();
        let is_label = |part: &&str| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        let is_domain =
            parts.last().is_some_and(|last| last.len() >= 2 && last.chars().all(|c| c.is_ascii_alphabetic()));
        if parts.len() >= 2 && is_domain && parts.iter().all(is_label) && !is_vmwares {
            return self.stand_in("host", bare) + end;
        }
        let has_both = bare.chars().any(|c| c.is_ascii_digit()) && bare.chars().any(|c| c.is_ascii_alphabetic());
        if bare.len() > MAX_WORD && has_both && !is_vmwares {
            return self.stand_in("text", bare) + end;
        }
        word.to_owned()
    }

    /// `text` with a placeholder for each UUID.
    fn ids(&mut self, text: &str) -> String {
        let mut out = String::new();
        let mut rest = text;
        let uuid_at = |text: &str, at: usize| text.get(at..at + UUID.len()).is_some_and(is_uuid);
        while let Some(at) = (0..rest.len()).find(|at| uuid_at(rest, *at)) {
            let (before, after) = rest.split_at(at);
            let (id, after) = after.split_at(UUID.len());
            out.push_str(before);
            out.push_str(&self.stand_in("uuid", &id.to_lowercase()));
            rest = after;
        }
        out + rest
    }
}

fn is_uuid(text: &str) -> bool {
    let is_right = |(c, shape): (char, char)| if shape == '-' { c == '-' } else { c.is_ascii_hexdigit() };
    text.len() == UUID.len() && text.chars().zip(UUID.chars()).all(is_right)
}

fn is_mac(text: &str) -> bool {
    let pairs: Vec<&str> = text.split([':', '-']).collect();
    pairs.len() == 6 && pairs.iter().all(|pair| pair.len() == 2 && pair.chars().all(|c| c.is_ascii_hexdigit()))
}

/// `text` with `to` for each `from` that is a word of its own.
fn replace_words(text: &str, from: &str, to: &str) -> String {
    if from.is_empty() || !text.contains(from) {
        return text.to_owned();
    }
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(from) {
        let (before, after) = rest.split_at(at);
        let after = after.get(from.len()..).unwrap_or_default();
        let is_of_word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || matches!(c, '\u{1}' | '\u{2}'));
        let inside =
            is_of_word(before.chars().next_back().or(out.chars().next_back())) || is_of_word(after.chars().next());
        out.push_str(before);
        out.push_str(if inside { from } else { to });
        rest = after;
    }
    out + rest
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\n', "&#10;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use ureq::http::Method;

    fn said(asked: (&str, &str), status: u16, answer: &str, recording: &mut Recording) {
        let (url, body) = asked;
        let content = (!body.is_empty()).then_some(("application/x", body));
        let accept = "application/*+xml;version=38.1";
        let (operation, method) = ("poll", Method::GET);
        let ask = Ask { operation, method, url, accept, bearer: Some("b-earer"), content, timeout: None, known: None };
        let (now, retry_after, location, request_id) = (None, None, Some("https://10.9.8.7/x".to_owned()), None);
        let body = answer.to_owned();
        let got = Received { status, now, retry_after, location, is_for_https: false, request_id, digest: None, body };
        recording.add(&ask, &Ok(got), Duration::from_millis(7));
    }

    const NAMES: [(&str, &str); 5] =
        [("host", "vcd.acme.com"), ("org", "acme"), ("network", "acme-net"), ("prefix", "ci"), ("group", "linux")];

    /// The answer to a request as it is written.
    fn shown(answer: &str) -> String {
        let mut recording = Recording::new();
        said(("https://vcd.acme.com/api/x", ""), 200, answer, &mut recording);
        let text = recording.text("", &NAMES).unwrap().text;
        let answer = text.lines().skip_while(|line| *line != "< 200").skip(3).map(|line| &line[2..]);
        answer.map(str::trim).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn what_is_not_known_to_be_vcds_own_has_a_stand_in() {
        let id = "1b2c3d4e-0000-4111-8222-333344445555";
        for (answer, expected) in [
            // Names by their kind, the same wherever it comes; VCD's words, numbers and dates as they are.
            (
                &*format!(
                    "<Vm name='ci-1' status='POWERED_ON' id='urn:vcloud:vm:{id}' href='https://vcd.acme.com/api/vApp/vm-{id}'/>"
                ),
                "<Vm name=\"prefix-1-x0000001\" status=\"POWERED_ON\" id=\"urn:vcloud:vm:00000000-0000-4000-8000-000000000001\" \
                 href=\"https://host-1.example/api/vApp/vm-00000000-0000-4000-8000-000000000001\"/>",
            ),
            (
                "<R><VMRecord ownerName='bob' name='a' memoryMB='4096' dateCreated='2024-01-02T03:04:05.678+02:00'/><Owner>bob</Owner></R>",
                "<R> <VMRecord ownerName=\"owner-1\" name=\"vm-1\" memoryMB=\"4096\" \
                 dateCreated=\"2024-01-02T03:04:05.678+02:00\"/> <Owner>owner-1</Owner> </R>",
            ),
            // Addresses: of private networks the end stays.
            (
                "<N><A>10.1.2.3</A><A>10.1.9.9</A><A>192.168.2.3</A><A>8.8.8.8</A><A>255.255.255.0</A><A>fd00::1</A><M>00:50:56:01:02:03</M><P>10.1.2.3:443</P></N>",
                "<N> <A>10.1.2.3</A> <A>10.1.9.9</A> <A>10.2.2.3</A> <A>192.0.2.1</A> <A>255.255.255.0</A> <A>2001:db8::2</A> \
                 <M>02:00:00:00:00:01</M> <P>10.1.2.3</P> </N>",
            ),
            // Secrets and what somebody has written are not looked at.
            (
                "<G><CustomizationScript>echo 1</CustomizationScript><AdminPassword>1234</AdminPassword><Value>my text</Value></G>",
                "<G> <CustomizationScript>secret-1</CustomizationScript> <AdminPassword>secret-2</AdminPassword> \
                 <Value>value-1</Value> </G>",
            ),
            // Sentences keep VCD's words.
            (
                &*format!(
                    "<Error majorErrorCode='400' stackTrace='at com.acme.Trace' message='[ {id} ] The VCD entity network \"other net\" of acme \
                     and acme-net on esx1.dc.acme.com (10.1.2.3) by bob@acme.com \
                     of 0123456789abcdefghijklmno does not exist. com.vmware.vcloud.entity.vm:{id}'/>"
                ),
                "<Error majorErrorCode=\"400\" stackTrace=\"secret-1\" message=\"[ 00000000-0000-4000-8000-000000000001 ] The VCD \
                 entity network &quot;text-1&quot; of org-1 and network-1 on host-3.example (10.1.2.3) by user-1 \
                 of text-2 does not exist. com.vmware.vcloud.entity.vm:00000000-0000-4000-8000-000000000001\"/>",
            ),
            // Namespaces stay, as prefixes do.
            (
                "<v:A xmlns:v='http://www.vmware.com/vcloud/v1.5' v:type='x'/>",
                "<v:A xmlns:v=\"http://www.vmware.com/vcloud/v1.5\" v:type=\"x\"/>",
            ),
            (
                r#"{"access_token": "abc", "expires_in": 60, "values": [{"name": "vApp: Delete"}, {"name": "own"}]}"#,
                r#"{ "access_token": "secret-1", "expires_in": 60, "values": [ { "name": "vApp: Delete" }, { "name": "values-1" } ] }"#,
            ),
            ("<html><title>Sign in to acme</title>", "<html><title>the answer is a web page, &quot;"),
            ("plain words", "(11 bytes that are neither XML nor JSON)"),
        ] {
            let shown = shown(answer);
            assert!(
                shown.starts_with(
                    &expected.replace("&quot;", if answer.starts_with("<html") { "\"" } else { "&quot;" })
                ),
                "{shown}"
            );
            assert!(!shown.contains("acme"), "{shown}");
        }
    }

    #[test]
    fn guest_properties_are_secrets_in_any_form() {
        for value in ["48392017", "https://h.example/services/AbCdEf123?token=AbC123", "true"] {
            for answer in [
                format!("<o:Property xmlns:o='urn:x' o:key='k' o:value='{value}'/>"),
                format!("<o:Property xmlns:o='urn:x' o:key='k'><o:Value o:value='{value}'/></o:Property>"),
            ] {
                let shown = shown(&answer);
                assert!(shown.contains("value=\"secret-1\"") && !shown.contains(value), "{shown}");
            }
        }
    }

    #[test]
    fn requests_have_stand_ins_in_their_places_and_nothing_of_the_session() {
        let mut recording = Recording::new();
        let id = "1b2c3d4e-0000-4111-8222-333344445555";
        for url in [
            format!(
                "https://vcd.acme.com/api/query?type=vm&page=1&fields=name,href&filter=(vdc==https%3A%2F%2Fvcd.acme.com%2Fapi%2Fvdc%2F{id};name==a%5C%28b%5C%29;isBusy==false;containerName==ci-*)"
            ),
            "https://vcd.acme.com/oauth/tenant/acme/token".into(),
            "https://vcd.acme.com/api/vApp/x/metadata/my%20own-key".into(),
        ] {
            said((&url, "grant_type=refresh_token&refresh_token=t-oken"), 302, "", &mut recording);
        }
        let text = recording.text("head\n", &NAMES).unwrap().text;
        for line in [
            "head",
            "> GET /api/query?type=vm&page=1&fields=name,href&filter=(vdc==https%3A%2F%2Fhost-1.example%2Fapi%2Fvdc%2F00000000-0000-4000-8000-000000000001;name==text-1;isBusy==false;containerName==prefix-1-*)",
            "> GET /oauth/tenant/org-1/token",
            "> GET /api/vApp/x/metadata/text-2",
            "> grant_type=refresh_token&refresh_token=secret-1",
            "< Location: https://host-2.example/x",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
        for secret in ["earer", "oken=t", "acme", "10.9.8.7", "own-key", id] {
            assert!(!text.contains(secret), "{secret}: {text}");
        }
    }

    #[test]
    fn a_recording_ends_at_eight_megabytes() {
        let mut recording = Recording::new();
        let long = format!("<A>{}</A>", "<B/>".repeat(MAX_RECORDING / 16));
        for _ in 0..6 {
            said(("https://x/api", ""), 200, &long, &mut recording);
        }
        let written = recording.text("", &[]).unwrap();
        assert!(written.text.len() <= MAX_RECORDING && written.requests > 0, "{}", written.requests);
        assert_eq!(written.requests + written.left_out, 6);
        assert!(Recording::new().text("", &[]).is_none());
    }
}
