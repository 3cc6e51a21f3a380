//! What the machine's CPUs are, as far as it decides how fast messages are.

use super::finding::Finding;
use crate::bench::machine::{line, parse_list};
use std::collections::BTreeSet;

/// Looks at the CPUs on which this process may run.
pub(super) fn look() -> Vec<Finding> {
    let allowed = tightbeam_sys::cpu::allowed().unwrap_or_default();
    vec![
        count(&allowed, quota()),
        cores(&allowed),
        governor(&allowed),
        clock(),
    ]
}

/// CPUs' worth of time that the control group leaves us; `None` without a limit.
fn quota() -> Option<f64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    parse_quota(&line(&format!("/sys/fs/cgroup{own}/cpu.max"))?)
}

fn parse_quota(text: &str) -> Option<f64> {
    let (quota, period) = text.split_once(' ')?;
    Some(quota.parse::<f64>().ok()? / period.parse::<f64>().ok()?)
}

fn count(allowed: &[usize], quota: Option<f64>) -> Finding {
    const NAME: &str = "CPUs";
    let many = allowed.len();
    match (many, quota) {
        (0, _) => Finding::note(NAME, "the kernel does not say on which this process may run"),
        (1, _) => Finding::note(
            NAME,
            "this process may run on one only: the two sides of a channel take turns, and `Wait::Spin` is a bad choice",
        )
        .mended_by("taskset --cpu-list 0,1 PROGRAM"),
        (_, Some(quota)) if quota < many as f64 => Finding::note(
            NAME,
            format!("{many}, but their control group gets the time of {quota:.1}: who spins is stopped when that is used up"),
        )
        .mended_by("systemctl set-property UNIT CPUQuota="),
        _ => Finding::ok(NAME, format!("this process may run on {many}")),
    }
}

/// Which of them are threads of one core.
fn cores(allowed: &[usize]) -> Finding {
    const NAME: &str = "cores";
    let siblings = |cpu: &usize| {
        line(&format!(
            "/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        ))
    };
    let Some(groups) = allowed
        .iter()
        .map(siblings)
        .collect::<Option<BTreeSet<_>>>()
    else {
        return Finding::note(
            NAME,
            "the kernel does not say which CPUs are threads of one core",
        );
    };
    let shared = groups.iter().filter(|list| parse_list(list).len() > 1);
    let shared: Vec<&str> = shared.map(String::as_str).collect();
    let many = groups.len();
    if shared.is_empty() {
        return Finding::ok(NAME, format!("{many}, of one thread each"));
    }
    Finding::note(
        NAME,
        format!(
            "{many}, some with several threads ({}): two endpoints that spin there take a core from each other, and are closer together",
            shared.join("; ")
        ),
    )
    .mended_by("tightbeam bench --cpus A,B compares pairs of CPUs")
}

fn governor(allowed: &[usize]) -> Finding {
    let of = |cpu: &usize| {
        line(&format!(
            "/sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor"
        ))
    };
    let governors: BTreeSet<String> = allowed.iter().filter_map(of).collect();
    judge_governors(governors)
}

fn judge_governors(governors: BTreeSet<String>) -> Finding {
    const NAME: &str = "governor";
    let slow = governors.iter().any(|name| name != "performance");
    let names = governors.into_iter().collect::<Vec<_>>().join(", ");
    match (names.is_empty(), slow) {
        (true, _) => Finding::ok(NAME, "none: hardware or hypervisor chooses the frequency"),
        (_, false) => Finding::ok(NAME, names),
        (_, true) => Finding::note(NAME, format!("{names}: a CPU that slept is slow at first"))
            .mended_by("cpupower frequency-set --governor performance"),
    }
}

/// Deadlines look at the clock; some take a microsecond.
fn clock() -> Finding {
    const NAME: &str = "clock";
    const FOLDER: &str = "/sys/devices/system/clocksource/clocksource0";
    let Some(now) = line(&format!("{FOLDER}/current_clocksource")) else {
        return Finding::note(NAME, "the kernel does not say what its clock is");
    };
    let quick = [
        "tsc",
        "kvm-clock",
        "arch_sys_counter",
        "hyperv_clocksource_tsc_page",
    ];
    if quick.contains(&now.as_str()) {
        return Finding::ok(NAME, now);
    }
    let note = Finding::note(NAME, format!("{now}: each look at it takes a system call"));
    let others = line(&format!("{FOLDER}/available_clocksource")).unwrap_or_default();
    match quick
        .iter()
        .find(|quick| others.split(' ').any(|other| other == **quick))
    {
        Some(better) => note.mended_by(format!("echo {better} > {FOLDER}/current_clocksource")),
        None => note,
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    #[test]
    fn a_quota_below_the_cpus_is_noted() {
        assert_eq!(parse_quota("max 100000"), None);
        assert_eq!(parse_quota("150000 100000"), Some(1.5));
        assert_eq!(count(&[0, 1], Some(1.5)).verdict, Verdict::Note);
        assert_eq!(count(&[0, 1], Some(2.0)).verdict, Verdict::Ok);
        assert_eq!(count(&[0, 1], None).verdict, Verdict::Ok);
        assert_eq!(count(&[3], None).verdict, Verdict::Note);
    }

    #[test]
    fn governors_other_than_performance_are_noted() {
        let judge = |names: &[&str]| {
            judge_governors(names.iter().map(|name| (*name).to_owned()).collect()).verdict
        };
        assert_eq!(judge(&[]), Verdict::Ok);
        assert_eq!(judge(&["performance"]), Verdict::Ok);
        assert_eq!(judge(&["performance", "powersave"]), Verdict::Note);
    }
}
