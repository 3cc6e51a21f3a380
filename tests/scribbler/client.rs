//! The third party: an honest client of the same victim that calls without a pause and checks every answer.

use crate::board::{Board, Random, Word, own_time, pin};
use crate::support::{PATIENCE, patiently};
use crate::victim::{ECHO, transformed};
use tightbeam::{Endpoint, MAX_MESSAGE, Wait};

/// Calls between two looks at the board.
const STRETCH: u64 = 8;

pub(crate) fn run(board: &Board, address: &str) {
    pin(1);
    board.set(Word::ClientPid, u64::from(std::process::id()));
    let mut client = patiently(|| {
        let builder = Endpoint::builder().deadline(PATIENCE).wait(Wait::Spin);
        builder.connect(address).ok()
    });
    let mut random = Random::new(board.get(Word::Seed) ^ 0xc11e);
    let (mut asked, mut payload) = (0u64, Vec::with_capacity(MAX_MESSAGE));
    while board.get(Word::StopClient) == 0 {
        for _ in 0..STRETCH {
            let len = match random.once_in(16) {
                true => random.below(MAX_MESSAGE + 1),
                false => 8 + random.below(49),
            };
            payload.clear();
            payload.extend(asked.to_ne_bytes().iter().cycle().take(len));
            match client.call(ECHO, &payload) {
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
        board.set(Word::ClientTime, own_time());
        board.set(Word::Asked, asked);
    }
}
