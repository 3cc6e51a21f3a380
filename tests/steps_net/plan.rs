//! Which points of an operation there are, and what came of them.

use crate::FINISHED;
use crate::ground::Ground;
use crate::operation::Operation;
use crate::rounds::{Fate, Path, Round, Walked};
use crate::support::{PATIENCE, patiently};
use crate::survivor::{Checked, Survivor, descriptors};
use std::fmt::{self, Display};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How long the survivor waits for a victim that accepts, and may be dead.
const OPEN_WITHIN: Duration = Duration::from_millis(60);

/// Which points there are.
pub(crate) struct Plan {
    /// One after each so many instructions. Of four victims one is stopped, the others are killed.
    every: u64,
    /// Whether there are no more points of an operation than its ground allows: of more instructions than are theirs they are further apart.
    few: bool,
    seed: u64,
}

impl Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at every {}. instruction", self.every)?;
        if self.few {
            write!(f, ", further apart where that is much")?;
        }
        write!(f, "; TIGHTBEAM_SEED={}", self.seed)
    }
}

/// What came of an operation.
pub(crate) struct Row {
    ground: &'static str,
    name: &'static str,
    /// Instructions, or kernel calls' beginnings and ends.
    points: u64,
    kills: u64,
    stops: u64,
    /// Points of these at which nobody came by: the victim went another way, and met its fate there.
    elsewhere: u64,
    /// How often the survivor was told of an end by somebody who does not know the channel, and by who wants its place.
    unknown: u64,
    evicted: u64,
    pub(crate) violations: u64,
    took: Duration,
}

/// After so many violations an operation is given up.
const ENOUGH: u64 = 5;

impl Plan {
    /// Every instruction, or with `every` so many apart, from one that the seed gives.
    pub(crate) fn new(long: bool, every: Option<u64>, seed: u64) -> Plan {
        let every_one = if long { 1 } else { 16 };
        Plan {
            every: every.unwrap_or(every_one).max(1),
            few: !long && every.is_none(),
            seed,
        }
    }

    fn most(&self, ground: &Ground, operation: Operation) -> u64 {
        match (self.few, operation) {
            (false, _) => u64::MAX,
            // Each of its victims sleeps some times for 10 ms before it is seen to.
            (true, Operation::CallAsleep) => ground.few / 2,
            (true, _) => ground.few,
        }
    }

    /// Goes to all points of an operation.
    pub(crate) fn carry_out(&self, ground: &Ground, operation: Operation) -> Row {
        let mut row = Row {
            ground: ground.name,
            name: operation.name(),
            points: 0,
            kills: 0,
            stops: 0,
            elsewhere: 0,
            unknown: 0,
            evicted: 0,
            violations: 0,
            took: Duration::ZERO,
        };
        let began = Instant::now();
        if let Err(wrong) = self.go_to_all(ground, operation, &mut row) {
            eprintln!("steps_net: {}, {}: {wrong}", ground.name, operation.name());
            row.violations += 1;
        }
        row.took = began.elapsed();
        row
    }

