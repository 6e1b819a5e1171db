//! The steps of a run, and how often each is taken.

use super::clients::ClientStep;
use super::moves::{self, Move};
use super::{Numbers, clients};

/// The keys that are written and read.
pub(super) const KEYS: [&str; 3] = ["a", "b", "c"];

/// One step, which does nothing where it makes no sense.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// At a node, or at whichever leads.
    Put {
        node: Option<u64>,
        key: usize,
    },
    Get {
        node: Option<u64>,
        key: usize,
    },
    Client(ClientStep),
    Deliver {
        from: u64,
        to: u64,
        count: usize,
    },
    Drop {
        from: u64,
        to: u64,
        count: usize,
    },
    Tick(u64),
    Run(u64),
    Crash(Option<u64>),
    Restart(u64),
    Wipe(u64),
    Partition(u64),
    Cut(u64, u64),
    Heal,
    Disk(u64, bool),
    FlushAndRelease(u64),
    Transfer(u64),
    /// At a node, or at whichever leads: it is stopped for so long.
    Pause(Option<u64>, u64),
    CutCoordinator(u64),
    HealCoordinator(u64),
    Trouble(u64, u64),
    CoordinatorWorks,
    /// The others replace the leader, which does not know.
    Depose,
    Move(Move),
    /// One more write becomes durable, even on a stalled disk.
    DiskOne(u64),
    /// A node, or the leader's, dies and is back before another has missed it.
    Bounce(Option<u64>),
    /// Nodes close and discard the replicas that they are not to hold any more.
    Discard,
    /// The cohort is to end, by a seal that a node proposes, or whichever leads: for another protocol, or
    /// for a split at a key.
    Seal {
        node: Option<u64>,
        key: Option<usize>,
    },
}

/// Returns steps that end a cohort. In some, the leader applies the seal later than others, and is asked
/// meanwhile what it has.
pub(super) fn pick_seal(numbers: &mut Numbers, nodes: u64) -> Vec<Step> {
    let node = (numbers.below(4) == 0).then_some(numbers.below(nodes) + 1);
    let mut key = || usize::try_from(numbers.below(KEYS.len() as u64)).expect("few keys");
    let (at, read) = (key(), key());
    let seal = Step::Seal { node, key: (numbers.below(2) == 0).then_some(at) };
    if numbers.below(3) > 0 {
        return vec![seal];
    }
    let stalls = Step::Move(Move::Table(None, true));
    let time = Step::Run(numbers.below(100));
    vec![stalls, seal, time, Step::Get { node: None, key: read }]
}

/// Returns a step, of any kind but one.
pub(super) fn pick(numbers: &mut Numbers, nodes: u64, without: u64) -> Step {
    let node = numbers.below(nodes) + 1;
    let other = numbers.below(nodes) + 1;
    let at = (numbers.below(4) == 0).then_some(node);
    let key = usize::try_from(numbers.below(KEYS.len() as u64)).expect("few keys");
    let count = usize::try_from(numbers.below(3) + 1).expect("few messages");
    match numbers.below(20) {
        0..4 => return Step::Move(moves::pick(numbers, nodes)),
        4..7 => return Step::Client(clients::pick(numbers, at, key)),
        _ => {}
    }
    match numbers.below(112) {
        0..18 => Step::Put { node: at, key },
        18..28 => Step::Get { node: at, key },
        28..40 => Step::Deliver { from: node, to: other, count },
        40..44 if without != 0 => Step::Drop { from: node, to: other, count },
        44..50 => Step::Tick(numbers.below(400)),
        50..56 => Step::Run(numbers.below(60)),
        56..64 => Step::Run(numbers.below(600)),
        64..66 => Step::Run(1200),
        66..70 if without != 1 => Step::Crash(at),
        70..77 => Step::Restart(node),
        77..79 if without != 2 => Step::Wipe(node),
        79..81 if without != 3 => Step::Partition(node),
        81..83 if without != 4 => Step::Cut(node, other),
        83..87 => Step::Heal,
        87..89 if without != 5 => Step::Disk(node, true),
        89..91 => Step::Disk(node, false),
        91 => Step::FlushAndRelease(node),
        92 => Step::Transfer(node),
        93 if without != 6 => Step::CutCoordinator(node),
        94..96 => Step::HealCoordinator(node),
        96 | 106..109 if without != 7 => Step::Trouble(node, numbers.below(4)),
        97 if without != 7 => Step::Depose,
        98 => Step::Tick(1000 + numbers.below(100)),
        99 => Step::Pause(at, numbers.below(1500)),
        100..102 => Step::DiskOne(node),
        102..104 if without != 1 => Step::Bounce(at),
        104..106 => Step::Discard,
        _ => Step::CoordinatorWorks,
    }
}
