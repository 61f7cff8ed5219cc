//! A few threads for blocking calls. They start when first needed and then sleep until there is work: an idle pool
//! causes no wake-ups. The thread that slept last wakes first: in quiet times it is always the same one, and only its
//! memory is used.

use smol::channel::{Sender, bounded};
use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

/// Maximum number of threads, and so of concurrent requests to VCD.
pub const THREADS: usize = 4;
/// Maximum number of calls that wait for a thread.
pub const MAX_WAITING: usize = 4096;
/// Stack of a thread. TLS and XML need less. musl's default would be too small.
const STACK: usize = 512 * 1024;

type Job = Box<dyn FnOnce() + Send>;

/// The threads and their queue.
#[derive(Default)]
pub struct Pool {
    shared: Arc<Mutex<Shared>>,
    busy: Cell<usize>,
}

#[derive(Default)]
struct Shared {
    waiting: VecDeque<Job>,
    /// Each accepts one job.
    asleep: Vec<Sender<Job>>,
    threads: usize,
    /// The pool was dropped.
    closed: bool,
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    // Jobs run without the lock.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// Runs `call` on a thread. `None` if too many calls wait already or no thread can start. A dropped future does not
    /// stop its call.
    pub async fn run<T: Send + 'static>(&self, call: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let (done, result) = bounded(1);
        let job: Job = Box::new(move || {
            // If the future was dropped, nobody waits for the result.
            let _ = done.try_send(call());
        });
        self.busy.set(self.busy.get() + 1);
        let _busy = Busy(&self.busy);
        self.hand_out(job);
        // A job that is dropped before it runs closes the channel.
        result.recv().await.ok()
    }

    /// Calls that run or wait.
    pub fn busy(&self) -> usize {
        self.busy.get()
    }

    /// Threads that were started.
    pub fn threads(&self) -> usize {
        lock(&self.shared).threads
    }

    /// Wakes a thread for the job, starts one, or lets the job wait.
    fn hand_out(&self, job: Job) {
        let mut shared = lock(&self.shared);
        if let Some(thread) = shared.asleep.pop() {
            let _ = thread.try_send(job);
            return;
        }
        // A thread that has just finished its job accepts the next one, too.
        if self.busy.get() > shared.threads && shared.threads < THREADS {
            match start_thread(self.shared.clone()) {
                Ok(_) => shared.threads += 1,
                Err(error) => log::error!(
                    "start a thread for requests to VCD: {error}; {} others continue, more slowly. Check the limits of \
                     threads (TasksMax, ulimit -u)",
                    shared.threads
                ),
            }
        }
        if shared.threads > 0 && shared.waiting.len() < MAX_WAITING {
            shared.waiting.push_back(job);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let mut shared = lock(&self.shared);
        shared.closed = true;
        shared.asleep.clear();
    }
}

fn start_thread(shared: Arc<Mutex<Shared>>) -> std::io::Result<thread::JoinHandle<()>> {
    let work = move || {
        loop {
            let mut now = lock(&shared);
            if let Some(job) = now.waiting.pop_front() {
                drop(now);
                job();
            } else if now.closed {
                return;
            } else {
                let (wake, woken) = bounded(1);
                now.asleep.push(wake);
                drop(now);
                match woken.recv_blocking() {
                    Ok(job) => job(),
                    Err(_) => return,
                }
            }
        }
    };
    thread::Builder::new().name("vcd".into()).stack_size(STACK).spawn(work)
}

struct Busy<'a>(&'a Cell<usize>);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smol::block_on;
    use std::collections::BTreeSet;

    #[test]
    fn quiet_times_need_one_thread_and_busy_ones_no_more_than_all() {
        let pool = Pool::default();
        let who = || thread::current().id();
        let seen: Vec<_> = (0..20).map(|_| block_on(pool.run(who)).unwrap()).collect();
        assert!(seen.iter().all(|id| *id == seen[0]), "one after another");

        // All threads meet; more calls wait.
        let barrier = Arc::new(std::sync::Barrier::new(THREADS));
        let meet = || {
            let barrier = barrier.clone();
            pool.run(move || {
                barrier.wait();
                thread::current().id()
            })
        };
        let executor = smol::LocalExecutor::new();
        let met: BTreeSet<String> = block_on(executor.run(async {
            let tasks: Vec<_> = (0..THREADS * 3).map(|_| executor.spawn(meet())).collect();
            let mut met = BTreeSet::new();
            for task in tasks {
                met.insert(format!("{:?}", task.await.unwrap()));
            }
            met
        }));
        assert_eq!(met.len(), THREADS);
        assert_eq!(pool.busy(), 0);
    }

    #[test]
    fn calls_beyond_those_that_may_wait_are_refused() {
        let pool = Pool::default();
        let (gate, opened) = bounded::<()>(1);
        let (begun, begins) = smol::channel::unbounded();
        let call = || {
            let (opened, begun) = (opened.clone(), begun.clone());
            Box::pin(pool.run(move || {
                begun.try_send(()).unwrap();
                opened.recv_blocking().is_err()
            }))
        };
        let mut calls: Vec<_> = (0..THREADS).map(|_| call()).collect();
        assert!(calls.iter_mut().all(|call| block_on(smol::future::poll_once(call)).is_none()));
        (0..THREADS).for_each(|_| begins.recv_blocking().unwrap());
        for _ in 0..MAX_WAITING {
            let mut call = call();
            assert!(block_on(smol::future::poll_once(&mut call)).is_none());
            calls.push(call);
        }
        assert_eq!(block_on(call()), None, "one too many");
        gate.close();
        assert!(calls.into_iter().all(|call| block_on(call) == Some(true)));
    }
}
