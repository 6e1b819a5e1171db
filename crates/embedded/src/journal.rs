//! The files that the store comes back from: a log of frames, and a snapshot.
//!
//! ```text
//! log file     log-<first index, 16 hex digits>      header (16 bytes), then frames
//! header       "TRMCLOG1" | index of the first command (u64)
//! frame        "FRAM" | payload length (u32) | index of its first command (u64)
//!              | command count (u32) | crc32 of the 16 bytes before it and the payload (u32)
//!              | payload: the commands
//! snapshot     snapshot-<index of the last command in it, 16 hex digits>
//!              "TRMCSNP1" | payload length (u64) | crc32 of the payload (u32) | payload
//! ```
//! All numbers are little-endian. One frame is what one sync made durable: everything that
//! waited. It is answered for only after the sync, so that a frame which the crash of the machine
//! left half-written held nothing that anybody was told of, and since there is one such frame at
//! most, it is the last. A bad frame with a good one after it is therefore damage, and is named,
//! not skipped. A server that stops in order ends its log with an empty frame.
//!
//! A snapshot is written aside, synced, renamed and its folder synced, and only then are the logs
//! that it covers removed: at every moment the newest snapshot and the logs behind it are the
//! whole state.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::command::Command;
use super::error::EmbeddedError;

const LOG_MAGIC: &[u8; 8] = b"TRMCLOG1";
const SNAPSHOT_MAGIC: &[u8; 8] = b"TRMCSNP1";
const FRAME_MAGIC: &[u8; 4] = b"FRAM";
const LOG_HEADER_LEN: usize = 16;
const FRAME_HEADER_LEN: usize = 24;
const SNAPSHOT_HEADER_LEN: usize = 20;

/// The journal of one data folder, open for appending.
#[derive(Debug)]
pub(super) struct Journal {
    folder: PathBuf,
    /// Held as long as the journal is open, so that two processes never write one folder.
    _lock: File,
    log: File,
    log_path: PathBuf,
    log_bytes: u64,
    next_index: u64,
    buffer: Vec<u8>,
}

/// What a data folder held.
#[derive(Debug)]
pub(super) struct Recovered {
    /// The newest snapshot's payload; `None` in a new folder.
    pub snapshot: Option<Vec<u8>>,
    /// The commands after it, in order.
    pub commands: Vec<Command>,
}

impl Journal {
    /// Opens the journal in `folder`, which is created if need be, and reads what it holds.
    pub(super) fn open(folder: &Path) -> Result<(Self, Recovered), EmbeddedError> {
        fs::create_dir_all(folder).map_err(io_error("create", folder))?;
        let lock = lock(folder)?;
        let (snapshots, logs) = list(folder)?;
        let mut next_index = 1;
        let mut snapshot = None;
        if let Some((index, path)) = snapshots.last() {
            snapshot = Some(read_snapshot(path)?);
            next_index = index + 1;
        }
        let mut commands = Vec::new();
        let mut open_log = None;
        for (position, (first, path)) in logs.iter().enumerate() {
            let is_last = position + 1 == logs.len();
            let content = LogContent::read(path, *first, is_last)?;
            let behind_next = *first > next_index;
            if behind_next {
                let reason = format!("it begins at command {first}; {next_index} is missing");
                return Err(damaged(path, 0, reason));
            }
            let mut log_end = *first;
            for command in content.commands {
                if log_end == next_index {
                    commands.push(command);
                    next_index += 1;
                }
                log_end += 1;
            }
            // A log that a snapshot has gone past is not written on.
            let goes_on = is_last && log_end == next_index;
            open_log = goes_on.then(|| (path.clone(), content.valid_len));
        }
        let (log, log_path, log_bytes) = match open_log {
            Some((path, valid_len)) if valid_len >= LOG_HEADER_LEN as u64 => {
                (cut(&path, valid_len)?, path, valid_len)
            }
            _ => create_log(folder, next_index)?,
        };
        let folder = folder.to_path_buf();
        let buffer = Vec::new();
        let journal = Self { folder, _lock: lock, log, log_path, log_bytes, next_index, buffer };
        Ok((journal, Recovered { snapshot, commands }))
    }

