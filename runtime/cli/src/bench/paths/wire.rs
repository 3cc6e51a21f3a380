//! What byte streams and datagram sockets have in common: exchanges over a [`Wire`], and rates over a [`Stream`].

use super::{Initiator, Pour, Responder, Station};
use crate::bench::fault::Broken;
use crate::bench::payload::Sequence;
use crate::bench::spec::Pause;
use crate::bench::watch::{called_off, spin};
use rustix::io::Errno;

/// What a receiver of a stream reads at once, and what a coalescing sender writes at once.
pub(super) const CHUNK: usize = 64 * 1024;

/// Sends and receives messages of a known size.
pub(super) trait Wire {
    fn send(&mut self, message: &[u8]) -> Result<(), Broken>;
    /// Fills all of `message`.
    fn recv(&mut self, message: &mut [u8]) -> Result<(), Broken>;
}

/// A stream of bytes, which waits in its own way.
pub(super) trait Stream {
    /// Writes at least one byte.
    fn write(&mut self, bytes: &[u8]) -> Result<usize, Broken>;
    /// Reads at least one byte.
    fn read(&mut self, bytes: &mut [u8]) -> Result<usize, Broken>;
    /// Sends what the kernel still holds back.
    fn flush(&mut self) -> Result<(), Broken> {
        Ok(())
    }
}

impl<S: Stream> Wire for S {
    #[inline(always)]
    fn send(&mut self, message: &[u8]) -> Result<(), Broken> {
        let mut sent = self.write(message)?;
        while sent < message.len() {
            sent += self.write(&message[sent..])?;
        }
        Ok(())
    }

    #[inline(always)]
    fn recv(&mut self, message: &mut [u8]) -> Result<(), Broken> {
        let mut got = self.read(message)?;
        while got < message.len() {
            got += self.read(&mut message[got..])?;
        }
        Ok(())
    }
}

/// Repeats a system call until it has moved something: sleeping in the kernel if `spinning` is `None`, else looking again.
#[inline(always)]
pub(super) fn transfer(
    spinning: Option<Pause>,
    mut call: impl FnMut() -> Result<usize, Errno>,
) -> Result<usize, Broken> {
    let mut once = || match call() {
        Ok(0) => Err(Broken::Closed),
        Ok(count) => Ok(Some(count)),
        Err(Errno::AGAIN | Errno::INTR) => Ok(None),
        Err(errno) => Err(errno.into()),
    };
    if let Some(pause) = spinning {
        return spin(pause, once);
    }
    loop {
        if let Some(count) = once()? {
            return Ok(count);
        }
        if called_off() {
            return Err(Broken::CalledOff);
        }
    }
}

/// One half of an exchange over a wire.
pub(super) struct Half<W> {
    wire: W,
    outgoing: Sequence,
    incoming: Sequence,
    message: Box<[u8]>,
}

impl<W: Wire> Half<W> {
    pub(super) fn new(wire: W, size: usize) -> Half<W> {
        Half {
            wire,
            outgoing: Sequence::new(),
            incoming: Sequence::new(),
            message: vec![0; size].into_boxed_slice(),
        }
    }

    #[inline(always)]
    fn send(&mut self) -> Result<(), Broken> {
        self.outgoing.write(&mut self.message);
        self.wire.send(&self.message)
    }

    #[inline(always)]
    fn recv(&mut self) -> Result<(), Broken> {
        self.wire.recv(&mut self.message)?;
        self.incoming.check(&self.message)
    }
}

impl<W: Wire> Initiator for Half<W> {
    #[inline(always)]
    fn round_trip(&mut self) -> Result<(), Broken> {
        self.send()?;
        self.recv()
    }
}

impl<W: Wire> Responder for Half<W> {
    #[inline(always)]
    fn answer(&mut self) -> Result<(), Broken> {
        self.recv()?;
        self.send()
    }
}

/// Sends messages over a stream: one write each, or as many as fit into a chunk.
pub(super) struct Source<S> {
    stream: S,
    sequence: Sequence,
    size: usize,
    /// Messages of one write.
    packed: usize,
    chunk: Box<[u8]>,
}

impl<S: Stream> Source<S> {
    pub(super) fn new(stream: S, size: usize, coalesced: bool) -> Source<S> {
        let packed = if coalesced { (CHUNK / size).max(1) } else { 1 };
        Source {
            stream,
            sequence: Sequence::new(),
            size,
            packed,
            chunk: vec![0; packed * size].into_boxed_slice(),
        }
    }
}

impl<S: Stream> Pour for Source<S> {
    fn run(&mut self, count: u32) -> Result<(), Broken> {
        let mut left = count as usize;
        while left > 0 {
            let messages = left.min(self.packed);
            let chunk = &mut self.chunk[..messages * self.size];
            for message in chunk.chunks_exact_mut(self.size) {
                self.sequence.write(message);
            }
            self.stream.send(chunk)?;
            left -= messages;
        }
        self.stream.flush()
    }
}

/// Receives messages over a stream in large reads, and looks at each message.
pub(super) struct Sink<S> {
    stream: S,
    sequence: Sequence,
    size: usize,
    chunk: Box<[u8]>,
}

impl<S: Stream> Sink<S> {
    pub(super) fn new(stream: S, size: usize) -> Sink<S> {
        let chunk = vec![0; CHUNK + size].into_boxed_slice();
        Sink {
            stream,
            sequence: Sequence::new(),
            size,
            chunk,
        }
    }
}

impl<S: Stream> Station for Sink<S> {
    fn serve(&mut self, count: u32) -> Result<u32, Broken> {
        let mut left = count as usize;
        let mut held = 0;
        while left > 0 {
            held += self.stream.read(&mut self.chunk[held..])?;
            let whole = held / self.size;
            for message in self.chunk[..whole * self.size].chunks_exact(self.size) {
                self.sequence.check(message)?;
            }
            self.chunk.copy_within(whole * self.size..held, 0);
            held -= whole * self.size;
            left = left.saturating_sub(whole);
        }
        Ok(count)
    }
}
