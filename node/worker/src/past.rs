//! Ended requests: their names, and the log lines about what they left unfinished.

use std::collections::VecDeque;

use casemate_wire::control::Failure;

use crate::engine::ops::RequestId;
use crate::engine::{limit_message, pool};
use crate::host::WARN;
use crate::state::{Request, State};

/// Ended requests whose names are kept, for log lines of code that outlives its request.
const MAX_NAMES: usize = 256;

/// The names of the requests that ended last.
#[derive(Debug, Default)]
pub(crate) struct Past(VecDeque<(RequestId, String)>);

impl Past {
    pub(crate) fn add(&mut self, request: RequestId, name: String) {
        if self.0.len() == MAX_NAMES {
            self.0.pop_front();
        }
        self.0.push_back((request, name));
    }

    fn name(&self, request: RequestId) -> Option<&str> {
        let mut latest_first = self.0.iter().rev();
        latest_first
            .find(|(id, _)| *id == request)
            .map(|(_, name)| name.as_str())
    }
}

impl State {
    /// The name of a request, also of one that ended recently.
    pub(crate) fn name(&self, request: RequestId) -> Option<&str> {
        let under_way = self.requests.get(&request);
        under_way
            .map(|request| request.name.as_str())
            .or_else(|| self.past.name(request))
    }

    /// Logs what an ending request leaves unfinished: promises that wait for it are rejected.
    pub(crate) fn say_given_up(&mut self, request: &Request, id: RequestId) {
        let calls = self.calling.values().filter(|(owner, _)| *owner == id);
        let read = self
            .receiving
            .values()
            .filter(|held| held.owner == id && held.is_whole && held.busy.is_some());
        let (calls, bodies) = (calls.count(), read.count());
        if calls + bodies == 0 {
            return;
        }
        let message = format!(
            "the request has ended and gave up what it still waited for (outgoing calls: {calls}, bodies: {bodies}): \
             promises of it reject with request_ended, also for other requests that wait for them; \
             ctx.waitUntil keeps a request until a promise has settled"
        );
        self.say(Some(request.name.clone()), WARN, &message);
    }

    /// The message for a request that took too long, with a hint when it waited for nothing of its
    /// own.
    pub(crate) fn too_late(&self, id: RequestId) -> String {
        let limit = limit_message(Failure::ExceededWall);
        let waits = self.timers.has(id)
            || self.calling.values().any(|(owner, _)| *owner == id)
            || self
                .receiving
                .values()
                .any(|held| held.owner == id && held.busy.is_some())
            || self
                .sending
                .values()
                .any(|held| held.owner == id && held.busy.is_some())
            || pool::is_busy(id);
        if waits {
            return limit.to_owned();
        }
        format!(
            "{limit}; at the end it waited for no call, body or timer of its own, but for a promise that nobody \
             settled: one of another request, which may have ended, or one without anything behind it"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_names_are_remembered() {
        let mut past = Past::default();
        for id in 0..2 * MAX_NAMES as u32 {
            past.add(id, format!("r{id}"));
        }
        let last = 2 * MAX_NAMES as u32 - 1;
        assert_eq!(past.name(last), Some(format!("r{last}").as_str()));
        assert_eq!((past.name(0), past.0.len()), (None, MAX_NAMES));
    }
}
