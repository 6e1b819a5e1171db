//! Damaged and hostile bytes in place of a snapshot.

use bytes::{Bytes, BytesMut};
use trireme_fuzz::{Fuzz, Verdict};
use trireme_types::{CohortId, KeyRange, Lsn};

use super::chunk::{self, Chunk, Totals};
use super::{Record, SnapshotError, SnapshotHeader, SnapshotReceiver, record};

fn header() -> SnapshotHeader {
    SnapshotHeader {
        cohort: CohortId(3),
        applied: Lsn::new(4, 77),
        writes: 70,
        range: KeyRange { start: Bytes::from_static(b"a"), end: Some(Bytes::from_static(b"m")) },
        protocol: Some((Lsn::new(2, 9), Bytes::from_static(b"membership"))),
        clock: 1 << 41,
    }
}

/// Returns the stream of a snapshot of two sessions and two rows.
fn stream() -> BytesMut {
    let mut stream = BytesMut::new();
    record::write_header(&header(), &mut stream);
    let session = [2, 0, 9, 1, 1, 5, 0, 3];
    record::write_record(Record::SESSION, &[7; 16], &session, &mut stream);
    record::write_record(Record::SESSION, &[8; 16], &session, &mut stream);
    record::write_record(Record::ROW, b"b", b"\x01\0\0\0\0\0\0\0\x05value", &mut stream);
    record::write_record(Record::ROW, b"c", b"\x01\0\0\0\0\0\0\0\x06", &mut stream);
    stream
}

#[test]
fn fuzz_snapshot_chunk() {
    let totals = Totals { records: 5, bytes: 900, checksum: 7 };
    let chunks = [Chunk::Data(b"payload"), Chunk::Data(b""), Chunk::End(totals)];
    let valid = chunks.map(|chunk| chunk.encode(3).to_vec());
    let repair = |bytes: &mut Vec<u8>| {
        let len = bytes.len().saturating_sub(4);
        let checksum = crc32fast::hash(&bytes[..len]);
        bytes.truncate(len);
        bytes.extend(checksum.to_be_bytes());
    };
    Fuzz::new("fuzz_snapshot_chunk", valid).repair(&repair).run(|bytes| {
        let decoded = chunk::decode(bytes, 3);
        if let Ok(chunk) = &decoded {
            assert_eq!(chunk.encode(3), bytes);
        }
        Verdict::from(&decoded)
    });
}

/// The header and the records of a stream whose chunks were whole.
#[test]
fn fuzz_snapshot_stream() {
    // A record is as long as a value may be, whatever its length says; it is then cut off.
    let fuzz = Fuzz::new("fuzz_snapshot_stream", [stream()]).memory(8 << 20, 512);
    fuzz.run(|bytes| {
        let mut rest = bytes;
        let Ok(header) = record::read_header(&mut rest) else { return Verdict::Refused };
        let mut again = BytesMut::new();
        record::write_header(&header, &mut again);
        assert_eq!(record::read_header(&mut &again[..]).ok(), Some(header));
        let mut records = super::Records::new(rest, 4, super::SnapshotProgress::default());
        loop {
            match records.next_record() {
                Ok(Some(_)) => {}
                Ok(None) => return Verdict::Accepted,
                Err(SnapshotError::Io { .. }) => panic!("bytes in memory cannot fail to be read"),
                Err(_) => return Verdict::Refused,
            }
        }
    });
}

/// The whole way in: chunks as they come, then the stream in them.
#[test]
fn fuzz_snapshot_receiver() {
    let stream = stream();
    let totals =
        Totals { records: 4, bytes: stream.len() as u64, checksum: crc32fast::hash(&stream) };
    let (first, second) = stream.split_at(stream.len() / 2);
    let chunks = [Chunk::Data(first), Chunk::Data(second), Chunk::End(totals)];
    let framed = (0..).zip(&chunks).flat_map(|(index, chunk)| {
        let bytes = chunk.encode(index);
        let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes();
        [length.to_vec(), bytes.to_vec()].concat()
    });
    let dir = tempfile::tempdir().expect("a folder can be made");
    let fuzz = Fuzz::new("fuzz_snapshot_receiver", [framed.collect::<Vec<u8>>()]);
    fuzz.memory(8 << 20, 512).run(|mut bytes| {
        let mut receiver = SnapshotReceiver::new(dir.path()).expect("a file can be made");
        while let Some((length, rest)) = bytes.split_first_chunk() {
            let length = usize::from(u16::from_be_bytes(*length)).min(rest.len());
            let (chunk, rest) = rest.split_at(length);
            receiver.push(chunk).ok();
            bytes = rest;
        }
        let Ok(staged) = receiver.finish() else { return Verdict::Refused };
        // What has come whole is what was sent, whatever came between.
        assert_eq!(staged.header(), &header());
        Verdict::Accepted
    });
}
