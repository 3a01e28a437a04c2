//! The planted faults that concern a coordinator, as values: one copy of the code runs them all.

use quorate_types::Faults;

/// None, outside of the simulator.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Planted {
    pub(crate) answer_cut_off: bool,
    pub(crate) old_word_counts: bool,
    pub(crate) no_session_at_takeover: bool,
    pub(crate) assign_before_release: bool,
    pub(crate) answer_who_goes: bool,
    pub(crate) end_late_at_once: bool,
}

impl Planted {
    pub(crate) const fn of<F: Faults>() -> Self {
        Self {
            answer_cut_off: F::ANSWER_CUT_OFF,
            old_word_counts: F::OLD_WORD_COUNTS,
            no_session_at_takeover: F::NO_SESSION_AT_TAKEOVER,
            assign_before_release: F::ASSIGN_BEFORE_RELEASE,
            answer_who_goes: F::ANSWER_WHO_GOES,
            end_late_at_once: F::END_LATE_AT_ONCE,
        }
    }
}
