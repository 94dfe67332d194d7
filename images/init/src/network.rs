//! Interfaces, addresses, routes and nameservers.

mod dhcp;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use dhcp::{Client, Effect, Lease, Millis};
use ipnet::{IpNet, Ipv4Net};
use ring::rand::{SecureRandom as _, SystemRandom};
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder, new_connection};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::console::Problem;
use crate::settings::{Method, Network};

const INTERFACES: &str = "/sys/class/net";
/// Hardware type of Ethernet, in the kernel's `if_arp.h`.
const ETHERNET: &str = "1";
/// Time for interfaces to appear.
const APPEAR_WITHIN: Duration = Duration::from_secs(10);
/// Pause before an interface whose DHCP client has failed is tried again.
const AGAIN: Duration = Duration::from_secs(10);
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// Base metric of a default route; the interface's index is added, so that no interface displaces
/// another one's route.
const METRIC: u32 = 100;
const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
/// Larger packets are not DHCP.
const MAX_PACKET_BYTES: usize = 2048;
/// The file in which the C library and the vault look for nameservers.
const RESOLV: &str = "/run/resolv.conf";

/// Time after which the console reports that no DHCP server answers.
const SILENT_AFTER: Duration = Duration::from_secs(15);

/// The state of the network for the rest of init.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct View {
    /// Addresses by interface.
    pub(crate) addresses: BTreeMap<String, String>,
    pub(crate) nameservers: Vec<IpAddr>,
    pub(crate) time_servers: Vec<String>,
    /// Interfaces to which no DHCP server answers.
    pub(crate) silent: BTreeSet<String>,
}

/// A change of the network.
#[derive(Debug)]
pub(crate) enum News {
    View(View),
    Problem(Problem),
}

#[derive(Debug, Clone)]
struct Interface {
    name: String,
    index: u32,
    hardware: [u8; 6],
    /// The machine has no other interface.
    is_only: bool,
}

/// Brings all interfaces up, and renews leases as long as the receiver of the news exists.
pub(crate) async fn run(network: Network, news: mpsc::Sender<News>) {
    if let Err(problem) = bring_up(&network, &news).await {
        // Nobody receives any more because the machine ends.
        let _ended = news.send(News::Problem(problem)).await;
    }
}

#[expect(clippy::too_many_lines, reason = "older than the limit")]
async fn bring_up(network: &Network, news: &mpsc::Sender<News>) -> Result<(), Problem> {
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        Problem::new(
            format!("{what}: {error}"),
            "restart; if the failure repeats, report it",
        )
    };
    let (connection, handle, _) = new_connection()
        .map_err(|error| failed("the kernel's network cannot be reached", &error))?;
    tokio::spawn(connection);
    // The loopback interface has index 1 in every network namespace.
    up(&handle, 1)
        .await
        .map_err(|error| failed("lo cannot be brought up", &error))?;
    let interfaces = interfaces(network.interface.as_deref()).await?;
    let mut base = View {
        nameservers: network.nameservers.clone(),
        time_servers: network.time_servers.clone(),
        ..View::default()
    };
    for interface in &interfaces {
        if network.method == Method::Static {
            set(interface, "ipv6", "accept_ra", "0");
            set(interface, "ipv6", "autoconf", "0");
        }
        up(&handle, interface.index)
            .await
            .map_err(|error| failed(&format!("{} cannot be brought up", interface.name), &error))?;
        let mut ours = Vec::new();
        for address in &network.addresses {
            let added = handle
                .address()
                .add(interface.index, address.addr(), address.prefix_len());
            let added = added.replace().execute().await;
            added.map_err(|error| {
                failed(&format!("the address {address} cannot be used"), &error)
            })?;
            ours.push(address.to_string());
        }
        filter_sources(interface, network.method == Method::Static);
        if !ours.is_empty() {
            base.addresses
                .insert(interface.name.clone(), ours.join(" "));
        }
    }
    for gateway in &network.gateways {
        let interface = interfaces.first().map_or(0, |interface| interface.index);
        let near = network.addresses.iter().any(|net| net.contains(gateway));
        let routed = default_route(&handle, *gateway, interface, near).await;
        routed.map_err(|error| failed(&format!("the gateway {gateway} cannot be used"), &error))?;
    }
    let (leases, mut told) = mpsc::channel(8);
    if network.method == Method::Dhcp {
        for interface in interfaces {
            tokio::spawn(keep_lease(handle.clone(), interface, leases.clone()));
        }
    }
    drop(leases);
    let mut held: BTreeMap<String, Lease> = BTreeMap::new();
    loop {
        let view = view(&base, &held);
        let written = fs::write(RESOLV, resolv(&view.nameservers));
        written.map_err(|error| failed(&format!("{RESOLV} cannot be written"), &error))?;
        if news.send(News::View(view)).await.is_err() {
            return Ok(());
        }
        match told.recv().await {
            Some((name, Ok(Some(lease)))) => {
                base.silent.remove(&name);
                held.insert(name, lease);
            }
            Some((name, Ok(None))) => {
                held.remove(&name);
                base.silent.insert(name);
            }
            Some((name, Err(why))) => {
                held.remove(&name);
                let problem = Problem::new(
                    format!("{name} cannot get an address: {why}"),
                    "init retries; if the failure repeats, give the addresses in network.toml",
                );
                if news.send(News::Problem(problem)).await.is_err() {
                    return Ok(());
                }
            }
            None => return Ok(()),
        }
    }
}

