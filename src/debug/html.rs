//! The pages for a browser: one document without external parts. Values from outside are escaped.

use super::{Fact, SHOWN_EVENTS, clock, facts, life_facts, short, since, words};
use crate::driver::last_part;
use crate::group::{Phase, Time};
use crate::journal::{Entry, HISTORY, SAMPLE_PAUSE};
use crate::status::Status;
use crate::timestamp::timestamp;
use crate::version::with_addresses;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::fmt::{self, Display, Formatter, Write};
use std::sync::LazyLock;
use std::time::Duration;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Size of the chart in its own units.
const CHART: (u64, u64) = (1000, 160);
/// Number of time labels below the chart.
const TIMES: u32 = 4;
/// A shorter time is shown with seconds.
const SHORT: Duration = Duration::from_secs(10 * 60);

/// The content security policy allows only this style, this script, and requests to this server.
pub fn policy() -> &'static str {
    static POLICY: LazyLock<String> = LazyLock::new(|| {
        let hash = |text: &str| STANDARD.encode(ring::digest::digest(&ring::digest::SHA256, text.as_bytes()));
        format!(
            "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; connect-src 'self'; img-src data:; base-uri 'none'; \
             form-action 'none'; frame-ancestors 'none'",
            hash(STYLE),
            hash(SCRIPT)
        )
    });
    &POLICY
}

/// Text, escaped for HTML.
struct Safe<T>(T);

impl<T: Display> Display for Safe<T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(Escaper(f), "{}", self.0)
    }
}

struct Escaper<'a, 'f>(&'a mut Formatter<'f>);

impl Write for Escaper<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            match c {
                '&' => self.0.write_str("&amp;"),
                '<' => self.0.write_str("&lt;"),
                '>' => self.0.write_str("&gt;"),
                '"' => self.0.write_str("&quot;"),
                '\'' => self.0.write_str("&#39;"),
                c if c.is_control() => self.0.write_str(" "),
                c => self.0.write_char(c),
            }?;
        }
        Ok(())
    }
}

/// A document around `main`.
fn document(title: &str, main: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{}</title>\n\
         <link rel=\"icon\" href=\"data:,\">\n<style>{STYLE}</style>\n\
         <noscript><meta http-equiv=\"refresh\" content=\"10\"></noscript>\n</head>\n<body>\n\
         <div id=\"lost\" hidden></div>\n<main>\n{main}</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n",
        Safe(title)
    )
}

/// A page for a path that does not exist.
pub fn missing(text: &str) -> String {
    document("not found", &format!("<h1>{}</h1>\n<p><a href=\"/\">all instances</a></p>\n", Safe(text)))
}

/// All on one page.
pub fn overview(status: &Status<'_>) -> String {
    let about = status.about;
    let mut main = format!(
        "<h1>{}</h1>\n<p>{} {}, up {}, {} UTC. See also <a href=\"/api/status\">JSON</a>, \
         <a href=\"/metrics\">metrics</a>, <a href=\"/healthz\">health</a>.</p>\n<dl>\n",
        Safe(&about.group),
        env!("CARGO_PKG_NAME"),
        env!("CARGO_PKG_VERSION"),
        short(Duration::from_millis(status.now.0)),
        timestamp(status.wall).get(..19).unwrap_or_default().replace('T', " "),
    );
    for Fact { label, words, fix } in facts(status) {
        let class = match (fix.is_empty(), label) {
            (true, "status") => " class=\"good\"",
            (true, _) => "",
            (false, _) => " class=\"bad\"",
        };
        let link = match fix.is_empty() || label != "status" {
            true => String::new(),
            false => format!(" <a href=\"{}\">What to do</a>", Safe(with_addresses(fix))),
        };
        line(&mut main, format_args!("<dt>{label}</dt><dd{class}>{}{link}</dd>", Safe(words)));
    }
    main += "</dl>\n";
    chart(&mut main, status);
    table(&mut main, status);
    events(&mut main, status);
    document(&format!("{} ({})", about.group, status.standing.instances.used), &main)
}

fn line(main: &mut String, text: fmt::Arguments<'_>) {
    // Writing to a String never fails.
    let _ = writeln!(main, "{text}");
}

