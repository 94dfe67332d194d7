//! A DHCPv4 client (RFC 2131) without a socket or a clock: packets and times go in, packets and
//! leases come out.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use dhcproto::Encodable as _;
use dhcproto::v4::{DhcpOption, Flags, Message, MessageType, OptionCode};

/// Milliseconds of a clock that does not jump.
pub(super) type Millis = u64;

/// Pause between the first try and the second; it doubles with each try. RFC 2131, 4.1, begins with
/// 4 s, which is too long for a starting node.
const FIRST_RETRY_MS: Millis = 500;
const LONGEST_RETRY_MS: Millis = 32_000;
/// Unanswered requests after which the client begins anew.
const REQUESTS: u32 = 4;
/// A shorter lease would make the client renew without a pause.
const SHORTEST_LEASE_SECS: u32 = 60;
/// Most servers of each kind that are kept.
const MAX_SERVERS: usize = 4;

/// Values of an answer: its kind, and the magic number in front of its options.
const REPLY: u8 = 2;
const COOKIE_OFFSET: usize = 236;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
const OPTIONS_OFFSET: usize = COOKIE_OFFSET + COOKIE.len();
const PAD: u8 = 0;
const END: u8 = 255;

/// A lease from a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) address: Ipv4Addr,
    pub(super) prefix: u8,
    pub(super) gateway: Option<Ipv4Addr>,
    pub(super) nameservers: Vec<Ipv4Addr>,
    pub(super) time_servers: Vec<Ipv4Addr>,
    server: Ipv4Addr,
    seconds: u32,
}

impl Lease {
    /// Whether both leases give the machine the same place in the network, whatever their server
    /// and duration.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        let place = |lease: &Self| (lease.address, lease.prefix, lease.gateway);
        place(self) == place(other)
            && self.nameservers == other.nameservers
            && self.time_servers == other.time_servers
    }
}

/// An effect that the caller carries out.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Broadcast this packet.
    Send(Vec<u8>),
    /// The address is ours, or stays ours.
    Bound(Lease),
    /// The address is no longer ours.
    Lost,
}

#[derive(Debug)]
enum State {
    Selecting,
    Requesting(Lease),
    Bound { lease: Lease, until: Millis },
}

/// A DHCPv4 client as a state machine: the caller feeds [`Client::tick`] and [`Client::receive`]
/// and carries out the effects that they return.
#[derive(Debug)]
pub(super) struct Client {
    hardware: [u8; 6],
    transaction: u32,
    state: State,
    tries: u32,
    /// When the next message is due.
    next: Millis,
}

impl Client {
    /// Makes a client. `transaction` is random, so that only a machine that sees our packets can
    /// answer them.
    pub(super) fn new(hardware: [u8; 6], transaction: u32, now: Millis) -> Self {
        Self {
            hardware,
            transaction,
            state: State::Selecting,
            tries: 0,
            next: now,
        }
    }

    /// When [`Client::tick`] is due.
    pub(super) fn next(&self) -> Millis {
        self.next
    }

    /// Advances the time.
    pub(super) fn tick(&mut self, now: Millis) -> Vec<Effect> {
        if now < self.next {
            return Vec::new();
        }
        let mut effects = Vec::new();
        match &self.state {
            State::Requesting(_) if self.tries >= REQUESTS => self.begin(now),
            State::Bound { until, .. } if now >= *until => {
                effects.push(Effect::Lost);
                self.begin(now);
            }
            _ => {}
        }
        effects.push(Effect::Send(self.message()));
        self.tries += 1;
        let pause = FIRST_RETRY_MS << self.tries.saturating_sub(1).min(16);
        let mut next = now + pause.min(LONGEST_RETRY_MS);
        if let State::Bound { until, .. } = &self.state {
            next = next.min(*until);
        }
        self.next = next;
        effects
    }

