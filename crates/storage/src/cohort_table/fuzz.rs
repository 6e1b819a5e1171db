//! Damaged and hostile bytes in place of what a table's values are.

use bytes::Bytes;
use trireme_fuzz::{Fuzz, Verdict};
use trireme_types::{CohortId, KeyRange, Lsn, Version};

use super::sessions::Sessions;
use crate::table::WriteBatch;
use crate::table::keys::{self, Meta, Place};
use crate::table::rows::{Part, Rows};

const COHORT: CohortId = CohortId(3);

/// A session in the format of this build and in that of 0.1.0.
const SESSIONS: [&[u8]; 3] = [
    &[2, 1, 0xc0, 0x84, 0x3d, 0xc1, 0x84, 0x3d, 4, 3, 4, 0, 7, 5, 1, 1, 6, 2, 1, 9],
    &[2, 0, 9, 1, 1, 5, 0, 3],
    &[1, 7, 2, 4, 2, 4, 0, 7, 5, 1, 1],
];

#[test]
fn fuzz_table_session() {
    Fuzz::new("fuzz_table_session", SESSIONS).run(|bytes| {
        let mut sessions = Sessions::at(5);
        let loaded = sessions.load(COHORT, &[7; 16], bytes);
        if loaded.is_ok() {
            // What was read takes part in all that sessions do.
            sessions.advance(u64::MAX / 2);
            let mut batch = WriteBatch::default();
            sessions.write_changed(Place { cohort: COHORT, generation: 1 }, &mut batch);
        }
        Verdict::from(&loaded)
    });
}

#[test]
fn fuzz_table_meta() {
    let (applied, rows) = (Lsn::new(3, 99), Rows::Own);
    let meta = Meta { generation: 2, applied, writes: 80, clock: 1 << 41, rows };
    let old = [&[1][..], &meta.encode()[1..29]].concat();
    let place = Place { cohort: CohortId(1), generation: 4 };
    let low = Part { place, range: KeyRange::new("b", Some("m")) };
    let high =
        Part { place: Place { generation: 5, ..place }, range: KeyRange::new("m", Some("x")) };
    let rows = Rows::elsewhere(vec![low.clone()]);
    let elsewhere = Meta { rows, ..meta.clone() };
    let in_parts = Meta { rows: Rows::elsewhere(vec![low, high]), ..meta.clone() };
    let seeds = [meta.encode(), elsewhere.encode(), in_parts.encode(), old];
    Fuzz::new("fuzz_table_meta", seeds).run(|bytes| {
        let decoded = Meta::decode(COHORT, bytes);
        if let Ok(meta) = &decoded {
            assert_eq!(Meta::decode(COHORT, &meta.encode()).ok(), Some(meta.clone()));
        }
        Verdict::from(&decoded)
    });
}

#[test]
fn fuzz_table_row() {
    let row = [&keys::row_header(Version(5))[..], b"value"].concat();
    let protocol = [&keys::lsn_header(Lsn::new(1, 2))[..], b"members"].concat();
    Fuzz::new("fuzz_table_row", [row, protocol]).run(|bytes| {
        let bytes = Bytes::copy_from_slice(bytes);
        let row = keys::decode_row(COHORT, &bytes);
        if let Ok((version, value)) = &row {
            assert_eq!([&keys::row_header(*version)[..], value].concat(), bytes);
        }
        if let Ok((lsn, payload)) = keys::decode_protocol(COHORT, &bytes) {
            assert_eq!([&keys::lsn_header(lsn)[..], &payload].concat(), bytes);
        }
        keys::place_of(&bytes);
        Verdict::from(&row)
    });
}
