//! Two pipes, one for each direction.

use super::wire::{CHUNK, Half, Sink, Source, Stream, transfer};
use super::{Answering, Class, Lane, Offer, Path, Station, take};
use crate::bench::fault::Broken;
use crate::bench::spec::{Job, Pause, Spec, Wait};
use crate::bench::watch::Release;
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use std::os::fd::OwnedFd;
use std::path::Path as FilePath;

/// What a pipe holds when messages are poured through it: the most that an unprivileged process gets by default.
const CAPACITY: usize = 16 * CHUNK;

pub(crate) struct Pipe {
    pub(crate) coalesced: bool,
}

/// One process's ends.
struct Ends {
    read: OwnedFd,
    write: OwnedFd,
    spinning: Option<Pause>,
}

impl Ends {
    fn new(read: OwnedFd, write: OwnedFd, spec: &Spec) -> Ends {
        let spinning = (spec.wait == Wait::Spin).then_some(spec.pause());
        Ends {
            read,
            write,
            spinning,
        }
    }
}

impl Stream for Ends {
    #[inline(always)]
    fn write(&mut self, bytes: &[u8]) -> Result<usize, Broken> {
        transfer(self.spinning, || rustix::io::write(&self.write, bytes))
    }

    #[inline(always)]
    fn read(&mut self, bytes: &mut [u8]) -> Result<usize, Broken> {
        transfer(self.spinning, || rustix::io::read(&self.read, &mut *bytes))
    }
}

impl Path for Pipe {
    fn name(&self) -> &'static str {
        if self.coalesced {
            "pipe-coalesced"
        } else {
            "pipe"
        }
    }

    fn family(&self) -> &'static str {
        "pipe"
    }

    fn class(&self) -> Class {
        if self.coalesced {
            Class::Packed
        } else {
            Class::Other
        }
    }

    fn does(&self, job: Job, _wait: Wait) -> bool {
        !self.coalesced || job == Job::Rate
    }

    fn offer(&self, spec: &Spec) -> Result<Offer, Broken> {
        // A pipe has no call like recv(MSG_DONTWAIT), so the ends are made non-blocking once.
        let flags = match spec.wait {
            Wait::Spin => PipeFlags::CLOEXEC | PipeFlags::NONBLOCK,
            Wait::Block => PipeFlags::CLOEXEC,
        };
        let (their_read, my_write) = pipe_with(flags)?;
        let (my_read, their_write) = pipe_with(flags)?;
        if spec.job == Job::Rate {
            // A user over the soft limit on pipe pages keeps the default size.
            let _ = fcntl_setpipe_size(&my_write, CAPACITY);
        }
        let ends = Ends::new(my_read, my_write, spec);
        let (job, size, coalesced) = (spec.job, spec.size, self.coalesced);
        Ok(Offer::new([their_read, their_write], move || {
            let lane = match job {
                Job::Rate => Lane::Pour(Box::new(Source::new(ends, size, coalesced))),
                _ => Lane::Exchange(Box::new(Half::new(ends, size))),
            };
            Ok((lane, Release::ByItself))
        }))
    }

    fn join(
        &self,
        spec: &Spec,
        mut fds: Vec<OwnedFd>,
        _: Option<&FilePath>,
    ) -> Result<Box<dyn Station>, Broken> {
        let write = take(&mut fds)?;
        let ends = Ends::new(take(&mut fds)?, write, spec);
        Ok(match spec.job {
            Job::Rate => Box::new(Sink::new(ends, spec.size)),
            _ => Box::new(Answering(Half::new(ends, spec.size))),
        })
    }
}