    /// Takes a packet.
    pub(super) fn receive(&mut self, packet: &[u8], now: Millis) -> Vec<Effect> {
        let Some((kind, lease)) = self.read(packet) else {
            return Vec::new();
        };
        // An answer counts only after a request; while a lease is valid, none is open.
        let was_asked = self.tries > 0;
        match (&self.state, kind) {
            (State::Selecting, MessageType::Offer) => {
                self.state = State::Requesting(lease);
                (self.tries, self.next) = (0, now);
                self.tick(now)
            }
            (State::Requesting(asked), MessageType::Ack)
                if asked.address == lease.address && asked.server == lease.server =>
            {
                self.bind(lease, now)
            }
            // Any server that knows the lease may renew it: the original server may be gone.
            (State::Bound { lease: held, .. }, MessageType::Ack)
                if was_asked && held.address == lease.address =>
            {
                self.bind(lease, now)
            }
            (State::Requesting(asked), MessageType::Nak) if asked.server == lease.server => {
                self.begin(now);
                Vec::new()
            }
            (State::Bound { lease: held, .. }, MessageType::Nak)
                if was_asked && held.server == lease.server =>
            {
                self.begin(now);
                vec![Effect::Lost]
            }
            _ => Vec::new(),
        }
    }

    fn bind(&mut self, lease: Lease, now: Millis) -> Vec<Effect> {
        let seconds = Millis::from(lease.seconds);
        // Half of the lease's time, after which the client renews it (T1), with a new transaction
        // number.
        (self.tries, self.next) = (0, now + seconds * 500);
        self.transaction = self.transaction.wrapping_add(1);
        self.state = State::Bound {
            lease: lease.clone(),
            until: now + seconds * 1000,
        };
        vec![Effect::Bound(lease)]
    }

    fn begin(&mut self, now: Millis) {
        self.state = State::Selecting;
        self.transaction = self.transaction.wrapping_add(1);
        (self.tries, self.next) = (0, now);
    }

    /// The message to send in this state.
    fn message(&self) -> Vec<u8> {
        let none = Ipv4Addr::UNSPECIFIED;
        let ours = match &self.state {
            State::Bound { lease, .. } => lease.address,
            _ => none,
        };
        let mut message =
            Message::new_with_id(self.transaction, ours, none, none, none, &self.hardware);
        // Before it has an address, the client can be answered only by broadcast.
        message.set_flags(Flags::default().set_broadcast());
        let options = message.opts_mut();
        match &self.state {
            State::Selecting => {
                options.insert(DhcpOption::MessageType(MessageType::Discover));
            }
            State::Requesting(offer) => {
                options.insert(DhcpOption::MessageType(MessageType::Request));
                options.insert(DhcpOption::RequestedIpAddress(offer.address));
                options.insert(DhcpOption::ServerIdentifier(offer.server));
            }
            // To all servers: the original server may be gone.
            State::Bound { .. } => {
                options.insert(DhcpOption::MessageType(MessageType::Request));
            }
        }
        options.insert(DhcpOption::ParameterRequestList(vec![
            OptionCode::SubnetMask,
            OptionCode::Router,
            OptionCode::DomainNameServer,
            OptionCode::NtpServers,
            OptionCode::AddressLeaseTime,
        ]));
        message.to_vec().expect("plain data has an encoding")
    }

    /// Parses an answer to this client; an answer to another client is ignored.
    fn read(&self, packet: &[u8]) -> Option<(MessageType, Lease)> {
        let answer = Answer::read(packet)?;
        if answer.transaction != self.transaction || answer.hardware != self.hardware {
            return None;
        }
        let kind = MessageType::from(*answer.option(OptionCode::MessageType)?.first()?);
        let addresses = |code| answer.addresses(code);
        let seconds = answer.option(OptionCode::AddressLeaseTime);
        let seconds = seconds.and_then(|bytes| Some(u32::from_be_bytes(bytes.try_into().ok()?)));
        let lease = Lease {
            address: answer.address,
            prefix: match addresses(OptionCode::SubnetMask).first() {
                Some(mask) => prefix(*mask)?,
                None => 32,
            },
            gateway: addresses(OptionCode::Router)
                .into_iter()
                .find(|gateway| is_host(*gateway) && *gateway != answer.address),
            nameservers: addresses(OptionCode::DomainNameServer),
            time_servers: addresses(OptionCode::NtpServers),
            server: *addresses(OptionCode::ServerIdentifier).first()?,
            seconds: seconds.unwrap_or_default().max(SHORTEST_LEASE_SECS),
        };
        let is_usable = kind == MessageType::Nak || is_host(lease.address);
        is_usable.then_some((kind, lease))
    }
}

