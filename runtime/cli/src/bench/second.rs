//! The second process of a bench that has its own way of measuring, and the words through which the two say how far they are.

use crate::cleanup::{self, Child};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tightbeam_sys::block::SharedBlock;

/// How long anything but a measurement may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// Two lines a word, because adjacent ones are fetched in pairs.
const STRIDE: usize = 16;

/// Words in shared memory, each with one writer and on lines of its own.
pub(super) struct Board(SharedBlock);

impl Board {
    /// Maps the words of this directory, and makes them if they are not there.
    pub(super) fn open(directory: &Path, words: usize) -> io::Result<Board> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(directory.join("words"))?;
        file.set_len((words * STRIDE * 8).next_multiple_of(4096) as u64)?;
        let block = SharedBlock::open(OwnedFd::from(file), words * STRIDE)?;
        Ok(Board(block))
    }

    pub(super) fn word(&self, word: usize) -> &AtomicU64 {
        &self.0.words()[word * STRIDE]
    }

    pub(super) fn get(&self, word: usize) -> u64 {
        // Acquire: pairs with the Release in `set`.
        self.word(word).load(Ordering::Acquire)
    }

    pub(super) fn set(&self, word: usize, value: u64) {
        // Release: pairs with the Acquire in `get`.
        self.word(word).store(value, Ordering::Release);
    }

    /// Waits until the word has this value.
    pub(super) fn wait_for(&self, word: usize, value: u64) -> io::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.get(word) != value {
            if Instant::now() > deadline {
                return Err(other("the second process does not answer"));
            }
            std::thread::yield_now();
        }
        Ok(())
    }
}

/// Starts the command again as this hidden subcommand; it ends with this process at the latest.
pub(super) fn start(
    subcommand: &str,
    directory: &Path,
    more: &[(&str, String)],
) -> io::Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("tightbeam").arg(subcommand);
    command.args(["--parent", &std::process::id().to_string()]);
    command.arg("--directory").arg(directory);
    for (name, value) in more {
        command.args([*name, value]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null());
    Ok(cleanup::adopt(command.process_group(0).spawn()?))
}

/// Nanoseconds for which CPUs have worked for this process, in it or for it in the kernel.
pub(super) fn busy() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

/// A descriptor of another process of ours.
pub(super) fn descriptor_of(pid: u64, number: u64) -> io::Result<OwnedFd> {
    let path = format!("/proc/{pid}/fd/{number}");
    let file = File::options().read(true).write(true).open(path)?;
    Ok(file.into())
}

/// Where the second process listens.
pub(super) fn address(directory: &Path, name: &str) -> String {
    format!("shm:{}", directory.join(name).display())
}

/// As an error of the system's kind.
pub(super) fn other(error: impl std::fmt::Display) -> io::Error {
    io::Error::other(error.to_string())
}
