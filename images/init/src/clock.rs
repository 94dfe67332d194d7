//! The clock: never before the image was made, and set by SNTP (RFC 4330) when a server answers.
//! The start of the node does not wait for an answer.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, Timespec, clock_settime};
use sntpc::{NtpContext, StdTimestampGen};
use sntpc_net_tokio::UdpSocketWrapper;
use tokio::net::UdpSocket;

const PORT: u16 = 123;
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Pause between two requests while no server has answered.
pub(crate) const RETRY: Duration = Duration::from_secs(30);
/// Pause between two requests after an answer.
pub(crate) const AGAIN: Duration = Duration::from_secs(60 * 60);
/// A smaller difference is not corrected.
const WORTH_SETTING: Duration = Duration::from_millis(500);

/// Moves a clock that is behind to `floor`, Unix seconds.
pub(crate) fn not_before(floor: u64) {
    if now() < Duration::from_secs(floor) {
        // A clock that cannot be set stays wrong; refusals of expired statements then name both
        // times.
        let _ = set(Duration::from_secs(floor));
    }
}

/// Sends a request to the servers one after the other, and sets the clock by the first answer.
pub(crate) async fn ask(servers: &[String], floor: u64) -> Result<(), String> {
    let mut why = "no time server is known".to_owned();
    for server in servers {
        match one(server, floor).await {
            Ok(()) => return Ok(()),
            Err(error) => why = format!("the time server {server} {error}"),
        }
    }
    Err(why)
}

async fn one(server: &str, floor: u64) -> Result<(), String> {
    let has_port = |(_, port): (&str, &str)| port.parse::<u16>().is_ok();
    let address = match server.parse::<IpAddr>() {
        Ok(address) => SocketAddr::new(address, PORT).to_string(),
        Err(_) if server.rsplit_once(':').is_some_and(has_port) => server.to_owned(),
        Err(_) => format!("{server}:{PORT}"),
    };
    let mut found = tokio::net::lookup_host(address)
        .await
        .map_err(|error| format!("has no address: {error}"))?;
    let address = found.next().ok_or("has no address")?;
    let local: SocketAddr = if address.is_ipv4() {
        ([0; 4], 0).into()
    } else {
        ([0_u16; 8], 0).into()
    };
    let socket = UdpSocket::bind(local)
        .await
        .map_err(|error| error.to_string())?;
    let socket = UdpSocketWrapper::from(socket);
    let context = NtpContext::new(StdTimestampGen::default());
    let asked = tokio::time::timeout(ANSWER_WITHIN, sntpc::get_time(address, &socket, context));
    let answer = asked
        .await
        .map_err(|_| "does not answer")?
        .map_err(|error| format!("sent a malformed answer: {error:?}"))?;
    let offset = answer.offset();
    let right = now().as_micros() as i64 + offset;
    let right = u64::try_from(right)
        .map(Duration::from_micros)
        .unwrap_or_default();
    if right < Duration::from_secs(floor) {
        return Err("gave a time before this image was made".to_owned());
    }
    if offset.unsigned_abs() > WORTH_SETTING.as_micros() as u64 {
        set(right)
            .map_err(|error| format!("gave a time to which the clock cannot be set: {error}"))?;
    }
    Ok(())
}

fn now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

fn set(time: Duration) -> std::io::Result<()> {
    let time = Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: time.subsec_nanos().into(),
    };
    Ok(clock_settime(ClockId::Realtime, time)?)
}
