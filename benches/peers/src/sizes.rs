//! The message sizes for which code is generated.
//!
//! The libraries under measurement move values of a type, so a size is a type
//! here (`[u8; N]`). `paths` and the command line's check go through this list;
//! nothing in it says which sizes a run measures.

use crate::fault::Fault;

/// Something generic over the size.
pub(crate) trait Visitor {
    type Out;
    fn visit<const N: usize>(self) -> Self::Out;
}

/// Makes the list and the match over it from the same figures.
macro_rules! sizes {
    ($($size:literal),*) => {
        /// Every size that a message may have.
        pub(crate) const BUILT: &[usize] = &[$($size),*];

        /// Calls `visitor` with `size` as a constant.
        pub(crate) fn with_size<V: Visitor>(size: usize, visitor: V) -> Result<V::Out, Fault> {
            match size {
                $($size => Ok(visitor.visit::<$size>()),)*
                _ => Err(not_built(size)),
            }
        }
    };
}

sizes!(1, 8, 16, 32, 56, 64, 112, 128, 256, 512, 1024);

/// Refuses sizes before anything is measured.
pub(crate) fn check(sizes: &[usize]) -> Result<(), Fault> {
    match sizes.iter().find(|size| !BUILT.contains(size)) {
        Some(size) => Err(not_built(*size)),
        None => Ok(()),
    }
}

fn not_built(size: usize) -> Fault {
    let built: Vec<String> = BUILT.iter().map(ToString::to_string).collect();
    Fault::Size {
        size,
        built: built.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Size;
    impl Visitor for Size {
        type Out = usize;
        fn visit<const N: usize>(self) -> usize {
            N
        }
    }

    #[test]
    fn each_built_size_is_visited_as_itself() {
        for size in BUILT {
            assert_eq!(with_size(*size, Size).ok(), Some(*size));
        }
    }

    #[test]
    fn another_size_is_refused_with_the_list() {
        let message = check(&[8, 57]).expect_err("57 is not built").to_string();
        assert!(
            message.contains("57") && message.contains("1, 8, 16"),
            "{message}"
        );
    }
}
