//! Addresses: `xdp:IFACE/IP:PORT`, and options behind a question mark.

use std::net::SocketAddrV4;
use std::str::FromStr;

/// Where the program shall run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ModeChoice {
    /// In the driver of a NIC, behind it on `veth` and `lo`.
    #[default]
    Auto,
    /// Behind the driver.
    Generic,
    /// In the driver.
    Native,
}

/// Whether the kernel shall copy packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CopyChoice {
    /// Not if the driver says that it can do without.
    #[default]
    Auto,
    /// It shall.
    Copy,
    /// It shall not.
    ZeroCopy,
}

/// What may be chosen about a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// The one queue of the interface, from 0, that it has; all of them without.
    pub queue: Option<u32>,
    /// Where the program runs.
    pub mode: ModeChoice,
    /// Whether packets are copied.
    pub copy: CopyChoice,
    /// What was chosen, or is best here, or nothing: never anything less.
    pub strict: bool,
}

/// An interface, an address behind it or on it, and how to go there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct XdpAddress {
    /// The name of the interface.
    pub interface: String,
    /// A listener's own address and port; of a client the other host's.
    pub at: SocketAddrV4,
    /// The options behind it.
    pub options: Options,
}

/// What is wrong with an address; each says how one looks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// It does not begin with `xdp:IFACE/`.
    #[error("`{text}` is no AF_XDP address; one looks like xdp:eth0/10.0.0.2:7000")]
    NoInterface {
        /// The text.
        text: String,
    },
    /// There is no IPv4 address and port behind that.
    #[error(
        "`{text}` is no IPv4 address with a port, as in xdp:eth0/10.0.0.2:7000; names and IPv6 are not looked up"
    )]
    NoHost {
        /// What is there.
        text: String,
    },
    /// An option that there is not.
    #[error(
        "`{option}` is no option of an AF_XDP device; those are queue=, mode=, copy= and strict"
    )]
    UnknownOption {
        /// The option.
        option: String,
    },
    /// An option with a value that it does not take.
    #[error("`{value}` is no value of `{option}`; it takes {takes}")]
    BadValue {
        /// The option.
        option: &'static str,
        /// The value.
        value: String,
        /// What it takes.
        takes: &'static str,
    },
    /// Behind the driver the kernel always copies.
    #[error("there is no zero-copy in generic mode; say mode=native, or copy=copy")]
    GenericZeroCopy,
}

impl FromStr for XdpAddress {
    type Err = AddressError;

    /// Reads `xdp:IFACE/IP:PORT`, then perhaps `?` and options with `&` between them: `queue=N` (without it all queues), `mode=auto|generic|native`,
    /// `copy=auto|copy|zerocopy`, `strict`.
    fn from_str(text: &str) -> Result<XdpAddress, AddressError> {
        let no_interface = || AddressError::NoInterface { text: text.into() };
        let rest = text.strip_prefix("xdp:").ok_or_else(no_interface)?;
        let (place, query) = match rest.split_once('?') {
            Some((place, query)) => (place, Some(query)),
            None => (rest, None),
        };
        let (interface, host) = place.split_once('/').ok_or_else(no_interface)?;
        // IFNAMSIZ, without the zero.
        if interface.is_empty() || interface.len() > 15 {
            return Err(no_interface());
        }
        let at = host.parse();
        let at = at.map_err(|_| AddressError::NoHost { text: host.into() })?;
        Ok(XdpAddress {
            interface: interface.into(),
            at,
            options: query.map_or(Ok(Options::default()), str::parse)?,
        })
    }
}

impl FromStr for Options {
    type Err = AddressError;

    /// Reads what is behind the question mark.
    fn from_str(query: &str) -> Result<Options, AddressError> {
        let mut options = Options::default();
        for option in query.split('&') {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            let bad = |option, takes| AddressError::BadValue {
                option,
                value: value.into(),
                takes,
            };
            match name {
                "queue" => {
                    let queue = value.parse();
                    let queue = queue.map_err(|_| bad("queue", "a number from 0"))?;
                    options.queue = Some(queue);
                }
                "mode" => {
                    let mode = mode(value);
                    options.mode = mode.ok_or_else(|| bad("mode", "auto, generic or native"))?;
                }
                "copy" => {
                    let copy = copy(value);
                    options.copy = copy.ok_or_else(|| bad("copy", "auto, copy or zerocopy"))?;
                }
                "strict" if option == "strict" => options.strict = true,
                _ => {
                    return Err(AddressError::UnknownOption {
                        option: option.into(),
                    });
                }
            }
        }
        if options.mode == ModeChoice::Generic && options.copy == CopyChoice::ZeroCopy {
            return Err(AddressError::GenericZeroCopy);
        }
        Ok(options)
    }
}

fn mode(value: &str) -> Option<ModeChoice> {
    match value {
        "auto" => Some(ModeChoice::Auto),
        "generic" => Some(ModeChoice::Generic),
        "native" => Some(ModeChoice::Native),
        _ => None,
    }
}

fn copy(value: &str) -> Option<CopyChoice> {
    match value {
        "auto" => Some(CopyChoice::Auto),
        "copy" => Some(CopyChoice::Copy),
        "zerocopy" => Some(CopyChoice::ZeroCopy),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_an_interface_a_host_and_options() {
        let plain: XdpAddress = "xdp:eth0/10.0.0.2:7000".parse().unwrap();
        assert_eq!(plain.interface, "eth0");
        assert_eq!(plain.at, "10.0.0.2:7000".parse().unwrap());
        assert_eq!(plain.options, Options::default());
        let full = "xdp:a/1.2.3.4:5?queue=3&mode=native&copy=zerocopy&strict";
        let full: XdpAddress = full.parse().unwrap();
        let wanted = Options {
            queue: Some(3),
            mode: ModeChoice::Native,
            copy: CopyChoice::ZeroCopy,
            strict: true,
        };
        assert_eq!(full.options, wanted);
    }

    #[test]
    fn each_mistake_says_how_it_looks() {
        let errors = [
            ("udp:10.0.0.2:7000", "is no AF_XDP address"),
            ("xdp:10.0.0.2:7000", "is no AF_XDP address"),
            ("xdp:/10.0.0.2:7000", "is no AF_XDP address"),
            ("xdp:a-name-of-16-byt/10.0.0.2:7000", "is no AF_XDP address"),
            ("xdp:eth0/10.0.0.2", "no IPv4 address with a port"),
            ("xdp:eth0/host:7000", "no IPv4 address with a port"),
            ("xdp:eth0/[::1]:7000", "no IPv4 address with a port"),
            ("xdp:eth0/10.0.0.2:7000?", "no option"),
            ("xdp:eth0/10.0.0.2:7000?depth=3", "`depth=3` is no option"),
            ("xdp:eth0/10.0.0.2:7000?strict=1", "`strict=1` is no option"),
            ("xdp:eth0/10.0.0.2:7000?queue=-1", "a number from 0"),
            ("xdp:eth0/10.0.0.2:7000?mode=fast", "generic or native"),
            ("xdp:eth0/10.0.0.2:7000?copy=no", "copy or zerocopy"),
            (
                "xdp:eth0/10.0.0.2:7000?mode=generic&copy=zerocopy",
                "no zero-copy in generic mode",
            ),
        ];
        for (text, says) in errors {
            let error = text.parse::<XdpAddress>().unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
