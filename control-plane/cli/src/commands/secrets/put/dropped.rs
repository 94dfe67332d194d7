//! Finds limits that a secret had and that its next version lacks. A secret that is sealed again
//! without the options may be used for more hosts, methods or paths than before.

use casemate_trust::secret::SecretLimits;

/// The options whose limits the secret had and lacks now.
pub(super) fn dropped(before: &SecretLimits, now: &SecretLimits) -> Vec<&'static str> {
    let is_dropped = |before: bool, now: bool| before && !now;
    let of = |limits: &SecretLimits| {
        [
            !limits.methods.is_empty(),
            !limits.paths.is_empty(),
            !limits.slots.is_empty(),
            !limits.names.is_empty(),
        ]
    };
    let options = ["--method", "--path", "--slot", "--slot-name"];
    let limits = of(before).into_iter().zip(of(now)).zip(options);
    limits
        .filter(|((before, now), _)| is_dropped(*before, *now))
        .map(|(_, option)| option)
        .collect()
}

#[cfg(test)]
mod tests {
    use casemate_trust::release::SlotKind as Kind;

    use super::*;

    #[test]
    fn limits_that_a_new_version_lacks_are_named() {
        let host = || vec!["api.test".parse().unwrap()];
        let mut before = SecretLimits::to_hosts(host());
        before.paths = vec!["/v1/*".parse().unwrap()];
        before.slots = vec![Kind::Bearer];
        let mut now = SecretLimits::to_hosts(host());
        assert_eq!(dropped(&before, &now), ["--path", "--slot"]);
        now.paths = vec!["/v2/*".parse().unwrap()];
        assert_eq!(dropped(&before, &now), ["--slot"]);
        assert_eq!(dropped(&now, &before), [""; 0]);
    }
}
