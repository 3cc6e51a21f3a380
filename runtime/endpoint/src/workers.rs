//! A pool of threads for handlers that take long: their messages queue there, the endpoint goes on.
//!
//! ```text
//!   endpoint's thread                                    a worker
//!   dispatch -> queue: copy of the message, Later ---->  job(&shared, &message, later)
//!                      (bounded, never waited for)              |
//!   poll: send the answer  <---- mailbox, bell ------------ later.send(...)
//! ```
//!
//! A queue that is full refuses: a caller gets [`CallError::NoReply`](crate::CallError::NoReply), and `drop_queue_full` counts one. A
//! channel may have a share of the queue only, so that no peer fills it for the others. Both are bounded in bytes too: a message may have
//! 64 MiB, and many of those that wait are as much memory as peers like. Answers come in the order in which the work is done, not in
//! that of the calls.

use crate::later::{Desk, Later};
use crate::{Handlers, Message, Reply};
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use tightbeam_segment::{Answer, Counter, MAX_CALLS, MAX_MESSAGE};
use tightbeam_sys::apart;

/// How many bytes of messages workers may have if nothing else is said: a channel's part of them is one of the longest.
const DEFAULT_BYTES: usize = PARTS * MAX_MESSAGE;
/// A channel has one part of so many.
const PARTS: usize = 4;

/// What a worker does with a message of one index.
type Work<T> = Box<dyn Fn(&T, &[u8], Later) + Send + Sync>;
/// The same for all indices, with what they share.
type Run = dyn Fn(u16, &[u8], Later) + Send + Sync;

/// Threads that handle messages beside an endpoint, which is what [`Builder::workers`](crate::Builder::workers) makes of this.
///
/// ```
/// use tightbeam_endpoint::{Later, Workers};
///
/// const HASH: u16 = 7;
/// let salt = 17u64; // what the handlers share
/// let workers = Workers::new(salt).threads(2).queue(64).on(HASH, |salt, message, later: Later| {
///     let sum = message.iter().fold(*salt, |sum, byte| sum.wrapping_mul(31) + u64::from(*byte));
///     later.send(sum.to_le_bytes());
/// });
/// ```
#[must_use]
pub struct Workers<T> {
    shared: T,
    table: HashMap<u16, Work<T>>,
    threads: usize,
    queue: usize,
    share: Option<usize>,
    bytes: usize,
}

impl<T: Send + Sync + 'static> Workers<T> {
    /// Two threads with a queue of 64 messages, and of 256 MiB. All handlers see `shared`; what they change in it needs a lock or an atomic.
    pub fn new(shared: T) -> Workers<T> {
        Workers {
            shared,
            table: HashMap::new(),
            threads: 2,
            queue: 64,
            share: None,
            bytes: DEFAULT_BYTES,
        }
    }

    /// How many threads, at least one.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads.max(1);
        self
    }

    /// How many messages may wait for a thread, at least one.
    pub fn queue(mut self, messages: usize) -> Self {
        self.queue = messages.max(1);
        self
    }

    /// How many messages of one channel may wait or be worked on at a time; by default as many as it may have
    /// [calls](crate::MAX_CALLS), or a quarter of the queue if that is more.
    pub fn share(mut self, messages: usize) -> Self {
        self.share = Some(messages.max(1));
        self
    }

    /// How many bytes the messages may have together that are not answered yet; 256 MiB by default. A longer one is always refused.
    ///
    /// Those of one channel may have a quarter of that, and one message alone may have more: so whatever fits at all can be handled, if its
    /// channel waits for nothing else.
    pub fn bytes(mut self, bytes: usize) -> Self {
        self.bytes = bytes;
        self
    }

    /// Registers what is to be done with messages of this index. It may take its time; the endpoint's own handler of this index, if
    /// there is one, is replaced.
    ///
    /// If it panics the caller is told that there is no reply, and the thread goes on with the next message.
    pub fn on(
        mut self,
        index: u16,
        work: impl Fn(&T, &[u8], Later) + Send + Sync + 'static,
    ) -> Self {
        self.table.insert(index, Box::new(work));
        self
    }

    /// The same without the type of what is shared.
    pub(crate) fn plan(self) -> Plan {
        let (shared, table) = (self.shared, self.table);
        Plan {
            indices: table.keys().copied().collect(),
            threads: self.threads,
            queue: self.queue,
            share: self.share.unwrap_or((self.queue / PARTS).max(MAX_CALLS)),
            bytes: self.bytes,
            run: Arc::new(move |index, message, later| {
                if let Some(work) = table.get(&index) {
                    work(&shared, message, later);
                }
            }),
        }
    }
}

/// Workers that have not been started.
pub(crate) struct Plan {
    indices: Vec<u16>,
    threads: usize,
    queue: usize,
    share: usize,
    bytes: usize,
    run: Arc<Run>,
}

impl Plan {
    /// Has the table queue what is the workers'.
    pub(crate) fn register<S>(&self, mut handlers: Handlers<S>) -> Handlers<S> {
        for index in &self.indices {
            handlers = handlers.on(*index, queue::<S>);
        }
        handlers
    }

