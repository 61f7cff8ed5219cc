//! The history: a ring of events, the steps of each instance, samples of the number of instances by phase, and the
//! counters. The driver passes everything to it, the time included. It does no I/O and changes nothing.

use crate::cloud::Href;
#[cfg(doc)]
use crate::group::View;
use crate::group::{Cause, Event, Glance, Name, Phase, Time};
use crate::tally::Tally;
use log::Level;
use std::sync::Arc;
use std::time::Duration;

/// Number of events that are kept.
pub const MAX_EVENTS: usize = 200;
/// Number of steps of an instance that are kept, the newest ones.
pub const MAX_STEPS: usize = 64;
/// Number of deleted instances that are kept.
pub const MAX_ENDED: usize = 64;
/// Number of existing instances whose steps are kept. Further ones have only events, and all are counted.
pub const MAX_LIVES: usize = 512;
/// Maximum length of an event's text, in bytes.
pub const MAX_TEXT: usize = 1000;
/// The history of instances by phase covers this time.
pub const HISTORY: Duration = Duration::from_secs(2 * 60 * 60);
/// Changes within this time are one sample of the history.
pub const SAMPLE_PAUSE: Duration = Duration::from_secs(1);
/// Maximum number of samples. Beyond it, every second sample of the older half is dropped.
pub const MAX_SAMPLES: usize = 400;
/// An instance that is in a temporary phase for this time is logged; again after twice this time, and so on.
pub const FIRST_WORD: Duration = Duration::from_secs(60);
/// Maximum pause between two such log lines.
pub const WORD_PAUSE_MAX: Duration = Duration::from_secs(60 * 60);
/// A repeated event is logged again after this time, and at its 10th, 100th, … occurrence.
pub const REPEAT_PAUSE: Duration = Duration::from_secs(60 * 60);

/// One event, or one step of an instance.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Time of the last occurrence.
    pub at: Time,
    /// Time of the first occurrence.
    pub first: Time,
    /// Number of occurrences.
    pub times: u32,
    /// Its severity.
    pub level: Level,
    /// The instance, if it is about one.
    pub name: Option<Name>,
    /// The old phase, if it changed.
    pub from: Option<Phase>,
    /// The new phase, if it changed.
    pub phase: Option<Phase>,
    /// What happened, and what follows.
    pub text: Arc<str>,
    /// The operation that caused it.
    pub operation: Option<&'static str>,
    /// VCD's task.
    pub task: Option<Href>,
    /// Duration of the operation or task. For a change of phase without either, the time in the old phase.
    pub took: Option<Duration>,
    /// The error.
    pub error: Option<Arc<str>>,
    /// [`View::key`] of the instance.
    key: Option<u64>,
    /// Time of the last log line about it.
    logged: Time,
}

/// The facts about an operation that has ended with an input to the group.
#[derive(Clone, Debug)]
pub struct Note {
    /// The instance ([`View::key`]), if it is about one.
    pub key: Option<u64>,
    /// The operation.
    pub operation: &'static str,
    /// The task that it started, or that ended.
    pub task: Option<Href>,
    /// Its duration.
    pub took: Duration,
    /// Its error.
    pub error: Option<Arc<str>>,
}

/// The kind of an input to the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// Nothing: a call of the host, or the time.
    Nothing,
    /// The states of tasks.
    Tasks,
    /// A poll.
    Poll,
    /// One login port.
    Port,
}

/// The history of one instance.
#[derive(Clone, Debug)]
pub struct Life {
    /// The id.
    pub name: Name,
    /// [`View::key`].
    pub key: u64,
    /// When it was accepted or found.
    pub began: Time,
    /// Its phase.
    pub phase: Phase,
    /// Start of the phase.
    pub since: Time,
    /// First create request to VCD.
    pub create_asked: Option<Time>,
    /// When it became running in this process for the first time.
    pub created: Option<Time>,
    /// When its delete was first wanted, and why.
    pub removal: Option<(Time, Cause)>,
    /// First delete request to VCD.
    pub delete_asked: Option<Time>,
    /// When VCD no longer had it.
    pub ended: Option<Time>,
    /// Only counted: there were [`MAX_LIVES`] when it began.
    brief: bool,
    /// The steps, oldest first.
    pub steps: Vec<Entry>,
    /// Number of dropped steps.
    pub dropped: u64,
    /// This process created it. Else it was found.
    made_here: bool,
    /// The host knows it.
    reported: bool,
    /// It was complete when GitLab Runner got it.
    taken: bool,
    /// The task that the plugin waits for: its link, operation and start.
    task: Option<Box<(Href, &'static str, Time)>>,
    /// It has failed since it was last at rest: later steps may be repeats.
    trouble: bool,
    retries: u32,
    failed_creates: u32,
    waits_for: &'static str,
    waits_since: Time,
    /// Time between progress and its notice, so far.
    looked: Time,
    /// When it is logged if it is still in a temporary phase.
    noticed: Duration,
    /// When it is mentioned if it is still on its way.
    word_at: Time,
}

/// The phase of an instance has changed.
struct Change {
    key: u64,
    from: Option<Phase>,
    to: Phase,
    /// Time in the old phase.
    stayed: Duration,
}

/// Number of instances in each phase, in the order of [`Phase::ALL`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The time.
    pub at: Time,
    /// The numbers.
    pub counts: [u16; Phase::ALL.len()],
}

