//! A port's frames: those that it has lent to the peer, and those that it has of the peer.

use crate::descriptor::{Descriptor, Outgoing};
use crate::frames::limits::{cost_of_copy, is_a_message, shared_bytes};
use crate::frames::pool::{Name, note_last};
use crate::frames::received::{copy_parts, lap_tag, place};
use crate::frames::{
    Courier, Frame, FrameError, Frozen, GENERATIONS, Granted, Held, More, PART_BYTES, Part, Pool,
    PoolAudit, Received, Returns,
};
use crate::layout::{MAX_GRANTED, MAX_MESSAGE, MAX_PARTS, MAX_SEGMENTS, RETURNS};
use crate::lines::{OwnLines, PeerLine};
use crate::port::Port;
use crate::{Counter, PeerFault, TrySendError};
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell, UnsafeCell};

/// While fewer are lent, and one is free, it is not looked whether any has come back: that takes a line from the peer.
const PATIENT: usize = 8;

/// Bytes of the next frame that are fetched while a message is on its way: in the nearest cache they take no time if nobody has read the
/// last ones. Of messages that are copied into frames more: that writes all of them, and takes as long as fetching them does.
const FETCHED: usize = 16 << 10;
const FETCHED_COPIED: usize = 256 << 10;

/// Looks until memory that a message names is taken to be not there: as many as all that a connection holds takes, and then some. Without a
/// bound somebody who still has a dead peer's connection could keep its end from being told.
const MOST_LOOKS: u32 = 256;

/// A frame that is lent over this channel.
#[derive(Clone, Copy)]
struct Lent {
    /// What the peer says when it gives it back, without the tag.
    word: u64,
    /// The memory, by the number under which the peer knows it.
    segment: u16,
    name: Name,
    /// Bytes of it that count against the quota.
    shared: usize,
}

/// What a port can do with frames.
pub(super) struct Equipment {
    pub(super) pool: Rc<Pool>,
    pub(super) courier: Box<dyn Courier>,
    /// Bytes of the longest message.
    most: usize,
}

pub(crate) struct Loans {
    pub(super) equipment: Option<Equipment>,
    /// Memory that the peer has from us, by the numbers under which it knows it.
    given: RefCell<Vec<(Rc<Pool>, u16)>>,
    /// Of which of it the last two frames were that were looked for.
    last_given: Cell<[usize; 2]>,
    /// Bytes of it.
    passed: Cell<usize>,
    lent: RefCell<Vec<Lent>>,
    /// Bytes of those that are shared, and how many there may be: see `limits.rs`.
    pub(super) shared: Cell<usize>,
    pub(super) quota: Cell<usize>,
    /// Words of the peer's free ring that were read.
    collected: Cell<u64>,
    /// One of them named what the peer did not have.
    disbelieved: Cell<bool>,
    /// Memory that we have from the peer, by its numbers.
    pub(super) shelf: RefCell<Vec<Rc<Granted>>>,
    /// Bytes of it.
    pub(super) taken: Cell<usize>,
    /// The parts of the message that is being handled, and which message that is.
    parts: RefCell<Vec<Held>>,
    parts_of: Cell<Option<u64>>,
    /// The same as private bytes, if somebody has asked for them.
    gathered: UnsafeCell<Vec<u8>>,
    is_gathered: Cell<bool>,
    pub(crate) returns: Rc<Returns>,
    /// See [`Port::extra_cost`].
    pub(super) cost: Cell<usize>,
    /// Looks at the message at the head of the ring that did not find its memory yet.
    looks: Cell<u32>,
    /// What is still to be made ready: for a message of so many bytes at most so many.
    to_prepare: Cell<Option<(usize, usize)>>,
}

