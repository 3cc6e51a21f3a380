//! What a campaign of kills has found.

use crate::board::percentile;
use std::time::Duration;

/// What was found.
#[derive(Default)]
pub(crate) struct Findings {
    pub(crate) kills: u64,
    /// Killed before it had a channel.
    pub(crate) early: u64,
    pub(crate) messages: u64,
    pub(crate) answers: u64,
    pub(crate) third: u64,
    /// Frames for several, and how often one was lent.
    pub(crate) shared: u64,
    pub(crate) lent: u64,
    /// Audits of frames: at each end that was told, and of those that live.
    pub(crate) audits: u64,
    pub(crate) gone: Vec<u64>,
    pub(crate) own: Vec<u64>,
    pub(crate) noticed: Vec<u64>,
    pub(crate) back: Vec<u64>,
    pub(crate) again: Vec<u64>,
}

impl Findings {
    /// From here on it counts; and takes no memory while it does.
    pub(crate) fn make_room(&mut self, kills: usize) {
        for times in [
            &mut self.gone,
            &mut self.own,
            &mut self.noticed,
            &mut self.back,
            &mut self.again,
        ] {
            times.clear();
            times.resize(kills, 1);
            times.clear();
        }
        self.kills = 0;
    }

    /// What is ours of the figures, once they are sorted. How soon the kernel ends a process is not: that alone took 10.9 ms once in
    /// 50,000 times, of which the next 0.4 were.
    pub(crate) fn assert_soon(&self) {
        let bounds = [
            ("killed to told, p50", percentile(&self.noticed, 0.5), 1),
            ("gone to told, max", percentile(&self.own, 1.0), 10),
            ("everything back, max", percentile(&self.back, 1.0), 20),
        ];
        for (what, took, most) in bounds {
            let took = Duration::from_nanos(took);
            assert!(took <= Duration::from_millis(most), "{what}: {took:?}");
        }
    }

    pub(crate) fn print(&mut self, name: &str, took: Duration) {
        println!(
            "{name}: {} kills ({} before the channel was open) in {took:.1?}, {} messages and {} answers checked, {} calls of a third party",
            self.kills, self.early, self.messages, self.answers, self.third
        );
        println!(
            "  frames: {} for several, lent {} times; {} audits, none astray, all back in the end",
            self.shared, self.lent, self.audits
        );
        print("killed to gone, by the kernel", &mut self.gone);
        print("gone to told, by us", &mut self.own);
        print("killed to told", &mut self.noticed);
        print("killed to all given back", &mut self.back);
        print("killed to the next one's channel", &mut self.again);
    }
}

fn print(name: &str, times: &mut [u64]) {
    times.sort_unstable();
    if times.is_empty() {
        return;
    }
    let at = |share| percentile(times, share) as f64 / 1e6;
    println!(
        "  {name}: p50 {:.3} ms, p99 {:.3} ms, max {:.3} ms of {}",
        at(0.5),
        at(0.99),
        at(1.0),
        times.len()
    );
}
