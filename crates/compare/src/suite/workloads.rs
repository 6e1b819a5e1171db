//! What callers do.

use trireme_types::Consistency;

use super::Suite;

/// What callers do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Workload {
    /// Its name on the command line and in the report.
    pub name: &'static str,
    /// What it is, in a few plain words.
    pub description: &'static str,
    /// How many callers there are, each with one operation under way.
    pub callers: u64,
    /// What they do, and how often: the numbers are weights.
    pub mix: &'static [(Action, u32)],
    /// Which keys they do it to.
    pub keys: KeyChoice,
    /// Bytes of a value; `None` for the suite's.
    pub value_bytes: Option<usize>,
    /// How many operations are due in a second, however fast the answers come; `None` for a closed
    /// loop, in which a caller asks again when it was answered.
    pub rate: Option<u32>,
    /// What the cluster is like.
    pub setting: Setting,
}

/// What a caller does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Reads a key.
    Get(Consistency),
    /// Gives a key a value.
    Put,
    /// Gives a key a value if it has the version that the caller saw last.
    PutIf,
    /// Reads a key and writes it on condition that it still has what was read: two operations.
    Modify,
    /// Gives a new key its first value.
    Insert,
    /// Reads 1 to [`SCAN_ROWS_MAX`] rows from a key on, strongly.
    Scan,
}

/// The most rows that a scan asks for, as in YCSB E.
pub const SCAN_ROWS_MAX: u64 = 100;

/// Which key a caller chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyChoice {
    /// All alike.
    Uniform,
    /// A few keys most of the time (YCSB's zipfian choice, with its exponent of 0.99).
    Zipfian,
    /// The newest keys most of the time (YCSB's latest choice).
    Latest,
    /// Always the same one.
    One,
    /// Keys that no other caller writes.
    Own,
}

/// What a cluster is like, besides its protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// How many ranges it has, at least one.
    pub ranges: u64,
    /// Whether a write is acknowledged when it is in memory, whatever the run's durability.
    pub in_memory: bool,
}

impl Setting {
    /// One range, with the run's durability.
    pub const PLAIN: Self = Self { ranges: 1, in_memory: false };
}

const STRONG: Action = Action::Get(Consistency::Strong);
const TIMELINE: Action = Action::Get(Consistency::Timeline);
const PUT: &[(Action, u32)] = &[(Action::Put, 1)];
const PUT_IF: &[(Action, u32)] = &[(Action::PutIf, 1)];
const READ: &[(Action, u32)] = &[(STRONG, 1)];
const READ_TIMELINE: &[(Action, u32)] = &[(TIMELINE, 1)];
const HALF: &[(Action, u32)] = &[(STRONG, 50), (Action::Put, 50)];

impl Workload {
    const fn new(
        name: &'static str,
        callers: u64,
        mix: &'static [(Action, u32)],
        keys: KeyChoice,
        description: &'static str,
    ) -> Self {
        let setting = Setting::PLAIN;
        Self { name, description, callers, mix, keys, value_bytes: None, rate: None, setting }
    }

    const fn at_rate(mut self, per_second: u32) -> Self {
        self.rate = Some(per_second);
        self
    }

    const fn of_bytes(mut self, bytes: usize) -> Self {
        self.value_bytes = Some(bytes);
        self
    }

    const fn over_ranges(mut self, ranges: u64) -> Self {
        self.setting.ranges = ranges;
        self
    }

    const fn in_memory(mut self) -> Self {
        self.setting.in_memory = true;
        self
    }
}

use KeyChoice::{Latest, One, Own, Uniform, Zipfian};

