//! What answers mean: what becomes of an instance when VCD, or its guest, has answered. The next step is taken elsewhere.

use super::instance::{Asked, CHECKS, Cause, Facts, Fit, Goal, Label, Removal, There, Work};
use super::limits::{backoff, doubled, long_backoff};
use super::steps::{
    BUSY_PAUSE, FIND_PAUSE, LABEL_DELAY, LABEL_TRIES, LOOK_PAUSE, PROBE_PAUSE, STEADY_PROBE_PAUSE, UNCLEAR_LOOKS,
    UNCLEAR_WINDOW, WATCH_ASKED_MAX, WATCH_RETRY, WATCH_RETRY_MAX,
};
use super::{Group, Instance, Key, MAX_PAST, PRUNE_AFTER, Time};
use crate::cloud::{Answer, ErrorKind, Href, Power, Reply, Request, Started, TaskState, Vapp, VcdError};
use log::Level;
use std::time::Duration;

impl Group {
    // Endings.

    /// Nothing of the instance is in VCD any more, and it is not wanted.
    pub(super) fn end(&mut self, key: Key) {
        let now = self.now;
        self.progress = now;
        if let Some(i) = self.instances.get_mut(&key) {
            i.ended = Some(now);
        }
        self.say_of(Level::Info, key, "gone from VCD".into());
        match self.instances.get(&key) {
            Some(i) if i.reported => self.wake_by(now + PRUNE_AFTER),
            _ => self.forget(key),
        }
    }

    pub(super) fn forget(&mut self, key: Key) {
        if let Some(i) = self.instances.remove(&key)
            && i.reported
        {
            self.names.remove(&i.name);
            if self.past.len() >= MAX_PAST {
                self.past.pop_front();
            }
            self.past.push_back(i.name);
        }
    }

    /// VCD does not know the instance's vApp (any more).
    pub(super) fn vanished(&mut self, key: Key) {
        self.progress = self.now;
        let Some(i) = self.instances.get_mut(&key) else { return };
        let had_run = i.has_run();
        let was = std::mem::replace(&mut i.there, There::Absent);
        i.proven = false;
        i.stumbles = 0;
        i.facts = None;
        i.ill = None;
        i.not_before = self.now;
        match was {
            _ if had_run => self.condemn(key, Cause::Lost),
            // It went while it was being made, not by us.
            There::Working { work: Work::Make { .. }, .. } | There::Fitting { .. } | There::Booting { .. } => {
                self.create_failed(key, None)
            }
            _ => {}
        }
    }

    pub(super) fn count_create_failure(&mut self) {
        if let Some(pause) = self.breaker.failure(self.now) {
            let text =
                format!("creates failed one after another: creates pause for {} s, deletes go on", pause.as_secs());
            self.say_plain(Level::Error, text);
        }
    }

    /// A create failed for good: the next one waits. `permanent`: VCD's reason will not pass by itself.
    fn create_failed(&mut self, key: Key, error: Option<&VcdError>) {
        let Some(i) = self.instances.get_mut(&key) else { return };
        i.retries += 1;
        let permanent = error.is_some_and(|error| will_not_pass(error.kind));
        let pause = if permanent { long_backoff(&mut self.rng) } else { backoff(&mut self.rng, i.retries) };
        i.create_after = self.now + pause;
        let follows = if i.goal.is_gone() {
            "it is to be removed anyway".to_string()
        } else if i.create_after >= i.deadline {
            "no further try before create_timeout".to_string()
        } else {
            format!("next try in {} s", pause.as_secs())
        };
        match error {
            Some(error) => self.blame(key, error, &follows),
            None => self.say_of(Level::Warn, key, format!("gone from VCD while it was being made; {follows}")),
        }
    }

    /// A delete or look failed: the next one waits.
    pub(super) fn stumble(&mut self, key: Key, error: &VcdError) {
        let Some(i) = self.instances.get_mut(&key) else { return };
        i.stumbles += 1;
        let pause =
            if will_not_pass(error.kind) { long_backoff(&mut self.rng) } else { backoff(&mut self.rng, i.stumbles) };
        i.not_before = self.now + pause;
        self.blame(key, error, &format!("next try in {} s", pause.as_secs()));
    }

