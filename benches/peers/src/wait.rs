//! Spinning until something is there, with an end.
//!
//! Every wait of every path and of the floor goes through [`until`], so that
//! all of them spin in the same way. It never sleeps and never yields; after
//! [`LIMIT`] without success it gives up, so that a peer that crashed cannot
//! keep the other side (and its CPU) for ever.

use std::hint::spin_loop;
use std::time::{Duration, Instant};

use crate::fault::Fault;

/// Longer than any preemption on a machine fit to measure on, and short enough
/// to wait for at a terminal.
pub(crate) const LIMIT: Duration = Duration::from_secs(5);

/// Looks between two readings of the clock: rare enough that the clock does
/// not show in a figure, often enough that the limit is kept within a millisecond.
const LOOKS: u32 = 1 << 14;

/// Calls `ready` until it says yes.
#[inline(always)]
pub(crate) fn until(mut ready: impl FnMut() -> Result<bool, Fault>) -> Result<(), Fault> {
    let mut since = None;
    loop {
        for _ in 0..LOOKS {
            if ready()? {
                return Ok(());
            }
            spin_loop();
        }
        patience(&mut since)?;
    }
}

#[cold]
#[inline(never)]
fn patience(since: &mut Option<Instant>) -> Result<(), Fault> {
    let waited = since.get_or_insert_with(Instant::now).elapsed();
    if waited > LIMIT {
        return Err(Fault::Silent(LIMIT));
    }
    Ok(())
}
