//! Deliberate mistakes, which show that a test would notice them.

/// Declares the mistakes of a protocol: a type with a switch for each, off by default.
///
/// Only with the feature `deliberate-faults` there is anything to switch; without it the type is
/// empty, each question is answered with a constant, and a release contains no mistake.
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
        }

        #[cfg(not(feature = "deliberate-faults"))]
        impl $name {
            $(pub(crate) const fn $fault(self) -> bool { false })*
        }
    };
}

pub(crate) use deliberate_faults;