    /// The org's operation limit: the request did nothing and may be repeated after a pause of all changes.
    pub(super) fn throttled(&mut self, key: Key, error: &VcdError) {
        if let Some(pause) = self.throttle.refused(self.now, &mut self.rng, error.retry_after) {
            self.blame(key, error, &format!("all changes pause for {} s", pause.as_secs()));
        }
    }

    // Answers.

    pub(super) fn instance_answered(&mut self, key: Key, answer: Answer) {
        let Some(asked) = self.instances.get_mut(&key).and_then(|i| i.asked.take()) else { return };
        match asked {
            Asked::Create => self.create_answered(key, answer),
            Asked::Fit(fit) => self.fit_answered(key, fit, answer),
            Asked::Suspend => self.nap_answered(key, Work::Suspend, answer),
            Asked::Resume => self.nap_answered(key, Work::Resume, answer),
            Asked::Find => self.find_answered(key, answer),
            Asked::Look => self.look_answered(key, answer),
            Asked::Delete => self.delete_answered(key, answer),
            Asked::Cancel => self.cancel_answered(key, answer),
        }
    }

    fn create_answered(&mut self, key: Key, answer: Answer) {
        let now = self.now;
        let Some(i) = self.instances.get_mut(&key) else { return };
        let error = match answer {
            Ok(Reply::Started(Started { vapp: Some(vapp), task })) => {
                let there = begun(Work::Make { last: i.whole }, vapp, task, now);
                i.proven = false;
                i.place(there, now);
                self.throttle.accepted();
                self.progress = now;
                return self.say_of(Level::Info, key, "VCD makes it".into());
            }
            Ok(other) => wrong_reply("create", &other),
            Err(error) => error,
        };
        match error.kind {
            ErrorKind::Limit => self.throttled(key, &error),
            ErrorKind::TooMuch if i.whole => self.take_apart(error.to_string()),
            ErrorKind::Ambiguous | ErrorKind::Protocol | ErrorKind::Duplicate => {
                i.there = There::Unclear { since: now, looks: 0 };
                i.not_before = now + FIND_PAUSE;
                self.blame(key, &error, "whether it was made is looked up by name");
            }
            // VCD could not be asked: that says nothing about creates.
            ErrorKind::Unavailable | ErrorKind::Auth | ErrorKind::Busy => self.create_failed(key, Some(&error)),
            _ => {
                self.create_failed(key, Some(&error));
                self.count_create_failure();
            }
        }
    }

    /// VCD does not make a VM with everything in one request: from now on in three.
    fn take_apart(&mut self, why: String) {
        if std::mem::take(&mut self.whole) {
            let text = format!("{why}; from now on VMs are made in three steps: compose, reconfigure, power on");
            self.say_plain(Level::Warn, text);
        }
    }

    /// A look at a vApp that was made without hardware: its next step on the way to the first boot.
    fn fit(&mut self, key: Key, vapp: &Vapp) {
        let now = self.now;
        let Some(i) = self.instances.get_mut(&key) else { return };
        let href = vapp.href.clone();
        if let Some(task) = vapp.tasks.first() {
            return i.place(begun(Work::Make { last: false }, href, Some(task.clone()), now), now);
        }
        if vapp.power == Power::On || i.goal.is_gone() {
            i.unsure = None;
            return i.place(There::Booting { vapp: href }, now);
        }
        let Some(made) = vapp.made.as_ref().filter(|_| !vapp.busy) else {
            // The VM shows later than the vApp, or a task holds it; the deadline bounds this.
            i.not_before = now + LOOK_PAUSE;
            return;
        };
        if i.unsure.is_some_and(|until| now < until) {
            // The step that was sent may yet be carried out.
            i.not_before = now + LOOK_PAUSE;
            return;
        }
        if let Some(until) = self.throttle.until(now) {
            i.not_before = until;
            return;
        }
        i.unsure = None;
        let vm = made.vm.clone();
        let (fit, request) = match &made.differs {
            Some(_) if !i.configured => (Fit::Configure, Request::Configure { vm }),
            _ if made.lacks_tpm && !i.tpm => (Fit::Tpm, Request::AddTpm { vm }),
            _ => (Fit::PowerOn, Request::PowerOn { vapp: href }),
        };
        self.ask_about(key, Asked::Fit(fit), request);
    }

