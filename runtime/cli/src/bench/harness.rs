//! Runs the groups: opens their cells in both processes, has them measured, starts again without a cell that breaks, and makes
//! rows of what was found.

use super::fault::{BenchError, Broken};
use super::latency::{self, Latency, OpenCell};
use super::link::{MAX_CELLS, Step};
use super::load::{self, Load};
use super::paths::{self, Calls, Class, Exchange, Lane, Pace, Pour};
use super::plan::Group;
use super::process::{Interrupted, SecondProcess};
use super::rate::{self, Rate};
use super::report::{
    CallsPerMessage, LatencyRow, LoadRow, RateRow, Row, SkippedRow, Standing, round,
};
use super::spec::{Job, Pause, Spec, Wait};
use super::stats::{Spread, median};
use std::io;
use std::time::Duration;
use tightbeam_sys::clock::TickClock;

/// What one group gave.
pub(crate) enum Rows {
    PingPong(Vec<Row<LatencyRow>>),
    Call(Vec<Row<LatencyRow>>),
    Rate(Vec<Row<RateRow>>),
    Load(Vec<Row<LoadRow>>),
}

/// What was measured of a group's cells; `None` where a cell was skipped or, for rates, was the slower way of waiting.
enum Found {
    Latencies(Vec<Option<Latency>>),
    Rates(Vec<Option<Rate>>, Vec<Option<CallsPerMessage>>),
    Loads(Vec<Option<Load>>),
}

/// Both processes on their CPUs.
pub(crate) struct Harness {
    cpus: [usize; 2],
    clock: TickClock,
    second: Option<SecondProcess>,
    /// Every batch of the floor.
    floors: Vec<f64>,
}

impl Harness {
    /// Starts the second process, then pins this thread.
    pub(crate) fn start(cpus: [usize; 2], clock: TickClock) -> Result<Harness, BenchError> {
        let second = SecondProcess::start(cpus[1], cpus[0] == cpus[1])?;
        tightbeam_sys::cpu::pin(cpus[0]).map_err(BenchError::setup("run on the first CPU"))?;
        Ok(Harness {
            cpus,
            clock,
            second: Some(second),
            floors: Vec::new(),
        })
    }

    /// Nanoseconds of a round trip on the floor, over every batch so far.
    pub(crate) fn floor(&self) -> Option<Spread> {
        Spread::of(self.floors.iter().copied()).map(|floor| floor.map(round))
    }

    /// Measures one group; `tick` is told how much of the group's time has gone.
    pub(crate) fn measure(
        &mut self,
        group: &Group,
        tick: &mut dyn FnMut(Duration),
    ) -> Result<Rows, BenchError> {
        let mut skipped: Vec<Option<String>> = vec![None; group.cells.len()];
        for reason in skipped.iter_mut().skip(MAX_CELLS) {
            *reason = Some(format!("more than {MAX_CELLS} rows side by side"));
        }
        // Each turn but the last one skips a cell, so there is an end.
        let found = loop {
            if let Some(found) = self.attempt(group, &mut skipped, tick)? {
                break found;
            }
        };
        Ok(match found {
            Found::Latencies(latencies) => {
                self.floors.extend(
                    latencies
                        .iter()
                        .flatten()
                        .flat_map(|latency| &latency.floors),
                );
                let rows = latency_rows(&group.cells, latencies, skipped);
                if group.job == Job::Call {
                    Rows::Call(rows)
                } else {
                    Rows::PingPong(rows)
                }
            }
            Found::Rates(rates, calls) => {
                Rows::Rate(rate_rows(&group.cells, rates, &calls, skipped))
            }
            Found::Loads(loads) => Rows::Load(load_rows(&group.cells, loads, skipped)),
        })
    }

