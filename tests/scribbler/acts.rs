//! What a scribbler does to a channel: mutations that may leave it open, and lies that a victim must see.

use crate::board::Word;
use crate::pen::{
    BATCH, CURSOR_LINE, FRAMED, Header, JUMP, MAX_INLINE, REPLY, RETURNS_LINE, RING_LINE, STARTS,
    STATE_LINE, next_tag,
};
use crate::scribe::{FRAMES, STRIDE, Scribe};
use crate::victim::{ASK, ECHO, NOTE, STORM};
use rustix::net::Shutdown;
use tightbeam_sys::wake;

const HANDLERS: [u16; 6] = [ECHO, NOTE, ASK, STORM, 5, u16::MAX];
const LENGTHS: [usize; 10] = [0, 1, 8, 55, 56, 57, 120, 121, 1000, MAX_INLINE];
/// Acts without progress after which the scribbler looks where the victim is.
const PATIENCE: usize = 64;

type Act = fn(&mut Scribe<'_>);

/// What leaves a channel open, if luck will have it.
const ACTS: [Act; 17] = [
    talk,
    talk,
    talk,
    talk,
    talk_in_frames,
    frame_words,
    frame_words,
    own_words,
    seen_words,
    seen_words,
    copy_lines,
    head_words,
    flip_headers,
    flip_payload,
    batch,
    jump,
    wake_up,
];

/// What no honest peer would write where the victim is about to look.
const LIES: [Act; 18] = [
    bad_frame,
    bad_return,
    bad_return,
    bad_return,
    bad_length,
    bad_kind,
    bad_jump,
    bad_batch,
    bad_reply,
    bad_credit,
    cursor_near,
    cursor_near,
    too_many_calls,
    overrun,
    flip_anything,
    random_headers,
    own_segment,
    leave,
];

pub(crate) fn act(scribe: &mut Scribe<'_>) {
    let (some, times) = match scribe.random.once_in(scribe.lies) {
        true => (&LIES[..], 1),
        false => (&ACTS[..], 1 + scribe.random.below(3)),
    };
    let act = scribe.random.of(some);
    for _ in 0..times {
        act(scribe);
    }
    listen(scribe);
}

/// Random words anywhere.
pub(crate) fn anything(scribe: &mut Scribe<'_>, stores: usize) {
    for _ in 0..stores / 2 {
        own_word(scribe, true);
        seen_word(scribe);
    }
}

/// Keeps the books of an honest peer, as far as they can be kept: reads, answers, gives credit.
fn listen(scribe: &mut Scribe<'_>) {
    for call in scribe.pen.listen() {
        let reply = scribe.pen.header(REPLY, scribe.random.of(&LENGTHS), call);
        legal(scribe, reply);
    }
    scribe.stuck += 1;
    if scribe.pen.in_flight() == 0 {
        scribe.stuck = 0;
    } else if scribe.stuck > PATIENCE {
        scribe.stuck = 0;
        if !scribe.pen.go_back() {
            own_segment(scribe);
            scribe.left = true;
        }
    }
}

fn legal(scribe: &mut Scribe<'_>, header: Header) -> bool {
    let payload = [scribe.random.next(), scribe.random.next()];
    let restart = scribe.random.once_in(4);
    let said = scribe.pen.say(header, &payload, restart);
    scribe.board.add(Word::Legal, u64::from(said));
    said
}

fn talk(scribe: &mut Scribe<'_>) {
    for _ in 0..1 + scribe.random.below(12) {
        let (len, handler) = (scribe.random.of(&LENGTHS), scribe.random.of(&HANDLERS));
        let mut header = scribe.pen.header(0, len, handler);
        // Few enough that the room for replies suffices.
        header.wanted = scribe.pen.in_flight() == 0 && scribe.random.once_in(3);
        if !legal(scribe, header) {
            return;
        }
    }
}

/// A part as the rules have it: memory 0, of which there are so many frames.
fn part(scribe: &mut Scribe<'_>) -> [u64; 2] {
    let slot = scribe.random.below(FRAMES) as u64;
    let len = scribe.random.of(&[0, 1, 1081, 4000, STRIDE]);
    let begin = scribe.random.below(STRIDE - len + 1);
    [
        slot << 16 | scribe.random.next() << 32,
        begin as u64 | (len as u64) << 32,
    ]
}

/// Says by the rules that a message is in frames, of which the victim has the memory.
fn talk_in_frames(scribe: &mut Scribe<'_>) {
    let parts = scribe.random.of(&[1, 1, 2, 3, 32]);
    let payload: Vec<u64> = (0..parts).flat_map(|_| part(scribe)).collect();
    let (handler, restart) = (scribe.random.of(&HANDLERS), scribe.random.once_in(4));
    let mut header = scribe.pen.header(0, 16 * parts, handler);
    header.flags = FRAMED;
    header.wanted = scribe.pen.in_flight() == 0 && scribe.random.once_in(3);
    let said = scribe.pen.say(header, &payload, restart);
    scribe.board.add(Word::Legal, u64::from(said));
}

/// Writes on in frames that it has sent.
fn frame_words(scribe: &mut Scribe<'_>) {
    burst(scribe, |scribe| {
        let line = scribe.random.below(scribe.frames.lines());
        let (word, value) = (scribe.random.below(8), scribe.random.next());
        scribe.frames.put(line, word, value);
        scribe.count();
    });
}

/// A message in frames that are not there, or not as long.
fn bad_frame(scribe: &mut Scribe<'_>) {
    let mut payload = part(scribe);
    match scribe.random.below(5) {
        0 => payload[0] |= 1 + scribe.random.below(0xffff) as u64,
        1 => payload[0] = payload[0] & !0xffff_0000 | (FRAMES as u64) << 16,
        2 => payload[1] = (STRIDE as u64 + 1) << 32,
        3 => payload[1] |= 0xffff_ffff,
        _ => payload = [scribe.random.next(), scribe.random.next()],
    }
    let len = scribe.random.of(&[16, 16, 16, 0, 8, 24, 528]);
    let mut header = scribe
        .pen
        .header(scribe.random.of(&[0, 0, REPLY]), len, NOTE);
    header.flags = FRAMED;
    for (n, word) in payload.into_iter().enumerate() {
        scribe.pen.put_head(1 + n, word);
    }
    lie(scribe, header);
}

/// Gives back what it does not have.
fn bad_return(scribe: &mut Scribe<'_>) {
    let place = scribe.random.of(&[0, 0, 0, 1, 2, 127]);
    let word = match scribe.random.below(3) {
        0 => scribe.random.next() & !0xff,
        // One that it may have.
        _ => (scribe.random.below(64) as u64) << 24 | (scribe.random.below(4) as u64) << 40,
    };
    let tag = scribe.random.of(&[1, 1, 1, 2]);
    let line = RETURNS_LINE + place / 8;
    scribe.pen.own.put(line, place % 8, word | tag);
    scribe.count();
}

fn own_word(scribe: &mut Scribe<'_>, cursor: bool) {
    let (line, word) = (
        scribe.random.below(scribe.pen.own.lines()),
        scribe.random.below(8),
    );
    if cursor || line != CURSOR_LINE {
        let value = scribe.random.next();
        scribe.pen.own.put(line, word, value);
        scribe.count();
    }
}

fn seen_word(scribe: &mut Scribe<'_>) {
    let (line, word) = (
        scribe.random.below(scribe.pen.seen.lines()),
        scribe.random.below(8),
    );
    let value = scribe.random.next();
    // Its cursor tells where it is: without it there is nothing legal to say. So it is scribbled over less often.
    if line != CURSOR_LINE || scribe.random.once_in(64) {
        scribe.pen.seen.put(line, word, value);
        scribe.count();
    }
}

fn burst(scribe: &mut Scribe<'_>, store: fn(&mut Scribe<'_>)) {
    for _ in 0..16 << scribe.random.below(5) {
        store(scribe);
    }
}

