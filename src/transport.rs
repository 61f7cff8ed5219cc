//! hyper on smol: its executor, its timer and its byte streams, for all HTTP servers and clients here.

use hyper::rt;
use smol::LocalExecutor;
use smol::io::{AsyncRead, AsyncWrite};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

/// Maximum number of bytes per read from a connection.
const READ_SIZE: usize = 8 * 1024;

/// hyper's tasks on this thread's executor; they need not be `Send`.
#[derive(Clone)]
pub struct Tasks(pub Rc<LocalExecutor<'static>>);

impl<F> rt::Executor<F> for Tasks
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        self.0.spawn(future).detach();
    }
}

/// hyper's clock.
#[derive(Clone, Copy)]
pub struct Clock;

impl rt::Timer for Clock {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn rt::Sleep>> {
        Box::pin(Sleep(smol::Timer::after(duration)))
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn rt::Sleep>> {
        Box::pin(Sleep(smol::Timer::at(deadline)))
    }
}

/// One sleep of [`Clock`].
struct Sleep(smol::Timer);

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.0).poll(cx).map(|_| ())
    }
}

impl rt::Sleep for Sleep {}

/// Listens on a Unix socket that has this mode from its first moment.
#[cfg(unix)]
pub fn listen(path: &std::path::Path, mode: u32) -> io::Result<smol::Async<std::os::unix::net::UnixListener>> {
    // A later change of the mode would use the path, which may lead elsewhere by then.
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::Mode;
        use rustix::process::umask;
        let before = umask(Mode::from_raw_mode(!mode & 0o777));
        let listener = smol::Async::<std::os::unix::net::UnixListener>::bind(path);
        umask(before);
        listener
    }
    #[cfg(not(target_os = "linux"))]
    {
        use std::os::unix::fs::PermissionsExt;
        let listener = smol::Async::<std::os::unix::net::UnixListener>::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
        Ok(listener)
    }
}

/// A byte stream of smol in hyper's interface.
pub struct Io<T>(pub T);

impl<T: AsyncRead + Unpin> rt::Read for Io<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut to: rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        // hyper's buffer may be uninitialized: filling it in place would take `unsafe`.
        let mut buffer = [0; READ_SIZE];
        let room = buffer.len().min(to.remaining());
        let (part, _) = buffer.split_at_mut(room);
        let count = ready!(Pin::new(&mut self.0).poll_read(cx, part))?;
        to.put_slice(part.get(..count).unwrap_or_default());
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> rt::Write for Io<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_close(cx)
    }
}