/// The relevant parts of an answer (RFC 2131, 2; RFC 2132). The library that encodes our packets is
/// not used to decode, because its reader asserts lengths that a hostile server controls.
struct Answer<'a> {
    transaction: u32,
    address: Ipv4Addr,
    hardware: [u8; 6],
    options: BTreeMap<u8, &'a [u8]>,
}

impl<'a> Answer<'a> {
    fn read(packet: &'a [u8]) -> Option<Self> {
        let fixed = packet.get(..OPTIONS_OFFSET)?;
        let (kind, length) = (fixed[0], fixed[2]);
        if kind != REPLY || length != 6 || fixed[COOKIE_OFFSET..] != COOKIE {
            return None;
        }
        let four = |at: usize| <[u8; 4]>::try_from(&fixed[at..at + 4]).ok();
        let mut options = BTreeMap::new();
        let mut rest = &packet[OPTIONS_OFFSET..];
        while let [code, tail @ ..] = rest {
            rest = match (*code, tail) {
                (PAD, _) => tail,
                (END, _) | (_, []) => break,
                (code, [length, tail @ ..]) => {
                    let (value, tail) = tail.split_at_checked(usize::from(*length))?;
                    options.entry(code).or_insert(value);
                    tail
                }
            };
        }
        Some(Self {
            transaction: u32::from_be_bytes(four(4)?),
            address: Ipv4Addr::from(four(16)?),
            hardware: fixed[28..34].try_into().ok()?,
            options,
        })
    }

    fn option(&self, code: OptionCode) -> Option<&'a [u8]> {
        self.options.get(&u8::from(code)).copied()
    }

    /// The first few addresses of a list option.
    fn addresses(&self, code: OptionCode) -> Vec<Ipv4Addr> {
        let bytes = self.option(code).unwrap_or_default();
        let (addresses, _) = bytes.as_chunks::<4>();
        addresses
            .iter()
            .take(MAX_SERVERS)
            .map(|bytes| Ipv4Addr::from(*bytes))
            .collect()
    }
}

/// Whether an address can belong to a host.
fn is_host(address: Ipv4Addr) -> bool {
    !(address.is_unspecified()
        || address.is_broadcast()
        || address.is_multicast()
        || address.is_loopback())
}

/// The length of a mask, if its ones all come first.
fn prefix(mask: Ipv4Addr) -> Option<u8> {
    let bits = mask.to_bits();
    let length = bits.leading_ones();
    (bits.count_ones() == length).then(|| u8::try_from(length).unwrap_or(32))
}

#[cfg(test)]
mod tests {
    use dhcproto::v4::Opcode;
    use dhcproto::{Decodable as _, Decoder};

    use super::*;

