//! Listening sockets: the gateway opens them, launch holds them, and each gateway that is started gets those that are still
//! wanted. So a caller that comes while there is no gateway waits in a socket's queue.
//!
//! A socket is known by the address that the kernel says. The gateway is not believed: callers may have taken it over.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use casemate_sandbox::launch::{Command, NotAListener, listener_address};
use casemate_wire::control::gateway::{Start, ToGateway};

use super::Shell;

/// See the module.
#[derive(Debug)]
pub(crate) struct Sockets {
    /// What the configuration names, in the order in which the gateway is told.
    wanted: Vec<SocketAddr>,
    /// At the place of each, what launch holds for it.
    held: Vec<Option<Held>>,
    next_id: u64,
}

#[derive(Debug)]
struct Held {
    id: u64,
    socket: OwnedFd,
}

/// Why a socket that the gateway sent is not kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotWanted {
    #[error("expected a place below {places}, got {place}")]
    Place { place: u32, places: usize },
    #[error("{0}")]
    NotAListener(#[from] NotAListener),
    #[error("expected a socket for {wanted}, got one for {got}")]
    Address { wanted: SocketAddr, got: SocketAddr },
}

impl Sockets {
    /// None yet, of those that the gateway is to listen on.
    pub(crate) fn new(start: &Start) -> Self {
        let listeners = start.listeners.iter().map(|listener| &listener.address);
        let addresses = listeners.chain(&start.health);
        // Written by `Config::read` from addresses.
        let parsed = addresses.map(|text| text.parse().expect("an address was written"));
        let wanted: Vec<SocketAddr> = parsed.collect();
        let held = wanted.iter().map(|_| None).collect();
        Self {
            wanted,
            held,
            next_id: 1,
        }
    }

    /// Takes over what launch holds, in its order. The numbers of those that are not wanted: launch is to close them, or
    /// their addresses could not be used otherwise.
    pub(crate) fn adopt(&mut self, found: Vec<(u64, OwnedFd)>) -> Vec<u64> {
        let mut left = Vec::new();
        let mut unwanted = Vec::new();
        for (id, socket) in found {
            self.next_id = self.next_id.max(id.saturating_add(1));
            match listener_address(&socket) {
                Ok(address) => left.push((address, Held { id, socket })),
                Err(_) => unwanted.push(id),
            }
        }
        // An address with a port first: one without takes any that is left.
        for any_port in [false, true] {
            for (wanted, place) in self.wanted.iter().zip(&mut self.held) {
                if place.is_none()
                    && (wanted.port() == 0) == any_port
                    && let Some(at) = left.iter().position(|(got, _)| is_for(*got, *wanted))
                {
                    *place = Some(left.remove(at).1);
                }
            }
        }
        unwanted.extend(left.iter().map(|(_, held)| held.id));
        unwanted
    }

    /// What a gateway that starts gets: places, and a copy of the socket of each. Also the numbers of sockets that do not
    /// listen any more, which launch is to close.
    pub(crate) fn offer(&mut self) -> (Vec<(u32, OwnedFd)>, Vec<u64>) {
        let mut offered = Vec::new();
        let mut broken = Vec::new();
        for (number, place) in (0..).zip(&mut self.held) {
            let Some(held) = place else { continue };
            match (listener_address(&held.socket), held.socket.try_clone()) {
                (Ok(_), Ok(copy)) => offered.push((number, copy)),
                // Shut down, or nobody can use it: the gateway opens another one.
                _ => {
                    broken.push(held.id);
                    *place = None;
                }
            }
        }
        (offered, broken)
    }

    /// Takes a socket that the gateway listens on. Its number with launch, which is to hold it, and a copy for launch;
    /// nothing where one is held already.
    pub(crate) fn take(
        &mut self,
        number: u32,
        socket: OwnedFd,
    ) -> Result<Option<(u64, &OwnedFd)>, NotWanted> {
        let place = number as usize;
        let (Some(wanted), Some(held)) = (self.wanted.get(place), self.held.get_mut(place)) else {
            let places = self.wanted.len();
            return Err(NotWanted::Place {
                place: number,
                places,
            });
        };
        if held.is_some() {
            return Ok(None);
        }
        let got = listener_address(&socket)?;
        if !is_for(got, *wanted) {
            let wanted = *wanted;
            return Err(NotWanted::Address { wanted, got });
        }
        let id = self.next_id;
        self.next_id += 1;
        let held = held.insert(Held { id, socket });
        Ok(Some((id, &held.socket)))
    }
}

impl Shell {
    /// Takes over the listening sockets that launch holds.
    pub(super) async fn adopt_sockets(&mut self, sockets: u32) -> io::Result<()> {
        let mut held = Vec::new();
        for _ in 0..sockets {
            held.push(self.children.held().await?);
        }
        let unwanted = self.sockets.adopt(held);
        tracing::debug!(
            sockets,
            unwanted = unwanted.len(),
            "listening sockets taken over"
        );
        self.release(unwanted)
    }

