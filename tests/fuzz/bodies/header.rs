//! One header word, any of the 2^64: what it means, and that an honest port writes the same word for the same meaning.

use super::input::Input;
use super::lines::{Lines, PAGE, RING, port};
use super::reference::{Header, MESSAGE, Reader};
use tightbeam_segment::{
    Arrival, Identity, Incarnation, Layout, Outgoing, PAYLOAD_BYTES, TrySendError,
};

pub(crate) fn header(input: &[u8]) {
    let mut input = Input::new(input);
    let word = input.word();
    let header = Header::decode(word);
    assert_eq!(header.encode(), word, "the parts are the whole");
    let layout = Layout::new(input.one_of(&[2, 64, 128])).expect("a depth");
    // A tag of 0 is waited for by nobody.
    let tag = header.tag.max(1);
    for quick in [false, true] {
        let (ours, theirs) = (Lines::new(layout), Lines::new(layout));
        let mut receiver = port(&ours, &theirs, layout, tag);
        let mut reader = Reader::new(layout, 0, tag);
        theirs.store(RING, 0, word);
        let (expected, seen) = reader.look(&theirs, quick);
        let message = match quick {
            true => receiver.lookout().message(0).map(|(handler, ..)| handler),
            false => None,
        };
        let found = match message {
            Some(handler) => Arrival::Message { handler },
            None => receiver.arrival(),
        };
        assert_eq!(found, expected, "{header:?}");
        let Arrival::Message { handler } = found else {
            continue;
        };
        let (incoming, _) = receiver.incoming();
        assert_eq!((incoming.handler(), incoming.len()), (handler, seen.len));
        assert_eq!(incoming.wants_reply(), header.wanted);
        assert_eq!(incoming.bytes().len(), seen.len);
        if !quick {
            assert_eq!(
                again(layout, header),
                Header {
                    credit: 0,
                    restart: false,
                    ..header
                }
            );
        }
        let fault = reader.consume(seen);
        receiver.consume();
        assert_eq!(receiver.fault(), fault);
    }
    identity(&mut input);
}

/// What an honest port writes for this message.
fn again(layout: Layout, header: Header) -> Header {
    assert_eq!((header.kind, header.reserved), (MESSAGE, 0));
    assert_eq!(header.multi, header.len > PAYLOAD_BYTES);
    let (ours, theirs) = (Lines::new(layout), Lines::new(layout));
    let sender = port(&ours, &theirs, layout, header.tag);
    let out = match header.wanted {
        true => Outgoing::call(header.target),
        false => Outgoing::message(header.target),
    };
    let sent: Result<(), TrySendError> = sender.try_send(out, &vec![1; header.len]);
    sent.expect("room in a new ring");
    Header::decode(ours.load(RING, 0))
}

/// Any identity is refused or has a layout, whose segment fits what it says of itself.
fn identity(input: &mut Input<'_>) {
    let good = Identity::ours(Layout::new(64).expect("a depth"), PAGE, Incarnation([1, 2]));
    let mut said = good;
    match input.below(5) {
        0 => said.version = input.word() as u32,
        1 => said.layout_hash = input.word(),
        2 => said.page_size = input.word() as u32,
        3 => said.depth = input.word() as u32,
        _ => said.depth = 1 << input.below(32),
    }
    let others = Identity {
        depth: said.depth,
        ..good
    };
    let depth = said.depth as usize;
    let legal = (2..=65_536).contains(&depth) && depth.is_power_of_two() && said == others;
    match said.check(PAGE) {
        Ok(layout) => {
            assert!(legal, "{said:?}");
            assert_eq!(layout.depth(), depth);
            assert!(layout.bytes(PAGE as usize) >= layout.lines() * 64);
        }
        Err(mismatch) => assert!(!legal, "{said:?}: {mismatch}"),
    }
}
