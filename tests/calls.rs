//! Calls whose reply comes at the last moment.
//!
//! The other side is one endpoint more in the same thread, which answers inside a handler of the caller: so the reply is
//! found by the very poll after which the deadline is over, not by chance now and then.

mod support;

use std::time::Duration;
use support::{Scratch, opened};
use tightbeam::{CallError, Counter, Endpoint, Handlers, Message, Reply, Wait};

const ECHO: u16 = 1;
const SERVE: u16 = 2;

fn echo(_: &mut (), message: Message<'_>, reply: Reply<'_>) {
    reply.send(message.bytes());
}

/// Lets the other side answer what has come.
fn serve(server: &mut Endpoint, _: Message<'_>, _: Reply<'_>) {
    assert_eq!(server.poll(8), 1, "the call");
}

#[test]
fn a_reply_found_as_the_deadline_ends_belongs_to_its_call() {
    let scratch = Scratch::new("calls-last-moment");
    let (there, back) = (scratch.address(), format!("{}-back", scratch.address()));
    let server = Endpoint::listen(&there, Handlers::new().on(ECHO, echo)).expect("free");
    let mut teller = Endpoint::<()>::listen(&back, Handlers::new()).expect("free");
    let builder = Endpoint::builder().state(server).wait(Wait::Park);
    let builder = builder.handlers(Handlers::new().on(SERVE, serve));
    // A poll looks at this channel first, and then at the one of the call.
    let mut client = builder.connect(&back).expect("it listens");
    opened(&mut teller);
    let call = client.open(&there).expect("it listens");
    opened(client.state_mut());
    for n in 0..100u32 {
        teller.try_send(SERVE, &[]).expect("room");
        let answer = client.call_to(call, ECHO, &n.to_ne_bytes(), Duration::ZERO);
        assert_eq!(answer, Ok(&n.to_ne_bytes()[..]));
        // Nobody answers this one, so it has none.
        let answer = client.call_to(call, ECHO, b"next", Duration::ZERO);
        assert_eq!(answer, Err(CallError::DeadlineExceeded));
        assert_eq!(client.state_mut().poll(8), 1, "too late");
        assert_eq!(client.poll(8), 1, "its reply is dropped");
    }
    let late = client
        .counters(call)
        .map(|counters| counters.get(Counter::DropLateReply));
    assert_eq!(late, Some(100));
}
