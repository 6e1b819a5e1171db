//! What etcd refuses before it looks at its data, and what requests mean on the store.

use std::collections::HashSet;

use bytes::Bytes;
use etcd_client::proto::{
    PbCompare, PbDeleteRequest, PbDeleteResponse, PbKeyValue, PbPutRequest, PbPutResponse,
    PbRangeRequest, PbRangeResponse, PbResponseHeader, PbResponseOp, PbTargetUnion, PbTxnOpRequest,
    PbTxnOpResponse, PbTxnRequest, PbTxnRequestOp, PbTxnResponse,
};

use super::fault::Refusal;
use super::store::{Interval, NO_LEASE, Store, WriteTxn};

/// The most operations in one list of a transaction: etcd's default.
pub(super) const TXN_OPERATIONS_MAX: usize = 128;

mod sort_order {
    pub(super) const NONE: i32 = 0;
    pub(super) const ASCEND: i32 = 1;
    pub(super) const DESCEND: i32 = 2;
}

mod sort_target {
    pub(super) const KEY: i32 = 0;
    pub(super) const VERSION: i32 = 1;
    pub(super) const CREATE: i32 = 2;
    pub(super) const MOD: i32 = 3;
    pub(super) const VALUE: i32 = 4;
}

mod compare_result {
    pub(super) const EQUAL: i32 = 0;
    pub(super) const GREATER: i32 = 1;
    pub(super) const LESS: i32 = 2;
    pub(super) const NOT_EQUAL: i32 = 3;
}

mod compare_target {
    pub(super) const VERSION: i32 = 0;
    pub(super) const CREATE: i32 = 1;
    pub(super) const MOD: i32 = 2;
    pub(super) const VALUE: i32 = 3;
    pub(super) const LEASE: i32 = 4;
}

// ---- checks ----------------------------------------------------------------------------------

pub(super) fn check_range(request: &PbRangeRequest) -> Result<(), Refusal> {
    refuse_if(request.key.is_empty(), Refusal::EmptyKey)
}

pub(super) fn check_put(request: &PbPutRequest) -> Result<(), Refusal> {
    refuse_if(request.key.is_empty(), Refusal::EmptyKey)?;
    refuse_if(request.ignore_value && !request.value.is_empty(), Refusal::ValueProvided)?;
    refuse_if(request.ignore_lease && request.lease != NO_LEASE, Refusal::LeaseProvided)
}

pub(super) fn check_delete(request: &PbDeleteRequest) -> Result<(), Refusal> {
    refuse_if(request.key.is_empty(), Refusal::EmptyKey)
}

pub(super) fn check_txn(request: &PbTxnRequest) -> Result<(), Refusal> {
    check_txn_shape(request, TXN_OPERATIONS_MAX)?;
    check_overlaps(&request.success)?;
    check_overlaps(&request.failure)?;
    Ok(())
}

/// Checks a transaction and those nested in it, which may together go `budget` operations deep:
/// the bound on the nesting is also what keeps this recursion from overrunning the stack.
fn check_txn_shape(request: &PbTxnRequest, budget: usize) -> Result<(), Refusal> {
    let longest = request.compare.len().max(request.success.len()).max(request.failure.len());
    refuse_if(longest > budget, Refusal::TooManyOperations)?;
    refuse_if(request.compare.iter().any(|c| c.key.is_empty()), Refusal::EmptyKey)?;
    for operation in request.success.iter().chain(&request.failure) {
        match &operation.request {
            Some(PbTxnOpRequest::RequestRange(range)) => check_range(range)?,
            Some(PbTxnOpRequest::RequestPut(put)) => check_put(put)?,
            Some(PbTxnOpRequest::RequestDeleteRange(delete)) => check_delete(delete)?,
            Some(PbTxnOpRequest::RequestTxn(txn)) => check_txn_shape(txn, budget - longest)?,
            None => return Err(Refusal::KeyNotFound),
        }
    }
    Ok(())
}

