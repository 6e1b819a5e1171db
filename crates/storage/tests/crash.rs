//! Power cuts at every call to the disk, against a model.
//!
//! Random writes go to a few cohorts. Before every call that changes the disk, the disk is crashed in
//! several ways, and what the log opens to is compared with the model: it must be the state after
//! some prefix of all submitted writes, over all cohorts, that has in it every write whose `done` has
//! run. That is at once: nothing acknowledged is lost, nothing appears that was not submitted, no
//! cohort has a hole, and nothing that was truncated, replaced or purged ever returns.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking"
)]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use common::{Random, dir, identity, open_stepped, read_all, with_durability};
use parking_lot::Mutex;
use trireme_storage::fs::{Crash, FsOperation, MemFs};
use trireme_storage::log::{LogBounds, LogOptions, LogWrite, SharedLog};
use trireme_types::{CohortId, Durability, Entry, EntryKind, Lsn};

const COHORTS: u64 = 4;

/// What one cohort's log should be.
#[derive(Clone, Debug, Default, PartialEq)]
struct State {
    purged: Lsn,
    entries: BTreeMap<u64, Entry>,
    hard_state: Option<Bytes>,
    commit_point: Lsn,
}

impl State {
    fn last(&self) -> Lsn {
        self.entries.last_key_value().map_or(self.purged, |(_, entry)| entry.lsn)
    }

    fn truncate_after(&mut self, seq: u64) {
        self.entries.split_off(&(seq + 1));
        if self.commit_point.seq > self.last().seq {
            self.commit_point = self.last();
        }
    }

    fn purge(&mut self, upto: Lsn) {
        if upto.seq > self.purged.seq {
            self.entries = self.entries.split_off(&(upto.seq + 1));
            self.purged = upto;
            self.raise(upto);
        }
    }

    fn raise(&mut self, point: Lsn) {
        if point.seq > self.commit_point.seq {
            self.commit_point = point;
        }
    }

    fn summary(&self) -> String {
        let Self { purged, hard_state, commit_point, .. } = self;
        format!("{purged}..{} {hard_state:?} committed {commit_point}", self.last())
    }

    fn of(log: &SharedLog, cohort: CohortId) -> Self {
        let log = log.cohort(cohort);
        let entries = read_all(&log).into_iter().map(|entry| (entry.lsn.seq, entry)).collect();
        let LogBounds { purged, last } = log.bounds();
        let state = Self {
            purged,
            entries,
            hard_state: log.hard_state(),
            commit_point: log.commit_point(),
        };
        assert_eq!(state.last(), last);
        assert!(state.commit_point.seq <= last.seq, "a commit point ahead of the log (S8)");
        state
    }
}

type States = BTreeMap<CohortId, Arc<State>>;

/// The states of all cohorts after each step of the submitted writes; an append has a step for each
/// entry, since it may be cut into blocks.
struct Model {
    history: Vec<States>,
    /// How many steps are acknowledged.
    acknowledged: Arc<AtomicUsize>,
}

impl Model {
    fn new(start: States) -> Self {
        Self { history: vec![start], acknowledged: Arc::default() }
    }

    fn now(&self) -> &States {
        self.history.last().unwrap()
    }

    fn state(&self, cohort: CohortId) -> State {
        self.now().get(&cohort).map(|state| (**state).clone()).unwrap_or_default()
    }

    fn push(&mut self, cohort: CohortId, state: State) {
        let mut states = self.now().clone();
        states.insert(cohort, Arc::new(state));
        self.history.push(states);
    }

