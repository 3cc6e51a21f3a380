//! Counters of one channel: one enum, one label each, private memory.

use core::cell::Cell;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident = $label:literal,)*) => {
        /// What a channel counts. Each drop adds one to exactly one counter (I8).
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Counter { $($(#[$doc])* $name,)* }

        impl Counter {
            /// Every counter, in the order in which they are printed.
            pub const ALL: &'static [Counter] = &[$(Counter::$name,)*];

            /// A stable lower-case name for logs and tools.
            pub const fn label(self) -> &'static str {
                match self { $(Counter::$name => $label,)* }
            }
        }
    };
}

counters! {
    /// Messages put into the send ring: sends, calls and replies.
    Sent = "sent",
    /// Messages taken out of the receive ring: handled, given to their caller, or counted below as dropped.
    Received = "received",
    /// Messages offered to the channel's policy, which took them: each was sent, waits in the queue, or was dropped and counted below.
    Offered = "offered",
    /// Messages dropped because no handler is registered for their index; a caller is told.
    DropNoHandler = "drop_no_handler",
    /// Typed messages dropped because their bytes are not of that type; a caller is told.
    DropMalformed = "drop_malformed",
    /// Messages for a pool of threads dropped because it has as many as it takes; a caller is told.
    DropQueueFull = "drop_queue_full",
    /// Replies dropped because their caller had given up waiting.
    DropLateReply = "drop_late_reply",
    /// Offered messages dropped because there was no room for them.
    DropNewest = "drop_newest",
    /// Offered messages dropped in the queue to keep newer ones instead.
    DropOldest = "drop_oldest",
    /// Offered messages dropped because there was no room for them and the peer was about to be evicted.
    DropEvict = "drop_evict",
    /// Offered messages that were in the queue when the channel ended, or its policy was changed.
    DropQueued = "drop_queued",
    /// Replies that a handler gave to a message that was sent, not called; nothing is sent.
    ReplyUnwanted = "reply_unwanted",
    /// Calls whose handler returned without replying; the caller is told.
    CallUnanswered = "call_unanswered",
    /// Handlers that unwound (panicked): their message counts as handled, and a caller was told that there is no reply.
    HandlerUnwound = "handler_unwound",
    /// Times the send ring had no room.
    Full = "full",
    /// Nanoseconds spent waiting for room to send, or for a frame.
    BlockedNs = "blocked_ns",
    /// Times the send ring started over at its first slot while it was drained (hot set).
    Restarts = "restarts",
    /// Times the peer was asleep and was woken.
    Wakes = "wakes",
}

/// The counters of one channel, each a count since the channel was opened.
#[derive(Default)]
pub struct Counters([Cell<u64>; Counter::ALL.len()]);

impl Counters {
    /// The count so far.
    pub fn get(&self, counter: Counter) -> u64 {
        self.0[counter as usize].get()
    }

    /// Every counter with its value.
    pub fn iter(&self) -> impl Iterator<Item = (Counter, u64)> + '_ {
        Counter::ALL.iter().map(|&c| (c, self.get(c)))
    }

    /// Adds one.
    #[inline(always)]
    pub fn add(&self, counter: Counter) {
        let cell = &self.0[counter as usize];
        cell.set(cell.get() + 1);
    }

    /// Adds so many.
    pub fn add_many(&self, counter: Counter, count: u64) {
        let cell = &self.0[counter as usize];
        cell.set(cell.get().wrapping_add(count));
    }

    pub(crate) fn set(&self, counter: Counter, value: u64) {
        self.0[counter as usize].set(value);
    }
}

/// Those that are not zero, by their labels.
impl core::fmt::Debug for Counters {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let counted = self.iter().filter(|(_, count)| *count > 0);
        f.debug_map()
            .entries(counted.map(|(counter, count)| (counter.label(), count)))
            .finish()
    }
}

impl Clone for Counters {
    fn clone(&self) -> Self {
        Counters(core::array::from_fn(|i| Cell::new(self.0[i].get())))
    }
}
