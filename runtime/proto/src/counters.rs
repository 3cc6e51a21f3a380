//! Counters: an enum, one label each, and a table of counts.

/// Defines a pair of types: what is counted, and the counts.
macro_rules! counters {
    ($(#[$whole:meta])* $counter:ident, $counters:ident {
        $($(#[$doc:meta])* $name:ident = $label:literal,)*
    }) => {
        $(#[$whole])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum $counter { $($(#[$doc])* $name,)* }

        impl $counter {
            /// Every counter, in the order in which they are printed.
            pub const ALL: &'static [$counter] = &[$($counter::$name,)*];

            /// A stable lower-case name for logs and tools.
            pub const fn label(self) -> &'static str {
                match self { $($counter::$name => $label,)* }
            }
        }

        /// The counts, from zero on.
        #[derive(Clone, Default, PartialEq, Eq)]
        pub struct $counters([u64; $counter::ALL.len()]);

        impl $counters {
            /// The count so far.
            pub fn get(&self, counter: $counter) -> u64 {
                self.0[counter as usize]
            }

            /// Every counter with its value.
            pub fn iter(&self) -> impl Iterator<Item = ($counter, u64)> + '_ {
                $counter::ALL.iter().map(|&c| (c, self.get(c)))
            }

            /// Adds one.
            #[inline(always)]
            pub fn add(&mut self, counter: $counter) {
                let cell = &mut self.0[counter as usize];
                *cell = cell.wrapping_add(1);
            }
        }

        /// Those that are not zero, by their labels.
        impl core::fmt::Debug for $counters {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                let counted = self.iter().filter(|(_, count)| *count > 0);
                f.debug_map()
                    .entries(counted.map(|(counter, count)| (counter.label(), count)))
                    .finish()
            }
        }
    };
}

pub(crate) use counters;