/// The whole history.
#[derive(Default)]
pub struct Journal {
    /// Events, oldest first.
    pub events: Vec<Entry>,
    /// Number of dropped events.
    pub dropped: u64,
    /// Samples, oldest first.
    pub samples: Vec<Sample>,
    /// The counters.
    pub tally: Tally,
    /// By key.
    lives: Vec<Life>,
    ended: Vec<Life>,
}

impl Journal {
    /// Processes one input to the group: its kind, the operations that it ended, the events of the group, and the
    /// current state of the instances, in the order of their keys. Returns the entries to log.
    pub fn turn<'a, Look>(
        &mut self,
        now: Time,
        shown: Shown,
        mut notes: Vec<Note>,
        said: Vec<Event>,
        looks: &'a [Look],
    ) -> Vec<Entry>
    where
        Glance<'a>: From<&'a Look>,
    {
        let views = || looks.iter().map(Glance::from);
        let mut changed: Vec<Change> = Vec::new();
        for view in views().filter(|view| !view.undecided) {
            let (at, before) = match self.lives.binary_search_by_key(&view.key, |life| life.key) {
                Ok(at) => (at, self.lives.get(at).map(|life| (life.phase, life.since))),
                // The group shows it for a while after its end.
                Err(_) if view.phase == Phase::Deleted => continue,
                Err(at) => {
                    self.tally.leftovers += u64::from(!view.reported && view.cause.is_some());
                    let brief = self.lives.len() >= MAX_LIVES;
                    self.lives.insert(at, Life { brief, ..Life::new(&view, now) });
                    (at, None)
                }
            };
            let Some(life) = self.lives.get_mut(at) else { continue };
            let from = before.map(|(phase, _)| phase);
            if from != Some(view.phase) {
                let stayed = before.map_or(Duration::ZERO, |(_, since)| now - since);
                changed.push(Change { key: view.key, from, to: view.phase, stayed });
            }
            life.follow(&view, from.is_none(), now, shown, &notes, &mut self.tally);
        }
        // The group's views are in the order of their keys.
        let here = |key: u64| looks.binary_search_by_key(&key, |look| Glance::from(look).key).is_ok();
        for life in self.lives.iter_mut().filter(|life| !here(life.key)) {
            // The group forgets a leftover as soon as it no longer exists.
            if life.phase != Phase::Deleted {
                let stayed = now - life.since;
                changed.push(Change { key: life.key, from: Some(life.phase), to: Phase::Deleted, stayed });
                life.enter(Phase::Deleted, now, &mut self.tally);
            }
        }
        for note in &mut notes {
            self.settle(note, now);
        }

        let mut log = Vec::new();
        for event in said {
            let key = event.name.as_ref().and_then(|name| self.key_of(name, &notes));
            let change = changed.iter().position(|change| Some(change.key) == key);
            let change = change.map(|at| changed.remove(at));
            let at = notes.iter().position(|note| note.key == key && (key.is_some() || event.name.is_none()));
            let note = at.map(|at| notes.swap_remove(at));
            let mut entry = Entry::new(now, event.level, cut(&event.text, MAX_TEXT));
            (entry.key, entry.name, entry.phase) = (key, event.name, event.phase);
            entry.explain(note, change);
            log.extend(self.record(entry, false));
        }
        for change in changed {
            let key = change.key;
            let Some(life) = self.life(key) else { continue };
            let text = match life.waits_for {
                "" => String::new(),
                waits_for => format!("waits for {waits_for}"),
            };
            let at = notes.iter().position(|note| note.key == Some(key));
            let note = at.map(|at| notes.swap_remove(at));
            let mut entry = Entry::new(now, Level::Info, &text);
            (entry.key, entry.name) = (Some(key), Some(life.name.clone()));
            entry.explain(note, Some(change));
            log.extend(self.record(entry, false));
        }
        // Operations that changed nothing are only part of the instance's steps.
        for note in notes {
            let Some(life) = note.key.and_then(|key| self.life_mut(key)) else { continue };
            let mut entry = Entry::new(now, Level::Debug, "");
            (entry.key, entry.name) = (note.key, Some(life.name.clone()));
            entry.explain(Some(note), None);
            life.step(entry);
        }
        for life in self.lives.extract_if(.., |life| life.phase == Phase::Deleted) {
            push(&mut self.ended, life, MAX_ENDED);
        }
        log.extend(self.words(now));
        self.sample(now, count(views().filter(|view| !view.undecided).map(|view| view.phase)));
        log
    }

    /// The next time at which [`Journal::turn`] must be called.
    pub fn due(&self) -> Option<Time> {
        self.lives.iter().filter(|life| !life.phase.rests()).map(|life| life.word_at).min()
    }

    /// The history of an instance, by [`View::key`]. Of the deleted ones only the last are kept.
    pub fn life(&self, key: u64) -> Option<&Life> {
        match self.lives.binary_search_by_key(&key, |life| life.key) {
            Ok(at) => self.lives.get(at),
            Err(_) => self.ended.iter().rfind(|life| life.key == key),
        }
    }

    fn life_mut(&mut self, key: u64) -> Option<&mut Life> {
        let at = self.lives.binary_search_by_key(&key, |life| life.key).ok()?;
        self.lives.get_mut(at)
    }

    /// The instances with this name, oldest first. An existing one is last.
    pub fn lives_of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Life> {
        self.ended.iter().chain(&self.lives).filter(move |life| *life.name == *name)
    }

    /// The instance that waits for this task, and its operation.
    pub fn task_of(&self, task: &str) -> Option<(&Life, &'static str, Time)> {
        let waits = |life: &&Life| life.task.as_deref().is_some_and(|(href, ..)| **href == *task);
        let life = self.lives.iter().find(waits)?;
        life.task.as_deref().map(|(_, operation, since)| (life, *operation, *since))
    }

    fn key_of(&self, name: &Name, notes: &[Note]) -> Option<u64> {
        let of_note = notes.iter().filter_map(|note| note.key);
        let mut keys = of_note.filter(|key| self.life(*key).is_some_and(|life| life.name == *name));
        keys.next().or_else(|| self.lives.iter().rev().find(|life| life.name == *name).map(|life| life.key))
    }

    /// Counts the facts in a note, and remembers the task that it started.
    fn settle(&mut self, note: &mut Note, now: Time) {
        let at = note.key.and_then(|key| self.lives.binary_search_by_key(&key, |life| life.key).ok());
        let Some(life) = at.and_then(|at| self.lives.get_mut(at)) else { return };
        let ends = life.task.as_deref().is_some_and(|(href, ..)| note.task.as_ref() == Some(href));
        if ends {
            life.task = None;
            self.tally.task(note.operation, note.took, note.error.is_some());
        } else if let Some(task) = &note.task {
            life.task = Some(Box::new((task.clone(), note.operation, now)));
        }
        if note.error.is_some() {
            life.trouble = true;
        }
    }

    /// Keeps an entry in the ring and in its instance's steps. Returns it if it is to be logged: it is not a repeat, or
    /// a repeat is due.
    fn record(&mut self, mut entry: Entry, anew: bool) -> Option<Entry> {
        let troubled = entry.error.is_some()
            || match entry.key.and_then(|key| self.life(key)) {
                Some(life) => life.trouble,
                None => entry.level <= Level::Warn,
            };
        let same = |old: &Entry| troubled && !anew && old.repeats(&entry);
        // A success for the whole group ends its failures.
        let well = |old: &Entry| entry.name.is_none() && old.name.is_none() && old.level > Level::Warn;
        let at = self.events.iter().rposition(|old| same(old) || well(old));
        let mut show = true;
        if let Some(at) = at.filter(|at| self.events.get(*at).is_some_and(same)) {
            let old = self.events.remove(at);
            entry.first = old.first;
            entry.times = old.times.saturating_add(1);
            show = is_round(entry.times) || entry.at >= old.logged + REPEAT_PAUSE;
            entry.logged = if show { entry.at } else { old.logged };
        }
        if let Some(life) = entry.key.and_then(|key| self.life_mut(key)) {
            life.step(entry.clone());
            life.trouble &= !entry.phase.is_some_and(Phase::rests);
        }
        if self.events.len() >= MAX_EVENTS {
            self.dropped += 1;
        }
        push(&mut self.events, entry.clone(), MAX_EVENTS);
        show.then_some(entry)
    }

    /// Entries about instances that have been in a temporary phase for long, with growing pauses.
    fn words(&mut self, now: Time) -> Vec<Entry> {
        let mut entries = Vec::new();
        for life in self.lives.iter_mut().filter(|life| !life.phase.rests() && life.word_at <= now) {
            let stayed = now - life.since;
            life.word_at = now + stayed.clamp(FIRST_WORD, WORD_PAUSE_MAX);
            let waits = if life.waits_for.is_empty() { "its next step" } else { life.waits_for };
            let text = format!("still {} after {} s: waits for {waits}", life.phase.name(), stayed.as_secs());
            let mut entry = Entry::new(now, Level::Info, &text);
            (entry.key, entry.name, entry.phase) = (Some(life.key), Some(life.name.clone()), Some(life.phase));
            entry.task = life.task.as_deref().map(|(task, ..)| task.clone());
            entry.took = Some(stayed);
            entries.push(entry);
        }
        entries.into_iter().filter_map(|entry| self.record(entry, true)).collect()
    }

    /// Records the number of instances in each phase, if it has changed.
    fn sample(&mut self, now: Time, counts: [u16; Phase::ALL.len()]) {
        match self.samples.last_mut() {
            Some(last) if last.counts == counts => {}
            Some(last) if now < last.at + SAMPLE_PAUSE => last.counts = counts,
            _ => self.samples.push(Sample { at: now, counts }),
        }
        // An older sample shows the state at the start of the history.
        while self.samples.get(1).is_some_and(|second| second.at + HISTORY < now) {
            self.samples.remove(0);
        }
        if self.samples.len() > MAX_SAMPLES {
            let mut at = 0;
            self.samples.retain(|_| {
                at += 1;
                at % 2 == 0 || at > MAX_SAMPLES / 2
            });
        }
    }
}

