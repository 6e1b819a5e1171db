//! Two and three nodes' pairs, joined by hand: every message is seen, held back or lost as a test wants.

use trireme_fuzz::{Fuzz, Verdict};

use super::pairs::Pairs;
use super::*;

const SILENCE: Duration = Duration::from_millis(400);
const BEAT: Duration = Duration::from_millis(100);
const C: CohortId = CohortId(7);
const LEADER: NodeId = NodeId(1);
const FOLLOWERS: [NodeId; 2] = [NodeId(2), NodeId(3)];

fn terms(seq: u64) -> Terms {
    Terms { epoch: 4, committed: Lsn::new(4, seq) }
}

/// A leader's node and those of its followers.
struct World {
    start: Instant,
    now: Instant,
    nodes: BTreeMap<NodeId, Pairs>,
    sessions: u64,
}

impl World {
    fn new() -> Self {
        let start = Instant::now();
        let nodes = [LEADER, FOLLOWERS[0], FOLLOWERS[1]];
        let nodes = nodes
            .into_iter()
            .map(|node| (node, Pairs::new(SILENCE, PulseFaults::default())))
            .collect();
        Self { start, now: start, nodes, sessions: 0 }
    }

    /// Returns one whose cohort rests on all nodes.
    fn at_rest() -> Self {
        let mut world = Self::new();
        world.ask(1);
        world.beat(&[]);
        assert_eq!(world.rest(), [true; 3]);
        world
    }

    fn node(&mut self, node: NodeId) -> &mut Pairs {
        self.nodes.get_mut(&node).expect("a node")
    }

    /// Has the followers be ready to rest, and the leader want it.
    fn ask(&mut self, seq: u64) {
        let now = self.now;
        for node in FOLLOWERS {
            self.node(node).follow(C, terms(seq), LEADER);
        }
        self.node(LEADER).lead(now, C, terms(seq), Duration::from_secs(1), &FOLLOWERS);
    }

    fn rest(&self) -> [bool; 3] {
        [LEADER, FOLLOWERS[0], FOLLOWERS[1]].map(|node| self.nodes[&node].rests(C))
    }

    /// Lets a beat pass at the leader's node, and returns its pulses and whom they woke.
    fn pulses(&mut self, of: NodeId) -> (Vec<(NodeId, v1::Pulse)>, Vec<CohortId>) {
        let (now, start) = (self.now, self.start);
        let sessions = &mut self.sessions;
        let draw = || {
            *sessions += 1;
            *sessions
        };
        self.nodes.get_mut(&of).expect("a node").tick(now, now - start, draw)
    }

    fn receive(
        &mut self,
        at: NodeId,
        pulse: v1::Pulse,
    ) -> (Option<v1::PulseAnswer>, Vec<CohortId>) {
        let here = Moment::after_start(self.now - self.start);
        let now = self.now;
        self.node(at).on_pulse(LEADER, (now, here), pulse)
    }

    /// Lets a beat pass: pulses go from the leader's node to all but those of `lost`, and are answered.
    /// Returns how many pulses there were.
    fn beat(&mut self, lost: &[NodeId]) -> usize {
        self.now += BEAT;
        let pulses = self.pulses(LEADER).0;
        let count = pulses.len();
        for (to, pulse) in pulses {
            if lost.contains(&to) {
                continue;
            }
            let answer = self.receive(to, pulse).0.expect("a pulse is answered");
            let now = self.now;
            self.node(LEADER).on_answer(to, now, &answer);
        }
        for node in FOLLOWERS {
            assert_eq!(self.pulses(node).0, [], "a node that leads nothing sends no pulse");
        }
        count
    }

    fn supported(&mut self) -> Vec<(NodeId, Instant)> {
        let now = self.now;
        match self.node(LEADER).hold(now, C) {
            Some(Learnt::Supported(by)) => by,
            other => panic!("{other:?}"),
        }
    }
}

