//! Who waits for what.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use trireme_types::{Lsn, Outcome};

use super::clock::Clock;
use super::mailbox::{Admitted, Answer};
use super::storage::{Applied, StagedSnapshot};
use crate::core::{Core, Message, Reply, Ticket};
use crate::replica::{ReadLeases, ReadPermit, ReplicaError};

/// One caller, or several who share an answer.
pub(super) enum Caller {
    Proposal {
        answer: Answer<Vec<Outcome>>,
        /// Held until the answer, and so the room that the proposal takes.
        admitted: Admitted,
    },
    Reads(Vec<Answer<ReadPermit>>),
    Control(Answer<()>),
    Snapshot {
        answer: Answer<Bytes>,
        /// The snapshot, until the core wants it installed.
        staged: Option<StagedSnapshot>,
    },
}

/// Everyone whose request the core has and has not answered.
#[derive(Default)]
pub(super) struct Callers {
    open: HashMap<Ticket, Caller>,
    given: u64,
    /// Proposals that get the outcome of an entry, by its sequence.
    promised: BTreeMap<u64, (Lsn, Ticket)>,
    /// What the permits that were given out rest on.
    leases: ReadLeases,
}

impl Callers {
    /// Gives out a ticket.
    pub(super) fn open(&mut self, caller: Caller) -> Ticket {
        self.given += 1;
        let ticket = Ticket(self.given);
        self.open.insert(ticket, caller);
        ticket
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Takes the snapshot that was offered under this ticket.
    pub(super) fn take_snapshot(&mut self, ticket: Ticket) -> Option<StagedSnapshot> {
        match self.open.get_mut(&ticket) {
            Some(Caller::Snapshot { staged, .. }) => staged.take(),
            _ => None,
        }
    }

    /// Promises a proposal the outcome of an entry that is not applied yet.
    pub(super) fn promise(&mut self, ticket: Ticket, lsn: Lsn, applied: Lsn) {
        if lsn.seq > applied.seq {
            self.promised.insert(lsn.seq, (lsn, ticket));
        } else {
            tracing::error!(%ticket, %lsn, %applied, "a promise came after the entry was applied");
            self.refuse(ticket, lost(lsn));
        }
    }

    /// Answers the proposals whose entries were applied.
    pub(super) fn applied(&mut self, applied: Vec<Applied>) {
        if self.promised.is_empty() {
            return;
        }
        for Applied { lsn, outcomes, .. } in applied {
            self.passed(lsn.seq - 1);
            match self.promised.remove(&lsn.seq) {
                Some((promised, ticket)) if promised == lsn => {
                    if let Some(Caller::Proposal { answer, .. }) = self.open.remove(&ticket) {
                        give(answer, Ok(outcomes));
                    }
                }
                Some((promised, ticket)) => self.refuse(ticket, lost(promised)),
                None => {}
            }
        }
    }

    /// Tells the proposals whose entries can no longer be applied up to `seq` that nobody knows:
    /// a snapshot took their place, or other entries did.
    pub(super) fn passed(&mut self, seq: u64) {
        while let Some(first) = self.promised.first_entry()
            && *first.key() <= seq
        {
            let (lsn, ticket) = first.remove();
            self.refuse(ticket, lost(lsn));
        }
    }

    /// Gives a caller the core's answer.
    pub(super) fn reply<C: Core>(&mut self, ticket: Ticket, reply: Reply<C>, clock: Clock) {
        let Some(caller) = self.open.remove(&ticket) else {
            tracing::debug!(%ticket, "an answer to nobody");
            return;
        };
        match (caller, reply) {
            (caller, Reply::Error(error)) => caller.refuse(&error),
            (Caller::Control(answer), Reply::Done) => give(answer, Ok(())),
            (Caller::Reads(answers), Reply::Read { until }) => {
                let permit = until.map_or(ReadPermit::lasting(), |until| {
                    self.leases.permit(clock.instant(until))
                });
                answers.into_iter().for_each(|answer| give(answer, Ok(permit.clone())));
            }
            (Caller::Snapshot { answer, .. }, Reply::Message(message)) => {
                give(answer, Ok(message.encode()));
            }
            (caller, reply) => {
                tracing::error!(%ticket, ?reply, "an answer to another question");
                caller.refuse(&ReplicaError::Ambiguous("the protocol gave no answer".into()));
            }
        }
    }

    /// Ends the permits that were given out.
    pub(super) fn end_reads(&mut self) {
        self.leases.end();
    }

    /// Answers everybody. A proposal that the core has may have been sent, so nobody knows what
    /// becomes of it.
    pub(super) fn refuse_all(&mut self, error: &ReplicaError) {
        self.promised.clear();
        for caller in std::mem::take(&mut self.open).into_values() {
            match caller {
                Caller::Proposal { .. } => {
                    caller.refuse(&ReplicaError::Ambiguous(error.to_string()));
                }
                other => other.refuse(error),
            }
        }
    }

    fn refuse(&mut self, ticket: Ticket, error: ReplicaError) {
        if let Some(caller) = self.open.remove(&ticket) {
            caller.refuse(&error);
        }
    }
}

impl Caller {
    fn refuse(self, error: &ReplicaError) {
        match self {
            Self::Proposal { answer, admitted } => {
                drop(admitted);
                give(answer, Err(error.clone()));
            }
            Self::Reads(answers) => {
                answers.into_iter().for_each(|answer| give(answer, Err(error.clone())));
            }
            Self::Control(answer) => give(answer, Err(error.clone())),
            Self::Snapshot { answer, .. } => give(answer, Err(error.clone())),
        }
    }
}

/// Gives an answer to a caller, who may have gone.
fn give<T>(answer: Answer<T>, result: Result<T, ReplicaError>) {
    drop(answer.send(result));
}

fn lost(lsn: Lsn) -> ReplicaError {
    ReplicaError::Ambiguous(format!("what became of entry {lsn} was not seen here"))
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;
    use crate::driver::mailbox::Admission;
    use crate::replica::ErrorClass;

    type Answered = oneshot::Receiver<Result<Vec<Outcome>, ReplicaError>>;

    fn promise(callers: &mut Callers, lsn: Lsn) -> Answered {
        let (answer, answered) = oneshot::channel();
        let admitted = Admission::default().admit(0, 1, 1).expect("there is room");
        let ticket = callers.open(Caller::Proposal { answer, admitted });
        callers.promise(ticket, lsn, Lsn::ZERO);
        answered
    }

    fn applied(lsn: Lsn) -> Applied {
        Applied { lsn, outcomes: vec![Outcome::Deleted { existed: true }] }
    }

    #[test]
    fn a_proposal_gets_the_outcome_of_its_own_entry_and_of_no_other() {
        let mut callers = Callers::default();
        let mut own = promise(&mut callers, Lsn::new(1, 1));
        let mut replaced = promise(&mut callers, Lsn::new(1, 2));
        callers.applied(vec![applied(Lsn::new(1, 1)), applied(Lsn::new(2, 2))]);
        assert_eq!(own.try_recv(), Ok(Ok(vec![Outcome::Deleted { existed: true }])));
        let lost = replaced.try_recv().expect("it is answered").expect_err("it was replaced");
        assert_eq!(lost.class(), ErrorClass::Unknown);
        assert!(callers.is_empty());
    }

    #[test]
    fn a_snapshot_leaves_the_proposals_it_covers_unknown() {
        let mut callers = Callers::default();
        let mut covered = promise(&mut callers, Lsn::new(1, 5));
        let mut later = promise(&mut callers, Lsn::new(1, 6));
        callers.passed(5);
        let lost = covered.try_recv().expect("it is answered").expect_err("nobody knows");
        assert_eq!(lost.class(), ErrorClass::Unknown);
        assert!(later.try_recv().is_err());
    }

    #[test]
    fn whoever_waits_at_the_end_is_told() {
        let mut callers = Callers::default();
        let mut sent = promise(&mut callers, Lsn::new(1, 1));
        let (answer, mut read) = oneshot::channel();
        callers.open(Caller::Reads(vec![answer]));
        callers.refuse_all(&ReplicaError::Failed("a disk".into()));
        let sent = sent.try_recv().expect("it is answered").expect_err("nobody knows");
        assert_eq!(sent.class(), ErrorClass::Unknown);
        let read = read.try_recv().expect("it is answered").expect_err("it failed");
        assert_eq!(read.class(), ErrorClass::Fatal);
    }
}
