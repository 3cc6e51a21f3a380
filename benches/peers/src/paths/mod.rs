//! The paths under measurement, and how one of them is opened by its name.
//!
//! `harness` opens the near side, `main` the far side of a path that needs a
//! process of its own. A file here knows one library; this one knows none.

mod crossbeam;
mod iceoryx2;
mod rtrb;
mod tightbeam;

use std::fmt::{self, Display, Formatter};
use std::os::fd::RawFd;
use std::process;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use clap::{Args, ValueEnum};

use crate::cpus::pin;
use crate::far::{Far, serve};
use crate::fault::Fault;
use crate::link::Link;
use crate::near::{Near, Runner};
use crate::sizes::{Visitor, with_size};
use crate::words::Words;

/// The paths, in the order of the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Path {
    /// Tightbeam's endpoint, two processes
    Tightbeam,
    /// Tightbeam's endpoint, two processes, batches (one-way rate only)
    TightbeamBatch,
    /// rtrb, two threads, `push` and `pop`
    Rtrb,
    /// rtrb, two threads, `write_chunk_uninit` and `read_chunk` (one-way rate only)
    RtrbChunks,
    /// crossbeam-channel, two threads, `bounded`
    Crossbeam,
    /// iceoryx2, two processes, publish-subscribe each way
    Iceoryx2,
}

/// What a link is opened for. Each library gets other settings for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    PingPong,
    Rate,
}

/// From this size on, filling and draining a ring in batches pays more than
/// keeping it in the nearest cache.
pub(crate) const LARGE: usize = 512;

/// How a library is set up here, for the report.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    /// The package whose version is reported.
    pub(crate) package: &'static str,
    /// "threads" or "processes".
    pub(crate) sides: &'static str,
    /// Messages that fit in one direction while ping-pong is measured.
    pub(crate) pingpong_depth: usize,
    /// Messages that fit while the rate is measured.
    pub(crate) rate_depth: usize,
    /// The same for messages of [`LARGE`] bytes and more.
    pub(crate) rate_depth_large: usize,
    /// The rest, in words.
    pub(crate) how: &'static str,
}

impl Settings {
    pub(crate) fn depth(&self, purpose: Purpose, size: usize) -> usize {
        match purpose {
            Purpose::PingPong => self.pingpong_depth,
            Purpose::Rate if size < LARGE => self.rate_depth,
            Purpose::Rate => self.rate_depth_large,
        }
    }
}

impl Path {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tightbeam => "tightbeam",
            Self::TightbeamBatch => "tightbeam-batch",
            Self::Rtrb => "rtrb",
            Self::RtrbChunks => "rtrb-chunks",
            Self::Crossbeam => "crossbeam",
            Self::Iceoryx2 => "iceoryx2",
        }
    }

    pub(crate) fn settings(self) -> Settings {
        match self {
            Self::Tightbeam => tightbeam::SETTINGS,
            Self::TightbeamBatch => tightbeam::BATCHES,
            Self::Rtrb => rtrb::SINGLE,
            Self::RtrbChunks => rtrb::CHUNKS,
            Self::Crossbeam => crossbeam::SETTINGS,
            Self::Iceoryx2 => iceoryx2::SETTINGS,
        }
    }

    /// Whether the path has an answer to this at all.
    pub(crate) fn does(self, purpose: Purpose) -> bool {
        let rate_only = matches!(self, Self::RtrbChunks | Self::TightbeamBatch);
        !(rate_only && purpose == Purpose::PingPong)
    }
}

impl Display for Path {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

/// A link to be opened.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Order {
    pub(crate) path: Path,
    pub(crate) size: usize,
    /// Messages that fit in one direction.
    pub(crate) depth: usize,
    /// Where the far side runs.
    pub(crate) far_cpu: usize,
}

/// What a far process is told on its command line.
#[derive(Debug, Clone, Args)]
pub(crate) struct FarOrder {
    #[arg(long)]
    path: Path,
    #[arg(long)]
    size: usize,
    #[arg(long)]
    depth: usize,
    #[arg(long)]
    cpu: usize,
    /// The descriptor of the shared words.
    #[arg(long)]
    words: RawFd,
    /// Where to meet, in the path's own terms.
    #[arg(long)]
    meet: String,
}

/// Opens a path with both of its sides and waits until they have met.
pub(crate) fn open(order: Order) -> Result<Box<dyn Runner>, Fault> {
    struct Opening(Order);
    impl Visitor for Opening {
        type Out = Result<Box<dyn Runner>, Fault>;
        fn visit<const N: usize>(self) -> Self::Out {
            match self.0.path {
                Path::Tightbeam => tightbeam::open::<N>(self.0),
                Path::TightbeamBatch => tightbeam::open_batches::<N>(self.0),
                Path::Rtrb => rtrb::open::<N>(self.0),
                Path::RtrbChunks => rtrb::open_chunks::<N>(self.0),
                Path::Crossbeam => crossbeam::open::<N>(self.0),
                Path::Iceoryx2 => iceoryx2::open::<N>(self.0),
            }
        }
    }
    with_size(order.size, Opening(order))?
}

/// Is the far side, in a process of its own, until the near side ends.
pub(crate) fn be_far(order: &FarOrder) -> Result<(), Fault> {
    struct Being<'a>(&'a FarOrder, Words);
    impl Visitor for Being<'_> {
        type Out = Result<(), Fault>;
        fn visit<const N: usize>(self) -> Self::Out {
            let Self(order, words) = self;
            match order.path {
                Path::Iceoryx2 => {
                    let mut link = iceoryx2::far::<N>(&order.meet, order.depth)?;
                    serve(std::io::stdin(), &words, &mut link)
                }
                Path::Tightbeam | Path::TightbeamBatch => {
                    let mut link = tightbeam::far::<N>(&order.meet, order.depth)?;
                    serve(std::io::stdin(), &words, &mut link)
                }
                path => Err(Fault::Refused {
                    doing: "being a far process",
                    why: format!("{} has its far side in a thread", path.name()),
                }),
            }
        }
    }
    pin(order.cpu)?;
    let words = Words::inherited(order.words)?;
    with_size(order.size, Being(order, words))?
}

/// Both sides of a path between two threads.
fn two_threads<L: Link + Send + 'static>(
    order: Order,
    near: L,
    far: L,
) -> Result<Box<dyn Runner>, Fault> {
    let words = Words::create()?;
    let far = Far::thread(order.far_cpu, words.twin()?, far)?;
    Ok(Box::new(Near::meet(near, far, words)?))
}

/// The far process of a path between two processes.
fn far_process(order: Order, words: &Words, meet: &str) -> Result<Far, Fault> {
    let inherited = words.for_a_child()?;
    Far::process(&[
        "far".into(),
        format!("--path={}", order.path.name()),
        format!("--size={}", order.size),
        format!("--depth={}", order.depth),
        format!("--cpu={}", order.far_cpu),
        format!("--words={}", inherited.number()),
        format!("--meet={meet}"),
    ])
}

/// A name that no other link of this or another run has.
fn fresh_name() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let next = NEXT.fetch_add(1, Relaxed);
    format!("tightbeam-peers-{}-{next}", process::id())
}
