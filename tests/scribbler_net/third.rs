//! The third parties: honest clients, that call without a pause and check every answer.

use crate::support::{Ledger, PATIENCE, patiently};
use crate::{
    ASKED, ECHO, LOCAL_ASKED, NUMBERED, PACKETS, STOP, THIRD, UNANSWERED, VICTIM, ground, numbered,
};
use std::time::Duration;
use tightbeam::{CallError, Endpoint, Wait};

/// After so long a call of which a packet was lost is given up.
const LOST: Duration = Duration::from_millis(100);

/// Over the network.
pub(crate) fn run(board: &Ledger, address: &str) {
    ground::enter();
    let mut client = patiently(|| {
        let builder = Endpoint::builder().wait(Wait::Park);
        builder.connect(address).ok()
    });
    let channel = client.channels().next().expect("it is open");
    let (mut asked, mut unanswered) = (0, 0);
    loop {
        client.send(NUMBERED, &numbered(asked)).expect("room");
        let question = numbered(asked);
        match client.call_to(channel, ECHO, &question, LOST) {
            Ok(answer) => {
                assert_eq!(answer, question);
                // The last packet has come, so all that were lost are known to be.
                if board.read(STOP) >= THIRD {
                    break;
                }
            }
            Err(CallError::DeadlineExceeded) => unanswered += 1,
            Err(other) => panic!("call {asked}: {other}"),
        }
        asked += 1;
        board.write(UNANSWERED, unanswered);
        board.write(ASKED, asked);
    }
    let status = client.device_status(channel).expect("it is open");
    let packets = status.count("channel_packets_sent").expect("it is counted");
    board.write(PACKETS, packets + 1);
    // Its close would end what is to be counted.
    board.wait_for(STOP, VICTIM);
    patiently(|| {
        client.poll(64);
        client.next_event()
    });
}

/// Through shared memory: nothing of it is ever lost.
pub(crate) fn run_local(board: &Ledger, address: &str) {
    let mut client = patiently(|| {
        let builder = Endpoint::builder().deadline(PATIENCE).wait(Wait::Park);
        builder.connect(address).ok()
    });
    let mut asked = 0;
    while board.read(STOP) < THIRD {
        let question = numbered(asked);
        assert_eq!(client.call(ECHO, &question).expect("an answer"), question);
        asked += 1;
        board.write(LOCAL_ASKED, asked);
    }
}
