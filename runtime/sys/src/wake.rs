//! Sleeping on a word in shared memory and waking who sleeps there.
//!
//! Words are 64 bits wide (D3); a futex looks at 32, so waiting and waking use the low half. Waiting needs only a
//! read-only mapping. Every wait has a bound, because a peer may move a waiter elsewhere (`FUTEX_REQUEUE`).

use crate::Errno;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tightbeam_segment::WordAddress;

/// The most words that [`wait_any`] takes (`FUTEX_WAITV_MAX`).
pub const MAX_WORDS: usize = 128;

/// A word, and the value at which to sleep.
#[derive(Clone, Copy)]
pub struct Watched<'a> {
    /// Where the word is.
    pub word: WordAddress<'a>,
    /// Sleep only while its low half is this.
    pub value: u64,
}

/// `struct futex_waitv` of `linux/futex.h`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Waiter {
    value: u64,
    address: u64,
    flags: u32,
    reserved: u32,
}

const _: () = assert!(size_of::<Waiter>() == 24);

/// Address of the low half of a word.
fn low_half(word: WordAddress<'_>) -> *const u32 {
    let half = if cfg!(target_endian = "little") { 0 } else { 1 };
    word.as_ptr().cast::<u32>().wrapping_add(half)
}

/// Whether the kernel can wait for several words at once; if not, why.
pub fn can_wait_any() -> Result<(), Errno> {
    let word = AtomicU64::new(0);
    // Another value than the word has: whoever can wait need not.
    let watched = Watched {
        word: (&word).into(),
        value: 1,
    };
    match wait_for(&[watched], Duration::ZERO) {
        Ok(()) | Err(Errno::AGAIN | Errno::TIMEDOUT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Sleeps until one of the words is woken, or no longer has its value, or `bound` is over. At most [`MAX_WORDS`] are watched,
/// further ones are ignored. Never an error: whoever wakes looks again.
pub fn wait_any(watched: &[Watched<'_>], bound: Duration) {
    let _ = wait_for(watched, bound);
}

fn wait_for(watched: &[Watched<'_>], bound: Duration) -> Result<(), Errno> {
    let mut waiters = [Waiter::default(); MAX_WORDS];
    let count = watched.len().min(MAX_WORDS);
    for (waiter, watched) in waiters.iter_mut().zip(watched) {
        waiter.value = watched.value & 0xffff_ffff;
        waiter.address = low_half(watched.word) as u64;
        waiter.flags = libc::FUTEX2_SIZE_U32 as u32;
    }
    let deadline = monotonic() + bound;
    let timeout = libc::timespec {
        tv_sec: deadline.as_secs() as libc::time_t,
        tv_nsec: libc::c_long::from(deadline.subsec_nanos() as i32),
    };
    // SAFETY:
    // bounds: `count` <= MAX_WORDS elements of `waiters` are read; the timeout is read during the call only.
    // lifetime: each word is borrowed for the call. The kernel only reads them.
    let woken = unsafe {
        libc::syscall(
            libc::SYS_futex_waitv,
            waiters.as_ptr(),
            count,
            0,
            &raw const timeout,
            libc::CLOCK_MONOTONIC,
        )
    };
    if woken < 0 {
        return Err(crate::last_errno());
    }
    Ok(())
}

/// Sleeps until `word` is woken, or its low half is no longer that of `value`, or `bound` is over.
pub fn wait(word: &AtomicU64, value: u64, bound: Duration) {
    let timeout = libc::timespec {
        tv_sec: bound.as_secs() as libc::time_t,
        tv_nsec: libc::c_long::from(bound.subsec_nanos() as i32),
    };
    // SAFETY: lifetime: the word and the timeout are borrowed for the call, which only reads them.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            low_half(word.into()),
            libc::FUTEX_WAIT,
            value as u32,
            &raw const timeout,
        );
    }
}

/// Wakes one who sleeps on `word`: on a word that a peer sleeps on there is one honest sleeper, and a peer that puts more
/// there must not make this call longer.
pub fn wake_one<'a>(word: impl Into<WordAddress<'a>>) {
    wake(word.into(), 1);
}

/// Wakes up to `most` who sleep on `word`.
fn wake(word: WordAddress<'_>, most: i32) {
    // SAFETY: lifetime: the kernel uses the address only to find sleepers.
    unsafe {
        libc::syscall(libc::SYS_futex, low_half(word), libc::FUTEX_WAKE, most);
    }
}

/// Lets other processes' [`barrier`] reach this one. Call it once in each process before its first channel.
pub fn register_barrier() -> Result<(), Errno> {
    use rustix::thread::{MembarrierCommand, membarrier};
    membarrier(MembarrierCommand::RegisterGlobalExpedited)
}

/// Orders this thread's earlier stores before its later loads, as seen by every running thread of registered processes,
/// which pay nothing for it (`MEMBARRIER_CMD_GLOBAL_EXPEDITED`).
pub fn barrier() -> Result<(), Errno> {
    use rustix::thread::{MembarrierCommand, membarrier};
    membarrier(MembarrierCommand::GlobalExpedited)
}

/// Time since an arbitrary moment, unaffected by clock changes.
fn monotonic() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32)
}

/// A word for sleeping inside one process: set by one thread, waited for by another.
#[derive(Debug, Default)]
pub struct Bell(AtomicU64);

impl Bell {
    /// Changes the word and wakes who sleeps on it.
    pub fn ring(&self) {
        // Release: pairs with the Acquire in `value`; what was done before ringing is seen by who sees the new value.
        self.0.fetch_add(1, Ordering::Release);
        wake((&self.0).into(), i32::MAX);
    }

    /// The value now.
    #[inline(always)]
    pub fn value(&self) -> u64 {
        // Acquire: pairs with the Release in `ring`.
        self.0.load(Ordering::Acquire)
    }

    /// For [`wait_any`].
    pub fn watched(&self, value: u64) -> Watched<'_> {
        Watched {
            word: (&self.0).into(),
            value,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_changed_word_does_not_sleep() {
        let bell = Bell::default();
        let before = bell.value();
        bell.ring();
        // Would take an hour if the value were not compared.
        wait_any(&[bell.watched(before)], Duration::from_secs(3600));
        assert_ne!(bell.value(), before);
    }

    #[test]
    fn the_kernel_is_asked_whether_it_can_wait_for_several_words() {
        assert_eq!(can_wait_any(), Ok(()));
    }

    #[test]
    fn a_ring_ends_the_sleep() {
        let bell = Arc::new(Bell::default());
        let before = bell.value();
        let other = Arc::clone(&bell);
        let ringer = std::thread::spawn(move || other.ring());
        while bell.value() == before {
            wait_any(&[bell.watched(before)], Duration::from_secs(3600));
        }
        ringer.join().unwrap();
    }

    #[test]
    fn a_wait_is_bounded() {
        let word = AtomicU64::new(7);
        wait(&word, 7, Duration::from_millis(1));
        wait_any(
            &[Watched {
                word: (&word).into(),
                value: 7,
            }],
            Duration::from_millis(1),
        );
    }
}
