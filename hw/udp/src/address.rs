//! Addresses: `udp:IP:PORT`, and options behind a question mark.

use std::net::SocketAddrV4;
use std::str::FromStr;

/// How packets are received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Engine {
    /// By a call for each batch, `recvmmsg`: nothing to set up, on every kernel.
    #[default]
    Calls,
    /// By a standing request of an `io_uring`, Linux 6.1: looking costs no call while nothing comes. The device belongs to the thread
    /// that receives first.
    Ring,
}

impl Engine {
    /// Its name in an address.
    pub fn name(self) -> &'static str {
        match self {
            Engine::Calls => "mmsg",
            Engine::Ring => "io_uring",
        }
    }
}

/// What may be chosen about a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// How packets are received.
    pub engine: Engine,
    /// The socket's receive buffer in bytes; [`Options::BUFFER`] without. The kernel gives what its limits allow; the status says how much.
    pub receive_buffer: Option<usize>,
    /// The socket's send buffer in bytes; as above.
    pub send_buffer: Option<usize>,
}

impl Options {
    /// What is asked for if nothing is said, in bytes.
    pub const BUFFER: usize = 4 << 20;
    /// The most that can be asked for, in bytes.
    pub const MOST: usize = 1 << 30;
}

/// Where a device listens, or with whom it talks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UdpAddress {
    /// Address and port.
    pub at: SocketAddrV4,
    /// The options behind it.
    pub options: Options,
}

/// What is wrong with an address; each says how one looks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// It does not begin with `udp:`.
    #[error("`{text}` is no UDP address; one looks like udp:10.0.0.2:7000")]
    NoScheme {
        /// The text.
        text: String,
    },
    /// There is no IPv4 address and port behind that.
    #[error(
        "`{text}` is no IPv4 address with a port, as in udp:10.0.0.2:7000; names and IPv6 are not looked up"
    )]
    NoHost {
        /// What is there.
        text: String,
    },
    /// An option that there is not, or one without a value.
    #[error("`{option}` is no option of a UDP device; those are engine=, rcvbuf= and sndbuf=")]
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
}

impl FromStr for UdpAddress {
    type Err = AddressError;

    /// Reads `udp:IP:PORT`, then perhaps `?` and options with `&` between them: `engine=mmsg` or `engine=io_uring`, `rcvbuf=BYTES`,
    /// `sndbuf=BYTES`.
    fn from_str(text: &str) -> Result<UdpAddress, AddressError> {
        let rest = text
            .strip_prefix("udp:")
            .ok_or_else(|| AddressError::NoScheme { text: text.into() })?;
        let (host, query) = match rest.split_once('?') {
            Some((host, query)) => (host, Some(query)),
            None => (rest, None),
        };
        let at = host
            .parse()
            .map_err(|_| AddressError::NoHost { text: host.into() })?;
        let mut options = Options::default();
        for option in query.into_iter().flat_map(|query| query.split('&')) {
            set(&mut options, option)?;
        }
        Ok(UdpAddress { at, options })
    }
}

fn set(options: &mut Options, option: &str) -> Result<(), AddressError> {
    let unknown = || AddressError::UnknownOption {
        option: option.into(),
    };
    let (name, value) = option.split_once('=').ok_or_else(unknown)?;
    match name {
        "engine" => options.engine = engine(value)?,
        "rcvbuf" => options.receive_buffer = Some(bytes("rcvbuf", value)?),
        "sndbuf" => options.send_buffer = Some(bytes("sndbuf", value)?),
        _ => return Err(unknown()),
    }
    Ok(())
}

fn engine(value: &str) -> Result<Engine, AddressError> {
    [Engine::Calls, Engine::Ring]
        .into_iter()
        .find(|engine| engine.name() == value)
        .ok_or_else(|| AddressError::BadValue {
            option: "engine",
            value: value.into(),
            takes: "mmsg or io_uring",
        })
}

fn bytes(option: &'static str, value: &str) -> Result<usize, AddressError> {
    match value.parse() {
        Ok(bytes) if (1..=Options::MOST).contains(&bytes) => Ok(bytes),
        _ => Err(AddressError::BadValue {
            option,
            value: value.into(),
            takes: "a number of bytes from 1 to 1073741824",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_with_every_option() {
        let text = "udp:10.0.0.2:7000?engine=io_uring&rcvbuf=65536&sndbuf=4096";
        let expected = UdpAddress {
            at: "10.0.0.2:7000".parse().unwrap(),
            options: Options {
                engine: Engine::Ring,
                receive_buffer: Some(65536),
                send_buffer: Some(4096),
            },
        };
        assert_eq!(text.parse(), Ok(expected));
        let plain: UdpAddress = "udp:127.0.0.1:0".parse().unwrap();
        assert_eq!(plain.options, Options::default());
    }

    #[test]
    fn what_is_no_address_is_told_how_one_looks() {
        for (text, words) in [
            ("", "udp:10.0.0.2:7000"),
            ("tcp:10.0.0.2:7000", "udp:10.0.0.2:7000"),
            ("udp:", "udp:10.0.0.2:7000"),
            ("udp:10.0.0.2", "with a port"),
            ("udp:host:7000", "names and IPv6 are not"),
            ("udp:[::1]:7000", "names and IPv6 are not"),
            ("udp:10.0.0.2:70000", "with a port"),
            ("udp:10.0.0.2:7?", "engine="),
            ("udp:10.0.0.2:7?speed=1", "engine="),
            ("udp:10.0.0.2:7?engine", "engine="),
            ("udp:10.0.0.2:7?engine=steam", "mmsg or io_uring"),
            ("udp:10.0.0.2:7?rcvbuf=4k", "number of bytes"),
            ("udp:10.0.0.2:7?rcvbuf=0", "number of bytes"),
            ("udp:10.0.0.2:7?sndbuf=1073741825", "number of bytes"),
            ("udp:10.0.0.2:7?sndbuf=1&", "engine="),
        ] {
            let error = text.parse::<UdpAddress>().unwrap_err().to_string();
            assert!(error.contains(words), "{text:?}: {error}");
        }
    }
}
