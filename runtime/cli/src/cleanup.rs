//! What must not be left behind when the command ends, however it ends: the second process, and a private directory.
//!
//! Values clean up when they are dropped. Ctrl-C and SIGTERM end the process without dropping anything, so each value is
//! registered here as well, and the signal's thread cleans up what is registered.

use rustix::process::{Pid, Signal, WaitStatus};
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The exit status of a process that a Ctrl-C ended, by convention.
pub(crate) const INTERRUPTED: i32 = 130;

static CHILDREN: Mutex<Vec<Pid>> = Mutex::new(Vec::new());
static DIRECTORIES: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
static COUNT: AtomicU32 = AtomicU32::new(0);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A list of ids or paths is whole at any time.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets Ctrl-C, SIGTERM and SIGHUP clean up and end the process.
pub(crate) fn on_interrupt(also: impl Fn() + Send + 'static) -> Result<(), ctrlc::Error> {
    ctrlc::set_handler(move || {
        also();
        everything();
        std::process::exit(INTERRUPTED);
    })
}

/// Ends the process with an error, from a thread that cannot return one.
pub(crate) fn abandon(reason: &str) -> ! {
    everything();
    eprintln!("error: {reason}");
    std::process::exit(1)
}

/// Ends and reaps the children, removes the directories.
fn everything() {
    for pid in lock(&CHILDREN).drain(..) {
        end(pid);
    }
    for directory in lock(&DIRECTORIES).drain(..) {
        // Nothing can be done about a directory that cannot be removed, and the process is ending.
        let _ = std::fs::remove_dir_all(directory);
    }
}

/// Kills and reaps.
fn end(pid: Pid) -> Option<WaitStatus> {
    // It may have ended already; it cannot have been reaped, so its id is still its own.
    let _ = rustix::process::kill_process(pid, Signal::KILL);
    reap(pid, rustix::process::WaitOptions::empty())
}

fn reap(pid: Pid, options: rustix::process::WaitOptions) -> Option<WaitStatus> {
    rustix::process::waitpid(Some(pid), options)
        .ok()
        .flatten()
        .map(|(_, status)| status)
}

/// A child process that is killed and reaped when this is dropped, or on a signal.
pub(crate) struct Child(Pid);

/// Takes care of a child.
pub(crate) fn adopt(child: std::process::Child) -> Child {
    let pid = Pid::from_child(&child);
    lock(&CHILDREN).push(pid);
    Child(pid)
}

impl Child {
    /// Waits until it ends, kills it at `deadline`, and says how it ended.
    pub(crate) fn wait_until(self, deadline: Instant) -> String {
        /// Between two looks.
        const STEP: Duration = Duration::from_millis(5);
        // With the lock held the signal's thread cannot reap it at the same time.
        let mut children = lock(&CHILDREN);
        let Some(index) = children.iter().position(|pid| *pid == self.0) else {
            return "it was ended".into();
        };
        let pid = children.remove(index);
        let mut status = None;
        while status.is_none() && Instant::now() < deadline {
            status = reap(pid, rustix::process::WaitOptions::NOHANG);
            if status.is_none() {
                std::thread::sleep(STEP);
            }
        }
        describe(status.or_else(|| end(pid)))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let mut children = lock(&CHILDREN);
        if let Some(index) = children.iter().position(|pid| *pid == self.0) {
            end(children.remove(index));
        }
    }
}

fn describe(status: Option<WaitStatus>) -> String {
    let Some(status) = status else {
        return "how is unknown".into();
    };
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (_, Some(signal)) => match Signal::from_named_raw(signal) {
            Some(name) => format!("{name:?}")
                .replace("Signal::", "")
                .to_lowercase()
                .replace("sig", "SIG"),
            None => format!("signal {signal}"),
        },
        _ => "how is unknown".into(),
    }
}

/// A private directory that is removed with what is in it when this is dropped, or on a signal.
pub(crate) struct PrivateDir(PathBuf);

impl PrivateDir {
    /// Makes one that only this user can enter.
    pub(crate) fn create() -> io::Result<PrivateDir> {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let [random, _] = tightbeam_sys::memory::random_words()?;
        let name = format!("tightbeam-{}-{count}-{random:016x}", std::process::id());
        let path = std::env::temp_dir().join(name);
        lock(&DIRECTORIES).push(path.clone());
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(PrivateDir(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for PrivateDir {
    fn drop(&mut self) {
        // It may be gone on a signal already.
        let _ = std::fs::remove_dir_all(&self.0);
        lock(&DIRECTORIES).retain(|path| *path != self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_directory_is_private_and_goes() {
        use std::os::unix::fs::PermissionsExt;
        let directory = PrivateDir::create().unwrap();
        let path = directory.path().to_owned();
        std::fs::write(path.join("x"), "x").unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        drop(directory);
        assert!(!path.exists());
    }

    #[test]
    fn a_child_is_killed_and_reaped_and_its_end_described() {
        let sleep = || {
            adopt(
                std::process::Command::new("sleep")
                    .arg("60")
                    .spawn()
                    .unwrap(),
            )
        };
        let child = sleep();
        let pid = child.0;
        drop(child);
        assert!(rustix::process::test_kill_process(pid).is_err());
        assert!(
            sleep()
                .wait_until(Instant::now())
                .to_lowercase()
                .contains("kill")
        );
        let quick = adopt(std::process::Command::new("false").spawn().unwrap());
        assert_eq!(
            quick.wait_until(Instant::now() + Duration::from_secs(10)),
            "exit code 1"
        );
    }
}
