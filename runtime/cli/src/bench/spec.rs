//! One row to measure, as both processes understand it.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How a receiver waits for the next message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Wait {
    /// Looks again and again and keeps its CPU busy.
    Spin,
    /// Sleeps until it is woken.
    Block,
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Wait::Spin => "spin",
            Wait::Block => "block",
        })
    }
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lower")]
pub(crate) enum Job {
    /// A message there and one of the same size back.
    PingPong,
    /// The smallest request and reply that the path has.
    Call,
    /// Messages in one direction, as many as go.
    Rate,
    /// Messages in one direction, each at its moment. Only between hosts.
    #[value(skip)]
    Load,
}

/// One way to run one job over one path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Spec {
    /// Name of the path.
    pub(crate) path: String,
    pub(crate) job: Job,
    /// Bytes of a message; 0 only for calls.
    pub(crate) size: usize,
    pub(crate) wait: Wait,
    /// Ring depth for Tightbeam's own path, if not the library's default.
    pub(crate) depth: Option<usize>,
    /// Both processes are on one CPU: whoever spins must let the other one run.
    pub(crate) shared_cpu: bool,
}

impl Spec {
    pub(crate) fn pause(&self) -> Pause {
        Pause::new(self.shared_cpu)
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Spec {
            path, size, wait, ..
        } = self;
        match self.job {
            Job::PingPong => write!(f, "{path} {wait} {size} B"),
            Job::Call => write!(f, "{path} {wait} call"),
            Job::Rate => write!(f, "{path} {wait} rate {size} B"),
            Job::Load => write!(f, "{path} {wait} load {size} B"),
        }
    }
}

/// What to do between two looks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pause {
    yields: bool,
}

impl Pause {
    pub(crate) fn new(shared_cpu: bool) -> Pause {
        Pause { yields: shared_cpu }
    }

    #[inline(always)]
    pub(crate) fn once(self) {
        match self.yields {
            true => rustix::thread::sched_yield(),
            false => std::hint::spin_loop(),
        }
    }
}
