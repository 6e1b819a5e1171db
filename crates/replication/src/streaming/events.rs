//! What a core does alike in both protocols when something happens.

use super::{Beacon, Streams};
use crate::core::{Effect, Event, Terms};

/// Handles an event that both protocols handle alike, and returns any other.
pub(crate) fn handle<C: Streams>(core: &mut C, event: Event<C>) -> Option<Event<C>> {
    let leader = core.leader();
    let (cx, leading) = core.parts();
    match event {
        Event::Message { from, message } => core.on_message(from, message),
        Event::Propose { ticket, .. }
        | Event::Read { ticket }
        | Event::TransferLeader { ticket, .. }
            if leading.is_none() =>
        {
            cx.refuse_to_lead(ticket, leader);
        }
        Event::ReleaseLog { ticket, upto } => cx.release_log(ticket, upto),
        Event::LogSent { to, seqs, next } => {
            if let Some(leading) = leading {
                leading.on_log_sent(cx, to, &seqs, next);
            }
        }
        Event::SnapshotSent { to, answer } => match (leading, answer) {
            (Some(leading), Some(answer)) => {
                leading.on_snapshot_sent(to);
                core.on_message(to, answer);
            }
            (Some(leading), None) => leading.on_snapshot_lost(cx.now, to),
            (None, _) => {}
        },
        Event::Heard { leader, terms, sent } => {
            let Terms { epoch, committed } = terms;
            // Nothing was proposed while it rested.
            let beacon = Beacon { epoch, committed, sent, current_at: Some(sent) };
            core.on_message(leader, C::beacon_message(beacon));
        }
        Event::Supported { by } => {
            if let Some(leading) = leading {
                by.into_iter().for_each(|(from, sent)| leading.on_rested(cx.now, from, sent));
                core.on_supported();
            }
        }
        Event::SnapshotInstalled { ticket, upto } => cx.on_snapshot_installed(ticket, upto),
        Event::SnapshotOutdated { ticket } => cx.on_snapshot_outdated(ticket),
        own @ (Event::Propose { .. }
        | Event::Read { .. }
        | Event::TransferLeader { .. }
        | Event::Durable { .. }
        | Event::Applied { .. }
        | Event::SnapshotOffered { .. }
        | Event::Coordination(_)
        | Event::PeerAlive { .. }
        | Event::PeerLost { .. }
        | Event::Timeout) => return Some(own),
    }
    None
}

/// Moves what is to be done into `effects`; a leader first sends what the batch has proposed.
pub(crate) fn drain<C: Streams>(core: &mut C, effects: &mut Vec<Effect<C>>) {
    let (cx, leading) = core.parts();
    if let Some(leading) = leading {
        leading.send_gathered(cx);
    }
    cx.journal.drain_into(effects);
}
