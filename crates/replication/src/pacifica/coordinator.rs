//! What a replica asks of the configuration manager, and what that says (§2.3).
//!
//! The manager holds the newest configuration of the cohort and installs a proposal if it is the
//! direct successor of that: of two proposals for one version exactly one is installed (M34). What it
//! says is always the newest configuration it knows of, as an answer or unasked. So a replica whose
//! proposal's answer was lost asks for the very same again, at the same version, and is inactive until
//! it sees a newer one: its own, or another's (P4).

use std::fmt;

use trireme_types::CohortConfig;

/// What a replica asks: that this configuration be installed, if it is the direct successor of the
/// newest. The first of its replicas is the primary.
#[derive(Clone, PartialEq, Eq)]
pub struct Proposal(pub CohortConfig);

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "install {}", Shown(&self.0))
    }
}

/// The newest configuration, as the manager sends it.
#[derive(Clone, PartialEq, Eq)]
pub struct Newest(pub CohortConfig);

impl fmt::Debug for Newest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Shown(&self.0))
    }
}

/// A configuration in a few words.
struct Shown<'a>(&'a CohortConfig);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |node| match self.0.incarnations.get(node) {
            Some(incarnation) => format!("{node}.{incarnation}"),
            None => format!("{node}"),
        };
        let replicas: Vec<_> = self.0.replicas.iter().map(shown).collect();
        write!(f, "e{} [{}]", self.0.version, replicas.join(" "))
    }
}
