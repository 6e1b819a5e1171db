//! Scans over ranges and pages, also while leaders and ranges move.

use std::collections::BTreeMap;

use futures::{StreamExt, TryStreamExt};
use proptest::prelude::*;
use trireme_client::{
    Bytes, Client, ClientError, Consistency, ErrorClass, KeyRange, Row, ScanRange,
};
use trireme_proto::v1::{self, response};
use trireme_types::limits::KEY_BYTES_MAX;

use trireme_fake::{Cluster, Fault};

fn keys(rows: &[Row]) -> Vec<&str> {
    rows.iter().map(|row| std::str::from_utf8(&row.key).unwrap()).collect()
}

fn fill(cluster: &Cluster) -> Vec<String> {
    let keys: Vec<String> = (0..100).map(|i| format!("{i:02}")).collect();
    for key in &keys {
        cluster.state().insert(key, "v");
    }
    keys
}

#[tokio::test]
async fn a_scan_goes_over_all_pages_and_ranges_in_both_directions() {
    let cluster = Cluster::start(3, &["20", "203", "50", "99x"]);
    let all = fill(&cluster);
    let client = Client::connect(cluster.endpoints()).await.unwrap();
    let forward = client.scan(..).collect().await.unwrap();
    assert_eq!(keys(&forward), all);
    let mut backward = client.scan(..).reverse().collect().await.unwrap();
    backward.reverse();
    assert_eq!(keys(&backward), all);
    let some = client.scan("15".."61").limit(20).collect().await.unwrap();
    assert_eq!(keys(&some), all[15..35]);
    let some = client.scan("15".."61").reverse().limit(20).collect().await.unwrap();
    assert_eq!(keys(&some), all[41..61].iter().rev().collect::<Vec<_>>());
    for empty in [client.scan("61".."15"), client.scan(..).limit(0), client.scan("995".."996")] {
        assert_eq!(empty.collect().await.unwrap(), []);
    }
}

#[tokio::test]
async fn rows_come_one_by_one_and_as_streams() {
    let cluster = Cluster::start(2, &["50"]);
    let all = fill(&cluster);
    let client = Client::connect(cluster.endpoints()).await.unwrap();
    let mut scan = client.scan(ScanRange::prefix("4")).page_rows(4);
    let mut found = Vec::new();
    while let Some(row) = scan.next().await.unwrap() {
        found.push(row);
    }
    assert_eq!(keys(&found), all[40..50]);
    assert_eq!(scan.next().await.unwrap(), None);
    let rows: Vec<Row> = client.scan("45".."55").rows().try_collect().await.unwrap();
    assert_eq!(keys(&rows), all[45..55]);
    let pages: Vec<_> = client
        .scan("45".."55")
        .consistency(Consistency::Timeline)
        .pages()
        .map(Result::unwrap)
        .collect()
        .await;
    assert!(pages.iter().all(|page| page.freshness.is_some()));
    let covered: Vec<&KeyRange> = pages.iter().map(|page| &page.covered).collect();
    assert_eq!(covered[0].start, "45");
    assert!(covered.windows(2).all(|pair| pair[0].end.as_ref() == Some(&pair[1].start)));
    assert_eq!(covered.last().unwrap().end, Some(Bytes::from("55")));
}

#[tokio::test]
async fn a_scan_goes_on_where_it_stood_after_an_error() {
    let cluster = Cluster::start(1, &[]);
    let all = fill(&cluster);
    let client = Client::connect(cluster.endpoints()).await.unwrap();
    let mut scan = client.scan(..);
    let mut found = scan.next_page().await.unwrap().unwrap().rows;
    cluster.inject(1, [Fault::Refuse(v1::ErrorCode::Invalid)]);
    assert_eq!(scan.next_page().await.unwrap_err().class(), ErrorClass::Invalid);
    found.extend(scan.collect().await.unwrap());
    assert_eq!(keys(&found), all);
}

