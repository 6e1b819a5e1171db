//! Damaged and hostile bytes in place of what the journal records.

use etcd_client::proto::{
    PbCompactionRequest, PbDeleteRequest, PbLeaseGrantRequest, PbLeaseRevokeRequest, PbPutRequest,
};
use trireme_fuzz::{Fuzz, Verdict};

use super::command::Command;
use super::engine;
use super::options::EmbeddedOptions;
use super::store::Store;

fn commands() -> Vec<Command> {
    let (key, value) = (b"/nodes/1".to_vec(), b"{}".to_vec());
    vec![
        Command::Grant(PbLeaseGrantRequest { id: 7, ttl: 10 }),
        Command::Put(PbPutRequest { key: key.clone(), value, lease: 7, ..Default::default() }),
        Command::Delete(PbDeleteRequest { key, ..Default::default() }),
        Command::Compact(PbCompactionRequest { revision: 2, ..Default::default() }),
        Command::Revoke(PbLeaseRevokeRequest { id: 7 }),
    ]
}

/// Commands that are read are applied, as the journal's are at a start, and are written as they were
/// read.
#[test]
fn fuzz_embedded_commands() {
    let mut all = Vec::new();
    commands().iter().for_each(|command| command.encode(&mut all));
    let fuzz = Fuzz::new("fuzz_embedded_commands", [all]);
    fuzz.run(|mut bytes| {
        let mut store = Store::default();
        while !bytes.is_empty() {
            let Ok(command) = Command::decode(&mut bytes) else { return Verdict::Refused };
            let mut again = Vec::new();
            command.encode(&mut again);
            assert_eq!(Command::decode(&mut &again[..]).as_ref(), Ok(&command));
            // A command that is refused when it is applied was refused when it was logged.
            let _refused = command.apply(&mut store);
        }
        Verdict::Accepted
    });
}

#[test]
fn fuzz_embedded_snapshot() {
    let mut store = Store::default();
    for command in commands().into_iter().take(2) {
        command.apply(&mut store).expect("the command is in order");
    }
    let options = EmbeddedOptions::new("/data", "127.0.0.1:1".parse().expect("an address"));
    let valid = engine::encode_snapshot(engine::Identity { cluster: 1, member: 2 }, &store);
    let valid = valid.expect("a store can be encoded");
    Fuzz::new("fuzz_embedded_snapshot", [valid]).run(|bytes| {
        let decoded = engine::decode_snapshot(bytes, &options);
        if let Ok((identity, store)) = &decoded {
            let again = engine::encode_snapshot(*identity, store).expect("it can be encoded");
            let again =
                engine::decode_snapshot(&again, &options).expect("what was written is read");
            assert_eq!(&again.1, store);
        }
        Verdict::from(&decoded)
    });
}
