//! `tightbeam bench handoff`: what a message costs at each of the 1 to 5 processes that it goes through (the comparison of fbufs:
//! Druschel and Peterson, 1993).
//!
//! ```text
//!   copied      each process copies it into memory that the next one can read
//!   mapped      the same memory is mapped, and unmapped, by each process at each message; also with all its pages at once
//!   secured     moved, and the first process makes its own mapping read-only before that
//!   moved       the memory is mapped once: frames along a path
//! ```
//!
//! Six processes cannot all spin on two CPUs. So they share one, who has nothing to do sleeps, many messages go together, and the
//! figure is the CPU time of all processes, by messages and stages; the time that went by stands beside it. What sleeping and waking
//! costs is in it, by as many messages as are found at a time. Nobody looks at more than a message's first word. In each round all
//! ways take turns: ratios are of batches beside each other.

mod stage;

use super::fault::BenchError;
use super::machine::Machine;
use super::plan::parse_seconds;
use super::report::{SCHEMA, round};
use super::second::{self, PATIENCE, address, busy, other};
use super::stats::{Spread, median};
use super::{print, table};
use crate::cleanup::{self, PrivateDir};
use serde::Serialize;
use stage::{FRAME, JOIN, ORDER, Order, TURN};
pub(crate) use stage::{PeerArgs, serve};
use std::collections::HashMap;
use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};
use tightbeam::{ChannelId, Endpoint, Frame, Handlers, Message, Reply, SendError, Wait};
use tightbeam_sys::block::SharedBlock;
use tightbeam_sys::clock::TickClock;

const STAGES: usize = 5;
const SIZES: [usize; 3] = [4 << 10, 64 << 10, 1 << 20];
const LARGEST: usize = 1 << 20;
/// Messages that go together: the next ones when all of them have come through.
const WINDOW: u64 = 64;
/// About how long a batch shall take, and how many messages it has.
const BATCH: Duration = Duration::from_millis(4);
const LEAST: u64 = WINDOW;
const MOST: u64 = 64 * WINDOW;

/// Options of `tightbeam bench handoff`.
#[derive(Debug, clap::Args)]
pub(crate) struct HandoffArgs {
    /// CPU of all processes, by default the last one that is allowed
    #[arg(long)]
    cpu: Option<usize>,
    /// Time for the measurements in seconds
    #[arg(long, default_value_t = 20.0, value_parser = parse_seconds, allow_negative_numbers = true)]
    seconds: f64,
    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,
}

/// How a message is handed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
enum Way {
    Copied,
    Mapped,
    Populated,
    Secured,
    Moved,
}

impl Way {
    const ALL: [Way; 5] = [
        Way::Copied,
        Way::Mapped,
        Way::Populated,
        Way::Secured,
        Way::Moved,
    ];

    /// Whether each stage has a frame from the first process.
    fn framed(self) -> bool {
        matches!(self, Way::Secured | Way::Moved)
    }
}

/// One batch, by messages and stages, in nanoseconds.
#[derive(Debug, Clone, Copy)]
struct Batch {
    busy: f64,
    elapsed: f64,
}

/// All batches of one way, size, and number of stages.
type Batches = HashMap<(Way, usize, usize), Vec<Batch>>;

#[derive(Debug, Serialize)]
struct Figure {
    way: Way,
    /// CPU time of all processes, by messages and stages.
    busy_ns: Spread,
    elapsed_ns: f64,
    /// CPU time by that of a frame that is moved.
    by_moved: Spread,
    /// CPU time by that of the smallest size.
    by_smallest: Spread,
}

#[derive(Debug, Serialize)]
struct Row {
    bytes: usize,
    stages: usize,
    ways: Vec<Figure>,
}

#[derive(Debug, Serialize)]
struct Report {
    schema: u32,
    machine: Machine,
    handoff: Vec<Row>,
}

