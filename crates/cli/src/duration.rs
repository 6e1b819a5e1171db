//! Durations as they are typed.

use std::time::Duration;

/// Reads a duration above zero: a number and its unit, `ms`, `s`, `m`, `h` or `d`.
pub(crate) fn positive(text: &str) -> Result<Duration, String> {
    match any(text)? {
        duration if duration.is_zero() => Err("must be longer than nothing".to_owned()),
        duration => Ok(duration),
    }
}

/// Reads a duration: a number and its unit, `ms`, `s`, `m`, `h` or `d`.
pub(crate) fn any(text: &str) -> Result<Duration, String> {
    let unit_at = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let seconds = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 24.0 * 3600.0,
        _ => return Err("expected a number with a unit, such as 500ms, 10s or 2m".to_owned()),
    };
    let number: f64 = number.parse().map_err(|_| format!("'{number}' is not a number"))?;
    Duration::try_from_secs_f64(number * seconds).map_err(|_| "out of range".to_owned())
}

/// A duration, or that what it is the duration of does not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OrOff(pub(crate) Option<Duration>);

/// Reads a duration, or `off`.
pub(crate) fn or_off(text: &str) -> Result<OrOff, String> {
    if text == "off" { Ok(OrOff(None)) } else { any(text).map(|duration| OrOff(Some(duration))) }
}

impl std::fmt::Display for OrOff {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.map_or_else(|| "off".to_owned(), text).fmt(f)
    }
}

/// Returns what reads as exactly this duration.
pub(crate) fn text(duration: Duration) -> String {
    format!("{}s", duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_a_number_with_its_unit() {
        for (text, milliseconds) in [
            ("500ms", 500),
            ("10s", 10_000),
            ("1.5s", 1500),
            ("2m", 120_000),
            ("1h", 3_600_000),
            ("1d", 86_400_000),
        ] {
            assert_eq!(positive(text), Ok(Duration::from_millis(milliseconds)));
        }
        assert_eq!(any("0s"), Ok(Duration::ZERO));
        assert_eq!(or_off("off"), Ok(OrOff(None)));
        assert_eq!(or_off("10s"), Ok(OrOff(Some(Duration::from_secs(10)))));
        assert!(or_off("on").is_err());
    }

    #[test]
    fn a_duration_reads_as_it_was_written() {
        for nanoseconds in [1, 999, 20_000_000, 1_234_567_891, 86_400_000_000_001] {
            let duration = Duration::from_nanos(nanoseconds);
            assert_eq!(any(&text(duration)), Ok(duration));
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "10", "s", "-1s", "1e999s", "10 s", "10w", "0s", "NaNs"] {
            assert!(positive(text).is_err(), "{text:?} was taken");
        }
    }
}
