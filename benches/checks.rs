//! What the checks cost: `cargo bench --bench checks`.
//!
//! Everything that a peer writes is an allegation, and is checked before it is used. Here the library's receiver takes messages
//! beside one that believes every word (`checks/trusting.rs`), which exists in this bench only. Both read real segments that the
//! library's sender fills, 16 messages at a time, in one thread, so that nothing but instructions is compared; and both copy each
//! payload out and add up its words. Batches alternate, and the figures are medians of paired differences.
//!
//! The trusting receiver also has no counters, no call numbers and no way to unwind, so what is printed is more than the checks
//! themselves cost. A sender's checks (of the credit that it takes) are in both.

#[path = "checks/trusting.rs"]
mod trusting;

use std::hint::black_box;
use tightbeam_segment::{
    Arrival, Attached, Batch, Formatted, Identity, Incarnation, Incoming, Layout, Outgoing,
    OwnLines, PeerLines, Port,
};
use tightbeam_sys::clock::TickClock;
use tightbeam_sys::memory::{MemoryOptions, OwnMemory, PeerMemory, page_size};
use trusting::{Trusting, Words};

const DEPTH: usize = 1024;
const AT_ONCE: usize = 16;
const SIZES: [usize; 4] = [8, 56, 256, 1024];
const IN_BATCHES: usize = 32;
/// Rounds of one batch of measurements, and pairs of these.
const ROUNDS: usize = 500;
const PAIRS: usize = 400;

/// A segment that its owner and its reader map as they do in a channel.
fn segment(seed: u64) -> (Formatted, Attached, Words) {
    let (layout, page) = (Layout::new(DEPTH).expect("a depth"), page_size());
    let identity = Identity::ours(layout, page as u32, Incarnation([seed, !seed]));
    let bytes = layout.bytes(page);
    let memory = OwnMemory::create(bytes, &MemoryOptions::default()).expect("memory");
    let descriptor = |memory: &OwnMemory| memory.fd().try_clone_to_owned().expect("a descriptor");
    let words = Words::map(descriptor(&memory), bytes);
    let theirs = descriptor(&memory);
    let own = layout.format(OwnLines::new(memory), &identity);
    let seen = PeerMemory::map(theirs, bytes).expect("a sealed segment");
    let attached = Layout::attach(PeerLines::new(seen), &identity, page as u32);
    (own, attached.expect("as it was formatted"), words)
}

/// What is sent, and how often it is one message.
struct Load {
    payload: Vec<u8>,
    batch: bool,
}

impl Load {
    /// Sends so many pieces; how many messages that were.
    fn send(&self, port: &Port) -> usize {
        if !self.batch {
            for _ in 0..AT_ONCE {
                port.try_send(Outgoing::message(1), &self.payload)
                    .expect("room");
            }
            return AT_ONCE;
        }
        let mut messages = 0;
        for _ in 0..AT_ONCE / 4 {
            let mut batch = Batch::new();
            while batch.push(1, &self.payload) {}
            messages += batch.len();
            port.try_send_batch(&mut batch).expect("room");
        }
        messages
    }
}

fn add_up(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let rest = rest.iter().map(|byte| u64::from(*byte)).sum::<u64>();
    let words = words.iter().map(|word| u64::from_ne_bytes(*word));
    words.fold(rest, u64::wrapping_add)
}

/// As the endpoint does it.
fn take_checked(port: &mut Port) -> (usize, u64) {
    let (mut messages, mut sum) = (0, 0u64);
    let mut handle = |handler: u16, incoming: Incoming<'_>| {
        sum = sum.wrapping_add(add_up(incoming.bytes()) ^ u64::from(handler));
    };
    loop {
        if let Some((handler, incoming, _)) = port.lookout().message(0) {
            handle(handler, incoming);
            messages += 1;
        } else if !port.saw_other() {
            break;
        } else {
            match port.arrival() {
                Arrival::Message { handler } => {
                    handle(handler, port.incoming().0);
                    messages += 1;
                }
                Arrival::Batch => {
                    messages += port.unpack(|handler, incoming, _| handle(handler, incoming));
                }
                Arrival::Empty => break,
                other => panic!("{other:?}"),
            }
        }
        port.consume();
    }
    port.finish_drain();
    (messages, sum)
}

