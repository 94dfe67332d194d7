//! A control plane on one side, a vault on the other, the carrier between.

use std::collections::VecDeque;

use super::*;

const SHOP: TenantId = TenantId([1; 32]);
const BANK: TenantId = TenantId([2; 32]);

fn manifest(tenant: TenantId, version: u64) -> NodeEvent {
    NodeEvent::Statement {
        id: StatementId::Manifest { tenant, version },
        revision: version,
        bytes: format!("manifest {version}").into_bytes(),
    }
}

fn bytes(number: u8) -> Vec<u8> {
    vec![number; 8]
}

fn digest(number: u8) -> Digest {
    Digest::of(&bytes(number))
}

fn object(tenant: TenantId, number: u8) -> NodeEvent {
    NodeEvent::Object {
        tenant,
        digest: digest(number),
        kind: PushedKind::Release,
        bytes: bytes(number),
    }
}

fn misses(numbers: &[u8]) -> Verdict {
    let digests = numbers.iter().map(|number| digest(*number).0).collect();
    Verdict::Missing { digests }
}

fn refused(code: &str) -> Verdict {
    Verdict::Refused {
        code: code.into(),
        message: String::new(),
    }
}

/// What was done, in few words.
#[derive(Debug, PartialEq, Eq)]
enum Did {
    Show(String),
    Carry(u8),
    Ack(u64),
    Nack(u64, String),
    Fetch(TenantId, Vec<u8>),
    Resync,
}
use Did::{Ack, Carry, Fetch, Nack, Resync, Show};

fn show(version: u64) -> Did {
    Show(format!("manifest {version}"))
}

fn nacks(version: u64, code: &str) -> Did {
    Nack(version, code.into())
}

/// A carrier whose submits wait to be judged, in order.
#[derive(Default)]
struct Node {
    carrier: Carrier,
    unjudged: VecDeque<u64>,
}

impl Node {
    fn did(&mut self, carried: Vec<Carried>) -> Vec<Did> {
        let number = |wanted: &Digest| (0..=255).find(|number| digest(*number) == *wanted).unwrap();
        let mut did = Vec::new();
        for carried in carried {
            did.push(match carried {
                Carried::Submit { id, kind, bytes } => {
                    self.unjudged.push_back(id);
                    match kind {
                        ObjectKind::Release => Carry(bytes[0]),
                        _ => Show(String::from_utf8(bytes).unwrap()),
                    }
                }
                Carried::Ack(id) => Ack(id.version()),
                Carried::Nack { id, code, message } => {
                    let is_ours = !["bad", "storage_full"].contains(&code.as_str());
                    assert!(!message.is_empty() || !is_ours, "{code}");
                    Nack(id.version(), code)
                }
                Carried::Resync => Resync,
                Carried::Fetch { tenant, digests } => {
                    Fetch(tenant, digests.iter().map(number).collect())
                }
            });
        }
        did
    }

    fn push(&mut self, event: NodeEvent) -> Vec<Did> {
        let carried = self.carrier.pushed(event);
        self.did(carried)
    }

    fn tick(&mut self, now_ms: Millis) -> Vec<Did> {
        let carried = self.carrier.tick(now_ms);
        self.did(carried)
    }

    /// The vault judges what was submitted first.
    fn judge(&mut self, verdict: Verdict) -> Vec<Did> {
        let id = self.unjudged.pop_front().unwrap();
        let carried = self.carrier.judged(id, verdict);
        self.did(carried)
    }

    /// Nothing is left that would be confused with what comes next.
    #[track_caller]
    fn is_done(&self) {
        assert!(self.unjudged.is_empty() && self.carrier.submitted.is_empty());
        assert!(self.carrier.waiting.is_empty());
    }
}

#[test]
fn a_manifest_waits_for_its_objects_and_is_shown_again() {
    let mut node = Node::default();
    assert_eq!(node.push(object(SHOP, 1)), []);
    assert_eq!(node.push(manifest(SHOP, 1)), [show(1)]);
    assert_eq!(
        node.judge(misses(&[1, 2])),
        [Carry(1), Fetch(SHOP, vec![2])],
        "what came ahead is not fetched"
    );
    assert_eq!(node.push(object(SHOP, 2)), [Carry(2)]);
    assert_eq!(node.judge(Verdict::Accepted), []);
    assert_eq!(node.judge(Verdict::Accepted), [show(1)]);
    assert_eq!(node.judge(Verdict::Accepted), [Ack(1)]);
    node.is_done();
}

