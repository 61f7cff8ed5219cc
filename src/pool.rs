//! A few threads for blocking calls. They start when first needed and then sleep until there is work: no wake-ups in idling.

use smol::channel::{Receiver, Sender, bounded};
use std::cell::Cell;
use std::thread;

/// At most so many threads, and so requests to VCD at a time.
pub const THREADS: usize = 4;
/// At most so many calls wait for a thread.
pub const MAX_WAITING: usize = 4096;
/// Stack of a thread: TLS and XML need less, musl's default would be too small.
const STACK: usize = 512 * 1024;

type Job = Box<dyn FnOnce() + Send>;

/// The threads and their queue.
pub struct Pool {
    jobs: Sender<Job>,
    queue: Receiver<Job>,
    threads: Cell<usize>,
    busy: Cell<usize>,
}

impl Default for Pool {
    fn default() -> Pool {
        let (jobs, queue) = bounded(MAX_WAITING);
        Pool { jobs, queue, threads: Cell::new(0), busy: Cell::new(0) }
    }
}

impl Pool {
    /// Runs `call` on a thread. `None` if too many calls wait already or no thread can be had. A dropped future does not
    /// stop its call.
    pub async fn run<T: Send + 'static>(&self, call: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let (done, result) = bounded(1);
        let job: Job = Box::new(move || {
            // Nobody waits any more if the future was dropped.
            let _ = done.try_send(call());
        });
        self.busy.set(self.busy.get() + 1);
        let _busy = Busy(&self.busy);
        if self.busy.get() > self.threads.get() && self.threads.get() < THREADS {
            self.start_thread();
        }
        self.jobs.try_send(job).ok()?;
        result.recv().await.ok()
    }

    /// Calls that run or wait.
    pub fn busy(&self) -> usize {
        self.busy.get()
    }

    /// Threads so far.
    pub fn threads(&self) -> usize {
        self.threads.get()
    }

    fn start_thread(&self) {
        let queue = self.queue.clone();
        let work = move || {
            while let Ok(job) = queue.recv_blocking() {
                job();
            }
        };
        match thread::Builder::new().name("vcd".into()).stack_size(STACK).spawn(work) {
            Ok(_) => self.threads.set(self.threads.get() + 1),
            Err(error) => log::error!("start a thread for requests to VCD: {error}; the others go on"),
        }
    }
}

struct Busy<'a>(&'a Cell<usize>);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
