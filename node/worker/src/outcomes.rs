//! Outcomes of requests, reported to the supervisor in groups.

use std::time::{Duration, Instant};

use casemate_wire::control::worker::{FromWorker, Outcome};

use crate::state::State;

/// Most outcomes that wait to be reported together.
const MAX_OUTCOMES: usize = 128;
/// How long an outcome without a failure waits for others.
const OUTCOMES_WAIT: Duration = Duration::from_millis(20);

impl State {
    /// Adds an outcome, which is reported after [`OUTCOMES_WAIT`] at the latest; a failure is
    /// reported at once.
    pub(crate) fn outcome(&mut self, outcome: Outcome, now: Instant) {
        let is_failure = outcome.failure.is_some();
        self.outcomes.push(outcome);
        self.outcomes_due.get_or_insert(now + OUTCOMES_WAIT);
        if is_failure || self.outcomes.len() >= MAX_OUTCOMES {
            self.say_outcomes();
        }
    }

    /// Reports the waiting outcomes.
    pub(crate) fn say_outcomes(&mut self) {
        self.outcomes_due = None;
        let outcomes = std::mem::take(&mut self.outcomes);
        let count = outcomes.len();
        if count > 0
            && self
                .outbox
                .try_send(FromWorker::Outcomes(outcomes))
                .is_err()
        {
            tracing::warn!(count, "supervisor queue full, request outcomes dropped");
        }
    }
}
