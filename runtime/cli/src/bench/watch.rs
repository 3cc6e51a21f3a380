//! A thread that sleeps and sees to it that nothing in the first process waits for ever.
//!
//! It watches the second process by its pidfd, and the progress of the measurement. If the second process has ended, or nothing
//! has moved for [`STALL`], it calls the measurement off: spinning loops see [`called_off`], sleeping ones are released by
//! shutting their socket down, by changing their word, by writing to a pipe that they listen to, or, where a pipe is measured,
//! because the second process has ended and its end of the pipe with it.

use super::fault::Broken;
use super::spec::Pause;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::Shutdown;
use rustix::process::Signal;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tightbeam_sys::block::SharedBlock;

/// No batch takes a tenth of this, on a machine that is alive.
pub(crate) const STALL: Duration = Duration::from_secs(10);
/// How often progress is looked at.
const PERIOD: Duration = Duration::from_millis(500);
/// A measurement that has not noticed by then never will, and the process ends without it.
const DEAF: Duration = Duration::from_secs(5);
/// How often a release is repeated until the measurement has noticed.
const AGAIN: Duration = Duration::from_millis(20);
/// Looks between two looks at [`called_off`].
const LOOKS: u32 = 1024;

/// Set when the measurement shall end at once. One a process: there is one measurement at a time.
static CALLED_OFF: AtomicBool = AtomicBool::new(false);

/// Whether to give up waiting.
pub(crate) fn called_off() -> bool {
    CALLED_OFF.load(Ordering::Relaxed)
}

/// Looks until there is something, or the measurement is called off.
#[inline(always)]
pub(crate) fn spin<T>(
    pause: Pause,
    mut look: impl FnMut() -> Result<Option<T>, Broken>,
) -> Result<T, Broken> {
    loop {
        for _ in 0..LOOKS {
            if let Some(found) = look()? {
                return Ok(found);
            }
            pause.once();
        }
        if called_off() {
            return Err(Broken::CalledOff);
        }
    }
}

/// How to end a sleep in the path that is being measured.
pub(crate) enum Release {
    /// It ends by itself when the second process has ended.
    ByItself,
    /// By shutting down this socket.
    Shutdown(OwnedFd),
    /// By writing to this pipe.
    Write(OwnedFd),
    /// By changing and waking this word of a block.
    Word(Arc<SharedBlock>, usize),
}

impl Release {
    fn now(&self) {
        match self {
            Release::ByItself => {}
            // A socket that is shut down already needs nothing more.
            Release::Shutdown(socket) => drop(rustix::net::shutdown(socket, Shutdown::Both)),
            // A pipe that is full will wake whoever reads it as well.
            Release::Write(pipe) => drop(rustix::io::write(pipe, &[0])),
            Release::Word(block, index) => {
                let word = &block.words()[*index];
                word.store(u64::MAX, Ordering::Relaxed);
                tightbeam_sys::wake::wake_one(word);
            }
        }
    }

    /// Shuts `socket` down.
    pub(crate) fn socket(socket: BorrowedFd<'_>) -> std::io::Result<Release> {
        Ok(Release::Shutdown(socket.try_clone_to_owned()?))
    }
}

/// What the watch has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The second process has ended.
    Ended,
    /// Nothing has moved for [`STALL`], so the second process was killed.
    Stalled,
}

#[derive(Default)]
struct Shared {
    progress: AtomicU64,
    measuring: AtomicBool,
    stop: AtomicBool,
    verdict: Mutex<Option<Verdict>>,
    /// Those of the open group.
    releases: Mutex<Vec<Release>>,
}

/// The watch over one second process; ends with it.
pub(crate) struct Watch {
    shared: Arc<Shared>,
    wake: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Starts it. Call this before the calling thread is pinned, which the new thread would inherit.
    pub(crate) fn start(pidfd: OwnedFd) -> std::io::Result<Watch> {
        CALLED_OFF.store(false, Ordering::Relaxed);
        let shared = Arc::new(Shared::default());
        let (wake, woken) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("watch".into())
            .spawn(move || theirs.watch(&pidfd, &wake))?;
        Ok(Watch {
            shared,
            wake: woken,
            thread: Some(thread),
        })
    }

    /// Starts watching the progress of a group; `releases` are how to end its sleeps.
    pub(crate) fn arm(&self, releases: Vec<Release>) {
        *lock(&self.shared.releases) = releases;
        self.shared.progress.fetch_add(1, Ordering::Relaxed);
        // Release: pairs with the Acquire in `Shared::stalled`, after which the releases are looked at.
        self.shared.measuring.store(true, Ordering::Release);
    }

    /// The group is over.
    pub(crate) fn disarm(&self) {
        self.shared.measuring.store(false, Ordering::Relaxed);
        lock(&self.shared.releases).clear();
    }

    /// Says that something has moved.
    pub(crate) fn progress(&self) {
        self.shared.progress.fetch_add(1, Ordering::Relaxed);
    }

    /// What it has seen.
    pub(crate) fn verdict(&self) -> Option<Verdict> {
        *lock(&self.shared.verdict)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.disarm();
        self.shared.stop.store(true, Ordering::Relaxed);
        // Only a full pipe could fail, and then the thread has more than enough to wake up from.
        let _ = rustix::io::write(&self.wake, &[0]);
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed already.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn watch(&self, pidfd: &OwnedFd, wake: &OwnedFd) {
        let mut seen = 0;
        let mut still = Duration::ZERO;
        while !self.stop.load(Ordering::Relaxed) {
            let ended = wait(pidfd.as_fd(), wake.as_fd(), PERIOD);
            if ended {
                return self.call_off(Verdict::Ended);
            }
            // Acquire: pairs with the Release in `Watch::arm`.
            let measuring = self.measuring.load(Ordering::Acquire);
            let progress = self.progress.load(Ordering::Relaxed);
            still = if measuring && progress == seen {
                still + PERIOD
            } else {
                Duration::ZERO
            };
            seen = progress;
            if still >= STALL {
                // If it has ended meanwhile there is nothing to kill.
                let _ = rustix::process::pidfd_send_signal(pidfd, Signal::KILL);
                return self.call_off(Verdict::Stalled);
            }
        }
    }

    /// Ends the measurement, and keeps on until it has noticed.
    fn call_off(&self, verdict: Verdict) {
        *lock(&self.verdict) = Some(verdict);
        CALLED_OFF.store(true, Ordering::Relaxed);
        let start = Instant::now();
        while !self.stop.load(Ordering::Relaxed) {
            for release in lock(&self.releases).iter() {
                release.now();
            }
            if start.elapsed() > DEAF && self.measuring.load(Ordering::Relaxed) {
                crate::cleanup::abandon(
                    "the second process has ended, and the path being measured does not notice",
                );
            }
            std::thread::sleep(AGAIN);
        }
    }
}

/// Sleeps until the process ends (then true), somebody wakes, or the time is over.
fn wait(pidfd: BorrowedFd<'_>, wake: BorrowedFd<'_>, bound: Duration) -> bool {
    let mut fds = [
        PollFd::from_borrowed_fd(pidfd, PollFlags::IN),
        PollFd::from_borrowed_fd(wake, PollFlags::IN),
    ];
    let bound = Timespec {
        tv_sec: bound.as_secs() as i64,
        tv_nsec: bound.subsec_nanos().into(),
    };
    // An interrupted wait is a short one; the caller loops.
    let _ = poll(&mut fds, Some(&bound));
    fds[0].revents().contains(PollFlags::IN)
}

/// A poisoned lock holds plain values here, which are valid at any time.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