    /// Opens all cells that are not skipped and measures them. `None` if one broke, which is skipped from then on.
    fn attempt(
        &mut self,
        group: &Group,
        skipped: &mut [Option<String>],
        tick: &mut dyn FnMut(Duration),
    ) -> Result<Option<Found>, BenchError> {
        let mut second = match self.second.take() {
            Some(second) => second,
            None => SecondProcess::start(self.cpus[1], self.cpus[0] == self.cpus[1])?,
        };
        let (mut exchanges, mut pours, mut paces) = (Vec::new(), Vec::new(), Vec::new());
        let mut releases = Vec::new();
        for (index, spec) in group.cells.iter().enumerate() {
            if skipped[index].is_some() {
                continue;
            }
            let number = index as u8;
            match second.open(number, spec) {
                Ok((lane, release)) => {
                    releases.push(release);
                    match lane {
                        Lane::Exchange(lane) => exchanges.push(OpenCell { number, lane }),
                        Lane::Pour(lane) => pours.push(OpenCell { number, lane }),
                        Lane::Pace(lane) => paces.push(OpenCell { number, lane }),
                    }
                }
                Err(broken) if is_gone(&broken) => {
                    return broke(second, number, broken, group, skipped);
                }
                Err(broken) => skipped[index] = Some(broken.to_string()),
            }
        }
        second.run(releases)?;
        let measured = match group.job {
            Job::Rate => self.rates(&mut second, group, &mut pours, tick),
            Job::Load => self.loads(&mut second, group, &mut paces, tick),
            Job::PingPong | Job::Call => self.latencies(&mut second, group, &mut exchanges, tick),
        };
        let mut found = match measured {
            Ok(found) => found,
            Err((number, broken)) => return broke(second, number, broken, group, skipped),
        };
        second.link.command(Step::Quit, 0);
        let theirs = second.end()?;
        if let Found::Rates(_, calls) = &mut found {
            note_calls(calls, &pours, &theirs);
        }
        self.second = Some(second);
        Ok(Some(found))
    }

    fn latencies(
        &self,
        second: &mut SecondProcess,
        group: &Group,
        open: &mut [OpenCell<Box<dyn Exchange>>],
        tick: &mut dyn FnMut(Duration),
    ) -> Result<Found, (u8, Broken)> {
        let mut all: Vec<Option<Latency>> = group.cells.iter().map(|_| None).collect();
        let measured = latency::measure(second, &self.clock, open, group.budget, tick)?;
        for (cell, latency) in open.iter().zip(measured) {
            all[usize::from(cell.number)] = Some(latency);
        }
        Ok(Found::Latencies(all))
    }

    fn rates(
        &self,
        second: &mut SecondProcess,
        group: &Group,
        open: &mut [OpenCell<Box<dyn Pour>>],
        tick: &mut dyn FnMut(Duration),
    ) -> Result<Found, (u8, Broken)> {
        let mut all: Vec<Option<Rate>> = group.cells.iter().map(|_| None).collect();
        let families = families(group, open);
        for rate in rate::measure(second, &self.clock, open, &families, group.budget, tick)? {
            let number = open[rate.index].number;
            all[usize::from(number)] = Some(rate);
        }
        let calls = vec![None; all.len()];
        Ok(Found::Rates(all, calls))
    }

    fn loads(
        &self,
        second: &mut SecondProcess,
        group: &Group,
        open: &mut [OpenCell<Box<dyn Pace>>],
        tick: &mut dyn FnMut(Duration),
    ) -> Result<Found, (u8, Broken)> {
        let mut all: Vec<Option<Load>> = group.cells.iter().map(|_| None).collect();
        let pause = Pause::new(self.cpus[0] == self.cpus[1]);
        let measured = load::measure(second, &self.clock, pause, open, group.budget, tick)?;
        for (cell, load) in open.iter().zip(measured) {
            all[usize::from(cell.number)] = Some(load);
        }
        Ok(Found::Loads(all))
    }
}

/// What both ends say of their system calls, where both do.
fn note_calls(
    all: &mut [Option<CallsPerMessage>],
    open: &[OpenCell<Box<dyn Pour>>],
    theirs: &[(u8, Calls)],
) {
    let a_message = |calls: Calls| calls.calls as f64 / calls.messages.max(1) as f64;
    for (number, receiver) in theirs {
        let sender = open.iter().find(|cell| cell.number == *number);
        let sender = sender.and_then(|cell| cell.lane.calls());
        if let (Some(sender), Some(slot)) = (sender, all.get_mut(usize::from(*number))) {
            *slot = Some(CallsPerMessage {
                sender: a_message(sender),
                receiver: a_message(*receiver),
            });
        }
    }
}

