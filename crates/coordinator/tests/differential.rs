//! The embedded server and a real etcd, driven by the same seeded random operations: every answer
//! and every watched event has to be the same, revisions and error texts included.
//!
//! `TRIREME_DIFFERENTIAL_SEED` and `TRIREME_DIFFERENTIAL_OPS` choose another run.

#![allow(clippy::unwrap_used, reason = "in a test, what cannot be unwrapped is a failure")]

mod support;

use etcd_client::proto::{PbResponseHeader, PbTxnOpResponse, PbTxnResponse};
use etcd_client::{
    Client, CompactionOptions, Compare, CompareOp, DeleteOptions, Error, GetOptions,
    LeaseGrantOptions, LeaseTimeToLiveOptions, PutOptions, SortOrder, SortTarget, Txn, TxnOp,
    WatchFilterType, WatchOptions, WatchStream,
};
use support::etcd::Etcd;
use support::{Embedded, PATIENCE, eventually};
use tokio::time::timeout;

const DEFAULT_SEED: u64 = 20_111_004;
const DEFAULT_OPS: u64 = 20_000;

/// Operations between two comparisons of what was watched.
const OPS_PER_STRETCH: u64 = 500;

/// Splitmix64: small, seeded, the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn signed_below(&mut self, bound: i64) -> i64 {
        i64::try_from(self.below(bound.unsigned_abs())).expect("below an i64")
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn of<T: Clone>(&mut self, choices: &[T]) -> T {
        let index = usize::try_from(self.below(choices.len() as u64)).expect("an index");
        choices[index].clone()
    }
}

/// One random request, to be sent to both.
#[derive(Clone, Debug)]
enum Request {
    Put(String, String, PutOptions),
    Get(String, GetOptions, bool),
    Delete(String, DeleteOptions),
    Txn(Txn),
    Grant(i64, i64),
    Revoke(i64),
    TimeToLive(i64, bool),
    Leases,
    KeepAlive(i64),
}

struct Generator {
    random: Random,
    /// About where the revision is, to name older and later ones.
    revision: i64,
    compacted: i64,
}

impl Generator {
    fn key(&mut self) -> String {
        match self.random.below(10) {
            0 => format!("dir/{}", self.random.below(4)),
            1 => format!("dir/{}/deep", self.random.below(3)),
            2 if self.random.chance(3) => String::new(),
            _ => format!("k{:02}", self.random.below(16)),
        }
    }

    fn value(&mut self) -> String {
        match self.random.below(6) {
            0 => String::new(),
            1 => "x".repeat(usize::try_from(self.random.below(300)).expect("small")),
            _ => format!("v{}", self.random.below(5)),
        }
    }

    fn lease(&mut self) -> i64 {
        self.random.signed_below(12) + 1
    }

    fn some_revision(&mut self) -> i64 {
        match self.random.below(12) {
            0 => self.revision + 1 + self.random.signed_below(5),
            1 => self.compacted - self.random.signed_below(3),
            2 => self.compacted,
            _ => self.revision - self.random.signed_below(40),
        }
    }

    fn request(&mut self) -> Request {
        match self.random.below(100) {
            0..=29 => {
                let (key, value, options) = self.put();
                Request::Put(key, value, options)
            }
            30..=49 => {
                let (key, options, ordered) = self.get();
                Request::Get(key, options, ordered)
            }
            50..=61 => {
                let (key, options) = self.delete();
                Request::Delete(key, options)
            }
            62..=88 => Request::Txn(self.txn(2)),
            89..=91 => {
                let ttl = self.random.of(&[-1, 0, 1, 2, 60, 3600, 9_000_000_001]);
                Request::Grant(self.lease(), if ttl <= 2 { 600 + ttl } else { ttl })
            }
            92..=93 => Request::Revoke(self.lease()),
            94..=95 => Request::TimeToLive(self.lease(), self.random.chance(70)),
            96 => Request::Leases,
            _ => Request::KeepAlive(self.lease()),
        }
    }

    fn put(&mut self) -> (String, String, PutOptions) {
        let mut options = PutOptions::new();
        if self.random.chance(25) {
            options = options.with_lease(self.lease());
        }
        if self.random.chance(30) {
            options = options.with_prev_key();
        }
        let mut value = self.value();
        if self.random.chance(8) {
            options = options.with_ignore_value();
            if self.random.chance(80) {
                value = String::new();
            }
        }
        if self.random.chance(8) {
            options = options.with_ignore_lease();
        }
        (self.key(), value, options)
    }

