//! Random logs against the model: flushes, restarts, crashes, snapshots and groupings in between.

use super::script::{Random, Script};
use super::*;

for_each_engine!(a_table_is_what_its_log_amounts_to, groupings_do_not_matter,);

/// The table against the model, over flushes, crashes, and moves to another cohort by snapshot.
fn a_table_is_what_its_log_amounts_to(engine: Engine) {
    for seed in 0..6 {
        let mut run = Run::new(engine, seed);
        for _ in 0..250 {
            run.step();
        }
        run.script.model.check(&run.table());
        assert_eq!(run.at_once > 20, engine == Engine::Lsm, "{} times at once", run.at_once);
    }
}

/// A table, the log that it was fed, and what it was after each entry.
struct Run {
    random: Random,
    script: Script,
    /// The state of the script before each entry, by sequence; entry 1 is at 0.
    history: Vec<Script>,
    fixture: Fixture,
    cohort: CohortId,
    /// How often entries were applied without a wait.
    at_once: u64,
}

impl Run {
    fn new(engine: Engine, seed: u64) -> Self {
        Self {
            random: Random(seed + 1000),
            script: Script::new(seed),
            history: Vec::new(),
            fixture: Fixture::new(engine),
            cohort: CohortId(100),
            at_once: 0,
        }
    }

    fn table(&self) -> CohortTable {
        self.fixture.tables().cohort(self.cohort, KeyRange::all()).unwrap()
    }

    fn step(&mut self) {
        match self.random.below(20) {
            0 => self.fixture.tables().flush().unwrap(),
            1 => self.crash(),
            2 => self.move_by_snapshot(),
            3 => self.script.model.check(&self.table()),
            _ => self.apply(),
        }
    }

    fn apply(&mut self) {
        let count = self.random.below(5);
        let mut entries = Vec::new();
        let mut outcomes = Vec::new();
        for _ in 0..count {
            self.history.push(self.script.clone());
            let (entry, expected) = self.script.next();
            entries.push(entry);
            outcomes.push(expected);
        }
        let table = self.table();
        let at_once = match self.random.below(2) {
            0 => table.apply_resident(&entries).unwrap(),
            _ => None,
        };
        self.at_once += u64::from(at_once.is_some());
        let applied = at_once.unwrap_or_else(|| table.apply(&entries).unwrap());
        let found: Vec<_> = applied.into_iter().map(|applied| applied.outcomes).collect();
        assert_eq!(found, outcomes);
    }

    /// After a crash the table is what it was at an earlier point that is not before the last
    /// flush, and goes on from there.
    fn crash(&mut self) {
        let persisted = self.table().persisted();
        self.fixture.reopen();
        let applied = self.table().applied();
        assert!(applied >= persisted, "{applied} is before {persisted}");
        assert_eq!(self.table().persisted(), applied);
        let seq = usize::try_from(applied.seq).unwrap();
        if seq < self.history.len() {
            self.script = self.history[seq].clone();
            self.history.truncate(seq);
        }
        self.script.model.check(&self.table());
    }

    fn move_by_snapshot(&mut self) {
        let chunks = chunks(self.table().snapshot().unwrap());
        let old = self.cohort;
        self.cohort = CohortId(old.0 + 1);
        self.table().install(stage(&chunks)).unwrap();
        assert_eq!(self.table().persisted(), self.script.model.applied);
        self.fixture.tables().drop_cohort(old).unwrap();
        self.script.model.check(&self.table());
    }
}

/// Two tables that are fed the same entries, grouped differently and with restarts between, make
/// the same snapshot bytes.
fn groupings_do_not_matter(engine: Engine) {
    let mut script = Script::new(77);
    let entries: Vec<_> = (0..400).map(|_| script.next().0).collect();
    let whole = Fixture::new(engine);
    whole.cohort().apply(&entries).unwrap();
    let mut parts = Fixture::new(engine);
    let mut random = Random(7);
    let mut rest = &entries[..];
    while !rest.is_empty() {
        let count = usize::try_from(random.below(9)).unwrap().min(rest.len());
        let (now, later) = rest.split_at(count);
        parts.cohort().apply(now).unwrap();
        rest = later;
        if random.below(10) == 0 {
            parts.tables().flush().unwrap();
            parts.reopen();
        }
    }
    script.model.check(&whole.cohort());
    script.model.check(&parts.cohort());
    let bytes = |fixture: &Fixture| chunks(fixture.cohort().snapshot().unwrap());
    assert_eq!(bytes(&whole), bytes(&parts));
}