    fn fit_answered(&mut self, key: Key, fit: Fit, answer: Answer) {
        let now = self.now;
        let Some(i) = self.instances.get_mut(&key) else { return };
        let There::Fitting { vapp } = &i.there else { return };
        let vapp = vapp.clone();
        let error = match answer {
            Ok(Reply::Started(Started { task, .. })) => {
                match fit {
                    Fit::Configure => i.configured = true,
                    Fit::Tpm => i.tpm = true,
                    Fit::PowerOn => {}
                }
                // Done at once: the next look shows what follows.
                if let Some(task) = task {
                    i.place(begun(Work::Make { last: fit == Fit::PowerOn }, vapp, Some(task), now), now);
                }
                self.throttle.accepted();
                self.progress = now;
                let text = match fit {
                    Fit::Configure => "VCD sets its hardware",
                    Fit::Tpm => "VCD gives it a TPM",
                    Fit::PowerOn => "VCD powers it on",
                };
                return self.say_of(Level::Info, key, text.into());
            }
            Ok(other) => wrong_reply("fit", &other),
            Err(error) => error,
        };
        match error.kind {
            ErrorKind::Limit => self.throttled(key, &error),
            ErrorKind::Busy => i.not_before = now + BUSY_PAUSE,
            ErrorKind::Unavailable | ErrorKind::Auth => self.stumble(key, &error),
            ErrorKind::Ambiguous | ErrorKind::Protocol => {
                i.unsure = Some(now + UNCLEAR_WINDOW);
                i.not_before = now + FIND_PAUSE;
                self.blame(key, &error, "whether it worked is looked up");
            }
            // A template may have one without telling.
            _ if fit == Fit::Tpm => {
                i.tpm = true;
                self.blame(key, &error, "powered on as it is");
            }
            _ => self.made_badly(key, vapp, &error),
        }
    }

    /// A create failed and has left a vApp behind.
    fn made_badly(&mut self, key: Key, vapp: Href, error: &VcdError) {
        let Some(i) = self.instances.get_mut(&key) else { return };
        i.place(There::Scrap { vapp }, self.now);
        let wanted = i.goal == Goal::Live;
        self.create_failed(key, Some(error));
        if wanted {
            self.count_create_failure();
        }
    }

    /// A look at a VM that was just made and boots: its hardware, held against the wish.
    fn checked(&mut self, key: Key, vapp: &Vapp) {
        let Some(i) = self.instances.get_mut(&key) else { return };
        i.checks = CHECKS;
        let Some(differs) = vapp.made.as_ref().and_then(|made| made.differs.clone()) else { return };
        if i.whole {
            // What has booted once cannot be changed as it could before: it is made anew.
            i.scrap(vapp.href.clone());
            i.create_after = self.now;
            self.say_of(Level::Warn, key, format!("{differs}: made anew"));
            self.take_apart("VCD ignores the hardware that a create asks for".into());
        } else {
            self.say_of(Level::Warn, key, format!("{differs}: VCD gives no other, it is used as it is"));
        }
    }

