//! The order of the batches and what is made of them.
//!
//! `main` asks for rows, this opens the paths, alternates their batches with
//! those of their reference and pairs neighbours: a shared machine changes its
//! speed within a run, but rarely between two batches. Writes no output.

use std::time::{Duration, Instant};

use tightbeam_sys::clock::TickClock;

use crate::cpus::Cpus;
use crate::fault::Fault;
use crate::near::Runner;
use crate::paths::{self, Order, Path, Purpose};
use crate::report::{PingPong, Rate, Row};
use crate::stats::{Samples, Spread};

/// Exchanges in a batch.
const EXCHANGES: u64 = 1000;

/// Rounds below which a median with p10 and p90 means nothing, whatever the time.
const ROUNDS: usize = 15;

/// How long one batch of the one-way rate shall take: long beside waking the far
/// side and filling the ring, short beside the machine's changes of speed.
const STREAM: Duration = Duration::from_millis(2);

/// Messages in the batch that finds out how many fit into [`STREAM`].
const TRIAL: u64 = 5000;

/// What to measure.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) paths: Vec<Path>,
    pub(crate) sizes: Vec<usize>,
    pub(crate) rate_sizes: Vec<usize>,
    pub(crate) cpus: Cpus,
    /// In place of each path's own settings.
    pub(crate) depth: Option<usize>,
    /// For one row.
    pub(crate) time: Duration,
    /// For single round trips.
    pub(crate) clock: TickClock,
}

impl Plan {
    fn order(&self, path: Path, size: usize, purpose: Purpose) -> Order {
        Order {
            path,
            size,
            depth: self.depth.unwrap_or(path.settings().depth(purpose, size)),
            far_cpu: self.cpus.far,
        }
    }

    /// The paths whose ratio to the others is wanted: rtrb, as single messages
    /// and as chunks. Measured beside any other path, asked for or not.
    fn references() -> [Path; 2] {
        [Path::Rtrb, Path::RtrbChunks]
    }

    /// Everybody who takes part in the one-way rate, in turn.
    pub(crate) fn rate_paths(&self) -> Vec<Path> {
        let mut all = self.paths.clone();
        if all.iter().any(|path| !Self::references().contains(path)) {
            for reference in Self::references() {
                if !all.contains(&reference) {
                    all.push(reference);
                }
            }
        }
        all
    }
}

/// One row of the ping-pong.
pub(crate) fn ping_pong(plan: &Plan, path: Path, size: usize) -> Row<PingPong> {
    let order = plan.order(path, size, Purpose::PingPong);
    match measure_ping_pong(plan, order) {
        Ok(row) => Row::Measured(row),
        Err(fault) => Row::skipped(path, size, &fault),
    }
}

fn measure_ping_pong(plan: &Plan, order: Order) -> Result<PingPong, Fault> {
    let mut runner = paths::open(order)?;
    let row = ping_pong_batches(plan, order, runner.as_mut());
    end(runner.as_mut(), row)
}

fn ping_pong_batches(
    plan: &Plan,
    order: Order,
    runner: &mut dyn Runner,
) -> Result<PingPong, Fault> {
    let mut samples = Samples::new()?;
    let mut each = Vec::new();
    let (mut floors, mut ratios) = (Vec::new(), Vec::new());
    runner.ping(EXCHANGES)?;
    let start = Instant::now();
    while ratios.len() < ROUNDS || start.elapsed() < plan.time {
        let floor = runner.floor(EXCHANGES)?.as_secs_f64();
        let messages = runner.ping(EXCHANGES)?.as_secs_f64();
        runner.ping_each(EXCHANGES, &plan.clock, &mut each)?;
        samples.add(each.iter().map(|ticks| plan.clock.ns(*ticks)));
        floors.push(each_ns(floor));
        ratios.push(messages / floor);
    }
    let spread = |values: &[f64]| Spread::of(values).ok_or_else(nothing);
    Ok(PingPong {
        path: order.path.name(),
        size: order.size,
        wait: "spin",
        sides: order.path.settings().sides,
        depth: order.depth,
        rtt_ns: samples.percentiles(),
        floor_ns: spread(&floors)?.median,
        ratio_to_floor: spread(&ratios)?,
        samples: samples.count(),
    })
}

