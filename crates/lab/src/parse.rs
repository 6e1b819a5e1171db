//! Durations and protocols as they are typed.

use std::time::Duration;

use trireme_types::Protocol;

/// The protocols, in the order in which they are told of.
const ALL: [Protocol; 3] = [Protocol::Spinnaker, Protocol::Raft, Protocol::Pacifica];

/// Reads a duration above zero: a number and its unit, `ms`, `s` or `m`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = number_and_unit(text)?;
    let seconds = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        _ => return Err("expected a number with a unit, such as 100ms, 5s or 2m".to_owned()),
    };
    match Duration::try_from_secs_f64(number * seconds) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err("out of range".to_owned()),
    }
}

/// Reads a list of protocols, of which `all` stands for every one.
pub(crate) fn protocols(names: &[String]) -> Result<Vec<Protocol>, String> {
    let mut protocols = Vec::new();
    for name in names {
        let named = match name.as_str() {
            "all" => ALL.to_vec(),
            name => vec![name.parse().map_err(|unknown| format!("{unknown}, or all"))?],
        };
        for protocol in named {
            if !protocols.contains(&protocol) {
                protocols.push(protocol);
            }
        }
    }
    Ok(protocols)
}

fn number_and_unit(text: &str) -> Result<(f64, &str), String> {
    let unit_at = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let number = number.parse().map_err(|_| format!("'{number}' is not a number"))?;
    Ok((number, unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_a_number_with_its_unit() {
        for (text, milliseconds) in [("100ms", 100), ("5s", 5000), ("1.5s", 1500), ("2m", 120_000)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)));
        }
        for text in ["", "10", "s", "-1s", "0s", "NaNs", "10 s", "10d", "1e999s"] {
            assert!(duration(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn protocols_are_named_once_each() {
        let named =
            |names: &[&str]| protocols(&names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>());
        assert_eq!(named(&["all"]), Ok(ALL.to_vec()));
        assert_eq!(named(&["raft", "all"]).unwrap()[0], Protocol::Raft);
        assert_eq!(named(&["raft", "raft"]), Ok(vec![Protocol::Raft]));
        assert!(named(&["chain"]).unwrap_err().contains("or all"));
    }
}