    /// Submits a write to the log and to the model.
    fn submit(&mut self, log: &SharedLog, cohort: CohortId, write: LogWrite) {
        let mut state = self.state(cohort);
        match &write {
            LogWrite::Append(entries) => {
                for entry in entries {
                    state.entries.insert(entry.lsn.seq, entry.clone());
                    self.push(cohort, state.clone());
                }
            }
            LogWrite::HardState(bytes) => state.hard_state = Some(bytes.clone()),
            LogWrite::TruncateAfter { seq } => state.truncate_after(*seq),
            LogWrite::Purge { upto } => state.purge(*upto),
            LogWrite::CommitPoint(point) => state.raise(*point),
            LogWrite::Begin { .. } => {
                unreachable!("none of these logs begins behind another one's")
            }
        }
        self.push(cohort, state);
        let step = self.history.len() - 1;
        let acknowledged = Arc::clone(&self.acknowledged);
        let done = move |result: Result<(), _>| {
            if result.is_ok() {
                let before = acknowledged.swap(step, Ordering::Relaxed);
                assert!(before < step, "answers out of order");
            }
        };
        log.cohort(cohort).submit_then(write, done).unwrap();
    }

    fn forget(&mut self, log: &SharedLog, cohort: CohortId) {
        self.push(cohort, State::default());
        log.forget_cohort(cohort).unwrap();
    }

    /// Checks that the log is what it was after some of the steps in `range`, and returns that.
    fn check(history: &[States], acknowledged: usize, log: &SharedLog, what: &str) -> States {
        let found: States = (1..=COHORTS)
            .map(|cohort| (CohortId(cohort), Arc::new(State::of(log, CohortId(cohort)))))
            .collect();
        let empty = Arc::new(State::default());
        let fits = |states: &&States| {
            found.iter().all(|(cohort, state)| state == states.get(cohort).unwrap_or(&empty))
        };
        assert!(
            history[acknowledged..].iter().any(|states| fits(&states)),
            "{what}: no prefix of at least {acknowledged} of {} steps explains {:?}; \
             acknowledged is {:?}",
            history.len() - 1,
            found.values().map(|state| state.summary()).collect::<Vec<_>>(),
            history[acknowledged].values().map(|state| state.summary()).collect::<Vec<_>>(),
        );
        found
    }
}

/// Draws a write that fits the cohort's state.
fn draw(random: &mut Random, state: &State) -> LogWrite {
    let (purged, last) = (state.purged, state.last());
    let entry = |random: &mut Random, epoch, seq| {
        let bound = if random.below(20) == 0 { 3000 } else { 200 };
        let len = random.below(bound);
        let payload = Bytes::from(vec![u8::try_from(random.below(256)).unwrap(); len as usize]);
        let kinds = [EntryKind::Commands, EntryKind::NoOp, EntryKind::Protocol];
        Entry { lsn: Lsn::new(epoch, seq), kind: kinds[random.below(3) as usize], payload }
    };
    let epoch = last.epoch + random.below(2);
    match random.below(20) {
        0..=9 => {
            let bound = if random.below(10) == 0 { 60 } else { 6 };
            let count = 1 + random.below(bound);
            LogWrite::Append((0..count).map(|i| entry(random, epoch, last.seq + 1 + i)).collect())
        }
        10..=11 if last.seq > purged.seq => {
            let seq = purged.seq + 1 + random.below(last.seq - purged.seq);
            LogWrite::Append(vec![entry(random, epoch, seq)])
        }
        12 | 13 => {
            LogWrite::TruncateAfter { seq: purged.seq + random.below(last.seq - purged.seq + 1) }
        }
        14 | 15 if last.seq > purged.seq => {
            let seq = purged.seq + 1 + random.below(last.seq - purged.seq);
            LogWrite::Purge { upto: state.entries[&seq].lsn }
        }
        16 if random.below(4) == 0 => {
            LogWrite::Purge { upto: Lsn::new(epoch, last.seq + random.below(5)) }
        }
        17 => LogWrite::HardState(Bytes::from(random.next().to_le_bytes().to_vec())),
        18 if last.seq > purged.seq => {
            let seq = purged.seq + 1 + random.below(last.seq - purged.seq);
            LogWrite::CommitPoint(state.entries[&seq].lsn)
        }
        _ => LogWrite::Append(vec![entry(random, epoch, last.seq + 1)]),
    }
}

/// A disk as a power cut would have left it, and what was acknowledged by then.
struct Cut {
    disk: MemFs,
    acknowledged: usize,
    submitted: usize,
    what: String,
}

