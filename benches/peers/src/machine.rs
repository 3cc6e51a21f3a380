//! The facts about the machine that a figure cannot be read without.
//!
//! `report` prints them below the table and into the JSON. A fact that the
//! system does not tell is `unknown`, never a reason to stop.

use std::fs::read_to_string;
use std::hint::black_box;

use rustix::system::uname;
use serde::Serialize;
use tightbeam_sys::clock::TickClock;

use crate::cpus::Cpus;

/// Readings of the clock in the measurement of the clock.
const READINGS: u32 = 10_000;

/// The machine and the two CPUs in use.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    cpu_model: String,
    arch: &'static str,
    kernel: String,
    /// The near side's, the far side's.
    cpus: [usize; 2],
    topology: &'static str,
    governor: String,
    /// The clock of single round trips, and what one look at it costs. Contained
    /// once in each of `rtt_ns`, not in `floor_ns` and not in any ratio.
    clock: String,
    clock_ns: f64,
}

impl Machine {
    pub(crate) fn look(cpus: Cpus, clock: &TickClock) -> Self {
        let system = uname();
        Self {
            cpu_model: cpu_model(),
            arch: std::env::consts::ARCH,
            kernel: system.release().to_string_lossy().into_owned(),
            cpus: [cpus.near, cpus.far],
            topology: topology(cpus),
            governor: fact(&format!(
                "/sys/devices/system/cpu/cpu{}/cpufreq/scaling_governor",
                cpus.near
            )),
            clock: format!("{:?}", clock.source()).to_lowercase(),
            clock_ns: clock_ns(clock),
        }
    }

    /// One line for people.
    pub(crate) fn line(&self) -> String {
        let [near, far] = self.cpus;
        format!(
            "{}, {}, Linux {}, CPUs {near} and {far} ({}), governor {}, clock {} ({:.0} ns a look)",
            self.cpu_model,
            self.arch,
            self.kernel,
            self.topology,
            self.governor,
            self.clock,
            self.clock_ns
        )
    }
}

fn fact(path: &str) -> String {
    read_to_string(path).map_or_else(|_| "unknown".into(), |text| text.trim().to_owned())
}

fn cpu_model() -> String {
    let text = read_to_string("/proc/cpuinfo").unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == "model name")
        .map_or_else(|| "unknown".into(), |(_, model)| model.trim().to_owned())
}

/// What the kernel believes. A hypervisor may have told it a fairy tale.
fn topology(cpus: Cpus) -> &'static str {
    let siblings = |cpu: usize| {
        fact(&format!(
            "/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        ))
    };
    match (siblings(cpus.near), siblings(cpus.far)) {
        (near, _) if near == "unknown" => "topology unknown",
        (near, far) if near == far => "two threads of one core, as the kernel sees them",
        _ => "separate cores, as the kernel sees them",
    }
}

fn clock_ns(clock: &TickClock) -> f64 {
    let start = clock.now();
    for _ in 0..READINGS {
        black_box(clock.now());
    }
    clock.ns(clock.now().wrapping_sub(start)) / f64::from(READINGS)
}
