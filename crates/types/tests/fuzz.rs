//! Damaged and hostile bytes in place of a batch of commands, which comes from peers and from the log.

use bytes::Bytes;
use trireme_fuzz::{Fuzz, Verdict};
use trireme_types::{ClientId, Command, CommandBatch, Condition, Operation, RequestId, Version};

fn batch() -> CommandBatch {
    let request =
        RequestId { client: ClientId(u128::MAX), sequence: 7, first_incomplete: 3, start: Some(5) };
    let condition = Condition::Version(Version(9));
    let (key, value) = (Bytes::from_static(b"key"), Bytes::from_static(b"value"));
    let put = Operation::Put { key: key.clone(), value, condition };
    let delete = Operation::Delete { key, condition: Condition::Absent };
    let commands = vec![
        Command { request: Some(request), operation: put },
        Command { request: None, operation: delete },
    ];
    CommandBatch { commands, clock: 1 << 40 }
}

#[test]
fn fuzz_command_batch() {
    // A delete without a request, in the format of 0.1.0.
    let old = vec![1, 1, 1, 7, 3, 2, 1, 1, b'k', 0];
    let valid = [batch().encode().to_vec(), CommandBatch::default().encode().to_vec(), old];
    Fuzz::new("fuzz_command_batch", valid).run(|bytes| {
        let decoded = CommandBatch::decode(bytes);
        if let Ok(batch) = &decoded {
            assert_eq!(CommandBatch::decode(&batch.encode()).as_ref(), Ok(batch));
        }
        Verdict::from(&decoded)
    });
}
