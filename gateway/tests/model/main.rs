//! The election, model-checked: every order in which three nodes, their messages and Redis can act, and every place
//! at which a small number of faults can strike.
//!
//! Tests with real processes show what happened to happen. What breaks a lease is the order that did not: a request
//! that arrives after its sender was declared dead, a reign of which Redis has forgotten that it was. So the checker
//! (crate `stateright`) walks through all of them, and says by which steps a law can be broken, in the shortest way.
//!
//! - [`world`]: what there is. Nodes are the gateway's own election, viewers look through the relay's own gate.
//! - [`redis`]: Redis, written down a second time; `cases.rs` ties it to the scripts
//!   (`gateway/tests/it/election_cases.rs`).
//! - [`steps`]: what can happen; the faults are late or lost requests and answers, a pause, a crash, a drain, and a
//!   Redis that stops and forgets nothing, its last second, or everything.
//! - [`laws`]: what must hold.
//!
//! Each rule of the scripts and each habit of the nodes that a law rests on is left out once, and the checker has to
//! find what that leads to. What is not modelled stands in docs/ARCHITECTURE.md.

mod laws;
mod redis;
mod steps;
mod world;

use stateright::{Checker, HasDiscoveries, Model};

use crate::redis::{RULES, Rules};
use crate::steps::Cluster;
use crate::world::{HABITS, Habits, Loss, Params};

/// Walks through all of it; fails with the steps to the first broken law. Returns the number of different states.
fn holds(params: Params) -> usize {
    let checker = Cluster(params).checker().finish_when(HasDiscoveries::AnyFailures).spawn_dfs().join();
    if let Some((law, path)) = checker.discoveries().into_iter().next() {
        panic!("{law}; broken by {:#?}", path.into_actions());
    }
    assert!(checker.is_done(), "not all of it was seen");
    checker.unique_state_count()
}

/// Looks for a way to break this law, the shortest first.
fn breaks(law: &str, params: Params) {
    let checker = Cluster(params).checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let mut broken: Vec<_> = checker.discoveries().into_keys().collect();
    broken.sort_unstable();
    assert!(broken.contains(&law), "broken is {broken:?}, not: {law}");
}

// Inv. SLOT, Inv. FENCE
#[test]
fn the_laws_hold_whatever_goes_wrong() {
    let states = holds(Params::REAL);
    assert!(states > 1_400_000, "{states} states are not what this was meant to see");
}

// Inv. SLOT, Inv. FENCE
#[test]
fn the_laws_hold_over_more_time() {
    let states = holds(Params { faults: 1, stops: 1, begins: 3, trouble_ends: 12, ..Params::REAL });
    assert!(states > 110_000, "{states} states are not what this was meant to see");
}

#[test]
fn the_bound_of_progress_is_the_least() {
    breaks(
        laws::PROGRESS,
        Params { quiet_max: Params::REAL.quiet_max - 1, losses: &[Loss::LastSecond], ..Params::REAL },
    );
}

// Inv. SLOT, Inv. FENCE
#[test]
#[ignore = "takes minutes and gigabytes"]
fn acceptance_the_laws_hold_with_more_faults() {
    let longer = holds(Params { stops: 2, trouble_ends: 9, begins: 3, ..Params::REAL });
    let more = holds(Params { faults: 3, trouble_ends: 4, ..Params::REAL });
    assert!(longer > 6_900_000 && more > 19_000_000, "{longer} and {more} states are not what this was meant to see");
}

// ------------------------------------------------------------------------------------------- what is left out once

/// One fault is enough for most.
const ONE: Params = Params { faults: 1, stops: 1, ..Params::REAL };

const fn without(rules: Rules) -> Params {
    Params { rules, ..Params::REAL }
}

const fn unlearned(habits: Habits) -> Params {
    Params { habits, ..ONE }
}

#[test]
fn without_the_fence_a_former_ticker_publishes() {
    breaks(laws::FENCE, without(Rules { tick_needs_lease: false, ..RULES }));
}

#[test]
fn without_the_slot_check_a_slot_is_published_twice() {
    breaks(laws::SLOT, without(Rules { slot_once: false, ..RULES }));
}

#[test]
fn a_lease_that_is_prolonged_for_anybody_has_two_holders() {
    breaks(laws::ONE_BELIEVER, without(Rules { claim_compares_node: false, ..RULES }));
}

#[test]
fn a_release_that_is_not_compared_ends_the_reign_of_another() {
    let rules = Rules { release_compares_lease: false, ..RULES };
    breaks(laws::ONE_BELIEVER, Params { losses: &[], ..without(rules) });
}

#[test]
fn a_lease_without_an_end_dies_with_its_holder() {
    breaks(laws::PROGRESS, Params { rules: Rules { lease_runs_out: false, ..RULES }, ..ONE });
}

// What the scripts once did; see the contract's `a_lease_that_ran_out_is_a_new_reign_also_for_its_holder`.
#[test]
fn a_reign_that_goes_on_after_its_lease_falls_behind_what_redis_forgot() {
    let rules = Rules { new_reign_after_expiry: false, ..RULES };
    breaks(laws::EPOCHS, Params { losses: &[Loss::LastSecond], ..without(rules) });
}

#[test]
fn a_node_that_trusts_its_clock_from_the_answer_on_believes_too_long() {
    let habits = Habits { believes_from_sending: false, ..HABITS };
    breaks(laws::ONE_BELIEVER, Params { faults: 2, losses: &[], ..unlearned(habits) });
}

#[test]
fn without_the_wait_lost_data_are_counted_at_once() {
    breaks(laws::SETTLED, unlearned(Habits { waits_after_loss: false, ..HABITS }));
}

#[test]
fn without_the_gate_viewers_see_a_slot_that_redis_forgot_twice() {
    breaks(laws::SHOWN_ONCE, unlearned(Habits { gates_slots: false, ..HABITS }));
}
