//! Adapters between hyper and smol: streams, timers, bodies. Also reads a request completely.

use crate::routes::{Request, decode};
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::rt::{Read, ReadBufCursor, Sleep, Timer, Write};
use smol::io::{AsyncRead, AsyncWrite};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

/// Maximum size of a request body, in bytes.
pub const MAX_BODY: usize = 1 << 20;
/// Bytes that are read from a socket in one call.
const READ_CHUNK: usize = 8192;

/// A smol stream for hyper.
pub struct Stream<T>(pub T);

impl<T: AsyncRead + Unpin> Read for Stream<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, mut buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let mut chunk = [0u8; READ_CHUNK];
        let room = buf.remaining().min(READ_CHUNK);
        let n = match chunk.get_mut(..room) {
            Some(part) => ready!(Pin::new(&mut self.0).poll_read(cx, part))?,
            None => 0,
        };
        buf.put_slice(chunk.get(..n).unwrap_or(&[]));
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> Write for Stream<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_close(cx)
    }
}

/// smol's timer for hyper.
pub struct SmolTimer;

struct SmolSleep(smol::Timer);

impl Future for SmolSleep {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.0).poll(cx).map(|_| ())
    }
}

impl Sleep for SmolSleep {}

impl Timer for SmolTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        Box::pin(SmolSleep(smol::Timer::after(duration)))
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        Box::pin(SmolSleep(smol::Timer::at(deadline)))
    }
}

/// A body that may break off before its end.
pub struct Out {
    data: Option<Bytes>,
    /// The connection breaks when this ends: what was written has time to go out.
    breaks: Option<smol::Timer>,
}

/// After a truncated answer, the connection stays open for this long.
const BREAK_AFTER: Duration = Duration::from_millis(20);

impl Out {
    /// A complete body.
    pub fn whole(data: impl Into<Bytes>) -> Self {
        Self { data: Some(data.into()), breaks: None }
    }

    /// The start of a body; then the connection breaks.
    pub fn cut(data: impl Into<Bytes>) -> Self {
        Self { data: Some(data.into()), breaks: Some(smol::Timer::after(BREAK_AFTER)) }
    }
}

impl Body for Out {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if let Some(data) = self.data.take().filter(|d| !d.is_empty()) {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        match &mut self.breaks {
            None => Poll::Ready(None),
            Some(timer) => {
                ready!(Pin::new(timer).poll(cx));
                Poll::Ready(Some(Err(io::ErrorKind::BrokenPipe.into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.breaks.is_none() && self.data.as_ref().is_none_or(Bytes::is_empty)
    }

    fn size_hint(&self) -> SizeHint {
        match (&self.data, &self.breaks) {
            (data, None) => SizeHint::with_exact(data.as_ref().map_or(0, |d| d.len() as u64)),
            _ => SizeHint::default(),
        }
    }
}

/// Reads a request completely. `None` if its body is too large.
pub async fn read(request: hyper::Request<Incoming>, scheme: &str) -> io::Result<Option<Request>> {
    let (head, mut body) = request.into_parts();
    let header = |name: &str| head.headers.get(name).and_then(|v| v.to_str().ok()).map(String::from);
    let query = head.uri.query().unwrap_or("");
    let mut read = Request {
        method: head.method.as_str().into(),
        path: decode(head.uri.path()),
        query: form_urlencoded::parse(query.as_bytes()).into_owned().collect(),
        accept: header("accept"),
        packs: header("accept-encoding").is_some_and(|all| all.split(',').any(|one| one.trim() == "gzip")),
        authorization: header("authorization"),
        content_type: header("content-type"),
        base: format!("{scheme}://{}", header("host").unwrap_or_default()),
        body: Vec::new(),
    };
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let frame = frame.map_err(io::Error::other)?;
        let data = frame.into_data().unwrap_or_default();
        if read.body.len() + data.len() > MAX_BODY {
            return Ok(None);
        }
        read.body.extend_from_slice(&data);
    }
    Ok(Some(read))
}
