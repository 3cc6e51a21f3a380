//! Values that are dropped by another thread, because that may take as long as somebody else wants.
//!
//! To close a descriptor is not always quick: of a socket that lingers, or of a file whose server does not answer, the last one to close it
//! waits, however long that may be; and so does who closes a socket in which such a descriptor lies unread. To unmap memory takes 60 ns a
//! page, and more for who is the last to have it. Whoever serves several peers must not do that for one of them.
//!
//! Each thread that has something to drop first sees to it that another one waits for what comes next, up to 16 of them; then what is
//! dropped piles up, and [`is_stuck`] says so.

use crate::Errno;
use crate::mapping::has_room;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Threads that may wait for a drop to end.
const MOST: usize = 16;
/// Threads that wait for something to drop: more of them end.
const IDLE: usize = 2;
/// If none has waited for so long none is expected to.
const PATIENCE: Duration = Duration::from_millis(20);

/// A value that is dropped by another thread.
#[derive(Debug)]
pub struct Apart<T: Send + 'static>(ManuallyDrop<T>);

impl<T: Send + 'static> Apart<T> {
    /// The value, to be dropped here: for what is known to take no time.
    pub fn into_inner(self) -> T {
        let mut apart = ManuallyDrop::new(self);
        // SAFETY: lifetime: `apart` is not dropped, and forgotten here, so nobody else takes the value or uses it.
        unsafe { ManuallyDrop::take(&mut apart.0) }
    }
}

impl<T: Send + 'static> From<T> for Apart<T> {
    fn from(value: T) -> Apart<T> {
        Apart(ManuallyDrop::new(value))
    }
}

impl<T: Send + 'static> Deref for Apart<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Send + 'static> Drop for Apart<T> {
    fn drop(&mut self) {
        // SAFETY: lifetime: this value ends here, so nobody else takes what is in it or uses it.
        let value = unsafe { ManuallyDrop::take(&mut self.0) };
        match Dropper::running() {
            Some(dropper) => dropper.give(Box::new(value)),
            None => drop(value),
        }
    }
}

/// Two of the usual stacks: some is left for what a thread, and those beside it, allocate.
const ROOM: usize = 4 << 20;

/// Starts a thread; [`Errno::NOMEM`] if this process may not have the addresses for it (`RLIMIT_AS`).
///
/// That is looked at before: a thread whose stack can be had, but not what the standard library maps besides for its signal handler, ends the
/// whole process. A peer must not bring that about by opening a channel when there is little room. (Another thread may take the last of it
/// in between; then any allocation may be the one that ends the process.)
pub fn spawn<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> std::io::Result<JoinHandle<T>> {
    if !has_room(ROOM) {
        return Err(Errno::NOMEM.into());
    }
    std::thread::Builder::new().name(name.into()).spawn(body)
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::AGAIN)
}

/// What a thread has to do.
type Task = Box<dyn FnOnce() + Send>;

/// Has another thread do something that takes a while, and ends: they are done one after the other, and none waits behind a drop that does not
/// end. Before [`start`], and in a fork, it is done here.
pub fn run(task: impl FnOnce() + Send + 'static) {
    match Dropper::running() {
        // Never fails: its receiver lives as long as the process.
        Some(dropper) => drop(dropper.tasks.send(Box::new(task))),
        None => task(),
    }
}

/// Starts the threads. Before this, and in a fork, what should be dropped apart is dropped where it is. Doing it twice does it once.
pub fn start() -> Result<(), Errno> {
    if Dropper::running().is_some() {
        return Ok(());
    }
    // Both or none.
    if !has_room(2 * ROOM) {
        return Err(Errno::NOMEM);
    }
    let (give, take) = channel();
    let (tasks, to_do) = channel::<Task>();
    let worker = move || {
        for task in to_do {
            // One that panics has done nothing, and is not to end the others.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(task));
        }
    };
    spawn("tightbeam-tasks", worker).map_err(errno)?;
    let dropper: &'static Dropper = Box::leak(Box::new(Dropper {
        process: std::process::id(),
        tasks,
        give,
        take: Mutex::new(take),
        threads: Mutex::new(Threads {
            all: 0,
            idle: 0,
            none_idle: None,
        }),
    }));
    dropper.start_thread()?;
    // Release: pairs with the Acquire in `running`. (Two threads that come here at once start one each; both go on.)
    CURRENT.store(ptr::from_ref(dropper).cast_mut(), Ordering::Release);
    Ok(())
}

