//! The client against a cluster that fails as told.

#![expect(clippy::cast_possible_truncation, reason = "the numbers of a few nodes")]

#[cfg(test)]
mod basics;
#[cfg(test)]
mod failures;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod scans;
#[cfg(test)]
mod sessions;
#[cfg(test)]
mod writes;