    /// Writes the commands as one frame and returns when it would survive a power cut.
    pub(super) fn append(&mut self, commands: &[&Command]) -> Result<(), EmbeddedError> {
        self.buffer.clear();
        self.buffer.resize(FRAME_HEADER_LEN, 0);
        for command in commands {
            command.encode(&mut self.buffer);
        }
        let payload_len = self.buffer.len() - FRAME_HEADER_LEN;
        let too_big = |what| EmbeddedError::Poisoned(format!("a frame of too many {what}"));
        let len = u32::try_from(payload_len).map_err(|_| too_big("bytes"))?;
        let count = u32::try_from(commands.len()).map_err(|_| too_big("commands"))?;
        self.buffer[..4].copy_from_slice(FRAME_MAGIC);
        self.buffer[4..8].copy_from_slice(&len.to_le_bytes());
        self.buffer[8..16].copy_from_slice(&self.next_index.to_le_bytes());
        self.buffer[16..20].copy_from_slice(&count.to_le_bytes());
        let crc = frame_crc(&self.buffer);
        self.buffer[20..24].copy_from_slice(&crc.to_le_bytes());
        self.log.write_all(&self.buffer).map_err(io_error("write", &self.log_path))?;
        self.log.sync_data().map_err(io_error("sync", &self.log_path))?;
        self.log_bytes += self.buffer.len() as u64;
        self.next_index += u64::from(count);
        Ok(())
    }

    /// Returns the bytes in the log file since the last snapshot.
    pub(super) fn log_bytes(&self) -> u64 {
        self.log_bytes
    }

    /// Returns the index of the last command appended; 0 if there was none.
    pub(super) fn last_index(&self) -> u64 {
        self.next_index - 1
    }

    /// Makes `payload`, which holds what every command so far has made, the place that recovery
    /// begins at, and removes what is older.
    pub(super) fn install_snapshot(&mut self, payload: &[u8]) -> Result<(), EmbeddedError> {
        let index = self.last_index();
        let (log, log_path, log_bytes) = create_log(&self.folder, self.next_index)?;
        (self.log, self.log_path, self.log_bytes) = (log, log_path, log_bytes);
        write_snapshot(&self.folder, index, payload)?;
        let (snapshots, logs) = list(&self.folder)?;
        let old_snapshots = snapshots.into_iter().filter(|(i, _)| *i < index);
        let old_logs = logs.into_iter().filter(|(first, _)| *first < self.next_index);
        for (_, path) in old_snapshots.chain(old_logs) {
            fs::remove_file(&path).map_err(io_error("remove", &path))?;
        }
        sync_folder(&self.folder)
    }
}

/// Makes a folder that begins with this snapshot; there must be no state in it yet.
pub(super) fn create(folder: &Path, index: u64, payload: &[u8]) -> Result<(), EmbeddedError> {
    fs::create_dir_all(folder).map_err(io_error("create", folder))?;
    let _lock = lock(folder)?;
    let (snapshots, logs) = list(folder)?;
    if !snapshots.is_empty() || !logs.is_empty() {
        let folder = folder.display();
        return Err(EmbeddedError::Backup(format!("{folder} holds a coordinator's state already")));
    }
    write_snapshot(folder, index, payload)
}

/// The commands of one log file.
struct LogContent {
    commands: Vec<Command>,
    /// Bytes up to the end of the last good frame.
    valid_len: u64,
}

impl LogContent {
    fn read(path: &Path, first: u64, is_last: bool) -> Result<Self, EmbeddedError> {
        let bytes = fs::read(path).map_err(io_error("read", path))?;
        let mut content = Self { commands: Vec::new(), valid_len: 0 };
        let header_is_whole = bytes.len() >= LOG_HEADER_LEN
            && bytes.starts_with(LOG_MAGIC)
            && bytes[8..16] == first.to_le_bytes();
        if !header_is_whole {
            // The newest log may have been created and not yet synced when the machine stopped.
            if is_last && !has_frame(&bytes) {
                return Ok(content);
            }
            return Err(damaged(path, 0, "the file header is not what was written"));
        }
        let mut position = LOG_HEADER_LEN;
        while position < bytes.len() {
            let Some(frame) = Frame::at(&bytes, position) else {
                if !is_last || has_frame(&bytes[position + 1..]) {
                    let reason = "a frame that does not match its checksum is followed by others";
                    return Err(damaged(path, position, reason));
                }
                tracing::info!(path = %path.display(), position, "dropped a torn last frame");
                break;
            };
            let expected = first + content.commands.len() as u64;
            if frame.index != expected {
                let reason = format!("command {} stands where {expected} should", frame.index);
                return Err(damaged(path, position, reason));
            }
            let commands = frame.commands().map_err(|reason| damaged(path, position, reason))?;
            content.commands.extend(commands);
            position += frame.len();
        }
        content.valid_len = position as u64;
        Ok(content)
    }
}