impl Life {
    fn new(view: &Glance<'_>, now: Time) -> Life {
        Life {
            name: view.name.clone(),
            key: view.key,
            began: now,
            phase: view.phase,
            since: now,
            create_asked: None,
            created: None,
            removal: None,
            delete_asked: None,
            ended: None,
            brief: false,
            steps: Vec::new(),
            dropped: 0,
            made_here: matches!(view.phase, Phase::PendingCreate | Phase::Creating),
            reported: view.reported,
            taken: false,
            task: None,
            trouble: false,
            retries: 0,
            failed_creates: 0,
            waits_for: "",
            waits_since: now,
            looked: now,
            noticed: Duration::ZERO,
            word_at: now + FIRST_WORD,
        }
    }

    /// True if this process created it. False if it was found.
    pub fn was_made_here(&self) -> bool {
        self.made_here
    }

    /// Updates it with the current state of the instance; `first` if it is new.
    fn follow(&mut self, view: &Glance<'_>, first: bool, now: Time, shown: Shown, notes: &[Note], tally: &mut Tally) {
        if view.reported && !self.reported && view.cause.is_none() {
            // It was created for the standby pool, and belongs to GitLab Runner from now on.
            self.taken = matches!(self.phase, Phase::Standby | Phase::Suspending);
            (self.reported, self.made_here, self.began, self.noticed) = (true, true, now, Duration::ZERO);
            self.create_asked = self.create_asked.map(|_| now);
        }
        for _ in self.failed_creates..view.failed_creates {
            tally.fail("create");
        }
        self.trouble |= view.retries > self.retries;
        (self.failed_creates, self.retries) = (view.failed_creates, view.retries);
        if let (None, Some(cause)) = (self.removal, view.cause) {
            self.removal = Some((now, cause));
            match cause {
                Cause::Timeout => tally.fail("timeout"),
                cause => tally.collected += u64::from(cause.is_collected()),
            }
        }
        // A lookup or poll shows progress that may have happened right after the previous one.
        let looks = match shown {
            Shown::Nothing => false,
            Shown::Tasks => view.has_task,
            Shown::Poll => !view.has_task,
            Shown::Port => notes.iter().any(|note| note.key == Some(view.key)),
        };
        if view.waits_for != self.waits_for {
            if shown != Shown::Nothing && self.phase == Phase::Creating {
                self.noticed += now - self.looked.max(self.waits_since);
            }
            (self.waits_for, self.waits_since, self.looked) = (view.waits_for, now, now);
        } else if looks {
            self.looked = now;
        }
        if first || view.phase != self.phase {
            self.enter(view.phase, now, tally);
        }
    }

