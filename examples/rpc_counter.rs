//! Typed messages, a state, and replies: `cargo run --example rpc_counter`.
//!
//! The first process keeps a counter; it starts this program again as its client, which adds to the counter and reads it.

use std::process::Command;
use tightbeam::{Endpoint, Event, Handle, Handlers, TypedMessage, TypedReply};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Adds to the counter; the reply is its new value.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Add {
    amount: u64,
}

impl TypedMessage for Add {
    const HANDLER: u16 = 1;
    type Reply = u64;
}

#[derive(Default)]
struct Counter {
    value: u64,
}

impl Handle<Add> for Counter {
    fn handle(&mut self, add: &Add, reply: TypedReply<'_, u64>) {
        self.value = self.value.wrapping_add(add.amount);
        reply.send(&self.value);
    }
}

fn serve(address: &str) -> Result<(), Box<dyn std::error::Error>> {
    let handlers = Handlers::<Counter>::new().on_typed::<Add>();
    let mut server = Endpoint::listen(address, handlers)?;
    let mut client = Command::new(std::env::current_exe()?)
        .arg(address)
        .spawn()?;
    while !matches!(
        server.next_event(),
        Some(Event::Closed { .. } | Event::Dead { .. })
    ) {
        server.poll(64);
        std::hint::spin_loop();
    }
    println!("server: the counter ended at {}", server.state().value);
    assert!(client.wait()?.success());
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Some(address) = std::env::args().nth(1) else {
        let directory = std::env::temp_dir();
        return serve(&format!(
            "shm:{}/counter-{}.sock",
            directory.display(),
            std::process::id()
        ));
    };
    let mut client = Endpoint::connect(&address)?;
    for amount in 1..=100 {
        client.call_typed(&Add { amount })?;
    }
    let sum = client.call_typed(&Add { amount: 0 })?;
    println!("client: 1 + 2 + ... + 100 = {sum}");
    assert_eq!(sum, 5050);
    Ok(())
}