/// Has every call that changes the disk preceded by a few power cuts.
fn cut_at_every_call(
    fs: &MemFs,
    kinds: &'static [Crash],
    acknowledged: &Arc<AtomicUsize>,
    submitted: &Arc<AtomicUsize>,
) -> Arc<Mutex<Vec<Cut>>> {
    let cuts = Arc::new(Mutex::new(Vec::new()));
    let (disk, taken) = (fs.clone(), Arc::clone(&cuts));
    let (acknowledged, submitted) = (Arc::clone(acknowledged), Arc::clone(submitted));
    fs.observe(move |call| {
        if matches!(call.operation, FsOperation::Read | FsOperation::Open) {
            return Ok(());
        }
        let mut cuts = taken.lock();
        for kind in kinds {
            let kind = match kind {
                Crash::Random(seed) => Crash::Random(seed + cuts.len() as u64),
                other => *other,
            };
            let number = cuts.len();
            cuts.push(Cut {
                disk: disk.crash_with(kind),
                acknowledged: acknowledged.load(Ordering::Relaxed),
                submitted: submitted.load(Ordering::Relaxed),
                what: format!("cut {number} ({kind:?}), before {call:?}"),
            });
        }
        Ok(())
    });
    cuts
}

/// Runs a few generations: random writes, cut at every call; one of the cuts is the next generation's
/// start.
fn run(seed: u64, options: &LogOptions, kinds: &'static [Crash], promises: bool) {
    let mut random = Random(seed);
    let mut disk = MemFs::new();
    let mut start = States::new();
    let mut moved = 0;
    for generation in 0..3 {
        let mut model = Model::new(start);
        let submitted = Arc::new(AtomicUsize::new(0));
        let cuts = cut_at_every_call(&disk, kinds, &model.acknowledged, &submitted);
        let log = open_stepped(&disk, options.clone()).unwrap();
        for _ in 0..40 {
            for _ in 0..1 + random.below(4) {
                let cohort = CohortId(1 + random.below(COHORTS));
                if random.below(100) == 0 {
                    model.forget(&log, cohort);
                } else {
                    let write = draw(&mut random, &model.state(cohort));
                    model.submit(&log, cohort, write);
                }
                submitted.store(model.history.len() - 1, Ordering::Relaxed);
                // What is moved stays what it is, wherever among the writes that happens.
                if random.below(6) == 0 {
                    log.move_oldest(random.below(3000), |_| {}).unwrap();
                }
            }
            if random.below(3) > 0 {
                log.step();
            }
        }
        while log.step() {}
        moved += log.metrics().moved_bytes;
        let what = format!("seed {seed}, generation {generation}");
        let live = model.history.len() - 1;
        Model::check(&model.history, live, &log, &format!("{what}, while open"));
        drop(log);
        disk.stop_observing();
        let cuts = std::mem::take(&mut *cuts.lock());
        let next = random.below(cuts.len() as u64) as usize;
        let mut found = None;
        for (number, cut) in cuts.into_iter().enumerate() {
            let what = format!("{what}, {}", cut.what);
            let acknowledged = if promises { cut.acknowledged } else { 0 };
            let history = &model.history[..=cut.submitted];
            let states = check_cut(&cut.disk, options, history, acknowledged, &what);
            if number % 16 == 0 {
                cut_recovery(&cut.disk, options, history, acknowledged, &what);
            }
            if number == next {
                found = Some((cut.disk, states));
            }
        }
        (disk, start) = found.unwrap();
    }
    assert!(moved > 0, "seed {seed}: nothing was moved");
}

/// Opens the log and checks it. What is found must be durable: it is found again after whatever
/// else happens.
fn check_cut(
    disk: &MemFs,
    options: &LogOptions,
    history: &[States],
    acknowledged: usize,
    what: &str,
) -> States {
    // The crash leaves the cut as it is, for others to open.
    let disk = disk.crash_with(Crash::KeepUnsynced);
    let log = match open_stepped(&disk, options.clone()) {
        Ok(log) => log,
        Err(error) => panic!("{what}: {error}"),
    };
    let found = Model::check(history, acknowledged, &log, what);
    drop(log);
    let again = open_stepped(&disk.crash_with(Crash::LoseUnsynced), options.clone()).unwrap();
    let states: Vec<States> = vec![found.clone()];
    Model::check(&states, 0, &again, &format!("{what}, opened again"));
    found
}

