//! Round trips between two processes, as a histogram: `cargo run --release --example pingpong [bytes]`.
//!
//! The first process answers; it starts this program again as its client. For figures to quote, with the hardware floor and
//! the socket paths beside them, use `tightbeam bench`.

use std::process::Command;
use std::time::Instant;
use tightbeam::{Endpoint, Event, Handlers, MAX_INLINE, Wait};

const ECHO: u16 = 1;
const ROUND_TRIPS: usize = 200_000;

fn serve(address: &str, bytes: usize) -> Result<(), Box<dyn std::error::Error>> {
    let handlers = Handlers::new().on(ECHO, |_, message, reply| reply.send(message.bytes()));
    let mut server = Endpoint::builder()
        .handlers(handlers)
        .wait(Wait::Spin)
        .listen(address)?;
    let mut client = Command::new(std::env::current_exe()?)
        .arg(bytes.to_string())
        .arg(address)
        .spawn()?;
    while !matches!(
        server.next_event(),
        Some(Event::Closed { .. } | Event::Dead { .. })
    ) {
        server.poll(64);
        std::hint::spin_loop();
    }
    assert!(client.wait()?.success());
    Ok(())
}

fn measure(address: &str, bytes: usize) -> Result<(), Box<dyn std::error::Error>> {
    let mut client = Endpoint::builder().wait(Wait::Spin).connect(address)?;
    let mut payload = vec![0; bytes];
    let mut nanoseconds = Vec::with_capacity(ROUND_TRIPS);
    for n in 0..ROUND_TRIPS {
        payload.fill(n as u8);
        let start = Instant::now();
        let answer = client.call(ECHO, &payload)?;
        nanoseconds.push(start.elapsed().as_nanos());
        assert_eq!(answer, payload);
    }
    nanoseconds.sort_unstable();
    let at = |share: f64| nanoseconds[(share * (ROUND_TRIPS - 1) as f64) as usize];
    println!("{ROUND_TRIPS} round trips of {bytes} bytes, in ns, clock included:");
    println!(
        "  p50 {}  p90 {}  p99 {}  p99.9 {}  max {}",
        at(0.5),
        at(0.9),
        at(0.99),
        at(0.999),
        at(1.0)
    );
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let bytes = match arguments.next() {
        Some(text) => text
            .parse::<usize>()
            .map_err(|e| format!("`{text}` bytes: {e}"))?,
        None => 56,
    };
    if bytes > MAX_INLINE {
        return Err(format!("{bytes} bytes are too many; the most is {MAX_INLINE}").into());
    }
    match arguments.next() {
        Some(address) => measure(&address, bytes),
        None => {
            let directory = std::env::temp_dir();
            serve(
                &format!(
                    "shm:{}/pingpong-{}.sock",
                    directory.display(),
                    std::process::id()
                ),
                bytes,
            )
        }
    }
}
