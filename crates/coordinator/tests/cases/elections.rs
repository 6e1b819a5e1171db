use std::time::Duration;

use tokio::time::timeout;
use trireme_coordinator::recipes::election::{Campaign, Election, Leader};
use trireme_coordinator::{Coordinator, CoordinatorOptions, SessionId};
use trireme_types::{CohortId, Lsn, NodeId};

use crate::support::{PATIENCE, connect};

const REPLICAS: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];

struct Replica {
    coordinator: Coordinator,
    election: Election,
}

async fn replica(options: &CoordinatorOptions, node: u64) -> Replica {
    let coordinator = connect(options).await;
    let election = Election::new(&coordinator, CohortId(7), NodeId(node));
    Replica { coordinator, election }
}

async fn replicas(options: &CoordinatorOptions) -> Vec<Replica> {
    let mut all = Vec::new();
    for node in 1..=3 {
        all.push(replica(options, node).await);
    }
    all
}

/// Runs campaigns at the same time and returns how each ended.
async fn campaign(of: &[&Replica], round: u64, last: &[Lsn]) -> Vec<Campaign> {
    let mut running = Vec::new();
    for (replica, &last) in of.iter().zip(last) {
        let election = replica.election.clone();
        running.push(tokio::spawn(async move { election.campaign(round, last, &REPLICAS).await }));
    }
    let mut ended = Vec::new();
    for campaign in running {
        let campaign = timeout(PATIENCE, campaign).await.expect("a decided round");
        ended.push(campaign.unwrap().unwrap());
    }
    ended
}

fn leader_of(ended: &[Campaign]) -> Leader {
    let elected: Vec<_> = ended
        .iter()
        .filter_map(|ended| match ended {
            Campaign::Elected(leader) => Some(*leader),
            _ => None,
        })
        .collect();
    assert_eq!(elected.len(), 1, "not one leader: {ended:?}");
    for ended in ended {
        assert!(!matches!(ended, Campaign::Led(l) if *l != elected[0]), "another view: {ended:?}");
    }
    elected[0]
}

/// M27, M29: with two standing, the longer log wins, and the other one learns of it. [SPIN-24]
/// The change is refused once the round is over. [SPIN-25]
pub async fn the_longest_log_wins(options: CoordinatorOptions) {
    let all = replicas(&options).await;
    let pair = [&all[0], &all[1]];
    let ended = campaign(&pair, 1, &[Lsn::new(1, 21), Lsn::new(1, 22)]).await;
    let leader = leader_of(&ended);
    assert_eq!((leader.node, leader.epoch), (NodeId(2), 1));
    // S4: a late third with a longer log is harmless: the round is over, it follows.
    let late = campaign(&[&all[2]], 1, &[Lsn::new(1, 99)]).await;
    assert_eq!(late, [Campaign::Led(leader)]);
    assert_eq!(all[2].election.stand(1, Lsn::new(1, 99), None).await, Ok(false));
}

/// M27: one of three never elects.
pub async fn one_of_three_never_elects(options: CoordinatorOptions) {
    let all = replicas(&options).await;
    let alone = all[0].election.campaign(1, Lsn::new(1, 1), &REPLICAS);
    assert!(timeout(Duration::from_millis(500), alone).await.is_err());
    assert_eq!(all[0].election.try_lead(1, &REPLICAS, None).await, Ok(None));
    // It stands all the same: the second one decides.
    let pair = [&all[0], &all[1]];
    let leader = leader_of(&campaign(&pair, 1, &[Lsn::new(1, 1), Lsn::new(0, 5)]).await);
    assert_eq!(leader.node, NodeId(1));
}

/// M28: the leader's end is noticed, and the next round's epoch is higher. S3: nobody looks at the
/// candidates of the round before, though their sessions live.
pub async fn a_dead_leader_is_followed_by_another(mut options: CoordinatorOptions) {
    options.session_timeout = Duration::from_secs(2);
    let mut all = replicas(&options).await;
    let trio = [&all[0], &all[1], &all[2]];
    let ended = campaign(&trio, 1, &[Lsn::new(0, 3), Lsn::new(0, 1), Lsn::new(0, 2)]).await;
    let first = leader_of(&ended);
    // All three may stand before the longest of the first two is looked at.
    let first_index = usize::try_from(first.node.0).unwrap() - 1;
    drop(all.remove(first_index));
    let mut watch = all[0].election.watch().unwrap();
    let state = loop {
        let state = timeout(PATIENCE, watch.next()).await.unwrap().unwrap().unwrap();
        if state.leader.is_none() {
            break state;
        }
    };
    assert_eq!((state.epoch, state.round()), (1, 2));
    assert!(state.candidates.is_empty(), "candidates of the old round: {state:?}");
    let pair = [&all[0], &all[1]];
    let second = leader_of(&campaign(&pair, 2, &[Lsn::new(1, 3), Lsn::new(1, 4)]).await);
    assert_eq!((second.epoch, second.session), (2, all[1].coordinator.session_id()));
    all[1].election.clean_up().await.unwrap();
    all[1].election.resign().await.unwrap();
    assert_eq!(all[0].election.state().await.unwrap().leader, None);
}