fn own_words(scribe: &mut Scribe<'_>) {
    burst(scribe, |scribe| own_word(scribe, false));
}

fn seen_words(scribe: &mut Scribe<'_>) {
    burst(scribe, seen_word);
}

/// Whole lines from other places, of this segment or the other.
fn copy_lines(scribe: &mut Scribe<'_>) {
    for _ in 0..4 << scribe.random.below(4) {
        let own = scribe.pen.own.lines();
        let ring = RING_LINE..(RING_LINE + STARTS).min(own);
        let from = scribe.random.below(own.min(scribe.pen.seen.lines()));
        let to = ring.start + scribe.random.below(ring.len());
        let foreign = scribe.random.once_in(2);
        for word in 0..8 {
            let value = match foreign {
                true => scribe.pen.seen.get(from, word),
                false => scribe.pen.own.get(from, word),
            };
            scribe.pen.own.put(to, word, value);
            scribe.count();
        }
    }
}

/// What stands in front of the rings: identity, state, and what nobody reads.
fn head_words(scribe: &mut Scribe<'_>) {
    burst(scribe, |scribe| {
        let (line, word) = (scribe.random.below(RING_LINE), scribe.random.below(8));
        if line != CURSOR_LINE {
            let value = scribe.random.next();
            scribe.pen.own.put(line, word, value);
            scribe.count();
        }
    });
}

