//! How long the victim's polls take, of its own CPU time.
//!
//! The CPU clock is a system call of half a microsecond, several polls long, so polls are timed by the wall, and the CPU clock is
//! read once for many of them: what a poll took of its own is at most what it took by the wall, and at most what all of its group
//! took of their own. For that to say something of one poll a group has to be short: with 1,024 polls each, which may be
//! milliseconds, whoever was interrupted by another process for 4 ms was said to have worked for 4 ms.

use crate::board::own_time;
use tightbeam_sys::clock::TickClock;

/// Polls between two readings of the CPU clock: with few polls it would be most of what a victim does whose polls are short, and
/// whether the scribbler has a channel would decide how often it is made.
const GROUP: usize = 1024;
/// The same for a victim that sleeps in between.
const GROUP_ASLEEP: usize = 16;
/// Wall time after which a group is over, in nanoseconds: what may be wrongly said of a poll is less than this.
const GROUP_TIME: f64 = 250_000.0;
/// Own CPU time between two looks at what the hypervisor has stolen, which is told in steps of 10 ms.
const STEAL_LOOK: u64 = 100_000_000;
/// No poll shall take more of the victim's own CPU time.
pub(crate) const BOUND: u64 = 1_000_000;

/// How long polls took: eight buckets for each power of two.
pub(crate) struct Times {
    counts: Vec<u64>,
    pub(crate) max: u64,
    pub(crate) over: u64,
    /// Those above the bound during which the hypervisor ran somebody else, which the CPU clock cannot tell.
    pub(crate) stolen: u64,
    pub(crate) polls: u64,
}

impl Times {
    const STEPS: u64 = 8;

    pub(crate) fn new() -> Times {
        Times {
            counts: vec![0; 64 * Self::STEPS as usize],
            max: 0,
            over: 0,
            stolen: 0,
            polls: 0,
        }
    }

    fn note(&mut self, ns: u64) {
        let power = (ns | Self::STEPS).ilog2();
        let step = (ns >> (power - 3)) & (Self::STEPS - 1);
        self.counts[(u64::from(power) * Self::STEPS + step) as usize] += 1;
        self.max = self.max.max(ns);
        self.polls += 1;
    }

    /// The upper end of the bucket in which this share of the polls ends.
    pub(crate) fn quantile(&self, share: f64) -> u64 {
        let mut left = (self.polls as f64 * share) as u64;
        for (bucket, count) in self.counts.iter().enumerate() {
            if *count > left {
                let (power, step) = (bucket as u64 / Self::STEPS, bucket as u64 % Self::STEPS);
                return (Self::STEPS + step + 1) << power.saturating_sub(3);
            }
            left -= count;
        }
        self.max
    }
}

/// A poll by the wall, in nanoseconds, and what it did.
struct Poll {
    wall: u64,
    handled: usize,
    /// Channels that opened or ended.
    events: usize,
}

/// Polls that have been timed by the wall, until the CPU clock says how much of it was ours: the kernel may have run
/// others meanwhile.
pub(crate) struct Group {
    clock: TickClock,
    polls: Vec<Poll>,
    most: usize,
    /// When it began: by the tick clock, and of own CPU time.
    began: u64,
    since: u64,
    /// What the hypervisor has stolen, and when that was looked at.
    stolen: (u64, u64),
}

impl Group {
    pub(crate) fn new(sleeps: bool) -> Group {
        let clock = TickClock::calibrate();
        Group {
            clock,
            polls: Vec::with_capacity(GROUP),
            most: if sleeps { GROUP_ASLEEP } else { GROUP },
            began: clock.now(),
            since: own_time(),
            stolen: (stolen(), own_time()),
        }
    }

    /// Notes a poll that began at this tick, and what it did.
    pub(crate) fn note(&mut self, before: u64, handled: usize, events: usize, after: u64) {
        self.polls.push(Poll {
            wall: self.clock.ns(after.wrapping_sub(before)) as u64,
            handled,
            events,
        });
    }

    pub(crate) fn tick(&self) -> u64 {
        self.clock.now()
    }

    pub(crate) fn is_over(&self) -> bool {
        let long = || self.clock.ns(self.clock.now().wrapping_sub(self.began)) > GROUP_TIME;
        self.polls.len() == self.most || long()
    }

    /// Notes what its polls took at most, and says on stderr what those did that took too long.
    pub(crate) fn close(&mut self, times: &mut Times) {
        let now = own_time();
        let own = now - self.since;
        let mut over = 0;
        for poll in self.polls.drain(..) {
            let took = poll.wall.min(own);
            times.note(took);
            if took > BOUND {
                over += 1;
                let Poll {
                    wall,
                    handled,
                    events,
                } = poll;
                eprintln!(
                    "a poll above 1 ms: {wall} ns by the wall, {own} ns of own CPU time with its group; it handled {handled} messages and told of {events} channels"
                );
            }
        }
        if over > 0 || now - self.stolen.1 > STEAL_LOOK {
            let stolen = stolen();
            match stolen > self.stolen.0 {
                true => times.stolen += over,
                false => times.over += over,
            }
            self.stolen = (stolen, now);
        }
    }

    /// Begins the next one.
    pub(crate) fn begin(&mut self) {
        (self.began, self.since) = (self.clock.now(), own_time());
    }
}

/// Time that the hypervisor has taken from this thread's CPU, in the kernel's ticks.
fn stolen() -> u64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let cpu = format!("cpu{}", tightbeam_sys::cpu::current());
    let line = stat
        .lines()
        .find(|line| line.split(' ').next() == Some(&cpu));
    let column = line.and_then(|line| line.split(' ').nth(8));
    column.and_then(|ticks| ticks.parse().ok()).unwrap_or(0)
}
