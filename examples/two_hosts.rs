//! Messages between two hosts, with the same code whatever carries them: `cargo run --example two_hosts [serve|call ADDRESS]`.
//!
//! `two_hosts serve ADDRESS` counts what comes and answers; `two_hosts call ADDRESS`, on another host, calls it and sends a stream. The
//! address says what is between them: `udp:10.0.0.2:7000` a kernel socket, `xdp:eth0/10.0.0.2:7000` the NIC through AF_XDP, and
//! `shm:/tmp/x.sock` memory, if it is one host after all. The two sides may choose differently between `udp:` and `xdp:`.
//! Without arguments both run here, over loopback. `examples/two_hosts.sh` makes two hosts out of namespaces.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tightbeam::{CallError, ChannelId, DeviceStatus, Endpoint, Event, Handlers, Message, Reply};

const ECHO: u16 = 1;
/// One way: nobody is told if it is lost.
const NOTE: u16 = 2;
/// How many notes have come?
const TOTAL: u16 = 3;

const CALLS: u32 = 1_000;
const NOTES: u64 = 100_000;
/// How long the last notes may take, and how often a call is made that may be lost.
const PATIENCE: Duration = Duration::from_secs(1);
const TRIES: usize = 10;

type Failure = Box<dyn std::error::Error>;

#[derive(Default)]
struct Counts {
    notes: u64,
    /// The client asks for the total when it has sent everything.
    asked: Option<ChannelId>,
}

fn serve(address: &str, listening: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    let handlers = Handlers::new()
        .on(ECHO, |_, message: Message<'_>, reply: Reply<'_>| {
            reply.send(message.bytes());
        })
        .on(NOTE, |counts: &mut Counts, _, _| counts.notes += 1)
        .on(TOTAL, |counts: &mut Counts, _, reply: Reply<'_>| {
            counts.asked = Some(reply.channel());
            reply.send(&counts.notes.to_le_bytes());
        });
    let mut server = Endpoint::listen(address, handlers)?;
    listening()?;
    let mut status = None;
    loop {
        server.poll_for(256, PATIENCE);
        // A channel that has ended has no status any more.
        if let Some(channel) = server.state_mut().asked.take() {
            status = server.device_status(channel);
        }
        match server.next_event() {
            Some(Event::Opened { .. }) => println!("server: a client has come"),
            Some(ended) => {
                let closed = matches!(ended, Event::Closed { .. });
                let how = if closed {
                    "has closed the channel"
                } else {
                    "is gone"
                };
                println!("server: the client {how}");
                show("server", status.as_ref());
                return Ok(());
            }
            None => {}
        }
    }
}

fn call(address: &str) -> Result<(), Failure> {
    let mut client = Endpoint::connect(address)?;
    let start = Instant::now();
    let mut unanswered = 0;
    for number in 0..CALLS {
        let question = number.to_le_bytes();
        match client.call(ECHO, &question) {
            Ok(answer) => assert_eq!(answer, question),
            // Question or answer was lost; a channel over a device does not send it again.
            Err(CallError::DeadlineExceeded) => unanswered += 1,
            Err(error) => return Err(error.into()),
        }
    }
    let each = start.elapsed() / CALLS;
    println!("client: {CALLS} calls, {unanswered} without an answer, {each:?} each");
    for number in 0..NOTES {
        client.send(NOTE, &number.to_le_bytes())?;
    }
    let came = total(&mut client)?;
    println!("client: {came} of {NOTES} notes have come");
    let channel = client.channels().next().ok_or("the channel has ended")?;
    show("client", client.device_status(channel).as_ref());
    Ok(())
}

/// Asks until there is an answer.
fn total(client: &mut Endpoint) -> Result<u64, Failure> {
    for _ in 0..TRIES {
        match client.call(TOTAL, b"") {
            Ok(answer) => return Ok(u64::from_le_bytes(answer.try_into()?)),
            Err(CallError::DeadlineExceeded) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err("nobody answers".into())
}

/// What a device is, what it has moved, and what was lost, by cause.
fn show(side: &str, status: Option<&DeviceStatus>) {
    let Some(status) = status else {
        return println!("{side}: no device: the other process is on this host");
    };
    let facts = ["interface", "driver", "mode", "copy", "fell_back", "mtu"];
    let facts = facts.map(|name| status.fact(name).map(|value| format!(" {name}={value}")));
    let facts: String = facts.into_iter().flatten().collect();
    println!("{side}: device {}{facts}", status.kind);
    let count = |name| status.count(name).unwrap_or(0);
    let (sent, received) = (count("sent"), count("received"));
    let losses = status.losses();
    let losses: String = losses.map(|(cause, n)| format!(" {cause}={n}")).collect();
    let losses = if losses.is_empty() {
        " nothing"
    } else {
        &losses
    };
    println!("{side}: packets sent {sent}, received {received}; lost:{losses}");
}

/// Both on this host, in two processes.
fn both() -> Result<(), Failure> {
    // A port that was free a moment ago.
    let port = std::net::UdpSocket::bind("127.0.0.1:0")?
        .local_addr()?
        .port();
    let address = format!("udp:127.0.0.1:{port}");
    let mut client = None;
    serve(&address, || {
        let program = std::env::current_exe()?;
        let mut command = Command::new(program);
        command.args(["call", &address]).stdin(Stdio::null());
        client = Some(command.spawn()?);
        Ok(())
    })?;
    let ended = client.ok_or("no client was started")?.wait()?;
    match ended.success() {
        true => Ok(()),
        false => Err(format!("the client failed: {ended}").into()),
    }
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [] => both(),
        ["serve", address] => serve(address, || {
            println!("server: listening at {address}");
            Ok(())
        }),
        ["call", address] => call(address),
        _ => Err("two_hosts serve ADDRESS, two_hosts call ADDRESS, or nothing".into()),
    }
}