fn take_trusting(receiver: &mut Trusting) -> (usize, u64) {
    let (mut messages, mut sum) = (0, 0u64);
    while receiver.take(|handler, bytes| {
        sum = sum.wrapping_add(add_up(bytes) ^ u64::from(handler));
        messages += 1;
    }) {}
    receiver.give_credit();
    (messages, sum)
}

/// Nanoseconds a message of one batch of rounds.
fn run<R>(
    clock: &TickClock,
    load: &Load,
    rounds: usize,
    sender: &Port,
    receiver: &mut R,
    take: impl Fn(&mut R) -> (usize, u64),
    wanted: u64,
) -> f64 {
    let (start, mut all) = (clock.now(), 0);
    for _ in 0..rounds {
        let sent = load.send(sender);
        let (taken, sum) = take(receiver);
        assert!(
            taken == sent && sum == wanted.wrapping_mul(sent as u64),
            "what was sent"
        );
        all += taken;
    }
    clock.ns(clock.now().wrapping_sub(start)) / all as f64
}

fn quantiles(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [0.1, 0.5, 0.9].map(|share| values[((values.len() - 1) as f64 * share) as usize])
}

fn main() {
    // Under `cargo test` it only shows that it works.
    let quick = std::env::args().any(|argument| argument == "--test");
    let (rounds, pairs) = if quick { (2, 2) } else { (ROUNDS, PAIRS) };
    let clock = TickClock::calibrate();
    println!("nanoseconds a message, sent and received in one thread; the difference is the price");
    println!("size        trusting  checked   price [p10 .. p90]        percent");
    let loads = SIZES.map(|size| (size, false)).into_iter();
    for (size, batch) in loads.chain([(IN_BATCHES, true)]) {
        let load = Load {
            payload: (0..size).map(|n| (n * 7 + 1) as u8).collect(),
            batch,
        };
        let wanted = black_box(add_up(&load.payload) ^ 1);
        let [(a, a_seen, _), (b, b_seen, _)] = [segment(1), segment(2)];
        let (left, mut checked) = (Port::new(a, b_seen, 0), Port::new(b, a_seen, 1));
        let [(c, _, c_words), (d, d_seen, d_words)] = [segment(3), segment(4)];
        let (right, mut trusting) = (Port::new(c, d_seen, 0), Trusting::new(c_words, d_words));
        let (mut with, mut without) = (Vec::new(), Vec::new());
        for pair in 0..pairs {
            let mut with_checks = || {
                with.push(run(
                    &clock,
                    &load,
                    rounds,
                    &left,
                    &mut checked,
                    take_checked,
                    wanted,
                ));
            };
            if pair % 2 == 0 {
                with_checks();
            }
            without.push(run(
                &clock,
                &load,
                rounds,
                &right,
                &mut trusting,
                take_trusting,
                wanted,
            ));
            if pair % 2 == 1 {
                with_checks();
            }
        }
        drop(d);
        let prices = with
            .iter()
            .zip(&without)
            .map(|(with, without)| with - without);
        let percents = with
            .iter()
            .zip(&without)
            .map(|(with, without)| (with / without - 1.0) * 100.0);
        let [low, price, high] = quantiles(prices.collect());
        let [_, percent, _] = quantiles(percents.collect());
        let ([_, with, _], [_, without, _]) = (quantiles(with), quantiles(without));
        let name = if batch {
            format!("{size} B batch")
        } else {
            format!("{size} B")
        };
        println!(
            "{name:11} {without:8.1} {with:8.1} {price:7.1} [{low:.1} .. {high:.1}] {percent:14.0} %"
        );
    }
}
