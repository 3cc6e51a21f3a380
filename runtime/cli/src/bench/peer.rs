//! The second process: `tightbeam bench-peer`, which only `tightbeam bench` starts.
//!
//! It obeys orders on its standard input between batches, and the command word while they run. It ends when the first process does:
//! by signal while it spins or sleeps in a path, by end of file between batches.

use super::channel::{Answer, Channel, Order};
use super::fault::{BenchError, Broken};
use super::link::{Link, Step};
use super::paths::{self, Calls, Station};
use super::second::busy;
use super::spec::Pause;
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
use std::io;

/// What it is started with.
#[derive(Debug, clap::Args)]
pub(crate) struct PeerArgs {
    /// Process id of the bench.
    #[arg(long)]
    parent: i32,
}

/// Serves until the bench is over.
pub(crate) fn run(args: &PeerArgs) -> Result<(), BenchError> {
    let setup = BenchError::setup::<io::Error>;
    let channel = Channel::from_stdin().map_err(setup(
        "be started by itself: it belongs to `tightbeam bench`",
    ))?;
    die_with_parent(args.parent).map_err(setup("follow the first process"))?;
    let mut peer = match start(&channel) {
        Ok(Some(peer)) => peer,
        Ok(None) => return Ok(()),
        Err(error) => {
            let refused = Answer::Refused(error.to_string());
            return channel
                .send(&refused, &[])
                .map_err(setup("answer the first process"));
        }
    };
    peer.obey(&channel)
        .map_err(setup("talk to the first process"))
}

/// Asks the kernel to kill this process when the thread that started it ends, and makes sure that this has not happened yet.
pub(super) fn die_with_parent(parent: i32) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    match getppid().map(Pid::as_raw_nonzero) {
        Some(found) if found.get() == parent => Ok(()),
        _ => Err(io::Error::other(
            "the bench that started this process is gone",
        )),
    }
}

/// Takes the first order; `None` if the bench ended before it gave one.
fn start(channel: &Channel) -> io::Result<Option<Peer>> {
    let (order, mut fds) = match channel.receive::<Order>(None) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    };
    let (Order::Start { cpu, shared_cpu }, Some(words)) = (order, fds.pop()) else {
        return Err(io::Error::other("the first order is not to start"));
    };
    tightbeam_sys::cpu::pin(cpu)?;
    let link = Link::open(words, Pause::new(shared_cpu))?;
    channel.send(&Answer::Ready, &[])?;
    Ok(Some(Peer {
        link,
        cells: Vec::new(),
    }))
}

struct Peer {
    link: Link,
    /// The halves of the open group, by cell number.
    cells: Vec<Option<Box<dyn Station>>>,
}

impl Peer {
    fn obey(&mut self, channel: &Channel) -> io::Result<()> {
        loop {
            let (order, fds) = match channel.receive::<Order>(None) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                other => other?,
            };
            match order {
                Order::Start { .. } => {
                    channel.send(&Answer::Refused("started already".into()), &[])?
                }
                Order::Open {
                    cell,
                    spec,
                    address,
                } => {
                    let joined = match paths::find(&spec.path) {
                        Some(path) => path.join(&spec, fds, address.as_deref()),
                        None => Err(Broken::Endpoint(format!("no path {}", spec.path))),
                    };
                    match joined {
                        Ok(mut station) => {
                            channel.send(&Answer::Ready, &[])?;
                            station.settle();
                            self.place(cell, station);
                        }
                        Err(broken) => {
                            let refused = Answer::Refused(broken.to_string());
                            channel.send(&refused, &[])?;
                        }
                    }
                }
                Order::Run => {
                    channel.send(&Answer::Ready, &[])?;
                    if let Err((cell, broken)) = self.serve() {
                        let reason = broken.to_string();
                        return channel.send(&Answer::Failed { cell, reason }, &[]);
                    }
                    let calls = self.calls();
                    self.cells.clear();
                    channel.send(&Answer::Over { calls }, &[])?;
                }
            }
        }
    }

    fn place(&mut self, cell: u8, station: Box<dyn Station>) {
        let index = usize::from(cell);
        if self.cells.len() <= index {
            self.cells.resize_with(index + 1, || None);
        }
        self.cells[index] = Some(station);
    }

    /// What the cells say of their system calls.
    fn calls(&self) -> Vec<(u8, Calls)> {
        let cells = (0..).zip(&self.cells);
        let calls = cells.filter_map(|(cell, station)| Some((cell, station.as_ref()?.calls()?)));
        calls.collect()
    }

    /// Obeys the command word until it says Quit. An error names the cell that broke.
    fn serve(&mut self) -> Result<(), (u8, Broken)> {
        loop {
            let (step, count) = self.link.next().map_err(|broken| (0, broken))?;
            match step {
                Step::Floor => self.link.floor_back(count).map_err(|broken| (0, broken))?,
                Step::Serve(cell) => {
                    let station = self
                        .cells
                        .get_mut(usize::from(cell))
                        .and_then(Option::as_mut);
                    let station = station.ok_or((cell, Broken::Closed))?;
                    let before = busy();
                    let came = station.serve(count).map_err(|broken| (cell, broken))?;
                    self.link.done(came, busy() - before);
                }
                Step::Quit => return Ok(()),
            }
        }
    }
}
