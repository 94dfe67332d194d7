//! Images in the simulated world: statements, files, and pieces on their way.

use super::*;

impl World {
    pub(super) fn publish_image(&mut self, dice: &mut Dice) {
        let any = StatementId::Image {
            version: 0,
            statement: Digest([0; 32]),
        };
        // Sometimes the same version again, as for more pools.
        let version = self.highest(&any) + dice.roll(3).min(1);
        let content = vec![version as u8; 3000 + version as usize];
        let digest = Digest::of(&content);
        let pool = ["main", "other"][dice.roll(2) as usize];
        let bytes = format!("{pool} {digest} {}", dice.roll(1 << 20)).into_bytes();
        self.images.insert(digest, content);
        let statement = Digest::of(&bytes);
        self.put(StatementId::Image { version, statement }, bytes);
    }
}

/// Pool and file of an image's statement.
pub(super) fn image_of(bytes: &[u8]) -> (&str, Digest) {
    let mut parts = std::str::from_utf8(bytes).unwrap().split(' ');
    let pool = parts.next().unwrap();
    (pool, parts.next().unwrap().parse().unwrap())
}

impl Link {
    /// Acts as the shell of the control plane.
    pub(super) fn send_piece(&mut self, world: &World, digest: Digest, offset: u64, bytes: u32) {
        let newest = world.image(&name("main")).map(|id| &world.bytes[&id]);
        if newest.is_none_or(|bytes| image_of(bytes).1 != digest) {
            return self.control.image_unavailable(&digest).unwrap();
        }
        let file = &world.images[&digest];
        let total = (offset + u64::from(bytes)).min(file.len() as u64);
        let header = Header {
            digest,
            offset,
            total,
        };
        let piece = file[offset as usize..total as usize].to_vec();
        self.pieces.push((header, piece));
    }

    /// Acts as the shell of the node: it keeps the bytes of a piece, even of a cut one, and
    /// requests the next.
    pub(super) fn fetch_image(&mut self, vault: &mut Vault, dice: &mut Dice) -> bool {
        let mut moved = !self.pieces.is_empty();
        if dice.roll(3) == 0
            && let Some((header, mut piece)) = self.pieces.pop()
        {
            assert_eq!(self.node.expects(&header), Some(Expected::ImagePiece));
            self.node.image_piece_done();
            self.control.image_piece_done();
            piece.truncate(dice.roll(1 + piece.len() as u64 * 2) as usize);
            if let Some((digest, part)) = &mut vault.image
                && *digest == header.digest
            {
                assert_eq!(part.len() as u64, header.offset);
                part.extend(piece);
            }
        }
        if let Some((digest, part)) = &vault.image
            && Digest::of(part) != *digest
            && !self.node.is_fetching_image()
            && self.is_worth_asking(digest)
        {
            let bytes = 1 + dice.roll(1500) as u32;
            let offset = part.len() as u64;
            self.node.fetch_image(*digest, offset, bytes).unwrap();
            moved = true;
        }
        moved
    }

    /// A shell pauses before it requests an unavailable image again; here until another image was
    /// accepted, or until the next connection.
    fn is_worth_asking(&self, digest: &Digest) -> bool {
        self.unavailable != Some(*digest)
    }
}