impl Loans {
    pub(crate) fn new(own: OwnLines) -> Loans {
        Loans {
            equipment: None,
            given: RefCell::default(),
            last_given: Cell::default(),
            passed: Cell::new(0),
            lent: RefCell::default(),
            shared: Cell::new(0),
            quota: Cell::new(usize::MAX),
            collected: Cell::new(0),
            disbelieved: Cell::new(false),
            shelf: RefCell::default(),
            taken: Cell::new(0),
            parts: RefCell::default(),
            parts_of: Cell::new(None),
            gathered: UnsafeCell::default(),
            is_gathered: Cell::new(false),
            returns: Rc::new(Returns::new(own)),
            cost: Cell::new(0),
            looks: Cell::new(0),
            to_prepare: Cell::new(None),
        }
    }

    pub(crate) fn collected(&self) -> u64 {
        self.collected.get()
    }
}

impl Drop for Loans {
    fn drop(&mut self) {
        for lent in self.lent.take() {
            if let Some((pool, _)) = self.given.borrow().get(usize::from(lent.segment)) {
                pool.take_back(lent.name);
            }
        }
    }
}

impl Port {
    /// Gives the port what it needs for frames. Without it messages above [`Layout::max_inline`](crate::Layout::max_inline) bytes
    /// are refused in both directions.
    pub fn equip(&mut self, pool: Rc<Pool>, courier: impl Courier + 'static) {
        self.equip_up_to(MAX_MESSAGE, pool, courier);
    }

    /// The same, for messages of at most `most` bytes. Those that need no more than a slot, and those in a batch, are sent all the same.
    pub fn equip_up_to(&mut self, most: usize, pool: Rc<Pool>, courier: impl Courier + 'static) {
        self.frames.equipment = Some(Equipment {
            pool,
            courier: Box::new(courier),
            most,
        });
    }

    /// Bytes of the longest message that this port sends.
    pub fn max_message(&self) -> usize {
        let equipment = self.frames.equipment.as_ref();
        equipment.map_or(self.layout().max_inline(), |has| has.most)
    }

    /// A frame of `len` bytes from this channel's own pool, which no other peer can read.
    pub fn frame(&self, len: usize) -> Result<Frame, FrameError> {
        let equipment = self.frames.equipment.as_ref().ok_or(FrameError::None)?;
        let max = equipment.most;
        if len > max {
            return Err(FrameError::TooLarge { len, max });
        }
        let returned_first = equipment.pool.prefers_returned(len) && self.has_returns();
        if !returned_first
            && self.lent() < PATIENT
            && let Some(frame) = equipment.pool.ready_frame(len)
        {
            return Ok(frame);
        }
        self.collect();
        let frame = equipment.pool.frame(len);
        if frame.is_err() {
            self.take_credit();
        }
        frame
    }

    /// Sends frames as one message, if there is room, without waiting. The caller drops them then: from now on they are lent, and
    /// come back when the receiver has done with them.
    pub fn try_lend<F: AsRef<Frame>>(
        &self,
        out: Outgoing,
        frames: &[F],
    ) -> Result<(), TrySendError> {
        is_a_message(frames, self.max_message())?;
        self.may_lend(out, frames)?;
        let lent = match frames {
            [frame] => self.lend_one(out, frame.as_ref()),
            _ => self.lend_listed(out, frames),
        };
        match lent {
            Err(TrySendError::Frame(FrameError::Foreign)) => self.send_copied(out, frames),
            other => other,
        }
    }

    /// What others share is copied where the other side of the rings is a device.
    #[cold]
    fn send_copied(&self, out: Outgoing, frames: &[impl AsRef<Frame>]) -> Result<(), TrySendError> {
        let copies = |has: &Equipment| has.courier.copies();
        let all = frames.iter().map(AsRef::as_ref);
        let shared = all.clone().all(|frame| frame.pool().is_shared());
        if !shared || !self.frames.equipment.as_ref().is_some_and(copies) {
            return Err(FrameError::Foreign.into());
        }
        let bytes: Vec<u8> = all.flat_map(|frame| frame.iter().copied()).collect();
        self.try_send(out, &bytes)
    }

