//! Which points of an operation there are, and what came of them.

use crate::FINISHED;
use crate::operation::Operation;
use crate::rounds::{Fate, Round, Walked};
use crate::survivor::{Checked, Survivor, check};
use crate::walk::Way;
use std::fmt::{self, Display};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Which points there are.
pub(crate) struct Plan {
    /// A victim is killed after each so many instructions, and another stopped.
    every: u64,
    /// The most victims of an operation that are killed: more instructions than are theirs are further apart.
    most: u64,
    seed: u64,
}

impl Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "killed and stopped at every {}. instruction", self.every)?;
        match self.most {
            u64::MAX => {}
            most => write!(f, ", further apart where that is more than {most} points")?,
        }
        write!(f, "; TIGHTBEAM_SEED={}", self.seed)
    }
}

/// What came of an operation.
pub(crate) struct Row {
    name: &'static str,
    instructions: u64,
    kills: u64,
    stops: u64,
    /// Points of these at which nobody came by: each victim went another way, and met its fate there.
    elsewhere: u64,
    pub(crate) violations: u64,
    took: Duration,
}

/// After so many violations an operation is given up.
const ENOUGH: u64 = 5;
/// So few points, and of so many one, may be passed by: when another thread comes first the way is another one.
const MOST_ELSEWHERE: u64 = 2;
const ELSEWHERE: u64 = 20;

impl Plan {
    /// Every instruction, or with `every` so many apart, from one that the seed gives.
    pub(crate) fn new(long: bool, every: Option<u64>, seed: u64) -> Plan {
        let sampled = every.is_none() && !long;
        Plan {
            every: every.unwrap_or(if long { 1 } else { 16 }).max(1),
            // A debug build has five times as many instructions: what they do is the same.
            most: match sampled && cfg!(debug_assertions) {
                true => 50,
                false => u64::MAX,
            },
            seed,
        }
    }

    /// Goes to all points of an operation.
    pub(crate) fn carry_out(&self, operation: Operation) -> Row {
        let began = Instant::now();
        let mut row = Row {
            name: operation.name(),
            instructions: 0,
            kills: 0,
            stops: 0,
            elsewhere: 0,
            violations: 0,
            took: Duration::ZERO,
        };
        let mut survivor = Survivor::new(operation);
        let mut way = match measure(operation, &mut survivor) {
            Ok(way) => way,
            Err(wrong) => {
                eprintln!("steps: {}, all of it: {wrong}", operation.name());
                row.violations += 1;
                return row;
            }
        };
        row.instructions = way.instructions();
        let apart = (row.instructions / self.every).div_ceil(self.most);
        let stride = self.every * apart.max(1);
        for fate in [Fate::Killed, Fate::Stopped] {
            let mut progress = 0;
            for n in (self.seed % stride..=row.instructions).step_by(stride as usize) {
                let odd = (n / stride + self.seed) % 2 == 1;
                let polls = !operation.needs_rest() && odd == (fate == Fate::Killed);
                let mut walked = go_to(operation, (&way, n), fate, polls, &mut survivor);
                if let Ok(Walked::To(false)) = walked {
                    // Perhaps the way that was measured is the one that few go.
                    walked = measure(operation, &mut survivor).and_then(|other| {
                        way = other;
                        go_to(operation, (&way, n), fate, polls, &mut survivor)
                    });
                }
                let done = match walked {
                    Ok(Walked::To(true)) if fate == Fate::Killed && operation.is_steady() => {
                        let before = std::mem::replace(&mut progress, survivor.progress());
                        check(before <= progress, || {
                            format!("saw {progress}, but {before} of one killed earlier")
                        })
                    }
                    Ok(Walked::To(false)) => {
                        row.elsewhere += 1;
                        Ok(())
                    }
                    other => other.map(drop),
                };
                if let Err(wrong) = done {
                    let name = operation.name();
                    eprintln!("steps: {name}, {fate:?} after {n} instructions: {wrong}");
                    row.violations += 1;
                    // What is left of this one is not counted against the next.
                    drop(survivor);
                    survivor = Survivor::new(operation);
                }
                match fate {
                    Fate::Killed => row.kills += 1,
                    Fate::Stopped => row.stops += 1,
                }
                FINISHED.fetch_add(1, Ordering::Relaxed);
                if row.violations >= ENOUGH {
                    return row;
                }
            }
        }
        let points = row.kills + row.stops;
        if row.elsewhere > MOST_ELSEWHERE + points / ELSEWHERE {
            let (name, elsewhere) = (operation.name(), row.elsewhere);
            eprintln!("steps: {name}: {elsewhere} of {points} points were passed by");
            row.violations += 1;
        }
        // Nothing more is told, for longer than the control thread may still have something to say.
        let late = Instant::now() + Duration::from_millis(400);
        if let Err(wrong) = survivor.until("quiet", |_| Instant::now() >= late) {
            eprintln!("steps: {}, afterwards: {wrong}", operation.name());
            row.violations += 1;
        }
        row.took = began.elapsed();
        row
    }
}

/// The way that victims go, of which one is only stopped at its end.
fn measure(operation: Operation, survivor: &mut Survivor) -> Checked<Way> {
    // Who sleeps may be late for its answer, and sleep again: most are not.
    let times = if operation.sleeps() { 3 } else { 1 };
    let mut shortest: Option<Way> = None;
    for _ in 0..times {
        let walked = Round::new(operation, survivor).go_through(None, Fate::Stopped)?;
        let Walked::Through(way) = walked else {
            unreachable!("no point was given");
        };
        let shorter = |other: &Way| way.instructions() < other.instructions();
        if shortest.as_ref().is_none_or(shorter) {
            shortest = Some(way);
        }
    }
    Ok(shortest.expect("measured at least once"))
}

/// Has a victim meet its fate at one point; another one if the first goes another way.
fn go_to(
    operation: Operation,
    point: (&Way, u64),
    fate: Fate,
    polls: bool,
    survivor: &mut Survivor,
) -> Checked<Walked> {
    const TRIES: usize = 20;
    for _ in 0..TRIES {
        let mut round = Round::new(operation, survivor);
        round.polls |= polls;
        let walked = round.go_through(Some(point), fate)?;
        if !matches!(walked, Walked::To(false)) {
            return Ok(walked);
        }
    }
    Ok(Walked::To(false))
}

/// Heads what a [`Row`] is printed as.
pub(crate) const COLUMNS: &str = "\
operation                   instructions  killed at  stopped at  elsewhere  violations  seconds";

impl Row {
    /// All of them together.
    pub(crate) fn sum(rows: &[Row]) -> Row {
        let sum = |of: fn(&Row) -> u64| rows.iter().map(of).sum();
        Row {
            name: "all",
            instructions: sum(|row| row.instructions),
            kills: sum(|row| row.kills),
            stops: sum(|row| row.stops),
            elsewhere: sum(|row| row.elsewhere),
            violations: sum(|row| row.violations),
            took: rows.iter().map(|row| row.took).sum(),
        }
    }
}

impl Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:26}  {:12}  {:9}  {:10}  {:9}  {:10}  {:7.1}",
            self.name,
            self.instructions,
            self.kills,
            self.stops,
            self.elsewhere,
            self.violations,
            self.took.as_secs_f64()
        )
    }
}
