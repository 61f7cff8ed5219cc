//! The pages as plain text, for a terminal of a given width. The plugin adds only ASCII to VCD's texts, and all control
//! characters are replaced.

use super::{SHOWN_EVENTS, clock, facts, life_facts, short, since, tenths, words};
use crate::driver::last_part;
use crate::journal::{Entry, Life};
use crate::status::Status;
use crate::timestamp::timestamp;
use crate::version::with_addresses;
use std::fmt::Write;

/// The column of the text after a label above the table, and of its further lines.
const INDENT: usize = 11;
/// Maximum number of lines of a text. The rest is cut.
const MAX_LINES: usize = 4;
/// A word that is longer than a line is not cut into shorter pieces than this, except its last one.
const MIN_PIECE: usize = 8;

/// All on one screen.
pub fn overview(status: &Status<'_>, width: usize) -> String {
    let about = status.about;
    let mut page = String::new();
    let head = format!(
        "{} {}, group {}, up {}, {} UTC",
        env!("CARGO_PKG_NAME"),
        env!("CARGO_PKG_VERSION"),
        about.group,
        short(std::time::Duration::from_millis(status.now.0)),
        timestamp(status.wall).get(..19).unwrap_or_default().replace('T', " "),
    );
    wrap(&mut page, "", &head, 2, width);
    for fact in facts(status) {
        let bad = !fact.fix.is_empty();
        let label = format!("{}{:10}", if bad { "!" } else { " " }, fact.label);
        wrap(&mut page, &label, &fact.words, INDENT, width);
        if bad && fact.label == "status" {
            // Never wrapped, so that it can be copied.
            let _ = writeln!(page, "{}{}", " ".repeat(INDENT), with_addresses(fact.fix));
        }
    }
    page.push('\n');
    table(&mut page, status, width);
    page.push('\n');
    let all = status.journal.events.len() as u64 + status.journal.dropped;
    let _ = writeln!(page, "EVENTS, newest first ({all} in total; an instance: /instances/NAME)");
    for entry in status.journal.events.iter().rev().take(SHOWN_EVENTS) {
        let mut label = clock(status, entry.at) + "  ";
        if let Some(name) = &entry.name {
            label += name;
            label += "  ";
        }
        wrap(&mut page, &label, &words(status, entry), 10, width);
    }
    page
}

/// Only the instances.
pub fn instances(status: &Status<'_>, width: usize) -> String {
    let mut page = String::new();
    table(&mut page, status, width);
    page
}

/// The instances, each on one line if it fits. Its error is in the lines below.
fn table(page: &mut String, status: &Status<'_>, width: usize) {
    let rows: Vec<[String; 6]> = status
        .views
        .iter()
        .map(|view| {
            let address = view.address.map_or_else(|| "-".into(), |address| address.to_string());
            let retries = if view.retries == 0 { "-".into() } else { view.retries.to_string() };
            let phase = view.phase.name().to_owned();
            [view.name.to_string(), phase, address, short(view.age), since(status, view.key), retries]
        })
        .collect();
    let heads = ["NAME", "PHASE", "ADDRESS", "AGE", "SINCE", "FAILED"];
    let mut widths = heads.map(str::len);
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.len().max(*width);
        }
    }
    let line = |cells: &[String; 6]| {
        let mut line = String::new();
        for (at, (cell, width)) in cells.iter().zip(widths).enumerate() {
            // Numbers are aligned right.
            let _ = if at < 3 { write!(line, "{cell:width$}  ") } else { write!(line, "{cell:>width$}  ") };
        }
        line
    };
    page.push_str(&line(&heads.map(str::to_owned)));
    page.push_str("WAITS FOR\n");
    for (view, row) in status.views.iter().zip(&rows) {
        let mut waits = view.waits_for.to_owned();
        if let (Some(left), "the next try") = (view.next_try, view.waits_for) {
            waits = format!("the next try, in {}", short(left));
        }
        if view.undecided {
            waits += " (looking up its owner)";
        }
        if let Some(stuck) = view.stuck {
            waits += &format!(", stuck for {}", short(stuck));
        }
        let line = line(row);
        if line.len() + waits.len() <= width {
            page.push_str((line + &waits).trim_end());
            page.push('\n');
        } else {
            page.push_str(line.trim_end());
            page.push('\n');
            wrap(page, "    ", &format!("waits for {waits}"), 6, width);
        }
        if let Some(error) = &view.error {
            wrap(page, "!   ", error, 6, width);
        }
    }
    if rows.is_empty() {
        page.push_str("(no instances)\n");
    }
}

/// All steps of the instances with this name.
pub fn instance(status: &Status<'_>, name: &str, width: usize) -> String {
    let mut page = String::new();
    for life in status.journal.lives_of(name) {
        if !page.is_empty() {
            page.push('\n');
        }
        for (label, value) in life_facts(status, life) {
            wrap(&mut page, &format!("{label:22}"), &value, 22, width);
        }
        page.push('\n');
        if life.dropped > 0 {
            let _ = writeln!(page, "({} earlier steps are not kept)", life.dropped);
        }
        steps(&mut page, status, life, width);
    }
    page
}

fn steps(page: &mut String, status: &Status<'_>, life: &Life, width: usize) {
    for entry in &life.steps {
        let label = format!("{}  {:14}  {:>8}  ", clock(status, entry.at), operation(entry), took(entry));
        let mut said = words(status, entry);
        if let Some(task) = &entry.task {
            let _ = write!(said, " [task {}]", last_part(task));
        }
        wrap(page, &label, &said, 10, width);
    }
}

/// The operation, or a dash.
pub fn operation(entry: &Entry) -> &'static str {
    entry.operation.unwrap_or("-")
}

/// The duration, or a dash.
pub fn took(entry: &Entry) -> String {
    match entry.took {
        Some(took) if took.as_secs() < 120 => tenths(took) + "s",
        Some(took) => short(took),
        None => "-".into(),
    }
}

/// `label` and `text` in at most [`MAX_LINES`] lines of at most `width` columns. All lines except the first begin at
/// `indent`.
pub fn wrap(page: &mut String, label: &str, text: &str, indent: usize, width: usize) {
    let mut lines = vec![label.to_owned()];
    let mut used = label.chars().count();
    let mut fresh = true;
    for word in text.split_whitespace() {
        let mut word: String = word.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        loop {
            let length = word.chars().count();
            let gap = if fresh { "" } else { " " };
            let room = width.saturating_sub(used + gap.len());
            let Some(line) = lines.last_mut() else { return };
            if length <= room {
                *line += gap;
                *line += &word;
                (used, fresh) = (used + gap.len() + length, false);
                break;
            }
            if indent + length > width && room >= MIN_PIECE {
                *line += gap;
                line.extend(word.chars().take(room));
                word = word.chars().skip(room).collect();
            }
            lines.push(" ".repeat(indent));
            (used, fresh) = (indent, true);
        }
    }
    if lines.len() > MAX_LINES {
        lines.truncate(MAX_LINES);
        if let Some(last) = lines.last_mut() {
            *last = last.chars().take(width.saturating_sub(4)).collect();
            *last += " ...";
        }
    }
    for line in lines {
        page.push_str(line.trim_end());
        page.push('\n');
    }
}
