//! What a user sees of an audit: counts that add up, and no findings, whatever honest sides do and however a peer ends.

mod support;

use std::time::Duration;
use support::{Scratch, connect, next_event};
use tightbeam::{Audit, ChannelId, Counter, Endpoint, Event, Handlers, Message, Reply};

const ECHO: u16 = 1;
const TAKE: u16 = 2;
const NOBODY: u16 = 9;

fn echo(_: &mut (), message: Message<'_>, reply: Reply<'_>) {
    reply.send(message.bytes());
}

fn take(_: &mut (), message: Message<'_>, _: Reply<'_>) {
    std::hint::black_box(message.bytes());
}

fn clean(endpoint: &Endpoint, channel: ChannelId) -> Audit {
    let audit = endpoint.audit(channel).expect("the channel is open");
    assert!(audit.findings.is_empty(), "{audit}");
    audit
}

#[test]
fn honest_sides_have_every_slot_in_one_place() {
    let scratch = Scratch::new("audit");
    let handlers = Handlers::new().on(ECHO, echo).on(TAKE, take);
    let mut server = Endpoint::listen(&scratch.address(), handlers).expect("a free path");
    let mut client = connect(&scratch.address());
    let Event::Opened {
        channel: theirs, ..
    } = next_event(&mut server)
    else {
        panic!("the channel is opened first");
    };
    let mine = client.channels().next().expect("one channel");
    let mut messages = 0;
    for round in 0..500usize {
        // Of one slot and of many, to a handler and to none, called and sent.
        for n in 0..round % 9 {
            let payload = vec![round as u8; (round * 131 + n * 57) % 1081];
            let handler = if n == 4 { NOBODY } else { TAKE };
            messages += u64::from(client.try_send(handler, &payload).is_ok());
        }
        let call = client.call_to(mine, ECHO, &[1; 60], Duration::ZERO);
        messages += u64::from(!matches!(call, Err(tightbeam::CallError::NotSent(_))));
        let (one, other) = (clean(&client, mine), clean(&server, theirs));
        assert_eq!(one.sent, one.credited + one.in_flight);
        assert!(other.waiting > 0 && other.consumed + other.handling < one.sent);
        while server.poll(64) > 0 {}
        while client.poll(64) > 0 {}
        let (one, other) = (clean(&client, mine), clean(&server, theirs));
        assert_eq!((one.sent, one.waiting), (other.consumed, other.waiting));
        assert_eq!((one.consumed, one.handling), (other.sent, 0));
    }
    let counters = server.counters(theirs).expect("still open");
    assert_eq!(counters.get(Counter::Received), messages);
    assert!(counters.get(Counter::DropNoHandler) > 0);
    // What was sent before the peer closed is still there to be seen, and then no channel is.
    client.try_send(TAKE, b"last words").expect("room");
    drop(client);
    assert_eq!(clean(&server, theirs).waiting, 1);
    assert!(matches!(next_event(&mut server), Event::Closed { .. }));
    assert!(server.audit(theirs).is_none());
}
