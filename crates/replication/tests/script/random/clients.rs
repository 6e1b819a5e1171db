//! Clients that delete, write on conditions, send a write again whose answer they did not get, or did
//! get, and read what any replica has.

use std::collections::BTreeMap;

use super::steps::KEYS;
use super::{Numbers, Run, Trial};
use crate::script::Command;
use crate::script::invariants::Request;

/// How many there are.
const CLIENTS: u64 = 3;

/// How far back a retry goes at the most: a late one names a write that others have followed.
const RETRIES_BACK: u64 = 3;

/// What a client does, at a node or at the one that leads.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClientStep {
    client: u64,
    node: Option<u64>,
    key: usize,
    what: What,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Put(On),
    Delete(On),
    /// Sends a write again: the last one, or one so many before.
    Retry(u64),
    ReadTimeline,
}

/// On what condition a write is made.
#[derive(Clone, Copy, Debug)]
enum On {
    Nothing,
    Absent,
    /// The key has the version that a client was told of last.
    Newest,
}

pub(super) fn pick(numbers: &mut Numbers, node: Option<u64>, key: usize) -> ClientStep {
    let on = [On::Nothing, On::Nothing, On::Absent, On::Newest, On::Newest];
    let on = on[usize::try_from(numbers.below(5)).expect("a small number")];
    let client = numbers.below(CLIENTS) + 1;
    let what = match numbers.below(12) {
        0..3 => What::Put(on),
        3..5 => What::Delete(on),
        5..9 => What::Retry(numbers.below(RETRIES_BACK)),
        _ => What::ReadTimeline,
    };
    // A retry goes to any node, as where the leader that was asked is gone.
    ClientStep { client, node, key, what }
}

/// What the clients of a run remember.
#[derive(Debug, Default)]
pub(super) struct Clients {
    /// How many writes each has made.
    writes: BTreeMap<u64, u64>,
    /// The newest write of each key.
    newest: BTreeMap<usize, Request>,
}

impl<S: Trial> Run<S> {
    pub(super) fn act(&mut self, ClientStep { client, node, key, what }: ClientStep) {
        let node = node.unwrap_or_else(|| self.leader());
        if !self.is_alive(node) {
            return;
        }
        match what {
            What::Put(on) => {
                self.puts += 1;
                let words = vec!["put".to_owned(), KEYS[key].to_owned(), format!("v{}", self.puts)];
                self.request(client, node, (key, words), on);
            }
            What::Delete(on) => {
                let words = vec!["delete".to_owned(), KEYS[key].to_owned()];
                self.request(client, node, (key, words), on);
            }
            What::Retry(back) => {
                let made = self.clients.writes.get(&client).copied().unwrap_or_default();
                if let Some(number) = made.checked_sub(back).filter(|number| *number > 0) {
                    let name = format!("{client}.{number}");
                    self.execute(format!("retry {node} {name}"), &Command::Retry(node, name));
                }
            }
            What::ReadTimeline => {
                let text = format!("get {node} {} level=timeline client={client}", KEYS[key]);
                let (key, level) = (KEYS[key].to_owned(), Some("timeline".to_owned()));
                self.execute(text, &Command::Get { node, key, level, client: Some(client) });
            }
        }
    }

    fn request(&mut self, client: u64, node: u64, (key, words): (usize, Vec<String>), on: On) {
        let newest = self.clients.newest.get(&key);
        let version = newest.and_then(|request| self.runner.version_of(*request));
        let when = match (on, version) {
            (On::Nothing, _) => None,
            (On::Newest, Some(version)) => Some(format!("v{version}")),
            (On::Absent | On::Newest, _) => Some("absent".to_owned()),
        };
        let number = self.clients.writes.entry(client).or_default();
        *number += 1;
        let request = (client, *number);
        if words[0] == "put" {
            self.clients.newest.insert(key, request);
        }
        let name = format!("{}.{}", request.0, request.1);
        let shown = when.as_ref().map(|when| format!(" when={when}")).unwrap_or_default();
        let text = format!("request {node} {name} {}{shown}", words.join(" "));
        self.execute(text, &Command::Request { node, name, words, when });
    }
}
