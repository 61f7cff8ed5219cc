//! The causes of the end of the process: the host's last call, the host's exit, or SIGTERM. This module waits for them;
//! `host` ends the process.

use super::server::Server;
use async_signal::{Signal, Signals};
use smol::Timer;
use smol::future::or;
use smol::stream::{Stream, StreamExt};
use std::time::{Duration, Instant};

/// After SIGTERM the plugin serves a connected host for at most this time: systemd signals the whole group, so the host
/// may be stopping too, and needs answers to its last calls.
const TERM_LIMIT: Duration = Duration::from_secs(90);

/// Interval of the check for the host's exit, where stdout does not report it.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Pause after signals could not be read.
const SIGNAL_PAUSE: Duration = Duration::from_secs(1);

/// The signals that are caught. Only SIGTERM has an effect. The host receives the others as well (from a terminal;
/// SIGQUIT makes GitLab Runner finish its jobs first, and SIGHUP makes it read its configuration again), and decides
/// about the end.
#[cfg(unix)]
const SIGNALS: [Signal; 4] = [Signal::Term, Signal::Int, Signal::Quit, Signal::Hup];
/// Windows has only Ctrl-C.
#[cfg(windows)]
const SIGNALS: [Signal; 1] = [Signal::Int];

/// Catches the signals from now on.
pub fn signals() -> Result<Signals, String> {
    Signals::new(SIGNALS).map_err(|error| format!("cannot catch signals: {error}"))
}

/// Waits for the end of the process. Returns the reason.
pub async fn reason(server: &Server, signals: Signals) -> &'static str {
    or(host_gone(server), told_to_stop(server, signals, TERM_LIMIT)).await
}

/// Waits for the host's last call, or for SIGTERM and then for at most `limit`.
async fn told_to_stop(
    server: &Server,
    mut signals: impl Stream<Item = std::io::Result<Signal>> + Unpin,
    limit: Duration,
) -> &'static str {
    let mut deadline: Option<Instant> = None;
    loop {
        if server.is_shut_down() {
            return "GitLab Runner has shut down this plugin";
        }
        if let Some(deadline) = deadline {
            if !server.is_connected() {
                return "SIGTERM, and GitLab Runner is not connected";
            }
            if Instant::now() >= deadline {
                return "SIGTERM, and GitLab Runner did not shut down this plugin in time";
            }
        }
        let changed = async {
            server.changed().await;
            None
        };
        let late = async {
            deadline.map_or_else(Timer::never, Timer::at).await;
            None
        };
        match or(changed, or(late, async { Some(signals.next().await) })).await {
            None => {}
            Some(Some(Ok(Signal::Term))) if deadline.is_none() => {
                log::info!(
                    "SIGTERM: the plugin serves while GitLab Runner is connected, for at most {} s",
                    limit.as_secs()
                );
                deadline = Some(Instant::now() + limit);
            }
            Some(Some(Ok(signal))) => log::debug!("{signal:?}: ignored, GitLab Runner decides when to stop"),
            Some(Some(Err(error))) => {
                log::warn!("cannot read signals: {error}; retry in {} s", SIGNAL_PAUSE.as_secs());
                Timer::after(SIGNAL_PAUSE).await;
            }
            Some(None) => smol::future::pending().await,
        }
    }
}

/// Waits for the host's exit. The host holds the other end of stdout: a pipe without a reader reports an error at once.
#[cfg(unix)]
async fn host_gone(server: &Server) -> &'static str {
    use std::os::unix::process::parent_id;
    if is_pipe(std::io::stdout()).unwrap_or(false)
        // This waits to read from a pipe that only writes: only the error wakes it. The mode of stdout, which other
        // processes share, does not change.
        && let Ok(stdout) = smol::Async::new_nonblocking(std::io::stdout())
        && stdout.readable().await.is_ok()
    {
        return "GitLab Runner has exited";
    }
    let parent = parent_id();
    while server.is_connected() || parent_id() == parent {
        Timer::after(WATCH_INTERVAL).await;
    }
    "GitLab Runner has exited: this process has another parent, and no connection"
}

#[cfg(unix)]
fn is_pipe(stream: impl std::os::fd::AsFd) -> std::io::Result<bool> {
    use std::os::unix::fs::FileTypeExt;
    let copy = std::fs::File::from(stream.as_fd().try_clone_to_owned()?);
    Ok(copy.metadata()?.file_type().is_fifo())
}

/// Waits for the host's exit: it was connected, and is no longer.
#[cfg(windows)]
async fn host_gone(server: &Server) -> &'static str {
    while !server.is_connected() {
        Timer::after(WATCH_INTERVAL).await;
    }
    while server.is_connected() {
        Timer::after(WATCH_INTERVAL).await;
    }
    "GitLab Runner has exited"
}

#[cfg(test)]
mod tests {
    use super::super::server::Connected;
    use super::*;
    use crate::driver::Plugin;
    use smol::stream;
    use std::rc::Rc;

    #[test]
    fn a_host_that_stays_connected_after_sigterm_is_left() {
        let executor = Rc::new(smol::LocalExecutor::new());
        let server = Server::new(executor.clone(), Plugin::new(executor, |_, _, _| {}));
        let _host = Connected::new(&server);
        // A second SIGTERM does not give it more time.
        let signals = || stream::iter([Ok(Signal::Term), Ok(Signal::Term)]).chain(stream::pending());
        let end = smol::block_on(told_to_stop(&server, signals(), Duration::from_millis(20)));
        assert_eq!(end, "SIGTERM, and GitLab Runner did not shut down this plugin in time");
        let waits = told_to_stop(&server, signals(), TERM_LIMIT);
        let end = smol::block_on(or(waits, async {
            Timer::after(Duration::from_millis(20)).await;
            ""
        }));
        assert_eq!(end, "", "it is served meanwhile");
    }

    #[test]
    fn signals_that_cannot_be_read_are_not_read_without_a_pause() {
        let executor = Rc::new(smol::LocalExecutor::new());
        let server = Server::new(executor.clone(), Plugin::new(executor, |_, _, _| {}));
        let mut reads = 0;
        let signals = stream::repeat_with(|| {
            reads += 1;
            assert!(reads < 10, "without a pause");
            Err(std::io::Error::other("no"))
        });
        smol::block_on(or(async { _ = told_to_stop(&server, signals, TERM_LIMIT).await }, async {
            Timer::after(Duration::from_millis(20)).await;
        }));
        assert!(reads > 0);
    }
}
