//! Walking a stopped task to a point of its operation.
//!
//! The whole operation is stepped through once and its way noted: the address of each instruction. Later a task is taken
//! to a point of it by a breakpoint at an instruction shortly before that is executed there for the first time, or for the
//! few-th, and stepped from there: a step takes about 20 microseconds, an opening 23,000 of them.
//!
//! An instruction that repeats itself (`rep stos`) is left after each time, for more than half of all steps of an opening, which
//! clears private tables. If what it writes nobody else can see, it is one instruction; if anybody can, each time is one.
//!
//! A look at the clock is one instruction, as a call of the kernel is: it reads what the kernel writes (vDSO) again and again until that
//! stands still, which takes a stepped task any number of times, and one that runs none.

use crate::ptrace::{Resume, Stop, Task};
use std::collections::HashMap;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// A place in the code, wherever that is loaded: a file, and how far behind the beginning of its code.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Place {
    file: usize,
    offset: u64,
}

/// Where the files with a process's code are loaded.
struct Images(Vec<(String, std::ops::Range<u64>)>);

impl Images {
    /// Of a process or one of its threads, given its directory of `proc`.
    fn of(task: &Path) -> io::Result<Images> {
        let maps = std::fs::read_to_string(task.join("maps"))?;
        let image = |line: &str| {
            let mut words = line.split_ascii_whitespace();
            let (from, to) = words.next()?.split_once('-')?;
            let code = words.next()?.contains('x');
            let number = |text| u64::from_str_radix(text, 16).ok();
            let name = words.nth(3)?.to_owned();
            code.then_some((name, number(from)?..number(to)?))
        };
        Ok(Images(maps.lines().filter_map(image).collect()))
    }

    /// Whether this is code of the kernel's that a process executes itself.
    fn is_vdso(&self, address: u64) -> bool {
        let mut images = self.0.iter();
        images.any(|(name, range)| name == "[vdso]" && range.contains(&address))
    }

    fn place(&self, address: u64) -> io::Result<Place> {
        let found = self
            .0
            .iter()
            .position(|(_, range)| range.contains(&address));
        let file = found.ok_or_else(|| io::Error::other("code outside every file"))?;
        let offset = address - self.0[file].1.start;
        Ok(Place { file, offset })
    }
}

/// Whether somebody else may map what lies at this address of a process.
fn is_shared(task: &Path, address: u64) -> io::Result<bool> {
    let maps = std::fs::read_to_string(task.join("maps"))?;
    let found = maps.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let (from, to) = words.next()?.split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        let here = (number(from)?..number(to)?).contains(&address);
        here.then_some(words.next()?.contains('s'))
    });
    Ok(found.unwrap_or(true))
}

/// All instructions of an operation, in legs: where one ends, somebody else has acted before the next began.
pub(crate) struct Way {
    images: Images,
    legs: Vec<Leg>,
}

/// A part of a way.
struct Leg {
    /// Where each instruction lies, and the one behind the last.
    places: Vec<Place>,
    /// Steps from the first place to each.
    steps: Vec<u64>,
    instructions: usize,
    /// For each place: the one with the breakpoint, and how often that is met until then.
    approaches: Vec<(usize, u64)>,
    /// The last place that is nowhere before: who has come there has come to the end.
    end: usize,
}

impl Leg {
    fn new(places: Vec<Place>, steps: Vec<u64>, instructions: usize) -> Leg {
        let mut met: HashMap<&Place, u64> = HashMap::new();
        let mut approaches: Vec<(usize, u64)> = Vec::new();
        let mut end = 0;
        for (n, place) in places.iter().enumerate() {
            let hits = met.entry(place).and_modify(|hits| *hits += 1).or_insert(1);
            if *hits == 1 {
                end = n;
            }
            approaches.push(match approaches.last() {
                Some(&(at, hits_there)) if hits_there + (steps[n] - steps[at]) <= *hits => {
                    (at, hits_there)
                }
                _ => (n, *hits),
            });
        }
        Leg {
            places,
            steps,
            instructions,
            approaches,
            end,
        }
    }

    /// Whether the instruction at a place repeated itself when the way was noted.
    fn repeats(&self, n: usize) -> bool {
        self.steps[n + 1] - self.steps[n] > 1
    }
}

impl Way {
    pub(crate) fn instructions(&self) -> u64 {
        self.legs.iter().map(|leg| leg.instructions as u64).sum()
    }

    /// Where a place of this way lies in another process.
    fn address(&self, place: &Place, there: &Images) -> Option<u64> {
        let name = &self.images.0[place.file].0;
        let (_, range) = there.0.iter().find(|(other, _)| other == name)?;
        Some(range.start + place.offset)
    }
}

/// What the others see after an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    Nothing,
    /// Something that one of them has acted upon.
    Acted,
    /// The operation is over.
    Over,
}

/// What else happens while a task is walked.
pub(crate) trait Company {
    /// After an instruction.
    fn look(&mut self) -> Seen;

    /// Whether an instruction may depend on what [`meanwhile`](Self::meanwhile) does.
    fn acts(&self) -> bool;

    /// While the task runs: whether it will never stop, because the operation is over.
    fn meanwhile(&mut self) -> bool;
}

/// A task that is walked, its directory of `proc`, and who goes with it.
pub(crate) struct Walker<'a> {
    pub(crate) task: Task,
    pub(crate) files: &'a Path,
    pub(crate) company: &'a mut dyn Company,
}

