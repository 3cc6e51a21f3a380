//! Round trips: short batches of every path, each between two batches of the hardware floor, round after round.
//!
//! ```text
//!   round 1:  F [shm: P S] F [shm: P S] F … [pipe: P S] F … [tcp: P S] F …    round 2: the same    …
//! ```
//!
//! `F` is a batch on the floor, `P` a batch of round trips timed as a whole, `S` one in which the clock is read after each. The ratio
//! to the floor is `P` over the mean of the two `F` beside it, so a change of the machine's mood between them spoils one ratio of
//! hundreds. Percentiles come from `S`, whose samples each contain one reading of the clock (some 10 ns); ratios do not.
//! Fast paths run several times in a round until their share of time is used. What one path is to another is measured within a
//! round as well.

use super::fault::Broken;
use super::link::Step;
use super::paths::Exchange;
use super::process::SecondProcess;
use super::stats::{Percentiles, Samples, Spread, median};
use std::time::{Duration, Instant};
use tightbeam_sys::clock::TickClock;

/// Exchanges of a batch, on the floor and on fast paths.
const BATCH: u32 = 1000;
/// On slow paths at least.
const SMALLEST_BATCH: u32 = 16;
/// Exchanges before the timed ones of a batch, while the other side arrives and caches fill.
const WARM: u32 = 16;
/// A path's share of a round, unless there is less time.
const SLOT: Duration = Duration::from_millis(6);
/// Rounds that are made even if there is no time for them.
const FEWEST_ROUNDS: u32 = 3;
/// Rounds that should fit into the time given.
const WANTED_ROUNDS: u32 = 12;

/// A cell that is open on both sides.
pub(crate) struct OpenCell<L> {
    pub(crate) number: u8,
    pub(crate) lane: L,
}

/// What was measured of one cell.
pub(crate) struct Latency {
    pub(crate) rtt: Percentiles,
    pub(crate) samples: u64,
    pub(crate) floor_ns: f64,
    pub(crate) ratio_to_floor: Spread,
    /// Nanoseconds of a round trip, one figure a round.
    pub(crate) rounds: Vec<f64>,
    /// Batches of the floor, all of them.
    pub(crate) floors: Vec<f64>,
}

/// A cell while it is measured.
struct Running<'a> {
    cell: &'a mut OpenCell<Box<dyn Exchange>>,
    batch: u32,
    ratios: Vec<f64>,
    floors: Vec<f64>,
    rounds: Vec<f64>,
    samples: Samples,
}

/// Measures `cells` for `budget`. An error names the cell that was running.
pub(crate) fn measure(
    second: &mut SecondProcess,
    clock: &TickClock,
    cells: &mut [OpenCell<Box<dyn Exchange>>],
    budget: Duration,
    tick: &mut dyn FnMut(Duration),
) -> Result<Vec<Latency>, (u8, Broken)> {
    let start = Instant::now();
    let slot = SLOT.min(budget / (WANTED_ROUNDS * cells.len().max(1) as u32));
    let mut probe = Probe {
        second,
        clock,
        stamps: vec![0; BATCH as usize],
    };
    let mut running = Vec::with_capacity(cells.len());
    for cell in cells {
        let number = cell.number;
        running.push(probe.pilot(cell, slot).map_err(|broken| (number, broken))?);
    }
    let mut round = 0;
    while !running.is_empty() && (round < FEWEST_ROUNDS || start.elapsed() < budget) {
        for cell in &mut running {
            let number = cell.cell.number;
            probe.slot(cell, slot).map_err(|broken| (number, broken))?;
            tick(start.elapsed());
        }
        round += 1;
    }
    Ok(running.into_iter().filter_map(Running::finish).collect())
}

struct Probe<'a> {
    second: &'a mut SecondProcess,
    clock: &'a TickClock,
    stamps: Vec<u64>,
}

impl Probe<'_> {
    /// Finds out how large a batch may be so that three fit into a slot.
    fn pilot<'c>(
        &mut self,
        cell: &'c mut OpenCell<Box<dyn Exchange>>,
        slot: Duration,
    ) -> Result<Running<'c>, Broken> {
        self.second
            .link
            .command(Step::Serve(cell.number), WARM + SMALLEST_BATCH);
        cell.lane.run(WARM)?;
        let start = Instant::now();
        cell.lane.run(SMALLEST_BATCH)?;
        let one = start.elapsed().as_nanos().max(1) / u128::from(SMALLEST_BATCH);
        self.finished()?;
        let fits = (slot.as_nanos() / 3 / one.max(1)).min(BATCH.into()) as u32;
        Ok(Running {
            cell,
            batch: fits.max(SMALLEST_BATCH),
            ratios: Vec::new(),
            floors: Vec::new(),
            rounds: Vec::new(),
            samples: Samples::new(),
        })
    }

    /// One cell's share of a round.
    fn slot(&mut self, running: &mut Running<'_>, slot: Duration) -> Result<(), Broken> {
        let start = Instant::now();
        let mut before = self.floor(running.batch)?;
        running.floors.push(before);
        let mut times = Vec::new();
        while times.is_empty() || start.elapsed() < slot {
            let path = self.path(running)?;
            let after = self.floor(running.batch)?;
            running.ratios.push(2.0 * path / (before + after));
            running.floors.push(after);
            times.push(path);
            before = after;
        }
        running.rounds.extend(median(times));
        Ok(())
    }

    /// Nanoseconds of one exchange on the floor.
    fn floor(&mut self, count: u32) -> Result<f64, Broken> {
        let link = &mut self.second.link;
        link.command(Step::Floor, WARM + count);
        link.floor_there(WARM)?;
        let start = self.clock.now();
        link.floor_there(count)?;
        let end = self.clock.now();
        self.second.watch.progress();
        Ok(self.clock.ns(end.wrapping_sub(start)) / f64::from(count))
    }

    /// Nanoseconds of one exchange on the path; then again with a stamp for each.
    fn path(&mut self, running: &mut Running<'_>) -> Result<f64, Broken> {
        let count = running.batch;
        let lane = &mut running.cell.lane;
        self.second
            .link
            .command(Step::Serve(running.cell.number), WARM + 2 * count);
        lane.run(WARM)?;
        let start = self.clock.now();
        lane.run(count)?;
        let end = self.clock.now();
        let stamps = &mut self.stamps[..count as usize];
        let mut last = lane.stamped(self.clock, stamps)?;
        self.finished()?;
        for &stamp in self.stamps[..count as usize].iter() {
            running
                .samples
                .record(self.clock.ns(stamp.wrapping_sub(last)));
            last = stamp;
        }
        Ok(self.clock.ns(end.wrapping_sub(start)) / f64::from(count))
    }

    fn finished(&mut self) -> Result<(), Broken> {
        self.second.link.wait_done()?;
        self.second.watch.progress();
        Ok(())
    }
}

impl Running<'_> {
    /// `None` if nothing was measured, which the fewest rounds rule out.
    fn finish(self) -> Option<Latency> {
        Some(Latency {
            rtt: self.samples.percentiles(),
            samples: self.samples.count(),
            floor_ns: median(self.floors.iter().copied())?,
            ratio_to_floor: Spread::of(self.ratios)?,
            rounds: self.rounds,
            floors: self.floors,
        })
    }
}
