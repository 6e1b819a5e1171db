//! Maps in EDN, one event a line:
//! `{:process 0, :type :invoke, :f :append, :key "2", :value "x"}`, with get, put and append on keys
//! whose value is the empty string at first.

use std::io::BufRead;

use super::pending::{End, Pending};
use super::{FormatError, lines};
use crate::kv::{Input, KvOperation, Output, Text};

/// Reads a history.
pub fn read(input: impl BufRead) -> Result<Vec<KvOperation>, FormatError> {
    let mut pending = Pending::default();
    for line in lines(input) {
        let (line, text) = line?;
        let event = Event::parse(&text).and_then(|event| event.add(&mut pending));
        event.map_err(|problem| FormatError::Line { line, problem })?;
    }
    Ok(pending.finish())
}

#[derive(Debug, Default)]
struct Event {
    process: Option<u64>,
    kind: String,
    function: String,
    key: Option<Text>,
    value: Option<Text>,
}

impl Event {
    fn parse(text: &str) -> Result<Self, String> {
        let inside = text.trim().strip_prefix('{').and_then(|text| text.strip_suffix('}'));
        let mut rest = inside.ok_or("an event is a map in braces")?;
        let mut event = Self::default();
        loop {
            rest = rest.trim_start_matches([' ', ',']);
            if rest.is_empty() {
                return Ok(event);
            }
            let (name, after) = token(rest)?;
            let (value, after) = token(after.trim_start())?;
            rest = after;
            let text = || value.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
            match name {
                ":process" => event.process = value.parse().ok(),
                ":type" => value.clone_into(&mut event.kind),
                ":f" => value.clone_into(&mut event.function),
                ":key" => event.key = text().map(Text::from),
                ":value" => event.value = text().map(Text::from),
                other => return Err(format!("an event has no '{other}'")),
            }
        }
    }

    fn add(self, pending: &mut Pending) -> Result<(), String> {
        let process = self.process.ok_or("an event has a process")?;
        match self.kind.as_str() {
            ":invoke" => {
                let key = self.key.ok_or("an operation has a key")?;
                let written = self.value.ok_or("a write has a value");
                let input = match self.function.as_str() {
                    ":get" => Input::Get { key },
                    // A key that has the empty string and one without a value read alike.
                    ":put" => match written? {
                        value if value.is_empty() => Input::Delete { key },
                        value => Input::Put { key, value },
                    },
                    ":append" => Input::Append { key, value: written? },
                    other => return Err(format!("'{other}' is no function")),
                };
                pending.invoke(process, input)
            }
            ":ok" => pending.end(process, |input| match input {
                Input::Get { .. } => {
                    let found = self.value.ok_or("a get finds a string")?;
                    Ok(End::Answered(Output::Found(Some(found).filter(|it| !it.is_empty()))))
                }
                _ => Ok(End::Answered(Output::Done)),
            }),
            ":fail" => pending.end(process, |_| Ok(End::Nothing)),
            ":info" => pending.end(process, |_| Ok(End::Ambiguous)),
            other => Err(format!("nothing that happens is called '{other}'")),
        }
    }
}

/// Divides a text behind its first token: a string with its quotes, or a word.
fn token(text: &str) -> Result<(&str, &str), String> {
    let end = match text.strip_prefix('"') {
        Some(inside) => inside.find('"').map(|end| end + 2),
        None => Some(text.find([' ', ',']).unwrap_or(text.len())),
    };
    Ok(text.split_at(end.ok_or("a string does not end")?))
}
