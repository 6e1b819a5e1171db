//! Mistakes of what stands in for drivers, disks, tables, clients and coordinators: each breaks an invariant that no
//! mistake of a core would, so that it is seen to be looked at.

use std::str::FromStr;

/// One of them, which a cluster makes: `cluster mistake=lying-disk`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mistake {
    /// A disk says of what it has not made durable that it has.
    LyingDisk,
    /// A client takes a write whose fate is not known for one that was refused.
    UnknownIsRefused,
    /// A table forgets which requests were applied when another leader begins.
    ForgetsRequests,
    /// A table forgets that the cohort has ended with the next entry.
    ForgetsSeal,
    /// A node whose replica has proposed to end the cohort answers strong reads until it has ended.
    ReadsWhileSealing,
    /// A timeline read names the committed entry instead of the one that its state includes.
    NamesCommitted,
    /// A client takes every timeline read, however old.
    TakesOlder,
    /// A driver applies entries before they are committed.
    AppliesAhead,
    /// A driver answers a caller twice.
    AnswersTwice,
    /// A driver goes on under rights to read that its core has ended.
    IgnoresEndOfReads,
    /// A driver that reads the log for another mixes up what is in two entries.
    MixesEntries,
    /// A coordinator has each who wants to lead believe that it does.
    EachWins,
    /// A coordinator lists a node that no replica has asked for.
    ListsOneMore,
}

impl FromStr for Mistake {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "lying-disk" => Self::LyingDisk,
            "unknown-is-refused" => Self::UnknownIsRefused,
            "forgets-requests" => Self::ForgetsRequests,
            "forgets-seal" => Self::ForgetsSeal,
            "reads-while-sealing" => Self::ReadsWhileSealing,
            "names-committed" => Self::NamesCommitted,
            "takes-older" => Self::TakesOlder,
            "applies-ahead" => Self::AppliesAhead,
            "answers-twice" => Self::AnswersTwice,
            "ignores-end-of-reads" => Self::IgnoresEndOfReads,
            "mixes-entries" => Self::MixesEntries,
            "each-wins" => Self::EachWins,
            "lists-one-more" => Self::ListsOneMore,
            other => return Err(format!("no mistake is called {other}")),
        })
    }
}