/// Whatever the number of cohorts, one pulse goes to a node, and one answer comes back.
#[test]
fn a_thousand_cohorts_at_rest_cost_a_pulse_a_node() {
    let mut world = World::new();
    let now = world.now;
    for cohort in (1..=1000).map(CohortId) {
        for node in FOLLOWERS {
            world.node(node).follow(cohort, terms(1), LEADER);
        }
        world.node(LEADER).lead(now, cohort, terms(1), Duration::ZERO, &FOLLOWERS);
    }
    world.now += BEAT;
    let first = world.pulses(LEADER).0;
    assert_eq!(first.iter().map(|(_, pulse)| pulse.changes.len()).collect::<Vec<_>>(), [1000; 2]);
    for (to, pulse) in first {
        let answer = world.receive(to, pulse).0.expect("an answer");
        world.node(LEADER).on_answer(to, now, &answer);
    }
    assert!((1..=1000).map(CohortId).all(|cohort| world.nodes[&LEADER].rests(cohort)));
    for _ in 0..10 {
        world.now += BEAT;
        let pulses = world.pulses(LEADER).0;
        assert_eq!(pulses.len(), 2);
        for (to, pulse) in pulses {
            assert_eq!(pulse.changes, [], "what is known is not said again");
            let answer = world.receive(to, pulse).0.expect("an answer");
            assert_eq!(answer.awake, [0_u64; 0]);
            let now = world.now;
            world.node(LEADER).on_answer(to, now, &answer);
        }
    }
}

#[test]
fn a_cohort_rests_once_all_of_its_followers_do() {
    let mut world = World::new();
    world.ask(1);
    assert_eq!(world.rest(), [false; 3]);
    world.beat(&FOLLOWERS[1..]);
    assert_eq!(world.rest(), [false, true, false], "the leader knows of one");
    world.beat(&[]);
    assert_eq!(world.rest(), [true; 3], "what was lost is said again");
}

/// A follower that has another entry, or another leader, or does not know yet that nothing happens, goes
/// on as it is, and so does its cohort.
#[test]
fn a_follower_that_is_not_ready_keeps_its_cohort_awake() {
    let mut world = World::new();
    world.ask(1);
    world.node(FOLLOWERS[1]).follow(C, terms(2), LEADER);
    world.beat(&[]);
    assert_eq!(world.rest(), [false, true, false]);
    world.beat(&[]);
    assert_eq!(world.rest(), [false; 3], "the other follower learns of it");
    world.ask(2);
    world.beat(&[]);
    assert_eq!(world.rest(), [true; 3]);
}

/// What a replica missed comes with the time at which its node received it, once.
#[test]
fn a_follower_learns_of_the_newest_pulse_before_anything_else() {
    let mut world = World::at_rest();
    for _ in 0..5 {
        world.beat(&[]);
    }
    let (now, start) = (world.now, world.start);
    world.now += BEAT / 2;
    let at = world.now;
    let heard = world.node(FOLLOWERS[0]).hold(at, C);
    // The leader's replica began a second after its node.
    let began = Duration::from_secs(1) + Duration::from_micros(1);
    let sent = Moment::after_start((now - start).saturating_sub(began));
    let Some(Learnt::Heard { leader, terms: heard_terms, received, sent: heard_sent, .. }) = heard
    else {
        panic!("{heard:?}")
    };
    assert_eq!((leader, heard_terms, received, heard_sent), (LEADER, terms(1), now, sent));
    assert!(world.node(FOLLOWERS[0]).release(C), "it rests on");
    assert_eq!(world.node(FOLLOWERS[0]).hold(at, C), None, "there was no other");
}

