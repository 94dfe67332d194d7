//! The order in which inputs are handled and effects carried out, in production and in tests.

use std::collections::VecDeque;

use super::{Effect, Input, Millis, Supervision};

/// Owns the state machine and carries out its effects: the shell, or a test.
pub(crate) trait Host {
    type Error;

    fn state(&mut self) -> &mut Supervision;

    /// Milliseconds of a monotonic clock.
    fn now_ms(&self) -> Millis;

    /// Carries out an effect. Returns the input that follows at once, if any.
    ///
    /// # Errors
    /// The node cannot go on.
    fn carry_out(&mut self, effect: Effect) -> Result<Option<Input>, Self::Error>;
}

/// Handles an input, and all that follow from it at once. The state machine is never entered while
/// effects are carried out: a following input waits until all effects of the inputs before it were
/// carried out.
///
/// # Errors
/// See [`Host::carry_out`]; the remaining effects are not carried out.
pub(crate) fn drive<H: Host>(host: &mut H, input: Input) -> Result<(), H::Error> {
    let mut inputs = VecDeque::from([input]);
    while let Some(input) = inputs.pop_front() {
        let now_ms = host.now_ms();
        for effect in host.state().handle(input, now_ms) {
            inputs.extend(host.carry_out(effect)?);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::super::Single;
    use super::super::tests::{BOUNDS, function, plan, proven};
    use super::*;

    /// A node whose disk has every bundle.
    struct Node {
        state: Supervision,
        carried: Vec<Effect>,
    }

    impl Host for Node {
        type Error = Infallible;

        fn state(&mut self) -> &mut Supervision {
            &mut self.state
        }

        fn now_ms(&self) -> Millis {
            1
        }

        fn carry_out(&mut self, effect: Effect) -> Result<Option<Input>, Infallible> {
            let follows = match &effect {
                Effect::Fetch { bundle, .. } => Some(Input::BundleHere(*bundle)),
                _ => None,
            };
            self.carried.push(effect);
            Ok(follows)
        }
    }

    #[test]
    fn a_following_input_waits_for_all_effects_of_the_one_before() {
        let inputs = || {
            [
                Input::Up(Single::Vault),
                Input::Up(Single::Gateway),
                Input::Told,
                plan(1, vec![function("web", 5), function("api", 6)]),
            ]
        };
        let mut node = Node {
            state: proven(BOUNDS),
            carried: Vec::new(),
        };
        for input in inputs() {
            let Ok(()) = drive(&mut node, input);
        }
        // By hand: the plan's effects, then those of each bundle.
        let mut state = proven(BOUNDS);
        let mut wanted: Vec<Effect> = inputs()
            .into_iter()
            .flat_map(|input| state.handle(input, 1))
            .collect();
        let fetched: Vec<_> = wanted
            .iter()
            .filter_map(|effect| match effect {
                Effect::Fetch { bundle, .. } => Some(*bundle),
                _ => None,
            })
            .collect();
        assert_eq!(fetched.len(), 2);
        for bundle in fetched {
            wanted.extend(state.handle(Input::BundleHere(bundle), 1));
        }
        assert_eq!(node.carried, wanted);
    }
}