    /// Starts the threads.
    pub(crate) fn start(self) -> io::Result<Jobs> {
        let (sender, receiver) = bounded(self.queue);
        let progress = Arc::new(Progress::default());
        let jobs = Jobs {
            sender: RefCell::new(Some(sender)),
            share: self.share,
            bytes: self.bytes,
            held: Cell::new(0),
            progress: Arc::clone(&progress),
            threads: RefCell::default(),
        };
        for _ in 0..self.threads {
            let (receiver, run) = (receiver.clone(), Arc::clone(&self.run));
            let progress = Arc::clone(&progress);
            // If this one cannot be had those before it end with `jobs`.
            let work = move || work(&receiver, &*run, &progress);
            let thread = apart::spawn("tightbeam-worker", work)?;
            jobs.threads.borrow_mut().push(thread);
        }
        Ok(jobs)
    }
}

struct Job {
    index: u16,
    message: Vec<u8>,
    later: Later,
}

#[derive(Default)]
struct Progress {
    stopping: AtomicBool,
    panics: AtomicU64,
}

/// A pool that runs. Dropping it waits for what its threads are at; what still waits is not begun.
pub(crate) struct Jobs {
    sender: RefCell<Option<Sender<Job>>>,
    share: usize,
    bytes: usize,
    /// Bytes of the messages that wait or are worked on. They go down where their answer is taken, as a channel's do: who is answered, and sends
    /// the next one at once, finds room for it.
    held: Cell<usize>,
    progress: Arc<Progress>,
    threads: RefCell<Vec<JoinHandle<()>>>,
}

impl Jobs {
    /// Panics in the workers so far.
    pub(crate) fn panics(&self) -> u64 {
        self.progress.panics.load(Ordering::Relaxed)
    }

    /// Whether there is room for one more message of so many bytes from this channel. Asked before it is copied, so that what is refused
    /// costs nothing.
    fn has_room(&self, desk: &Desk, bytes: usize) -> bool {
        let (all, of_channel) = (self.held.get(), desk.queued_bytes.get());
        let fits = |held: usize, most: usize| bytes <= most.saturating_sub(held);
        // Nobody else puts anything there, so it does not become full meanwhile.
        let full = self.sender.borrow().as_ref().is_none_or(Sender::is_full);
        !full
            && desk.queued.get() < self.share
            && fits(all, self.bytes)
            && (of_channel == 0 || fits(of_channel, self.bytes / PARTS))
    }

    /// Notes that a message of so many bytes has been answered, or will not be.
    pub(crate) fn done_with(&self, bytes: usize) {
        self.held.set(self.held.get().saturating_sub(bytes));
    }

    /// Whether there was room for it.
    fn put(&self, job: Job) -> Result<(), Job> {
        match &*self.sender.borrow() {
            None => Err(job),
            Some(sender) => sender.try_send(job).map_err(TrySendError::into_inner),
        }
    }

    /// Begins nothing more.
    pub(crate) fn stop(&self) {
        self.progress.stopping.store(true, Ordering::Relaxed);
    }

    /// Ends the threads.
    fn end(&self) {
        self.stop();
        drop(self.sender.take());
        for thread in self.threads.take() {
            // It catches its panics; a panic of a panic's own drop is nobody's here.
            let _ = thread.join();
        }
    }

    /// Forgets threads that are not of this process.
    pub(crate) fn leave_to_parent(&self) {
        // Nor is the queue: one of them may have held its lock when this process was forked.
        std::mem::forget((self.threads.take(), self.sender.take()));
    }
}

impl Drop for Jobs {
    fn drop(&mut self) {
        self.end();
    }
}

/// A worker's life.
fn work(jobs: &Receiver<Job>, run: &Run, progress: &Progress) {
    for job in jobs {
        if progress.stopping.load(Ordering::Relaxed) {
            continue;
        }
        let worked = catch_unwind(AssertUnwindSafe(|| {
            run(job.index, &job.message, job.later);
        }));
        if worked.is_err() {
            progress.panics.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The handler of an index that is the workers'.
fn queue<S>(_: &mut S, message: Message<'_>, reply: Reply<'_>) {
    let Some(desk) = reply.desk() else {
        return;
    };
    let Some(jobs) = &desk.jobs else {
        return;
    };
    let bytes = message.len();
    if jobs.has_room(desk, bytes) {
        let (index, message) = (message.handler(), message.bytes().to_vec());
        let mut later = reply.later_too(desk);
        later.queued = Some(bytes);
        let job = Job {
            index,
            message,
            later,
        };
        match jobs.put(job) {
            Ok(()) => {
                jobs.held.set(jobs.held.get() + bytes);
                desk.queued.set(desk.queued.get() + 1);
                desk.queued_bytes.set(desk.queued_bytes.get() + bytes);
                return reply.leave();
            }
            Err(mut job) => job.later.void(),
        }
    }
    reply.count(Counter::DropQueueFull);
    reply.refuse(Answer::NoReply);
}