    fn go_to_all(&self, ground: &Ground, operation: Operation, row: &mut Row) -> Checked {
        let way = measure(ground, operation)?;
        row.points = way.points();
        // Kernel calls are few.
        let (every, most) = match operation.is_walked_by_calls() {
            true => (1, self.most(ground, operation).saturating_mul(2)),
            false => (self.every, self.most(ground, operation)),
        };
        let apart = (row.points / every).div_ceil(most).max(1);
        let stride = every * apart;
        let mut survivor = Survivor::new(ground, OPEN_WITHIN);
        let mut before = None;
        let points = (self.seed % stride..=row.points).step_by(stride as usize);
        let mut victims: Vec<Victim> = points.enumerate().map(Victim::of).collect();
        if operation == Operation::Accept {
            // Of one that is killed when it has accepted the next one at its port says that it does not know it.
            victims.push(Victim::at_end(row.points, Fate::Killed, false));
            victims.push(Victim::at_end(row.points, Fate::Stopped, true));
        }
        for Victim {
            point: n,
            fate,
            leave,
            polls,
        } in victims
        {
            // Who opens must find a place.
            let leave = leave && operation != Operation::Open;
            survivor.begin(leave);
            let mut round = Round {
                ground,
                operation,
                survivor: &mut survivor,
                polls: operation.spins() || (polls && !operation.sleeps()),
            };
            match round.go_through(Some((&way, n)), fate) {
                Ok(Walked::To(false)) => row.elsewhere += 1,
                Ok(_) => {}
                Err(wrong) => {
                    let (over, name) = (ground.name, operation.name());
                    eprintln!("steps_net: {over}, {name}, {fate:?} at point {n}: {wrong}");
                    row.violations += 1;
                    if row.violations >= ENOUGH {
                        return Ok(());
                    }
                    // What is left of this one is not counted against the next.
                    drop(survivor);
                    survivor = Survivor::new(ground, OPEN_WITHIN);
                    before = None;
                }
            }
            match fate {
                Fate::Killed => row.kills += 1,
                Fate::Stopped => row.stops += 1,
            }
            FINISHED.fetch_add(1, Ordering::Relaxed);
            before = before.or_else(|| {
                survivor.begin(false);
                Some(descriptors())
            });
        }
        survivor.begin(false);
        if let Some(before) = before {
            patiently(|| (descriptors() == before).then_some(()));
        }
        (row.unknown, row.evicted) = (survivor.unknown, survivor.evicted);
        Ok(())
    }
}

/// Who meets its fate where.
struct Victim {
    point: u64,
    fate: Fate,
    /// The one before, if it died, is left for somebody else to tell of.
    leave: bool,
    /// The survivor polls after each of its instructions.
    polls: bool,
}

impl Victim {
    /// Of each four one is stopped, the others are killed; of each two that die one is left.
    fn of((number, point): (usize, u64)) -> Victim {
        Victim {
            point,
            fate: match number % 4 {
                3 => Fate::Stopped,
                _ => Fate::Killed,
            },
            leave: number % 2 == 1,
            polls: number % 4 < 2,
        }
    }

    fn at_end(point: u64, fate: Fate, leave: bool) -> Victim {
        Victim {
            point,
            fate,
            leave,
            polls: false,
        }
    }
}

/// The way that victims go, of which one is only stopped at its end.
fn measure(ground: &Ground, operation: Operation) -> Checked<Path> {
    // Who sleeps may be late for its answer, and sleep again: most are not.
    let times = if operation.sleeps() { 3 } else { 1 };
    let mut shortest: Option<Path> = None;
    let mut survivor = Survivor::new(ground, PATIENCE);
    for _ in 0..times {
        survivor.begin(false);
        let mut round = Round {
            ground,
            operation,
            survivor: &mut survivor,
            polls: operation.spins(),
        };
        let Walked::Through(way) = round.go_through(None, Fate::Stopped)? else {
            unreachable!("no point was given");
        };
        let shorter = |other: &Path| way.points() < other.points();
        if shortest.as_ref().is_none_or(shorter) {
            shortest = Some(way);
        }
    }
    Ok(shortest.expect("measured at least once"))
}

/// Heads what a [`Row`] is printed as.
pub(crate) const COLUMNS: &str = "\
over          operation             points        killed at  stopped at  elsewhere  unknown  evicted  violations  seconds";

impl Row {
    /// All of them together.
    pub(crate) fn sum(rows: &[Row]) -> Row {
        let sum = |of: fn(&Row) -> u64| rows.iter().map(of).sum();
        Row {
            ground: "",
            name: "all",
            points: sum(|row| row.points),
            kills: sum(|row| row.kills),
            stops: sum(|row| row.stops),
            elsewhere: sum(|row| row.elsewhere),
            unknown: sum(|row| row.unknown),
            evicted: sum(|row| row.evicted),
            violations: sum(|row| row.violations),
            took: rows.iter().map(|row| row.took).sum(),
        }
    }
}

impl Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:12}  {:20}  {:12}  {:9}  {:10}  {:9}  {:7}  {:7}  {:10}  {:7.1}",
            self.ground,
            self.name,
            self.points,
            self.kills,
            self.stops,
            self.elsewhere,
            self.unknown,
            self.evicted,
            self.violations,
            self.took.as_secs_f64()
        )
    }
}
