//! The client against a cluster that fails as told.

#[cfg(test)]
mod basics;
#[cfg(test)]
mod failures;
#[cfg(test)]
mod scans;
#[cfg(test)]
mod sessions;
#[cfg(test)]
mod writes;