    fn enter(&mut self, phase: Phase, now: Time, tally: &mut Tally) {
        (self.phase, self.since, self.word_at) = (phase, now, now + FIRST_WORD);
        match phase {
            Phase::Creating => {
                self.create_asked.get_or_insert(now);
            }
            Phase::Running if self.made_here && self.created.is_none() => {
                self.created = Some(now);
                tally.created += 1;
                if self.taken {
                    return tally.standby.add(now - self.began);
                }
                tally.creation.add(now - self.began);
                tally.queued.add(self.create_asked.unwrap_or(now) - self.began);
                tally.noticed.add(self.noticed);
            }
            Phase::Standby => tally.standby_created += u64::from(self.made_here),
            Phase::Deleting => {
                self.delete_asked.get_or_insert(now);
            }
            Phase::Deleted => {
                self.ended = Some(now);
                tally.deleted += 1;
                if let (Some((removal, _)), Some(_)) = (self.removal, self.delete_asked) {
                    tally.deletion.add(now - removal);
                }
            }
            _ => {}
        }
    }

    fn step(&mut self, mut entry: Entry) {
        if self.brief {
            self.dropped += 1;
            return;
        }
        let same = |old: &Entry| (entry.times > 1 || entry.level == Level::Debug) && old.repeats(&entry);
        if let Some(at) = self.steps.iter().rposition(same) {
            let old = self.steps.remove(at);
            (entry.first, entry.times) = (old.first, old.times.saturating_add(1));
        }
        self.dropped += u64::from(self.steps.len() >= MAX_STEPS);
        // Most of the memory of the journal is here.
        self.steps.reserve_exact(1);
        push(&mut self.steps, entry, MAX_STEPS);
    }
}