#[tokio::test]
async fn a_scan_is_complete_while_leaders_move_and_a_range_is_split() {
    let mut cluster = Cluster::start(3, &["30", "60"]);
    let all = fill(&cluster);
    let client = Client::connect(cluster.endpoints()).await.unwrap();
    cluster.state().move_leaders_every = Some(3);
    for reverse in [false, true] {
        let scan = client.scan(..).page_rows(2);
        let mut scan = if reverse { scan.reverse() } else { scan };
        let mut found = Vec::new();
        for pages in 0.. {
            if pages == 10 {
                cluster.state().split(&["15", "30", "32", "60", "61", "80"]);
            }
            if pages == 20 {
                cluster.kill_node(2);
                cluster.start_node(2);
                cluster.state().split(&["50"]);
            }
            match scan.next_page().await.unwrap() {
                Some(page) => found.extend(page.rows),
                None => break,
            }
        }
        if reverse {
            found.reverse();
        }
        assert_eq!(keys(&found), all);
    }
}

#[tokio::test]
async fn a_scan_passes_the_longest_possible_key() {
    let cluster = Cluster::start(1, &[]);
    cluster.state().page_rows = 1;
    let client = Client::connect(cluster.endpoints()).await.unwrap();
    for last in [5, 6] {
        let mut key = vec![9; KEY_BYTES_MAX];
        key[KEY_BYTES_MAX - 1] = last;
        client.put(key, "v").await.unwrap();
    }
    assert_eq!(client.scan(..).collect().await.unwrap().len(), 2);
    assert_eq!(client.scan(..).reverse().collect().await.unwrap().len(), 2);
}

/// A scan must end, and must neither miss nor repeat rows, whatever a server says.
#[tokio::test]
async fn pages_that_make_no_sense_are_errors() {
    let row = |key: &'static str| v1::Row { key: key.into(), ..Default::default() };
    let page = |start: &'static str, end: &'static str, rows: &[&'static str]| v1::ScanResponse {
        rows: rows.iter().map(|key| row(key)).collect(),
        covered_start: start.into(),
        covered_end: Some(end.into()),
        freshness: None,
    };
    let cluster = Cluster::start(1, &[]);
    let client = Client::connect(cluster.endpoints()).await.unwrap();
    for bad in [
        page("b", "b", &[]),
        page("a", "a", &[]),
        page("c", "e", &["d"]),
        page("b", "e", &["f"]),
        page("b", "e", &["a"]),
        page("b", "e", &["d", "c"]),
        page("b", "e", &["c", "c"]),
        page("b", "e", &["c", "cc", "ccc", "d"]),
    ] {
        cluster.inject(1, [Fault::Nonsense(Some(response::Result::Scan(bad.clone())))]);
        let error = client.scan("b".."x").limit(3).next_page().await.unwrap_err();
        assert!(matches!(error, ClientError::Malformed { .. }), "{bad:?}: {error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn scans_find_what_a_map_finds(
        rows in proptest::collection::btree_map("[a-d]{0,3}", "[x-z]{0,2}", 0..40),
        splits in proptest::collection::btree_set("[a-d]{1,3}", 0..6),
        scans in proptest::collection::vec(
            ("[a-d]{0,3}", proptest::option::of("[a-d]{0,3}"), proptest::option::of(0_usize..20),
             any::<bool>(), 1_usize..9),
            1..8,
        ),
        moves in proptest::option::of(2_u64..6),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let cluster = Cluster::start(3, &[]);
            let splits: Vec<&str> = splits.iter().map(String::as_str).collect();
            cluster.state().split(&splits);
            rows.iter().for_each(|(key, value)| cluster.state().insert(key, value));
            let client = Client::connect(cluster.endpoints()).await.unwrap();
            cluster.state().move_leaders_every = moves;
            for (start, end, limit, reverse, page_rows) in scans {
                let expected = expected(&rows, &start, end.as_deref(), limit, reverse);
                let range = KeyRange::new(start, end);
                let mut scan = client.scan(range).page_rows(page_rows);
                if let Some(limit) = limit {
                    scan = scan.limit(limit);
                }
                if reverse {
                    scan = scan.reverse();
                }
                assert_eq!(keys(&scan.collect().await.unwrap()), expected);
            }
        });
    }
}

fn expected<'a>(
    rows: &'a BTreeMap<String, String>,
    start: &str,
    end: Option<&str>,
    limit: Option<usize>,
    reverse: bool,
) -> Vec<&'a str> {
    let inside = |key: &&str| *key >= start && end.is_none_or(|end| *key < end);
    let mut keys: Vec<&str> = rows.keys().map(String::as_str).filter(inside).collect();
    if reverse {
        keys.reverse();
    }
    keys.truncate(limit.unwrap_or(usize::MAX));
    keys
}
