//! The two CPUs: which ones may be used, and staying on them.
//!
//! `main` checks the choice before anything is started; both sides of every
//! path pin themselves. It never picks CPUs by guessing at their topology.

use std::str::FromStr;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::fault::Fault;

/// One CPU for each side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cpus {
    pub(crate) near: usize,
    pub(crate) far: usize,
}

impl FromStr for Cpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed: Result<Vec<usize>, _> = text.split(',').map(|cpu| cpu.trim().parse()).collect();
        match parsed.as_deref() {
            Ok([near, far]) => Ok(Self {
                near: *near,
                far: *far,
            }),
            _ => Err("two CPU numbers with a comma between them, like 0,1".into()),
        }
    }
}

impl Cpus {
    /// The first two CPUs that this process may run on.
    pub(crate) fn first_two() -> Result<Self, Fault> {
        match allowed()?.as_slice() {
            [near, far, ..] => Ok(Self {
                near: *near,
                far: *far,
            }),
            others => Err(refuse(format!(
                "two CPUs are needed, and this process may use {}",
                list(others)
            ))),
        }
    }

    /// Refuses what cannot be measured: a CPU that is not there, or one CPU
    /// for both sides, where two sides that only spin wait for the scheduler.
    pub(crate) fn check(self) -> Result<Self, Fault> {
        let allowed = allowed()?;
        for cpu in [self.near, self.far] {
            if !allowed.contains(&cpu) {
                return Err(refuse(format!(
                    "CPU {cpu} is not there or not allowed; this process may use {}",
                    list(&allowed)
                )));
            }
        }
        if self.near == self.far {
            return Err(refuse(format!(
                "both sides on CPU {}: they only spin, so each would wait for the other's time slice to end",
                self.near
            )));
        }
        Ok(self)
    }
}

/// Keeps the calling thread on one CPU.
pub(crate) fn pin(cpu: usize) -> Result<(), Fault> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).map_err(Fault::doing("pinning to a CPU"))
}

fn allowed() -> Result<Vec<usize>, Fault> {
    let set =
        sched_getaffinity(None).map_err(Fault::doing("asking which CPUs this process may use"))?;
    Ok((0..CpuSet::MAX_CPU)
        .filter(|cpu| set.is_set(*cpu))
        .collect())
}

fn list(cpus: &[usize]) -> String {
    let names: Vec<String> = cpus.iter().map(ToString::to_string).collect();
    names.join(",")
}

fn refuse(why: String) -> Fault {
    Fault::Refused {
        doing: "choosing CPUs",
        why,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_numbers_are_cpus_and_nothing_else_is() {
        assert_eq!("3, 1".parse(), Ok(Cpus { near: 3, far: 1 }));
        for wrong in ["", "1", "1,2,3", "a,b", "1,-2"] {
            assert!(wrong.parse::<Cpus>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_cpu_that_is_not_there_is_refused_by_name() {
        let absent = CpuSet::MAX_CPU + 1;
        let cpus = Cpus {
            near: absent,
            far: 0,
        };
        let message = cpus.check().expect_err("absent").to_string();
        assert!(message.contains(&absent.to_string()), "{message}");
    }
}