    /// Also says whether the answer's order is defined: etcd leaves open how equals are sorted.
    fn get(&mut self) -> (String, GetOptions, bool) {
        let mut options = GetOptions::new();
        let key = self.key();
        options = match self.random.below(6) {
            0 => options.with_prefix(),
            1 => options.with_from_key(),
            2 => options.with_all_keys(),
            3 => options.with_range(self.key()),
            _ => options,
        };
        let mut ordered = true;
        if self.random.chance(30) {
            let targets = [
                SortTarget::Key,
                SortTarget::Version,
                SortTarget::Create,
                SortTarget::Mod,
                SortTarget::Value,
            ];
            let orders = [SortOrder::None, SortOrder::Ascend, SortOrder::Descend];
            let target = self.random.of(&targets);
            ordered = target == SortTarget::Key;
            options = options.with_sort(target, self.random.of(&orders));
        }
        if ordered && self.random.chance(30) {
            options = options.with_limit(self.random.signed_below(6));
        }
        if self.random.chance(30) {
            options = options.with_revision(self.some_revision());
        }
        if self.random.chance(10) {
            options = options.with_keys_only();
        }
        if self.random.chance(10) {
            options = options.with_count_only();
        }
        if self.random.chance(10) {
            options = options.with_min_mod_revision(self.some_revision());
        }
        if self.random.chance(10) {
            options = options.with_max_mod_revision(self.some_revision());
        }
        if self.random.chance(5) {
            options = options.with_min_create_revision(self.some_revision());
        }
        if self.random.chance(5) {
            options = options.with_max_create_revision(self.some_revision());
        }
        if self.random.chance(10) {
            options = options.with_serializable();
        }
        (key, options, ordered)
    }

    fn delete(&mut self) -> (String, DeleteOptions) {
        let mut options = DeleteOptions::new();
        options = match self.random.below(20) {
            0 => options.with_prefix(),
            1 | 2 => options.with_range(self.key()),
            _ => options,
        };
        if self.random.chance(40) {
            options = options.with_prev_key();
        }
        (self.key(), options)
    }

    fn txn(&mut self, depth: u32) -> Txn {
        let compares: Vec<_> = (0..self.random.below(3)).map(|_| self.compare()).collect();
        Txn::new().when(compares).and_then(self.ops(depth)).or_else(self.ops(depth))
    }

    fn ops(&mut self, depth: u32) -> Vec<TxnOp> {
        let mut ops = Vec::new();
        for _ in 0..self.random.below(4) {
            ops.push(match self.random.below(10) {
                0..=4 => {
                    let (key, value, options) = self.put();
                    TxnOp::put(key, value, Some(options))
                }
                5 | 6 => {
                    let (key, options, ordered) = self.get();
                    // An answer whose order is open would make the whole transaction's so.
                    let options = if ordered { options } else { GetOptions::new() };
                    TxnOp::get(key, Some(options))
                }
                7 | 8 => {
                    let (key, options) = self.delete();
                    TxnOp::delete(key, Some(options))
                }
                _ if depth > 0 => TxnOp::txn(self.txn(depth - 1)),
                _ => TxnOp::get(self.key(), None),
            });
        }
        ops
    }

    fn compare(&mut self) -> Compare {
        let ops = [CompareOp::Equal, CompareOp::Greater, CompareOp::Less, CompareOp::NotEqual];
        let op = self.random.of(&ops);
        let key = self.key();
        let compare = match self.random.below(5) {
            0 => Compare::version(key, op, self.random.signed_below(4)),
            1 => Compare::create_revision(key, op, self.some_revision()),
            2 => Compare::mod_revision(key, op, self.some_revision()),
            3 => Compare::value(key, op, self.value()),
            _ => Compare::lease(key, op, self.lease() - 1),
        };
        match self.random.below(8) {
            0 => compare.with_prefix(),
            1 => compare.with_range(self.key()),
            _ => compare,
        }
    }
}

/// One of the two servers.
struct Side {
    client: Client,
    watches: Vec<WatchStream>,
}

impl Side {
    async fn new(endpoints: Vec<String>) -> Self {
        let mut client = Client::connect(endpoints, None).await.unwrap();
        let mut watches = Vec::new();
        let options = [
            WatchOptions::new().with_all_keys().with_prev_key(),
            WatchOptions::new().with_from_key().with_filters([WatchFilterType::NoPut]),
            WatchOptions::new().with_from_key().with_filters([WatchFilterType::NoDelete]),
        ];
        for (key, options) in ["", "k05", "dir/2"].into_iter().zip(options) {
            watches.push(client.watch(key, Some(options)).await.unwrap());
        }
        Self { client, watches }
    }

