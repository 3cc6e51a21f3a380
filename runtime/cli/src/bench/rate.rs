//! One-way messages: bursts of every path in turn, round after round, from the first send to the receiver's word that it has read
//! the last one.
//!
//! Sender and receiver may batch as they like. A path that can wait in both ways is tried in both and measured in the faster one,
//! which the row names. What one path is to another is measured within a round.

use super::fault::Broken;
use super::latency::OpenCell;
use super::link::{MAX_COUNT, Step};
use super::paths::Pour;
use super::process::SecondProcess;
use super::stats::{Spread, median};
use std::time::{Duration, Instant};
use tightbeam_sys::clock::TickClock;

/// Messages of the first try.
const FIRST: u32 = 256;
/// A burst's length, unless there is less time.
const BURST: Duration = Duration::from_millis(5);
/// Bursts by which the way of waiting is chosen.
const TRIALS: usize = 3;
/// Rounds that are made even if there is no time for them.
const FEWEST_ROUNDS: u32 = 3;
/// Rounds that should fit into the time given.
const WANTED_ROUNDS: u32 = 12;
/// Messages of a burst that may still be made when more are on their way than one command can say.
const MOST: u32 = MAX_COUNT - 1;

/// What was measured of one cell.
pub(crate) struct Rate {
    /// Which of the cells given it is.
    pub(crate) index: usize,
    pub(crate) per_second: Spread,
    pub(crate) sent: u64,
    pub(crate) lost: u64,
    /// Messages a second, one figure a round.
    pub(crate) rounds: Vec<f64>,
}

struct Running {
    index: usize,
    burst: u32,
    sent: u64,
    lost: u64,
    rounds: Vec<f64>,
}

/// Measures `cells` for `budget`; of those with the same number in `family` only the fastest. An error names the cell that was
/// running.
pub(crate) fn measure(
    second: &mut SecondProcess,
    clock: &TickClock,
    cells: &mut [OpenCell<Box<dyn Pour>>],
    family: &[usize],
    budget: Duration,
    tick: &mut dyn FnMut(Duration),
) -> Result<Vec<Rate>, (u8, Broken)> {
    let start = Instant::now();
    let length =
        BURST.min(budget / ((WANTED_ROUNDS + TRIALS as u32 + 2) * cells.len().max(1) as u32));
    let mut probe = Probe { second, clock };
    let mut running: Vec<(f64, Running)> = Vec::new();
    for (index, cell) in cells.iter_mut().enumerate() {
        let number = cell.number;
        let tried = probe
            .pilot(index, cell, length)
            .map_err(|broken| (number, broken))?;
        tick(start.elapsed());
        match running
            .iter_mut()
            .find(|(_, other)| family[other.index] == family[index])
        {
            Some(rival) if rival.0 < tried.0 => *rival = tried,
            Some(_) => {}
            None => running.push(tried),
        }
    }
    let mut round = 0;
    while !running.is_empty() && (round < FEWEST_ROUNDS || start.elapsed() < budget) {
        for (_, running) in &mut running {
            let cell = &mut cells[running.index];
            let number = cell.number;
            let rate = probe
                .burst(running, cell)
                .map_err(|broken| (number, broken))?;
            running.rounds.push(rate);
            tick(start.elapsed());
        }
        round += 1;
    }
    Ok(running
        .into_iter()
        .filter_map(|(_, running)| running.finish())
        .collect())
}

struct Probe<'a> {
    second: &'a mut SecondProcess,
    clock: &'a TickClock,
}

impl Probe<'_> {
    /// Finds out how many messages a burst of that length has, and how fast they go.
    fn pilot(
        &mut self,
        index: usize,
        cell: &mut OpenCell<Box<dyn Pour>>,
        length: Duration,
    ) -> Result<(f64, Running), Broken> {
        let mut running = Running {
            index,
            burst: FIRST,
            sent: 0,
            lost: 0,
            rounds: Vec::new(),
        };
        for _ in 0..2 {
            let rate = self.burst(&mut running, cell)?;
            let fits = rate * length.as_secs_f64();
            // `as` saturates.
            running.burst = (fits as u32).clamp(FIRST / 4, MOST);
        }
        let mut trials = Vec::with_capacity(TRIALS);
        for _ in 0..TRIALS {
            trials.push(self.burst(&mut running, cell)?);
        }
        (running.sent, running.lost) = (0, 0);
        Ok((median(trials).unwrap_or(0.0), running))
    }

    /// Messages a second of one burst: those that came.
    fn burst(
        &mut self,
        running: &mut Running,
        cell: &mut OpenCell<Box<dyn Pour>>,
    ) -> Result<f64, Broken> {
        let link = &mut self.second.link;
        link.command(Step::Serve(cell.number), running.burst);
        let start = self.clock.now();
        cell.lane.run(running.burst)?;
        let came = link.wait_done()?;
        let end = self.clock.now();
        self.second.watch.progress();
        running.sent += u64::from(running.burst);
        running.lost += u64::from(running.burst.saturating_sub(came));
        Ok(f64::from(came) * 1e9 / self.clock.ns(end.wrapping_sub(start)).max(1.0))
    }
}

impl Running {
    fn finish(self) -> Option<Rate> {
        Some(Rate {
            index: self.index,
            per_second: Spread::of(self.rounds.iter().copied())?,
            sent: self.sent,
            lost: self.lost,
            rounds: self.rounds,
        })
    }
}