/// Whether as many drops do not end as there may be, or as there are threads: what is dropped from now on is not closed and not unmapped until
/// one of them does.
pub fn is_stuck() -> bool {
    Dropper::running().is_some_and(|dropper| {
        let none_idle = dropper.threads().none_idle;
        none_idle.is_some_and(|since| since.elapsed() > PATIENCE)
    })
}

type Thing = Box<dyn Send>;

struct Dropper {
    /// A fork of this process has no such threads.
    process: u32,
    tasks: Sender<Task>,
    give: Sender<Thing>,
    /// Held by the thread that waits for what comes next; those behind it wait for this.
    take: Mutex<Receiver<Thing>>,
    /// For these threads only, and for who asks about them: not for who drops something.
    threads: Mutex<Threads>,
}

struct Threads {
    all: usize,
    /// Those that wait for something to drop.
    idle: usize,
    /// Since when none does.
    none_idle: Option<Instant>,
}

static CURRENT: AtomicPtr<Dropper> = AtomicPtr::new(ptr::null_mut());

impl Dropper {
    /// That of this process, if there is one.
    fn running() -> Option<&'static Dropper> {
        // Acquire: pairs with the Release in `start`; what it consists of was written before.
        let current = CURRENT.load(Ordering::Acquire);
        // SAFETY: lifetime: null, or leaked by `start`. aliasing: from then on only shared.
        let current = unsafe { current.as_ref() };
        current.filter(|dropper| dropper.process == std::process::id())
    }

    fn threads(&self) -> MutexGuard<'_, Threads> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give(&self, thing: Thing) {
        // Never fails: this value has the receiver.
        let _ = self.give.send(thing);
    }

    fn next(&self) -> Option<Thing> {
        let take = self.take.lock().unwrap_or_else(PoisonError::into_inner);
        take.recv().ok()
    }

    fn start_thread(&'static self) -> Result<(), Errno> {
        let mut threads = self.threads();
        spawn("tightbeam-apart", || self.work()).map_err(errno)?;
        threads.all += 1;
        threads.idle += 1;
        threads.none_idle = None;
        Ok(())
    }

    fn work(&'static self) {
        while let Some(thing) = self.next() {
            let none_waits = {
                let mut threads = self.threads();
                threads.idle -= 1;
                if threads.idle == 0 {
                    threads.none_idle = Some(Instant::now());
                }
                threads.idle == 0 && threads.all < MOST
            };
            if none_waits {
                // If none can be had what comes next waits for this drop.
                let _ = self.start_thread();
            }
            drop(thing);
            let mut threads = self.threads();
            threads.none_idle = None;
            if threads.idle >= IDLE {
                threads.all -= 1;
                return;
            }
            threads.idle += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// Says which thread drops it, after it was told to.
    struct Slow(mpsc::Receiver<()>, mpsc::Sender<Option<String>>);

    impl Drop for Slow {
        fn drop(&mut self) {
            let _ = self.0.recv();
            let name = std::thread::current().name().map(str::to_owned);
            let _ = self.1.send(name);
        }
    }

    fn slow(said: &mpsc::Sender<Option<String>>) -> (mpsc::Sender<()>, Apart<Slow>) {
        let (go, wait) = mpsc::channel();
        (go, Slow(wait, said.clone()).into())
    }

    #[test]
    fn drops_that_do_not_end_delay_no_others() {
        start().expect("a thread");
        let (said, names) = mpsc::channel();
        let mut stuck = Vec::new();
        for _ in 0..4 {
            let (go, value) = slow(&said);
            drop(value);
            stuck.push(go);
            let (go, value) = slow(&said);
            drop((go, value));
            assert_eq!(names.recv(), Ok(Some("tightbeam-apart".into())));
        }
        assert!(!is_stuck());
    }

    #[test]
    fn a_value_that_is_taken_out_is_dropped_here() {
        start().expect("a thread");
        let (said, names) = mpsc::channel();
        let (go, value) = slow(&said);
        drop(go);
        let own = std::thread::current().name().map(str::to_owned);
        drop(value.into_inner());
        assert_eq!(names.recv(), Ok(own));
    }
}
