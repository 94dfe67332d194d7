//! The connection between both ends: bytes that move a few at a time.

use super::*;

/// What the simulated vault may refuse a statement for.
const REFUSALS: [&str; 6] = [
    "other",
    "lower",
    "again",
    "gap",
    "objects_missing",
    "unknown tenant",
];

/// The next frame, with objects read as requested.
pub(crate) fn next_frame(control: &mut ControlEnd, world: &World) -> Option<Vec<u8>> {
    loop {
        match control.poll_transmit(world)? {
            Transmit::Frame(frame) => return Some(frame),
            Transmit::Load { digest, .. } => {
                let object = |bytes: &Vec<u8>| StoredObject {
                    kind: ObjectKind::Release,
                    bytes: bytes.clone(),
                };
                control.loaded(world.objects.get(&digest).map(object));
            }
        }
    }
}

pub(crate) struct Link {
    pub(crate) node: NodeEnd,
    pub(crate) control: ControlEnd,
    pub(crate) to_node: Vec<u8>,
    pub(crate) to_control: Vec<u8>,
    pub(crate) unjudged: Vec<(StatementId, Vec<u8>)>,
    /// Pieces of images on their streams.
    pub(crate) pieces: Vec<(Header, Vec<u8>)>,
    /// The image that the control plane reported as unavailable.
    pub(crate) unavailable: Option<Digest>,
    /// Bundles on their streams.
    pub(crate) streams: Vec<(Header, Vec<u8>)>,
    /// Streams whose end the control plane has not noticed yet.
    pub(crate) ended: usize,
}

impl Link {
    pub(crate) fn new(vault: &Vault) -> Self {
        Self {
            node: NodeEnd::member(vault.hello()),
            control: ControlEnd::member(member(), VERSIONS.newest),
            to_node: Vec::new(),
            to_control: Vec::new(),
            unjudged: Vec::new(),
            pieces: Vec::new(),
            unavailable: None,
            streams: Vec::new(),
            ended: 0,
        }
    }

    /// Moves a few bytes each way, and lets the vault judge some of the waiting statements. Returns
    /// whether anything moved.
    pub(super) fn step(&mut self, world: &World, vault: &mut Vault, dice: &mut Dice) -> bool {
        while let Some(frame) = self.node.poll_transmit() {
            self.to_control.extend(frame);
        }
        if self.to_node.len() < 1 << 16
            && let Some(frame) = next_frame(&mut self.control, world)
        {
            self.to_node.extend(frame);
        }
        let mut moved = self.reach_control(world, dice);
        moved |= self.reach_node(vault, dice);
        moved |= self.fetch_image(vault, dice);
        moved |= self.answer(vault, dice);
        moved || !self.unjudged.is_empty()
    }

    /// Some bytes arrive at the control plane.
    fn reach_control(&mut self, world: &World, dice: &mut Dice) -> bool {
        let some = (dice.roll(700) as usize + 1).min(self.to_control.len());
        self.control
            .receive(&self.to_control.drain(..some).collect::<Vec<_>>())
            .unwrap();
        while let Some(event) = self.control.poll_event(world).unwrap() {
            match event {
                ControlEvent::FetchImage {
                    digest,
                    offset,
                    bytes,
                } => self.send_piece(world, digest, offset, bytes),
                ControlEvent::FetchBundle { digest, offset } => {
                    self.send_bundle(world, digest, offset);
                }
                ControlEvent::Nacked { code, .. } => {
                    assert!(REFUSALS.contains(&code.as_str()), "{code}");
                }
                _ => {}
            }
        }
        some > 0
    }

    /// Some bytes arrive at the node.
    fn reach_node(&mut self, vault: &mut Vault, dice: &mut Dice) -> bool {
        let some = (dice.roll(700) as usize + 1).min(self.to_node.len());
        self.node
            .receive(&self.to_node.drain(..some).collect::<Vec<_>>())
            .unwrap();
        while let Some(event) = self.node.poll_event().unwrap() {
            match event {
                NodeEvent::Statement { id, bytes, .. } => {
                    freshness::assert_in_order(&id, &self.unjudged);
                    self.unjudged.push((id, bytes));
                }
                NodeEvent::Object { digest, bytes, .. } => {
                    drop(vault.objects.insert(digest, bytes));
                }
                NodeEvent::ImageUnavailable { digest } => self.unavailable = Some(digest),
                NodeEvent::Synced { now } => {
                    assert!(
                        self.unjudged.is_empty(),
                        "synced before everything was answered"
                    );
                    vault.cursor = Some(now);
                }
                _ => {}
            }
        }
        some > 0
    }

    /// The vault judges some of what waits.
    fn answer(&mut self, vault: &mut Vault, dice: &mut Dice) -> bool {
        assert!(self.unjudged.len() <= MAX_UNACKED);
        let some = (dice.roll(4) as usize).min(self.unjudged.len());
        for (id, bytes) in self.unjudged.drain(..some) {
            match vault.judge(&id, &bytes) {
                Ok(()) => self.node.ack(&id).unwrap(),
                Err(code) => self.node.nack(&id, code, "").unwrap(),
            }
        }
        some > 0
    }

    pub(crate) fn settle(&mut self, world: &World, vault: &mut Vault, dice: &mut Dice) {
        let mut quiet = 0;
        while quiet < 4 {
            quiet = if self.step(world, vault, dice) {
                0
            } else {
                quiet + 1
            };
        }
    }
}
