//! How a client behaves.

use std::time::Duration;

use trireme_types::limits::{KEY_BYTES_MAX, SESSION_OUTCOMES_MAX, VALUE_BYTES_MAX};

use crate::ClientError;

/// The most streams that a client may keep to one node.
pub const STREAMS_PER_NODE_MAX: usize = 64;

/// The smallest bound that may be set for the bytes of one frame in either direction: the largest
/// row fits, with room for what surrounds it.
pub const FRAME_BYTES_LEAST: usize = KEY_BYTES_MAX + VALUE_BYTES_MAX + 4 * 1024;

/// How a [`Client`](crate::Client) behaves. The defaults suit a service that talks to a cluster
/// nearby.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientOptions {
    /// How long one operation may take, all its retries included; a scan may take that long for
    /// each page. Longer rides out longer failures, shorter frees its caller earlier. Default: 10
    /// s, several times what a cohort needs to find a new leader.
    pub deadline: Duration,
    /// How long to wait for one answer before looking whether the cohort has moved and asking
    /// again. A node that stays silent is asked again after twice the time each time, within the
    /// deadline; whether another leads by then is looked up after each time of this length. Shorter
    /// leaves a silent node sooner, longer asks a slow one less often. Default: 1 s.
    pub attempt_timeout: Duration,
    /// How long opening a connection or asking for the routes may take. Default: 2 s.
    pub connect_timeout: Duration,
    /// The pause before the second try of an operation; it doubles with each further one. A third
    /// of every pause is left to chance, so that many clients do not return at once. Default: 5
    /// ms.
    pub backoff_min: Duration,
    /// The longest pause between two tries. Longer spares a cluster in trouble, shorter finds its
    /// recovery sooner. Default: 200 ms.
    pub backoff_max: Duration,
    /// The most writes that the client has under way in one cohort; more wait. At most
    /// [`SESSION_OUTCOMES_MAX`], which is as far back as a cohort can recognise a retry
    /// (C1). Default: that.
    pub in_flight_max: usize,
    /// Streams kept to each node. One is enough until its two ends fill a core each; calls on
    /// different streams are not gathered into common frames. Default: 1.
    pub streams_per_node: usize,
    /// The most calls that wait for one stream to take them; the callers of more wait. Default:
    /// 4096.
    pub queue_calls_max: usize,
    /// The most calls that one stream has sent and awaits the answers of. Default: 16,384.
    pub unanswered_calls_max: usize,
    /// The most calls in one frame. Default: 1024, which is past where larger frames gain speed.
    pub frame_calls_max: usize,
    /// The bytes past which a frame takes no further call. At least [`FRAME_BYTES_LEAST`].
    /// Default: 2 MiB, half of what gRPC servers accept by default.
    pub frame_bytes_max: usize,
    /// The most bytes accepted in one message of a server; a larger one breaks the stream. At
    /// least [`FRAME_BYTES_LEAST`]. Default: 16 MiB.
    pub answer_bytes_max: usize,
    /// How long a connection with open calls may be silent before the node is pinged. Default: 2
    /// s.
    pub keep_alive_interval: Duration,
    /// How long the answer to a ping may take before the connection counts as broken. Default: 3
    /// s.
    pub keep_alive_timeout: Duration,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(10),
            attempt_timeout: Duration::from_secs(1),
            connect_timeout: Duration::from_secs(2),
            backoff_min: Duration::from_millis(5),
            backoff_max: Duration::from_millis(200),
            in_flight_max: SESSION_OUTCOMES_MAX,
            streams_per_node: 1,
            queue_calls_max: 4096,
            unanswered_calls_max: 16 * 1024,
            frame_calls_max: 1024,
            frame_bytes_max: 2 * 1024 * 1024,
            answer_bytes_max: 16 * 1024 * 1024,
            keep_alive_interval: Duration::from_secs(2),
            keep_alive_timeout: Duration::from_secs(3),
        }
    }
}

impl ClientOptions {
    /// Returns what is wrong with the options, if anything is, as [`ClientError::Invalid`].
    pub fn validate(&self) -> Result<(), ClientError> {
        for (name, duration) in [
            ("deadline", self.deadline),
            ("attempt_timeout", self.attempt_timeout),
            ("connect_timeout", self.connect_timeout),
            ("backoff_min", self.backoff_min),
            ("keep_alive_interval", self.keep_alive_interval),
            ("keep_alive_timeout", self.keep_alive_timeout),
        ] {
            refuse_if(duration.is_zero(), || format!("the option {name} is zero"))?;
        }
        refuse_if(self.backoff_max < self.backoff_min, || {
            "the option backoff_max is below backoff_min".to_owned()
        })?;
        for (name, number, most) in [
            ("in_flight_max", self.in_flight_max, SESSION_OUTCOMES_MAX),
            ("streams_per_node", self.streams_per_node, STREAMS_PER_NODE_MAX),
            ("queue_calls_max", self.queue_calls_max, tokio::sync::Semaphore::MAX_PERMITS),
            ("unanswered_calls_max", self.unanswered_calls_max, u32::MAX as usize),
            ("frame_calls_max", self.frame_calls_max, u32::MAX as usize),
        ] {
            refuse_if(!(1..=most).contains(&number), || {
                format!("the option {name} is {number}; it must lie between 1 and {most}")
            })?;
        }
        for (name, bytes) in
            [("frame_bytes_max", self.frame_bytes_max), ("answer_bytes_max", self.answer_bytes_max)]
        {
            refuse_if(bytes < FRAME_BYTES_LEAST, || {
                format!("the option {name} is {bytes}; it must be at least {FRAME_BYTES_LEAST}")
            })?;
        }
        Ok(())
    }
}

fn refuse_if(wrong: bool, why: impl FnOnce() -> String) -> Result<(), ClientError> {
    if wrong { Err(ClientError::Invalid(why())) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        ClientOptions::default().validate().unwrap();
    }

    #[test]
    fn impossible_options_are_named() {
        let too_many =
            ClientOptions { in_flight_max: SESSION_OUTCOMES_MAX + 1, ..ClientOptions::default() };
        let no_time = ClientOptions { deadline: Duration::ZERO, ..ClientOptions::default() };
        let small = ClientOptions { frame_bytes_max: 100, ..ClientOptions::default() };
        for (options, name) in
            [(too_many, "in_flight_max"), (no_time, "deadline"), (small, "frame_bytes_max")]
        {
            let refused = options.validate().unwrap_err().to_string();
            assert!(refused.contains(name), "{refused}");
        }
    }
}
