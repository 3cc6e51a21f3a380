//! What a message costs in CPU time when messages come at a fixed rate, each at its moment, instead of as fast as they go.
//!
//! ```text
//!   first process    pace | send | pace      | send | pace …       what is counted: send
//!   second process        wait, take …            wait, take …     what is counted: all of it
//! ```
//!
//! The time in which the first process only waits for a message's moment is not the path's. It spins meanwhile, so the process has the CPU all
//! the time, and its CPU time (user and system, by the kernel's clock of the process) is divided over sending and pacing by the counter that
//! is read before and after each send. Of the second process all CPU time counts: one that spins takes all there is, whatever comes.
//!
//! Over a virtual cable the kernel does most of the receiver's work within the call that sends, down to waking the receiver: only the sum of
//! both sides says what a message costs. What no process has (the idle CPU as it goes to sleep and is woken) is counted nowhere.

use super::fault::Broken;
use super::latency::OpenCell;
use super::link::Step;
use super::paths::Pace;
use super::process::SecondProcess;
use super::second::busy;
use super::spec::Pause;
use super::stats::Spread;
use std::time::{Duration, Instant};
use tightbeam_sys::clock::TickClock;

/// Messages a second.
pub(crate) const RATE: f64 = 50_000.0;
/// A burst's length, unless there is less time; it has messages enough to make what happens at its ends small.
const BURST: Duration = Duration::from_millis(20);
const FEWEST: u32 = 200;
/// Rounds that are made even if there is no time for them, besides a first one that is not counted.
const FEWEST_ROUNDS: u32 = 3;
/// Rounds that should fit into the time given.
const WANTED_ROUNDS: u32 = 8;

/// What was measured of one cell.
pub(crate) struct Load {
    /// Nanoseconds of CPU time a message, one figure a round.
    pub(crate) sender: Vec<f64>,
    pub(crate) receiver: Vec<f64>,
    pub(crate) sent: u64,
    pub(crate) arrived: u64,
}

impl Load {
    /// Of both sides, one figure a round.
    pub(crate) fn sums(&self) -> impl Iterator<Item = f64> + '_ {
        let both = self.sender.iter().zip(&self.receiver);
        both.map(|(sender, receiver)| sender + receiver)
    }

    /// `None` if nothing was measured, which the fewest rounds rule out.
    pub(crate) fn spreads(&self) -> Option<[Spread; 3]> {
        let [sender, receiver] = [&self.sender, &self.receiver].map(|ns| Spread::of(ns.clone()));
        Some([sender?, receiver?, Spread::of(self.sums())?])
    }
}

/// Measures `cells` for `budget`, a burst of each in turn. An error names the cell that was running.
pub(crate) fn measure(
    second: &mut SecondProcess,
    clock: &TickClock,
    pause: Pause,
    cells: &mut [OpenCell<Box<dyn Pace>>],
    budget: Duration,
    tick: &mut dyn FnMut(Duration),
) -> Result<Vec<Load>, (u8, Broken)> {
    let start = Instant::now();
    let length = BURST.min(budget / (WANTED_ROUNDS * cells.len().max(1) as u32));
    let mut probe = Probe {
        second,
        clock,
        pause,
        count: FEWEST.max((length.as_secs_f64() * RATE) as u32),
    };
    let new = || Load {
        sender: Vec::new(),
        receiver: Vec::new(),
        sent: 0,
        arrived: 0,
    };
    let mut loads: Vec<Load> = cells.iter().map(|_| new()).collect();
    let mut round = 0;
    while !cells.is_empty() && (round <= FEWEST_ROUNDS || start.elapsed() < budget) {
        for (cell, load) in cells.iter_mut().zip(&mut loads) {
            let number = cell.number;
            let cost = probe.burst(cell).map_err(|broken| (number, broken))?;
            if round > 0 {
                load.sender.push(cost.sender);
                load.receiver.push(cost.receiver);
                load.sent += u64::from(probe.count);
                load.arrived += u64::from(cost.arrived);
            }
            tick(start.elapsed());
        }
        round += 1;
    }
    Ok(loads)
}

/// Of one burst.
struct Cost {
    sender: f64,
    receiver: f64,
    arrived: u32,
}

struct Probe<'a> {
    second: &'a mut SecondProcess,
    clock: &'a TickClock,
    pause: Pause,
    /// Messages of a burst.
    count: u32,
}

impl Probe<'_> {
    fn burst(&mut self, cell: &mut OpenCell<Box<dyn Pace>>) -> Result<Cost, Broken> {
        let (link, clock) = (&mut self.second.link, self.clock);
        cell.lane.begin();
        link.command(Step::Serve(cell.number), self.count);
        let (used, start) = (busy(), clock.now());
        let (mut now, mut sending) = (start, 0);
        for number in 1..=self.count {
            let due = f64::from(number) * 1e9 / RATE;
            while clock.ns(now.wrapping_sub(start)) < due {
                self.pause.once();
                now = clock.now();
            }
            cell.lane.send()?;
            let sent = clock.now();
            sending += sent.wrapping_sub(now);
            now = sent;
        }
        let used = busy() - used;
        let arrived = link.wait_done()?;
        let theirs = link.used();
        self.second.watch.progress();
        let share = sending as f64 / now.wrapping_sub(start).max(1) as f64;
        Ok(Cost {
            sender: used as f64 * share / f64::from(self.count),
            receiver: theirs as f64 / f64::from(arrived.max(1)),
            arrived,
        })
    }
}
