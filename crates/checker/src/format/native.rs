//! This project's own format: JSON, one operation a line, after a line that names the format.
//!
//! ```text
//! {"format":"trireme-history","version":1}
//! {"client":1,"called":10,"returned":25,"op":"put","key":"a","value":"1"}
//! {"client":2,"called":12,"returned":20,"op":"get","key":"a","found":null}
//! {"client":1,"called":30,"op":"delete","key":"a"}
//! {"client":2,"called":31,"returned":40,"op":"compare-and-set","key":"a","expected":"1","value":"2","done":true}
//! {"client":2,"called":41,"returned":60,"op":"scan","start":"a","end":"m","rows":[["a","2"]]}
//! ```
//!
//! `called` and `returned` are in one unit, microseconds where this project writes them. An operation
//! without `returned` is ambiguous, and what else would be its answer is not looked at. `append` has
//! the fields of `put`. A scan without `end` has no end.

use std::io::{self, BufRead, Write};

use serde::{Deserialize, Serialize};

use super::{FormatError, OPERATIONS_MAX, lines};
use crate::history::{Answer, Operation};
use crate::kv::{Input, KvOperation, Output, Text};

const FORMAT: &str = "trireme-history";
const VERSION: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    format: String,
    version: u32,
}

#[derive(Debug, Serialize, Deserialize)]
struct Line {
    client: u64,
    called: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    returned: Option<u64>,
    #[serde(flatten)]
    what: What,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
enum What {
    Get {
        key: String,
        #[serde(default)]
        found: Option<String>,
    },
    Put {
        key: String,
        value: String,
    },
    Delete {
        key: String,
    },
    Append {
        key: String,
        value: String,
    },
    CompareAndSet {
        key: String,
        expected: Option<String>,
        value: String,
        #[serde(default)]
        done: bool,
    },
    Scan {
        start: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        end: Option<String>,
        #[serde(default)]
        rows: Vec<(String, String)>,
    },
}

/// Reads a history.
pub fn read(input: impl BufRead) -> Result<Vec<KvOperation>, FormatError> {
    let mut history = Vec::new();
    let mut lines = lines(input);
    let (line, header) = lines.next().ok_or(FormatError::Empty)??;
    let bad = |line, problem: String| FormatError::Line { line, problem };
    let header: Header =
        serde_json::from_str(&header).map_err(|error| bad(line, error.to_string()))?;
    if header.format != FORMAT || header.version != VERSION {
        let Header { format, version } = header;
        let problem = format!("'{format}' {version} is not '{FORMAT}' {VERSION}");
        return Err(bad(line, problem));
    }
    for text in lines {
        let (line, text) = text?;
        if history.len() >= OPERATIONS_MAX {
            return Err(FormatError::TooLong);
        }
        let operation: Line =
            serde_json::from_str(&text).map_err(|error| bad(line, error.to_string()))?;
        history.push(operation.into_operation().map_err(|problem| bad(line, problem))?);
    }
    Ok(history)
}

/// Writes a history that [`read`] reads.
pub fn write(history: &[KvOperation], mut output: impl Write) -> io::Result<()> {
    let header = Header { format: FORMAT.to_owned(), version: VERSION };
    serde_json::to_writer(&mut output, &header)?;
    writeln!(output)?;
    for operation in history {
        serde_json::to_writer(&mut output, &Line::of(operation))?;
        writeln!(output)?;
    }
    output.flush()
}

impl Line {
    fn into_operation(self) -> Result<KvOperation, String> {
        let Self { client, called, returned, what } = self;
        if returned.is_some_and(|returned| returned < called) {
            return Err("the operation was answered before it was called".to_owned());
        }
        let text = |text: Option<String>| text.map(Text::from);
        let (input, output) = match what {
            What::Get { key, found } => {
                (Input::Get { key: key.into() }, Output::Found(text(found)))
            }
            What::Put { key, value } => {
                (Input::Put { key: key.into(), value: value.into() }, Output::Done)
            }
            What::Delete { key } => (Input::Delete { key: key.into() }, Output::Done),
            What::Append { key, value } => {
                (Input::Append { key: key.into(), value: value.into() }, Output::Done)
            }
            What::CompareAndSet { key, expected, value, done } => {
                let expected = text(expected);
                let input = Input::CompareAndSet { key: key.into(), expected, value: value.into() };
                (input, if done { Output::Done } else { Output::Refused })
            }
            What::Scan { start, end, rows } => {
                let rows = rows.into_iter().map(|(key, value)| (key.into(), value.into()));
                let output = Output::Rows(rows.collect());
                (Input::Scan { start: start.into(), end: text(end) }, output)
            }
        };
        let answer = returned.map(|at| Answer { at, output });
        Ok(Operation { client, input, called, answer })
    }

    fn of(operation: &KvOperation) -> Self {
        let output = operation.answer.as_ref().map(|answer| &answer.output);
        let what = match &operation.input {
            Input::Get { key } => {
                let found = match output {
                    Some(Output::Found(found)) => found.as_deref().map(str::to_owned),
                    _ => None,
                };
                What::Get { key: key.to_string(), found }
            }
            Input::Put { key, value } => {
                What::Put { key: key.to_string(), value: value.to_string() }
            }
            Input::Delete { key } => What::Delete { key: key.to_string() },
            Input::Append { key, value } => {
                What::Append { key: key.to_string(), value: value.to_string() }
            }
            Input::CompareAndSet { key, expected, value } => What::CompareAndSet {
                key: key.to_string(),
                expected: expected.as_deref().map(str::to_owned),
                value: value.to_string(),
                done: output == Some(&Output::Done),
            },
            Input::Scan { start, end } => {
                let rows = match output {
                    Some(Output::Rows(rows)) => &rows[..],
                    _ => &[],
                };
                let row = |(key, value): &(Text, Text)| (key.to_string(), value.to_string());
                What::Scan {
                    start: start.to_string(),
                    end: end.as_deref().map(str::to_owned),
                    rows: rows.iter().map(row).collect(),
                }
            }
        };
        let returned = operation.answer.as_ref().map(|answer| answer.at);
        Self { client: operation.client, called: operation.called, returned, what }
    }
}