/// Cuts the power at every call of local recovery itself.
fn cut_recovery(
    disk: &MemFs,
    options: &LogOptions,
    history: &[States],
    acknowledged: usize,
    what: &str,
) {
    static BOTH: [Crash; 2] = [Crash::Random(77), Crash::LoseUnsynced];
    let disk = disk.crash_with(Crash::KeepUnsynced);
    let nothing = Arc::new(AtomicUsize::new(0));
    let cuts = cut_at_every_call(&disk, &BOTH, &nothing, &nothing);
    drop(open_stepped(&disk, options.clone()).unwrap());
    disk.stop_observing();
    for cut in std::mem::take(&mut *cuts.lock()) {
        let what = format!("{what}, then in recovery {}", cut.what);
        check_cut(&cut.disk, options, history, acknowledged, &what);
    }
}

const ALL_KINDS: [Crash; 4] =
    [Crash::LoseUnsynced, Crash::KeepUnsynced, Crash::Random(1), Crash::Random(2)];

#[test]
fn no_power_cut_loses_what_was_forced_or_brings_back_what_was_dropped() {
    for seed in 0..2 {
        run(seed, &with_durability(Durability::Fsync), &ALL_KINDS, true);
    }
}

/// Small entries over few blocks, where most cuts fall into the making and removing of segments.
#[test]
fn no_power_cut_harms_a_log_that_rolls_with_every_other_block() {
    let options = LogOptions { segment_bytes: 4096, ..with_durability(Durability::Fsync) };
    for seed in 100..102 {
        run(seed, &options, &ALL_KINDS, true);
    }
}

#[test]
fn without_forcing_the_death_of_the_process_loses_nothing() {
    for seed in 200..202 {
        run(seed, &with_durability(Durability::Os), &[Crash::KeepUnsynced], true);
    }
}

/// What was acknowledged may be lost then, but what is left is a prefix, and the log opens.
#[test]
fn without_forcing_a_power_cut_leaves_a_prefix() {
    static KINDS: [Crash; 3] = [Crash::Random(5), Crash::Random(6), Crash::LoseUnsynced];
    for seed in 300..302 {
        for durability in [Durability::Os, Durability::Memory] {
            run(seed, &with_durability(durability), &KINDS, false);
        }
    }
}

/// The golden trace of Spinnaker's appendix B for one follower: 1.22 was truncated, and must not
/// return, however often the node restarts (M24).
#[test]
fn a_truncated_entry_never_returns_over_repeated_restarts() {
    let fs = MemFs::new();
    let cohort = CohortId(1);
    let write = |fs: &MemFs, write| {
        let log = open_stepped(fs, common::small()).unwrap();
        common::step(&log, 1, write);
        State::of(&log, cohort)
    };
    let first: Vec<Entry> = (1..=22).map(|seq| common::entry(1, seq, "old")).collect();
    write(&fs, LogWrite::Append(first));
    write(&fs, LogWrite::TruncateAfter { seq: 21 });
    let at_21 = write(&fs, LogWrite::HardState(Bytes::from_static(b"epoch 2")));
    assert_eq!(at_21.last(), Lsn::new(1, 21));
    let second: Vec<Entry> = (22..=30).map(|seq| common::entry(2, seq, "new")).collect();
    write(&fs, LogWrite::Append(second));
    for restart in 0..5 {
        let fs = fs.crash(restart);
        let log = SharedLog::open(Arc::new(fs), dir(), identity(), common::small()).unwrap();
        let state = State::of(&log, cohort);
        assert_eq!(state.last(), Lsn::new(2, 30));
        assert_eq!(state.entries[&22], common::entry(2, 22, "new"));
        assert_eq!(log.cohort(cohort).lsn_at(21), Some(Lsn::new(1, 21)));
    }
}