    /// What the peer is told of a frame, and what is noted of it.
    #[inline(always)]
    fn loan_of(&self, frame: &Frame) -> Result<([u8; PART_BYTES], Lent), FrameError> {
        let segment = self.number_of(frame)?;
        let (name, (begin, len)) = (frame.name(), frame.place());
        let part = Part {
            segment,
            slot: name.slot,
            generation: frame.pool().generation(name),
            begin,
            len,
        };
        let lent = Lent {
            word: part.return_word() >> 8,
            segment,
            name,
            shared: shared_bytes(frame),
        };
        Ok((part.to_bytes(), lent))
    }

    /// The usual case of [`lend_listed`](Self::lend_listed): to clear a list of all that are possible takes 80 ns.
    #[inline(always)]
    fn lend_one(&self, out: Outgoing, frame: &Frame) -> Result<(), TrySendError> {
        let (part, lent) = self.loan_of(frame)?;
        // Noted before it is published: whoever looks at the ledger finds no frame that the peer has and nobody has lent.
        self.frames.lent.borrow_mut().push(lent);
        let sent = self.try_send(out.framed(), &part);
        if sent.is_err() {
            self.frames.lent.borrow_mut().pop();
            return sent;
        }
        frame.pool().lend(lent.name);
        let shared = self.frames.shared.get() + lent.shared;
        self.frames.shared.set(shared);
        Ok(())
    }

    fn lend_listed<F: AsRef<Frame>>(
        &self,
        out: Outgoing,
        frames: &[F],
    ) -> Result<(), TrySendError> {
        let mut list = [[0; PART_BYTES]; MAX_PARTS];
        let mut lent = [None; MAX_PARTS];
        let all = frames.iter().map(AsRef::as_ref);
        for ((frame, bytes), lent) in all.clone().zip(&mut list).zip(&mut lent) {
            let (part, loan) = self.loan_of(frame)?;
            *bytes = part;
            *lent = Some(loan);
        }
        let before = self.frames.lent.borrow().len();
        self.frames.lent.borrow_mut().extend(lent.iter().flatten());
        let list = list.get(..frames.len()).unwrap_or_default();
        let sent = self.try_send(out.framed(), list.as_flattened());
        if sent.is_err() {
            self.frames.lent.borrow_mut().truncate(before);
            return sent;
        }
        for frame in all {
            frame.pool().lend(frame.name());
        }
        let shared: usize = lent.iter().flatten().map(|lent| lent.shared).sum();
        self.frames.shared.set(self.frames.shared.get() + shared);
        Ok(())
    }

    /// Lends a frame to one receiver of several. The caller drops it when the last has been sent it.
    pub fn try_publish(&self, out: Outgoing, frame: &Frozen) -> Result<(), TrySendError> {
        self.try_lend(out, core::slice::from_ref(frame))
    }

    /// Whether [`try_publish`](Self::try_publish) would find room now. Passes the frame's memory on, so that only a fault, or the
    /// channel's end, can keep it from being sent if nothing else is sent before.
    pub fn can_publish(&self, out: Outgoing, frame: &Frozen) -> Result<(), TrySendError> {
        self.has_room(out)?;
        self.may_lend(out, core::slice::from_ref(frame))?;
        self.number_of(&frame.0)?;
        Ok(())
    }

    /// Sends a message that is too long for the ring: copied into a frame.
    #[cold]
    #[inline(never)]
    pub(crate) fn send_framed(&self, out: Outgoing, payload: &[u8]) -> Result<(), TrySendError> {
        // Whoever tries again and again while the ring is full is not to copy all of it each time.
        if payload.len() <= self.max_message()
            && let Err(error) = self.has_room(out)
        {
            // What came back is looked at all the same, and what is wrong about it found.
            self.collect();
            return Err(error);
        }
        let mut frame = match self.frame(payload.len()) {
            Ok(frame) => frame,
            Err(FrameError::None | FrameError::TooLarge { .. }) => {
                let (len, max) = (payload.len(), self.max_message());
                return Err(TrySendError::TooLarge { len, max });
            }
            Err(error) => {
                self.counters.add(Counter::Full);
                return Err(error.into());
            }
        };
        frame.copy_from_slice(payload);
        self.try_lend(out, core::slice::from_ref(&frame))?;
        if out.is_call() || out.is_answer() {
            self.prepare_next_up_to(FETCHED_COPIED, payload.len());
        }
        Ok(())
    }

