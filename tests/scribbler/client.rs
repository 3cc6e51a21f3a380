//! The third party: an honest client of the same victim that calls without a pause and checks every answer.

use crate::board::{Board, Random, Word, own_time, pin};
use crate::support::{PATIENCE, patiently};
use crate::victim::{ECHO, transformed};
use tightbeam::{Endpoint, MAX_INLINE, Wait};
use tightbeam_sys::clock::TickClock;

/// Calls between two looks at the board.
const STRETCH: u64 = 8;
/// Of these, between two looks at the CPU clock, which is a system call.
const LOOK: u64 = 32;
/// During a call that takes longer, this process or the victim has lost its CPU to somebody: no poll takes so long.
pub(crate) const SLOW: u64 = crate::times::BOUND;

pub(crate) fn run(board: &Board, address: &str) {
    pin(1);
    let clock = TickClock::calibrate();
    board.set(Word::ClientPid, u64::from(std::process::id()));
    let mut client = patiently(|| {
        let builder = Endpoint::builder().deadline(PATIENCE).wait(Wait::Spin);
        builder.connect(address).ok()
    });
    let mut random = Random::new(board.get(Word::Seed) ^ 0xc11e);
    let (mut asked, mut payload) = (0u64, Vec::with_capacity(MAX_INLINE));
    let mut slow = 0;
    while board.get(Word::StopClient) == 0 {
        for _ in 0..STRETCH {
            let len = match random.once_in(16) {
                true => random.below(MAX_INLINE + 1),
                false => 8 + random.below(49),
            };
            payload.clear();
            payload.extend(asked.to_ne_bytes().iter().cycle().take(len));
            let start = clock.now();
            let answer = client.call(ECHO, &payload);
            let took = clock.ns(clock.now().wrapping_sub(start)) as u64;
            slow += u64::from(took >= SLOW);
            match answer {
                Ok(answer) if answer.iter().copied().eq(transformed(&payload)) => {}
                Ok(_) => board.add(Word::Wrong, 1),
                Err(error) => {
                    eprintln!("call {asked}: {error}");
                    board.add(Word::Lost, 1);
                    return;
                }
            }
            asked += 1;
        }
        board.set(Word::Slow, slow);
        board.set(Word::Asked, asked);
        if asked.is_multiple_of(STRETCH * LOOK) {
            board.set(Word::Ran, own_time());
            board.set(Word::AskedThen, asked);
        }
    }
}