/// A cell broke: it is skipped, and the rest is measured again with a new second process. An error if that ended by itself.
fn broke(
    second: SecondProcess,
    running: u8,
    broken: Broken,
    group: &Group,
    skipped: &mut [Option<String>],
) -> Result<Option<Found>, BenchError> {
    match second.post_mortem(running, &broken) {
        Interrupted::Cell(cell, reason) => {
            // A cell that is skipped already cannot be to blame; the one that ran can.
            let named = skipped.get(usize::from(cell)).is_some_and(Option::is_none);
            let to_blame = if named { cell } else { running };
            skipped[usize::from(to_blame)] = Some(reason);
            Ok(None)
        }
        Interrupted::Died(how) => {
            let doing = group
                .cells
                .get(usize::from(running))
                .map_or_else(|| group.title(), Spec::to_string);
            Err(BenchError::PeerDied { how, doing })
        }
    }
}

/// Whether the second process has closed the control connection.
fn is_gone(broken: &Broken) -> bool {
    let gone = [
        io::ErrorKind::UnexpectedEof,
        io::ErrorKind::BrokenPipe,
        io::ErrorKind::ConnectionReset,
        io::ErrorKind::TimedOut,
    ];
    matches!(broken, Broken::Io(error) if gone.contains(&error.kind()))
}

/// For each open cell the first cell of its path: cells of one path differ in the way of waiting.
fn families<L>(group: &Group, open: &[OpenCell<L>]) -> Vec<usize> {
    let path = |cell: &OpenCell<L>| &group.cells[usize::from(cell.number)].path;
    open.iter()
        .map(|cell| {
            open.iter()
                .take_while(|other| path(other) != path(cell))
                .count()
        })
        .collect()
}

fn class(spec: &Spec) -> Option<Class> {
    paths::find(&spec.path).map(|path| path.class())
}

/// Of the cells of this class that were measured, the one with the most of `merit`.
fn best<'a, T>(
    cells: &'a [Spec],
    found: &'a [Option<T>],
    of: Class,
    merit: impl Fn(&T) -> f64,
) -> Option<(&'a str, &'a T)> {
    let candidates = cells
        .iter()
        .zip(found)
        .filter(|(spec, _)| class(spec) == Some(of));
    candidates
        .filter_map(|(spec, found)| Some((spec.path.as_str(), found.as_ref()?)))
        .max_by(|a, b| merit(a.1).total_cmp(&merit(b.1)))
}

/// Of the bare loop over the same kind of rings, what was measured beside this.
fn floor_of<'a, T>(spec: &Spec, cells: &[Spec], found: &'a [Option<T>]) -> Option<&'a T> {
    let floor = paths::find(&spec.path)?.floor()?;
    let at = cells.iter().position(|cell| {
        (cell.path.as_str(), cell.size, cell.wait) == (floor, spec.size, Wait::Spin)
    })?;
    found[at].as_ref()
}

/// How figures of one round are to those of another path in the same round.
fn ratios<'a>(own: &'a [f64], other: &'a [f64]) -> impl Iterator<Item = f64> + 'a {
    own.iter().zip(other).map(|(own, other)| own / other)
}

fn skip(spec: &Spec, reason: String) -> SkippedRow {
    // A rate is measured in the faster way of waiting.
    let wait = (spec.job != Job::Rate).then_some(spec.wait);
    SkippedRow {
        path: spec.path.clone(),
        size: Some(spec.size),
        wait,
        skipped: reason,
    }
}

fn latency_rows(
    cells: &[Spec],
    found: Vec<Option<Latency>>,
    skipped: Vec<Option<String>>,
) -> Vec<Row<LatencyRow>> {
    // By its p50, which a disturbed round cannot move.
    let speed = |latency: &Latency| 1.0 / latency.rtt.p50.max(1) as f64;
    let best = best(cells, &found, Class::Socket, speed);
    let mut rows = Vec::with_capacity(cells.len());
    for ((spec, latency), reason) in cells.iter().zip(&found).zip(skipped) {
        rows.push(match (latency, reason) {
            (Some(latency), _) => {
                let standing = best.and_then(|(path, best)| {
                    Standing::of(path, ratios(&best.rounds, &latency.rounds))
                });
                let floor = floor_of(spec, cells, &found).filter(|_| spec.wait == Wait::Spin);
                let to_floor =
                    floor.and_then(|floor| Spread::of(ratios(&latency.rounds, &floor.rounds)));
                Row::Measured(LatencyRow {
                    path: spec.path.clone(),
                    size: spec.size,
                    wait: spec.wait,
                    rtt_ns: latency.rtt,
                    floor_ns: round(latency.floor_ns),
                    ratio_to_floor: latency.ratio_to_floor.map(round),
                    ratio_to_xdp_floor: to_floor.map(|spread| spread.map(round)),
                    standing,
                    samples: latency.samples,
                })
            }
            (None, reason) => Row::Skipped(skip(
                spec,
                reason.unwrap_or_else(|| "nothing was measured".into()),
            )),
        });
    }
    rows
}

