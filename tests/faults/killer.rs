//! Who kills, and when it was and what the kernel needed for it.

use crate::board::{PLACES, place};
use crate::traffic::now;
use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

/// Kills at its own moments, so that the survivor may be anywhere; and when it did so.
pub(crate) struct Killer(mpsc::Sender<(u64, Pid, Duration)>);

static KILLED_AT: [AtomicU64; PLACES as usize] = [const { AtomicU64::new(0) }; PLACES as usize];

static GONE_AT: [AtomicU64; PLACES as usize] = [const { AtomicU64::new(0) }; PLACES as usize];

pub(crate) fn gone_at(number: u64) -> &'static AtomicU64 {
    &GONE_AT[place(number)]
}

pub(crate) fn killed_at(number: u64) -> &'static AtomicU64 {
    &KILLED_AT[place(number)]
}

impl Killer {
    pub(crate) fn start() -> Killer {
        let (orders, taken) = mpsc::channel::<(u64, Pid, Duration)>();
        std::thread::spawn(move || {
            for (number, pid, delay) in taken {
                let process = pidfd_open(pid, PidfdFlags::empty()).expect("it is not reaped");
                std::thread::sleep(delay);
                killed_at(number).store(now(), Ordering::Release);
                kill_process(pid, Signal::KILL).expect("nobody else reaps it");
                // What the kernel needs for it, for the record.
                let mut gone = [PollFd::new(&process, PollFlags::IN)];
                while rustix::event::poll(&mut gone, None).is_err() {}
                gone_at(number).store(now(), Ordering::Release);
            }
        });
        Killer(orders)
    }

    pub(crate) fn order(&self, number: u64, pid: Pid, delay: Duration) {
        self.0.send((number, pid, delay)).expect("it waits");
    }
}