/// One frame whose checksum holds.
struct Frame<'a> {
    index: u64,
    count: u32,
    payload: &'a [u8],
}

impl<'a> Frame<'a> {
    fn at(bytes: &'a [u8], position: usize) -> Option<Self> {
        let bytes = bytes.get(position..)?;
        let header = bytes.get(..FRAME_HEADER_LEN)?;
        if !header.starts_with(FRAME_MAGIC) {
            return None;
        }
        let len = usize::try_from(u32_at(header, 4)).ok()?;
        let end = FRAME_HEADER_LEN.checked_add(len)?;
        let frame = bytes.get(..end)?;
        let index = u64_at(header, 8);
        let count = u32_at(header, 16);
        let intact = frame_crc(frame) == u32_at(header, 20);
        intact.then_some(Self { index, count, payload: &frame[FRAME_HEADER_LEN..] })
    }

    fn len(&self) -> usize {
        FRAME_HEADER_LEN + self.payload.len()
    }

    fn commands(&self) -> Result<Vec<Command>, String> {
        let mut rest = self.payload;
        let commands: Result<Vec<_>, _> =
            (0..self.count).map(|_| Command::decode(&mut rest)).collect();
        if rest.is_empty() { commands } else { Err("bytes follow the last command".to_owned()) }
    }
}

fn has_frame(bytes: &[u8]) -> bool {
    let starts = bytes.windows(FRAME_MAGIC.len()).enumerate();
    starts.filter(|(_, window)| window == FRAME_MAGIC).any(|(at, _)| Frame::at(bytes, at).is_some())
}

fn frame_crc(frame: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&frame[..20]);
    hasher.update(&frame[FRAME_HEADER_LEN..]);
    hasher.finalize()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes were sliced"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes were sliced"))
}

fn create_log(folder: &Path, first: u64) -> Result<(File, PathBuf, u64), EmbeddedError> {
    let path = folder.join(format!("log-{first:016x}"));
    let mut log = File::create(&path).map_err(io_error("create", &path))?;
    let mut header = LOG_MAGIC.to_vec();
    header.extend_from_slice(&first.to_le_bytes());
    log.write_all(&header).map_err(io_error("write", &path))?;
    log.sync_all().map_err(io_error("sync", &path))?;
    sync_folder(folder)?;
    Ok((log, path, header.len() as u64))
}

/// Opens a log for appending after its last good frame and takes away what stands behind it.
fn cut(path: &Path, len: u64) -> Result<File, EmbeddedError> {
    let log = OpenOptions::new().append(true).open(path).map_err(io_error("open", path))?;
    log.set_len(len).map_err(io_error("cut", path))?;
    log.sync_all().map_err(io_error("sync", path))?;
    Ok(log)
}

fn write_snapshot(folder: &Path, index: u64, payload: &[u8]) -> Result<(), EmbeddedError> {
    let aside = folder.join("snapshot.new");
    let path = folder.join(format!("snapshot-{index:016x}"));
    let mut file = File::create(&aside).map_err(io_error("create", &aside))?;
    let mut header = SNAPSHOT_MAGIC.to_vec();
    header.extend_from_slice(&(payload.len() as u64).to_le_bytes());
    header.extend_from_slice(&crc32fast::hash(payload).to_le_bytes());
    file.write_all(&header).map_err(io_error("write", &aside))?;
    file.write_all(payload).map_err(io_error("write", &aside))?;
    file.sync_all().map_err(io_error("sync", &aside))?;
    fs::rename(&aside, &path).map_err(io_error("rename", &aside))?;
    sync_folder(folder)
}

