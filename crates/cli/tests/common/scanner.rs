//! Scans that go on while ranges change.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use trireme_client::ClientOptions;

use super::Cluster;

/// How many rows a scan reads over and over, and how many at once.
const ROWS: usize = 400;
const PAGE_ROWS: usize = 7;

/// How long a request may take, with all that befalls the cluster.
const PATIENCE: Duration = Duration::from_secs(60);

/// Reads all rows over and over, a few at once, and finds each of those that are not written exactly once.
pub(crate) struct Scanner {
    stop: CancellationToken,
    scanning: JoinHandle<usize>,
}

impl Scanner {
    /// Writes rows around all of `borders`, and reads them from now on.
    pub(crate) fn start(cluster: &Cluster, borders: &[&str]) -> Self {
        let client =
            cluster.client(ClientOptions { deadline: PATIENCE, ..ClientOptions::default() });
        let client = cluster.runtime.block_on(client);
        let rows: Vec<_> = (0..ROWS)
            .map(|row| {
                let border = borders[row % borders.len()];
                let (low, _) = border.split_at(border.len() - 1);
                match row % 2 {
                    0 => format!("{border}-{row:05}"),
                    _ => format!("{low}!{row:05}"),
                }
            })
            .collect();
        cluster.runtime.block_on(async {
            for row in &rows {
                client.put(row.clone(), "r").await.unwrap();
            }
        });
        let expected: BTreeSet<_> = rows.into_iter().collect();
        let stop = CancellationToken::new();
        let until = stop.clone();
        let scanning = cluster.runtime.spawn(async move {
            let mut scans = 0;
            while !until.is_cancelled() {
                let mut scan = client.scan(..).page_rows(PAGE_ROWS);
                if scans % 2 == 1 {
                    scan = scan.reverse();
                }
                let found = scan.collect().await.unwrap();
                let keys =
                    found.into_iter().map(|row| String::from_utf8(row.key.to_vec()).unwrap());
                let mut keys: Vec<_> = keys.filter(|key| expected.contains(key)).collect();
                keys.sort_unstable();
                assert!(keys.iter().eq(&expected), "{} rows of {ROWS}: {keys:?}", keys.len());
                scans += 1;
            }
            scans
        });
        Self { stop, scanning }
    }

    #[track_caller]
    /// Returns how many scans there were.
    pub(crate) fn finish(self, cluster: &Cluster) -> usize {
        self.stop.cancel();
        let scans = cluster.runtime.block_on(self.scanning).expect("every scan was right");
        assert!(scans > 0);
        scans
    }
}
