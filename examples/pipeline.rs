//! A path of processes, on which frames go on without being copied: `cargo run --example pipeline [PROCESSES]`, 2 to 5.
//!
//! The first process fills frames and lends each to all others. They look at a frame one after the other, each when the one before
//! it says that it has: only that word travels between them. The last one tells the first.

use std::process::Command;
use std::time::{Duration, Instant};
use tightbeam::{ChannelId, Endpoint, Handlers, Message, Received, Reply, Stage};

/// A frame of the first process, which begins with its ticket.
const FRAME: u16 = 1;
/// "I am stage n."
const JOIN: u16 = 2;
/// "It is your turn with this ticket"; what was found so far comes along.
const TURN: u16 = 3;

const SIZE: usize = 1 << 20;
const FRAMES: u64 = 200;
type Failure = Box<dyn std::error::Error>;

fn address(place: &str, stage: usize) -> String {
    format!("shm:{place}-{stage}.sock")
}

fn word(bytes: &[u8], number: usize) -> Option<u64> {
    bytes
        .as_chunks()
        .0
        .get(number)
        .copied()
        .map(u64::from_ne_bytes)
}

#[derive(Default)]
struct Source {
    /// Channels of the stages that have joined.
    stages: Vec<Option<ChannelId>>,
    done: u64,
    sum: u64,
}

fn lead(processes: usize) -> Result<(), Failure> {
    let directory = std::env::temp_dir();
    let place = format!("{}/pipeline-{}", directory.display(), std::process::id());
    let handlers = Handlers::new()
        .on(
            JOIN,
            |source: &mut Source, message: Message<'_>, reply: Reply<'_>| {
                let number = word(message.bytes(), 0).unwrap_or(0) as usize;
                if let Some(stage) = source.stages.get_mut(number) {
                    *stage = Some(reply.channel());
                }
            },
        )
        .on(TURN, |source: &mut Source, message: Message<'_>, _| {
            source.done += 1;
            source.sum += word(message.bytes(), 1).unwrap_or(0);
        });
    let mut source = Endpoint::listen(&address(&place, 0), handlers)?;
    source.state_mut().stages = vec![None; processes - 1];
    let mut children = Vec::new();
    for stage in 1..processes {
        let mut command = Command::new(std::env::current_exe()?);
        command.args([&place, &stage.to_string(), &processes.to_string()]);
        children.push(command.spawn()?);
    }
    while source.state().stages.iter().any(Option::is_none) {
        source.poll_for(64, Duration::from_millis(10));
    }
    let path: Vec<ChannelId> = source.state().stages.iter().copied().flatten().collect();
    let start = Instant::now();
    for ticket in 0..FRAMES {
        let mut frame = source.shared_frame(SIZE)?;
        frame.fill(ticket as u8);
        frame.push(&ticket.to_ne_bytes())?;
        let frame = frame.freeze();
        while source.try_send_along(&path, FRAME, &frame).is_err() {
            source.poll_for(64, Duration::from_millis(10));
        }
        // Some frames are under way at a time, so that all stages have something to do.
        while source.state().done + 8 < ticket {
            source.poll_for(64, Duration::from_millis(10));
        }
    }
    while source.state().done < FRAMES {
        source.poll_for(64, Duration::from_millis(10));
    }
    let each = start.elapsed() / FRAMES as u32;
    println!("{FRAMES} frames of 1 MiB through {processes} processes, {each:?} each");
    let audit = source.shared_frames();
    println!(
        "the first one's memory: {} KiB, {} frames",
        audit.bytes >> 10,
        audit.frames
    );
    let looks = processes as u64 - 1;
    assert_eq!(
        source.state().sum,
        looks * (0..FRAMES).map(|n| u64::from(n as u8)).sum::<u64>()
    );
    drop(source);
    for mut child in children {
        assert!(child.wait()?.success());
    }
    Ok(())
}

struct Worker {
    first: bool,
    stage: Stage<u64>,
    /// Frames whose turn it is: the ticket, what the stages before have found, the frame.
    due: Vec<(u64, u64, Received)>,
}

fn take_frame(worker: &mut Worker, message: Message<'_>, _: Reply<'_>) {
    let Some(frame) = message.frames() else {
        return;
    };
    let mut ticket = [0; 8];
    frame.copy_to(0, &mut ticket);
    let ticket = u64::from_ne_bytes(ticket);
    let ready = match (worker.stage.arrived(ticket, frame), worker.first) {
        // It is always the first stage's turn.
        (None, true) => worker.stage.called(ticket, 0),
        (ready, _) => ready,
    };
    worker
        .due
        .extend(ready.map(|(frame, sum)| (ticket, sum, frame)));
}

fn take_turn(worker: &mut Worker, message: Message<'_>, _: Reply<'_>) {
    let bytes = message.bytes();
    if let (Some(ticket), Some(sum)) = (word(bytes, 0), word(bytes, 1)) {
        let ready = worker.stage.called(ticket, sum);
        worker
            .due
            .extend(ready.map(|(frame, sum)| (ticket, sum, frame)));
    }
}

fn follow(place: &str, number: usize, processes: usize) -> Result<(), Failure> {
    let patience = Duration::from_secs(5);
    let worker = Worker {
        first: number == 1,
        stage: Stage::new(64),
        due: Vec::new(),
    };
    let handlers = Handlers::new().on(FRAME, take_frame).on(TURN, take_turn);
    let builder = Endpoint::builder().state(worker).handlers(handlers);
    let mut endpoint = builder.connect(&address(place, 0))?;
    let owner = endpoint.channels().next().ok_or("no channel")?;
    endpoint.accept_at(&address(place, number))?;
    // The next stage listens soon; behind the last one comes the first process.
    let next = loop {
        match number + 1 < processes {
            false => break owner,
            true => match endpoint.open(&address(place, number + 1)) {
                Ok(channel) => break channel,
                Err(_) => drop(endpoint.poll_for(64, Duration::from_millis(1))),
            },
        }
    };
    endpoint.send_to(owner, JOIN, &(number as u64 - 1).to_ne_bytes(), patience)?;
    while endpoint.channels().any(|channel| channel == owner) {
        endpoint.poll_for(64, Duration::from_millis(100));
        for (ticket, sum, frame) in std::mem::take(&mut endpoint.state_mut().due) {
            let mut byte = [0];
            frame.copy_to(8 + SIZE / 2, &mut byte);
            drop(frame);
            let said = [ticket, sum + u64::from(byte[0])].map(u64::to_ne_bytes);
            endpoint.send_to(next, TURN, said.as_flattened(), patience)?;
        }
    }
    Ok(())
}

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.as_slice() {
        [place, number, processes] => follow(place, number.parse()?, processes.parse()?),
        [] => lead(3),
        [processes] => match processes.parse() {
            Ok(processes @ 2..=5) => lead(processes),
            _ => Err("how many processes? 2 to 5".into()),
        },
        _ => Err("cargo run --example pipeline [PROCESSES]".into()),
    }
}
