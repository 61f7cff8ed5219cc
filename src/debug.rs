//! The debug server: what the plugin does, in plain text, over HTTP/1. Read-only, a few short connections at a time.

use crate::driver::Driver;
use crate::group::View;
use crate::transport::{Clock, Io};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use smol::LocalExecutor;
use smol::future::FutureExt;
use smol::lock::Semaphore;
use std::convert::Infallible;
use std::fmt::Write;
use std::rc::Rc;
use std::time::Duration;

/// At most so many connections at a time; further ones wait.
pub const MAX_CONNECTIONS: usize = 8;
/// A connection may last so long in all.
pub const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);
/// A request's head must arrive within this time.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// A request's head may be so large.
pub const MAX_HEADER_BYTES: usize = 16 * 1024;
/// Pause after a failed accept (no descriptors left, for one).
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Serves `driver`'s state at `address` (`HOST:PORT`) until the process ends. A failure to listen is a warning: the plugin
/// runs on without it.
pub fn start(executor: &Rc<LocalExecutor<'static>>, driver: Rc<Driver>, address: String) {
    executor.spawn(serve(executor.clone(), driver, address)).detach();
}

async fn serve(executor: Rc<LocalExecutor<'static>>, driver: Rc<Driver>, address: String) {
    let listener = match smol::net::TcpListener::bind(&address).await {
        Ok(listener) => listener,
        Err(error) => {
            log::warn!("listen at debug_server_addr {address}: {error}; the plugin runs on without a debug server");
            return;
        }
    };
    match listener.local_addr() {
        Ok(local) if !local.ip().is_loopback() => {
            log::warn!("debug server at http://{local}: anyone who can reach this address can read it");
        }
        Ok(local) => log::info!("debug server at http://{local}"),
        Err(_) => {}
    }
    let places = std::sync::Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let place = places.acquire_arc().await;
        match listener.accept().await {
            Ok((stream, _)) => {
                let driver = driver.clone();
                let connection = async move {
                    let _place = place;
                    let serve = hyper::server::conn::http1::Builder::new()
                        .timer(Clock)
                        .header_read_timeout(HEADER_TIMEOUT)
                        .max_buf_size(MAX_HEADER_BYTES)
                        .serve_connection(Io(stream), hyper::service::service_fn(|request| answer(&driver, request)));
                    let late = async {
                        smol::Timer::after(CONNECTION_TIMEOUT).await;
                        Ok(())
                    };
                    if let Err(error) = serve.or(late).await {
                        log::debug!("debug server: {error}");
                    }
                };
                executor.spawn(connection).detach();
            }
            Err(error) => {
                log::warn!("debug server: accept: {error}; goes on in {} s", ACCEPT_PAUSE.as_secs());
                smol::Timer::after(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn answer(driver: &Driver, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (status, text) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/") => (StatusCode::OK, text_page(driver)),
        (&Method::GET | &Method::HEAD, _) => (StatusCode::NOT_FOUND, "not found; try /\n".into()),
        _ => (StatusCode::METHOD_NOT_ALLOWED, "read-only: GET and HEAD\n".into()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

fn text_page(driver: &Driver) -> String {
    let (views, uptime) = (driver.views(), driver.uptime());
    let mut page = format!(
        "{} {}, up {}, {} instances\n\n",
        env!("CARGO_PKG_NAME"),
        env!("CARGO_PKG_VERSION"),
        short(uptime),
        views.len()
    );
    page.push_str(&table(&views));
    page
}

/// A fixed-width table of instances.
fn table(views: &[View]) -> String {
    let width = views.iter().map(|view| view.name.len()).max().unwrap_or(0).max(4);
    let mut text = format!("{:width$}  {:13}  {:15}  {:>5}  WAITS FOR\n", "NAME", "PHASE", "ADDRESS", "AGE");
    for view in views {
        let address = view.address.map(|address| address.to_string()).unwrap_or_else(|| "-".into());
        let (phase, age) = (view.phase.name(), short(view.age));
        // Writing to a String cannot fail.
        let _ = write!(text, "{:width$}  {phase:13}  {address:15}  {age:>5}  {}", view.name, view.waits_for);
        if let Some(error) = &view.error {
            let _ = write!(text, "  [{} retries; {error}]", view.retries);
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

/// Two places at most: `47s`, `12m`, `3h`, `9d`.
fn short(duration: Duration) -> String {
    match duration.as_secs() {
        s @ 0..120 => format!("{s}s"),
        s @ 120..7200 => format!("{}m", s / 60),
        s @ 7200..172_800 => format!("{}h", s / 3600),
        s => format!("{}d", s / 86_400),
    }
}