/// The keys that a list of operations puts and the intervals that it deletes, at any depth.
#[derive(Default)]
struct Touched {
    puts: HashSet<Vec<u8>>,
    deletes: Vec<Interval>,
}

impl Touched {
    fn deletes_key(&self, key: &[u8]) -> bool {
        self.deletes.iter().any(|interval| interval.contains(key))
    }
}

/// Refuses operations of one branch of which two change the same key: what they mean together
/// would hang on their order.
fn check_overlaps(operations: &[PbTxnRequestOp]) -> Result<Touched, Refusal> {
    let mut touched = Touched::default();
    for operation in operations {
        if let Some(PbTxnOpRequest::RequestDeleteRange(delete)) = &operation.request {
            touched.deletes.push(Interval::literal(&delete.key, &delete.range_end));
        }
    }
    for operation in operations {
        if let Some(PbTxnOpRequest::RequestTxn(txn)) = &operation.request {
            add_nested(&mut touched, txn)?;
        }
    }
    for operation in operations {
        if let Some(PbTxnOpRequest::RequestPut(put)) = &operation.request {
            let taken = touched.puts.contains(&put.key) || touched.deletes_key(&put.key);
            refuse_if(taken, Refusal::DuplicateKey)?;
            touched.puts.insert(put.key.clone());
        }
    }
    Ok(touched)
}

/// Adds what a nested transaction touches. Its two branches may touch the same keys, since only
/// one of them is taken.
fn add_nested(touched: &mut Touched, txn: &PbTxnRequest) -> Result<(), Refusal> {
    let then = check_overlaps(&txn.success)?;
    let otherwise = check_overlaps(&txn.failure)?;
    for key in &then.puts {
        let taken = touched.puts.contains(key) || touched.deletes_key(key);
        refuse_if(taken, Refusal::DuplicateKey)?;
    }
    for key in &otherwise.puts {
        let taken = touched.puts.contains(key) || touched.deletes_key(key);
        refuse_if(taken, Refusal::DuplicateKey)?;
    }
    touched.puts.extend(then.puts);
    touched.puts.extend(otherwise.puts);
    touched.deletes.extend(then.deletes);
    touched.deletes.extend(otherwise.deletes);
    Ok(())
}

/// Says whether a transaction can change nothing, whichever branch is taken.
pub(super) fn is_read_only(request: &PbTxnRequest) -> bool {
    request.success.iter().chain(&request.failure).all(|operation| match &operation.request {
        Some(PbTxnOpRequest::RequestRange(_)) => true,
        Some(PbTxnOpRequest::RequestTxn(txn)) => is_read_only(txn),
        _ => false,
    })
}

fn refuse_if(refuse: bool, refusal: Refusal) -> Result<(), Refusal> {
    if refuse { Err(refusal) } else { Ok(()) }
}

// ---- meaning ---------------------------------------------------------------------------------

/// Answers a range request on a store whose newest revision, for this reader, is `current`.
pub(super) fn range(
    store: &Store,
    request: &PbRangeRequest,
    current: i64,
) -> Result<PbRangeResponse, Refusal> {
    let at = store.readable(request.revision, current)?;
    let interval = Interval::new(&request.key, &request.range_end);
    let filtered = request.min_mod_revision != 0
        || request.max_mod_revision != 0
        || request.min_create_revision != 0
        || request.max_create_revision != 0;
    let wanted = usize::try_from(request.limit).ok().filter(|&limit| limit > 0);
    let cut_early = request.sort_order == sort_order::NONE && !filtered;
    let limit = match wanted {
        _ if request.count_only => 0,
        Some(limit) if cut_early => limit.saturating_add(1),
        _ => usize::MAX,
    };
    let (mut kvs, count) = store.range(&interval, at, limit);
    kvs.retain(|kv| passes_filters(request, kv));
    sort(request, &mut kvs);
    let more = wanted.is_some_and(|limit| kvs.len() > limit);
    kvs.truncate(wanted.unwrap_or(usize::MAX));
    if request.keys_only {
        kvs.iter_mut().for_each(|kv| kv.value = Vec::new());
    }
    let count = i64::try_from(count).unwrap_or(i64::MAX);
    Ok(PbRangeResponse { header: header_at(current), kvs, more, count })
}