/// While a follower handles something, it may promise itself to another leader: what its node answers then
/// must not count as its support.
#[test]
fn no_pulse_is_acknowledged_for_a_follower_that_handles_something() {
    let mut world = World::at_rest();
    let supported = world.now;
    let at = world.now;
    assert!(world.node(FOLLOWERS[0]).hold(at, C).is_some());
    world.beat(&[]);
    assert_eq!(world.rest(), [false, false, true], "the leader's rest is over, too");
    assert!(!world.node(FOLLOWERS[0]).release(C));
    let by = world.supported();
    let of = |node| by.iter().find(|(by, _)| *by == node).map(|(_, at)| *at);
    assert_eq!(of(FOLLOWERS[0]), Some(supported), "{by:?}");
    world.beat(&[]);
    assert_eq!(world.rest(), [false; 3]);
}

/// A leader whose follower woke counts none of the pulses that were sent after that.
#[test]
fn a_follower_that_wakes_supports_nothing_that_comes_later() {
    let mut world = World::at_rest();
    let woke = world.now;
    world.node(FOLLOWERS[0]).hold(woke, C);
    world.node(FOLLOWERS[0]).wake(C);
    world.now += BEAT;
    let pulses = world.pulses(LEADER).0;
    for (to, pulse) in pulses {
        let answer = world.receive(to, pulse).0.expect("an answer");
        if to == FOLLOWERS[0] {
            assert_eq!(answer.awake, [C.0]);
            // The leader does not know yet, and answers of later pulses must not count either.
            let now = world.now;
            let by = world.nodes.get_mut(&LEADER).expect("a node").hold(now, C);
            let Some(Learnt::Supported(by)) = by else { panic!("{by:?}") };
            assert!(by.contains(&(to, woke)), "{by:?}");
            assert_eq!(world.node(LEADER).on_answer(to, now, &answer), [C]);
        }
    }
}

#[test]
fn a_leader_that_wakes_has_its_followers_wake_and_is_heard_as_of_the_last_pulse_at_rest() {
    let mut world = World::at_rest();
    let last = world.now;
    world.supported();
    world.node(LEADER).wake(C);
    world.beat(&[]);
    assert_eq!(world.rest(), [false; 3]);
    for node in FOLLOWERS {
        let now = world.now;
        let Some(Learnt::Heard { received, .. }) = world.node(node).hold(now, C) else {
            panic!("{node} is to learn what it missed")
        };
        // Its commit point may not have been the newest any more when the pulse after that was sent.
        assert_eq!(received, last);
        assert!(!world.node(node).release(C));
    }
}

/// [P14] When a node falls silent, all that rest with it wake soon, and know since when it was silent.
#[test]
fn silence_wakes_everybody_at_both_ends() {
    let mut world = World::at_rest();
    let last = world.now;
    for _ in 0..3 {
        world.beat(&FOLLOWERS);
        assert_eq!(world.rest(), [true; 3]);
    }
    world.now += BEAT;
    assert_eq!(world.pulses(LEADER).1, [C, C]);
    for node in FOLLOWERS {
        assert_eq!(world.pulses(node).1, [C]);
        let now = world.now;
        let heard = world.node(node).hold(now, C);
        assert!(matches!(heard, Some(Learnt::Heard { received, .. }) if received == last));
    }
    assert_eq!(world.supported(), FOLLOWERS.map(|node| (node, last)));
    assert_eq!(world.rest(), [false; 3]);
    // What was under way then is of no use any more.
    world.ask(1);
    world.beat(&[]);
    assert_eq!(world.rest(), [true; 3]);
}

/// A process that was started anew has nothing at rest, whatever the other node believes.
#[test]
fn a_node_that_begins_anew_acknowledges_nothing_of_before() {
    let mut world = World::at_rest();
    world.nodes.insert(FOLLOWERS[0], Pairs::new(SILENCE, PulseFaults::default()));
    world.now += BEAT;
    for (to, pulse) in world.pulses(LEADER).0 {
        let (answer, _) = world.receive(to, pulse);
        assert_eq!(answer.is_none(), to == FOLLOWERS[0], "it lacks what came before");
    }
    let mut world = World::at_rest();
    world.nodes.insert(LEADER, Pairs::new(SILENCE, PulseFaults::default()));
    world.ask(1);
    world.now += BEAT;
    for (to, pulse) in world.pulses(LEADER).0 {
        let (answer, woken) = world.receive(to, pulse);
        assert_eq!(woken, [C], "what rested with the process before wakes");
        let now = world.now;
        world.node(LEADER).on_answer(to, now, &answer.expect("an answer"));
    }
}