fn read_snapshot(path: &Path) -> Result<Vec<u8>, EmbeddedError> {
    let mut bytes = fs::read(path).map_err(io_error("read", path))?;
    if bytes.len() < SNAPSHOT_HEADER_LEN || !bytes.starts_with(SNAPSHOT_MAGIC) {
        return Err(damaged(path, 0, "the file header is not what was written"));
    }
    let len = u64_at(&bytes, 8);
    let crc = u32_at(&bytes, 16);
    let payload = bytes.split_off(SNAPSHOT_HEADER_LEN);
    if payload.len() as u64 != len || crc32fast::hash(&payload) != crc {
        return Err(damaged(path, SNAPSHOT_HEADER_LEN, "the content does not match its checksum"));
    }
    Ok(payload)
}

type Numbered = Vec<(u64, PathBuf)>;

/// Returns the snapshots and the logs of a folder, each in order.
fn list(folder: &Path) -> Result<(Numbered, Numbered), EmbeddedError> {
    let (mut snapshots, mut logs) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(folder).map_err(io_error("list", folder))? {
        let path = entry.map_err(io_error("list", folder))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let number = |text: &str| u64::from_str_radix(text, 16).ok();
        if let Some(index) = name.strip_prefix("snapshot-").and_then(number) {
            snapshots.push((index, path));
        } else if let Some(first) = name.strip_prefix("log-").and_then(number) {
            logs.push((first, path));
        }
    }
    snapshots.sort();
    logs.sort();
    Ok((snapshots, logs))
}

fn lock(folder: &Path) -> Result<File, EmbeddedError> {
    let path = folder.join("lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(io_error("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(EmbeddedError::InUse(folder.to_path_buf())),
        Err(fs::TryLockError::Error(source)) => Err(io_error("lock", &path)(source)),
    }
}

