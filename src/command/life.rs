//! A plugin inside a command. The code of the group creates and deletes the VMs of `check --create` and `clean`, with
//! all its safety rules, and a person watches.

use super::output::{say, tenths};
use super::runner::Runner;
use crate::driver::{CallError, Plugin};
use async_signal::{Signal, Signals};
use serde_json::Value;
use smol::future::or;
use smol::stream::StreamExt;
use smol::{LocalExecutor, Timer};
use std::pin::Pin;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Interval between two checks for changes.
const LOOK: Duration = Duration::from_millis(200);
/// Unchanged states are printed again after this time.
const WORD: Duration = Duration::from_secs(5);
/// Maximum time for the deletes at the end. VCD continues them without the plugin.
pub const DELETE_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// A started plugin.
pub struct Life {
    /// The interface that GitLab Runner would call.
    pub plugin: Rc<Plugin>,
    began: Instant,
    /// The last printed text and its time.
    shown: (String, Instant),
}

/// Runs `work` on `executor` until it ends.
pub fn run(executor: &Rc<LocalExecutor<'static>>, work: impl Future<Output = ExitCode>) -> ExitCode {
    // All commands, `serve` included, use one type of future, so the loop around it is linked once.
    let work: Pin<Box<dyn Future<Output = ExitCode> + '_>> = Box::pin(work);
    smol::block_on(executor.run(work))
}

/// `future`, or `None` if a person or the system interrupts it.
pub async fn interruptible<T>(future: impl Future<Output = T>) -> Option<T> {
    let interrupted = async {
        match Signals::new([
            Signal::Int,
            #[cfg(unix)]
            Signal::Term,
        ]) {
            Ok(mut signals) => drop(signals.next().await),
            Err(_) => std::future::pending().await,
        }
        None
    };
    or(async { Some(future.await) }, interrupted).await
}

impl Life {
    /// Starts a plugin for `runner`, with some keys of plugin_config changed. It keeps no VMs in standby. [`Life::end`] deletes
    /// all its instances.
    pub async fn begin(
        executor: &Rc<LocalExecutor<'static>>,
        runner: &Runner,
        changes: &[(&str, Value)],
    ) -> Result<Life, String> {
        let mut config = runner.plugin_config.clone();
        let own = [("on_shutdown", "delete".into()), ("debug_server_addr", "".into()), ("standby_count", 0.into())];
        for (key, value) in own.iter().chain(changes) {
            config.insert((*key).to_owned(), value.clone());
        }
        let plugin = Plugin::new(executor.clone(), |_, _, _| {});
        let bytes = Value::Object(config).to_string();
        match plugin.init(bytes.as_bytes(), runner.connector.clone()).await {
            Ok(_) => Ok(Life { plugin, began: Instant::now(), shown: (String::new(), Instant::now()) }),
            Err(error) => Err(text(error)),
        }
    }

    /// Prints each change until `done`. False if that takes longer than `limit`.
    pub async fn watch(&mut self, limit: Duration, mut done: impl FnMut(&Plugin) -> bool) -> bool {
        let deadline = Instant::now() + limit;
        while !done(&self.plugin) {
            if Instant::now() >= deadline {
                return false;
            }
            self.show();
            Timer::after(LOOK).await;
        }
        true
    }

    /// Prints what the instances wait for when it changes, and repeats it from time to time.
    fn show(&mut self) {
        let mut all = Vec::new();
        for view in self.plugin.views() {
            let waits =
                if view.waits_for.is_empty() { String::new() } else { format!(", waits for {}", view.waits_for) };
            let error = view.error.map(|error| format!(" ({error})")).unwrap_or_default();
            all.push(format!("{} {}{waits}{error}", view.name, view.phase.name()));
        }
        let (shown, at) = &self.shown;
        if all.join("\n") != *shown || at.elapsed() >= WORD {
            for line in &all {
                say(&format!("  {:>6} s  {line}\n", tenths(self.began.elapsed())));
            }
            self.shown = (all.join("\n"), Instant::now());
        }
    }

    /// What an instance waits for, and its last error: the end of a message about a failure.
    pub fn waits(&self) -> String {
        let mut views = self.plugin.views().into_iter();
        let Some(view) = views.find(|view| !view.phase.rests()) else { return String::new() };
        let error = view.error.map(|error| format!("; last error: {error}")).unwrap_or_default();
        format!(": {} waits for {}{error}", view.name, view.waits_for)
    }

    /// Deletes all instances of the plugin. True if none is left.
    pub async fn end(mut self, limit: Duration) -> bool {
        let plugin = self.plugin.clone();
        let stop = async {
            let _ = plugin.shutdown(Some(limit)).await;
        };
        let show = async {
            self.watch(limit, |_| false).await;
        };
        or(stop, show).await;
        self.plugin.drain().await;
        self.plugin.log_out().await;
        self.plugin.views().iter().all(|view| view.phase.name() == "Deleted")
    }
}

/// The text of a failed call.
pub fn text(error: CallError) -> String {
    match error {
        CallError::NotReady(text)
        | CallError::Invalid(text)
        | CallError::NotFound(text)
        | CallError::Unavailable(text)
        | CallError::Unsupported(text) => text,
    }
}