/// The number of a phase's colour.
fn colour(phase: Phase) -> usize {
    Phase::ALL.iter().position(|other| *other == phase).unwrap_or_default()
}

/// Instances by phase over time, stacked.
fn chart(main: &mut String, status: &Status<'_>) {
    let known = status.views.iter().filter(|view| !view.undecided);
    let present = crate::journal::count(known.map(|view| view.phase));
    let first = Time(status.now.0.saturating_sub(HISTORY.as_millis() as u64));
    // The state before the history, each change in it, and the current state.
    let samples = || status.journal.samples.iter();
    let before = samples().take_while(|sample| sample.at <= first).last();
    let mut points = vec![(first, before.map_or_else(Default::default, |sample| sample.counts))];
    points.extend(samples().filter(|sample| sample.at > first).map(|sample| (sample.at, sample.counts)));
    points.push((status.now, present));
    let span = (status.now - first).max(SAMPLE_PAUSE);
    let top = points.iter().map(|(_, counts)| counts.iter().sum::<u16>()).max().unwrap_or(0).max(1);
    let span_ms = span.as_millis() as u64;
    let x = |time: Time| CHART.0.saturating_sub(CHART.0 * (status.now - time).as_millis() as u64 / span_ms);
    let y = |count: u16| CHART.1 - CHART.1 * u64::from(count) / u64::from(top);

    line(main, format_args!("<h2>Instances by phase, last {} (times in UTC)</h2>", short(span)));
    let (width, height) = CHART;
    line(main, format_args!("<div class=\"chart\"><div class=\"counts\"><span>{top}</span><span>0</span></div>"));
    line(main, format_args!("<svg viewBox=\"0 0 {width} {height}\" preserveAspectRatio=\"none\" role=\"img\">"));
    line(main, format_args!("<title>Instances by phase over time, at most {top}</title>"));
    let mut shown = Vec::new();
    for (number, _) in Phase::ALL.iter().enumerate() {
        let below = |counts: &[u16]| counts.iter().take(number).sum::<u16>();
        let own = |counts: &[u16]| counts.get(number).copied().unwrap_or(0);
        if points.iter().all(|(_, counts)| own(counts) == 0) {
            continue;
        }
        shown.push(number);
        // Steps: each sample is valid until the next. A sample without a change adds no point.
        let (mut upper, mut lower) = (String::new(), Vec::new());
        let mut before = None;
        for (index, (time, counts)) in points.iter().enumerate() {
            let now = (below(counts), below(counts) + own(counts));
            if before == Some(now) && index + 1 < points.len() {
                continue;
            }
            let at = x(*time);
            if let Some((low, high)) = before {
                let _ = write!(upper, "{at},{} ", y(high));
                lower.push((at, y(low)));
            }
            let _ = write!(upper, "{at},{} ", y(now.1));
            lower.push((at, y(now.0)));
            before = Some(now);
        }
        for (at, low) in lower.iter().rev() {
            let _ = write!(upper, "{at},{low} ");
        }
        line(main, format_args!("<polygon class=\"p{number}\" points=\"{}\"/>", upper.trim_end()));
    }
    *main += "</svg>\n<div class=\"times\">";
    for part in 0..=TIMES {
        let time = timestamp(status.wall(first + span * part / TIMES));
        let time = if span < SHORT { time.get(11..19) } else { time.get(11..16) };
        let _ = write!(main, "<span>{}</span>", time.unwrap_or_default());
    }
    *main += "</div></div>\n<p class=\"key\">";
    for ((number, phase), count) in Phase::ALL.iter().enumerate().zip(present).filter(|((n, _), _)| shown.contains(n)) {
        let _ = write!(main, "<span><span class=\"mark p{number}\"></span>{} {count}</span> ", phase.name());
    }
    *main += "</p>\n";
}

