//! The contract of the backplane: one suite, run over each implementation.
//!
//! The embedded backplane is worth something only while it answers what Redis would. So nothing in here knows which
//! of them it talks to: a case gets two handles on the same truth (on Redis: two connections, as two nodes have) and
//! asks. Each sentence of the trait's documentation has a case; what only one implementation can show (time that is
//! moved, keys of a wrong type) is tested beside that implementation.
//!
//! Nothing waits by guess. A lease that must end is short and its end is polled for; a lease that must hold is far
//! longer than any test.

mod bench;
mod members;
mod presence;
mod publish;
mod stream;
mod ticker;

/// Makes a test of each case for each backplane: `contract::redis::ticker::a_lease_has_one_holder`.
macro_rules! contract {
    ($($group:ident: [$($case:ident),* $(,)?]),* $(,)?) => {
        mod memory {
            $(mod $group {
                use crate::contract::{bench::Bench, $group as cases};
                $(
                    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                    async fn $case() {
                        cases::$case(Bench::memory()).await;
                    }
                )*
            })*
        }

        mod redis {
            $(mod $group {
                use crate::contract::{bench::Bench, $group as cases};
                $(
                    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                    async fn $case() {
                        cases::$case(Bench::redis()).await;
                    }
                )*
            })*
        }
    };
}

contract! {
    publish: [
        items_are_appended_in_order_and_complete,
        a_repeated_number_is_answered_and_not_done_again,
        a_lower_number_is_superseded,
        who_left_is_not_done_again,
        numbers_belong_to_their_node,
        racing_repeats_are_done_once,
        a_lost_lease_fences_and_does_nothing,
        a_repeat_is_answered_though_the_lease_is_lost,
        themes_are_counted_and_shared_out,
        shares_are_rounded_half_up,
        themes_beyond_the_bound_are_other,
        complete_messages_pass_uncounted,
        who_caused_it_is_touched_in_the_same_step,
        a_turned_salt_does_not_hinder_publishing,
        the_largest_request_fits,
    ],
    stream: [
        publishers_at_once_make_one_order_without_holes,
        reading_goes_on_after_an_id_in_portions,
        reading_waits_for_the_first_entry,
        reading_gives_up_after_its_wait,
        newest_are_the_last_ones_oldest_first,
        up_to_an_id_are_the_last_ones_before_it,
        a_long_past_is_read_page_by_page_without_a_hole,
        an_entry_is_found_at_its_id_alone,
        the_stream_is_trimmed_to_about_its_bound,
        the_legacy_channel_delivers_in_order_to_who_subscribed,
        a_dropped_legacy_receiver_ends_its_subscription,
    ],
    ticker: [
        a_lease_has_one_holder,
        racing_claims_make_one_ticker,
        a_released_lease_is_free_at_once,
        only_the_present_lease_can_be_released,
        a_lease_runs_out_by_itself,
        a_lease_that_ran_out_is_a_new_reign_also_for_its_holder,
        a_tick_publishes_a_snapshot,
        racing_ticks_publish_once,
        a_slot_is_done_in_whatever_reign,
        another_slot_than_the_present_is_wrong,
        without_its_lease_a_tick_is_fenced,
        a_snapshot_tells_how_many_entries_there_were,
    ],
    members: [
        a_node_enters_stays_and_sees_the_others,
        the_generation_is_one_and_stays,
        who_never_entered_is_gone,
        a_membership_runs_out_while_others_live,
        when_all_ran_out_nobody_did,
        who_left_is_gone_and_counts_no_more,
        the_cap_holds_over_all_nodes,
        racing_admissions_stop_at_the_cap,
        addresses_are_counted_apart,
        a_dead_node_counts_no_more,
        readmission_takes_what_fits,
        many_addresses_are_admitted_again_together,
        who_was_taken_for_dead_is_asked_what_still_fits,
        a_refusal_hides_no_socket_that_stays,
        counts_are_stated_not_added,
        zero_forgets,
        who_is_no_member_is_not_admitted,
        the_secret_is_one_and_stays,
        a_lost_secret_is_replaced_by_the_one_that_a_node_holds,
    ],
    presence: [
        salts_are_one_for_all,
        an_offered_salt_fills_a_loss_and_nothing_else,
        a_known_population_is_counted,
        an_alias_does_not_count_twice,
        another_salt_or_day_is_refused,
        a_visitor_is_forgotten_after_the_window,
        a_hole_between_ticks_loses_nobody_who_stayed,
    ],
}