fn sync_folder(folder: &Path) -> Result<(), EmbeddedError> {
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(io_error("sync", folder))
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> EmbeddedError {
    move |source| EmbeddedError::Io { action, path: path.to_path_buf(), source }
}

fn damaged(path: &Path, position: usize, reason: impl Into<String>) -> EmbeddedError {
    let position = position as u64;
    EmbeddedError::Damaged { path: path.to_path_buf(), position, reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use etcd_client::proto::PbPutRequest;
    use tempfile::TempDir;

    use super::*;

    fn put(value: &str) -> Command {
        let (key, value) = (b"key".to_vec(), value.as_bytes().to_vec());
        Command::Put(PbPutRequest { key, value, ..PbPutRequest::default() })
    }

    /// Writes three frames and returns the folder and the log's path.
    fn three_frames() -> (TempDir, PathBuf) {
        let folder = TempDir::new().unwrap();
        let (mut journal, recovered) = Journal::open(folder.path()).unwrap();
        assert!(recovered.snapshot.is_none() && recovered.commands.is_empty());
        journal.append(&[&put("1"), &put("2")]).unwrap();
        journal.append(&[&put("3")]).unwrap();
        journal.append(&[&put("4"), &put("5")]).unwrap();
        (folder, journal.log_path)
    }

    fn commands(values: &[&str]) -> Vec<Command> {
        values.iter().map(|value| put(value)).collect()
    }

    #[test]
    fn what_was_appended_comes_back() {
        let (folder, _) = three_frames();
        let (mut journal, recovered) = Journal::open(folder.path()).unwrap();
        assert_eq!(recovered.commands, commands(&["1", "2", "3", "4", "5"]));
        journal.append(&[&put("6")]).unwrap();
        drop(journal);
        let (_, recovered) = Journal::open(folder.path()).unwrap();
        assert_eq!(recovered.commands.len(), 6);
    }

    #[test]
    fn a_log_cut_anywhere_loses_whole_frames_from_its_end_only() {
        let (folder, path) = three_frames();
        let whole = fs::read(&path).unwrap();
        let all = commands(&["1", "2", "3", "4", "5"]);
        for len in (0..whole.len()).rev() {
            fs::write(&path, &whole[..len]).unwrap();
            let (mut journal, recovered) = Journal::open(folder.path()).unwrap();
            assert!([0, 2, 3].contains(&recovered.commands.len()), "cut to {len}");
            assert_eq!(recovered.commands, all[..recovered.commands.len()], "cut to {len}");
            // What is appended now comes back with what was left.
            journal.append(&[&put("new")]).unwrap();
            drop(journal);
            let (_, again) = Journal::open(folder.path()).unwrap();
            assert_eq!(again.commands.len(), recovered.commands.len() + 1, "cut to {len}");
            assert_eq!(again.commands.last(), Some(&put("new")));
        }
    }

    #[test]
    fn a_flipped_byte_before_the_last_frame_is_named() {
        let (folder, path) = three_frames();
        let whole = fs::read(&path).unwrap();
        let last = whole.windows(4).rposition(|window| window == FRAME_MAGIC).unwrap();
        for position in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[position] ^= 0x41;
            fs::write(&path, &bytes).unwrap();
            match Journal::open(folder.path()) {
                Ok((_, recovered)) => {
                    assert!(position >= last, "damage at {position} was passed over");
                    assert_eq!(recovered.commands, commands(&["1", "2", "3"]));
                }
                Err(EmbeddedError::Damaged { path: named, position: at, .. }) => {
                    assert!(position < last, "a torn end at {position} was taken for damage");
                    assert_eq!(named, path);
                    assert!(at <= position as u64);
                }
                Err(other) => panic!("at {position}: {other}"),
            }
        }
    }

    /// What was answered last was taken for torn, and so for never answered, wherever its frame was
    /// damaged.
    #[test]
    fn behind_an_empty_frame_no_command_is_lost_to_a_flipped_bit() {
        let (folder, path) = three_frames();
        Journal::open(folder.path()).unwrap().0.append(&[]).unwrap();
        let whole = fs::read(&path).unwrap();
        for bit in 0..8 * whole.len() {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, &bytes).unwrap();
            match Journal::open(folder.path()) {
                Ok((_, recovered)) => {
                    assert!(bit / 8 >= whole.len() - FRAME_HEADER_LEN, "bit {bit} was passed over");
                    assert_eq!(recovered.commands, commands(&["1", "2", "3", "4", "5"]));
                }
                Err(EmbeddedError::Damaged { path: named, .. }) => assert_eq!(named, path),
                Err(other) => panic!("bit {bit}: {other}"),
            }
        }
    }

    #[test]
    fn recovery_begins_at_the_snapshot() {
        let (folder, path) = three_frames();
        let (mut journal, _) = Journal::open(folder.path()).unwrap();
        journal.install_snapshot(b"the state").unwrap();
        assert!(!path.exists(), "the covered log is removed");
        journal.append(&[&put("6")]).unwrap();
        drop(journal);
        let (journal, recovered) = Journal::open(folder.path()).unwrap();
        assert_eq!(recovered.snapshot.as_deref(), Some(&b"the state"[..]));
        assert_eq!(recovered.commands, commands(&["6"]));
        assert_eq!(journal.last_index(), 6);
    }

    /// A crash between the steps of a snapshot leaves files of before and after it.
    #[test]
    fn a_snapshot_cut_short_changes_nothing() {
        let (folder, path) = three_frames();
        let old_log = fs::read(&path).unwrap();
        // The new log exists, the snapshot does not yet.
        drop(create_log(folder.path(), 6).unwrap());
        fs::write(folder.path().join("snapshot.new"), b"half").unwrap();
        let (mut journal, recovered) = Journal::open(folder.path()).unwrap();
        assert_eq!(recovered.commands.len(), 5);
        journal.append(&[&put("6")]).unwrap();
        // The snapshot is in place, the old files not yet removed.
        journal.install_snapshot(b"six").unwrap();
        drop(journal);
        fs::write(&path, &old_log).unwrap();
        let (_, recovered) = Journal::open(folder.path()).unwrap();
        assert_eq!(recovered.snapshot.as_deref(), Some(&b"six"[..]));
        assert!(recovered.commands.is_empty());
    }

    #[test]
    fn a_damaged_snapshot_and_a_missing_log_are_named() {
        let (folder, path) = three_frames();
        fs::rename(&path, folder.path().join("log-0000000000000002")).unwrap();
        assert!(matches!(Journal::open(folder.path()), Err(EmbeddedError::Damaged { .. })));
        let folder = TempDir::new().unwrap();
        let (mut journal, _) = Journal::open(folder.path()).unwrap();
        journal.install_snapshot(b"the state").unwrap();
        drop(journal);
        let path = folder.path().join("snapshot-0000000000000000");
        let whole = fs::read(&path).unwrap();
        for position in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[position] ^= 1;
            fs::write(&path, bytes).unwrap();
            let opened = Journal::open(folder.path());
            assert!(matches!(opened, Err(EmbeddedError::Damaged { .. })), "byte {position}");
        }
    }
}