/// Measures and prints.
pub(crate) fn run(args: &HandoffArgs) -> Result<(), Box<dyn std::error::Error>> {
    let allowed = tightbeam_sys::cpu::allowed()
        .map_err(BenchError::setup("ask for the CPUs of this process"))?;
    let cpu = match args.cpu {
        Some(cpu) => cpu,
        None => allowed.last().copied().unwrap_or(0),
    };
    cleanup::on_interrupt(|| {})?;
    let rows = measure(args, cpu).map_err(BenchError::setup("measure hand-off"))?;
    let machine = Machine::read([cpu, cpu]);
    let text = match args.json {
        true => {
            let report = Report {
                schema: SCHEMA,
                machine,
                handoff: rows,
            };
            serde_json::to_string_pretty(&report).map_err(other)? + "\n"
        }
        false => render(&rows, &machine),
    };
    print(&text).map_err(|error| BenchError::Output(error).into())
}

#[derive(Default)]
struct Desk {
    stages: [Option<ChannelId>; STAGES],
    /// Messages that have come through.
    done: u64,
}

fn handlers() -> Handlers<Desk> {
    Handlers::new()
        .on(
            JOIN,
            |desk: &mut Desk, message: Message<'_>, reply: Reply<'_>| {
                let number = message.bytes().first().map(|number| usize::from(*number));
                let place = number.and_then(|number| desk.stages.get_mut(number.checked_sub(1)?));
                if let Some(place) = place {
                    *place = Some(reply.channel());
                }
            },
        )
        .on(TURN, |desk: &mut Desk, message: Message<'_>, _| {
            desk.done += stage::tickets(&message);
        })
}

struct Bench {
    clock: TickClock,
    source: Endpoint<Desk>,
    path: Vec<ChannelId>,
    /// What is copied.
    said: Vec<u8>,
    sent: u64,
}

fn measure(args: &HandoffArgs, cpu: usize) -> io::Result<Vec<Row>> {
    let directory = PrivateDir::create()?;
    let block = SharedBlock::create(LARGEST / 8)?;
    let builder = Endpoint::builder()
        .state(Desk::default())
        .handlers(handlers());
    let builder = builder.wait(Wait::Park).deadline(PATIENCE);
    let source = builder
        .listen(&address(directory.path(), "stage-0"))
        .map_err(other)?;
    let start = |number: usize| {
        let more = [
            ("--cpu", cpu.to_string()),
            ("--number", number.to_string()),
            ("--stages", STAGES.to_string()),
            ("--block", block.fd().as_raw_fd().to_string()),
        ];
        second::start("bench-handoff-peer", directory.path(), &more)
    };
    let children: io::Result<Vec<_>> = (1..=STAGES).map(start).collect();
    let mut bench = Bench {
        clock: TickClock::calibrate(),
        source,
        path: Vec::new(),
        said: vec![0x5a; LARGEST],
        sent: 0,
    };
    bench.joined()?;
    stage::share(cpu)?;
    let batches = bench.rounds(Duration::from_secs_f64(args.seconds))?;
    // Its channels end, and with them the stages.
    drop(bench);
    for child in children? {
        child.wait_until(Instant::now() + PATIENCE);
    }
    rows(&batches)
}

impl Bench {
    /// Waits until all of what `still` says is over has come.
    fn wait_while(&mut self, still: impl Fn(&Desk) -> bool) -> io::Result<()> {
        let end = Instant::now() + PATIENCE;
        while still(self.source.state()) {
            let handled = self.source.poll_for(64, Duration::from_secs(1));
            while self.source.next_event().is_some() {}
            if handled == 0 && Instant::now() > end {
                return Err(other("a stage has ended, or does nothing"));
            }
        }
        Ok(())
    }

    fn joined(&mut self) -> io::Result<()> {
        self.wait_while(|desk| desk.stages.iter().any(Option::is_none))?;
        self.path = self.source.state().stages.into_iter().flatten().collect();
        Ok(())
    }

