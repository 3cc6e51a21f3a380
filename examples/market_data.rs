//! One publisher, several subscribers, one of them slow and one killed: `cargo run --example market_data`.
//!
//! Each frame of quotes is written once and lent to all subscribers. What becomes of it for who has no room is a matter of policy:
//! the archive must have all of them and is waited for, the screen wants the newest, the logger takes what it can get, the trader is
//! closed if it falls behind, and one crashes. None of them delays another, but by the archive's wish.

use std::process::{Child, Command};
use std::time::{Duration, Instant};
use tightbeam::{
    ChannelId, Counter, Counters, Endpoint, Event, Handlers, Load, Message, Policy, Reply,
};

/// A frame of quotes, which begins with its number.
const QUOTES: u16 = 1;
/// "I am subscriber n."
const JOIN: u16 = 2;
/// "How many did you get?"
const COUNT: u16 = 3;

const SIZE: usize = 4096;
const FRAMES: u64 = 20_000;
const PATIENCE: Duration = Duration::from_secs(5);

type Failure = Box<dyn std::error::Error>;

struct Role {
    name: &'static str,
    policy: Policy,
    /// How long it takes for a frame.
    takes: Duration,
}

const NO_TIME: Duration = Duration::ZERO;
const ROLES: [Role; 5] = [
    Role {
        name: "archive",
        policy: Policy::Block(PATIENCE),
        takes: NO_TIME,
    },
    Role {
        name: "screen",
        policy: Policy::DropOldest,
        takes: Duration::from_micros(200),
    },
    Role {
        name: "logger",
        policy: Policy::DropNewest,
        takes: Duration::from_micros(500),
    },
    Role {
        name: "trader",
        policy: Policy::Evict(Duration::from_millis(20)),
        takes: Duration::from_millis(2),
    },
    Role {
        name: "crashes",
        policy: Policy::DropOldest,
        takes: NO_TIME,
    },
];
/// Who is killed in the middle.
const CRASHES: usize = 4;

#[derive(Default)]
struct Desk {
    channels: [Option<ChannelId>; ROLES.len()],
}

fn publish(place: &str) -> Result<(), Failure> {
    let handlers = Handlers::new().on(
        JOIN,
        |desk: &mut Desk, message: Message<'_>, reply: Reply<'_>| {
            let number = message.bytes().first().map(|number| usize::from(*number));
            if let Some(place) = number.and_then(|number| desk.channels.get_mut(number)) {
                *place = Some(reply.channel());
            }
        },
    );
    let builder = Endpoint::builder()
        .state(Desk::default())
        .handlers(handlers);
    let builder = builder.depth(128).queue(64, 1 << 20).frame_limit(32 << 20);
    let mut publisher = builder.shared_quota(2 << 20).listen(place)?;
    let mut children = Vec::new();
    for number in 0..ROLES.len() {
        let mut command = Command::new(std::env::current_exe()?);
        children.push(command.args([place, &number.to_string()]).spawn()?);
    }
    while publisher.state().channels.iter().any(Option::is_none) {
        publisher.poll_for(64, Duration::from_millis(10));
    }
    let channels = publisher
        .state()
        .channels
        .map(|channel| channel.expect("joined"));
    for (channel, role) in channels.iter().zip(&ROLES) {
        publisher.set_policy(*channel, role.policy);
    }
    let mut ended: [Option<Counters>; ROLES.len()] = Default::default();
    let start = Instant::now();
    for number in 0..FRAMES {
        let mut frame = publisher.shared_frame(SIZE)?;
        frame[..8].copy_from_slice(&number.to_ne_bytes());
        publisher.publish(&channels, QUOTES, &frame.freeze());
        publisher.poll(64);
        note_ends(&mut publisher, &channels, &mut ended);
        if number == FRAMES / 2 {
            children[CRASHES].kill()?;
        }
    }
    println!("{FRAMES} frames published in {:?}", start.elapsed());
    report(&mut publisher, &channels, &mut ended)?;
    let audit = publisher.shared_frames();
    println!(
        "memory of the publisher: {} KiB, {} frames",
        audit.bytes >> 10,
        audit.frames
    );
    assert_eq!(audit.astray, []);
    drop(publisher);
    wait_for(children)
}