    fn find_answered(&mut self, key: Key, answer: Answer) {
        let now = self.now;
        let vapps = match answer {
            Ok(Reply::Vapps(vapps)) => vapps,
            Ok(other) => return self.stumble(key, &wrong_reply("find", &other)),
            Err(error) => return self.stumble(key, &error),
        };
        let Some(i) = self.instances.get_mut(&key) else { return };
        i.stumbles = 0;
        let There::Unclear { since, looks } = i.there else { return };
        let (name, whole) = (i.name.clone(), i.whole);
        // The query that found them may have lagged behind a new name.
        let vapps: Vec<Vapp> = vapps.into_iter().filter(|v| v.name == name).collect();
        let owns = |v: &Vapp| self.owner.owns(&v.name, v.description.as_deref(), false);
        let mut ours = vapps.iter().filter(|v| owns(v) && !self.is_tracked(&v.href));
        if let Some(vapp) = ours.next() {
            let extra: Vec<Vapp> = ours.cloned().collect();
            let there = found(vapp, whole, now);
            if let Some(i) = self.instances.get_mut(&key) {
                i.proven = true;
                i.place(there, now);
            }
            self.progress = now;
            self.say_of(Level::Info, key, "found in VCD: the create had worked".into());
            for vapp in extra {
                let stray = Instance::stray(name.clone(), There::Scrap { vapp: vapp.href }, now);
                self.insert(Instance { proven: true, ..stray });
            }
            return;
        }
        if vapps.iter().any(|v| !owns(v)) {
            let text = "another's vApp has this name: the id is given up".to_string();
            if let Some(i) = self.instances.get_mut(&key) {
                i.there = There::Absent;
            }
            self.say_of(Level::Error, key, text);
            return self.condemn(key, Cause::Timeout);
        }
        let (window, looks) = (now - since, looks + 1);
        let Some(i) = self.instances.get_mut(&key) else { return };
        if window >= UNCLEAR_WINDOW && looks >= UNCLEAR_LOOKS {
            i.there = There::Absent;
            self.say_of(Level::Info, key, "not found in VCD: the create had not worked".into());
        } else {
            i.there = There::Unclear { since, looks };
            i.not_before = now + LOOK_PAUSE;
        }
    }

    /// An instance stands for this vApp already.
    fn is_tracked(&self, vapp: &Href) -> bool {
        self.instances.values().any(|i| i.vapp() == Some(vapp))
    }

    fn look_answered(&mut self, key: Key, answer: Answer) {
        let now = self.now;
        let mut vapps = match answer {
            Ok(Reply::Vapps(vapps)) => vapps,
            Ok(other) => return self.look_failed(key, &wrong_reply("look", &other)),
            Err(error) => return self.look_failed(key, &error),
        };
        let Some(i) = self.instances.get_mut(&key) else { return };
        i.stumbles = 0;
        i.external = vapps.last().and_then(|vapp| vapp.made.as_ref()?.external).or(i.external);
        if matches!(i.there, There::Stranger { .. }) {
            return self.stranger_seen(key, vapps.pop());
        }
        let Some(vapp) = vapps.pop() else { return self.vanished(key) };
        if vapp.name != i.name || !self.owner.owns(&vapp.name, vapp.description.as_deref(), i.labelled) {
            return self.released(key, &vapp);
        }
        i.proven = true;
        match &mut i.there {
            There::Leaving { .. } => {
                if i.removal != Removal::Force {
                    i.removal = if vapp.power == Power::Off { Removal::Stopped } else { Removal::Stop };
                }
                // Half made still: the create's task has to end first.
                i.there = match vapp.tasks.first() {
                    Some(task) => begun(Work::Remove, vapp.href, Some(task.clone()), now),
                    None => There::Scrap { vapp: vapp.href },
                };
            }
            // What holds it is cancelled next, and nothing else.
            There::Working { work, task, .. } if i.goal.is_gone() && *work != Work::Remove => {
                match vapp.tasks.into_iter().next() {
                    Some(this) => *task = this,
                    None => i.there = There::Scrap { vapp: vapp.href },
                }
            }
            There::Fitting { .. } => self.fit(key, &vapp),
            _ => {
                // It is there: the polls lag behind.
                if i.missed >= i.patience {
                    i.missed = 0;
                    i.patience = (i.patience * 2).min(64);
                }
                if i.unsure.is_some() {
                    self.unsure_seen(key, &vapp);
                } else if i.is_unchecked() {
                    self.checked(key, &vapp);
                }
            }
        }
    }