#[test]
fn a_newer_manifest_supersedes_the_one_that_waits() {
    let mut node = Node::default();
    node.push(manifest(SHOP, 1));
    assert_eq!(node.judge(misses(&[1, 2, 3])), [Fetch(SHOP, vec![1, 2, 3])]);
    assert_eq!(node.push(manifest(SHOP, 2)), [show(2)]);
    // On its way through the vault, behind the newer manifest: it counts for that, as it lists it too.
    assert_eq!(node.push(object(SHOP, 1)), [Carry(1)]);
    assert_eq!(
        node.judge(misses(&[1, 2, 4])),
        [nacks(1, SUPERSEDED), Fetch(SHOP, vec![4])],
        "what both list is not fetched twice"
    );
    assert_eq!(node.judge(Verdict::Accepted), []);
    assert_eq!(node.push(object(SHOP, 2)), [Carry(2)]);
    assert_eq!(node.judge(Verdict::Accepted), []);
    assert_eq!(
        node.push(object(SHOP, 3)),
        [],
        "only the older listed it: it counts for nothing"
    );
    assert_eq!(node.push(object(SHOP, 4)), [Carry(4)]);
    assert_eq!(node.judge(Verdict::Accepted), [show(2)]);
    assert_eq!(node.judge(Verdict::Accepted), [Ack(2)]);
    node.is_done();
}

#[test]
fn a_superseded_manifests_objects_do_not_count_for_the_newer_one() {
    let mut node = Node::default();
    node.push(manifest(SHOP, 1));
    node.judge(misses(&[1, 2]));
    node.push(manifest(SHOP, 2));
    assert_eq!(node.push(object(SHOP, 1)), [Carry(1)]);
    assert_eq!(
        node.judge(misses(&[5])),
        [nacks(1, SUPERSEDED), Fetch(SHOP, vec![5])]
    );
    // The vault does not want it any more; that is no reason to give the newer one up, nor to show it.
    assert_eq!(node.judge(refused("object_unlisted")), []);
    assert_eq!(node.push(object(SHOP, 5)), [Carry(5)]);
    assert_eq!(node.judge(Verdict::Accepted), [show(2)]);
    assert_eq!(node.judge(Verdict::Accepted), [Ack(2)]);
    node.is_done();
}

#[test]
fn a_newer_manifest_that_needs_nothing_supersedes_too_and_one_that_is_refused_does_not() {
    let mut node = Node::default();
    node.push(manifest(SHOP, 1));
    node.judge(misses(&[1]));
    node.push(manifest(SHOP, 2));
    // Complete while another is judged: its turn comes when that one is through.
    assert_eq!(node.push(object(SHOP, 1)), [Carry(1)]);
    assert_eq!(node.judge(refused("bad")), [nacks(2, "bad")]);
    assert_eq!(node.judge(Verdict::Accepted), [show(1)]);
    node.push(manifest(SHOP, 3));
    assert_eq!(node.judge(misses(&[7])), [Fetch(SHOP, vec![7])]);
    assert_eq!(node.push(object(SHOP, 7)), [Carry(7)]);
    assert_eq!(
        node.judge(Verdict::Accepted),
        [nacks(1, SUPERSEDED), Ack(3)]
    );
    assert_eq!(node.judge(Verdict::Accepted), []);
    node.is_done();
}

#[test]
fn a_complete_manifest_is_not_shown_while_a_newer_one_is_judged() {
    let mut node = Node::default();
    node.push(manifest(SHOP, 1));
    node.judge(misses(&[1]));
    assert_eq!(node.push(object(SHOP, 1)), [Carry(1)]);
    node.push(manifest(SHOP, 2));
    assert_eq!(node.judge(Verdict::Accepted), []);
    assert_eq!(node.judge(refused("bad")), [nacks(2, "bad"), show(1)]);
    assert_eq!(node.judge(Verdict::Accepted), [Ack(1)]);
    node.is_done();
}

#[test]
fn an_older_manifest_that_comes_late_does_not_disturb_the_newer_one() {
    let mut node = Node::default();
    node.push(manifest(SHOP, 2));
    assert_eq!(node.judge(misses(&[1])), [Fetch(SHOP, vec![1])]);
    node.push(manifest(SHOP, 1));
    assert_eq!(node.judge(misses(&[1, 2])), [nacks(1, SUPERSEDED)]);
    assert_eq!(node.push(object(SHOP, 1)), [Carry(1)]);
    assert_eq!(node.judge(Verdict::Accepted), [show(2)]);
    assert_eq!(node.judge(Verdict::Accepted), [Ack(2)]);
    node.is_done();
}

