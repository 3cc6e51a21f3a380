//! Both sides of an echo service: `cargo run --example hello`.
//!
//! The first process serves, and starts this program again as its client.

use std::process::Command;
use tightbeam::{Endpoint, Event, Handlers, Message, Reply};

const ECHO: u16 = 1;

fn serve(address: &str) -> Result<(), Box<dyn std::error::Error>> {
    let handlers = Handlers::new().on(
        ECHO,
        |_: &mut (), message: Message<'_>, reply: Reply<'_>| {
            reply.send(message.bytes());
        },
    );
    let mut server = Endpoint::listen(address, handlers)?;
    let mut client = Command::new(std::env::current_exe()?)
        .arg(address)
        .spawn()?;
    loop {
        server.poll(64);
        match server.next_event() {
            Some(Event::Opened { peer, .. }) => println!("server: process {} has come", peer.pid),
            Some(event) => break println!("server: the client has gone: {event:?}"),
            None => std::hint::spin_loop(),
        }
    }
    client.wait()?;
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Some(address) = std::env::args().nth(1) else {
        let directory = std::env::temp_dir();
        return serve(&format!(
            "shm:{}/hello-{}.sock",
            directory.display(),
            std::process::id()
        ));
    };
    let mut client = Endpoint::connect(&address)?;
    let answer = client.call(ECHO, b"hello")?;
    println!("client: {}", String::from_utf8_lossy(answer));
    Ok(())
}
