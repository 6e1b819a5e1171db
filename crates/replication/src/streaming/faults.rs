//! Deliberate mistakes, which show that a test would notice them.

/// Declares the mistakes of a part: a type with a switch for each, off by default, and the one
/// mistake of each name.
///
/// Only with the feature `deliberate-faults` there is anything to switch; without it the type is
/// empty, no mistake has a name, each question is answered with a constant, and a release contains
/// no mistake.
macro_rules! deliberate_faults {
    (
        $(#[$type_doc:meta])*
        $name:ident { $($(#[$fault_doc:meta])* $fault:ident,)* }
    ) => {
        $(#[$type_doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name {
            $($(#[$fault_doc])* #[cfg(feature = "deliberate-faults")] pub $fault: bool,)*
        }

        #[cfg(feature = "deliberate-faults")]
        impl $name {
            $(pub(crate) const fn $fault(self) -> bool { self.$fault })*

            /// The names of the mistakes, which are those of the fields.
            pub const NAMES: &'static [&'static str] = &[$(stringify!($fault)),*];

            /// Returns the one mistake of this name; `None` if there is none.
            pub fn named(name: &str) -> Option<Self> {
                $(if name == stringify!($fault) {
                    return Some(Self { $fault: true, ..Self::default() });
                })*
                None
            }
        }

        #[cfg(not(feature = "deliberate-faults"))]
        impl $name {
            $(pub(crate) const fn $fault(self) -> bool { false })*

            /// The names of the mistakes: none, since this build makes none.
            pub const NAMES: &'static [&'static str] = &[];

            /// Returns the one mistake of this name: `None`, since there is none.
            pub const fn named(_name: &str) -> Option<Self> { None }
        }
    };
}

pub(crate) use deliberate_faults;

deliberate_faults! {
    /// The mistakes that break naive versions of what both protocols do alike, each off: with the
    /// feature `deliberate-faults` a test can switch one on.
    StreamingFaults {
        /// A follower commits up to the number that a beacon names, whichever entries it holds there
        /// (SPIN-3, PAC-3).
        commits_by_number,
        /// Writes that wait for the end of a catch-up wait for ever (SPIN-41).
        stalls_writes_for_good,
    }
}