fn passes_filters(request: &PbRangeRequest, kv: &PbKeyValue) -> bool {
    let within =
        |value: i64, min: i64, max: i64| (max == 0 || value <= max) && (min == 0 || value >= min);
    within(kv.mod_revision, request.min_mod_revision, request.max_mod_revision)
        && within(kv.create_revision, request.min_create_revision, request.max_create_revision)
}

fn sort(request: &PbRangeRequest, kvs: &mut [PbKeyValue]) {
    let order = match request.sort_order {
        // Keys come sorted from the store; any other target without an order rises.
        sort_order::NONE if request.sort_target == sort_target::KEY => return,
        sort_order::NONE => sort_order::ASCEND,
        order => order,
    };
    kvs.sort_by(|a, b| {
        let ordering = match request.sort_target {
            sort_target::VERSION => a.version.cmp(&b.version),
            sort_target::CREATE => a.create_revision.cmp(&b.create_revision),
            sort_target::MOD => a.mod_revision.cmp(&b.mod_revision),
            sort_target::VALUE => a.value.cmp(&b.value),
            _ => a.key.cmp(&b.key),
        };
        if order == sort_order::DESCEND { ordering.reverse() } else { ordering }
    });
}

/// Applies a put that stands alone.
pub(super) fn put(store: &mut Store, request: PbPutRequest) -> Result<PbPutResponse, Refusal> {
    // Alone, a put is refused for its lease first; in a transaction, for its key.
    check_lease(store, &request)?;
    check_put_applies(store, &request)?;
    let mut txn = store.write();
    let response = put_in(&mut txn, request);
    txn.end();
    Ok(response)
}

/// Applies a deletion that stands alone.
pub(super) fn delete(store: &mut Store, request: &PbDeleteRequest) -> PbDeleteResponse {
    let mut txn = store.write();
    let response = delete_in(&mut txn, request);
    txn.end();
    response
}

/// Applies a transaction: all of it or, if refused, nothing.
pub(super) fn txn(store: &mut Store, request: PbTxnRequest) -> Result<PbTxnResponse, Refusal> {
    let taken = choose(store, &request);
    check_applies(store, &request, &taken)?;
    let mut txn = store.write();
    let mut response = apply(&mut txn, request, &mut taken.into_iter())?;
    response.header = header_at(txn.revision());
    txn.end();
    Ok(response)
}

/// Answers a transaction that only reads.
pub(super) fn read_only_txn(
    store: &Store,
    request: &PbTxnRequest,
) -> Result<PbTxnResponse, Refusal> {
    let taken = choose(store, request);
    check_applies(store, request, &taken)?;
    let mut response = read_branch(store, request, &mut taken.into_iter())?;
    response.header = header_at(store.revision());
    Ok(response)
}

fn read_branch(
    store: &Store,
    request: &PbTxnRequest,
    taken: &mut impl Iterator<Item = bool>,
) -> Result<PbTxnResponse, Refusal> {
    let succeeded = taken.next().unwrap_or(false);
    let mut responses = Vec::new();
    for operation in branch(request, succeeded) {
        let response = match &operation.request {
            Some(PbTxnOpRequest::RequestRange(request)) => {
                PbTxnOpResponse::ResponseRange(range(store, request, store.revision())?)
            }
            Some(PbTxnOpRequest::RequestTxn(request)) => {
                PbTxnOpResponse::ResponseTxn(read_branch(store, request, taken)?)
            }
            _ => return Err(Refusal::KeyNotFound),
        };
        responses.push(PbResponseOp { response: Some(response) });
    }
    let header = Some(PbResponseHeader::default());
    Ok(PbTxnResponse { header, succeeded, responses })
}

