//! Whole clusters in virtual time, from one seed.
//!
//! A run is a thread with a runtime of its own in which time is virtual: it passes when all tasks
//! wait. The seed decides the size of the cluster, the periods of its protocol, the delays of its
//! network and disks, what its clients do, and what goes wrong. The same seed gives the same run,
//! event for event ([`Summary::trace`]).
//!
//! Real are the storage (the log on a file system in memory that loses, tears and reorders what was
//! not forced; the tables, whose files lie in a folder of the machine), the drivers, the cores of
//! Spinnaker and PacificA, and Raft with openraft. Simulated are the network, by the promises of
//! [`trireme_replication::Transport`]; the coordinator, by those of its recipes; the server around the
//! replicas; and the clients.
//!
//! Faults happen while clients work: the safety phase. The invariants are checked after every
//! event. Then all faults end, and the cluster must heal, take a write, and read every key: the
//! liveness phase. At the end the checker judges all that the clients saw.

mod chance;
mod client;
mod coordinator;
mod damage;
mod disk;
mod faults;
mod invariants;
mod lulls;
mod mistake;
mod network;
mod node;
mod panics;
mod protocol;
mod setup;
mod trace;
mod turns;
mod world;

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use trireme_checker::search::Limits;
use trireme_checker::{Verdict, check, timeline};
use trireme_types::Protocol;

use self::client::Client;
use self::coordinator::Coordinator;
use self::faults::Faults;
use self::lulls::Lulls;
use self::setup::Course;
use self::trace::{Sink, Trace};
use self::turns::Turns;
use self::world::World;

pub use self::mistake::Mistake;
pub use self::setup::Setup;

/// The number of the client that reads what was written last.
const NEWEST_READER: u64 = 50;

/// How long all clients work before the first fault: a cluster must have begun.
const BEGINS_FOR: Duration = Duration::from_millis(1500);

/// What a run has done.
#[derive(Clone, Debug)]
pub struct Summary {
    /// A hash of every event: two runs of a seed have the same.
    pub trace: u64,
    /// The events, by kind.
    pub events: BTreeMap<&'static str, u64>,
    /// How much virtual time has passed, in milliseconds.
    pub millis: u64,
    /// The writes that were acknowledged.
    pub written: u64,
    /// The conditional writes whose condition did not hold.
    pub refused: u64,
    /// The strong reads that were answered.
    pub read: u64,
    /// The timeline reads.
    pub timeline_reads: u64,
    /// The writes whose outcome is ambiguous.
    pub ambiguous: u64,
    /// The epochs in which a node led.
    pub epochs: u64,
}

/// A run in which something was wrong.
#[derive(Clone, Debug)]
pub struct Failure {
    setup: Setup,
    /// What was wrong.
    pub reason: String,
    /// The last events.
    pub last: Vec<String>,
    /// The hash of every event until then.
    pub trace: u64,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for event in &self.last {
            writeln!(f, "{event}")?;
        }
        writeln!(f, "{}: {}", self.setup, self.reason)?;
        let Setup { protocol, seed, mistake } = self.setup;
        write!(f, "replay: SEED={seed} ")?;
        if let Some(mistake) = mistake {
            write!(f, "MISTAKE={mistake} ")?;
        }
        write!(f, "cargo test -p trireme-sim --test seeds {protocol}")
    }
}

/// Runs a cluster.
pub fn run(setup: Setup) -> Result<Summary, Box<Failure>> {
    run_into(setup, None)
}

/// Runs a cluster, and writes every event into `sink`, a line each.
pub fn run_into(
    setup: Setup,
    sink: Option<Box<dyn Write + Send>>,
) -> Result<Summary, Box<Failure>> {
    // A thread of its own, so that nothing is left of the runs before.
    let running = std::thread::Builder::new().name(format!("sim-{}", setup.seed));
    let running = running.spawn(move || run_here(setup, sink)).expect("a thread can be started");
    running.join().expect("a run catches its panics")
}

