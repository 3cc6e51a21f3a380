//! The only door to atomics and spin hints: `core`'s, or loom's under `--cfg loom`.
//!
//! Nothing else in this crate names `core::sync::atomic`, so that a loom model runs the very code that ships.

/// Of bytes that are copied one by one; no model looks at them.
#[cfg(not(all(target_arch = "x86_64", not(loom))))]
pub use core::sync::atomic::AtomicU8;
#[cfg(not(loom))]
pub use core::sync::atomic::{AtomicU64, Ordering, fence};
#[cfg(loom)]
pub use loom::sync::atomic::{AtomicU64, Ordering, fence};

/// Keeps the compiler from moving loads before it ahead of stores; the CPU is another matter (`membarrier`).
#[inline(always)]
pub fn compiler_barrier() {
    // SeqCst: for the compiler only; pairs with the `membarrier` of a peer that goes to sleep.
    #[cfg(not(loom))]
    core::sync::atomic::compiler_fence(Ordering::SeqCst);
    // SeqCst: what the `membarrier` that it pairs with does to this CPU; loom knows no barrier for other threads.
    #[cfg(loom)]
    fence(Ordering::SeqCst);
}

/// Tells the CPU that this is a spin loop; under loom, lets the other threads run.
#[inline(always)]
pub fn spin_loop() {
    #[cfg(loom)]
    loom::thread::yield_now();
    #[cfg(not(loom))]
    core::hint::spin_loop();
}
