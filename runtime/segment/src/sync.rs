//! The only door to atomics and spin hints: `core`'s, or loom's under `--cfg loom`.
//!
//! Nothing else in this crate names `core::sync::atomic`, so that a loom model runs the very code that ships.

#[cfg(not(loom))]
pub use core::sync::atomic::{AtomicU64, Ordering, fence};
#[cfg(loom)]
pub use loom::sync::atomic::{AtomicU64, Ordering, fence};

/// Tells the CPU that this is a spin loop; under loom, lets the other threads run.
#[inline(always)]
pub fn spin_loop() {
    #[cfg(loom)]
    loom::thread::yield_now();
    #[cfg(not(loom))]
    core::hint::spin_loop();
}