fn table(main: &mut String, status: &Status<'_>) {
    *main += "<h2>Instances</h2>\n<table id=\"instances\">\n<thead><tr><th>name<th>phase<th>address<th>age<th>since\
              <th>failed<th>waits for</tr></thead>\n<tbody>\n";
    for view in &status.views {
        let name = Safe(&view.name);
        let address = view.address.map(|address| address.to_string()).unwrap_or_default();
        let retries = if view.retries == 0 { String::new() } else { view.retries.to_string() };
        let next = view.next_try.filter(|_| view.waits_for == "the next try");
        let next = next.map(|left| format!(", in {}", short(left))).unwrap_or_default();
        let doubt = if view.undecided { " (looking up its owner)" } else { "" };
        let stuck = view.stuck.map(|time| format!(", <b>stuck for {}</b>", short(time))).unwrap_or_default();
        let bad = if view.stuck.is_some() { " class=\"bad\"" } else { "" };
        let error = view.error.as_deref().map(|error| format!("<span class=\"why\">{}</span>", Safe(error)));
        line(
            main,
            format_args!(
                "<tr{bad}><td><a href=\"/instances/{name}\">{name}</a><td><span class=\"mark p{}\"></span>{}\
                 <td>{address}<td class=\"n\" data-l=\"age\">{}<td class=\"n\" data-l=\"since\">{}\
                 <td class=\"n\" data-l=\"failed\">{retries}<td class=\"w\" data-l=\"waits for\">{}{next}{doubt}{stuck}{}</tr>",
                colour(view.phase),
                view.phase.name(),
                short(view.age),
                since(status, view.key),
                view.waits_for,
                error.unwrap_or_default(),
            ),
        );
    }
    *main += "</tbody>\n</table>\n";
    if status.views.is_empty() {
        *main += "<p>no instances</p>\n";
    }
}

/// Only the table of instances.
pub fn instances(status: &Status<'_>) -> String {
    let mut main = format!("<h1>{}</h1>\n<p><a href=\"/\">overview</a></p>\n", Safe(&status.about.group));
    table(&mut main, status);
    document(&format!("{} ({})", status.about.group, status.standing.instances.used), &main)
}

fn events(main: &mut String, status: &Status<'_>) {
    let all = status.journal.events.len() as u64 + status.journal.dropped;
    line(main, format_args!("<h2>Events, newest first ({all} in total)</h2>"));
    *main += "<table id=\"events\">\n<tbody>\n";
    for entry in status.journal.events.iter().rev().take(SHOWN_EVENTS) {
        let name = entry.name.as_deref().unwrap_or_default();
        line(
            main,
            format_args!(
                "<tr><td>{}<td class=\"n\"><a href=\"/instances/{name}\">{name}</a><td{}>{}</tr>",
                clock(status, entry.at),
                class(entry),
                Safe(words(status, entry)),
                name = Safe(name),
            ),
        );
    }
    *main += "</tbody>\n</table>\n";
}

fn class(entry: &Entry) -> &'static str {
    if entry.level <= log::Level::Warn { " class=\"w bad\"" } else { " class=\"w\"" }
}

/// All steps of the instances with this name.
pub fn instance(status: &Status<'_>, name: &str) -> String {
    let mut main = format!("<h1>{}</h1>\n<p><a href=\"/\">all instances</a></p>\n", Safe(name));
    for life in status.journal.lives_of(name) {
        main += "<dl>\n";
        for (label, value) in life_facts(status, life) {
            line(&mut main, format_args!("<dt>{label}</dt><dd>{}</dd>", Safe(value)));
        }
        main += "</dl>\n<table>\n<thead><tr><th>time<th>operation<th>took<th>what<th>task</tr></thead>\n<tbody>\n";
        if life.dropped > 0 {
            line(&mut main, format_args!("<tr><td>…<td><td><td>{} earlier steps are not kept<td></tr>", life.dropped));
        }
        for entry in &life.steps {
            line(
                &mut main,
                format_args!(
                    "<tr><td>{}<td>{}<td class=\"n\">{}<td{}>{}<td class=\"w\">{}</tr>",
                    clock(status, entry.at),
                    entry.operation.unwrap_or_default(),
                    super::text::took(entry),
                    class(entry),
                    Safe(words(status, entry)),
                    Safe(entry.task.as_deref().map(last_part).unwrap_or_default()),
                ),
            );
        }
        main += "</tbody>\n</table>\n";
    }
    document(name, &main)
}