/// The named interface, or every Ethernet interface.
async fn interfaces(only: Option<&str>) -> Result<Vec<Interface>, Problem> {
    let until = Instant::now() + APPEAR_WITHIN;
    loop {
        let mut found = list().unwrap_or_default();
        found.retain(|interface| only.is_none_or(|name| name == interface.name));
        if !found.is_empty() {
            let is_only = found.len() == 1;
            let all = found.iter_mut();
            all.for_each(|interface| interface.is_only = is_only);
            return Ok(found);
        }
        if Instant::now() > until {
            let what = only.map_or("no network interface was found".to_owned(), |name| {
                format!("there is no network interface {name}")
            });
            let next = "attach an interface that the image has a driver for, or correct `interface` in network.toml";
            return Err(Problem::new(what, next));
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

fn list() -> io::Result<Vec<Interface>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(INTERFACES)? {
        let entry = entry?;
        let read = |name: &str| {
            fs::read_to_string(entry.path().join(name)).map(|text| text.trim().to_owned())
        };
        if read("type")? != ETHERNET {
            continue;
        }
        if let (Ok(index), Some(hardware)) = (read("ifindex")?.parse(), hardware(&read("address")?))
        {
            found.push(Interface {
                name: entry.file_name().to_string_lossy().into_owned(),
                index,
                hardware,
                is_only: false,
            });
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

fn hardware(text: &str) -> Option<[u8; 6]> {
    let bytes: Option<Vec<u8>> = text
        .split(':')
        .map(|part| u8::from_str_radix(part, 16).ok())
        .collect();
    bytes?.try_into().ok()
}

async fn up(handle: &Handle, index: u32) -> Result<(), rtnetlink::Error> {
    let link = LinkUnspec::new_with_index(index).up().build();
    handle.link().set(link).execute().await
}

/// `near`: the gateway is in one of our networks. Some clouds place the gateway outside, on the
/// same wire.
async fn default_route(
    handle: &Handle,
    gateway: IpAddr,
    interface: u32,
    near: bool,
) -> Result<(), rtnetlink::Error> {
    let message = match gateway {
        IpAddr::V4(gateway) => {
            let route = RouteMessageBuilder::<Ipv4Addr>::new()
                .gateway(gateway)
                .output_interface(interface)
                .priority(METRIC + interface);
            if near { route } else { route.onlink() }.build()
        }
        IpAddr::V6(gateway) => {
            let route = RouteMessageBuilder::<Ipv6Addr>::new()
                .gateway(gateway)
                .output_interface(interface)
                .priority(METRIC + interface);
            if near { route } else { route.onlink() }.build()
        }
    };
    handle.route().add(message).replace().execute().await
}

/// The view with these leases: settings of the file take precedence over a server's.
fn view(base: &View, leases: &BTreeMap<String, Lease>) -> View {
    let mut view = base.clone();
    for (name, lease) in leases {
        let address = format!("{}/{}", lease.address, lease.prefix);
        let all = view.addresses.entry(name.clone()).or_default();
        *all = format!("{all} {address}").trim_start().to_owned();
        for server in &lease.nameservers {
            let server = IpAddr::V4(*server);
            if !view.nameservers.contains(&server) {
                view.nameservers.push(server);
            }
        }
        view.time_servers
            .extend(lease.time_servers.iter().map(ToString::to_string));
    }
    view
}

fn resolv(nameservers: &[IpAddr]) -> String {
    nameservers
        .iter()
        .map(|server| format!("nameserver {server}\n"))
        .collect()
}

/// The interface, and its lease, the absence of one, or why it can have none.
type Told = (String, Result<Option<Lease>, String>);

/// Gets and renews a lease for an interface.
async fn keep_lease(handle: Handle, interface: Interface, leases: mpsc::Sender<Told>) {
    while let Err(error) = lease(&handle, &interface, &leases).await {
        let told = (interface.name.clone(), Err(error.to_string()));
        if leases.send(told).await.is_err() {
            return;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn lease(
    handle: &Handle,
    interface: &Interface,
    leases: &mpsc::Sender<Told>,
) -> io::Result<()> {
    let socket = socket(&interface.name)?;
    let start = Instant::now();
    let now = || Millis::try_from(start.elapsed().as_millis()).unwrap_or(Millis::MAX);
    let mut transaction = [0; 4];
    SystemRandom::new()
        .fill(&mut transaction)
        .map_err(|_| io::Error::other("no randomness"))?;
    let mut client = Client::new(interface.hardware, u32::from_le_bytes(transaction), now());
    let mut packet = vec![0; MAX_PACKET_BYTES];
    let mut held: Option<Lease> = None;
    let mut is_silent = false;
    let silent_at = start + SILENT_AFTER;
    loop {
        let next = start + Duration::from_millis(client.next());
        let effects = tokio::select! {
            received = socket.recv(&mut packet) => client.receive(&packet[..received?], now()),
            () = tokio::time::sleep_until(next) => client.tick(now()),
            () = tokio::time::sleep_until(silent_at), if held.is_none() && !is_silent => {
                is_silent = true;
                if leases.send((interface.name.clone(), Ok(None))).await.is_err() {
                    return Ok(());
                }
                Vec::new()
            }
        };
        for effect in effects {
            match effect {
                Effect::Send(message) => {
                    let everybody = SocketAddr::from((Ipv4Addr::BROADCAST, SERVER_PORT));
                    // A missing cable does not stop the client.
                    let _lost = socket.send_to(&message, everybody).await;
                }
                Effect::Bound(lease) => {
                    if !held.as_ref().is_some_and(|held| held.is_like(&lease)) {
                        apply(handle, interface, &lease)
                            .await
                            .map_err(io::Error::other)?;
                        let before = held.replace(lease.clone());
                        let moved = before.filter(|before| before.address != lease.address);
                        if let Some(before) = moved {
                            forget(handle, interface, before.address).await;
                        }
                        if leases
                            .send((interface.name.clone(), Ok(Some(lease))))
                            .await
                            .is_err()
                        {
                            return Ok(());
                        }
                    }
                }
                Effect::Lost => {
                    if let Some(before) = held.take() {
                        filter_sources(interface, false);
                        forget(handle, interface, before.address).await;
                        if leases
                            .send((interface.name.clone(), Ok(None)))
                            .await
                            .is_err()
                        {
                            return Ok(());
                        }
                    }
                }
            }
        }
    }
}

fn socket(interface: &str) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    socket.set_broadcast(true)?;
    socket.bind_device(Some(interface.as_bytes()))?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, CLIENT_PORT)).into())?;
    UdpSocket::from_std(socket.into())
}

async fn apply(
    handle: &Handle,
    interface: &Interface,
    lease: &Lease,
) -> Result<(), rtnetlink::Error> {
    let address = IpAddr::V4(lease.address);
    handle
        .address()
        .add(interface.index, address, lease.prefix)
        .replace()
        .execute()
        .await?;
    if let Some(gateway) = lease.gateway {
        let ours = Ipv4Net::new(lease.address, lease.prefix).map(IpNet::V4);
        let gateway = IpAddr::V4(gateway);
        let near = ours.is_ok_and(|ours| ours.contains(&gateway));
        default_route(handle, gateway, interface.index, near).await?;
    }
    filter_sources(interface, true);
    Ok(())
}

/// Sets whether a packet must arrive on the interface to which its answer would go (RFC 3704). The
/// filter is off without an address, because it would drop a server's offer of one, and with
/// several interfaces, because a caller's packets and the answers may use different ones.
fn filter_sources(interface: &Interface, on: bool) {
    let value = match (on, interface.is_only) {
        (false, _) => "0",
        (true, true) => "1",
        (true, false) => "2",
    };
    set(interface, "ipv4", "rp_filter", value);
}

/// Changes a setting of an interface. An interface that has just disappeared has none.
fn set(interface: &Interface, protocol: &str, name: &str, value: &str) {
    let path = format!("/proc/sys/net/{protocol}/conf/{}/{name}", interface.name);
    let _gone = fs::write(path, value);
}

/// Removes an address; the kernel removes its routes too.
async fn forget(handle: &Handle, interface: &Interface, address: Ipv4Addr) {
    use futures_util::TryStreamExt as _;
    let mut all = handle
        .address()
        .get()
        .set_link_index_filter(interface.index)
        .execute();
    while let Ok(Some(message)) = all.try_next().await {
        let is_it = message
            .attributes
            .contains(&AddressAttribute::Address(IpAddr::V4(address)));
        if is_it {
            // The address may have disappeared with the interface.
            let _gone = handle.address().del(message).execute().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_addresses_are_read() {
        assert_eq!(
            hardware("52:54:00:12:34:56"),
            Some([0x52, 0x54, 0, 0x12, 0x34, 0x56])
        );
        for odd in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:5g",
            "00:00:00:00:00:00:00",
        ] {
            assert_eq!(hardware(odd), None, "{odd}");
        }
    }

    #[test]
    fn the_operators_nameservers_come_first() {
        let base = View {
            nameservers: vec!["192.0.2.53".parse().unwrap()],
            ..View::default()
        };
        assert_eq!(
            resolv(&view(&base, &BTreeMap::new()).nameservers),
            "nameserver 192.0.2.53\n"
        );
    }
}
