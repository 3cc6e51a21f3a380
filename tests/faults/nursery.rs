//! A process that forks others on demand: sooner than an exec of the test binary, so that thousands may be killed.

use crate::support::{PATIENCE, Peer, Scratch, patiently};
use rustix::process::{Pid, Signal};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

/// What a forked process does: a role, and its number on the board.
pub(crate) type Body = fn(role: u64, number: u64, address: &str);

const FORK: u64 = 1;
const REAP: u64 = 2;

/// Forks: what the child runs is the body, then it is gone.
pub(crate) fn fork(body: impl FnOnce()) -> Pid {
    // SAFETY: lifetime: the child has a copy of everything but the other threads, of which none holds a lock that the body
    // takes: the C library looks after its own, and the callers have no other thread but one that sleeps.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // Whoever forked it is killed by its test at the latest.
        let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
        // It must not unwind into what its parent was doing.
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
        leave(i32::from(done.is_err()));
    }
    Pid::from_raw(pid).expect("a fork")
}

/// Ends this process without any clean-up.
pub(crate) fn leave(code: i32) -> ! {
    // SAFETY: lifetime: nothing of this process is used any more.
    unsafe { libc::_exit(code) }
}

/// Waits for the end of a child of this process.
pub(crate) fn reap(pid: Pid) -> rustix::process::WaitStatus {
    let options = rustix::process::WaitOptions::empty();
    let (_, status) = rustix::process::waitpid(Some(pid), options)
        .expect("our own child")
        .expect("it has ended");
    status
}

fn words<const N: usize>(from: &mut UnixStream) -> Option<[u64; N]> {
    let mut words = [0; N];
    for word in &mut words {
        let mut bytes = [0; 8];
        from.read_exact(&mut bytes).ok()?;
        *word = u64::from_ne_bytes(bytes);
    }
    Some(words)
}

fn say(to: &mut UnixStream, words: &[u64]) {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    to.write_all(&bytes).expect("it listens");
}

fn socket(address: &str) -> String {
    format!("{}.nursery", &address["shm:".len()..])
}

/// The nursery's own process: does as it is told until nobody is there any more.
pub(crate) fn run(address: &str, body: Body) {
    let listener = UnixListener::bind(socket(address)).expect("a free path");
    let (mut master, _) = listener.accept().expect("somebody comes");
    let _ = std::fs::remove_file(socket(address));
    while let Some([verb, role, number]) = words(&mut master) {
        let answer = match verb {
            FORK => fork(|| body(role, number, address)).as_raw_pid(),
            _ => {
                let pid = Pid::from_raw(role as i32).expect("a process id");
                let status = reap(pid);
                let failed = status.exit_status().unwrap_or(0) << 8;
                status.terminating_signal().unwrap_or(failed)
            }
        };
        say(&mut master, &[answer as u64]);
    }
}

/// The way to a nursery. All whom it has forked end with it.
pub(crate) struct Nursery {
    way: UnixStream,
    _process: Peer,
}

impl Nursery {
    pub(crate) fn start(scratch: &Scratch) -> Nursery {
        let process = Peer::start("nursery", &scratch.address());
        let way = patiently(|| UnixStream::connect(socket(&scratch.address())).ok());
        way.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        Nursery {
            way,
            _process: process,
        }
    }

    fn ask(&mut self, verb: u64, first: u64, second: u64) -> u64 {
        say(&mut self.way, &[verb, first, second]);
        let [answer] = words(&mut self.way).expect("an answer");
        answer
    }

    pub(crate) fn fork(&mut self, role: u64, number: u64) -> Pid {
        Pid::from_raw(self.ask(FORK, role, number) as i32).expect("a fork")
    }

    /// Waits for the end of one of them, and by which signal it came; or its exit status, times 256.
    pub(crate) fn reap(&mut self, pid: Pid) -> i32 {
        self.ask(REAP, pid.as_raw_pid() as u64, 0) as i32
    }
}
