//! A bare shared word and a futex, without any runtime: the least that two processes need in order to sleep and wake.
//!
//! ```text
//!   block: | turn | message ...  (padded)  | turn | answer ... |
//!            there                            back
//! ```
//!
//! The turn is written after the message, in the same cache line where the message is small. It only blocks: a spinning word is
//! the floor. Both sides write into one block, so there is no protection of one against the other.

use super::{Answering, Class, Initiator, Lane, Offer, Path, Responder, Station, take};
use crate::bench::fault::Broken;
use crate::bench::payload::Sequence;
use crate::bench::spec::{Job, Spec, Wait};
use crate::bench::watch::{Release, called_off};
use std::os::fd::OwnedFd;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tightbeam_sys::block::{SharedBlock, wait_unbounded};
use tightbeam_sys::wake::wake_one;

pub(crate) struct Futex;

/// Words between the directions are a multiple of this: two lines, for CPUs that fetch pairs.
const PADDING: usize = 16;

fn words(size: usize) -> usize {
    size.div_ceil(size_of::<u64>())
}

/// Words of one direction: the turn and the message.
fn stride(size: usize) -> usize {
    (1 + words(size)).next_multiple_of(PADDING)
}

struct Half {
    block: Arc<SharedBlock>,
    /// Where my direction and the other one begin.
    mine: usize,
    theirs: usize,
    size: usize,
    outgoing: Sequence,
    incoming: Sequence,
}

impl Half {
    fn new(block: Arc<SharedBlock>, size: usize, first: bool) -> Half {
        let (mine, theirs) = if first {
            (0, stride(size))
        } else {
            (stride(size), 0)
        };
        Half {
            block,
            mine,
            theirs,
            size,
            outgoing: Sequence::new(),
            incoming: Sequence::new(),
        }
    }

    #[inline(always)]
    fn send(&mut self) {
        let direction = &self.block.words()[self.mine..][..1 + words(self.size)];
        let mut word = self.outgoing.next();
        for place in &direction[1..] {
            place.store(word, Ordering::Relaxed);
            word = word.wrapping_add(1);
        }
        // Release: pairs with the Acquire in `recv`.
        direction[0].store(self.outgoing.count(), Ordering::Release);
        wake_one(&direction[0]);
    }

    #[inline(always)]
    fn recv(&mut self) -> Result<(), Broken> {
        let direction = &self.block.words()[self.theirs..][..1 + words(self.size)];
        let mut expected = self.incoming.next();
        let turn = self.incoming.count();
        // Acquire: pairs with the Release in `send`.
        while direction[0].load(Ordering::Acquire) != turn {
            if called_off() {
                return Err(Broken::CalledOff);
            }
            wait_unbounded(&direction[0], turn - 1);
        }
        let mut same = true;
        for place in &direction[1..] {
            same &= place.load(Ordering::Relaxed) == expected;
            expected = expected.wrapping_add(1);
        }
        match same {
            true => Ok(()),
            false => Err(Broken::Payload {
                message: turn,
                size: self.size,
            }),
        }
    }
}

impl Initiator for Half {
    #[inline(always)]
    fn round_trip(&mut self) -> Result<(), Broken> {
        self.send();
        self.recv()
    }
}

impl Responder for Half {
    #[inline(always)]
    fn answer(&mut self) -> Result<(), Broken> {
        self.recv()?;
        self.send();
        Ok(())
    }
}

impl Path for Futex {
    fn name(&self) -> &'static str {
        "futex"
    }

    fn class(&self) -> Class {
        Class::Other
    }

    fn does(&self, job: Job, wait: Wait) -> bool {
        job != Job::Rate && wait == Wait::Block
    }

    fn offer(&self, spec: &Spec) -> Result<Offer, Broken> {
        let block = Arc::new(SharedBlock::create(2 * stride(spec.size))?);
        let fd = block.fd().try_clone_to_owned()?;
        let size = spec.size;
        Ok(Offer::new([fd], move || {
            let release = Release::Word(Arc::clone(&block), stride(size));
            Ok((
                Lane::Exchange(Box::new(Half::new(block, size, true))),
                release,
            ))
        }))
    }

    fn join(
        &self,
        spec: &Spec,
        mut fds: Vec<OwnedFd>,
        _: Option<&FilePath>,
    ) -> Result<Box<dyn Station>, Broken> {
        let block = SharedBlock::open(take(&mut fds)?, 2 * stride(spec.size))?;
        Ok(Box::new(Answering(Half::new(
            Arc::new(block),
            spec.size,
            false,
        ))))
    }
}
