//! The limits that clients, servers and disks agree on.
//!
//! A request past one of them is refused where it is first seen, in the client, and again in the
//! server, so that no log entry and no frame can outgrow what its reader accepts.

use std::time::Duration;

use crate::Protocol;

/// The most bytes in a key. Keys are kept in memory by indexes and range maps, so they are kept
/// small; TiKV has the same limit.
pub const KEY_BYTES_MAX: usize = 4 * 1024;

/// The most bytes in a value. One value must fit a few times into every queue on its way.
pub const VALUE_BYTES_MAX: usize = 1024 * 1024;

/// The most bytes that the commands of one log entry may hold together. A batch is closed before
/// it would pass this.
pub const BATCH_BYTES_MAX: usize = 2 * 1024 * 1024;

/// The most commands in one log entry.
pub const BATCH_COMMANDS_MAX: usize = 4096;

/// The most rows that one answer to a scan holds; a longer scan goes on page by page.
pub const SCAN_ROWS_MAX: usize = 4096;

/// The bytes of keys and values after which an answer to a scan ends its page.
pub const SCAN_BYTES_MAX: usize = 1024 * 1024;

/// How long a cohort recognises the writes of a client that it hears nothing of, in the cohort's own
/// time: that which passes while one of its nodes takes writes. Much longer than any request may
/// wait in a node, and than a client tries by default. What a client that was forgotten sent before
/// is refused from then on, and never applied as if it were new.
pub const SESSION_LIFETIME: Duration = Duration::from_secs(5 * 60);

/// The most clients whose writes one cohort recognises. No client is forgotten early for another:
/// past it, a new client is told `BUSY` until one has been silent for [`SESSION_LIFETIME`]. That is
/// 400 new clients a second for ever. A session without much under way takes some 300 bytes.
pub const SESSIONS_MAX: usize = 131_072;

/// The most clients that one cohort recognises though they did not say when they started: a late
/// write of one could not be told from a new client's first, so that none is ever forgotten. Clients
/// of 0.1.0 are such. Past it, more of them are refused.
pub const SESSIONS_UNDATED_MAX: usize = 16_384;

/// The most answers that one cohort keeps of all its clients; past it, a client that would have to
/// be answered anew is told `BUSY`. As many as 256 clients have that use all that they may, at some
/// 40 bytes each.
pub const OUTCOMES_MAX: usize = 256 * SESSION_OUTCOMES_MAX;

/// The most answers that one cohort keeps of the clients that it never forgets.
pub const OUTCOMES_UNDATED_MAX: usize = 64 * SESSION_OUTCOMES_MAX;

/// The most answers that a cohort keeps of one client: also the most writes that a client may
/// have under way at once.
pub const SESSION_OUTCOMES_MAX: usize = 4096;

/// The most cohorts that go on where one ends: a split has two.
pub const SUCCESSORS_MAX: usize = 2;

/// The most ranges in a range map that is read from a disk or a network.
pub const RANGES_MAX: usize = 10_000;

/// The most ranges that a cluster is made with where Raft replicates all of them. Those that are awake
/// are costly: a thousand, as when a node has died, want more than two cores (docs/scale.md).
pub const RANGES_MAX_RAFT: usize = 1_000;

/// The most ranges that a cluster is made with where Spinnaker replicates all of them. Each elects
/// its leader through the coordinator: three nodes with 1,000 on one busy machine of two cores needed 4 s
/// for their first start and up to 11 s for a later one. More has not been measured.
pub const RANGES_MAX_SPINNAKER: usize = 1_000;

/// The most ranges that a cluster is made with where PacificA replicates all of them. When a node
/// dies, each of its ranges changes its configuration at the coordinator, and each node learns of each
/// change: with 1,000 on three nodes of one machine of two cores, writes to all ranges went on 2.2 s
/// after a death. More has not been measured.
pub const RANGES_MAX_PACIFICA: usize = 1_000;

/// What the limits of the protocols are counted in together: a hundredth of a hundredth of each.
const PARTS: usize = 10_000;

/// Checks that a cluster can have ranges of these protocols, one for each item, start with them and lose a
/// node. Ranges of several protocols have their parts of the limits together. Returns what is wrong.
pub fn check_range_count(ranges: impl IntoIterator<Item = Protocol>) -> Result<(), String> {
    let mut counts = [
        (Protocol::Spinnaker, 0, RANGES_MAX_SPINNAKER),
        (Protocol::Raft, 0, RANGES_MAX_RAFT),
        (Protocol::Pacifica, 0, RANGES_MAX_PACIFICA),
    ];
    for protocol in ranges {
        counts.iter_mut().filter(|(by, ..)| *by == protocol).for_each(|(_, count, _)| *count += 1);
    }
    let parts = counts.iter().map(|(_, count, most)| count * PARTS / most);
    if parts.sum::<usize>() <= PARTS {
        return Ok(());
    }
    let asked = counts.iter().filter(|(_, count, _)| *count > 0);
    let asked: Vec<_> = asked
        .map(|(by, count, most)| format!("{count} by {by}, of which it can have {most}"))
        .collect();
    Err(format!("the cluster would have too many ranges: {}", asked.join("; ")))
}