    /// A look at hardware is not worth a long wait; other looks are.
    fn look_failed(&mut self, key: Key, error: &VcdError) {
        match self.instances.get_mut(&key) {
            Some(i) if i.is_unchecked() => {
                i.checks += 1;
                i.not_before = self.now + LOOK_PAUSE;
                let follows = if i.checks < CHECKS { "asked again" } else { "its hardware is not compared" };
                self.blame(key, error, follows);
            }
            _ => self.stumble(key, error),
        }
    }

    /// A vApp that was ours carries another name or description now: whoever did that has it.
    fn released(&mut self, key: Key, vapp: &Vapp) {
        let text =
            format!("its vApp is named {:?} now and does not say that it is ours: left alone from now on", vapp.name);
        self.say_of(Level::Warn, key, text);
        self.remember_foreign(&vapp.href);
        self.vanished(key);
    }

    fn delete_answered(&mut self, key: Key, answer: Answer) {
        let now = self.now;
        let Some(i) = self.instances.get_mut(&key) else { return };
        let There::Scrap { vapp } = &i.there else { return };
        let vapp = vapp.clone();
        let error = match answer {
            Ok(Reply::Started(Started { task, .. })) => {
                self.throttle.accepted();
                self.progress = now;
                i.stumbles = 0;
                if i.removal == Removal::Stop {
                    i.there = match task {
                        Some(_) => begun(Work::Remove, vapp, task, now),
                        None => There::Leaving { vapp },
                    };
                    return self.say_of(Level::Info, key, "VCD stops it".into());
                }
                if task.is_none() {
                    return self.vanished(key);
                }
                i.there = begun(Work::Remove, vapp, task, now);
                return self.say_of(Level::Info, key, "VCD deletes it".into());
            }
            Ok(other) => wrong_reply("delete", &other),
            Err(error) => error,
        };
        match error.kind {
            ErrorKind::Limit => self.throttled(key, &error),
            ErrorKind::NotFound => self.vanished(key),
            ErrorKind::Busy => {
                i.there = There::Leaving { vapp };
                i.not_before = now + BUSY_PAUSE;
                self.say_of(
                    Level::Debug,
                    key,
                    format!("{error}; what holds it is looked at in {} s", BUSY_PAUSE.as_secs()),
                );
            }
            ErrorKind::Ambiguous | ErrorKind::Protocol => {
                i.there = There::Leaving { vapp };
                self.stumble(key, &error);
            }
            ErrorKind::Forbidden | ErrorKind::Invalid | ErrorKind::State if i.removal == Removal::Force => {
                i.removal = Removal::Stop;
                self.say_of(Level::Warn, key, format!("{error}; it is stopped first, then deleted"));
            }
            // What does not run need not be stopped; what cannot be deleted may run.
            ErrorKind::Invalid | ErrorKind::State => {
                i.removal = if i.removal == Removal::Stop { Removal::Stopped } else { Removal::Stop };
                self.stumble(key, &error);
            }
            _ => self.stumble(key, &error),
        }
    }

    fn cancel_answered(&mut self, key: Key, answer: Answer) {
        let Some(i) = self.instances.get_mut(&key) else { return };
        match answer {
            // A second request to cancel does no harm.
            Err(error) if !matches!(error.kind, ErrorKind::NotFound | ErrorKind::Invalid | ErrorKind::State) => {
                self.stumble(key, &error);
            }
            // Asked, or refused because it has ended already: the task's end is awaited.
            _ => {
                if let There::Working { cancelled, since, .. } = &mut i.there {
                    (*cancelled, *since) = (true, self.now);
                }
            }
        }
    }

    pub(super) fn tasks_answered(&mut self, answer: Answer) {
        self.tasks.on_wire = false;
        let tasks = match answer {
            Ok(Reply::Tasks(tasks)) => tasks,
            Ok(other) => return self.tasks_failed(&wrong_reply("tasks", &other)),
            Err(error) => return self.tasks_failed(&error),
        };
        self.tasks.fails = 0;
        let ended = tasks.into_iter().filter(|task| task.state != TaskState::Running);
        for task in ended {
            self.progress = self.now;
            let on = |i: &Instance| match &i.there {
                There::Working { task: this, .. } => *this == task.href,
                _ => false,
            };
            let keys: Vec<Key> = self.instances.iter().filter(|(_, i)| on(i)).map(|(key, _)| *key).collect();
            for key in keys {
                self.task_ended(key, &task.state);
            }
        }
    }