/// Says that it sleeps and that it does not, and wakes who sleeps for nothing.
fn wake_up(scribe: &mut Scribe<'_>) {
    for _ in 0..8 {
        let asleep = scribe.random.next() & 1;
        scribe.pen.own.put(STATE_LINE, 0, asleep);
        let value = scribe.random.next();
        scribe.pen.own.put(STATE_LINE, 2, value);
        scribe.pen.own.put(STATE_LINE, 3, value % 4);
        scribe.count();
        scribe.count();
        wake::wake_one(scribe.pen.own.word(STATE_LINE, 2));
        scribe.board.add(Word::Wakes, 1);
    }
}

/// One word between two values, at full speed, while the victim looks.
fn flip(scribe: &mut Scribe<'_>, values: &[u64]) {
    for _ in 0..16 << scribe.random.below(4) {
        for value in values {
            scribe.pen.put_head(0, *value);
            scribe.count();
        }
    }
}

/// Whichever the victim takes, it goes on in slot 0.
fn flip_headers(scribe: &mut Scribe<'_>) {
    if scribe.pen.in_flight() != 0 {
        return;
    }
    let mut one = || {
        let (len, handler) = (scribe.random.of(&LENGTHS), scribe.random.of(&HANDLERS));
        let mut header = scribe.pen.header(0, len, handler);
        (header.restart, header.wanted) = (true, scribe.random.once_in(8));
        header.word()
    };
    let values = [one(), one(), one()];
    flip(scribe, &values);
    after_flip(scribe);
}

/// The same of which some are lies.
fn flip_anything(scribe: &mut Scribe<'_>) {
    let good = scribe.pen.header(0, 8, NOTE).word();
    let long = scribe.pen.header(0, MAX_INLINE, NOTE).word();
    // The same message with one bit changed.
    let bad = [good, long].map(|header| header ^ 1 << (8 + scribe.random.below(40)));
    flip(scribe, &[good, bad[0], long, bad[1]]);
    after_flip(scribe);
}

/// How many slots the victim took for the message, its cursor tells; a flipped message ends its lap in any case.
fn after_flip(scribe: &mut Scribe<'_>) {
    let before = scribe.pen.head.count;
    for _ in 0..1000 {
        let consumed = scribe.pen.seen.get(CURSOR_LINE, 0);
        if consumed != before {
            scribe.pen.pass(1, true);
            scribe.pen.head.count = consumed;
            return;
        }
        own_spare_word(scribe);
    }
}

/// A word that nobody looks at.
fn own_spare_word(scribe: &mut Scribe<'_>) {
    let value = scribe.random.next();
    scribe.pen.own.put(1, scribe.random.below(8), value);
    scribe.count();
}

