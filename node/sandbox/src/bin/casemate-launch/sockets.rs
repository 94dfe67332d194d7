//! Listening sockets that launch holds for the gateway: they stay open while supervisor and gateway
//! are restarted, and are passed on when launch executes itself again. A service manager that keeps
//! descriptors gets a copy of each.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use casemate_sandbox::launch::{Event, NotAListener, SOCKETS_MAX, listener_address};

use crate::manager::Manager;

/// The held sockets by number, and the service manager that gets copies.
#[derive(Debug)]
pub(crate) struct Sockets {
    held: Vec<Held>,
    manager: Option<Manager>,
}

#[derive(Debug)]
struct Held {
    id: u64,
    address: SocketAddr,
    socket: OwnedFd,
}

/// Why a socket is not held.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HoldError {
    #[error("{SOCKETS_MAX} are held already")]
    TooMany,
    #[error("a socket with this number is held already")]
    Duplicate,
    #[error("{0}")]
    NotAListener(#[from] NotAListener),
}

impl Sockets {
    /// Starts with the descriptors that were passed to this process, as far as they are listening
    /// sockets.
    pub(crate) fn passed(passed: Vec<OwnedFd>, manager: Option<Manager>) -> Self {
        let mut sockets = Self {
            held: Vec::new(),
            manager,
        };
        for (id, socket) in (1..).zip(passed) {
            match sockets.admit(id, socket) {
                Ok(address) => tracing::info!(%address, "a listening socket was passed to launch"),
                Err(error) => {
                    tracing::warn!("a descriptor that was passed to launch is closed: {error}");
                }
            }
        }
        sockets
    }

    /// Holds a socket from now on.
    pub(crate) fn hold(&mut self, id: u64, socket: OwnedFd) -> Result<(), HoldError> {
        let address = self.admit(id, socket)?;
        tracing::debug!(id, %address, "holding a listening socket");
        if let (Some(manager), Some(held)) = (&self.manager, self.held.last()) {
            manager.store(address, &held.socket);
        }
        Ok(())
    }

    fn admit(&mut self, id: u64, socket: OwnedFd) -> Result<SocketAddr, HoldError> {
        if self.held.len() >= SOCKETS_MAX {
            return Err(HoldError::TooMany);
        }
        if self.held.iter().any(|held| held.id == id) {
            return Err(HoldError::Duplicate);
        }
        let address = listener_address(&socket)?;
        self.held.push(Held {
            id,
            address,
            socket,
        });
        Ok(address)
    }

    /// Closes a socket.
    pub(crate) fn release(&mut self, id: u64) {
        let Some(at) = self.held.iter().position(|held| held.id == id) else {
            return;
        };
        let Held { address, .. } = self.held.remove(at);
        tracing::info!(%address, "a listening socket is no longer wanted; closed");
        if let Some(manager) = &self.manager {
            manager.remove(address);
        }
    }

    /// Number of held sockets.
    pub(crate) fn len(&self) -> usize {
        self.held.len()
    }

    /// The events for a supervisor that starts, in the order of arrival.
    pub(crate) fn events(&self) -> impl Iterator<Item = (Event, Option<OwnedFd>)> {
        self.held.iter().filter_map(|held| {
            let copy = held.socket.try_clone().ok()?;
            Some((Event::Held { id: held.id }, Some(copy)))
        })
    }

    /// The sockets for our successor.
    pub(crate) fn into_descriptors(self) -> Vec<OwnedFd> {
        self.held.into_iter().map(|held| held.socket).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn listener() -> OwnedFd {
        TcpListener::bind("127.0.0.1:0").unwrap().into()
    }

    #[test]
    fn sockets_are_counted_and_checked_and_handed_on_in_order() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let mut sockets = Sockets::passed(vec![listener(), null.into(), listener()], None);
        assert_eq!(sockets.len(), 2);
        let ids = |sockets: &Sockets| -> Vec<Event> {
            sockets.events().map(|(event, _)| event).collect()
        };
        let held = |id| Event::Held { id };
        assert_eq!(ids(&sockets), [held(1), held(3)]);
        assert!(matches!(
            sockets.hold(3, listener()),
            Err(HoldError::Duplicate)
        ));
        sockets.hold(7, listener()).unwrap();
        sockets.release(1);
        sockets.release(1);
        assert_eq!(ids(&sockets), [held(3), held(7)]);
        for id in 100.. {
            if sockets.hold(id, listener()).is_err() {
                break;
            }
        }
        assert!(matches!(
            sockets.hold(8, listener()),
            Err(HoldError::TooMany)
        ));
        assert_eq!(sockets.into_descriptors().len(), SOCKETS_MAX);
    }
}
