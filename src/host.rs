//! The interface to GitLab Runner: go-plugin's handshake, the gRPC services over a Unix socket, the log lines, the end
//! of the process.

mod calls;
mod end;
mod handshake;
pub mod log;
#[rustfmt::skip]
pub mod proto;
mod server;
#[cfg(unix)]
mod socket;
#[cfg(windows)]
#[path = "host/socket_windows.rs"]
mod socket;

pub use calls::MAX_MESSAGE;
#[cfg(fuzzing)]
pub use handshake::Refusal;
pub use handshake::{COOKIE, COOKIE_VARIABLE};

use crate::driver::Plugin;
#[cfg(fuzzing)]
use handshake::Handshake;
#[cfg(not(fuzzing))]
use handshake::{Handshake, Refusal};
use server::Server;
use smol::future::{or, zip};
use smol::{LocalExecutor, Timer};
use socket::Socket;
use std::io::Write;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

/// At its end the plugin waits at most this time for requests in progress. The host kills the process 2 s after its
/// last call.
const DRAIN_LIMIT: Duration = Duration::from_millis(1000);

/// Then it waits at most this time until VCD has ended the session. Otherwise the session expires much later.
const LOG_OUT_LIMIT: Duration = Duration::from_millis(500);

/// At its end the plugin waits at most this time until the host has read the last answers.
const FLUSH_LIMIT: Duration = Duration::from_millis(500);

/// Serves `plugin` to the host that started this process, until the host's last call, the host's exit, or SIGTERM.
pub async fn serve(executor: Rc<LocalExecutor<'static>>, plugin: Rc<Plugin>) -> ExitCode {
    log::init();
    let environment = |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    let started = match Handshake::read(environment) {
        Ok(handshake) => run(executor, plugin, handshake).await,
        Err(Refusal::Unsupported(reason)) => Err(reason.to_owned()),
        Err(Refusal::NoHost) => {
            let text = "This binary is a plugin. Do not run it directly: GitLab Runner starts it, as set in \
                        [runners.autoscaler] of its config.toml. `--help` lists the commands for people.\n";
            let _ = std::io::stderr().write_all(text.as_bytes());
            return ExitCode::FAILURE;
        }
    };
    match started {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            ::log::error!("cannot start, and GitLab Runner gets no VMs: {reason}");
            ExitCode::FAILURE
        }
    }
}

/// From the start of the socket to its end. The error says why the plugin cannot serve.
async fn run(executor: Rc<LocalExecutor<'static>>, plugin: Rc<Plugin>, handshake: Handshake) -> Result<(), String> {
    // First: from here on no signal can leave the socket behind.
    let signals = end::signals()?;
    let socket = Socket::bind(handshake.socket_dir.as_deref(), handshake.socket_group.as_deref())?;
    let server = Server::new(executor, plugin);
    let address = socket.address();
    handshake
        .answer(socket::NETWORK, &address)
        .map_err(|error| format!("cannot write the socket's address to stdout for GitLab Runner: {error}"))?;
    ::log::debug!("listening on {address}");

    let accepting = async {
        socket.remove_leftovers().await;
        match server.clone().accept(&socket).await {}
    };
    let reason = or(end::reason(&server, signals), accepting).await;
    ::log::info!("stopping: {reason}");

    server.stop();
    let drain = async {
        server.plugin.drain().await;
        true
    };
    let flush = async {
        while server.is_connected() {
            server.changed().await;
        }
        true
    };
    let log_out = async {
        server.plugin.log_out().await;
        true
    };
    let leave = async {
        let drained = within(DRAIN_LIMIT, drain).await;
        // Without a session, requests in progress would have to log in again.
        if drained && !within(LOG_OUT_LIMIT, log_out).await {
            ::log::debug!("VCD did not end the session in time");
        }
        drained
    };
    let (drained, flushed) = zip(leave, within(FLUSH_LIMIT, flush)).await;
    if !drained {
        ::log::warn!("VCD did not answer some requests in time: the next start looks up their results");
    }
    if !flushed {
        ::log::debug!("GitLab Runner still has a connection open");
    }
    Ok(())
}

/// For `fuzz/`: the answer to the handshake with this environment. Nothing is created for it.
#[cfg(fuzzing)]
pub fn line(variable: impl Fn(&str) -> Option<String>) -> Result<Result<String, String>, Refusal> {
    let handshake = Handshake::read(variable)?;
    let line = || {
        let groups = std::path::Path::new(socket::GROUPS);
        let _ = handshake.socket_group.as_deref().map(|group| socket::group_id(group, groups)).transpose()?;
        let place = socket::place(handshake.socket_dir.as_deref())?;
        Ok(handshake.line(socket::NETWORK, &place.join(socket::SOCKET).display().to_string()))
    };
    Ok(line())
}

/// For `fuzz/`: serves one connection to its end, then stops as the process does at its own.
#[cfg(fuzzing)]
pub async fn serve_connection(
    executor: Rc<LocalExecutor<'static>>,
    plugin: Rc<Plugin>,
    stream: impl smol::io::AsyncRead + smol::io::AsyncWrite + Unpin + 'static,
) {
    let server = Server::new(executor, plugin);
    server.clone().serve(stream).await;
    server.stop();
    server.plugin.drain().await;
    server.plugin.log_out().await;
}

/// `future`, or false after `limit`.
async fn within(limit: Duration, future: impl Future<Output = bool>) -> bool {
    let late = async {
        Timer::after(limit).await;
        false
    };
    or(future, late).await
}
