//! What the figures were measured on. Read from `/proc` and `/sys` once; what is not there is left out, never guessed.

use super::stats::Spread;
use serde::{Deserialize, Serialize};
use std::fs;

/// How two CPUs are related, which decides the floor more than anything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Relation {
    /// Both processes share one.
    SameCpu,
    /// Hardware threads of one core, says the kernel.
    SmtSiblings,
    /// Cores of one package, says the kernel.
    SamePackage,
    /// Packages of one machine.
    OtherPackage,
    /// The kernel does not say.
    Unknown,
}

impl Relation {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Relation::SameCpu => "the same CPU",
            Relation::SmtSiblings => "SMT siblings of one core",
            Relation::SamePackage => "two cores of one package",
            Relation::OtherPackage => "cores of two packages",
            Relation::Unknown => "relation unknown",
        }
    }

    pub(crate) fn between(a: usize, b: usize) -> Relation {
        if a == b {
            return Relation::SameCpu;
        }
        let siblings = topology(a, "thread_siblings_list").map(|list| parse_list(&list));
        let packages = (
            topology(a, "physical_package_id"),
            topology(b, "physical_package_id"),
        );
        match (siblings, packages) {
            (Some(siblings), _) if siblings.contains(&b) => Relation::SmtSiblings,
            (Some(_), (Some(here), Some(there))) if here == there => Relation::SamePackage,
            (Some(_), (Some(_), Some(_))) => Relation::OtherPackage,
            _ => Relation::Unknown,
        }
    }
}

/// The machine's facts.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) cpu_model: Option<String>,
    pub(crate) architecture: String,
    pub(crate) cpus_online: Option<usize>,
    /// Those of the first and the second process.
    pub(crate) cpus: [usize; 2],
    pub(crate) relation: Relation,
    /// A hypervisor may run two "cores" on the threads of one.
    pub(crate) hypervisor: bool,
    pub(crate) governor: Option<String>,
    pub(crate) kernel: String,
    pub(crate) clocksource: Option<String>,
    /// The clock that stamps round trips: "counter" or "monotonic".
    pub(crate) stamps: Option<String>,
    /// All batches of the floor.
    pub(crate) floor_ns: Option<Spread>,
}

impl Machine {
    pub(crate) fn read(cpus: [usize; 2]) -> Machine {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let uname = rustix::system::uname();
        let governor = |cpu: usize| {
            line(&format!(
                "/sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor"
            ))
        };
        let governors = match (governor(cpus[0]), governor(cpus[1])) {
            (Some(here), Some(there)) if here != there => Some(format!("{here}, {there}")),
            (here, _) => here,
        };
        Machine {
            cpu_model: field(&info, "model name").or_else(|| field(&info, "CPU part")),
            architecture: std::env::consts::ARCH.into(),
            cpus_online: line("/sys/devices/system/cpu/online").map(|list| parse_list(&list).len()),
            cpus,
            relation: Relation::between(cpus[0], cpus[1]),
            hypervisor: field(&info, "flags")
                .is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
            governor: governors,
            kernel: format!(
                "{} {}",
                uname.sysname().to_string_lossy(),
                uname.release().to_string_lossy()
            ),
            clocksource: line("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
            stamps: None,
            floor_ns: None,
        }
    }
}

/// Value of the first `name : value` line.
fn field(text: &str, name: &str) -> Option<String> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == name)
        .map(|(_, value)| value.trim().to_owned())
}

/// The only line of a file.
pub(crate) fn line(path: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

fn topology(cpu: usize, name: &str) -> Option<String> {
    line(&format!("/sys/devices/system/cpu/cpu{cpu}/topology/{name}"))
}

/// A list like `0-3,8`. Parts that are no numbers are left out.
pub(crate) fn parse_list(list: &str) -> Vec<usize> {
    let range = |part: &str| -> Option<std::ops::RangeInclusive<usize>> {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
    };
    list.split(',').filter_map(range).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus() {
        assert_eq!(parse_list("0-3,8"), [0, 1, 2, 3, 8]);
        assert_eq!(parse_list("5"), [5]);
        assert_eq!(parse_list("x,2-1,7"), [7]);
    }

    #[test]
    fn fields_of_cpuinfo() {
        let text = "processor\t: 0\nmodel name\t: Some CPU: fast\n\nprocessor : 1\n";
        assert_eq!(field(text, "model name").as_deref(), Some("Some CPU: fast"));
        assert_eq!(field(text, "flags"), None);
    }

    #[test]
    fn one_cpu_is_itself() {
        assert_eq!(Relation::between(0, 0), Relation::SameCpu);
        assert_eq!(Relation::between(0, 1 << 20), Relation::Unknown);
    }
}