    /// Sends a request and returns the answer as text, without what names the server.
    async fn ask(&mut self, request: Request) -> (String, Option<i64>) {
        let mut revision = None;
        let text = match request {
            Request::Put(key, value, options) => {
                show(self.client.put(key, value, Some(options)).await, |answer| {
                    revision = strip(&mut answer.0.header);
                    format!("{:?}", answer.0)
                })
            }
            Request::Get(key, options, ordered) => {
                show(self.client.get(key, Some(options)).await, |answer| {
                    revision = strip(&mut answer.0.header);
                    if !ordered {
                        answer.0.kvs.sort_by(|a, b| a.key.cmp(&b.key));
                    }
                    format!("{:?}", answer.0)
                })
            }
            Request::Delete(key, options) => {
                show(self.client.delete(key, Some(options)).await, |answer| {
                    revision = strip(&mut answer.0.header);
                    format!("{:?}", answer.0)
                })
            }
            Request::Txn(txn) => show(self.client.txn(txn).await, |answer| {
                revision = strip(&mut answer.0.header);
                strip_nested(&mut answer.0);
                format!("{:?}", answer.0)
            }),
            lease => return (self.ask_lease(lease).await, None),
        };
        (text, revision)
    }

    async fn ask_lease(&mut self, request: Request) -> String {
        let mut leases = self.client.lease_client();
        match request {
            Request::Grant(id, ttl) => {
                let options = LeaseGrantOptions::new().with_id(id);
                show(leases.grant(ttl, Some(options)).await, |answer| {
                    strip(&mut answer.0.header);
                    format!("{:?}", answer.0)
                })
            }
            Request::Revoke(id) => show(leases.revoke(id).await, |answer| {
                strip(&mut answer.0.header);
                format!("{:?}", answer.0)
            }),
            Request::TimeToLive(id, keys) => {
                let options = keys.then(|| LeaseTimeToLiveOptions::new().with_keys());
                show(leases.time_to_live(id, options).await, |answer| {
                    strip(&mut answer.0.header);
                    answer.0.keys.sort();
                    // The time left is the clock's; that there is some is the server's.
                    answer.0.ttl = answer.0.ttl.signum();
                    format!("{:?}", answer.0)
                })
            }
            Request::Leases => show(leases.leases().await, |answer| {
                strip(&mut answer.0.header);
                answer.0.leases.sort_by_key(|lease| lease.id);
                format!("{:?}", answer.0)
            }),
            Request::KeepAlive(id) => {
                show(leases.keep_alive(id).await, |(keeper, _)| format!("{}", keeper.id()))
            }
            other => panic!("{other:?} is no lease request"),
        }
    }

    /// Returns the events of each watch up to those of the mark, a key that was put and deleted.
    async fn events_to_mark(&mut self, mark: &str) -> Vec<Vec<String>> {
        let mut all = Vec::new();
        for (watch, ends_with_deletion) in self.watches.iter_mut().zip([true, true, false]) {
            all.push(events_to_mark(watch, mark, ends_with_deletion).await);
        }
        all
    }

    /// Returns the history from `start` to the mark, as a new watch tells it.
    async fn history(&mut self, start: i64, mark: &str) -> Vec<String> {
        let options = WatchOptions::new().with_all_keys().with_prev_key();
        let options = options.with_start_revision(start);
        let mut watch = self.client.watch("", Some(options)).await.unwrap();
        events_to_mark(&mut watch, mark, true).await
    }

    /// Returns how a watch from a compacted revision is refused.
    async fn refused_history(&mut self, start: i64) -> Vec<String> {
        let options = WatchOptions::new().with_all_keys().with_start_revision(start);
        let mut watch = self.client.watch("", Some(options)).await.unwrap();
        let mut told = Vec::new();
        for _ in 0..2 {
            let message = timeout(PATIENCE, watch.message()).await.unwrap().unwrap().unwrap();
            let mut message = message.0;
            strip(&mut message.header);
            told.push(format!("{message:?}"));
        }
        told
    }
}

