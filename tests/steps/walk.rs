//! Walking a stopped task to a point of its operation.
//!
//! A point is so many system calls behind the mark and then so many instructions further. The calls are gone to in one
//! go each, which is what makes openings affordable; calls that wait for others are not counted, because how many there
//! are depends on who is quicker.

use crate::ptrace::{Resume, Stop, Task};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// A point of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Point {
    pub(crate) calls: usize,
    pub(crate) steps: u64,
}

/// All instructions of an operation: those before its first counted system call has returned, and so on.
#[derive(Debug)]
pub(crate) struct Way(Vec<u64>);

impl Way {
    pub(crate) fn instructions(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The point after so many instructions, at the most all.
    pub(crate) fn point(&self, mut instructions: u64) -> Point {
        let last = self.0.len() - 1;
        for (calls, &steps) in self.0.iter().enumerate() {
            if instructions < steps || calls == last {
                let steps = instructions;
                return Point { calls, steps };
            }
            instructions -= steps;
        }
        Point { calls: 0, steps: 0 }
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

fn failed<T>(what: &str, how: &dyn std::fmt::Debug) -> io::Result<T> {
    Err(io::Error::other(format!("{what}: {how:?}")))
}

/// Goes on, and waits for the next stop: `false` if there is none, because the operation is over.
fn go(task: Task, how: Resume, company: &mut dyn Company) -> io::Result<bool> {
    task.resume(how, 0)?;
    let stop = match company.acts() {
        false => task.wait()?,
        true => loop {
            if let Some(stop) = task.try_wait()? {
                break stop;
            }
            if company.meanwhile() {
                return Ok(false);
            }
            std::thread::yield_now();
        },
    };
    match (how, stop) {
        (Resume::Step, Stop::Signal(libc::SIGTRAP)) | (Resume::ToCall, Stop::Call) => Ok(true),
        (_, stop) => failed("the victim stopped where it should not", &stop),
    }
}

/// Through one system call: whether it counts, or `None` if the operation is over.
fn through_call(task: Task, company: &mut dyn Company) -> io::Result<Option<bool>> {
    if !go(task, Resume::ToCall, company)? {
        return Ok(None);
    }
    let (_, Some(call)) = task.position()? else {
        return failed("no call begins", &task);
    };
    if !go(task, Resume::ToCall, company)? {
        return Ok(None);
    }
    Ok(Some(!WAITING.contains(&(call as i64))))
}

/// Walks to a point, or to the end of the operation if that comes first; without a point to the end, and notes the way.
pub(crate) fn walk(
    task: Task,
    to: Option<Point>,
    company: &mut dyn Company,
) -> io::Result<Option<Way>> {
    match to {
        Some(point) => walk_to(task, point, company).map(|()| None),
        None => measure(task, company).map(Some),
    }
}

fn walk_to(task: Task, to: Point, company: &mut dyn Company) -> io::Result<()> {
    let mut calls = 0;
    while calls < to.calls {
        match through_call(task, company)? {
            Some(counts) if !company.over() => calls += usize::from(counts),
            _ => return Ok(()),
        }
    }
    for _ in 0..to.steps {
        if !go(task, Resume::Step, company)? || company.over() {
            return Ok(());
        }
    }
    Ok(())
}

fn measure(task: Task, company: &mut dyn Company) -> io::Result<Way> {
    let memory = File::open(format!("/proc/{}/mem", task.id().as_raw_nonzero()))?;
    let (mut way, mut steps) = (Vec::new(), 0);
    loop {
        let (at, _) = task.position()?;
        let mut bytes = CALL;
        memory.read_exact_at(&mut bytes, at)?;
        let counts = match bytes == CALL {
            true => through_call(task, company)?,
            false => go(task, Resume::Step, company)?.then_some(false),
        };
        let Some(counts) = counts else { break };
        steps += 1;
        if company.over() {
            break;
        }
        if counts {
            way.push(std::mem::take(&mut steps));
        }
    }
    way.push(steps);
    Ok(Way(way))
}

/// The instruction that makes a system call.
#[cfg(target_arch = "x86_64")]
const CALL: [u8; 2] = [0x0f, 0x05];
#[cfg(target_arch = "aarch64")]
const CALL: [u8; 4] = [0x01, 0x00, 0x00, 0xd4];

/// System calls that wait for somebody, or that are made again until they need not wait.
const WAITING: &[i64] = &[
    libc::SYS_recvmsg,
    libc::SYS_ppoll,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_futex,
    libc::SYS_futex_waitv,
    libc::SYS_sched_yield,
    libc::SYS_clock_nanosleep,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
];
