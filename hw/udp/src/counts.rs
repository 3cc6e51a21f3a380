//! What a device counts: one enum, one label each.

use rustix::io::Errno;

macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident = $label:literal,)*) => {
        /// What is counted since the device was opened.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Count { $($(#[$doc])* $name,)* }

        impl Count {
            const ALL: &'static [Count] = &[$(Count::$name,)*];

            fn label(self) -> &'static str {
                match self { $(Count::$name => $label,)* }
            }
        }
    };
}

counts! {
    /// Packets that have left the send ring, whatever became of them.
    Sent = "sent",
    /// Packets handed over.
    Received = "received",
    /// System calls that send.
    SendCalls = "send_calls",
    /// System calls that receive.
    ReceiveCalls = "receive_calls",
    /// Times the kernel's send buffer was full; nothing is lost by it.
    Busy = "send_buffer_full",
    /// Longer than the way to the host allows.
    TooLong = "lost_too_long",
    /// Nobody has that port there.
    Unreachable = "lost_port_unreachable",
    /// There is no way to the host, or it does not answer.
    NoRoute = "lost_no_route",
    /// The interface is down or gone.
    Down = "lost_interface_down",
    /// The queue of an interface was full, or the kernel had no memory.
    NoRoom = "lost_queue_full",
    /// A filter of this host or of another forbids it.
    Forbidden = "lost_forbidden",
    /// Refused for another reason.
    Other = "lost_other",
    /// Arrived, but longer than any packet that is taken.
    Truncated = "lost_truncated",
}

/// What the kernel dropped because nobody had taken it in time; asked for when a status is.
pub(crate) const OVERFLOW: &str = "lost_receive_buffer_full";

/// All counts of one device.
#[derive(Debug, Default)]
pub(crate) struct Counts([u64; Count::ALL.len()]);

impl Counts {
    pub(crate) fn add(&mut self, count: Count, more: usize) {
        self.0[count as usize] += more as u64;
    }

    pub(crate) fn get(&self, count: Count) -> u64 {
        self.0[count as usize]
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Count::ALL
            .iter()
            .map(|&count| (count.label(), self.get(count)))
    }
}

/// The cause of a loss, by the error that a call gave or a report had.
pub(crate) fn cause(errno: Errno) -> Count {
    match errno {
        Errno::MSGSIZE => Count::TooLong,
        Errno::CONNREFUSED => Count::Unreachable,
        Errno::HOSTUNREACH | Errno::NETUNREACH | Errno::HOSTDOWN | Errno::ADDRNOTAVAIL => {
            Count::NoRoute
        }
        Errno::NETDOWN | Errno::NODEV | Errno::NXIO => Count::Down,
        Errno::NOBUFS | Errno::NOMEM => Count::NoRoom,
        Errno::PERM | Errno::ACCESS => Count::Forbidden,
        _ => Count::Other,
    }
}
