//! Mistakes that a node can be started to make. A cluster that makes one breaks its promises, which
//! whatever judges clusters must find. A build with optimizations, as users run it, makes none.

/// The mistakes of a node's replicas; none by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mistakes {
    /// A replica that lost its disk is taken for the one that it was, whatever its protocol (S14): it
    /// counts at once, though it does not have what it acknowledged.
    trusts_an_empty_disk: bool,
}

impl Mistakes {
    /// The names of all mistakes that this build can make.
    pub const NAMES: &[&str] = if cfg!(debug_assertions) { &["trusts-an-empty-disk"] } else { &[] };

    /// Returns true if a replica that lost its disk is taken for the one that it was.
    pub(super) const fn trusts_an_empty_disk(self) -> bool {
        cfg!(debug_assertions) && self.trusts_an_empty_disk
    }

    /// Adds the mistake of this name. Returns false if there is none.
    pub fn add(&mut self, name: &str) -> bool {
        let Self { trusts_an_empty_disk } = self;
        let mistake = match name {
            "trusts-an-empty-disk" => trusts_an_empty_disk,
            _ => return false,
        };
        *mistake = true;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_is_a_mistake_of_its_own() {
        let mut all = Mistakes::default();
        for &name in Mistakes::NAMES {
            let before = all;
            assert!(all.add(name), "{name}");
            assert_ne!(all, before, "{name} is another's, too");
        }
        assert!(!all.add("none"));
    }
}
