//! Slow handlers on a pool of threads, fast ones beside them: `cargo run --release --example rpc_workers`.
//!
//! The first process serves; it starts this program again as its clients: one measures fast calls, first alone, then while others
//! make calls that take long.

use std::process::{Child, Command};
use std::time::{Duration, Instant};
use tightbeam::{Endpoint, Event, Handlers, Later, Workers};

const FAST: u16 = 1;
const SLOW: u16 = 2;

const CALLS: usize = 2_000;
/// What a slow call takes.
const WORK: Duration = Duration::from_millis(5);
const SLOW_CLIENTS: usize = 2;

fn serve(address: &str) -> Result<(), Box<dyn std::error::Error>> {
    let handlers = Handlers::new().on(FAST, |_: &mut (), message, reply| {
        reply.send(message.bytes())
    });
    let workers = Workers::new(()).threads(2).queue(16);
    let workers = workers.on(SLOW, |_, message, later: Later| {
        std::thread::sleep(WORK); // a disk, a database, another service
        later.send(message);
    });
    let builder = Endpoint::builder().handlers(handlers).workers(workers);
    let mut server = builder.listen(address)?;

    let again = |role: &str| {
        Command::new(std::env::current_exe()?)
            .args([role, address])
            .spawn()
    };
    let alone = until_all_have_left(&mut server, vec![again("alone")?]);
    let slow = (0..SLOW_CLIENTS).map(|_| again("slow"));
    let mut clients = slow.collect::<Result<Vec<_>, _>>()?;
    clients.push(again("beside slow ones")?);
    alone.and(until_all_have_left(&mut server, clients))
}

fn until_all_have_left(
    server: &mut Endpoint,
    clients: Vec<Child>,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut left = 0;
    while left < clients.len() {
        server.poll_for(64, Duration::from_secs(1));
        while let Some(event) = server.next_event() {
            left += usize::from(!matches!(event, Event::Opened { .. }));
        }
    }
    for mut client in clients {
        assert!(client.wait()?.success());
    }
    Ok(())
}

/// The middle and the 99th percentile of so many fast calls.
fn fast_calls(client: &mut Endpoint, title: &str) -> Result<(), Box<dyn std::error::Error>> {
    let mut took = Vec::with_capacity(CALLS);
    for number in 0..CALLS {
        let start = Instant::now();
        let said = number.to_ne_bytes();
        assert_eq!(client.call(FAST, &said)?, said);
        took.push(start.elapsed());
    }
    took.sort();
    let (middle, high) = (took[CALLS / 2], took[CALLS * 99 / 100]);
    println!("{CALLS} fast calls {title}: median {middle:?}, 99 % within {high:?}");
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [role, address] = arguments.as_slice() else {
        let directory = std::env::temp_dir();
        let process = std::process::id();
        return serve(&format!(
            "shm:{}/workers-{process}.sock",
            directory.display()
        ));
    };
    let mut client = Endpoint::connect(address)?;
    if role != "slow" {
        return fast_calls(&mut client, role);
    }
    for number in 0..40u64 {
        let said = number.to_ne_bytes();
        assert_eq!(client.call(SLOW, &said)?, said);
    }
    Ok(())
}