    /// Measures everything once a round, until the time is over.
    fn rounds(&mut self, time: Duration) -> io::Result<Batches> {
        let mut found = Batches::new();
        // Each batch is as long as the last one of its kind has found.
        let mut counts = HashMap::new();
        let end = Instant::now() + time;
        // The first round makes memory.
        let mut warm = false;
        while Instant::now() < end || found.is_empty() {
            for stages in 1..=STAGES {
                for bytes in SIZES {
                    for way in Way::ALL {
                        let order = Order { way, bytes, stages };
                        let key = (way, bytes, stages);
                        let count = counts.entry(key).or_insert(LEAST);
                        let batch = self.batch(order, *count)?;
                        let each = batch.elapsed * stages as f64;
                        *count = ((BATCH.as_nanos() as f64 / each) as u64).clamp(LEAST, MOST);
                        if warm {
                            found.entry(key).or_default().push(batch);
                        }
                    }
                }
            }
            warm = true;
        }
        Ok(found)
    }

    fn batch(&mut self, order: Order, count: u64) -> io::Result<Batch> {
        self.tell(order)?;
        self.warm(order)?;
        let of_stages = self.tell(order)?;
        let (own, start) = (busy(), self.clock.now());
        self.send(order, count)?;
        let elapsed = self.clock.ns(self.clock.now().wrapping_sub(start));
        let own = busy() - own;
        let of_stages = self.tell(order)? - of_stages;
        let steps = (count * order.stages as u64) as f64;
        Ok(Batch {
            busy: (own + of_stages) as f64 / steps,
            elapsed: elapsed / steps,
        })
    }

    /// What the batch before has left, in caches and of memory that may not be written, is not the next one's.
    fn warm(&mut self, order: Order) -> io::Result<()> {
        if order.way == Way::Moved {
            // All of them at a time: so those that were secured are writable again.
            let frames = (0..WINDOW).map(|_| self.shared(order.bytes));
            for mut frame in frames.collect::<io::Result<Vec<Frame>>>()? {
                frame[0] = 0;
            }
        }
        self.send(order, WINDOW)
    }

    /// Sends so many messages, and waits until all have come through.
    fn send(&mut self, order: Order, count: u64) -> io::Result<()> {
        let end = self.sent + count;
        while self.sent < end {
            let few = (end - self.sent).min(WINDOW);
            for _ in 0..few {
                self.hand_over(order)?;
                self.sent += 1;
            }
            let sent = self.sent;
            self.wait_while(|desk| desk.done < sent)?;
        }
        Ok(())
    }

    /// Tells the stages of a batch what to do. The CPU time of all of them so far.
    fn tell(&mut self, order: Order) -> io::Result<u64> {
        let mut busy = 0;
        for place in 0..order.stages {
            let said = order.to_bytes();
            let heard = self
                .source
                .call_to(self.path[place], ORDER, &said, PATIENCE);
            let heard = heard.map_err(other)?.try_into().map_err(other)?;
            busy += u64::from_ne_bytes(heard);
        }
        Ok(busy)
    }

    fn hand_over(&mut self, order: Order) -> io::Result<()> {
        let ticket = self.sent.to_ne_bytes();
        let first = self.path[0];
        match order.way {
            Way::Copied => {
                let frame = self.source.frame_for(first, order.bytes, PATIENCE);
                let mut frame = frame.map_err(other)?;
                frame.copy_from_slice(&self.said[..order.bytes]);
                frame[..8].copy_from_slice(&ticket);
                let sent = self.source.send_frame_to(first, FRAME, frame, PATIENCE);
                sent.map_err(|unsent| other(unsent.error))
            }
            Way::Mapped | Way::Populated => {
                let sent = self.source.send_to(first, TURN, &ticket, PATIENCE);
                sent.map_err(other)
            }
            Way::Secured | Way::Moved => self.lend(order, ticket),
        }
    }

