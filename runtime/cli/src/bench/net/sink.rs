//! The second process: `tightbeam bench-net-peer`, which takes messages and notes which have come.

use super::flow::{By, Heard, NUMBER, Order, WORDS, Word, next_order};
use super::source::{DEPTH, TAKE, causes};
use crate::bench::fault::BenchError;
use crate::bench::second::{Board, PATIENCE, other};
use std::io::{self, Read};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tightbeam::{Endpoint, Handlers, Message, Reply};
use tightbeam_sys::mmsg::MessageBatch;

/// After the last message was sent: what has not come for so long never will.
const QUIET: Duration = Duration::from_millis(150);
/// Messages of one look.
const BATCH: usize = 64;
/// The longest datagram, and what a stream is read by.
const CHUNK: usize = 64 * 1024;
/// How long an endpoint waits for a message.
const LOOK: Duration = Duration::from_millis(1);

/// What it is started with.
#[derive(Debug, clap::Args)]
pub(crate) struct PeerArgs {
    #[arg(long)]
    parent: i32,
    #[arg(long)]
    directory: PathBuf,
    #[arg(long)]
    cpu: usize,
}

/// The second process.
pub(crate) fn serve(args: &PeerArgs) -> Result<(), BenchError> {
    serve_orders(args).map_err(BenchError::setup("take messages"))
}

fn serve_orders(args: &PeerArgs) -> io::Result<()> {
    crate::bench::peer::die_with_parent(args.parent)?;
    let board = Board::open(&args.directory, WORDS)?;
    tightbeam_sys::cpu::pin(args.cpu)?;
    let mut last = 0;
    loop {
        last = next_order(&board, last)?;
        let path = |what: &str| args.directory.join(format!("{what}-{last}"));
        let order = serde_json::from_slice(&std::fs::read(path("order"))?)?;
        let heard = listen(&board, last, &order)?;
        std::fs::write(path("result"), serde_json::to_vec(&heard)?)?;
        board.set(Word::Done as usize, last);
    }
}

/// One order, from listening to what came of it.
fn listen(board: &Board, number: u64, order: &Order) -> io::Result<Heard> {
    let mut take = open(order)?;
    board.set(Word::Ack as usize, number);
    let (mut heard, mut quiet_since) = (Heard::default(), Instant::now());
    let deadline = Instant::now() + PATIENCE;
    let (mut first, mut last) = (None, Instant::now());
    let sent = loop {
        // Quiet is what a look finds that begins late enough: this process may have slept since the last one.
        let now = Instant::now();
        let sent = board.get(Word::Sent as usize);
        let late = sent > 0 && now - quiet_since > QUIET;
        let came = take.take(&mut heard)?;
        if came {
            let now = Instant::now();
            first.get_or_insert(now);
            (last, quiet_since) = (now, now);
        }
        let over = late && !came || sent > 0 && heard.received >= sent - 1;
        if over || now > deadline {
            break sent.saturating_sub(1);
        }
    };
    if order.by != By::Tcp {
        heard.miss(sent);
    }
    heard.nanoseconds = first.map_or(0, |first| (last - first).as_nanos() as u64);
    heard.causes = take.causes();
    Ok(heard)
}

/// Takes what has come.
trait Take {
    /// Whether anything has.
    fn take(&mut self, heard: &mut Heard) -> io::Result<bool>;

    fn causes(&self) -> Vec<(String, u64)> {
        Vec::new()
    }
}

fn open(order: &Order) -> io::Result<Box<dyn Take>> {
    let here = (order.host, order.port);
    let work = Duration::from_nanos(order.work_ns);
    Ok(match order.by {
        By::Udp | By::UdpMmsg => Box::new(Datagrams {
            socket: UdpSocket::bind(here)?,
            batch: MessageBatch::new(BATCH, order.size.max(NUMBER)),
            work,
        }),
        By::Tcp => {
            let listener = TcpListener::bind(here)?;
            listener.set_nonblocking(true)?;
            Box::new(Stream {
                listener,
                stream: None,
                chunk: vec![0; CHUNK],
                size: order.size.max(NUMBER) as u64,
            })
        }
        By::TightbeamUdp | By::Xdp | By::Shm => {
            let state = Listening {
                heard: Heard::default(),
                work,
            };
            let handlers = Handlers::new().on(
                TAKE,
                |state: &mut Listening, message: Message<'_>, _: Reply<'_>| {
                    state.heard.note(message.bytes());
                    labour(state.work);
                },
            );
            let builder = Endpoint::builder().state(state).handlers(handlers);
            let endpoint = builder.depth(DEPTH).listen(&order.address);
            Box::new(Ours(endpoint.map_err(other)?))
        }
    })
}

/// Does nothing of use for so long.
fn labour(time: Duration) {
    if time.is_zero() {
        return;
    }
    let start = Instant::now();
    while start.elapsed() < time {
        std::hint::spin_loop();
    }
}

struct Datagrams {
    socket: UdpSocket,
    batch: MessageBatch,
    work: Duration,
}

impl Take for Datagrams {
    fn take(&mut self, heard: &mut Heard) -> io::Result<bool> {
        let came = match self.batch.receive(self.socket.as_fd(), false) {
            Ok(came) => came,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        };
        for index in 0..came {
            heard.note(self.batch.incoming(index));
            labour(self.work);
        }
        Ok(came > 0)
    }

    /// What an application can ask its kernel for; none does.
    fn causes(&self) -> Vec<(String, u64)> {
        Vec::new()
    }
}

struct Stream {
    listener: TcpListener,
    stream: Option<TcpStream>,
    chunk: Vec<u8>,
    size: u64,
}

impl Take for Stream {
    fn take(&mut self, heard: &mut Heard) -> io::Result<bool> {
        let Some(stream) = &mut self.stream else {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(true)?;
                    self.stream = Some(stream);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            return Ok(false);
        };
        match stream.read(&mut self.chunk) {
            Ok(count) => {
                heard.bytes += count as u64;
                heard.received = heard.bytes / self.size;
                Ok(count > 0)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// What an endpoint's handler works on.
struct Listening {
    heard: Heard,
    work: Duration,
}

struct Ours(Endpoint<Listening>);

impl Take for Ours {
    fn take(&mut self, heard: &mut Heard) -> io::Result<bool> {
        let before = heard.received;
        self.0.poll_for(BATCH, LOOK);
        while self.0.next_event().is_some() {}
        *heard = self.0.state().heard.clone();
        Ok(heard.received > before)
    }

    fn causes(&self) -> Vec<(String, u64)> {
        causes(&self.0)
    }
}
