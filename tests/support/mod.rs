//! What the process tests share: child processes by re-exec of the test binary, private directories, bounded waits.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tightbeam::{Endpoint, Event};

/// No wait in a test is longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
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

/// A child process of ours, killed and reaped at the latest when dropped.
pub(crate) struct Peer(pub(crate) Child);

impl Peer {
    /// Runs this test binary again, as `role`; [`role`] tells the child what it is.
    pub(crate) fn start(role: &str, place: &str) -> Peer {
        let child = Command::new(std::env::current_exe().expect("the test binary"))
            .args(["child_role", "--exact", "--nocapture", "--test-threads=1"])
            .env(ROLE, role)
            .env(PLACE, place)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("a child process");
        Peer(child)
    }

    pub(crate) fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.0)
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(self.pid(), signal).expect("our own child");
    }

    /// Waits for its end, and whether it was a success.
    pub(crate) fn finish(mut self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.0.try_wait().expect("our own child") {
                return status.success();
            }
            assert!(Instant::now() < deadline, "the child does not end");
            std::thread::sleep(Duration::from_millis(1));
        }
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
    Some((std::env::var(ROLE).ok()?, std::env::var(PLACE).ok()?))
}

/// Connects, waiting for the listener to be there.
pub(crate) fn connect(address: &str) -> Endpoint {
    patiently(|| Endpoint::connect(address).ok())
}

/// Tries until there is a result.
pub(crate) fn patiently<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(done) = attempt() {
            return done;
        }
        assert!(Instant::now() < deadline, "nothing happens");
        std::thread::yield_now();
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

pub(crate) fn path_of(address: &str) -> &Path {
    Path::new(address.strip_prefix("shm:").expect("a shm address"))
}
