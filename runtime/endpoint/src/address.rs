//! Addresses: `shm:` and the path of a Unix socket.

use crate::AddressError;
use std::path::{Path, PathBuf};
use tightbeam_sys::control::MAX_PATH_BYTES;

/// Where an endpoint listens or connects.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Address {
    /// `shm:PATH`: processes of this host, which meet at a Unix socket and then share memory.
    Shm(PathBuf),
}

impl Address {
    /// Reads `shm:PATH`. The path is taken as it stands, relative to the working directory.
    pub fn parse(text: &str) -> Result<Address, AddressError> {
        let Some((scheme, rest)) = text.split_once(':') else {
            return Err(AddressError::NoScheme {
                text: text.into(),
                known: "shm:PATH".into(),
            });
        };
        if scheme != "shm" {
            return Err(AddressError::UnknownScheme {
                scheme: scheme.into(),
                known: "shm:PATH".into(),
            });
        }
        if rest.is_empty() {
            return Err(AddressError::NoPath);
        }
        if rest.len() > MAX_PATH_BYTES {
            return Err(AddressError::PathTooLong {
                path: rest.into(),
                len: rest.len(),
                max: MAX_PATH_BYTES,
            });
        }
        if rest.contains('\0') {
            return Err(AddressError::NulInPath);
        }
        Ok(Address::Shm(Path::new(rest).to_path_buf()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_108_bytes_is_one_too_long() {
        let fits = format!("shm:/{}", "x".repeat(MAX_PATH_BYTES - 1));
        assert!(Address::parse(&fits).is_ok());
        let error = Address::parse(&format!("{fits}x")).unwrap_err();
        assert!(error.to_string().contains("108 bytes"), "{error}");
    }

    #[test]
    fn what_is_no_address_is_told_how_one_looks() {
        for (text, word) in [
            ("/tmp/x", "shm:"),
            ("tcp:1.2.3.4:5", "tcp"),
            ("shm:", "path"),
            ("", "shm:"),
            ("shm:a\0b", "NUL"),
        ] {
            let error = Address::parse(text).unwrap_err().to_string();
            assert!(error.contains(word), "{text:?}: {error}");
        }
    }
}
