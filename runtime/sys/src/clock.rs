//! A clock cheap enough to read at every message.
//!
//! [`ticks`] reads the CPU's counter: the time-stamp counter on x86-64, the virtual counter on AArch64, about 10 ns. A
//! [`TickClock`] knows how long a tick is, and falls back to `CLOCK_MONOTONIC` where the counter does not run evenly: on
//! x86-64 that is where CPUID does not promise an *invariant* TSC. The reads are not serialised, so an interval may be off
//! by the depth of the pipeline, a few nanoseconds. Two threads may compare stamps only as far as the kernel keeps the
//! counters of all CPUs in step; the bench compares stamps of one thread only.

use std::time::{Duration, Instant};

/// How long the counter is compared with `CLOCK_MONOTONIC`.
const CALIBRATION: Duration = Duration::from_millis(20);
/// Readings at each end of the calibration, of which the least disturbed counts.
const READINGS: usize = 32;

/// The CPU's counter now, in ticks of unknown length.
#[inline(always)]
#[cfg(target_arch = "x86_64")]
pub fn ticks() -> u64 {
    // SAFETY: bounds: the instruction exists on every x86-64 CPU and touches no memory. A process that forbade it to itself
    // (PR_SET_TSC) gets SIGSEGV, as it asked for.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// The CPU's counter now, in ticks of unknown length.
#[inline(always)]
#[cfg(target_arch = "aarch64")]
pub fn ticks() -> u64 {
    let ticks: u64;
    // SAFETY: bounds: reads a system register that Linux makes readable for user space; touches no memory, no stack, no flags.
    unsafe {
        std::arch::asm!("mrs {}, cntvct_el0", out(reg) ticks, options(nomem, nostack, preserves_flags));
    }
    ticks
}

/// The CPU's counter now, in ticks of unknown length.
#[inline(always)]
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub fn ticks() -> u64 {
    monotonic()
}

/// Nanoseconds of `CLOCK_MONOTONIC`.
#[inline]
fn monotonic() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

/// Whether the counter runs at one rate in every power state.
fn counter_is_even() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::__cpuid;
        /// Highest extended leaf, and the one that tells of power management.
        const EXTENDED: u32 = 0x8000_0000;
        const POWER: u32 = 0x8000_0007;
        const INVARIANT_TSC: u32 = 1 << 8;
        __cpuid(EXTENDED).eax >= POWER && __cpuid(POWER).edx & INVARIANT_TSC != 0
    }
    #[cfg(target_arch = "aarch64")]
    {
        // The architecture fixes the rate of the generic timer.
        true
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        false
    }
}

/// Which clock a [`TickClock`] reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TickSource {
    /// The CPU's counter.
    Counter,
    /// `CLOCK_MONOTONIC`, because the counter is not even.
    Monotonic,
}

/// A clock whose ticks have a known length.
#[derive(Debug, Clone, Copy)]
pub struct TickClock {
    source: TickSource,
    ns_per_tick: f64,
}

impl TickClock {
    /// Finds out how long a tick is; takes about 20 ms.
    pub fn calibrate() -> TickClock {
        if !counter_is_even() {
            return TickClock {
                source: TickSource::Monotonic,
                ns_per_tick: 1.0,
            };
        }
        let (ticks_before, ns_before) = reading();
        let start = Instant::now();
        while start.elapsed() < CALIBRATION {
            std::hint::spin_loop();
        }
        let (ticks_after, ns_after) = reading();
        let ticks = ticks_after.wrapping_sub(ticks_before).max(1);
        TickClock {
            source: TickSource::Counter,
            ns_per_tick: (ns_after - ns_before) as f64 / ticks as f64,
        }
    }

    /// Now, in ticks.
    #[inline(always)]
    pub fn now(&self) -> u64 {
        match self.source {
            TickSource::Counter => ticks(),
            TickSource::Monotonic => monotonic(),
        }
    }

    /// The length of a number of ticks in nanoseconds.
    #[inline]
    pub fn ns(&self, ticks: u64) -> f64 {
        ticks as f64 * self.ns_per_tick
    }

    /// Which clock it reads.
    pub fn source(&self) -> TickSource {
        self.source
    }
}

/// Both clocks at one moment: of several readings the one during which the counter moved least.
fn reading() -> (u64, u64) {
    let one = || {
        let before = ticks();
        let ns = monotonic();
        let after = ticks();
        (
            after.wrapping_sub(before),
            before.wrapping_add(after.wrapping_sub(before) / 2),
            ns,
        )
    };
    let (_, ticks, ns) =
        (1..READINGS).map(|_| one()).fold(
            one(),
            |best, next| if next.0 < best.0 { next } else { best },
        );
    (ticks, ns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_measure_time() {
        let clock = TickClock::calibrate();
        let (start, from) = (Instant::now(), clock.now());
        while start.elapsed() < Duration::from_millis(20) {}
        let ticks = clock.now() - from;
        let real = start.elapsed().as_nanos() as f64;
        // The thread may lose its CPU between the readings, so the bounds are wide.
        let measured = clock.ns(ticks);
        assert!(
            measured > 15e6 && measured < real * 1.1,
            "{measured} ns for {real}"
        );
    }
}
