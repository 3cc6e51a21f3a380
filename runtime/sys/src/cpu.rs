//! Which CPU a thread runs on, and how soon.

use crate::Errno;
use crate::control::last_error;
use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity, sched_yield};
use std::time::Duration;

/// The CPUs that this thread may run on.
pub fn allowed() -> Result<Vec<usize>, Errno> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU)
        .filter(|&cpu| set.is_set(cpu))
        .collect())
}

/// Keeps this thread on one CPU. [`Errno::INVAL`] if it does not exist or is not allowed.
pub fn pin(cpu: usize) -> Result<(), Errno> {
    if cpu >= CpuSet::MAX_CPU {
        return Err(Errno::INVAL);
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set)
}

/// The CPU on which this thread runs at the moment.
pub fn current() -> usize {
    sched_getcpu()
}

/// Lets others run that are ready to on this CPU. The scheduler charges for it: who gives way often gets no more of a CPU that a
/// third one keeps busy than that one leaves.
pub fn give_way() {
    sched_yield();
}

/// Has this thread wait for its turn when it is woken, instead of taking the CPU from the one that runs (`SCHED_BATCH`).
pub fn take_turns() -> Result<(), Errno> {
    // SAFETY: initialised: a plain struct of integers, for which zeros are valid values.
    let parameters: libc::sched_param = unsafe { std::mem::zeroed() };
    // SAFETY: bounds: the kernel reads the struct, which lives on this stack during the call.
    let failed = unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const parameters) };
    match failed {
        0 => Ok(()),
        _ => Err(last_error()),
    }
}

/// Has the scheduler give this thread its time in slices of this length, 0.1 to 100 ms; it keeps its share. A thread with a
/// shorter slice than the one that runs takes the CPU from it as soon as it wakes up, which is what a thread that sleeps
/// nearly always wants (EEVDF: Stoica and Abdel-Wahab, 1995; Linux 6.12 and later).
///
/// It takes no privilege. An error where the thread is not of the normal class, and from older kernels nothing happens.
pub fn request_slice(slice: Duration) -> Result<(), Errno> {
    // SAFETY: initialised: a plain struct of integers, for which zeros are valid values.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    let size = size_of::<libc::sched_attr>();
    // SAFETY: bounds: the kernel writes at most `size` bytes to it, and it lives on this stack during the call.
    let failed = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) };
    if failed != 0 {
        return Err(last_error());
    }
    if attributes.sched_policy != libc::SCHED_OTHER as u32 {
        return Err(Errno::INVAL);
    }
    attributes.sched_runtime = u64::try_from(slice.as_nanos()).unwrap_or(u64::MAX);
    // SAFETY: bounds: the kernel reads `attributes.size` bytes of it, which `sched_getattr` has set to what it knows of it, at most `size`.
    let failed = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw mut attributes, 0) };
    match failed {
        0 => Ok(()),
        _ => Err(last_error()),
    }
}