    fn tasks_failed(&mut self, error: &VcdError) {
        self.tasks.fails += 1;
        self.tasks.not_before = self.now + watch_backoff(self.tasks.fails, error);
        self.say_plain(Level::Warn, format!("{error}; asked again soon"));
    }

    fn task_ended(&mut self, key: Key, state: &TaskState) {
        let now = self.now;
        let Some(i) = self.instances.get_mut(&key) else { return };
        let There::Working { work, vapp, .. } = i.there.clone() else { return };
        match (work, state) {
            (Work::Make { last: true }, TaskState::Success | TaskState::Unknown) => {
                i.place(There::Booting { vapp }, now);
                self.say_of(Level::Info, key, "made and powered on; waits for its guest".into());
            }
            (Work::Make { last: false }, TaskState::Success | TaskState::Unknown) => {
                i.place(There::Fitting { vapp }, now);
            }
            (Work::Make { .. }, TaskState::Failed(error)) => self.made_badly(key, vapp, error),
            (Work::Suspend, TaskState::Success) => self.asleep(key, vapp),
            (Work::Resume, TaskState::Success) => self.wakes(key, vapp),
            (Work::Suspend, TaskState::Failed(error)) => {
                i.place(There::Ready { vapp }, now);
                self.not_suspended(key, error);
            }
            (Work::Resume, TaskState::Failed(error)) => {
                i.place(There::Suspended { vapp, since: now }, now);
                self.stumble(key, error);
            }
            // A look tells how it ended.
            (Work::Suspend | Work::Held { asleep: false }, _) => {
                i.place(There::Ready { vapp }, now);
                i.unsure = Some(now);
            }
            (Work::Resume | Work::Held { asleep: true }, _) => {
                i.place(There::Suspended { vapp, since: now }, now);
                i.unsure = Some(now);
            }
            (Work::Remove, TaskState::Failed(error)) => {
                i.there = There::Leaving { vapp };
                self.stumble(key, error);
            }
            (Work::Remove, _) => i.there = There::Leaving { vapp },
            (Work::Make { .. }, TaskState::Running) => {}
        }
    }

    pub(super) fn probe_answered(&mut self, key: Key, result: Result<(), String>) {
        let now = self.now;
        let Some(i) = self.instances.get_mut(&key) else { return };
        i.probing = false;
        let There::Booting { vapp } = &i.there else { return };
        let silent = i.facts.as_ref().is_some_and(Facts::silent);
        let complete = i.facts.as_ref().is_some_and(Facts::complete);
        match result {
            // Polls have shown something else since it was asked.
            Ok(()) if i.goal != Goal::Live || !(silent || complete) => {}
            // A poll must have shown it so at the end of that time: they may have failed meanwhile.
            Ok(()) if silent && i.seen < *i.steady.get_or_insert(now) + i.grace() => {
                i.not_before = now + STEADY_PROBE_PAUSE;
            }
            Ok(()) => {
                i.there = There::Ready { vapp: vapp.clone() };
                i.error = None;
                self.progress = now;
                if i.resumed {
                    return self.say_of(Level::Info, key, "running again".into());
                }
                i.label = Label::Wanted { tries: 0, not_before: now + LABEL_DELAY };
                let took = i.age(now).as_secs();
                self.breaker.success();
                if silent {
                    let text = "its login port answers steadily, but VCD still shows its guest customization as pending: \
                                taken as it is; newer VMware Tools in the template would report it";
                    self.say_of(Level::Warn, key, text.into());
                }
                self.say_of(Level::Info, key, format!("running, {took} s after it was accepted"));
            }
            Err(seen) => {
                i.steady = None;
                i.error = Some(format!("login port: {seen}").into());
                i.not_before = now + if silent { STEADY_PROBE_PAUSE } else { PROBE_PAUSE };
            }
        }
    }