/// Ends a path. What its far side has to say explains more than its silence.
fn end<T>(runner: &mut dyn Runner, outcome: Result<T, Fault>) -> Result<T, Fault> {
    match (runner.stop(), outcome) {
        (Err(far), Ok(_) | Err(Fault::Silent(_))) => Err(far),
        (_, outcome) => outcome,
    }
}

/// A path in the one-way rate, with what each round gave.
struct Entrant {
    order: Order,
    runner: Box<dyn Runner>,
    batch: u64,
    rates: Vec<f64>,
    /// Of its own two sides, before each batch: says which of its speeds the
    /// machine had.
    floors: Vec<f64>,
}

impl Entrant {
    fn open(order: Order) -> Result<Self, Fault> {
        let mut runner = paths::open(order)?;
        let trial = runner.stream(TRIAL)?.max(Duration::from_nanos(1));
        let batch = TRIAL as f64 * (STREAM.as_secs_f64() / trial.as_secs_f64());
        Ok(Self {
            order,
            runner,
            batch: (batch as u64).max(TRIAL),
            rates: Vec::new(),
            floors: Vec::new(),
        })
    }

    fn round(&mut self) -> Result<(), Fault> {
        let floor = self.runner.floor(EXCHANGES)?;
        self.floors.push(each_ns(floor.as_secs_f64()));
        let took = self.runner.stream(self.batch)?;
        self.rates.push(self.batch as f64 / took.as_secs_f64());
        Ok(())
    }

    fn ratio_to(&self, other: &Self) -> Option<Spread> {
        let rounds = self.rates.iter().zip(&other.rates);
        let ratios: Vec<f64> = rounds.map(|(mine, other)| mine / other).collect();
        Spread::of(&ratios)
    }
}

/// The one-way rate of all paths at one size, round by round in turn.
pub(crate) fn rates(plan: &Plan, size: usize) -> Vec<Row<Rate>> {
    let mut rows = Vec::new();
    let mut entrants = Vec::new();
    for path in plan.rate_paths() {
        match Entrant::open(plan.order(path, size, Purpose::Rate)) {
            Ok(entrant) => entrants.push(entrant),
            Err(fault) => rows.push(Row::skipped(path, size, &fault)),
        }
    }
    let time = plan.time * u32::try_from(entrants.len()).unwrap_or(1);
    let start = Instant::now();
    let mut round = 0;
    while !entrants.is_empty() && (round < ROUNDS || start.elapsed() < time) {
        entrants.retain_mut(|entrant| match entrant.round() {
            Ok(()) => true,
            Err(fault) => {
                let fault = end::<()>(entrant.runner.as_mut(), Err(fault)).err();
                let fault = fault.unwrap_or_else(nothing);
                rows.push(Row::skipped(entrant.order.path, size, &fault));
                false
            }
        });
        round += 1;
    }
    rows.extend(entrants.iter().map(|entrant| row(entrant, &entrants)));
    for mut entrant in entrants {
        if let Err(fault) = entrant.runner.stop() {
            rows.push(Row::skipped(entrant.order.path, size, &fault));
        }
    }
    rows.retain(|row| plan.paths.iter().any(|path| path.name() == row.path()));
    rows
}

fn row(entrant: &Entrant, all: &[Entrant]) -> Row<Rate> {
    let path = entrant.order.path;
    let [to_rtrb, to_rtrb_chunks] = Plan::references().map(|reference| {
        all.iter()
            .find(|other| other.order.path == reference && path != reference)
            .and_then(|other| entrant.ratio_to(other))
    });
    let floors = Spread::of(&entrant.floors);
    match Spread::of(&entrant.rates).zip(floors) {
        Some((rate, floor)) => Row::Measured(Rate {
            path: path.name(),
            size: entrant.order.size,
            sides: path.settings().sides,
            depth: entrant.order.depth,
            messages_per_s: rate.median,
            floor_ns: floor.median,
            ratio_to_rtrb: to_rtrb,
            ratio_to_rtrb_chunks: to_rtrb_chunks,
        }),
        None => Row::skipped(path, entrant.order.size, &nothing()),
    }
}

/// Nanoseconds of one exchange in a batch that took so many seconds.
fn each_ns(seconds: f64) -> f64 {
    seconds / EXCHANGES as f64 * 1e9
}

fn nothing() -> Fault {
    Fault::Refused {
        doing: "making a figure",
        why: "no batch was measured".into(),
    }
}
