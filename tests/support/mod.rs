//! What the process tests share: child processes by re-exec of the test binary, private directories, bounded waits.
#![allow(dead_code, reason = "each test binary uses a part of it")]

pub(crate) mod opening;

use rustix::process::{Signal, WaitId, WaitIdOptions};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tightbeam::{Endpoint, Event};
use tightbeam_sys::memory::SharedWords;

/// No wait in a test is longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// A child that outlives its test runner ends itself after this long.
const LIFETIME: Duration = Duration::from_secs(120);
/// The same in the long runs.
const LONG_LIFETIME: Duration = Duration::from_secs(7200);
/// Names the role of a child process and where it works.
const ROLE: &str = "TIGHTBEAM_TEST_ROLE";
const PLACE: &str = "TIGHTBEAM_TEST_PLACE";

/// A directory of one test's own, removed at its end.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("tb-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a private directory");
        Scratch(path)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn address(&self) -> String {
        format!("shm:{}", self.path("sock").display())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Numbers that a test and its children share beside the library: what a child wrote stays when the child is killed.
pub(crate) struct Ledger(SharedWords);

impl Ledger {
    const WORDS: usize = 16;

    /// The ledger that belongs to an address; whoever asks first makes it.
    pub(crate) fn of(address: &str) -> Ledger {
        let socket = address.strip_prefix("shm:").expect("a shm address");
        let file = std::fs::File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(format!("{socket}.ledger"))
            .expect("a file in a private directory");
        file.set_len(1 << 16).expect("room for the ledger");
        Ledger(SharedWords::open(OwnedFd::from(file), Self::WORDS).expect("a mapping"))
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        self.0.word(index)
    }

    /// Writes a number; it is there even if this process is killed right after.
    pub(crate) fn write(&self, index: usize, value: u64) {
        self.word(index).store(value, Ordering::Release);
    }

    pub(crate) fn read(&self, index: usize) -> u64 {
        self.word(index).load(Ordering::Acquire)
    }

    /// Waits until a number is at least `value`.
    pub(crate) fn wait_for(&self, index: usize, value: u64) {
        patiently(|| (self.read(index) >= value).then_some(()));
    }
}

/// A child process of ours, killed and reaped at the latest when dropped.
pub(crate) struct Peer(pub(crate) Child);

impl Peer {
    /// Runs this test binary again, as `role`; [`role`] tells the child what it is.
    pub(crate) fn start(role: &str, place: &str) -> Peer {
        let child = Command::new(std::env::current_exe().expect("the test binary"))
            .args(["child_role", "--exact", "--nocapture", "--test-threads=1"])
            .env(ROLE, role)
            .env(PLACE, place)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("a child process");
        Peer(child)
    }

    pub(crate) fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.0)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        rustix::process::kill_process(self.pid(), signal).expect("our own child");
    }

    /// Stops it; when this returns it does nothing any more.
    pub(crate) fn stop(&self) {
        self.signal(Signal::STOP);
        let options = WaitIdOptions::STOPPED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let id = WaitId::Pid(self.pid());
        patiently(|| rustix::process::waitid(id.clone(), options).expect("our own child"));
    }

    /// Waits for its end.
    pub(crate) fn status(mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.0.try_wait().expect("our own child") {
                return status;
            }
            assert!(Instant::now() < deadline, "the child does not end");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits for its end, and whether it was a success.
    pub(crate) fn finish(self) -> bool {
        self.status().success()
    }

    /// Waits for its end by a signal, and which it was.
    pub(crate) fn killed_by(self) -> Option<i32> {
        self.status().signal()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// In a child: its role and place. In the test runner: `None`.
pub(crate) fn role() -> Option<(String, String)> {
    let (role, place) = (std::env::var(ROLE).ok()?, std::env::var(PLACE).ok()?);
    // Nobody is left to kill this process if the test runner itself was killed.
    std::thread::spawn(|| {
        std::thread::sleep(match std::env::var_os("TIGHTBEAM_LONG") {
            Some(_) => LONG_LIFETIME,
            None => LIFETIME,
        });
        std::process::exit(1);
    });
    Some((role, place))
}

/// Connects, waiting for the listener to be there.
pub(crate) fn connect(address: &str) -> Endpoint {
    patiently(|| Endpoint::connect(address).ok())
}

/// Lets others run between two looks of many.
///
/// Whoever yields and does nothing else gets no CPU at all as long as somebody else keeps it busy: the scheduler takes each time for a
/// slice that was used up (seen for 20 seconds, Linux 6.18). So after some looks it sleeps for a moment.
pub(crate) struct Looks(u32);

impl Looks {
    const YIELDS: u32 = 100;

    pub(crate) const fn new() -> Looks {
        Looks(0)
    }

    pub(crate) fn another(&mut self) {
        self.0 = self.0.saturating_add(1);
        match self.0 > Self::YIELDS {
            true => std::thread::sleep(Duration::from_micros(50)),
            false => std::thread::yield_now(),
        }
    }
}

/// Tries until there is a result.
pub(crate) fn patiently<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    let (deadline, mut looks) = (Instant::now() + PATIENCE, Looks::new());
    loop {
        if let Some(done) = attempt() {
            return done;
        }
        assert!(Instant::now() < deadline, "nothing happens");
        looks.another();
    }
}

/// Polls until the next event.
pub(crate) fn next_event<S>(endpoint: &mut Endpoint<S>) -> Event {
    patiently(|| {
        endpoint.poll(256);
        endpoint.next_event()
    })
}

/// Polls until a client has come.
pub(crate) fn opened<S>(endpoint: &mut Endpoint<S>) {
    let event = next_event(endpoint);
    assert!(matches!(event, Event::Opened { .. }), "{event:?}");
}

/// An error must name what is wrong and what to do.
pub(crate) fn assert_says(error: &dyn std::error::Error, words: &[&str]) {
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "`{text}` does not say `{word}`");
    }
}