impl Walker<'_> {
    /// Goes on, and waits for the next stop: `false` if there is none, because the operation is over.
    fn go(&mut self, how: Resume) -> io::Result<bool> {
        self.task.resume(how, 0)?;
        let stop = match self.company.acts() {
            false => self.task.wait()?,
            true => loop {
                if let Some(stop) = self.stops_soon()? {
                    break stop;
                }
                if self.company.meanwhile() {
                    self.task.interrupt()?;
                    // The trap of the step that ended so is taken here: nobody else would, and it kills.
                    self.task.resume(Resume::Step, 0)?;
                    self.task.wait()?;
                    return Ok(false);
                }
            },
        };
        match stop {
            Stop::Signal(libc::SIGTRAP) => Ok(true),
            other => Err(io::Error::other(format!(
                "it stops where it should not: {other:?}"
            ))),
        }
    }

    /// Most do: only of those that do not it pays to ask whether they sleep.
    fn stops_soon(&self) -> io::Result<Option<Stop>> {
        const LOOKS: usize = 16;
        for _ in 0..LOOKS {
            let stop = self.task.try_wait()?;
            if stop.is_some() {
                return Ok(stop);
            }
            std::thread::yield_now();
        }
        Ok(None)
    }

    /// Executes an instruction, or a repeated one once; of a call into the vDSO all.
    fn step(&mut self, here: &Images) -> io::Result<Seen> {
        let mut stopped = self.go(Resume::Step)?;
        if stopped && here.is_vdso(self.task.at()?) {
            let mut back = [0; 8];
            let memory = std::fs::File::open(self.files.join("mem"))?;
            memory.read_exact_at(&mut back, self.task.stack()?)?;
            self.task.break_at([u64::from_ne_bytes(back), 0])?;
            stopped = self.go(Resume::Run)?;
            self.task.break_at([0; 2])?;
        }
        Ok(match stopped {
            true => self.company.look(),
            false => Seen::Over,
        })
    }

    /// To the end of the operation; notes the way.
    pub(crate) fn measure(&mut self) -> io::Result<Way> {
        let images = Images::of(self.files)?;
        let mut legs = Vec::new();
        let (mut places, mut steps, mut taken) = (Vec::new(), Vec::new(), 0);
        loop {
            let at = self.task.at()?;
            places.push(images.place(at)?);
            steps.push(taken);
            taken += 1;
            let mut seen = self.step(&images)?;
            if seen == Seen::Nothing && self.task.at()? == at {
                let is_shared = is_shared(self.files, self.task.writes_to()?)?;
                while !is_shared && seen == Seen::Nothing && self.task.at()? == at {
                    taken += 1;
                    seen = self.step(&images)?;
                }
            }
            if seen != Seen::Nothing {
                let instructions = places.len();
                places.push(images.place(self.task.at()?)?);
                steps.push(taken);
                let (places, steps) = (std::mem::take(&mut places), std::mem::take(&mut steps));
                legs.push(Leg::new(places, steps, instructions));
            }
            if seen == Seen::Over {
                return Ok(Way { images, legs });
            }
        }
    }

    /// To where so many instructions of the way have been executed, or to the end if that comes first; whether it is there.
    pub(crate) fn walk(&mut self, way: &Way, mut instructions: u64) -> io::Result<bool> {
        let there = Images::of(self.files)?;
        for leg in &way.legs {
            let in_leg = instructions.min(leg.instructions as u64);
            if !self.walk_leg(way, leg, in_leg as usize, &there)? {
                return Ok(false);
            }
            instructions -= in_leg;
            if instructions == 0 {
                break;
            }
            self.company.look();
        }
        Ok(true)
    }

    fn walk_leg(&mut self, way: &Way, leg: &Leg, n: usize, there: &Images) -> io::Result<bool> {
        let mut at = 0;
        if let Some(&(place, hits)) = leg.approaches.get(n).filter(|(at, _)| *at > 0) {
            let address = |n: usize| {
                let address = way.address(&leg.places[n], there);
                address.ok_or_else(|| io::Error::other("other code than before"))
            };
            let end = if place < leg.end {
                address(leg.end)?
            } else {
                0
            };
            self.task.break_at([address(place)?, end])?;
            for _ in 0..hits {
                let stopped = self.go(Resume::Run)?;
                if !stopped || self.task.at()? != address(place)? {
                    // It went another way, and has come to its end.
                    self.task.break_at([0; 2])?;
                    return Ok(false);
                }
            }
            self.task.break_at([0; 2])?;
            at = place;
        }
        for at in at..n {
            let from = self.task.at()?;
            let mut seen = self.step(there)?;
            while leg.repeats(at) && seen == Seen::Nothing && self.task.at()? == from {
                seen = self.step(there)?;
            }
            if seen == Seen::Over && at + 1 < n {
                return Ok(false);
            }
        }
        let place = way.address(&leg.places[n], there);
        Ok(place == Some(self.task.at()?))
    }
}

/// Whether a thread waits in the kernel, given its directory of `proc`.
pub(crate) fn asleep(task: &Path) -> bool {
    let stat = std::fs::read_to_string(task.join("stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").map(|(_, rest)| rest);
    state.is_some_and(|state| state.starts_with('S'))
}
