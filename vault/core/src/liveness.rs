//! Leases. Time is milliseconds since boot, a monotonic clock; a reboot ends a lease.

use casemate_trust::id::FleetId;
use casemate_trust::key::PublicKey;
use casemate_trust::lease::{Claims, LeaseError, NONCE_BYTES, Question, check};
use casemate_trust::statement::OnlineKey;

/// Time after which an unanswered nonce is replaced, milliseconds.
const ASK_AGAIN_MS: u64 = 20_000;

/// Whether the control plane has proven recently enough that it is alive. The vault owns it.
#[derive(Debug, Clone)]
pub struct Liveness {
    lease_ms: u64,
    until_ms: Option<u64>,
    asked: Option<(Vec<u8>, u64)>,
}

impl Liveness {
    /// Starts without a lease, for leases of this length.
    pub const fn new(lease_ms: u64) -> Self {
        Self {
            lease_ms,
            until_ms: None,
            asked: None,
        }
    }

    /// Starts with the lease of an earlier run in this boot. If that lease was longer than today's
    /// setting, it ends when one of today's would, counted from when it was requested, or from now
    /// if that is unknown.
    pub fn resume(lease_ms: u64, until_ms: u64, begun_ms: Option<u64>, now_ms: u64) -> Self {
        let begun_ms = begun_ms.unwrap_or(now_ms);
        let until_ms = until_ms.min(begun_ms.saturating_add(lease_ms));
        Self {
            until_ms: Some(until_ms),
            ..Self::new(lease_ms)
        }
    }

    /// Whether credentials may be used.
    pub fn holds(&self, now_ms: u64) -> bool {
        self.until_ms.is_some_and(|until| now_ms < until)
    }

    /// The end of the lease, milliseconds since boot.
    pub fn until_ms(&self) -> Option<u64> {
        self.until_ms
    }

    /// When the lease that was just granted had been requested.
    pub fn begun_ms(&self) -> Option<u64> {
        Some(self.until_ms?.saturating_sub(self.lease_ms))
    }

    /// The nonce for a request, when it is due: half of the lease is over, and no request is under
    /// way.
    pub fn question(
        &mut self,
        now_ms: u64,
        random: casemate_trust::Random<'_>,
    ) -> Option<[u8; NONCE_BYTES]> {
        let left_ms = self.until_ms.unwrap_or(0).saturating_sub(now_ms);
        let waiting = self
            .asked
            .as_ref()
            .is_some_and(|(_, at)| now_ms.saturating_sub(*at) < ASK_AGAIN_MS);
        if left_ms > self.lease_ms / 2 || waiting {
            return None;
        }
        let mut nonce = [0; NONCE_BYTES];
        random(&mut nonce);
        self.asked = Some((nonce.to_vec(), now_ms));
        Some(nonce)
    }

    /// Cancels the request under way, because the connection is gone. The next [`Self::question`]
    /// makes a new one.
    pub fn ask_again(&mut self) {
        self.asked = None;
    }

    /// Judges an answer; returns its claims. The lease runs from when the nonce was made, so a late
    /// answer gives a short lease.
    ///
    /// # Errors
    /// See [`LeaseError`]; nothing has changed.
    pub fn answer(
        &mut self,
        envelope: &casemate_trust::dsse::Envelope,
        fleet: FleetId,
        node: PublicKey,
        online: &OnlineKey,
    ) -> Result<Claims, LeaseError> {
        let (nonce, made_ms) = self.asked.clone().ok_or(LeaseError::Other)?;
        let asked = Question { fleet, node, nonce };
        let claims = check(envelope, &asked, online)?;
        self.asked = None;
        self.until_ms = Some(made_ms + self.lease_ms);
        Ok(claims)
    }
}

#[cfg(test)]
mod tests {
    use casemate_trust::key::SigningKey;
    use casemate_trust::lease::Lease;
    use casemate_trust::statement::Statement as _;

    use super::*;

    const FLEET: FleetId = FleetId([1; 32]);
    const HOUR_MS: u64 = 3_600_000;

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_seed(&[seed; 32]).unwrap()
    }

    fn online() -> OnlineKey {
        let public = key(1).public();
        OnlineKey {
            fleet: FLEET,
            version: 1,
            liveness: public,
            quic: public,
            api: public,
            issued: 1,
            expires: 2,
        }
    }

    #[test]
    fn a_shorter_lease_counts_for_one_that_was_granted_before() {
        let (until_ms, now_ms) = (24 * HOUR_MS, 2 * HOUR_MS);
        let until = |lease_ms, begun_ms| {
            let resumed = Liveness::resume(lease_ms, until_ms, begun_ms, now_ms);
            resumed.until_ms().unwrap()
        };
        assert_eq!(
            until(24 * HOUR_MS, Some(0)),
            until_ms,
            "the lease as granted"
        );
        assert_eq!(
            until(48 * HOUR_MS, Some(0)),
            until_ms,
            "a lease is never extended"
        );
        assert_eq!(until(3 * HOUR_MS, Some(0)), 3 * HOUR_MS);
        assert!(!Liveness::resume(HOUR_MS, until_ms, Some(0), now_ms).holds(now_ms));
        assert_eq!(until(HOUR_MS, None), now_ms + HOUR_MS);
        let mut over = Liveness::resume(HOUR_MS, until_ms, Some(0), now_ms);
        assert!(
            over.question(now_ms, &mut |_| ()).is_some(),
            "a new lease is requested at once"
        );
    }

    #[test]
    fn a_lease_runs_from_its_nonce_and_an_old_answer_is_refused() {
        let mut liveness = Liveness::new(HOUR_MS);
        assert!(!liveness.holds(0));
        let nonce = liveness.question(1000, &mut |bytes| bytes.fill(7)).unwrap();
        assert_eq!(
            liveness.question(1001, &mut |bytes| bytes.fill(8)),
            None,
            "one question at a time"
        );
        let node = key(2).public();
        let lease = Lease {
            fleet: FLEET,
            node,
            nonce: nonce.to_vec(),
            claims: Claims::default(),
        };
        let (good, forged) = (lease.sign(&[&key(1)]), lease.sign(&[&key(66)]));
        assert_eq!(
            liveness.answer(&forged, FLEET, node, &online()),
            Err(LeaseError::Signature)
        );
        let others = Lease {
            node: key(3).public(),
            ..lease.clone()
        }
        .sign(&[&key(1)]);
        assert_eq!(
            liveness.answer(&others, FLEET, node, &online()),
            Err(LeaseError::Other)
        );
        liveness.answer(&good, FLEET, node, &online()).unwrap();
        assert!(liveness.holds(1000 + HOUR_MS - 1) && !liveness.holds(1000 + HOUR_MS));
        assert_eq!(liveness.begun_ms(), Some(1000));
        assert_eq!(
            liveness.answer(&good, FLEET, node, &online()),
            Err(LeaseError::Other),
            "a replay answers nothing"
        );
        assert_eq!(liveness.question(1000 + HOUR_MS / 2 - 1, &mut |_| ()), None);
        assert!(
            liveness
                .question(1000 + HOUR_MS / 2, &mut |bytes| bytes.fill(9))
                .is_some()
        );
        assert_eq!(
            liveness.answer(&good, FLEET, node, &online()),
            Err(LeaseError::Other),
            "an old answer to a new question"
        );
    }
}