    pub(super) fn label_answered(&mut self, key: Key, answer: Answer) {
        let now = self.now;
        let Some(i) = self.instances.get_mut(&key) else { return };
        let Label::OnWire { tries } = i.label else { return };
        let written = answer.is_ok();
        let label = match answer {
            Ok(_) => Label::Settled,
            Err(error) => {
                let again = tries + 1 < LABEL_TRIES && !will_not_pass(error.kind);
                let follows = if again { "tried again" } else { "left without it: nothing here depends on it" };
                let text = format!("{error}; {follows}");
                let next = Label::Wanted { tries: tries + 1, not_before: now + backoff(&mut self.rng, tries + 1) };
                self.say_of(Level::Warn, key, text);
                if again { next } else { Label::Settled }
            }
        };
        if let Some(i) = self.instances.get_mut(&key) {
            i.labelled |= written;
            i.label = label;
        }
    }

    /// A guest that cannot come to running any more: cleared away, then made anew.
    pub(super) fn boot_failed(&mut self, key: Key, why: &str) {
        let Some(i) = self.instances.get_mut(&key) else { return };
        let Some(vapp) = i.vapp().cloned() else { return };
        if i.resumed {
            i.error = Some(why.into());
            self.say_of(Level::Warn, key, format!("{why}: given up"));
            return self.condemn(key, Cause::Ill);
        }
        i.scrap(vapp);
        let error = VcdError {
            kind: ErrorKind::Failed,
            what: format!("boot {}", i.name),
            status: 0,
            code: String::new(),
            text: why.to_string(),
            retry_after: None,
        };
        self.create_failed(key, Some(&error));
        self.count_create_failure();
    }
}

/// VCD's reason stands until somebody changes something there.
fn will_not_pass(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Quota | ErrorKind::Forbidden | ErrorKind::Invalid | ErrorKind::NotFound)
}

/// The pause before a poll or a question for tasks is repeated after `fails` failed ones.
pub(super) fn watch_backoff(fails: u32, error: &VcdError) -> Duration {
    let asked = error.retry_after.unwrap_or_default().min(WATCH_ASKED_MAX);
    doubled(WATCH_RETRY, fails.saturating_sub(1), WATCH_RETRY_MAX).max(asked)
}

/// A vApp that VCD works on. Without a task the work is done.
pub(super) fn begun(work: Work, vapp: Href, task: Option<Href>, now: Time) -> There {
    match (task, work) {
        (Some(task), _) => There::Working { work, vapp, task, since: now, cancelled: false },
        (None, Work::Make { last: true } | Work::Resume) => There::Booting { vapp },
        (None, Work::Make { last: false }) => There::Fitting { vapp },
        (None, Work::Suspend | Work::Held { asleep: true }) => There::Suspended { vapp, since: now },
        (None, Work::Held { asleep: false }) => There::Ready { vapp },
        (None, Work::Remove) => There::Leaving { vapp },
    }
}

/// A vApp of ours that was looked up after a create. `whole`: that one was to power it on.
fn found(vapp: &Vapp, whole: bool, now: Time) -> There {
    let (href, task) = (vapp.href.clone(), vapp.tasks.first().cloned());
    match vapp.power {
        _ if task.is_some() => begun(Work::Make { last: whole }, href, task, now),
        Power::On => There::Booting { vapp: href },
        _ if whole => There::Scrap { vapp: href },
        _ => There::Fitting { vapp: href },
    }
}

pub(super) fn wrong_reply(what: &str, reply: &Reply) -> VcdError {
    let kind = match reply {
        Reply::Poll(_) => "a poll",
        Reply::Vapps(_) => "vApps",
        Reply::Started(_) => "a start without a vApp",
        Reply::Tasks(_) => "tasks",
        Reply::Done => "nothing",
    };
    let text = format!("the answer holds {kind}");
    VcdError { kind: ErrorKind::Protocol, what: what.into(), status: 0, code: String::new(), text, retry_after: None }
}