    /// For after a call or an answer of `len` bytes in frames, while it is on its way: takes back what has come back, and makes the frame
    /// ready that will be handed out next for as many bytes.
    pub fn prepare_next(&self, len: usize) {
        // Of much longer ones that is little, and they do not stay in a cache that long.
        let most = if len <= 16 * FETCHED { FETCHED } else { 0 };
        self.prepare_next_up_to(most, len);
    }

    fn prepare_next_up_to(&self, most: usize, len: usize) {
        self.frames.to_prepare.set(Some((len, most)));
        // Who answers a message that lies in frames gives these back before: the peer may want to make them ready, too.
        if self.frames.parts.borrow().is_empty() {
            self.fetch_next(self.holds_message());
        }
    }

    /// `handling` if the ring is still at the message that was handled last.
    fn fetch_next(&self, handling: bool) {
        let Some((len, most)) = self.frames.to_prepare.take() else {
            return;
        };
        self.collect();
        if let Some(equipment) = &self.frames.equipment {
            let came = || match handling {
                true => self.is_followed(),
                false => self.has_arrival(),
            };
            equipment.pool.fetch_next(len, most, came);
        }
    }

    /// The number under which the peer knows the memory of this frame; passes it on if it does not know it yet.
    fn number_of(&self, frame: &Frame) -> Result<u16, FrameError> {
        let (pool, slab) = (frame.pool(), frame.name().slab);
        let known = |(of, n): &(Rc<Pool>, u16)| *n == slab && Rc::ptr_eq(of, pool);
        let mut given = self.frames.given.borrow_mut();
        // Mostly that of the last frame, or of the one before: there may be dozens.
        let mut last = self.frames.last_given.get().into_iter();
        if let Some(last) = last.find(|last| given.get(*last).is_some_and(known)) {
            return Ok(last as u16);
        }
        let number = match given.iter().position(known) {
            Some(number) => number as u16,
            None => self.give(&mut given, pool, slab)?,
        };
        note_last(&self.frames.last_given, number.into());
        Ok(number)
    }

    #[cold]
    fn give(
        &self,
        given: &mut Vec<(Rc<Pool>, u16)>,
        pool: &Rc<Pool>,
        slab: u16,
    ) -> Result<u16, FrameError> {
        let equipment = self.frames.equipment.as_ref().ok_or(FrameError::None)?;
        if !Rc::ptr_eq(pool, &equipment.pool) && !pool.is_shared() {
            return Err(FrameError::Foreign);
        }
        let number = given.len();
        let (memory, stride) = pool.slab(slab).ok_or(FrameError::Foreign)?;
        let passed = self.frames.passed.get() + memory.bytes();
        if number >= MAX_SEGMENTS || passed > MAX_GRANTED {
            return Err(FrameError::Granted);
        }
        let granted = equipment.courier.grant(&*memory, number as u16, stride);
        granted.inspect_err(|_| self.take_credit())?;
        self.frames.passed.set(passed);
        given.push((Rc::clone(pool), slab));
        Ok(number as u16)
    }