/// A leader that is about to lead no more must not be taken for one that rests.
#[test]
fn no_pulse_stands_for_a_leader_that_handles_something() {
    let mut world = World::at_rest();
    world.supported();
    world.now += BEAT;
    let (pulses, woken) = world.pulses(LEADER);
    assert_eq!(woken, [C]);
    for (_, pulse) in pulses {
        assert_eq!(pulse.changes, [v1::PulseChange { cohort: C.0, rest: None }]);
    }
    assert!(!world.node(LEADER).release(C));
}

/// At rest, timeline reads are as young as the last pulse, and a leader's as its lease.
#[test]
fn the_age_of_what_rests_counts_from_the_last_pulse() {
    let mut world = World::at_rest();
    for _ in 0..30 {
        world.beat(&[]);
    }
    let (start, now, lease) = (world.start, world.now, Duration::from_millis(800));
    let as_of = |world: &World, node| {
        let moment = |moment: Moment| Some(start + moment.since_start());
        world.nodes[&node].as_of(C, Some(lease), moment)
    };
    assert_eq!(as_of(&world, LEADER), Some((terms(1), now + lease)));
    assert_eq!(as_of(&world, FOLLOWERS[0]), Some((terms(1), now)));
    world.beat(&FOLLOWERS);
    assert_eq!(as_of(&world, LEADER), Some((terms(1), now + lease)));
    assert_eq!(as_of(&world, FOLLOWERS[0]), Some((terms(1), now)));
    world.supported();
    let held = world.now;
    assert_eq!(as_of(&world, LEADER), Some((terms(1), held)), "it may be about to resign");
    world.node(LEADER).wake(C);
    assert_eq!(as_of(&world, LEADER), None);
}

/// A leader without a lease that goes on to send pulses shows a follower only that the others have answered
/// since not long ago, and that only when they had time to be silent.
#[test]
fn without_a_lease_a_follower_waits_until_all_have_shown_that_they_rest() {
    let mut world = World::at_rest();
    let start = world.start;
    let as_of = |world: &World, node| {
        let moment = |moment: Moment| Some(start + moment.since_start());
        world.nodes[&node].as_of(C, None, moment)
    };
    while world.now - start <= BEAT + 2 * SILENCE {
        assert_eq!(as_of(&world, FOLLOWERS[0]), None);
        assert_eq!(as_of(&world, LEADER), Some((terms(1), world.now)));
        world.beat(&[]);
    }
    assert_eq!(as_of(&world, FOLLOWERS[0]), Some((terms(1), world.now)));
    let answered = world.now;
    while world.now + BEAT < answered + SILENCE {
        world.beat(&FOLLOWERS[1..]);
        assert_eq!(as_of(&world, FOLLOWERS[0]), Some((terms(1), world.now)));
        assert_eq!(as_of(&world, LEADER), Some((terms(1), answered)), "one of them is silent");
    }
    world.beat(&FOLLOWERS[1..]);
    assert_eq!(as_of(&world, FOLLOWERS[0]), None);
    assert_eq!(as_of(&world, LEADER), None);
}

