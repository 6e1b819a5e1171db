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

/// The most ranges in a range map.
pub const RANGES_MAX: usize = 10_000;
