//! The limits that clients, servers and disks agree on.
//!
//! A request past one of them is refused where it is first seen, in the client, and again in the
//! server, so that no log entry and no frame can outgrow what its reader accepts.

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

/// The most clients whose retries one cohort can recognise; past it, the one unheard for longest
/// is forgotten, and a retry of its writes is applied as if it were new.
pub const SESSIONS_MAX: usize = 4096;

/// The most answers that a cohort keeps of one client: also the most writes that a client may
/// have under way at once.
pub const SESSION_OUTCOMES_MAX: usize = 4096;

/// The most ranges in a range map that is read from a disk or a network.
pub const RANGES_MAX: usize = 10_000;

/// The most ranges that a cluster is made with where Raft replicates all of them. Each replica has
/// tasks, timers and messages of its own: three nodes with 2,000 on one machine needed half a minute
/// until every range had a leader, and did not always get there.
pub const RANGES_MAX_RAFT: usize = 1_000;

/// The most ranges that a cluster is made with where Spinnaker replicates all of them. Each elects
/// its leader through the coordinator: with 2,000, the elections of one start outlasted the sessions
/// that they rested on, and the start never ended.
pub const RANGES_MAX_SPINNAKER: usize = 500;

/// The most ranges that a cluster is made with where PacificA replicates all of them. When a node
/// dies, each of its ranges changes its configuration at the coordinator, and each replica of every
/// range learns of each change: with 250 ranges writes stopped for more than a minute and a half,
/// with 500 a cluster did not start.
pub const RANGES_MAX_PACIFICA: usize = 100;