async fn events_to_mark(
    watch: &mut WatchStream,
    mark: &str,
    ends_with_deletion: bool,
) -> Vec<String> {
    let mut told = Vec::new();
    loop {
        let message = timeout(PATIENCE, watch.message()).await.expect("events in time");
        let message = message.unwrap().expect("an open watch");
        let mut ended = false;
        for event in message.0.events {
            let is_mark = event.kv.as_ref().is_some_and(|kv| kv.key == mark.as_bytes());
            ended |= is_mark && (event.r#type == 1) == ends_with_deletion;
            told.push(format!("{event:?}"));
        }
        if ended {
            return told;
        }
    }
}

fn show<T>(answer: Result<T, Error>, text: impl FnOnce(&mut T) -> String) -> String {
    match answer {
        Ok(mut answer) => text(&mut answer),
        Err(Error::GRpcStatus(status)) => {
            format!("refused: {:?} {}", status.code(), status.message())
        }
        Err(other) => format!("error: {other}"),
    }
}

/// Takes out of a header what names the server and returns its revision.
fn strip(header: &mut Option<PbResponseHeader>) -> Option<i64> {
    let header = header.as_mut()?;
    (header.cluster_id, header.member_id, header.raft_term) = (0, 0, 0);
    Some(header.revision)
}

fn strip_nested(response: &mut PbTxnResponse) {
    for response in &mut response.responses {
        match &mut response.response {
            Some(PbTxnOpResponse::ResponseRange(range)) => drop(strip(&mut range.header)),
            Some(PbTxnOpResponse::ResponsePut(put)) => drop(strip(&mut put.header)),
            Some(PbTxnOpResponse::ResponseDeleteRange(delete)) => drop(strip(&mut delete.header)),
            Some(PbTxnOpResponse::ResponseTxn(txn)) => {
                strip(&mut txn.header);
                strip_nested(txn);
            }
            None => {}
        }
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_answer_differs_from_etcd() {
    if !support::etcd::available() {
        return;
    }
    let seed = setting("TRIREME_DIFFERENTIAL_SEED", DEFAULT_SEED);
    let ops = setting("TRIREME_DIFFERENTIAL_OPS", DEFAULT_OPS);
    let etcd = Etcd::start(1);
    let embedded = Embedded::start().await;
    eventually("etcd", || async {
        let mut client = Client::connect(etcd.endpoints(), None).await.ok()?;
        client.get("x", None).await.ok()
    })
    .await;
    let mut real = Side::new(etcd.endpoints()).await;
    let mut ours = Side::new(embedded.endpoints()).await;
    let mut generator = Generator { random: Random(seed), revision: 1, compacted: 0 };
    let mut done = 0;
    while done < ops {
        for _ in 0..OPS_PER_STRETCH {
            let request = generator.request();
            let ((expected, revision), (found, _)) =
                tokio::join!(real.ask(request.clone()), ours.ask(request.clone()));
            assert_eq!(found, expected, "seed {seed}, operation {done}: {request:#?}");
            generator.revision = generator.revision.max(revision.unwrap_or(0));
            done += 1;
        }
        compare_watches(&mut real, &mut ours, &mut generator, seed).await;
    }
}

/// Compares what was watched in a stretch and what new watches tell of the history; then compacts.
async fn compare_watches(real: &mut Side, ours: &mut Side, generator: &mut Generator, seed: u64) {
    let mark = format!("zz-mark-{}", generator.revision);
    for side in [&mut *real, &mut *ours] {
        side.client.put(mark.as_str(), "", None).await.unwrap();
        let deleted = side.client.delete(mark.as_str(), None).await.unwrap();
        generator.revision = deleted.header().unwrap().revision();
    }
    let context = format!("seed {seed}, revision {}", generator.revision);
    let (expected, found) = tokio::join!(real.events_to_mark(&mark), ours.events_to_mark(&mark));
    assert_eq!(found, expected, "watched, {context}");
    let span = generator.revision - generator.compacted - 1;
    let start = generator.compacted + 1 + generator.random.signed_below(span.max(1));
    let (expected, found) = tokio::join!(real.history(start, &mark), ours.history(start, &mark));
    assert_eq!(found, expected, "the history from {start}, {context}");
    let at = generator.revision - 20 + generator.random.signed_below(25);
    let physical = Some(CompactionOptions::new().with_physical());
    for at in [at, at] {
        let expected = show(real.client.compact(at, physical.clone()).await, |answer| {
            strip(&mut answer.0.header);
            format!("{:?}", answer.0)
        });
        let found = show(ours.client.compact(at, physical.clone()).await, |answer| {
            strip(&mut answer.0.header);
            format!("{:?}", answer.0)
        });
        assert_eq!(found, expected, "the compaction to {at}, {context}");
    }
    if at <= generator.revision {
        generator.compacted = at;
        let start = at - 1 - generator.random.signed_below(10);
        let (expected, found) =
            tokio::join!(real.refused_history(start), ours.refused_history(start));
        assert_eq!(found, expected, "the compacted history from {start}, {context}");
    }
}