    /// Takes back the frames that the peer has done with. One load if there are none.
    ///
    /// After a fault, too, unless the peer has given back what it did not have.
    pub fn collect(&self) {
        // At most as many as there are words in a lap.
        for _ in 0..RETURNS {
            let number = self.frames.collected.get();
            let (line, word) = place(number);
            let found = self.peer.line(line).load(word);
            if found & 0xff != lap_tag(number) || self.frames.disbelieved.get() {
                return;
            }
            // Acquire: pairs with the Release in `Returns::give_back`; what we write to the frame now, its reader does not see.
            PeerLine::acquire();
            self.frames.collected.set(number + 1);
            if !self.took_back(found >> 8) {
                self.frames.disbelieved.set(true);
                let [segment, slot] = [found >> 8, found >> 24].map(|bits| bits as u16);
                self.fail(PeerFault::Return { segment, slot });
                return;
            }
        }
    }

    /// Ends a loan; `false` if there is no such loan.
    fn took_back(&self, word: u64) -> bool {
        let mut lent = self.frames.lent.borrow_mut();
        let is_it = |lent: &Lent| lent.word == word;
        let Some(found) = lent.iter().position(is_it) else {
            return false;
        };
        let ended = lent.remove(found);
        self.frames
            .shared
            .set(self.frames.shared.get() - ended.shared);
        let given = self.frames.given.borrow();
        let Some((pool, _)) = given.get(usize::from(ended.segment)) else {
            return false;
        };
        pool.take_back(ended.name);
        true
    }

    /// Whether the peer has given frames back that were not taken yet. Changes nothing.
    pub fn has_returns(&self) -> bool {
        let number = self.frames.collected.get();
        let (line, word) = place(number);
        self.peer.line(line).load(word) & 0xff == lap_tag(number)
    }

    /// Calls its owner whenever a message in frames is given back that was kept ([`Received`]), wherever that is: then nobody has told the
    /// peer, who may sleep until it has room, unless a drain follows. Only the first one is called.
    pub fn tell_returns(&self, tell: impl Fn() + 'static) {
        self.frames.returns.set_tell(tell);
    }

    /// Whether frames of the peer were given back since this was last asked.
    pub fn gave_back(&self) -> bool {
        self.frames.returns.take_fresh()
    }

    /// How many frames the peer has of ours, as far as is known.
    pub fn lent(&self) -> usize {
        self.frames.lent.borrow().len()
    }

    /// How many frames of the peer this side has: those of the message that is being handled, and those that were kept.
    pub fn frames_held(&self) -> usize {
        self.frames.returns.held()
    }

    /// Whether the peer has frames of a pool that others share.
    pub fn has_lent_shared(&self) -> bool {
        self.frames.shared.get() > 0
    }

    /// Where the frames of this channel's own pool are.
    pub fn audit_frames(&self) -> PoolAudit {
        let equipment = self.frames.equipment.as_ref();
        equipment.map_or_else(PoolAudit::default, |has| has.pool.audit())
    }

    /// Takes the message whose header was just found, and looks up its parts; nothing of them is believed before this. `false` if it is not
    /// known yet whether they are there, because so much has come beside the ring. Then, and if they are a fault, it was not taken.
    pub(crate) fn take_framed(&self, found: Descriptor) -> Result<bool, PeerFault> {
        let (before, credit) = (self.header.replace(found), self.rx.credit.get());
        let taken = self.take_parts(found);
        if taken != Ok(true) {
            self.header.set(before);
            self.rx.credit.set(credit);
        }
        taken
    }