impl Entry {
    fn new(now: Time, level: Level, text: &str) -> Entry {
        Entry {
            at: now,
            first: now,
            times: 1,
            level,
            name: None,
            from: None,
            phase: None,
            text: text.into(),
            operation: None,
            task: None,
            took: None,
            error: None,
            key: None,
            logged: now,
        }
    }

    fn explain(&mut self, note: Option<Note>, change: Option<Change>) {
        if let Some(Change { from, to, stayed, .. }) = change {
            (self.from, self.phase) = (from, Some(to));
            self.took = from.map(|_| stayed);
        }
        if let Some(note) = note {
            (self.operation, self.task, self.error) = (Some(note.operation), note.task, note.error);
            self.took = Some(note.took);
        }
    }

    /// True if `other` says the same about the same instance, apart from numbers and ids.
    fn repeats(&self, other: &Entry) -> bool {
        let frame = |entry: &Entry| (entry.key, entry.from, entry.phase, entry.operation);
        if frame(self) != frame(other) || self.error.is_some() != other.error.is_some() {
            return false;
        }
        match (&self.error, &other.error) {
            (Some(one), Some(two)) => alike(one, two),
            _ => alike(&self.text, &other.text),
        }
    }
}

/// True if both have the same words. Words with a digit count as equal.
fn alike(one: &str, two: &str) -> bool {
    let numbered = |word: &str| word.bytes().any(|byte| byte.is_ascii_digit());
    let (mut one, mut two) = (one.split_whitespace(), two.split_whitespace());
    loop {
        match (one.next(), two.next()) {
            (None, None) => return true,
            (Some(a), Some(b)) if a == b || (numbered(a) && numbered(b)) => {}
            _ => return false,
        }
    }
}

/// 1, 10, 100, …
fn is_round(times: u32) -> bool {
    times.checked_ilog10().is_some_and(|digits| times == 10_u32.pow(digits))
}

/// Number of instances in each phase, in the order of [`Phase::ALL`].
pub fn count(phases: impl Iterator<Item = Phase>) -> [u16; Phase::ALL.len()] {
    let mut counts = [0; Phase::ALL.len()];
    for phase in phases {
        let place = Phase::ALL.iter().position(|other| *other == phase);
        if let Some(count) = place.and_then(|place| counts.get_mut(place)) {
            *count += 1;
        }
    }
    counts
}

/// Drops the oldest item if there are `most`. They are few: moving them costs less than the code of a ring.
fn push<T>(to: &mut Vec<T>, item: T, most: usize) {
    if to.len() >= most {
        to.remove(0);
    }
    to.push(item);
}