#[test]
fn one_tenants_verdict_leaves_what_came_ahead_for_another() {
    let mut node = Node::default();
    node.push(object(SHOP, 1));
    node.push(object(SHOP, 2));
    node.push(object(BANK, 3));
    node.push(manifest(SHOP, 1));
    node.push(manifest(BANK, 1));
    assert_eq!(node.judge(Verdict::Accepted), [Ack(1)]);
    assert_eq!(node.judge(misses(&[3])), [Carry(3)]);
    node.push(manifest(SHOP, 2));
    node.judge(Verdict::Accepted);
    assert_eq!(
        node.judge(misses(&[2])),
        [Fetch(SHOP, vec![2])],
        "its own is gone with its verdict"
    );
}

#[test]
fn what_came_ahead_of_a_second_manifest_outlives_the_first_ones_verdict() {
    let mut node = Node::default();
    node.push(manifest(SHOP, 1));
    node.push(object(SHOP, 2));
    node.push(manifest(SHOP, 2));
    assert_eq!(node.judge(Verdict::Accepted), [Ack(1)]);
    assert_eq!(node.judge(misses(&[2])), [Carry(2)]);
}

#[test]
fn objects_that_the_vault_has_dropped_are_fetched_again_and_not_for_ever() {
    let mut node = Node::default();
    node.push(manifest(SHOP, 1));
    assert_eq!(node.judge(misses(&[1, 2])), [Fetch(SHOP, vec![1, 2])]);
    let mut shown = 0;
    loop {
        assert_eq!(node.push(object(SHOP, 1)), [Carry(1)]);
        node.judge(Verdict::Accepted);
        if shown == 0 {
            assert_eq!(node.push(object(SHOP, 2)), [Carry(2)]);
            assert_eq!(node.judge(Verdict::Accepted), [show(1)]);
        }
        shown += 1;
        // It had taken both; of one it has kept nothing.
        let did = node.judge(misses(&[1]));
        if did == [nacks(1, OBJECTS_MISSING)] {
            break;
        }
        assert_eq!(did, [Fetch(SHOP, vec![1])], "after {shown} rounds");
    }
    assert_eq!(shown, MAX_ROUNDS);
    node.is_done();
    // The next manifest begins anew.
    node.push(manifest(SHOP, 2));
    assert_eq!(node.judge(misses(&[1])), [Fetch(SHOP, vec![1])]);
    node.push(object(SHOP, 1));
    assert_eq!(node.judge(Verdict::Accepted), [show(2)]);
    assert_eq!(node.judge(Verdict::Accepted), [Ack(2)]);
    node.is_done();
}

#[test]
fn what_cannot_be_had_is_given_up() {
    let mut node = Node::default();
    node.push(manifest(SHOP, 1));
    node.judge(misses(&[1]));
    let digest = digest(1);
    assert_eq!(
        node.push(NodeEvent::Unavailable { digest }),
        [nacks(1, OBJECTS_MISSING)]
    );
    node.push(manifest(SHOP, 2));
    node.judge(misses(&[1]));
    node.push(object(SHOP, 1));
    assert_eq!(
        node.judge(refused("object_too_large")),
        [nacks(2, OBJECTS_MISSING)]
    );
    node.is_done();
}