/// Decides, before anything is changed, which branch is taken by the transaction and by each of
/// those nested in the taken branches, in the order in which they will be met.
fn choose(store: &Store, request: &PbTxnRequest) -> Vec<bool> {
    let succeeded = request.compare.iter().all(|compare| holds(store, compare));
    let mut taken = vec![succeeded];
    for operation in branch(request, succeeded) {
        if let Some(PbTxnOpRequest::RequestTxn(nested)) = &operation.request {
            taken.extend(choose(store, nested));
        }
    }
    taken
}

fn branch(request: &PbTxnRequest, succeeded: bool) -> &[PbTxnRequestOp] {
    if succeeded { &request.success } else { &request.failure }
}

/// Refuses what could fail half-way: leases and revisions that are not there.
fn check_applies(store: &Store, request: &PbTxnRequest, taken: &[bool]) -> Result<(), Refusal> {
    check_branch(
        store,
        request,
        &mut taken.iter().copied(),
        &|store, operation| match operation {
            PbTxnOpRequest::RequestPut(put) => check_put_applies(store, put),
            _ => Ok(()),
        },
    )?;
    check_branch(store, request, &mut taken.iter().copied(), &|store, operation| match operation {
        PbTxnOpRequest::RequestRange(range) if range.revision != 0 => {
            // Here, and not in a range that stands alone, a revision below 0 is an old one.
            refuse_if(range.revision > store.revision(), Refusal::FutureRevision)?;
            refuse_if(range.revision < store.compacted(), Refusal::Compacted)
        }
        _ => Ok(()),
    })
}

fn check_branch(
    store: &Store,
    request: &PbTxnRequest,
    taken: &mut impl Iterator<Item = bool>,
    check: &impl Fn(&Store, &PbTxnOpRequest) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    let succeeded = taken.next().unwrap_or(false);
    for operation in branch(request, succeeded) {
        match &operation.request {
            Some(PbTxnOpRequest::RequestTxn(nested)) => {
                check_branch(store, nested, taken, check)?;
            }
            Some(operation) => check(store, operation)?,
            None => {}
        }
    }
    Ok(())
}

fn check_put_applies(store: &Store, request: &PbPutRequest) -> Result<(), Refusal> {
    if request.ignore_value || request.ignore_lease {
        let interval = Interval::new(&request.key, &[]);
        let (_, count) = store.range(&interval, store.revision(), 0);
        refuse_if(count == 0, Refusal::KeyNotFound)?;
    }
    check_lease(store, request)
}

fn check_lease(store: &Store, request: &PbPutRequest) -> Result<(), Refusal> {
    let missing = request.lease != NO_LEASE && !store.leases().contains_key(&request.lease);
    refuse_if(missing, Refusal::LeaseNotFound)
}

fn apply(
    txn: &mut WriteTxn<'_>,
    request: PbTxnRequest,
    taken: &mut impl Iterator<Item = bool>,
) -> Result<PbTxnResponse, Refusal> {
    let succeeded = taken.next().unwrap_or(false);
    let operations = if succeeded { request.success } else { request.failure };
    let mut responses = Vec::with_capacity(operations.len());
    for operation in operations {
        let response = match operation.request {
            Some(PbTxnOpRequest::RequestRange(request)) => {
                let response = range(txn.store(), &request, txn.revision())?;
                PbTxnOpResponse::ResponseRange(response)
            }
            Some(PbTxnOpRequest::RequestPut(put)) => PbTxnOpResponse::ResponsePut(put_in(txn, put)),
            Some(PbTxnOpRequest::RequestDeleteRange(delete)) => {
                PbTxnOpResponse::ResponseDeleteRange(delete_in(txn, &delete))
            }
            Some(PbTxnOpRequest::RequestTxn(nested)) => {
                PbTxnOpResponse::ResponseTxn(apply(txn, nested, taken)?)
            }
            None => return Err(Refusal::KeyNotFound),
        };
        responses.push(PbResponseOp { response: Some(response) });
    }
    let header = Some(PbResponseHeader::default());
    Ok(PbTxnResponse { header, succeeded, responses })
}

