//! The second process, as the first one sees it: started, watched, told what to do, and gone in the end in every case.

use super::channel::{Answer, Channel, Order};
use super::fault::{BenchError, Broken};
use super::link::Link;
use super::paths::{self, Calls, Lane};
use super::spec::{Pause, Spec};
use super::watch::{Release, Verdict, Watch};
use crate::cleanup::{self, Child};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long any answer between batches may take.
const ANSWER: Duration = Duration::from_secs(10);
/// How long a process that has broken off may take to end.
const ENDING: Duration = Duration::from_secs(2);

/// A running second process.
pub(crate) struct SecondProcess {
    pub(crate) link: Link,
    pub(crate) watch: Watch,
    channel: Channel,
    child: Child,
    shared_cpu: bool,
}

/// Why a measurement of a group ended early.
pub(crate) enum Interrupted {
    /// This cell cannot go on; the others can, with a new second process.
    Cell(u8, String),
    /// The second process ended by itself.
    Died(String),
}

impl SecondProcess {
    /// Starts one on `cpu`. The calling thread must not be pinned yet, or its watch will be too.
    pub(crate) fn start(cpu: usize, shared_cpu: bool) -> Result<SecondProcess, BenchError> {
        let setup = BenchError::setup::<io::Error>;
        let (channel, far) =
            Channel::pair().map_err(BenchError::setup("make a control connection"))?;
        let child = Command::new("/proc/self/exe")
            .arg0("tightbeam")
            .args(["bench-peer", "--parent", &std::process::id().to_string()])
            .stdin(Stdio::from(far))
            .stdout(Stdio::null())
            // A Ctrl-C is for the first process, which ends this one.
            .process_group(0)
            .spawn()
            .map_err(setup("start the second process"))?;
        let pid = Pid::from_child(&child);
        let child = cleanup::adopt(child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty())
            .map_err(BenchError::setup("watch the second process"))?;
        let watch = Watch::start(pidfd).map_err(setup("watch the second process"))?;
        let pause = Pause::new(shared_cpu);
        let link = Link::create(pause).map_err(setup("make shared words"))?;
        let second = SecondProcess {
            link,
            watch,
            channel,
            child,
            shared_cpu,
        };
        let start = Order::Start { cpu, shared_cpu };
        second
            .ask(&start, &[second.link.fd()])
            .map_err(setup("start the second process"))?;
        Ok(second)
    }

    /// Opens a cell in both processes. An error is the reason to skip it, unless the second process has gone.
    pub(crate) fn open(&self, cell: u8, spec: &Spec) -> Result<(Lane, Release), Broken> {
        let path = paths::find(&spec.path).ok_or(Broken::Closed)?;
        let mut spec = spec.clone();
        spec.shared_cpu = self.shared_cpu;
        let offer = path.offer(&spec)?;
        let address = offer.address.clone();
        let fds: Vec<_> = offer.fds.iter().map(AsFd::as_fd).collect();
        self.ask(
            &Order::Open {
                cell,
                spec,
                address,
            },
            &fds,
        )?;
        offer.finish()
    }

    /// Lets the second process obey the command word.
    pub(crate) fn run(&self, releases: Vec<Release>) -> Result<(), BenchError> {
        self.watch.arm(releases);
        self.ask(&Order::Run, &[])
            .map_err(BenchError::setup("start a measurement"))
    }

    /// After Quit: waits until the second process has closed its cells; what they have counted of their system calls.
    pub(crate) fn end(&self) -> Result<Vec<(u8, Calls)>, BenchError> {
        self.watch.disarm();
        let answer = self.answer();
        answer.map_err(BenchError::setup("end a measurement"))
    }

    fn ask(&self, order: &Order, fds: &[std::os::fd::BorrowedFd<'_>]) -> io::Result<()> {
        self.channel.send(order, fds)?;
        self.expect_ready()
    }

    fn expect_ready(&self) -> io::Result<()> {
        self.answer().map(drop)
    }

    fn answer(&self) -> io::Result<Vec<(u8, Calls)>> {
        match self.channel.receive::<Answer>(Some(ANSWER))? {
            (Answer::Ready, _) => Ok(Vec::new()),
            (Answer::Over { calls }, _) => Ok(calls),
            (Answer::Refused(reason), _) => Err(io::Error::other(reason)),
            (Answer::Failed { reason, .. }, _) => Err(io::Error::other(reason)),
        }
    }

    /// Something broke in cell `running`: finds out what, and ends the second process.
    pub(crate) fn post_mortem(self, running: u8, broken: &Broken) -> Interrupted {
        let deadline = Instant::now() + ENDING;
        // A half that broke in the second process says so before that ends.
        let said = self.channel.receive::<Answer>(Some(ENDING));
        if let Ok((Answer::Failed { cell, reason }, _)) = said {
            return Interrupted::Cell(cell, reason);
        }
        let alone = matches!(said, Err(ref error) if error.kind() == io::ErrorKind::UnexpectedEof);
        match self.watch.verdict() {
            Some(Verdict::Stalled) => {
                let stall = super::watch::STALL.as_secs();
                Interrupted::Cell(running, format!("nothing moved for {stall} s"))
            }
            _ if alone => Interrupted::Died(self.child.wait_until(deadline)),
            _ => Interrupted::Cell(running, broken.to_string()),
        }
    }
}
