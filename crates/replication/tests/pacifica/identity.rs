//! Which incarnation a replica's disk has, from what was written before there were any.

use bytes::Bytes;
use trireme_replication::core::{Core as _, Effect, EpochRuns, Recovered};
use trireme_replication::pacifica::{Pacifica, PacificaOptions};
use trireme_storage::LogWrite;
use trireme_types::{CohortId, Incarnation, Lsn, NodeId};

/// Returns the hard states that a replica writes when it starts.
fn written_at_the_start(hard_state: Option<&[u8]>, drawn: u64) -> Vec<Bytes> {
    let recovered = Recovered {
        node: NodeId(1),
        cohort: CohortId(1),
        log: EpochRuns::starting_after(Lsn::ZERO),
        hard_state: hard_state.map(Bytes::copy_from_slice),
        commit_point: Lsn::ZERO,
        applied: Lsn::ZERO,
        protocol_state: None,
    };
    let options = PacificaOptions::new(Incarnation(drawn));
    let mut core = Pacifica::new(&recovered, options).expect("the disk makes sense");
    let mut effects = Vec::new();
    core.drain_effects(&mut effects);
    let state = |effect: Effect<Pacifica>| match effect {
        Effect::Persist(LogWrite::HardState(state)) => Some(state),
        _ => None,
    };
    effects.into_iter().filter_map(state).collect()
}

/// What 0.1.0 wrote gets a number when it is first opened, and keeps it [PAC-45].
#[test]
fn a_disk_from_before_gets_an_incarnation_and_keeps_it() {
    let old = [1, 0, 0, 0, 0, 0, 0, 0, 7, 0];
    let [state] = &written_at_the_start(Some(&old), 41)[..] else { panic!("it is written once") };
    assert_eq!(state[..], [&[2], &old[1..], &[0, 0, 0, 0, 0, 0, 0, 41]].concat());
    assert_eq!(written_at_the_start(Some(state), 42), [] as [Bytes; 0]);
}

/// A new replica writes its number with the first version that it acts in: until then nothing has come
/// from it [PAC-45].
#[test]
fn an_empty_disk_stays_empty_until_the_replica_acts() {
    assert_eq!(written_at_the_start(None, 41), [] as [Bytes; 0]);
}