/// A payload that changes while the victim copies and reads it.
fn flip_payload(scribe: &mut Scribe<'_>) {
    let (at, len) = (
        scribe.pen.head.slot,
        scribe.random.of(&[40, 56, 184, 1000, MAX_INLINE]),
    );
    let header = scribe
        .pen
        .header(0, len, scribe.random.of(&[NOTE, ASK, STORM]));
    if !legal(scribe, header) {
        return;
    }
    let words = len / 8;
    for _ in 0..64 << scribe.random.below(3) {
        let word = 1 + scribe.random.below(words);
        let value = scribe.random.next();
        scribe
            .pen
            .own
            .put(RING_LINE + at + word / 8, word % 8, value);
        scribe.count();
    }
}

fn batch(scribe: &mut Scribe<'_>) {
    let len = 16 * (1 + scribe.random.below(60));
    let header = scribe.pen.header(BATCH, len, 0);
    let message = [8 | u64::from(NOTE) << 48, scribe.random.next()];
    let said = scribe.pen.say(header, &message, false);
    scribe.board.add(Word::Legal, u64::from(said));
}

fn jump(scribe: &mut Scribe<'_>) {
    if scribe.pen.in_flight() == 0 {
        let slot = scribe.pen.head.slot + 1 + scribe.random.below(20);
        scribe.pen.jump(slot);
        talk(scribe);
    }
}

/// Writes a header where the victim looks next.
fn lie(scribe: &mut Scribe<'_>, header: Header) {
    scribe.pen.put_head(0, header.word());
    scribe.count();
}

fn bad_length(scribe: &mut Scribe<'_>) {
    let len = scribe
        .random
        .of(&[0, 1, 56, 57, 1080, 1081, 1082, 2808, 2809, 4095]);
    let mut header = scribe
        .pen
        .header(scribe.random.of(&[0, 0, REPLY, BATCH]), len, NOTE);
    header.multi = scribe.random.of(&[true, true, false]);
    header.restart = scribe.random.once_in(2);
    lie(scribe, header);
}

fn bad_kind(scribe: &mut Scribe<'_>) {
    let mut header = scribe
        .pen
        .header(scribe.random.of(&[0, BATCH, 6, 7]), 8, NOTE);
    header.flags = scribe.random.next() & 7;
    header.wanted = scribe.random.once_in(2);
    lie(scribe, header);
}

fn bad_jump(scribe: &mut Scribe<'_>) {
    let here = scribe.pen.head.slot;
    let slots = [
        0,
        here,
        here + 1,
        here + 2,
        STARTS - 1,
        STARTS,
        STARTS + 16,
        184,
        0xf_ffff,
    ];
    let slot = scribe.random.of(&slots);
    let mut marker = scribe.pen.header(JUMP, 0, 0);
    marker.credit = slot as u64;
    // Or to a marker that leads on, or back.
    if slot < STARTS && scribe.random.once_in(2) {
        let mut next = marker;
        next.credit = scribe.random.of(&slots) as u64;
        scribe.pen.own.put(RING_LINE + slot, 0, next.word());
        scribe.count();
    }
    lie(scribe, marker);
}

fn bad_batch(scribe: &mut Scribe<'_>) {
    let len: usize = scribe.random.of(&[0, 7, 8, 16, 56, 1080]);
    let inner = [0, 1, 8, 40, 56, 1072, 1073, 0xffff, 0xfff8];
    for word in 1..1 + len.div_ceil(8) {
        let (inner, handler) = (scribe.random.of(&inner), scribe.random.of(&HANDLERS));
        let line = RING_LINE + scribe.pen.head.slot + word / 8;
        scribe
            .pen
            .own
            .put(line, word % 8, inner | u64::from(handler) << 48);
        scribe.count();
    }
    let header = scribe.pen.header(BATCH, len, 0);
    lie(scribe, header);
}

fn bad_reply(scribe: &mut Scribe<'_>) {
    let call = (scribe.pen.tail.messages as u16).wrapping_sub(scribe.random.below(3) as u16);
    let (kind, len) = (
        1 + scribe.random.below(3) as u64,
        scribe.random.of(&LENGTHS),
    );
    let header = scribe.pen.header(kind, len, call);
    lie(scribe, header);
}

