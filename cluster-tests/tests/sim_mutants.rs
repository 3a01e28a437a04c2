//! The simulator's checkers can fail: each planted fault is found within a bounded number of seeds.

use cluster_tests::sim::first_failure;
use quorate_types::Faults;

/// Runs seeds until one finds the fault, and says which did.
fn is_caught<F: Faults>(what: &str, within: u64) {
    match first_failure::<F>(0..within) {
        Ok(totals) => panic!("{what} is not found: {totals}"),
        Err(failure) => println!("{what}: seed {}: {}", failure.seed, failure.violation),
    }
}

/// A test that plants one fault.
macro_rules! mutant {
    ($test:ident, $fault:ident, $within:expr) => {
        #[test]
        fn $test() {
            struct Mutant;
            impl Faults for Mutant {
                const $fault: bool = true;
            }
            is_caught::<Mutant>(stringify!($fault), $within);
        }
    };
}

mutant!(
    a_follower_that_cuts_to_its_high_watermark,
    TRUNCATE_TO_HW,
    1_000
);
mutant!(an_acknowledgement_at_the_append, ACK_EARLY, 1_000);
mutant!(
    a_repeat_that_is_answered_before_its_original_is_committed,
    DUPLICATE_EARLY,
    1_000
);
mutant!(success_when_the_leadership_goes, SUCCESS_AFTER_LOSS, 1_000);
mutant!(requests_and_batches_of_any_epoch, ANY_EPOCH, 1_000);
mutant!(subscriptions_of_any_epoch, ANY_SUBSCRIPTION, 1_000);
mutant!(a_leader_that_resumes_its_old_epoch, RESUME_OLD_EPOCH, 1_000);
mutant!(acks_of_another_subscription, UNBOUND_ACKS, 1_000);
mutant!(a_follower_that_joins_by_its_logs_end, JOIN_BY_LEO, 1_000);
mutant!(
    a_follower_that_joins_by_what_its_old_life_acked,
    JOIN_BY_OLD_LIFE,
    1_000
);
mutant!(a_stalled_disk_that_stays_in_sync, STALLED_STAYS, 1_000);
mutant!(
    a_high_watermark_over_the_committed_isr,
    HW_OVER_COMMITTED,
    1_000
);
mutant!(an_isr_proposal_that_is_forgotten, FORGET_PROPOSAL, 1_000);
mutant!(
    durability_that_is_called_established_early,
    ESTABLISH_EARLY,
    1_000
);
mutant!(a_flush_of_before_a_truncation, STALE_FLUSH, 1_000);
mutant!(producers_that_outlive_a_truncation, KEEP_PRODUCERS, 1_000);
mutant!(a_truncation_one_batch_short, SHORT_CUT, 1_000);
mutant!(a_stale_controllers_command, ANY_TERM, 1_000);
mutant!(a_member_of_an_old_registration, ANY_BROKER_EPOCH, 1_000);
mutant!(an_isr_that_fencing_empties, DROP_LAST_MEMBER, 1_000);
mutant!(
    durability_that_stays_established_without_syncs,
    KEEP_ESTABLISHED,
    1_000
);

// Groups.
mutant!(
    a_former_coordinators_proposal_that_is_taken,
    ANY_COORDINATOR_EPOCH,
    1_000
);
mutant!(
    a_commit_of_before_the_partition_was_the_members,
    ANY_MEMBER_EPOCH,
    1_000
);
mutant!(
    an_older_offset_commit_that_is_applied_late,
    ANY_COMMIT_ORDER,
    1_000
);
mutant!(
    a_deletion_of_a_group_that_has_changed_since,
    ANY_GROUP_VERSION,
    1_000
);
mutant!(
    a_partition_that_is_given_on_before_it_is_given_up,
    ASSIGN_BEFORE_RELEASE,
    1_000
);
mutant!(
    a_coordinator_that_answers_while_it_is_cut_off,
    ANSWER_CUT_OFF,
    1_000
);
mutant!(
    an_older_heartbeat_that_counts_as_giving_up,
    OLD_WORD_COUNTS,
    1_000
);
mutant!(
    a_new_coordinator_that_gives_members_no_session,
    NO_SESSION_AT_TAKEOVER,
    1_000
);
mutant!(
    an_answer_to_a_member_whose_end_is_proposed,
    ANSWER_WHO_GOES,
    1_000
);
mutant!(
    a_member_that_is_ended_before_its_session,
    END_LATE_AT_ONCE,
    1_000
);
