//! Runs the groups: opens their cells in both processes, has them measured, starts again without a cell that breaks, and makes
//! rows of what was found.

use super::fault::{BenchError, Broken};
use super::latency::{self, Latency, OpenCell};
use super::link::{MAX_CELLS, Step};
use super::paths::{self, Class, Exchange, Lane, Pour};
use super::plan::Group;
use super::process::{Interrupted, SecondProcess};
use super::rate::{self, Rate};
use super::report::{LatencyRow, RateRow, Row, SkippedRow, Standing, round};
use super::spec::{Job, Spec};
use super::stats::{Spread, median};
use std::io;
use std::time::Duration;
use tightbeam_sys::clock::TickClock;

/// What one group gave.
pub(crate) enum Rows {
    PingPong(Vec<Row<LatencyRow>>),
    Call(Vec<Row<LatencyRow>>),
    Rate(Vec<Row<RateRow>>),
}

/// What was measured of a group's cells; `None` where a cell was skipped or, for rates, was the slower way of waiting.
enum Found {
    Latencies(Vec<Option<Latency>>),
    Rates(Vec<Option<Rate>>),
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
            Found::Rates(rates) => Rows::Rate(rate_rows(&group.cells, rates, skipped)),
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
        let (mut exchanges, mut pours, mut releases) = (Vec::new(), Vec::new(), Vec::new());
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
            Job::PingPong | Job::Call => self.latencies(&mut second, group, &mut exchanges, tick),
        };
        let found = match measured {
            Ok(found) => found,
            Err((number, broken)) => return broke(second, number, broken, group, skipped),
        };
        second.link.command(Step::Quit, 0);
        second.end()?;
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
        Ok(Found::Rates(all))
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

fn skip(spec: &Spec, reason: String) -> SkippedRow {
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
                    Standing::of(
                        path,
                        best.rounds
                            .iter()
                            .zip(&latency.rounds)
                            .map(|(best, own)| best / own),
                    )
                });
                Row::Measured(LatencyRow {
                    path: spec.path.clone(),
                    size: spec.size,
                    wait: spec.wait,
                    rtt_ns: latency.rtt,
                    floor_ns: round(latency.floor_ns),
                    ratio_to_floor: latency.ratio_to_floor.map(round),
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
    skipped: Vec<Option<String>>,
) -> Vec<Row<RateRow>> {
    let most = |rate: &Rate| rate.per_second.median;
    let socket = best(cells, &found, Class::Socket, most);
    let packed = best(cells, &found, Class::Packed, most);
    let ratios = |own: &Rate, best: &Rate| -> Vec<f64> {
        own.rounds
            .iter()
            .zip(&best.rounds)
            .map(|(own, best)| own / best)
            .collect()
    };
    let mut rows: Vec<Row<RateRow>> = Vec::with_capacity(cells.len());
    for ((spec, rate), reason) in cells.iter().zip(&found).zip(skipped) {
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
                rows.push(Row::Measured(RateRow {
                    path: spec.path.clone(),
                    size: spec.size,
                    wait: spec.wait,
                    messages_per_s: rate.per_second.median.round(),
                    messages_per_s_spread: rate.per_second.map(f64::round),
                    standing: socket
                        .and_then(|(path, best)| Standing::of(path, ratios(rate, best))),
                    ratio_to_best_coalesced: packed
                        .and_then(|(_, best)| median(ratios(rate, best)))
                        .map(round),
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