    /// Lends a frame to all stages.
    fn lend(&mut self, order: Order, ticket: [u8; 8]) -> io::Result<()> {
        let mut frame = self.shared(order.bytes)?;
        frame[..8].copy_from_slice(&ticket);
        let mut frame = frame.freeze();
        if order.way == Way::Secured {
            frame = frame.secure().map_err(|(error, _)| other(error))?;
        }
        let path = &self.path[..order.stages];
        // There is room: not more are under way than the ring holds.
        let sent = self.source.try_send_along(path, FRAME, &frame);
        sent.map_err(other)
    }

    fn shared(&mut self, bytes: usize) -> io::Result<Frame> {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.source.shared_frame(bytes) {
                Ok(frame) => return Ok(frame),
                Err(SendError::Full) if Instant::now() < end => drop(self.source.poll(64)),
                Err(error) => return Err(other(error)),
            }
        }
    }
}

fn rows(batches: &Batches) -> io::Result<Vec<Row>> {
    let of = |way, bytes, stages| {
        let found = batches.get(&(way, bytes, stages));
        found.ok_or_else(|| other("too little time for a measurement"))
    };
    let spread = |values: Vec<f64>| {
        let spread = Spread::of(values).map(|spread| spread.map(round));
        spread.ok_or_else(|| other("too little time for a measurement"))
    };
    let ratios = |above: &[Batch], below: &[Batch]| {
        let pairs = above.iter().zip(below);
        spread(
            pairs
                .map(|(above, below)| above.busy / below.busy)
                .collect(),
        )
    };
    let mut rows = Vec::new();
    for bytes in SIZES {
        for stages in 1..=STAGES {
            let figure = |way| -> io::Result<Figure> {
                let found = of(way, bytes, stages)?;
                Ok(Figure {
                    way,
                    busy_ns: spread(found.iter().map(|batch| batch.busy).collect())?,
                    elapsed_ns: round(median(found.iter().map(|b| b.elapsed)).unwrap_or(0.0)),
                    by_moved: ratios(found, of(Way::Moved, bytes, stages)?)?,
                    by_smallest: ratios(found, of(way, SIZES[0], stages)?)?,
                })
            };
            let ways: io::Result<Vec<Figure>> = Way::ALL.into_iter().map(figure).collect();
            rows.push(Row {
                bytes,
                stages,
                ways: ways?,
            });
        }
    }
    Ok(rows)
}

fn render(rows: &[Row], machine: &Machine) -> String {
    let heads = [
        "size, processes behind the first",
        "copied",
        "mapped",
        "with its pages",
        "secured",
        "moved",
    ];
    let whole = |value: f64| table::grouped(value.round() as u64);
    let name = |row: &Row| format!("{} KiB, {}", row.bytes >> 10, row.stages);
    let make = |heads: &[&str], cell: &dyn Fn(&Figure) -> String| {
        let mut table = table::new_table(heads, 1);
        for row in rows {
            let cells = row.ways.iter().map(cell);
            table.add_row(std::iter::once(name(row)).chain(cells));
        }
        table
    };
    let busy = make(&heads, &|figure| whole(figure.busy_ns.median));
    let elapsed = make(&heads, &|figure| whole(figure.elapsed_ns));
    let by_moved = make(&heads, &|figure| table::spread(&figure.by_moved));
    let by_smallest = make(&heads, &|figure| table::spread(&figure.by_smallest));
    format!(
        "CPU time of all processes by messages and stages, ns; all on one CPU, {WINDOW} messages together, who has none sleeps\n{busy}\n\n\
         The same by a frame that is moved [p10-p90]\n{by_moved}\n\n\
         The same by its smallest size\n{by_smallest}\n\n\
         Time that went by, ns a message and stage\n{elapsed}\n\n{}",
        table::facts(machine)
    )
}
