//! What a device costs who talks to a process: round trips through shared memory between two endpoints that have nothing else, paired with
//! the same between two endpoints that also have a UDP socket and a channel over it, at rest.
//!
//! Two threads, each on its own CPU, in batches that alternate; prints the median of the paired ratios, with p10 and p90.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;
use tightbeam::{ChannelId, Endpoint, Handlers, Message, Reply, Wait};

const ECHO: u16 = 1;
const CALLS: u32 = 1000;
const PAIRS: usize = 400;
const REMOTE: &str = "udp:127.0.0.1:47190";
const STOP: usize = 2;

fn echo(_: &mut (), message: Message<'_>, reply: Reply<'_>) {
    reply.send(message.bytes());
}

fn pin(which: usize) {
    // On a machine with one CPU both stay where they are.
    let cpus = tightbeam_sys::cpu::allowed().unwrap_or_default();
    if let Some(&cpu) = cpus.get(which) {
        let _ = tightbeam_sys::cpu::pin(cpu);
    }
}

/// The two servers, of which the one whose turn it is polls.
fn serve(addresses: &[String; 2], turn: &AtomicUsize, tell: std::sync::mpsc::Sender<()>) {
    pin(1);
    let mut servers = addresses.each_ref().map(|address| {
        let handlers = Handlers::new().on(ECHO, echo);
        let builder = Endpoint::builder().handlers(handlers).wait(Wait::Spin);
        builder.listen(address).expect("a free path")
    });
    servers[1].accept_at(REMOTE).expect("a free port");
    tell.send(()).expect("the bench waits");
    loop {
        match turn.load(Ordering::Relaxed) {
            STOP => return,
            // As `run` does, which would not give way to the other one.
            which => drop(servers[which].poll_for(64, std::time::Duration::from_micros(200))),
        }
    }
}

fn batch(client: &mut Endpoint, channel: ChannelId) -> f64 {
    let begin = Instant::now();
    for _ in 0..CALLS {
        let within = std::time::Duration::from_secs(5);
        let answer = client.call_to(channel, ECHO, &[7; 56], within);
        assert_eq!(answer.expect("an answer").len(), 56);
    }
    begin.elapsed().as_nanos() as f64 / f64::from(CALLS)
}

fn main() {
    let name = |which| {
        let file = format!("tb-mixed-{}-{which}", std::process::id());
        format!("shm:{}", std::env::temp_dir().join(file).display())
    };
    let (addresses, turn) = ([name(0), name(1)], AtomicUsize::new(1));
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| serve(&addresses, &turn, tell));
        told.recv().expect("the servers start");
        pin(0);
        let open = |address| {
            let client = Endpoint::builder().wait(Wait::Spin).connect(address);
            client.expect("it listens")
        };
        let mut mixed = open(&addresses[1]);
        mixed.open(REMOTE).expect("it listens");
        turn.store(0, Ordering::Relaxed);
        let mut plain = open(&addresses[0]);
        let channels = [&plain, &mixed].map(|c| c.channels().next().expect("open"));
        let (mut ratios, mut floors) = (Vec::new(), Vec::new());
        for pair in 0..PAIRS {
            let mut took = [0.0; 2];
            for step in 0..2 {
                let which = (pair + step) % 2;
                turn.store(which, Ordering::Relaxed);
                let client = [&mut plain, &mut mixed];
                let [plain, mixed] = client;
                took[which] = batch(if which == 0 { plain } else { mixed }, channels[which]);
            }
            ratios.push(took[1] / took[0]);
            floors.push(took[0]);
        }
        turn.store(STOP, Ordering::Relaxed);
        for list in [&mut ratios, &mut floors] {
            list.sort_by(f64::total_cmp);
        }
        let at = |share: usize| ratios[(ratios.len() - 1) * share / 100];
        let (low, middle, high) = (at(10), at(50), at(90));
        println!(
            "round trip, 56 B through shared memory: {:.0} ns (median); with a UDP channel at rest in both endpoints x {middle:.3} (p10 {low:.3}, p90 {high:.3})",
            floors[PAIRS / 2]
        );
    });
}