/// Values near a count, and far from it.
fn near(scribe: &mut Scribe<'_>, count: u64) -> u64 {
    let off = scribe.random.of(&[
        1,
        2,
        17,
        64,
        150,
        1 << 19,
        1 << 20,
        1 << 32,
        1 << 63,
        u64::MAX,
    ]);
    match scribe.random.once_in(2) {
        true => count.wrapping_add(off),
        false => count.wrapping_sub(off),
    }
}

fn bad_credit(scribe: &mut Scribe<'_>) {
    let mut header = scribe.pen.header(0, 8, ASK);
    header.credit = near(scribe, scribe.pen.tail.count);
    header.wanted = true;
    let restart = scribe.random.once_in(2);
    scribe.pen.say(header, &[9], restart);
    scribe.count();
}

fn cursor_near(scribe: &mut Scribe<'_>) {
    let consumed = near(scribe, scribe.pen.tail.count);
    let messages = near(scribe, scribe.pen.head.messages);
    scribe.pen.own.put(CURSOR_LINE, 1, messages);
    scribe.pen.own.publish(CURSOR_LINE, 0, consumed);
    scribe.count();
    scribe.count();
    // Until the victim has looked: it does when its ring is full.
    for _ in 0..32 {
        if !scribe.is_open() {
            return;
        }
        seen_words(scribe);
    }
}

/// Calls without reading an answer: the room for replies ends.
fn too_many_calls(scribe: &mut Scribe<'_>) {
    for _ in 0..20_000 {
        if !scribe.is_open() {
            return;
        }
        let mut header = scribe.pen.header(0, scribe.random.of(&[8, 56]), ASK);
        header.wanted = true;
        match scribe.pen.say(header, &[9], false) {
            true => scribe.count(),
            false => std::hint::spin_loop(),
        }
    }
}

/// Goes on behind the last slot in which a message may start.
fn overrun(scribe: &mut Scribe<'_>) {
    for slot in scribe.pen.head.slot..STARTS + 16 {
        let mut header = scribe.pen.header(0, 8, NOTE);
        header.restart = scribe.random.once_in(1000);
        scribe.pen.own.put(RING_LINE + slot, 0, header.word());
        scribe.count();
    }
}

/// The right tag, or the next one, and nothing else that is right, in all slots that come next.
fn random_headers(scribe: &mut Scribe<'_>) {
    for _ in 0..16 << scribe.random.below(5) {
        let tag = match scribe.random.once_in(4) {
            true => next_tag(scribe.pen.head.tag),
            false => scribe.pen.head.tag,
        };
        let slot = (scribe.pen.head.slot + scribe.random.below(20)) % STARTS;
        let slot = slot * usize::from(tag == scribe.pen.head.tag);
        let value = scribe.random.next() & !0xff | u64::from(tag);
        // Half of them with a kind that there is.
        let value = value & !(0xf600 * (scribe.random.next() & 1));
        scribe.pen.own.put(RING_LINE + slot, 0, value);
        scribe.count();
    }
}

/// All of the segment, its cursor among it, several times.
fn own_segment(scribe: &mut Scribe<'_>) {
    for _ in 0..2 << scribe.random.below(4) {
        for _ in 0..1024 {
            own_word(scribe, true);
        }
        if !scribe.is_open() {
            return;
        }
    }
}

/// Ends it in one of the ways in which that can be done without a lie in a ring, or with too many words.
fn leave(scribe: &mut Scribe<'_>) {
    match scribe.random.below(4) {
        0 => {
            for _ in 0..1 + scribe.random.below(200) {
                scribe.babble(&[0xaa; 100]);
            }
        }
        1 => {
            scribe.pen.own.put(STATE_LINE, 1, 1);
            scribe.left = true;
        }
        2 => scribe.left = true,
        _ => {
            let value = scribe.random.next();
            scribe.pen.own.put(STATE_LINE, 1, value);
        }
    }
    if scribe.left {
        let _ = rustix::net::shutdown(&scribe.socket, Shutdown::Both);
    }
    // Whatever it says now, the victim has not looked yet.
    own_words(scribe);
    seen_words(scribe);
}
