//! Walking a stopped task to a point of its operation.
//!
//! The whole operation is stepped through once and its way noted: the address of each instruction. Later a task is taken
//! to a point of it by a breakpoint at an instruction shortly before that is executed there for the first time, or for the
//! few-th, and stepped from there: a step takes about 20 microseconds, an opening 50,000 of them.

use crate::ptrace::{Resume, Stop, Task};
use std::collections::HashMap;
use std::io;
use std::path::Path;

/// A place in the code, wherever that is loaded: a file, and how far behind the beginning of its code.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
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

/// All instructions of an operation.
pub(crate) struct Way {
    images: Images,
    steps: Vec<Place>,
    /// For each point: the step with the breakpoint, and how often it is met until then.
    approaches: Vec<(usize, u64)>,
    /// The last step that is nowhere before: who has come there has come to the end.
    end: usize,
}

impl Way {
    fn new(images: Images, steps: Vec<Place>) -> Way {
        let mut met: HashMap<&Place, u64> = HashMap::new();
        let mut approaches: Vec<(usize, u64)> = Vec::new();
        let mut end = 0;
        for (n, place) in steps.iter().enumerate() {
            let hits = met.entry(place).and_modify(|hits| *hits += 1).or_insert(1);
            if *hits == 1 {
                end = n;
            }
            approaches.push(match approaches.last() {
                Some(&(at, hits_there)) if hits_there + (n - at) as u64 <= *hits => {
                    (at, hits_there)
                }
                _ => (n, *hits),
            });
        }
        Way {
            images,
            steps,
            approaches,
            end,
        }
    }

    pub(crate) fn instructions(&self) -> u64 {
        self.steps.len() as u64
    }

    /// Where a step of this way lies in another process.
    fn address(&self, step: usize, there: &Images) -> Option<u64> {
        let Place { file, offset } = self.steps.get(step)?;
        let name = &self.images.0[*file].0;
        let (_, range) = there.0.iter().find(|(other, _)| other == name)?;
        Some(range.start + offset)
    }
}

/// What else happens while a task is walked.
pub(crate) trait Company {
    /// Between two instructions: whether the operation is over.
    fn over(&mut self) -> bool;

    /// Whether a system call may depend on what [`meanwhile`](Self::meanwhile) does.
    fn acts(&self) -> bool;

    /// While an instruction has not come to its end: whether it never will, because the operation is over.
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
                if let Some(stop) = self.task.try_wait()? {
                    break stop;
                }
                if self.company.meanwhile() {
                    return Ok(false);
                }
                std::thread::yield_now();
            },
        };
        match stop {
            Stop::Signal(libc::SIGTRAP) => Ok(true),
            other => Err(io::Error::other(format!(
                "it stops where it should not: {other:?}"
            ))),
        }
    }

    /// To the end of the operation; notes the way.
    pub(crate) fn measure(&mut self) -> io::Result<Way> {
        let images = Images::of(self.files)?;
        let mut steps = Vec::new();
        loop {
            steps.push(images.place(self.task.registers()?.rip)?);
            if !self.go(Resume::Step)? || self.company.over() {
                return Ok(Way::new(images, steps));
            }
        }
    }

    /// To where so many instructions of the way have been executed, or to the end if that comes first; whether it is there.
    pub(crate) fn walk(&mut self, way: &Way, instructions: u64) -> io::Result<bool> {
        let there = Images::of(self.files)?;
        let n = instructions as usize;
        let mut steps = instructions;
        if let Some(&(at, hits)) = way.approaches.get(n).filter(|(at, _)| *at > 0) {
            let [place, end] = [at, way.end].map(|step| way.address(step, &there));
            let (Some(place), Some(end)) = (place, end) else {
                return Err(io::Error::other("other code than before"));
            };
            self.task
                .break_at([place, if at < way.end { end } else { 0 }])?;
            for _ in 0..hits {
                if !self.go(Resume::Run)? || self.task.registers()?.rip != place {
                    // It went another way, and has come to its end.
                    self.task.break_at([0; 2])?;
                    return Ok(false);
                }
            }
            self.task.break_at([0; 2])?;
            steps = (n - at) as u64;
        }
        for _ in 0..steps {
            if !self.go(Resume::Step)? {
                return Ok(false);
            }
            if self.company.over() {
                break;
            }
        }
        let here = self.task.registers()?.rip;
        // Of the point behind the last instruction nothing is known.
        Ok(n == way.steps.len() || way.address(n, &there) == Some(here))
    }
}
