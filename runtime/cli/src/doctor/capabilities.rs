//! What this process may do.

/// What opening an AF_XDP device takes, by the kernel's numbers.
const FOR_XDP: [(u32, &str); 3] = [(39, "CAP_BPF"), (12, "CAP_NET_ADMIN"), (13, "CAP_NET_RAW")];
const IPC_LOCK: u32 = 14;

/// The effective capabilities; none if the kernel does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Effective(u64);

impl Effective {
    pub(super) fn read() -> Effective {
        Effective::parse(&std::fs::read_to_string("/proc/self/status").unwrap_or_default())
    }

    fn parse(status: &str) -> Effective {
        let bits = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        let bits = bits.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
        Effective(bits.unwrap_or(0))
    }

    fn has(self, number: u32) -> bool {
        self.0 & 1 << number != 0
    }

    /// What is missing for opening an AF_XDP device.
    pub(super) fn missing_for_xdp(self) -> Vec<&'static str> {
        let missing = FOR_XDP.iter().filter(|(number, _)| !self.has(*number));
        missing.map(|&(_, name)| name).collect()
    }

    /// May pin any amount of memory.
    pub(super) fn may_lock(self) -> bool {
        self.has(IPC_LOCK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let all = Effective::parse("Name:\tx\nCapEff:\t000001ffffffffff\n");
        assert!(all.missing_for_xdp().is_empty() && all.may_lock());
        let none = Effective::parse("CapEff:\t0000000000000000\n");
        assert_eq!(none.missing_for_xdp().len(), 3);
        assert_eq!(
            Effective::parse("").missing_for_xdp(),
            none.missing_for_xdp()
        );
        let some = Effective::parse("CapEff:\t0000000000003000\n");
        assert_eq!(some.missing_for_xdp(), ["CAP_BPF"]);
        assert!(!some.may_lock());
    }
}