    fn take_parts(&self, header: Descriptor) -> Result<bool, PeerFault> {
        let number = Some(self.messages_seen());
        if self.frames.parts_of.get() == number {
            return Ok(true);
        }
        self.copy_out(header);
        let list = self.scratch.bytes(header.payload_len());
        let (list, rest) = list.as_chunks::<PART_BYTES>();
        if list.is_empty() || list.len() > MAX_PARTS || !rest.is_empty() {
            return Err(PeerFault::Length { len: header.len() });
        }
        let mut parts = self.frames.parts.borrow_mut();
        parts.clear();
        let segments = list.iter().map(|bytes| Part::from_bytes(*bytes).segment);
        let last = segments.max().map_or(0, usize::from);
        let is_there = || last < self.frames.shelf.borrow().len();
        if !is_there() {
            // Once for a message, however many parts it has.
            let more = self.take_grants()?;
            // What is being made ready will be, or will be a fault: that is waited for.
            let looks = self.frames.looks.get() + u32::from(more == More::Now);
            if more != More::No && !is_there() && looks < MOST_LOOKS {
                self.frames.looks.set(looks);
                return Ok(false);
            }
        }
        self.frames.looks.set(0);
        for bytes in list {
            parts.push(self.look_up(Part::from_bytes(*bytes))?);
        }
        let len: usize = parts.iter().map(Held::len).sum();
        if len > MAX_MESSAGE {
            return Err(PeerFault::Length { len });
        }
        self.frames.cost.set(parts.len() - 1);
        self.frames.returns.took(parts.len());
        self.frames.parts_of.set(number);
        self.frames.is_gathered.set(false);
        Ok(true)
    }

    fn look_up(&self, part: Part) -> Result<Held, PeerFault> {
        let (segment, slot) = (part.segment, part.slot);
        let number = usize::from(segment);
        let shelf = self.frames.shelf.borrow();
        let place = (part.begin as usize, part.len as usize);
        let word = part.return_word();
        shelf
            .get(number)
            .and_then(|memory| Held::new(memory, usize::from(slot), place, word))
            .ok_or(PeerFault::Frame { segment, slot })
    }

    /// Gives the parts of the message that was handled back, if nobody has taken them.
    #[cold]
    #[inline(never)]
    pub(crate) fn end_parts(&self) {
        let mut parts = self.frames.parts.borrow_mut();
        for part in parts.iter() {
            self.frames.returns.give_back(part.word());
        }
        parts.clear();
        drop(parts);
        self.frames.parts_of.set(None);
        self.fetch_next(true);
    }

    /// Bytes of the message being handled.
    #[cold]
    pub(crate) fn parts_len(&self) -> usize {
        self.frames.parts.borrow().iter().map(Held::len).sum()
    }

    /// The message being handled, to be kept as long as its taker likes.
    pub(crate) fn take_received(&self) -> Option<Received> {
        let mut parts = self.frames.parts.borrow_mut();
        Received::new(&mut parts, &self.frames.returns)
    }

    /// Copies the message being handled into private memory, once.
    #[cold]
    #[inline(never)]
    pub(crate) fn gather(&self) {
        /// What is kept for the next message although it may need much less.
        const KEPT: usize = 1 << 20;
        if self.frames.is_gathered.replace(true) {
            return;
        }
        let parts = self.frames.parts.borrow();
        let len = parts.iter().map(Held::len).sum();
        self.frames
            .cost
            .set(self.frames.cost.get() + cost_of_copy(len));
        // SAFETY: aliasing: slices of it are given out only while `is_gathered` is set, and it was clear until a few lines above:
        // since `take_parts` of this message, before which the port was taken exclusively and so every older slice ended. The type
        // is !Sync. lifetime: the reference ends with this function.
        let gathered = unsafe { &mut *self.frames.gathered.get() };
        if gathered.capacity() > KEPT.max(2 * len) {
            *gathered = Vec::new();
        }
        gathered.resize(len, 0);
        copy_parts(parts.iter(), 0, gathered);
    }

    /// What was gathered last.
    #[cold]
    #[inline(never)]
    pub(crate) fn gathered(&self) -> &[u8] {
        if !self.frames.is_gathered.get() {
            return &[];
        }
        // SAFETY: aliasing: the only writer is `gather`, which writes only while `is_gathered` is clear. lifetime: the slice borrows
        // the port, which must be borrowed exclusively before the flag is cleared again.
        unsafe { &*self.frames.gathered.get() }
    }
}

/// Of a return word without its tag: the generation is the highest part.
const _: () = assert!(GENERATIONS << 32 >> 32 == GENERATIONS);