    const HARDWARE: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];

    /// Builds a server's answer.
    fn answer(to: &[u8], kind: MessageType, edit: impl FnOnce(&mut Message)) -> Vec<u8> {
        let asked = Message::decode(&mut Decoder::new(to)).unwrap();
        let mut message = Message::default();
        message
            .set_opcode(Opcode::BootReply)
            .set_xid(asked.xid())
            .set_chaddr(&HARDWARE)
            .set_yiaddr(Ipv4Addr::new(192, 0, 2, 7));
        let options = message.opts_mut();
        options.insert(DhcpOption::MessageType(kind));
        options.insert(DhcpOption::ServerIdentifier(Ipv4Addr::new(192, 0, 2, 1)));
        options.insert(DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0)));
        options.insert(DhcpOption::Router(vec![Ipv4Addr::new(192, 0, 2, 1)]));
        options.insert(DhcpOption::DomainNameServer(vec![
            Ipv4Addr::new(
                192, 0, 2, 3
            );
            9
        ]));
        options.insert(DhcpOption::AddressLeaseTime(1000));
        edit(&mut message);
        message.to_vec().unwrap()
    }

    fn sent(effects: &[Effect]) -> Vec<u8> {
        match effects {
            [.., Effect::Send(packet)] => packet.clone(),
            other => panic!("{other:?}"),
        }
    }

    fn kind(packet: &[u8]) -> MessageType {
        let message = Message::decode(&mut Decoder::new(packet)).unwrap();
        message.opts().msg_type().unwrap()
    }

    fn bound() -> Client {
        let mut client = Client::new(HARDWARE, 1, 0);
        let discover = sent(&client.tick(0));
        assert_eq!(kind(&discover), MessageType::Discover);
        let request = sent(&client.receive(&answer(&discover, MessageType::Offer, |_| ()), 10));
        assert_eq!(kind(&request), MessageType::Request);
        let effects = client.receive(&answer(&request, MessageType::Ack, |_| ()), 20);
        let [Effect::Bound(lease)] = &effects[..] else {
            panic!("{effects:?}");
        };
        assert_eq!(
            (lease.address, lease.prefix),
            (Ipv4Addr::new(192, 0, 2, 7), 24)
        );
        assert_eq!(lease.gateway, Some(Ipv4Addr::new(192, 0, 2, 1)));
        assert_eq!(lease.nameservers.len(), MAX_SERVERS);
        client
    }

    #[test]
    fn a_lease_is_kept_by_asking_at_half_of_it() {
        let mut client = bound();
        assert_eq!(client.next(), 20 + 500_000);
        assert_eq!(client.tick(20 + 499_999), []);
        let request = sent(&client.tick(20 + 500_000));
        let asked = Message::decode(&mut Decoder::new(&request)).unwrap();
        assert_eq!(asked.ciaddr(), Ipv4Addr::new(192, 0, 2, 7));
        let effects = client.receive(&answer(&request, MessageType::Ack, |_| ()), 520_000);
        assert!(matches!(effects[..], [Effect::Bound(_)]));
        assert_eq!(client.next(), 520_000 + 500_000);
    }

    #[test]
    fn a_lease_that_nobody_renews_ends_in_time() {
        let mut client = bound();
        let mut now = 0;
        loop {
            now = client.next().max(now);
            let effects = client.tick(now);
            if effects.contains(&Effect::Lost) {
                assert_eq!(kind(&sent(&effects)), MessageType::Discover);
                break;
            }
            assert!(now < 2_000_000);
        }
        assert_eq!(now, 20 + 1_000_000);
    }

    #[test]
    fn no_answer_is_asked_for_again_ever_more_slowly() {
        let mut client = Client::new(HARDWARE, 1, 0);
        let mut pauses = Vec::new();
        let mut now = 0;
        for _ in 0..9 {
            sent(&client.tick(now));
            pauses.push(client.next() - now);
            now = client.next();
        }
        assert_eq!(
            pauses,
            [500, 1000, 2000, 4000, 8000, 16_000, 32_000, 32_000, 32_000]
        );
    }

    #[test]
    fn what_is_not_for_us_or_no_address_is_not_taken() {
        let edits: [fn(&mut Message); 7] = [
            |message| {
                message.set_xid(9);
            },
            |message| {
                message.set_chaddr(&[9; 6]);
            },
            |message| {
                message.set_opcode(Opcode::BootRequest);
            },
            |message| {
                message.set_yiaddr(Ipv4Addr::UNSPECIFIED);
            },
            |message| {
                message.set_yiaddr(Ipv4Addr::new(224, 0, 0, 1));
            },
            |message| drop(message.opts_mut().remove(OptionCode::ServerIdentifier)),
            |message| {
                let odd = DhcpOption::SubnetMask(Ipv4Addr::new(255, 0, 255, 0));
                message.opts_mut().insert(odd);
            },
        ];
        for (number, edit) in edits.into_iter().enumerate() {
            let mut client = Client::new(HARDWARE, 1, 0);
            let discover = sent(&client.tick(0));
            let effects = client.receive(&answer(&discover, MessageType::Offer, edit), 1);
            assert_eq!(effects, [], "{number}");
        }
    }

    #[test]
    fn a_lease_that_is_well_is_nobodys_business() {
        let mut client = bound();
        // The number, address and server are right, but there was no request.
        let request = client.message();
        for kind in [MessageType::Ack, MessageType::Nak] {
            assert_eq!(client.receive(&answer(&request, kind, |_| ()), 1000), []);
        }
        let other = Client::new(HARDWARE, 1, 0).message();
        let mut client = Client::new(HARDWARE, 1, 0);
        client.tick(0);
        client.receive(&answer(&other, MessageType::Offer, |_| ()), 1);
        let foreign = answer(&other, MessageType::Ack, |message| {
            let server = DhcpOption::ServerIdentifier(Ipv4Addr::new(192, 0, 2, 66));
            message.opts_mut().insert(server);
        });
        assert_eq!(client.receive(&foreign, 2), []);
    }

    #[test]
    fn a_gateway_is_another_machine() {
        for (odd, gateway) in [
            (Ipv4Addr::new(224, 0, 0, 1), None),
            (Ipv4Addr::new(192, 0, 2, 7), None),
            (
                Ipv4Addr::new(192, 0, 2, 9),
                Some(Ipv4Addr::new(192, 0, 2, 9)),
            ),
        ] {
            let mut client = Client::new(HARDWARE, 1, 0);
            let discover = sent(&client.tick(0));
            let offer = answer(&discover, MessageType::Offer, |message| {
                message.opts_mut().insert(DhcpOption::Router(vec![odd]));
            });
            client.receive(&offer, 1);
            let State::Requesting(lease) = &client.state else {
                panic!("{client:?}");
            };
            assert_eq!(lease.gateway, gateway);
        }
    }

    #[test]
    fn lengths_are_the_senders_word() {
        let mut client = Client::new(HARDWARE, 1, 0);
        let offer = answer(&sent(&client.tick(0)), MessageType::Offer, |_| ());
        for length in [0, 5, 7, 17, 255] {
            let mut odd = offer.clone();
            odd[2] = length;
            assert_eq!(client.receive(&odd, 1), [], "{length}");
        }
        for cut in 0..offer.len() {
            let _ = Answer::read(&offer[..cut]);
        }
        let mut odd = offer;
        odd.truncate(OPTIONS_OFFSET);
        odd.extend([53, 1, 2, 54, 4, 192, 0, 2, 1, 1, 200, 255]);
        assert_eq!(client.receive(&odd, 1), []);
    }

    #[test]
    fn a_refusal_by_our_server_begins_anew_and_by_another_does_not() {
        let mut client = bound();
        let request = sent(&client.tick(client.next()));
        let other = answer(&request, MessageType::Nak, |message| {
            let other = DhcpOption::ServerIdentifier(Ipv4Addr::new(192, 0, 2, 99));
            message.opts_mut().insert(other);
        });
        assert_eq!(client.receive(&other, 600_000), []);
        let ours = answer(&request, MessageType::Nak, |_| ());
        assert_eq!(client.receive(&ours, 600_000), [Effect::Lost]);
        assert_eq!(kind(&sent(&client.tick(600_000))), MessageType::Discover);
    }

    proptest::proptest! {
        #[test]
        fn no_packet_does_harm(packet in proptest::collection::vec(proptest::num::u8::ANY, 0..400), at in 0_usize..300, to: u8) {
            let mut client = Client::new(HARDWARE, 1, 0);
            let mut offer = answer(&sent(&client.tick(0)), MessageType::Offer, |_| ());
            client.receive(&packet, 1);
            let at = at % offer.len();
            offer[at] = to;
            client.receive(&offer, 2);
            client.tick(1_000_000);
        }
    }
}