    /// Has launch close sockets.
    fn release(&self, ids: Vec<u64>) -> io::Result<()> {
        for id in ids {
            let release = Command::Release { id };
            self.children.command(release).map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// A gateway has started: it gets the sockets that are there, and opens the others.
    pub(super) fn start_gateway(&mut self) -> io::Result<()> {
        let (offered, broken) = self.sockets.offer();
        // First, so that their addresses are free.
        self.release(broken)?;
        for (place, socket) in offered {
            let message = ToGateway::Socket { place };
            self.children.gateway(self.gateway, message, vec![socket]);
        }
        self.tell_gateway(ToGateway::Start(self.config.gateway.clone()));
        Ok(())
    }

    /// The gateway listens on a socket: launch is to hold it.
    pub(super) fn hold_socket(&mut self, place: u32, socket: Option<OwnedFd>) -> io::Result<()> {
        let Some(socket) = socket else {
            tracing::error!(
                place,
                "the gateway sent a socket without its descriptor; ignored"
            );
            return Ok(());
        };
        match self.sockets.take(place, socket) {
            Ok(Some((id, socket))) => {
                let held = self.children.hold(id, socket.try_clone()?);
                held.map_err(io::Error::other)?;
            }
            Ok(None) => {}
            Err(error) => tracing::error!(%error, "a socket of the gateway is not kept"),
        }
        Ok(())
    }
}

/// Whether a socket with this address is what the configuration wants; port 0 is any.
fn is_for(mut got: SocketAddr, wanted: SocketAddr) -> bool {
    if wanted.port() == 0 {
        got.set_port(0);
    }
    got == wanted
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use casemate_wire::control::gateway::{Listener, Shares};

    use super::*;

    fn start(listeners: &[String], health: &[String]) -> Start {
        let listener = |address: &String| Listener {
            address: address.clone(),
            tls: false,
        };
        Start {
            listeners: listeners.iter().map(listener).collect(),
            health: health.to_vec(),
            load_wait_ms: 0,
            certificates: Vec::new(),
            max_connections: 1,
            header_timeout_ms: 1,
            idle_timeout_ms: 1,
            shares: Shares {
                connections_per_network: 1,
                network_prefix_v4: 24,
                network_prefix_v6: 56,
                requests: 1,
                requests_per_tenant: 1,
            },
        }
    }

    fn listen() -> (OwnedFd, String) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        (listener.into(), address)
    }

    fn places(offered: &[(u32, OwnedFd)]) -> Vec<(u32, String)> {
        let place = |(number, socket): &(u32, OwnedFd)| {
            (*number, listener_address(socket).unwrap().to_string())
        };
        offered.iter().map(place).collect()
    }

    #[test]
    fn what_is_still_wanted_goes_to_its_place_and_the_rest_is_closed() {
        let ((first, a), (second, b), (third, c)) = (listen(), listen(), listen());
        let null: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
        // The first one is not wanted by its port, and is not left to the address without one either: that takes the third.
        let any = "127.0.0.1:0".to_owned();
        let other = "127.0.0.2:0".to_owned();
        let mut sockets = Sockets::new(&start(&[any, b.clone(), other], std::slice::from_ref(&a)));
        let found = vec![(9, first), (2, null), (4, second), (7, third)];
        assert_eq!(sockets.adopt(found), [2]);
        let (offered, broken) = sockets.offer();
        assert_eq!(places(&offered), [(0, c.clone()), (1, b), (3, a)]);
        assert_eq!(broken, [0; 0]);
        // Another configuration.
        let mut sockets = Sockets::new(&start(&[c], &[]));
        let found = offered.into_iter().map(|(id, socket)| (id.into(), socket));
        assert_eq!(sockets.adopt(found.collect()), [1, 3]);
        assert_eq!(sockets.offer().0.len(), 1);
    }

    #[test]
    fn a_gateway_gives_each_socket_once_and_no_other_one() {
        let any = "127.0.0.1:0".to_owned();
        let any = std::slice::from_ref(&any);
        let mut sockets = Sockets::new(&start(any, any));
        sockets.adopt(vec![(4, listen().0)]);
        assert!(sockets.take(0, listen().0).unwrap().is_none(), "held");
        let (socket, _) = listen();
        assert_eq!(sockets.take(1, socket).unwrap().unwrap().0, 5);
        assert!(sockets.take(1, listen().0).unwrap().is_none());
        let refused = sockets.take(2, listen().0).unwrap_err();
        assert!(matches!(refused, NotWanted::Place { place: 2, .. }));

        let mut sockets = Sockets::new(&start(&["127.0.0.2:0".into()], &[]));
        let refused = sockets.take(0, listen().0).unwrap_err();
        assert!(matches!(refused, NotWanted::Address { .. }), "{refused}");
        let null: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
        let refused = sockets.take(0, null).unwrap_err();
        assert!(matches!(refused, NotWanted::NotAListener(_)), "{refused}");
        assert!(sockets.offer().0.is_empty());
    }

    #[test]
    fn a_socket_that_a_gateway_has_shut_down_goes_to_no_other_gateway() {
        let mut sockets = Sockets::new(&start(&["127.0.0.1:0".into()], &[]));
        let (socket, _) = listen();
        let taken_over = socket.try_clone().unwrap();
        let (id, _) = sockets.take(0, socket).unwrap().unwrap();
        rustix::net::shutdown(&taken_over, rustix::net::Shutdown::Both).unwrap();
        let (offered, broken) = sockets.offer();
        assert_eq!((offered.len(), broken), (0, vec![id]));
        assert!(sockets.take(0, listen().0).unwrap().is_some());
    }
}