/// S4: the winner dies before it writes. Those who wait count again without it.
pub async fn a_winner_that_dies_first_is_passed_over(mut options: CoordinatorOptions) {
    options.session_timeout = Duration::from_secs(2);
    let all = replicas(&options).await;
    // The one with the longest log stands, and never does what a winner does.
    assert_eq!(all[0].election.stand(1, Lsn::new(9, 9), None).await, Ok(true));
    let pair = [&all[1], &all[2]];
    let last = [Lsn::new(1, 2), Lsn::new(1, 1)];
    let (ended, ()) = tokio::join!(campaign(&pair, 1, &last), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(all[1].election.try_lead(1, &REPLICAS, None).await, Ok(None));
        all[0].coordinator.clone().close().await.unwrap();
    });
    let leader = leader_of(&ended);
    assert_eq!((leader.node, leader.epoch), (NodeId(2), 1));
}

/// The majority may give up a leader whose session lives: the next round takes over from it.
pub async fn a_leader_is_taken_over_from(options: CoordinatorOptions) {
    let all = replicas(&options).await;
    let pair = [&all[0], &all[1]];
    let first = leader_of(&campaign(&pair, 1, &[Lsn::new(0, 2), Lsn::new(0, 1)]).await);
    assert_eq!(first.node, NodeId(1));
    let pair = [&all[1], &all[2]];
    let second = leader_of(&campaign(&pair, 2, &[Lsn::new(1, 2), Lsn::new(1, 1)]).await);
    assert_eq!((second.node, second.epoch), (NodeId(2), 2));
    let state = all[0].election.state().await.unwrap();
    assert_eq!(state.leader, Some(second));
    assert_ne!(second.session, SessionId(0));
    // The end of the old leader's session takes nothing from the new one.
    let witness = all[2].election.clone();
    all[0].coordinator.clone().close().await.unwrap();
    assert_eq!(witness.state().await.unwrap().leader, Some(second));
}

/// Many cohorts elect at once, round after round, everybody against everybody: each epoch has one
/// leader.
pub async fn every_epoch_has_one_leader(options: CoordinatorOptions) {
    let all = replicas(&options).await;
    let trio: Vec<_> = all.iter().collect();
    for round in 1..=8 {
        let last = [round % 3, (round + 1) % 3, (round + 2) % 3];
        let last: Vec<_> = last.iter().map(|&seq| Lsn::new(round - 1, seq)).collect();
        let leader = leader_of(&campaign(&trio, round, &last).await);
        assert_eq!(leader.epoch, round);
        let state = all[0].election.state().await.unwrap();
        assert_eq!((state.epoch, state.leader), (round, Some(leader)));
    }
}

/// A node that watches the election asks for nothing that it knows: each step is one change. What it
/// knows may be old, which costs a read and nothing else.
pub async fn what_is_known_of_an_election_is_not_asked_for(options: CoordinatorOptions) {
    let all = replicas(&options).await;
    let first = all[0].election.state().await.unwrap();
    let asked = |of: &Replica| {
        let counters = of.coordinator.counters();
        (counters.reads, counters.writes)
    };
    let before = asked(&all[1]);
    assert_eq!(all[1].election.stand(1, Lsn::new(1, 2), Some(first.clone())).await, Ok(true));
    assert_eq!(asked(&all[1]), (before.0, before.1 + 1));
    assert_eq!(all[0].election.stand(1, Lsn::new(1, 1), Some(first.clone())).await, Ok(true));
    let standing = all[1].election.state().await.unwrap();
    let before = asked(&all[1]);
    let again = all[1].election.stand(1, Lsn::new(1, 2), Some(standing.clone())).await;
    assert_eq!((again, asked(&all[1])), (Ok(true), before), "it stands already");
    let led = all[1].election.try_lead(1, &REPLICAS, Some(standing.clone())).await.unwrap();
    assert_eq!(led.map(|leader| (leader.node, leader.epoch)), Some((NodeId(2), 1)));
    assert_eq!(asked(&all[1]), (before.0, before.1 + 1));
    // The others know less, and are refused.
    assert_eq!(all[0].election.try_lead(1, &REPLICAS, Some(standing)).await, Ok(None));
    assert_eq!(all[2].election.stand(1, Lsn::new(9, 9), Some(first)).await, Ok(false));
    all[1].election.clean_up().await.unwrap();
    let left = all[1].coordinator.subtree("/cohorts/7/rounds").await.unwrap().nodes;
    assert_eq!(left, []);
}
