//! The cases of the conformance suite. Each has a namespace to itself.

#![allow(unreachable_pub, reason = "the cases are the suite's own")]

mod elections;
mod nodes;
mod recipes;
mod sessions;
mod watches;

use std::pin::Pin;

use trireme_coordinator::CoordinatorOptions;

pub type Case = fn(CoordinatorOptions) -> Pin<Box<dyn Future<Output = ()> + Send>>;

/// Lists functions as cases under their own names.
macro_rules! cases {
    ($list:ident: $($module:ident :: $name:ident),+ $(,)?) => {
        pub fn $list() -> Vec<(&'static str, Case)> {
            vec![$((
                concat!(stringify!($module), "::", stringify!($name)),
                |options| Box::pin($module::$name(options)),
            )),+]
        }
    };
}

// Cases that mind their own namespace, and so can run at the same time.
cases![together:
    nodes::are_created_read_changed_and_deleted,
    nodes::versions_guard_changes,
    nodes::sequential_nodes_come_in_order,
    nodes::children_are_direct_and_in_order,
    nodes::a_multi_is_all_or_nothing,
    nodes::a_multi_is_bounded,
    nodes::increments_from_many_sides_are_all_counted,
    nodes::of_many_creators_one_wins,
    nodes::a_lost_answer_is_resolved,
    sessions::a_closed_session_takes_its_nodes_along,
    sessions::a_silent_session_takes_its_nodes_along,
    sessions::a_live_session_keeps_its_nodes,
    sessions::an_expired_session_is_renewed_on_demand,
    sessions::a_stalled_server_ends_the_session_by_the_local_clock,
    watches::tell_the_state_and_every_change,
    watches::tell_a_multi_at_once,
    watches::keep_to_their_scope,
    watches::that_fire_once_do,
    watches::lose_nothing_when_cut_off,
    watches::lose_nothing_when_read_slowly,
    recipes::of_many_bootstraps_one_wins,
    recipes::of_two_proposals_one_is_installed,
    recipes::the_map_changes_with_its_new_cohorts,
    recipes::a_cohort_is_succeeded_once,
    recipes::two_cohorts_go_on_as_one_or_each_by_itself,
    recipes::a_known_cohort_is_succeeded_with_one_request,
    recipes::a_map_is_brought_forward_after_its_configurations,
    recipes::the_catalog_is_watched,
    recipes::a_known_configuration_is_replaced_with_one_request,
    recipes::a_catalog_of_a_thousand_ranges_fits,
    recipes::a_node_is_alive_once,
    recipes::a_node_comes_back_at_its_place,
    recipes::a_node_waits_for_its_predecessor,
    recipes::the_membership_is_watched,
    recipes::the_configuration_manager_installs_one_successor,
    recipes::a_cohort_has_one_invitation,
    recipes::the_invitations_are_watched,
    elections::the_longest_log_wins,
    elections::one_of_three_never_elects,
    elections::a_dead_leader_is_followed_by_another,
    elections::a_winner_that_dies_first_is_passed_over,
    elections::what_is_known_of_an_election_is_not_asked_for,
    elections::a_leader_is_taken_over_from,
    elections::every_epoch_has_one_leader,
];

// A compaction is felt in every namespace.
cases![alone: watches::tell_the_state_anew_after_a_compaction];
