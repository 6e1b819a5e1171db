//! The log of Jepsen's register test on etcd: `INFO jepsen.util - PROCESS :invoke :write 3`.
//!
//! All operations are on one register. A read of `nil` found no value. `:fail :cas` means that the
//! compare failed; `:fail :read` is a read without an answer; after `:info` the outcome is ambiguous.

use std::io::BufRead;

use super::pending::{End, Pending};
use super::{FormatError, lines};
use crate::kv::{Input, KvOperation, Output, Text};

/// The key that stands for the register.
const REGISTER: &str = "register";

/// Reads a history. Lines of other loggers are passed over.
pub fn read(input: impl BufRead) -> Result<Vec<KvOperation>, FormatError> {
    let mut pending = Pending::default();
    for line in lines(input) {
        let (line, text) = line?;
        let Some((_, event)) = text.split_once("jepsen.util - ") else { continue };
        let read = add(&mut pending, event);
        read.map_err(|problem| FormatError::Line { line, problem })?;
    }
    Ok(pending.finish())
}

fn add(pending: &mut Pending, event: &str) -> Result<(), String> {
    let words: Vec<&str> = event.split_whitespace().collect();
    let [process, kind, function, value @ ..] = &words[..] else {
        return Err("an event is a process, what happened, a function and a value".to_owned());
    };
    let process = process.parse().map_err(|_| format!("'{process}' is no process"))?;
    match *kind {
        ":invoke" => pending.invoke(process, input(function, value)?),
        ":ok" => pending.end(process, |input| match input {
            Input::Get { .. } => Ok(End::Answered(Output::Found(register(value)?))),
            _ => Ok(End::Answered(Output::Done)),
        }),
        ":fail" => pending.end(process, |input| match input {
            Input::CompareAndSet { .. } => Ok(End::Answered(Output::Refused)),
            _ => Ok(End::Nothing),
        }),
        ":info" => pending.end(process, |_| Ok(End::Ambiguous)),
        other => Err(format!("nothing that happens is called '{other}'")),
    }
}

fn input(function: &str, value: &[&str]) -> Result<Input, String> {
    let key = Text::from(REGISTER);
    match (function, value) {
        (":read", _) => Ok(Input::Get { key }),
        (":write", [value]) => Ok(Input::Put { key, value: Text::from(*value) }),
        (":cas", [expected, value]) => {
            let expected = expected.strip_prefix('[').ok_or("a compare begins with '['")?;
            let value = value.strip_suffix(']').ok_or("a compare ends with ']'")?;
            let expected = (expected != "nil").then(|| Text::from(expected));
            Ok(Input::CompareAndSet { key, expected, value: Text::from(value) })
        }
        _ => Err(format!("'{function}' is no function with the value '{}'", value.join(" "))),
    }
}

fn register(value: &[&str]) -> Result<Option<Text>, String> {
    match value {
        ["nil"] => Ok(None),
        [value] => Ok(Some(Text::from(*value))),
        _ => Err("a read finds one value".to_owned()),
    }
}