fn rate_rows(
    cells: &[Spec],
    found: Vec<Option<Rate>>,
    calls: &[Option<CallsPerMessage>],
    skipped: Vec<Option<String>>,
) -> Vec<Row<RateRow>> {
    let most = |rate: &Rate| rate.per_second.median;
    let socket = best(cells, &found, Class::Socket, most);
    let packed = best(cells, &found, Class::Packed, most);
    let mut rows: Vec<Row<RateRow>> = Vec::with_capacity(cells.len());
    let cases = cells.iter().zip(&found).zip(calls).zip(skipped);
    for (((spec, rate), calls), reason) in cases {
        let of_path = || {
            cells
                .iter()
                .zip(&found)
                .filter(|(other, _)| other.path == spec.path)
        };
        // The other way of waiting has a row, whatever that says.
        let told = of_path().any(|(_, rate)| rate.is_some())
            || of_path().next().is_some_and(|(first, _)| first != spec);
        match (rate, reason) {
            (Some(rate), _) => {
                let to_floor = floor_of(spec, cells, &found)
                    .and_then(|floor| Spread::of(ratios(&rate.rounds, &floor.rounds)));
                rows.push(Row::Measured(RateRow {
                    path: spec.path.clone(),
                    size: spec.size,
                    wait: spec.wait,
                    messages_per_s: rate.per_second.median.round(),
                    messages_per_s_spread: rate.per_second.map(f64::round),
                    standing: socket.and_then(|(path, best)| {
                        Standing::of(path, ratios(&rate.rounds, &best.rounds))
                    }),
                    ratio_to_best_coalesced: packed
                        .and_then(|(_, best)| median(ratios(&rate.rounds, &best.rounds)))
                        .map(round),
                    ratio_to_xdp_floor: to_floor.map(|spread| spread.map(round)),
                    calls_per_message: *calls,
                    sent: rate.sent,
                    lost: rate.lost,
                }));
            }
            (None, Some(reason)) if !told => rows.push(Row::Skipped(skip(spec, reason))),
            (None, _) => {}
        }
    }
    rows
}

/// The path to which loads are compared: a kernel UDP socket, a message a call.
const PLAIN: &str = "udp-veth";

fn load_rows(
    cells: &[Spec],
    found: Vec<Option<Load>>,
    skipped: Vec<Option<String>>,
) -> Vec<Row<LoadRow>> {
    let mut rows = Vec::with_capacity(cells.len());
    for ((spec, load), reason) in cells.iter().zip(&found).zip(skipped) {
        let measured = load.as_ref().and_then(|load| {
            let plain = |(cell, _): &(&Spec, _)| cell.path == PLAIN && cell.wait == spec.wait;
            let plain = cells.iter().zip(&found).find(plain);
            let plain = plain.and_then(|(_, plain)| plain.as_ref());
            let to_plain = plain.and_then(|plain| {
                Spread::of(load.sums().zip(plain.sums()).map(|(own, udp)| own / udp))
            });
            let [sender_ns, receiver_ns, cpu_ns] =
                load.spreads()?.map(|spread| spread.map(f64::round));
            Some(LoadRow {
                path: spec.path.clone(),
                size: spec.size,
                wait: spec.wait,
                offered_per_s: load::RATE,
                sender_ns,
                receiver_ns,
                cpu_ns,
                ratio_to_udp: to_plain.map(|spread| spread.map(round)),
                sent: load.sent,
                arrived: round(load.arrived as f64 / load.sent.max(1) as f64),
            })
        });
        let reason = || reason.unwrap_or_else(|| "nothing was measured".into());
        rows.push(measured.map_or_else(|| Row::Skipped(skip(spec, reason())), Row::Measured));
    }
    rows
}
