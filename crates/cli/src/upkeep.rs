//! What a node does for its ranges by itself, as `node` and `up` take it.

use std::time::Duration;

use clap::Args;
use trireme_server::{
    DISCARD_AFTER_DEFAULT, REPLACE_DELAY_DEFAULT, SPLIT_BYTES_DEFAULT, SPREAD_DELAY_DEFAULT,
    SPREAD_LEADS_DELAY_DEFAULT,
};

use super::duration::{self, OrOff};
use super::split_bytes::{SplitBytes, split_bytes};

/// The options that say when replicas and leads move and ranges are split. None is remembered.
#[derive(Args, Clone, Copy)]
pub(crate) struct UpkeepArgs {
    /// How long a range lacks a replica, or a node that holds one is away, before the range's leader asks
    /// another node to hold one; not remembered. [default: 10s]
    #[arg(long, value_name = "DURATION", value_parser = duration::any)]
    replace_delay: Option<Duration>,
    /// How large the rows of a range may be, in bytes of keys and values, before it is cut in two, or `off`;
    /// not remembered. [default: 536870912]
    #[arg(long, value_name = "BYTES", value_parser = split_bytes)]
    split_bytes: Option<SplitBytes>,
    /// How long the replicas are spread unevenly over the nodes before one moves to a node that holds fewer,
    /// or `off`; not remembered. The living node of the lowest number goes by its own. [default: 1m]
    #[arg(long, value_name = "DURATION", value_parser = duration::or_off)]
    spread_delay: Option<OrOff>,
    /// How long a node leads more than another one, of the ranges that both have replicas of, before it hands
    /// one over to it, or `off`; not remembered. [default: 1m]
    #[arg(long, value_name = "DURATION", value_parser = duration::or_off)]
    spread_leads_delay: Option<OrOff>,
    /// How long a node keeps the data of a replica that it no longer holds; not remembered. [default: 1d]
    #[arg(long, value_name = "DURATION", value_parser = duration::any)]
    discard_after: Option<Duration>,
}

impl UpkeepArgs {
    pub(crate) fn replace_delay(&self) -> Duration {
        self.replace_delay.unwrap_or(REPLACE_DELAY_DEFAULT)
    }

    pub(crate) fn split_bytes(&self) -> Option<u64> {
        self.split_bytes.map_or(Some(SPLIT_BYTES_DEFAULT), |it| it.0)
    }

    pub(crate) fn spread_delay(&self) -> Option<Duration> {
        self.spread_delay.map_or(Some(SPREAD_DELAY_DEFAULT), |it| it.0)
    }

    pub(crate) fn spread_leads_delay(&self) -> Option<Duration> {
        self.spread_leads_delay.map_or(Some(SPREAD_LEADS_DELAY_DEFAULT), |it| it.0)
    }

    pub(crate) fn discard_after(&self) -> Duration {
        self.discard_after.unwrap_or(DISCARD_AFTER_DEFAULT)
    }

    /// Returns the arguments that ask a node for exactly this.
    pub(crate) fn arguments(&self) -> [String; 10] {
        [
            "--replace-delay".to_owned(),
            duration::text(self.replace_delay()),
            "--split-bytes".to_owned(),
            SplitBytes(self.split_bytes()).to_string(),
            "--spread-delay".to_owned(),
            OrOff(self.spread_delay()).to_string(),
            "--spread-leads-delay".to_owned(),
            OrOff(self.spread_leads_delay()).to_string(),
            "--discard-after".to_owned(),
            duration::text(self.discard_after()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        upkeep: UpkeepArgs,
    }

    fn parsed<'a>(arguments: impl IntoIterator<Item = &'a str>) -> UpkeepArgs {
        let arguments = std::iter::once("trireme").chain(arguments);
        Command::try_parse_from(arguments).unwrap_or_else(|error| panic!("{error}")).upkeep
    }

    /// `up` passes on to its nodes what it was given.
    #[test]
    fn arguments_read_as_what_they_were_made_of() {
        let given = [
            "--replace-delay=250ms",
            "--split-bytes=1048577",
            "--spread-delay=off",
            "--spread-leads-delay=1.5s",
            "--discard-after=2h",
        ];
        for upkeep in [parsed(given), parsed(["--split-bytes=off"]), parsed([])] {
            let arguments = upkeep.arguments();
            let again = parsed(arguments.iter().map(String::as_str));
            assert_eq!(again.arguments(), arguments);
            assert_eq!(again.replace_delay(), upkeep.replace_delay());
            assert_eq!(again.split_bytes(), upkeep.split_bytes());
            assert_eq!(again.spread_delay(), upkeep.spread_delay());
            assert_eq!(again.spread_leads_delay(), upkeep.spread_leads_delay());
            assert_eq!(again.discard_after(), upkeep.discard_after());
        }
        let upkeep = parsed(given);
        assert_eq!((upkeep.split_bytes(), upkeep.spread_delay()), (Some(1_048_577), None));
        assert_eq!(upkeep.spread_leads_delay(), Some(Duration::from_millis(1500)));
    }
}