/// An answer that was under way while the cohort woke and was to rest again says nothing of now.
#[test]
fn an_old_answer_does_not_end_a_later_rest() {
    let mut world = World::at_rest();
    let now = world.now;
    world.node(FOLLOWERS[0]).hold(now, C);
    world.node(FOLLOWERS[0]).wake(C);
    world.now += BEAT;
    let pulses = world.pulses(LEADER).0;
    let (to, pulse) = pulses[0].clone();
    let late = world.receive(to, pulse).0.expect("an answer");
    assert_eq!(late.awake, [C.0]);
    world.supported();
    world.node(LEADER).wake(C);
    let now = world.now;
    world.node(LEADER).lead(now, C, terms(1), Duration::ZERO, &FOLLOWERS);
    assert_eq!(world.node(LEADER).on_answer(to, now, &late), []);
    assert_eq!(world.rest(), [false, false, true], "it says nothing for the later one either");
}

/// A node draws another session whenever the other one was silent, and its clock stays the same: the age
/// of what a follower has must not begin anew with a pulse that waited while its process stood still.
#[test]
fn the_first_pulse_of_a_session_is_as_old_as_it_is() {
    let mut world = World::at_rest();
    world.beat(&FOLLOWERS);
    world.now += SILENCE;
    assert_eq!(world.pulses(LEADER).1, [C, C]);
    for node in FOLLOWERS {
        assert_eq!(world.pulses(node).1, [C]);
    }
    for node in FOLLOWERS {
        let now = world.now;
        world.node(node).hold(now, C);
    }
    world.ask(1);
    let sent = world.now;
    let pulses = world.pulses(LEADER).0;
    world.now += 20 * BEAT;
    for (to, pulse) in pulses {
        world.receive(to, pulse).0.expect("an answer");
    }
    let start = world.start;
    let moment = |moment: Moment| Some(start + moment.since_start());
    for node in FOLLOWERS {
        let (_, at) = world.nodes[&node].as_of(C, Some(Duration::ZERO), moment).expect("it rests");
        assert!(at.duration_since(sent) < BEAT / 10, "{:?}", at.duration_since(sent));
    }
}

/// An answer that names changes which were never sent is not taken: the ones that are sent later would
/// count as made.
#[test]
fn an_answer_to_more_than_was_sent_is_dropped() {
    let mut world = World::new();
    world.ask(1);
    world.now += BEAT;
    let (to, pulse) = world.pulses(LEADER).0.remove(0);
    let honest = world.receive(to, pulse).0.expect("an answer");
    let now = world.now;
    let more = v1::PulseAnswer { applied: honest.applied + 1, ..honest.clone() };
    world.node(LEADER).on_answer(to, now, &more);
    assert_eq!(world.supported(), []);
    world.node(LEADER).on_answer(to, now, &honest);
    assert_eq!(world.supported(), [(to, now)]);
}

/// Whatever another node says, it is taken for a pulse or an answer, or dropped.
#[test]
fn fuzz_pulse_message() {
    let mut world = World::new();
    world.ask(1);
    world.now += BEAT;
    let pulse = world.pulses(LEADER).0.remove(0).1;
    let (session, number) = (pulse.session, pulse.number);
    let answer = v1::PulseAnswer { session, number, applied: 1, awake: vec![C.0] };
    let valid = [Body::Pulse(pulse), Body::Answer(answer)]
        .map(|body| v1::PulseMessage { body: Some(body) }.encode_to_vec());
    Fuzz::new("fuzz_pulse_message", valid).run(|bytes| {
        let decoded = v1::PulseMessage::decode(bytes);
        let mut world = World::at_rest();
        let (now, start) = (world.now, world.start);
        match decoded.as_ref().map(|message| message.body.clone()) {
            Ok(Some(Body::Pulse(pulse))) => drop(world.receive(FOLLOWERS[0], pulse)),
            Ok(Some(Body::Answer(answer))) => {
                drop(world.node(LEADER).on_answer(FOLLOWERS[0], now, &answer));
            }
            _ => {}
        }
        for node in [LEADER, FOLLOWERS[0]] {
            let moment = |moment: Moment| Some(start + moment.since_start());
            let _as_of = world.nodes[&node].as_of(C, Some(SILENCE), moment);
            let _missed = world.node(node).hold(now, C);
        }
        Verdict::from(&decoded)
    });
}