/// Every workload. The first of a suite's is the one that is driven at the control too.
pub(super) const WORKLOADS: [Workload; 38] = [
    Workload::new("write", 16, PUT, Uniform, "only writes, all keys alike"),
    Workload::new(
        "write-1",
        1,
        PUT,
        Uniform,
        "only writes, by one caller: the time that one write takes",
    ),
    Workload::new(
        "mixed-paced",
        64,
        HALF,
        Zipfian,
        "half reads and half writes, 1,000 due in each second however fast the answers come; \
         latency from when they were due",
    )
    .at_rate(1000),
    Workload::new(
        "ycsb-a",
        16,
        HALF,
        Zipfian,
        "half reads and half writes, few keys asked for most (YCSB A)",
    ),
    Workload::new("read-strong", 16, READ, Uniform, "only strong (linearizable) reads"),
    Workload::new(
        "read-timeline",
        16,
        READ_TIMELINE,
        Uniform,
        "only timeline reads, which may be a little old and may come from any replica",
    ),
    Workload::new("write-64", 64, PUT, Uniform, "only writes, by 64 callers at once"),
    Workload::new("write-256", 256, PUT, Uniform, "only writes, by 256 callers at once"),
    Workload::new(
        "ycsb-b",
        16,
        &[(STRONG, 95), (Action::Put, 5)],
        Zipfian,
        "95 reads to 5 writes, few keys asked for most (YCSB B)",
    ),
    Workload::new(
        "ycsb-c",
        16,
        READ,
        Zipfian,
        "only strong reads, few keys asked for most (YCSB C)",
    ),
    Workload::new(
        "ycsb-d",
        16,
        &[(STRONG, 95), (Action::Insert, 5)],
        Latest,
        "95 reads to 5 new keys, the newest asked for most (YCSB D)",
    ),
    Workload::new(
        "ycsb-e",
        16,
        &[(Action::Scan, 95), (Action::Insert, 5)],
        Zipfian,
        "95 scans of 1 to 100 rows to 5 new keys (YCSB E)",
    ),
    Workload::new(
        "ycsb-f",
        16,
        &[(STRONG, 50), (Action::Modify, 50)],
        Zipfian,
        "half reads, and half reads that are followed by a write of the same key on condition that it \
         still has what was read (YCSB F)",
    ),
    Workload::new("hot-key", 16, HALF, One, "half reads and half writes, all of one key"),
    Workload::new(
        "write-if",
        16,
        PUT_IF,
        Own,
        "only conditional writes, each caller to keys of its own so that the conditions hold",
    ),
    Workload::new("values-16", 16, PUT, Uniform, "only writes, of values of 16 bytes").of_bytes(16),
    Workload::new("values-64k", 16, PUT, Uniform, "only writes, of values of 64 KiB")
        .of_bytes(64 * 1024),
    Workload::new("ranges-16", 64, HALF, Uniform, "half reads and half writes, over 16 ranges")
        .over_ranges(16),
    Workload::new("ranges-256", 64, HALF, Uniform, "half reads and half writes, over 256 ranges")
        .over_ranges(256),
    Workload::new("read-strong-1", 1, READ, Uniform, "only strong reads, by one caller"),
    Workload::new("read-strong-4", 4, READ, Uniform, "only strong reads, by 4 callers"),
    Workload::new("read-strong-64", 64, READ, Uniform, "only strong reads, by 64 callers"),
    Workload::new(
        "read-timeline-1",
        1,
        READ_TIMELINE,
        Uniform,
        "only timeline reads, by one caller",
    ),
    Workload::new(
        "read-timeline-4",
        4,
        READ_TIMELINE,
        Uniform,
        "only timeline reads, by 4 callers",
    ),
    Workload::new(
        "read-timeline-64",
        64,
        READ_TIMELINE,
        Uniform,
        "only timeline reads, by 64 callers",
    ),
    Workload::new("write-4", 4, PUT, Uniform, "only writes, by 4 callers"),
    Workload::new("write-if-1", 1, PUT_IF, Own, "only conditional writes, by one caller"),
    Workload::new("write-if-4", 4, PUT_IF, Own, "only conditional writes, by 4 callers"),
    Workload::new("write-if-64", 64, PUT_IF, Own, "only conditional writes, by 64 callers"),
    Workload::new(
        "writes-10",
        2,
        &[(STRONG, 90), (Action::Put, 10)],
        Uniform,
        "10 writes to 90 strong reads",
    ),
    Workload::new(
        "writes-30",
        2,
        &[(STRONG, 70), (Action::Put, 30)],
        Uniform,
        "30 writes to 70 strong reads",
    ),
    Workload::new("writes-50", 2, HALF, Uniform, "50 writes to 50 strong reads"),
    Workload::new(
        "writes-10-timeline",
        2,
        &[(TIMELINE, 90), (Action::Put, 10)],
        Uniform,
        "10 writes to 90 timeline reads",
    ),
    Workload::new(
        "writes-50-timeline",
        2,
        &[(TIMELINE, 50), (Action::Put, 50)],
        Uniform,
        "50 writes to 50 timeline reads",
    ),
    Workload::new(
        "memory-1",
        1,
        PUT,
        Uniform,
        "only writes, acknowledged in memory, by one caller",
    )
    .in_memory(),
    Workload::new("memory-4", 4, PUT, Uniform, "only writes, acknowledged in memory, by 4 callers")
        .in_memory(),
    Workload::new(
        "memory-16",
        16,
        PUT,
        Uniform,
        "only writes, acknowledged in memory, by 16 callers",
    )
    .in_memory(),
    Workload::new(
        "memory-64",
        64,
        PUT,
        Uniform,
        "only writes, acknowledged in memory, by 64 callers",
    )
    .in_memory(),
];

