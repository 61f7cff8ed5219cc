//! A proxy between the plugin and the simulated VCD that sees every request and every answer, and can delay, change
//! or drop them. HTTP/1.1, one request per connection. Links in the answers lead to the proxy, because VCD builds
//! them from the Host header.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// A request, unchanged.
pub struct Request {
    pub method: String,
    /// Includes the query.
    pub path: String,
    /// The header lines, unchanged.
    pub headers: Vec<String>,
    pub body: Vec<u8>,
    /// For the watcher.
    pub mark: usize,
}

impl Request {
    /// The request is no read.
    pub fn changes(&self) -> bool {
        self.method != "GET" && !self.path.starts_with("/oauth") && !self.path.starts_with("/cloudapi")
    }
}

/// A complete answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    /// The header lines, without those about the length and the connection.
    pub headers: Vec<String>,
    pub body: String,
}

/// Watches requests and answers.
pub trait Watch: Send + Sync + 'static {
    /// False: VCD does not get the request, and the connection is closed.
    fn before(&self, _: &mut Request) -> bool {
        true
    }

    /// None: VCD has carried out the request, and the connection is closed.
    fn after(&self, _: &Request, answer: Answer) -> Option<Answer> {
        Some(answer)
    }
}

/// A running proxy. Dropping it ends it.
pub struct Relay {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Starts a proxy in front of `upstream`, `http://HOST:PORT`.
    pub fn start(upstream: &str, watch: Arc<dyn Watch>) -> Relay {
        let upstream = upstream.trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("a bound address");
        let stop = Arc::new(AtomicBool::new(false));
        let told_to_stop = stop.clone();
        let thread = std::thread::spawn(move || {
            for client in listener.incoming() {
                if told_to_stop.load(Ordering::SeqCst) {
                    return;
                }
                let (Ok(client), upstream, watch) = (client, upstream.clone(), watch.clone()) else { continue };
                // If anything fails here, the client sees the end of the connection without an answer.
                std::thread::spawn(move || _ = pass(client, &upstream, &*watch));
            }
        });
        Relay { address, stop, thread: Some(thread) }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(self.address));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn pass(client: TcpStream, upstream: &str, watch: &dyn Watch) -> Option<()> {
    let mut reader = BufReader::new(client.try_clone().ok()?);
    let (first, headers) = head(&mut reader)?;
    let mut words = first.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let length = headers.iter().find_map(|line| value(line, "content-length")).and_then(|n| n.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body).ok()?;
    let mut request = Request { method, path, headers, body, mark: 0 };
    if !watch.before(&mut request) {
        return None;
    }
    let answer = watch.after(&request, ask(&request, upstream)?)?;
    let mut text = format!("HTTP/1.1 {} X\r\n", answer.status);
    for line in &answer.headers {
        text += &format!("{line}\r\n");
    }
    text += &format!("Content-Length: {}\r\nConnection: close\r\n\r\n{}", answer.body.len(), answer.body);
    (&client).write_all(text.as_bytes()).ok()
}

fn ask(request: &Request, upstream: &str) -> Option<Answer> {
    let mut server = TcpStream::connect(upstream).ok()?;
    let mut text = format!("{} {} HTTP/1.1\r\nConnection: close\r\n", request.method, request.path);
    // The watcher needs uncompressed answers.
    let passes = |line: &&String| ["connection", "accept-encoding"].iter().all(|name| value(line, name).is_none());
    for line in request.headers.iter().filter(passes) {
        text += &format!("{line}\r\n");
    }
    server.write_all(format!("{text}\r\n").as_bytes()).ok()?;
    server.write_all(&request.body).ok()?;
    let mut reader = BufReader::new(server);
    let (first, mut headers) = head(&mut reader)?;
    let status = first.split(' ').nth(1)?.parse().ok()?;
    let length: Option<usize> =
        headers.iter().find_map(|line| value(line, "content-length")).and_then(|n| n.parse().ok());
    let mut body = Vec::new();
    reader.read_to_end(&mut body).ok()?;
    if length.is_some_and(|length| length != body.len()) {
        return None;
    }
    headers.retain(|line| ["content-length", "connection"].iter().all(|name| value(line, name).is_none()));
    Some(Answer { status, headers, body: String::from_utf8(body).ok()? })
}

/// The first line and the header lines.
fn head(reader: &mut BufReader<TcpStream>) -> Option<(String, Vec<String>)> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    (!lines.is_empty()).then(|| (lines.remove(0), lines))
}

/// A header's value, if the line has this header.
pub fn value<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let (key, value) = line.split_once(':')?;
    key.eq_ignore_ascii_case(name).then(|| value.trim())
}
