//! Bundles on their streams in the simulated world: a fresh node fetches many.

use super::*;

/// Bundles of the fresh node: many more than may be on their way.
const BUNDLES: u32 = 104;

impl Link {
    /// Acts as the shell of the control plane.
    pub(super) fn send_bundle(&mut self, world: &World, digest: Digest, offset: u64) {
        let bundle = &world.objects[&digest];
        let header = Header {
            digest,
            offset,
            total: bundle.len() as u64,
        };
        let rest = bundle[offset as usize..].to_vec();
        self.streams.push((header, rest));
    }

    /// Acts as the shell of the node: it keeps the bytes of a stream, even of a cut one, and
    /// requests the rest. The control plane notices the end of a stream some time later, but always
    /// before it reads on.
    fn fetch_bundles(&mut self, vault: &mut Vault, dice: &mut Dice) {
        while !self.streams.is_empty() && dice.roll(3) > 0 {
            let any = dice.roll(self.streams.len() as u64) as usize;
            let (header, mut piece) = self.streams.remove(any);
            assert_eq!(self.node.expects(&header), Some(Expected::Bundle));
            self.node.bundle_done(&header.digest);
            self.ended += 1;
            piece.truncate(dice.roll(1 + piece.len() as u64 * 2) as usize);
            let part = vault.bundles.entry(header.digest).or_default();
            assert_eq!(part.len() as u64, header.offset);
            part.extend(piece);
        }
        while self.ended > MAX_FETCHES || (self.ended > 0 && dice.roll(2) == 0) {
            self.control.bundle_done();
            self.ended -= 1;
        }
        for (digest, part) in &vault.bundles {
            if Digest::of(part) != *digest {
                self.node.fetch_bundle(*digest, part.len() as u64).unwrap();
            }
        }
    }
}

#[test]
fn a_fresh_node_that_fetches_many_bundles_is_not_disconnected() {
    for seed in 1..=100 {
        let mut dice = Dice::new(seed);
        let (mut world, mut vault) = (World::new(1), Vault::default());
        for number in 0..BUNDLES {
            let bundle = vec![number as u8; 100 + number as usize];
            let digest = Digest::of(&bundle);
            world.objects.insert(digest, bundle);
            vault.bundles.insert(digest, Vec::new());
        }
        let mut link = Link::new(&vault);
        let mut steps = 0;
        while vault
            .bundles
            .iter()
            .any(|(digest, part)| Digest::of(part) != *digest)
        {
            link.step(&world, &mut vault, &mut dice);
            link.fetch_bundles(&mut vault, &mut dice);
            steps += 1;
            assert!(steps < 20_000, "seed {seed}: bundles do not come");
        }
    }
}