/// How many of [`WORKLOADS`] the quick suite has, and how many the standard one: the first.
const QUICK: usize = 6;

/// See [`QUICK`].
const STANDARD: usize = 19;

/// What the Spinnaker paper's experiments drive.
const SPINNAKER: [&str; 25] = [
    "write",
    "write-1",
    "write-4",
    "write-64",
    "read-strong",
    "read-strong-1",
    "read-strong-4",
    "read-strong-64",
    "read-timeline",
    "read-timeline-1",
    "read-timeline-4",
    "read-timeline-64",
    "write-if",
    "write-if-1",
    "write-if-4",
    "write-if-64",
    "writes-10",
    "writes-30",
    "writes-50",
    "writes-10-timeline",
    "writes-50-timeline",
    "memory-1",
    "memory-4",
    "memory-16",
    "memory-64",
];

impl Suite {
    /// Returns the workloads that it drives.
    pub fn workloads(self) -> Vec<Workload> {
        match self {
            Self::Tiny => WORKLOADS[..1].to_vec(),
            Self::Quick => WORKLOADS[..QUICK].to_vec(),
            Self::Standard => WORKLOADS[..STANDARD].to_vec(),
            Self::Full => WORKLOADS.to_vec(),
            Self::Spinnaker => {
                SPINNAKER.map(|name| workload(name).expect("a test looks each up")).to_vec()
            }
            Self::Pacifica => Vec::new(),
        }
    }
}

/// Returns a workload of as many reads as writes, of all keys alike.
pub(crate) const fn half_reads_by(name: &'static str, callers: u64) -> Workload {
    Workload::new(name, callers, HALF, Uniform, "half reads and half writes")
}

/// Returns a workload of writes alone, of all keys alike.
pub(crate) const fn writes_by(name: &'static str, callers: u64) -> Workload {
    Workload::new(name, callers, PUT, Uniform, "only writes")
}

/// Returns the workload of a name.
///
/// # Errors
///
/// If there is none; the error lists those that there are.
pub fn workload(name: &str) -> Result<Workload, String> {
    super::named(&WORKLOADS, |workload| workload.name, name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_and_others_are_refused_with_those_that_there_are() {
        assert_eq!(workload("ycsb-a").unwrap().callers, 16);
        assert!(workload("ycsb-g").unwrap_err().contains("write, write-1, mixed-paced"));
    }

    #[test]
    fn every_suite_has_what_it_names() {
        assert_eq!(Suite::Spinnaker.workloads().len(), SPINNAKER.len());
        assert_eq!(Suite::Quick.workloads().last().unwrap().name, "read-timeline");
        assert_eq!(Suite::Standard.workloads().last().unwrap().name, "ranges-256");
    }

    #[test]
    fn every_mix_has_something_to_do() {
        for workload in WORKLOADS {
            assert!(workload.mix.iter().map(|(_, weight)| weight).sum::<u32>() > 0);
        }
    }
}