/// Every statement is answered once, whatever the vault says and in whatever order objects come.
#[test]
fn each_manifest_is_answered_once() {
    let mut superseded = 0;
    for seed in 1..=300_u64 {
        let mut dice = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut roll = move |sides: u64| {
            dice = dice
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (dice >> 33) % sides
        };
        let (mut node, mut answers, mut fetched) =
            (Node::default(), BTreeMap::<u64, usize>::new(), Vec::new());
        let mut versions = 0;
        for turn in 0..800 {
            // In the end nothing new comes, and the vault has what it was given.
            let is_ending = turn >= 200;
            let did = match roll(4) {
                0 if !is_ending => {
                    versions += 1;
                    node.push(manifest(SHOP, versions))
                }
                1 if !is_ending => node.push(object(SHOP, roll(6) as u8)),
                2 if !fetched.is_empty() => {
                    let at = roll(fetched.len() as u64) as usize;
                    node.push(object(SHOP, fetched.swap_remove(at)))
                }
                _ if node.unjudged.is_empty() => continue,
                _ => match roll(5) {
                    0 | 1 if !is_ending => {
                        let missing = [roll(6) as u8, roll(6) as u8];
                        let id = node.unjudged[0];
                        let is_statement =
                            matches!(node.carrier.submitted[&id], Purpose::Statement(_));
                        let distinct = if missing[0] == missing[1] { 1 } else { 2 };
                        node.judge(if is_statement {
                            misses(&missing[..distinct])
                        } else {
                            Verdict::Accepted
                        })
                    }
                    2 if !is_ending => node.judge(refused("bad")),
                    _ => node.judge(Verdict::Accepted),
                },
            };
            for did in did {
                match did {
                    Ack(version) => *answers.entry(version).or_default() += 1,
                    Nack(version, code) => {
                        superseded += usize::from(code == SUPERSEDED);
                        *answers.entry(version).or_default() += 1;
                    }
                    Fetch(_, numbers) => {
                        // The push protocol asks once for what has not come yet.
                        let new = numbers
                            .into_iter()
                            .filter(|number| !fetched.contains(number));
                        fetched.extend(new.collect::<Vec<_>>());
                    }
                    Show(_) | Carry(_) | Resync => {}
                }
            }
        }
        assert!(
            (1..=versions).all(|version| answers.get(&version) == Some(&1)),
            "seed {seed}: {answers:?} of {versions}"
        );
        node.is_done();
    }
    assert!(superseded > 100, "too rare to prove anything: {superseded}");
}

#[test]
fn the_list_that_names_this_node_goes_to_the_vault_and_is_not_answered() {
    let mut node = Node::default();
    let list = b"revoked".to_vec();
    let pushed = node.push(NodeEvent::Revoked { list });
    assert_eq!(pushed, [Show("revoked".into())]);
    assert_eq!(node.judge(Verdict::Accepted), []);
    node.is_done();
}

#[test]
fn what_a_full_disk_refuses_is_shown_again_ever_more_slowly_until_there_is_room() {
    let mut node = Node::default();
    node.push(manifest(SHOP, 1));
    assert_eq!(
        node.judge(refused("storage_full")),
        [nacks(1, "storage_full")]
    );
    // The disk is full for an hour: reported once, and shown a few times.
    let (mut shown, mut now_ms) = (0, 0);
    while now_ms < 3_600_000 {
        now_ms += 250;
        let did = node.tick(now_ms);
        if !did.is_empty() {
            assert_eq!(did, [show(1)]);
            shown += 1;
            assert_eq!(node.judge(refused("storage_full")), []);
        }
    }
    assert!((10..=25).contains(&shown), "{shown}");
    now_ms += RETRY_MAX_MS;
    assert_eq!(node.tick(now_ms), [show(1)]);
    // There is room; the objects that it lists come as ever. The control plane hears of it with the next hello.
    assert_eq!(node.judge(misses(&[7])), [Fetch(SHOP, vec![7])]);
    node.push(object(SHOP, 7));
    assert_eq!(node.judge(Verdict::Accepted), [show(1)]);
    assert_eq!(node.judge(Verdict::Accepted), [Resync]);
    assert_eq!(node.tick(2 * now_ms), []);
}

#[test]
fn a_newer_statement_takes_the_place_of_one_that_waits_for_room_and_another_refusal_is_told() {
    let mut node = Node::default();
    for version in [1, 2] {
        node.push(manifest(SHOP, version));
        assert_eq!(
            node.judge(refused("storage_full")),
            [nacks(version, "storage_full")]
        );
    }
    node.push(manifest(BANK, 1));
    assert_eq!(
        node.judge(refused("storage_full")),
        [nacks(1, "storage_full")]
    );
    node.tick(0);
    assert_eq!(node.tick(RETRY_MIN_MS), [show(1), show(2), show(1)]);
    assert_eq!(node.judge(refused("storage_full")), []);
    assert_eq!(node.judge(Verdict::Accepted), [Resync]);
    // Refused for good now, which the next connection brings to the control plane.
    assert_eq!(node.judge(refused("bad")), [Resync]);
    assert_eq!(node.tick(0), []);
    assert_eq!(
        node.tick(RETRY_MAX_MS),
        [],
        "the older manifest does not come again"
    );
}