fn note_ends(
    publisher: &mut Endpoint<Desk>,
    channels: &[ChannelId],
    ended: &mut [Option<Counters>],
) {
    while let Some(event) = publisher.next_event() {
        let place = channels.iter().position(|id| *id == event.channel());
        let name = place.map_or("somebody", |place| ROLES[place].name);
        match (event, place) {
            (Event::Evicted { counters, .. }, Some(place)) => {
                println!("  {name} is evicted");
                ended[place] = Some(counters);
            }
            (Event::Dead { counters, .. }, Some(place)) => {
                println!("  {name} has died");
                ended[place] = Some(counters);
            }
            _ => {}
        }
    }
}

/// Whatever was offered was sent, or dropped by one cause; and who lives has got what was sent.
fn report(
    publisher: &mut Endpoint<Desk>,
    channels: &[ChannelId],
    ended: &mut [Option<Counters>],
) -> Result<(), Failure> {
    let empty = |load: Load| load.queued == 0;
    while !channels
        .iter()
        .all(|id| publisher.load(*id).is_none_or(empty))
    {
        publisher.poll_for(64, Duration::from_millis(1));
    }
    for (place, channel) in channels.iter().enumerate() {
        // Asked behind everything that was sent to it.
        let got = publisher.call_to(*channel, COUNT, b"", PATIENCE);
        let got = got
            .ok()
            .and_then(|bytes| Some(u64::from_ne_bytes(*bytes.first_chunk()?)));
        note_ends(publisher, channels, ended);
        // The question was sent too.
        let asked = u64::from(got.is_some());
        let counters = publisher.counters(*channel).cloned();
        let Some(counters) = counters.or(ended[place].take()) else {
            return Err("a channel has ended without a word".into());
        };
        let [sent, newest, oldest, evict, queued] = [
            Counter::Sent,
            Counter::DropNewest,
            Counter::DropOldest,
            Counter::DropEvict,
            Counter::DropQueued,
        ]
        .map(|counter| counters.get(counter));
        let (offered, sent) = (counters.get(Counter::Offered), sent - asked);
        println!(
            "{:>8}: offered {offered}, sent {sent}, got {}; dropped: newest {newest}, oldest {oldest}, before eviction {evict}, queued at the end {queued}",
            ROLES[place].name,
            got.map_or("?".into(), |got| got.to_string()),
        );
        assert_eq!(offered, sent + newest + oldest + evict + queued);
        assert!(got.is_none_or(|got| got == sent));
    }
    Ok(())
}

fn wait_for(children: Vec<Child>) -> Result<(), Failure> {
    for (place, mut child) in children.into_iter().enumerate() {
        let ended = child.wait()?;
        assert!(ended.success() || place == CRASHES, "{ended}");
    }
    Ok(())
}

struct Subscriber {
    takes: Duration,
    got: u64,
}

fn subscribe(place: &str, number: u8) -> Result<(), Failure> {
    let role = ROLES.get(usize::from(number)).ok_or("no such subscriber")?;
    let handlers = Handlers::new()
        .on(QUOTES, |subscriber: &mut Subscriber, message, _| {
            let mut first = [0; 8];
            if let Some(frame) = message.frames() {
                frame.copy_to(0, &mut first);
            }
            subscriber.got += 1;
            // It is slow, not idle: that is what is shown here.
            let start = Instant::now();
            while start.elapsed() < subscriber.takes {
                std::thread::yield_now();
            }
        })
        .on(COUNT, |subscriber: &mut Subscriber, _, reply| {
            reply.send(&subscriber.got.to_ne_bytes());
        });
    let state = Subscriber {
        takes: role.takes,
        got: 0,
    };
    let mut endpoint = Endpoint::builder()
        .state(state)
        .handlers(handlers)
        .connect(place)?;
    endpoint.send(JOIN, &[number])?;
    Ok(endpoint.run()?)
}

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.as_slice() {
        [place, number] => subscribe(place, number.parse()?),
        [] => {
            let (directory, id) = (std::env::temp_dir(), std::process::id());
            publish(&format!("shm:{}/market-{id}.sock", directory.display()))
        }
        _ => Err("cargo run --example market_data".into()),
    }
}