/// At most `most` bytes of `text`, cut between characters.
fn cut(text: &str, most: usize) -> &str {
    let end = (0..=most.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    text.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::group::View;

    const NAME: &str = "ci-aaaaaaaa";
    const NOBODY: [View; 0] = [];

    fn said(level: Level, text: &str) -> Event {
        Event { level, name: Some(NAME.into()), phase: Some(Phase::Creating), text: text.into() }
    }

    fn seconds(seconds: u64) -> Time {
        Time(seconds * 1000)
    }

    fn view(phase: Phase, waits_for: &'static str) -> View {
        View { waits_for, ..View::example(1, NAME, phase) }
    }

    /// What is logged, in short.
    fn lines(entries: Vec<Entry>) -> Vec<String> {
        let phase = |phase: Option<Phase>| phase.map_or("", Phase::name);
        entries.iter().map(|e| format!("{}>{} {} x{}", phase(e.from), phase(e.phase), e.text, e.times)).collect()
    }

    #[test]
    fn each_change_of_phase_is_one_line_with_its_cause() {
        let mut journal = Journal::default();
        let task: Href = "https://vcd/api/task/7".into();
        let turn = |journal: &mut Journal, at, notes, said, view: View| {
            lines(journal.turn(seconds(at), Shown::Nothing, notes, said, &[view]))
        };
        let creating = || view(Phase::Creating, "the create's task");
        let accepted = vec![said(Level::Info, "accepted")];
        assert_eq!(turn(&mut journal, 0, vec![], accepted, creating()), [">Creating accepted x1"]);
        // The answer begins a task and changes nothing.
        let note = |took, task: &Href| Note {
            key: Some(1),
            operation: "create",
            task: Some(task.clone()),
            took: Duration::from_secs(took),
            error: None,
        };
        assert!(turn(&mut journal, 1, vec![note(1, &task)], vec![], creating()).is_empty());
        let (life, operation, since) = journal.task_of(&task).unwrap();
        assert_eq!((life.key, operation, since), (1, "create", seconds(1)));
        let ends = vec![note(30, &task)];
        let made = vec![said(Level::Info, "made")];
        assert_eq!(turn(&mut journal, 31, ends, made, creating()), ["Creating made x1"].map(|l| format!(">{l}")));
        assert_eq!(journal.tally.tasks[0].1.count, 1);
        let running = || view(Phase::Running, "");
        let up = vec![said(Level::Info, "running, 40 s after it was accepted"), said(Level::Warn, "but slow")];
        let both = ["Creating>Running running, 40 s after it was accepted x1", ">Creating but slow x1"];
        assert_eq!(turn(&mut journal, 40, vec![], up, running()), both);
        // Nobody said why: then what it waits for is said.
        let leaving = View { cause: Some(Cause::Asked), ..view(Phase::Deleting, "the delete's task") };
        let said_so = ["Running>Deleting waits for the delete's task x1"];
        assert_eq!(turn(&mut journal, 50, vec![], vec![], leaving), said_so);
        // It is forgotten in the moment in which it is gone.
        let gone = vec![Event { phase: Some(Phase::Deleted), ..said(Level::Info, "gone from VCD") }];
        let log = lines(journal.turn(seconds(60), Shown::Nothing, vec![], gone, &NOBODY));
        assert_eq!(log, ["Deleting>Deleted gone from VCD x1"]);

        let life = journal.lives_of(NAME).next().unwrap();
        assert_eq!(life.steps.len(), 7, "{:#?}", life.steps);
        let made = life.steps.iter().find(|step| &*step.text == "made").unwrap();
        assert_eq!((made.operation, made.task.as_deref()), (Some("create"), Some(&*task)));
        assert_eq!(made.took, Some(Duration::from_secs(30)));
        let times = (life.create_asked, life.created, life.delete_asked, life.ended);
        assert_eq!(times, (Some(seconds(0)), Some(seconds(40)), Some(seconds(50)), Some(seconds(60))));
        let tally = &journal.tally;
        assert_eq!((tally.created, tally.deleted, tally.leftovers, tally.collected), (1, 1, 0, 0));
        assert_eq!((tally.creation.count, tally.creation.sum, tally.deletion.sum), (1, 40.0, 10.0));
    }

    #[test]
    fn what_the_plugin_removes_by_itself_is_counted() {
        for (cause, collected) in [(Cause::Unhealthy, 1), (Cause::Aged, 1), (Cause::Leftover, 1), (Cause::Asked, 0)] {
            let mut journal = Journal::default();
            let goes = View { cause: Some(cause), ..view(Phase::PendingDelete, "a slot") };
            journal.turn(seconds(0), Shown::Nothing, vec![], vec![], &[goes]);
            assert_eq!((cause, journal.tally.collected), (cause, collected));
        }
    }

    #[test]
    fn the_same_error_is_counted_and_logged_again_after_a_success() {
        let mut journal = Journal::default();
        let mut logged = 0;
        let mut fail = |journal: &mut Journal, at: u64| {
            let error = Some(format!("create vApp {NAME}: VCD answered 500 X: [ req-{at} ] no").into());
            let note = Note { key: Some(1), operation: "create", task: None, took: Duration::from_secs(1), error };
            let (retries, failed_creates) = (at as u32, at as u32);
            let view = View { retries, failed_creates, ..view(Phase::PendingCreate, "the next try") };
            let said = vec![said(Level::Warn, &format!("no; next try in {at} s"))];
            let (retries, failed_creates) = (retries - 1, failed_creates - 1);
            let creating = self::view(Phase::Creating, "VCD to accept the create");
            let creating = View { retries, failed_creates, ..creating };
            logged += journal.turn(seconds(at * 2), Shown::Nothing, vec![], vec![], &[creating]).len();
            logged += journal.turn(seconds(at * 2 + 1), Shown::Nothing, vec![note], said, &[view]).len();
        };
        for at in 1..=100 {
            fail(&mut journal, at);
        }
        // The first of each, the second change to Creating (from PendingCreate), the 10th and the 100th, as far as they go.
        assert!((5..=8).contains(&logged), "{logged} lines for 100 failures");
        assert_eq!(journal.tally.failed[0], ("create", 100));
        let failures: Vec<u32> = journal.events.iter().filter(|e| e.error.is_some()).map(|e| e.times).collect();
        assert_eq!(failures, [100], "one event, counted");
        let running = view(Phase::Running, "");
        assert_eq!(journal.turn(seconds(300), Shown::Port, vec![], vec![], &[running]).len(), 1);
        // What rests is in trouble no more: its next changes are news, as often as they come.
        for at in 0..3 {
            let away = view(Phase::PendingDelete, "");
            assert_eq!(journal.turn(seconds(400 + at * 10), Shown::Nothing, vec![], vec![], &[away]).len(), 1);
            let back = view(Phase::Running, "");
            assert_eq!(journal.turn(seconds(405 + at * 10), Shown::Nothing, vec![], vec![], &[back]).len(), 1);
        }
    }

    #[test]
    fn only_failed_creates_count_as_such_and_each_once() {
        let mut journal = Journal::default();
        // While what a failed create has left is deleted, its own tries are those of the delete.
        for (at, (phase, retries, failed_creates)) in [
            (Phase::Creating, 1, 1),
            (Phase::Creating, 0, 1),
            (Phase::PendingCreate, 2, 2),
            (Phase::Running, 0, 0),
            (Phase::Suspending, 3, 0),
            (Phase::PendingDelete, 4, 0),
            (Phase::Deleting, 9, 0),
        ]
        .into_iter()
        .enumerate()
        {
            let view = View { retries, failed_creates, ..view(phase, "") };
            journal.turn(seconds(at as u64), Shown::Nothing, vec![], vec![], &[view]);
        }
        assert_eq!(journal.tally.failed[0], ("create", 2));
        assert!(journal.tally.failed[1..].iter().all(|(_, times)| *times == 0));
    }

    #[test]
    fn a_second_outage_is_reported_even_if_it_equals_the_first() {
        let mut journal = Journal::default();
        let plain = |level, text: &str| Event { level, name: None, phase: None, text: text.into() };
        let mut turn = |at, level, text: &str| {
            journal.turn(seconds(at), Shown::Poll, vec![], vec![plain(level, text)], &NOBODY).len()
        };
        assert_eq!(turn(1, Level::Warn, "poll: no answer in 3 ms"), 1);
        assert_eq!(turn(2, Level::Warn, "poll: no answer in 4 ms"), 0);
        assert_eq!(turn(3, Level::Info, "VCD answers polls again"), 1);
        assert_eq!(turn(4, Level::Warn, "poll: no answer in 5 ms"), 1);
        assert_eq!(turn(5, Level::Warn, "poll: no answer in 6 ms"), 0);
        assert_eq!(turn(4 + REPEAT_PAUSE.as_secs(), Level::Warn, "poll: no answer in 6 ms"), 1, "an hour later");
        let counts: Vec<u32> = journal.events.iter().map(|event| event.times).collect();
        assert_eq!(counts, [2, 1, 3]);
    }

    #[test]
    fn what_takes_long_is_mentioned_with_growing_pauses() {
        let mut journal = Journal::default();
        let mut mentioned = Vec::new();
        for at in 0..=7500 {
            let waits_for = if at < 500 { "the create's task" } else { "an address" };
            for entry in journal.turn(seconds(at), Shown::Poll, vec![], vec![], &[view(Phase::Creating, waits_for)]) {
                mentioned.push((at, entry.text.to_string()));
            }
            assert!(journal.due().is_some_and(|due| due > seconds(at)));
        }
        let times: Vec<u64> = mentioned.iter().map(|(at, _)| *at).collect();
        assert_eq!(times, [0, 60, 120, 240, 480, 960, 1920, 3840, 7440], "an hour at most");
        assert_eq!(mentioned[3].1, "still Creating after 240 s: waits for the create's task");
        assert_eq!(mentioned[5].1, "still Creating after 960 s: waits for an address");
        journal.turn(seconds(7501), Shown::Port, vec![], vec![], &[view(Phase::Running, "")]);
        assert_eq!(journal.due(), None, "what rests is not waited for");
    }

    #[test]
    fn overhead_is_the_queue_and_the_time_from_progress_to_its_notice() {
        let mut journal = Journal::default();
        let mut turn = |at, shown, phase, waits_for, task: bool| {
            let task = task.then(|| "https://vcd/api/task/1".into());
            journal.turn(Time(at), shown, vec![], vec![], &[View { task, ..view(phase, waits_for) }]);
        };
        turn(0, Shown::Nothing, Phase::PendingCreate, "a free create slot", false);
        turn(4_000, Shown::Nothing, Phase::Creating, "VCD to accept the create", false);
        turn(4_500, Shown::Nothing, Phase::Creating, "the create's task", true);
        turn(7_500, Shown::Tasks, Phase::Creating, "the create's task", true);
        turn(8_000, Shown::Poll, Phase::Creating, "the create's task", true);
        // At most 3 s since the look that showed it running.
        turn(10_500, Shown::Tasks, Phase::Creating, "guest customization", false);
        turn(12_500, Shown::Poll, Phase::Creating, "guest customization", false);
        turn(14_500, Shown::Poll, Phase::Creating, "the login port", false);
        turn(14_600, Shown::Port, Phase::Running, "", false);
        let tally = &journal.tally;
        assert_eq!((tally.queued.sum, tally.noticed.sum), (4.0, 3.0 + 2.0 + 0.1));
        assert_eq!(tally.noticed.buckets[4], 1, "in the bucket up to 10 s: {:?}", tally.noticed);
    }

    #[test]
    fn the_history_has_each_change_once_and_two_hours_of_them() {
        let mut journal = Journal::default();
        let mut turn = |at: u64, phase| {
            journal.turn(Time(at), Shown::Poll, vec![], vec![], &[view(phase, "")]);
            journal.samples.iter().map(|sample| sample.at.0).collect::<Vec<_>>()
        };
        assert_eq!(turn(0, Phase::PendingCreate), [0]);
        assert_eq!(turn(500, Phase::Creating), [0], "within a second");
        assert_eq!(turn(5_000, Phase::Creating), [0]);
        assert_eq!(turn(60_000, Phase::Running), [0, 60_000]);
        let later = HISTORY.as_millis() as u64;
        assert_eq!(turn(later + 70_000, Phase::Running), [60_000], "how it was two hours ago is kept");
        assert_eq!(turn(later + 80_000, Phase::Deleting), [60_000, later + 80_000]);
        assert_eq!(journal.samples[0].counts, count([Phase::Running].into_iter()));
    }

    #[test]
    fn memory_is_bounded() {
        let mut journal = Journal::default();
        for turn in 0..1_000_u64 {
            let views: Vec<View> = (turn..turn + 200)
                .map(|key| {
                    View::example(key, &format!("ci-{key:08}"), Phase::ALL[(key * turn) as usize % Phase::ALL.len()])
                })
                .collect();
            journal.turn(seconds(turn), Shown::Poll, vec![], vec![], &views);
        }
        assert_eq!(journal.events.len(), MAX_EVENTS);
        assert!(((MAX_SAMPLES / 2)..=MAX_SAMPLES).contains(&journal.samples.len()), "{}", journal.samples.len());
        assert!(journal.samples.iter().zip(journal.samples.iter().skip(1)).all(|(one, two)| one.at < two.at));
        assert!(journal.lives.len() <= 200 && journal.ended.len() == MAX_ENDED);
        let steps = journal.lives.iter().chain(&journal.ended).map(|life| life.steps.len());
        assert!(steps.max() <= Some(MAX_STEPS));
        let long = Event { name: None, phase: None, ..said(Level::Warn, &"ä".repeat(MAX_TEXT)) };
        let mut journal = Journal::default();
        journal.turn(seconds(1), Shown::Poll, vec![], vec![long], &NOBODY);
        assert_eq!(journal.events.last().unwrap().text.len(), MAX_TEXT);
        for n in 1..2 * MAX_STEPS {
            let step = said(Level::Info, &"x".repeat(n));
            journal.turn(seconds(n as u64), Shown::Poll, vec![], vec![step], &[view(Phase::Creating, "")]);
        }
        let life = journal.life(1).unwrap();
        assert_eq!((life.steps.len(), life.dropped > 0), (MAX_STEPS, true));
    }

    #[test]
    fn all_instances_are_counted_and_only_the_first_are_recorded() {
        let mut journal = Journal::default();
        let turn = |at: u64, phases: &dyn Fn(u64) -> Phase, journal: &mut Journal| {
            let views: Vec<View> =
                (0..2000).map(|key| View::example(key, &format!("ci-{key:08}"), phases(key))).collect();
            journal.turn(seconds(at), Shown::Poll, vec![], vec![], &views);
        };
        turn(0, &|_| Phase::Creating, &mut journal);
        turn(1, &|_| Phase::Running, &mut journal);
        assert_eq!(journal.tally.created, 2000);
        let told = |journal: &Journal| journal.lives.iter().filter(|life| !life.steps.is_empty()).count();
        assert_eq!((journal.lives.len(), told(&journal)), (2000, MAX_LIVES));
        // Those that the group still shows after their end hold no places.
        turn(2, &|key| if key < 1500 { Phase::Deleted } else { Phase::Running }, &mut journal);
        turn(3, &|key| if key < 1500 { Phase::Deleted } else { Phase::Running }, &mut journal);
        assert_eq!((journal.tally.deleted, journal.lives.len(), journal.ended.len()), (1500, 500, MAX_ENDED));
        assert_eq!(journal.samples.last().map(|sample| sample.counts), Some([0, 0, 500, 0, 0, 0, 0, 0, 0, 1500]));
        assert!(journal.life(1499).is_some_and(|life| life.phase == Phase::Deleted) && journal.life(0).is_none());
    }
}
