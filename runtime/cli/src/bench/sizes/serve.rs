//! The second process of `bench sizes`, and what both processes do alike.

use super::super::second::{Board, PATIENCE, address, descriptor_of, other};
use super::super::{fault::BenchError, peer};
use super::LARGEST_WORK;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Instant;
use tightbeam::{Endpoint, Handlers, Message, Reply, Response, Wait};
use tightbeam_sys::turns::{self, Turns};

pub(super) const ECHO: u16 = 1;
/// Answers with the length alone.
pub(super) const UNTOUCHED: u16 = 2;
/// Reads every byte, and answers with as many of its own.
pub(super) const WORK: u16 = 3;
pub(super) const COUNT: u16 = 4;

/// Written at a time to a socket whose other side writes as well.
const SOCKET: usize = 64 << 10;

/// What the second process is started with.
#[derive(Debug, clap::Args)]
pub(crate) struct PeerArgs {
    #[arg(long)]
    parent: i32,
    #[arg(long)]
    directory: PathBuf,
    #[arg(long)]
    cpu: usize,
    /// Descriptor of the first process' plain memory.
    #[arg(long)]
    block: u64,
}

/// Shared words: the first process has the first one.
#[derive(Debug, Clone, Copy)]
pub(super) enum Word {
    Mode,
    Ack,
    Done,
    Handled,
    Block,
    Pid,
}

pub(super) const WORDS: usize = 6;
pub(super) const MODE: usize = Word::Mode as usize;

/// What the second process does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Serve = 1,
    Unix = 2,
    Plain = 3,
    Quit = 4,
}

/// A mode with what it needs to know: 4 bits of mode, 28 of bytes, 12 of the count; the number makes each differ from the last.
pub(super) fn turn(mode: Mode, bytes: usize, count: u32, number: u64) -> u64 {
    mode as u64 | (bytes as u64) << 4 | u64::from(count) << 32 | number << 44
}

const _: () = assert!(LARGEST_WORK < 1 << 28);

/// Writes `first`, `first + 1` and so on.
pub(super) fn write_run(to: &mut [u8], first: u64) {
    for (number, word) in to.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        *word = first.wrapping_add(number as u64).to_ne_bytes();
    }
}

/// What `words` words of such a run are together.
pub(super) fn sum(words: usize, first: u64) -> u64 {
    let words = words as u64;
    let run = (words * words.saturating_sub(1)) / 2;
    words.wrapping_mul(first).wrapping_add(run)
}

/// The same, of what has come, in whole lines.
pub(super) fn sum_of(received: &Response<'_>) -> u64 {
    // A sum for each word of a line, so that they are added as vectors: as those of plain memory are.
    let mut sums = [0u64; 8];
    received.for_each_line(|line| {
        for (sum, word) in sums.iter_mut().zip(line) {
            *sum = sum.wrapping_add(word);
        }
    });
    sums.into_iter().fold(0, u64::wrapping_add)
}

/// Waits for the other side's turn.
pub(super) fn hear(turns: &mut Turns, words: usize) -> io::Result<u64> {
    let mut looks = 0u64;
    let mut deadline = None;
    loop {
        if let Some(sum) = turns.hear(words) {
            return Ok(sum);
        }
        looks += 1;
        if looks.is_multiple_of(1 << 20) {
            let now = Instant::now();
            if now > *deadline.get_or_insert(now + PATIENCE) {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        std::hint::spin_loop();
    }
}

/// Sends all and receives as much: a piece at a time, because neither side's buffer holds the whole.
pub(super) fn write_while_reading(
    stream: &mut UnixStream,
    said: &[u8],
    heard: &mut [u8],
) -> io::Result<()> {
    for (said, heard) in said.chunks(SOCKET).zip(heard.chunks_mut(SOCKET)) {
        stream.write_all(said)?;
        stream.read_exact(heard)?;
    }
    Ok(())
}

/// The second process.
pub(crate) fn serve(args: &PeerArgs) -> Result<(), BenchError> {
    serve_until_quit(args).map_err(BenchError::setup("answer messages of all sizes"))
}

fn handlers() -> Handlers<u64> {
    Handlers::new()
        .on(ECHO, |_, message: Message<'_>, reply: Reply<'_>| {
            reply.send(message.bytes());
        })
        .on(UNTOUCHED, |_, message: Message<'_>, reply: Reply<'_>| {
            reply.send(&message.len().to_ne_bytes());
        })
        .on(WORK, |_, message: Message<'_>, reply: Reply<'_>| {
            let Some(received) = message.frames() else {
                return;
            };
            let received = Response::Frames(received);
            let bytes = received.len();
            // Of a right run the sum tells its first word.
            let words = (bytes / 8) as u64;
            let first = sum_of(&received).wrapping_sub(sum(bytes / 8, 0)) / words.max(1);
            drop(received);
            if let Ok(mut frame) = reply.frame(bytes) {
                write_run(&mut frame, first + 1);
                reply.send_frame(frame);
            }
        })
        .on(COUNT, |count: &mut u64, message: Message<'_>, _| {
            // Copied out, as by any handler that looks at it.
            *count += u64::from(!message.bytes().is_empty());
        })
}

fn serve_until_quit(args: &PeerArgs) -> io::Result<()> {
    peer::die_with_parent(args.parent)?;
    let board = Board::open(&args.directory, WORDS)?;
    let builder = Endpoint::builder().state(0u64).handlers(handlers());
    let builder = builder.wait(Wait::Spin).deadline(PATIENCE);
    let mut server = builder
        .listen(&address(&args.directory, "channel"))
        .map_err(other)?;
    let listener = UnixListener::bind(args.directory.join("unix"))?;
    let own = turns::block(LARGEST_WORK / 8)?;
    let of_first = descriptor_of(args.parent.unsigned_abs().into(), args.block)?;
    board.set(
        Word::Block as usize,
        own.fd().as_raw_fd().unsigned_abs().into(),
    );
    board.set(Word::Pid as usize, std::process::id().into());
    let mut turns = Turns::new(own, of_first, LARGEST_WORK / 8)?;
    board.set(Word::Done as usize, 1);
    let (mut stream, _) = listener.accept()?;
    tightbeam_sys::cpu::pin(args.cpu)?;
    let mut bytes = vec![0; SOCKET];
    let mut last = 0;
    loop {
        let now = board.get(MODE);
        if now != last {
            last = now;
            board.set(Word::Ack as usize, now);
            let (size, count) = ((now >> 4 & 0xfff_ffff) as usize, now >> 32 & 0xfff);
            match now & 15 {
                mode if mode == Mode::Unix as u64 => {
                    for _ in 0..count {
                        let mut left = size;
                        while left > 0 {
                            let piece = &mut bytes[..left.min(SOCKET)];
                            left -= piece.len();
                            stream.read_exact(piece)?;
                            stream.write_all(piece)?;
                        }
                    }
                }
                mode if mode == Mode::Plain as u64 => {
                    for _ in 0..count {
                        let words = size / 8;
                        let heard = hear(&mut turns, words)?;
                        let first = heard.wrapping_sub(sum(words, 0)) / words.max(1) as u64;
                        turns.say(words, first + 1);
                    }
                }
                mode if mode == Mode::Quit as u64 => return Ok(()),
                _ => {}
            }
        }
        if server.poll(64) > 0 {
            board.set(Word::Handled as usize, *server.state());
        }
        while server.next_event().is_some() {}
    }
}
