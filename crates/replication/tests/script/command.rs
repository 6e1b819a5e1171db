//! The words of scripts.

use super::network::Way;

/// What a script can say.
#[derive(Clone, Debug, goldenscript::Command)]
pub(crate) enum Command {
    /// Starts nodes 1, 2, ... with empty disks: `cluster nodes=3 leader=1`. Other options are the
    /// protocol's own.
    Cluster {
        #[arg(key)]
        nodes: u64,
        #[arg(key)]
        leader: Option<u64>,
        #[arg(key, optional)]
        options: Vec<(String, String)>,
    },

    /// Proposes puts at a node, all in one batch: `put 1 a=1 b=2`.
    Put(u64, #[arg(key)] Vec<(String, String)>),

    /// Proposes to delete keys, all in one batch: `delete 1 a b`.
    Delete(u64, Vec<String>),

    /// Proposes at a node to end the cohort, with one successor of another protocol or with two that have
    /// a part of the range each: `seal 1`, `seal 1 at=b`.
    Seal {
        node: u64,
        #[arg(key)]
        at: Option<String>,
    },

    /// Has a client send a write to a node under a name, the client and its number, on a condition or
    /// none: `request 1 2.3 put a v7 when=absent`, `request 1 2.4 delete a when=v3`.
    Request {
        node: u64,
        name: String,
        words: Vec<String>,
        #[arg(key)]
        when: Option<String>,
    },

    /// Has a client send a write again: `retry 2 2.3`.
    Retry(u64, String),

    /// Reads a key at a node, strongly unless `level=timeline`: `get 1 a`. A client takes no state that
    /// is older than it has seen: `get 1 a level=timeline client=2`.
    Get {
        node: u64,
        key: String,
        #[arg(key)]
        level: Option<String>,
        #[arg(key)]
        client: Option<u64>,
    },

    /// Delivers the messages with these numbers, or all that are on the network now, in the order
    /// in which they were sent; only those of one sender, receiver or lane, only the first so many:
    /// `deliver 3 4`, `deliver from=1 to=2 count=1 lane=heartbeat`.
    Deliver {
        #[arg(optional)]
        ids: Vec<u64>,
        #[arg(key)]
        from: Option<u64>,
        #[arg(key)]
        to: Option<u64>,
        #[arg(key)]
        count: Option<usize>,
        #[arg(key)]
        lane: Option<Way>,
    },

    /// Loses messages, chosen as by `deliver`.
    Drop {
        #[arg(optional)]
        ids: Vec<u64>,
        #[arg(key)]
        from: Option<u64>,
        #[arg(key)]
        to: Option<u64>,
        #[arg(key)]
        count: Option<usize>,
        #[arg(key)]
        lane: Option<Way>,
    },

    /// Has a node see the connection to another break: `peerlost 1 2`.
    Peerlost(u64, u64),

    /// Has a node see the connection to another established again: `peeralive 1 2`.
    Peeralive(u64, u64),

    /// Cuts nodes off from the others: what they send or are sent from now on is lost.
    Partition(Vec<u64>),

    /// Cuts one way: what the first node sends to the second is lost from now on, on one lane or on
    /// all. Neither hears of it, as where pings still find their way: `cut 1 2`, `cut 1 2 lane=data`.
    Cut {
        from: u64,
        to: u64,
        #[arg(key)]
        lane: Option<Way>,
    },

    /// Ends all partitions and cuts.
    Heal,

    /// Lets milliseconds pass, while messages stay where they are: `tick 20`.
    Tick(u64),

    /// Lets milliseconds pass, while messages are delivered and the coordinator works: `run 500`.
    Run(u64),

    /// Asks a replica to hand its lead to another: `transfer 1 2`.
    Transfer(u64, u64),

    /// Has a disk `stall`, so that nothing becomes durable on it, or `resume`; or makes the next
    /// forced write durable and no more, even on a stalled disk: `disk 2 stall`, `disk 2 one`.
    Disk(u64, String),

    /// Has a node's table `stall`, so that it neither applies entries nor installs snapshots, or
    /// `resume`: `table 2 stall`.
    Table(u64, String),

    /// Has a node `stall`, so that no piece of the log that it reads for others leaves it, or
    /// `resume`; or lets so many pieces go, and no more: `sender 2 stall`, `sender 2 resume 1`.
    Sender(u64, String, Option<usize>),

    /// Has a node do nothing, as if its process were stopped; what comes meanwhile waits: `pause 1`.
    Pause(u64),

    /// Has a paused node go on, with what has waited for it. Its timers are late: `resume 1`.
    Resume(u64),

    /// Makes what a node's table includes durable: `flush 1`.
    Flush(u64),

    /// Asks a replica to give up its log up to a sequence: `release 1 4`.
    Release(u64, u64),

    /// Kills a node: what its disk had not made durable is gone.
    Crash(u64),

    /// Empties a dead node's disk: `wipe 2`.
    Wipe(u64),

    /// Discards a dead node's replica, as a node does that is not to hold one any more: what was on
    /// its disk is gone, and nothing there says so: `discard 2`.
    Discard(u64),

    /// Starts a dead node from its disk.
    Restart(u64),

    /// Has the coordinator do something, in the protocol's own words.
    Coordinator(Vec<String>),

    /// Delivers messages, and has the coordinator work, until nothing is left to do.
    Stabilize,

    /// Lists what is on the network.
    Network,

    /// Describes one node, or all.
    Status(Option<u64>),

    /// Lists a node's log: the entries, and how far it is durable and committed on disk.
    Log(u64),
}