fn run_here(setup: Setup, sink: Option<Sink>) -> Result<Summary, Box<Failure>> {
    let watch = panics::watch();
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build().expect("a runtime can be made");
    let result = runtime.block_on(async {
        let world = World::new(setup, sink);
        tokio::select! {
            biased;
            () = world.trace.failed() => {}
            () = live(&world) => {}
            reason = watch.panicked() => world.trace.fail(reason),
        }
        let result = finish(&world);
        world.end();
        result
    });
    drop(runtime);
    result
}

/// The two phases of a run.
async fn live(world: &Arc<World>) {
    for node in world.plan.nodes.clone() {
        world.start(node).await;
    }
    tokio::spawn(Coordinator::run(Arc::downgrade(world)));
    let clients = world.plan.clients;
    let end = Arc::new(AtomicBool::new(false));
    let mut working: Vec<_> = (1..=clients)
        .map(|number| tokio::spawn(Client::new(Arc::clone(world), number).run(Arc::clone(&end))))
        .collect();
    let course = world.setup.course();
    if course == Course::Turns {
        let reader = Client::new(Arc::clone(world), NEWEST_READER);
        working.push(tokio::spawn(reader.read_newest(Arc::clone(&end))));
    }
    tokio::time::sleep(BEGINS_FOR).await;
    match course {
        Course::Faults => Faults::new(Arc::clone(world)).run().await,
        Course::Turns => Turns::new(Arc::clone(world)).run().await,
        Course::Lulls => Lulls::new(Arc::clone(world)).run().await,
    }
    end.store(true, Ordering::Relaxed);
    for client in working {
        // A panic has ended the run.
        let _panicked = client.await;
    }
    world.heal().await;
    world.fails_again(Mistake::StallsAgain);
    Client::new(Arc::clone(world), clients + 1).write_once().await;
    // One that is cut off shows by what it lacks of that.
    world.wait_until_well().await;
    world.fails_again(Mistake::HangsAgain);
    Client::new(Arc::clone(world), clients + 2).read_all().await;
}

fn finish(world: &Arc<World>) -> Result<Summary, Box<Failure>> {
    let trace: &Trace = &world.trace;
    let counts = world.history.counts();
    let applied = world.all_running().iter().map(|it| it.table.applied().seq).max();
    let applied = applied.unwrap_or_default();
    if let Err(reason) = world.observer.lock().at_the_end(applied) {
        trace.fail(reason);
    }
    if trace.failure().is_none() {
        match check(world.history.take(), &Limits::default()) {
            Verdict::Linearizable => {}
            Verdict::NotLinearizable(example) => {
                let stuck = timeline::label(&example.part[example.stuck]);
                let mut part: Vec<_> = example.part.iter().collect();
                part.sort_by_key(|it| it.called);
                for it in part {
                    let (label, called) = (timeline::label(it), it.called);
                    let at = it.answer.as_ref().map(|answer| answer.at);
                    trace.note("history", format_args!("c{} {called}..{at:?} {label}", it.client));
                }
                trace.fail(format!("the history is linearizable: {stuck} cannot be explained"));
            }
            Verdict::Unknown(bound) => trace.fail(format!("the history can be judged: {bound:?}")),
        }
    }
    if let Some(reason) = trace.failure() {
        let (last, hash) = (trace.last(), trace.hash());
        return Err(Box::new(Failure { setup: world.setup, reason, last, trace: hash }));
    }
    let epochs = world.observer.lock().leads();
    Ok(Summary {
        trace: trace.hash(),
        events: trace.counts(),
        millis: trace.now(),
        written: counts.written,
        refused: counts.refused,
        read: counts.read,
        timeline_reads: counts.timeline_reads,
        ambiguous: counts.ambiguous,
        epochs,
    })
}

/// The protocols that are simulated.
pub const PROTOCOLS: [Protocol; 3] = [Protocol::Spinnaker, Protocol::Raft, Protocol::Pacifica];
