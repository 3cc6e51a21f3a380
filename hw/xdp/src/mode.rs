//! Native or generic, copy or zero-copy: what is tried, and in which order.
//!
//! | interface | best | then, unless `strict` |
//! |---|---|---|
//! | a NIC whose driver has zero-copy | native, zero-copy | native, copy; generic, copy |
//! | another NIC | native, copy | generic, copy |
//! | `veth`, `lo` and other virtual ones | generic, copy | |
//!
//! Generic is faster than native on `veth` (no copy into a page in between), and leaves the other end's offloads alone.
//! In generic mode packets are always copied.

use crate::address::{CopyChoice, ModeChoice, Options};
use tightbeam_sys::bpf::Attach;
use tightbeam_sys::link::Link;
use tightbeam_sys::xdp::Copying;

/// Room in front of a packet that puts our header at the start of a cache line: the kernel's 256 bytes, these, and 42 of headers are
/// five lines.
pub(crate) const HEADROOM: u32 = 22;

/// One way to open a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attempt {
    pub(crate) attach: Attach,
    pub(crate) copying: Copying,
    pub(crate) headroom: u32,
}

impl Attempt {
    fn new(attach: Attach, copying: Copying) -> Attempt {
        Attempt {
            attach,
            copying,
            headroom: HEADROOM,
        }
    }

    pub(crate) fn mode(&self) -> &'static str {
        match self.attach {
            Attach::Native => "native",
            Attach::Generic => "generic",
        }
    }

    pub(crate) fn copy(&self) -> &'static str {
        match self.copying {
            Copying::Copy => "copy",
            Copying::ZeroCopy => "zerocopy",
        }
    }
}

/// What is tried on an interface, best first.
pub(crate) fn attempts(link: &Link, zero_copy: bool, options: &Options) -> Vec<Attempt> {
    let virtual_link = link.loopback || link.kind.is_some();
    let native = match options.mode {
        ModeChoice::Auto => !virtual_link || options.copy == CopyChoice::ZeroCopy,
        ModeChoice::Generic => false,
        ModeChoice::Native => true,
    };
    let without_copy = native
        && match options.copy {
            CopyChoice::Auto => zero_copy,
            CopyChoice::Copy => false,
            // Perhaps the driver can, and does not say so.
            CopyChoice::ZeroCopy => true,
        };
    let mut list = Vec::new();
    if without_copy {
        let best = Attempt::new(Attach::Native, Copying::ZeroCopy);
        // Some drivers take no headroom.
        list.extend([
            best,
            Attempt {
                headroom: 0,
                ..best
            },
        ]);
    }
    if native {
        list.push(Attempt::new(Attach::Native, Copying::Copy));
    }
    list.push(Attempt::new(Attach::Generic, Copying::Copy));
    if options.strict {
        let best = list[0];
        list.retain(|a| (a.attach, a.copying) == (best.attach, best.copying));
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tried(kind: Option<&str>, zero_copy: bool, options: &str) -> String {
        let link = Link {
            kind: kind.map(str::to_owned),
            ..Link::default()
        };
        let options = options.parse().unwrap();
        let list = attempts(&link, zero_copy, &options);
        let names = list
            .iter()
            .map(|a| format!("{} {} {}", a.mode(), a.copy(), a.headroom));
        names.collect::<Vec<_>>().join(", ")
    }

    const NATIVE: &str = "native copy 22, generic copy 22";
    const ZERO_COPY: &str =
        "native zerocopy 22, native zerocopy 0, native copy 22, generic copy 22";

    #[test]
    fn the_best_is_tried_first() {
        assert_eq!(tried(None, true, "mode=auto"), ZERO_COPY);
        assert_eq!(tried(None, false, "mode=auto"), NATIVE);
        assert_eq!(tried(Some("veth"), false, "mode=auto"), "generic copy 22");
        assert_eq!(tried(Some("veth"), false, "mode=native"), NATIVE);
        assert_eq!(tried(None, true, "copy=copy"), NATIVE);
        assert_eq!(tried(None, true, "mode=generic"), "generic copy 22");
        assert_eq!(tried(None, false, "copy=zerocopy"), ZERO_COPY);
    }

    #[test]
    fn strict_means_that_or_nothing() {
        let best = "native zerocopy 22, native zerocopy 0";
        assert_eq!(tried(None, true, "strict"), best);
        assert_eq!(tried(None, false, "strict"), "native copy 22");
        assert_eq!(tried(Some("veth"), false, "strict"), "generic copy 22");
        let native = tried(Some("veth"), false, "strict&mode=native");
        assert_eq!(native, "native copy 22");
        let zero_copy = tried(Some("veth"), false, "strict&copy=zerocopy");
        assert_eq!(zero_copy, best);
    }
}
