//! What it costs a sender that its peer might sleep, while it does not: `cargo bench --bench sleepers`.
//!
//! A sender looks after each message whether its peer says that it sleeps (D7): one load of a line that its owner writes only when
//! it goes to sleep, without a fence. Here messages are sent with and without that look, 16 at a time, in batches that alternate;
//! the figures are medians of paired differences. A sender without it exists in this bench only.
//!
//! Both ends are in one thread, so that nothing but the sender's instructions differs: while the peer is awake its line stays in
//! the sender's cache, wherever the peer runs.

use std::hint::black_box;
use tightbeam_segment::{Arrival, Layout, Outgoing, Port, testing};
use tightbeam_sys::clock::TickClock;

const SIZES: [usize; 4] = [0, 8, 56, 256];
const AT_ONCE: usize = 16;
/// Rounds of one batch, and pairs of batches.
const ROUNDS: usize = 500;
const PAIRS: usize = 1000;

/// Takes what was sent; returns how many messages that were.
fn take(port: &mut Port) -> usize {
    let mut taken = 0;
    while let Arrival::Message { .. } = port.arrival() {
        port.consume();
        taken += 1;
    }
    port.finish_drain();
    taken
}

/// Nanoseconds a message sent, of one batch; what takes them out again is not timed.
fn run<const LOOK: bool>(
    clock: &TickClock,
    rounds: usize,
    payload: &[u8],
    ports: &mut (Port, Port),
) -> f64 {
    let (left, right) = ports;
    let mut ticks = 0;
    for _ in 0..rounds {
        let start = clock.now();
        for _ in 0..AT_ONCE {
            let sent = left.try_send(Outgoing::message(1), black_box(payload));
            assert!(sent.is_ok(), "room");
            if LOOK && left.peer_asleep() {
                // Nobody sleeps here; a sender would make its wake-up call.
                black_box(left.bump_wake_word());
            }
        }
        ticks += clock.now().wrapping_sub(start);
        assert_eq!(take(right), AT_ONCE);
    }
    clock.ns(ticks) / (rounds * AT_ONCE) as f64
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
    println!("nanoseconds a message sent; the difference is the price");
    println!("size     without   with   price [p10 .. p90]");
    for size in SIZES {
        let payload = vec![0x5a; size];
        let mut ports = testing::pair(Layout::new(1024).expect("a depth"));
        let (mut with, mut without) = (Vec::new(), Vec::new());
        for pair in 0..pairs {
            if pair % 2 == 0 {
                with.push(run::<true>(&clock, rounds, &payload, &mut ports));
            }
            without.push(run::<false>(&clock, rounds, &payload, &mut ports));
            if pair % 2 == 1 {
                with.push(run::<true>(&clock, rounds, &payload, &mut ports));
            }
        }
        let pairs = with.iter().zip(&without);
        let [low, price, high] = quantiles(pairs.map(|(with, without)| with - without).collect());
        let ([_, with, _], [_, without, _]) = (quantiles(with), quantiles(without));
        println!("{size:3} B {without:9.2} {with:7.2} {price:7.2} [{low:.2} .. {high:.2}]");
    }
}