fn put_in(txn: &mut WriteTxn<'_>, request: PbPutRequest) -> PbPutResponse {
    let before = if request.prev_kv || request.ignore_value || request.ignore_lease {
        let interval = Interval::new(&request.key, &[]);
        txn.store().range(&interval, txn.revision(), 1).0.pop()
    } else {
        None
    };
    let (mut value, mut lease) = (Bytes::from(request.value), request.lease);
    if let Some(before) = &before {
        if request.ignore_value {
            value = Bytes::copy_from_slice(&before.value);
        }
        if request.ignore_lease {
            lease = before.lease;
        }
    }
    txn.put(Bytes::from(request.key), value, lease);
    let prev_kv = before.filter(|_| request.prev_kv);
    PbPutResponse { header: header_at(txn.revision()), prev_kv }
}

fn delete_in(txn: &mut WriteTxn<'_>, request: &PbDeleteRequest) -> PbDeleteResponse {
    let interval = Interval::new(&request.key, &request.range_end);
    let prev_kvs = if request.prev_kv {
        txn.store().range(&interval, txn.revision(), usize::MAX).0
    } else {
        Vec::new()
    };
    let deleted = txn.delete_range(&interval);
    PbDeleteResponse { header: header_at(txn.revision()), deleted, prev_kvs }
}

/// Says whether every key that a compare names, or the absence of any, satisfies it.
fn holds(store: &Store, compare: &PbCompare) -> bool {
    let interval = Interval::new(&compare.key, &compare.range_end);
    let (kvs, _) = store.range(&interval, store.revision(), usize::MAX);
    if kvs.is_empty() {
        // The value of a key that is not there equals nothing and differs from nothing.
        return compare.target != compare_target::VALUE
            && holds_for(compare, &PbKeyValue::default());
    }
    kvs.iter().all(|kv| holds_for(compare, kv))
}

fn holds_for(compare: &PbCompare, kv: &PbKeyValue) -> bool {
    let union = compare.target_union.as_ref();
    let ordering = match compare.target {
        compare_target::VALUE => match union {
            Some(PbTargetUnion::Value(value)) => kv.value.cmp(value),
            _ => kv.value.as_slice().cmp(&[]),
        },
        compare_target::CREATE => match union {
            Some(PbTargetUnion::CreateRevision(revision)) => kv.create_revision.cmp(revision),
            _ => kv.create_revision.cmp(&0),
        },
        compare_target::MOD => match union {
            Some(PbTargetUnion::ModRevision(revision)) => kv.mod_revision.cmp(revision),
            _ => kv.mod_revision.cmp(&0),
        },
        compare_target::VERSION => match union {
            Some(PbTargetUnion::Version(version)) => kv.version.cmp(version),
            _ => kv.version.cmp(&0),
        },
        compare_target::LEASE => match union {
            Some(PbTargetUnion::Lease(lease)) => kv.lease.cmp(lease),
            _ => kv.lease.cmp(&0),
        },
        _ => std::cmp::Ordering::Equal,
    };
    match compare.result {
        compare_result::EQUAL => ordering.is_eq(),
        compare_result::NOT_EQUAL => ordering.is_ne(),
        compare_result::GREATER => ordering.is_gt(),
        compare_result::LESS => ordering.is_lt(),
        _ => true,
    }
}

fn header_at(revision: i64) -> Option<PbResponseHeader> {
    Some(PbResponseHeader { revision, ..PbResponseHeader::default() })
}
