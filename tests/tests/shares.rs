//! Two greedy tenants and a modest one on one node, with the real programs. The first greedy
//! tenant's functions fill their memory, the second's spin; the modest tenant has to be answered.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // Helper functions count as code outside of tests.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use casemate_tests::caller;
use casemate_tests::cli::Cli;
use casemate_tests::fleet::{Fleet, SOON};
use casemate_tests::node::{Node, Settings, Workers};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::task::block_in_place;

/// The modest tenant's function: at most a few milliseconds of work.
const MODEST: &str = r#"
export default {
  fetch(request) {
    let sum = 0;
    for (let n = 0; n < 100_000; n++) sum += n;
    return new Response(`${sum}`);
  },
};"#;
const MODEST_HOST: &str = "modest.apps.demo.test";

/// Fills most of its permitted memory, heap and buffers, touches all of it for a while, and starts
/// over.
const FILL: &str = r#"
const held = [];
let buffer;
export default {
  async fetch() {
    while (held.length < 40) held.push(new Array(131_072).fill(held.length + 0.5));
    buffer ??= new Uint8Array(56 << 20);
    for (let n = 1; n < 20; n++) {
      for (const part of held) part[n] += 1;
      buffer.fill(n);
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    return new Response("full");
  },
};"#;

/// Spins until its processor time is used up.
const SPIN: &str = "export default { fetch() { for (;;); } };";

/// The functions of the greedy tenants.
struct Attack {
    /// Number of the first tenant's functions, which fill their memory.
    filling: usize,
    /// Number of the second tenant's functions, which spin.
    spinning: usize,
    /// Ceiling of the first tenant's memory in MiB: less than its functions fill.
    ceiling_mib: u32,
    /// Number of the modest tenant's requests, once on the idle node and once under attack.
    requests: usize,
}

/// The answers that the modest tenant's callers got.
struct Pace {
    p50: Duration,
    p99: Duration,
    slowest: Duration,
}

impl std::fmt::Display for Pace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { p50, p99, slowest } = self;
        write!(f, "p50 {p50:.1?}, p99 {p99:.1?}, slowest {slowest:.1?}")
    }
}

/// Sends requests one after the other; each must be answered.
async fn pace(fleet: &Fleet, requests: usize) -> Pace {
    let mut times = Vec::with_capacity(requests);
    for number in 0..requests {
        let began = Instant::now();
        let answer = caller::get(fleet.node.gateway, MODEST_HOST, "/")
            .await
            .unwrap();
        times.push(began.elapsed());
        assert_eq!(answer.status, 200, "request {number}: {}", answer.text());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    times.sort_unstable();
    Pace {
        p50: times[requests / 2],
        p99: times[requests * 99 / 100],
        slowest: times[requests - 1],
    }
}

/// Deploys `count` functions of one tenant; returns their hosts.
fn deploy(
    fleet: &Fleet,
    tenant: &Cli,
    (name, count): (&str, usize),
    config: &str,
    source: &str,
) -> Vec<String> {
    let deploy = |number| {
        let function = format!("{name}-{number}");
        let host = format!("{function}.{name}.test");
        let project = fleet
            .small_project_at(&host, &function, config, source)
            .unwrap();
        tenant
            .ok(&project, &["deploy", "--wait", "60"], b"")
            .unwrap();
        host
    };
    (0..count).map(deploy).collect()
}

/// Number of answers that the greedy tenants' callers got, by status or code of the failure.
type Answers = Arc<Mutex<BTreeMap<String, u32>>>;

/// Calls a host repeatedly until the attack is over.
async fn besiege(gateway: SocketAddr, host: String, over: Arc<AtomicBool>, answers: Answers) {
    while !over.load(Ordering::Relaxed) {
        let kind = match caller::get(gateway, &host, "/").await {
            Ok(answer) => serde_json::from_slice::<Value>(&answer.body)
                .ok()
                .and_then(|body| Some(body["error"]["code"].as_str()?.to_owned()))
                .unwrap_or_else(|| answer.status.to_string()),
            Err(error) => format!("{error:#}"),
        };
        *answers.lock().entry(kind).or_default() += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Latencies of the modest tenant, idle and under attack.
async fn under(attack: Attack) -> (Pace, Pace) {
    let temporary = tempfile::Builder::new()
        .prefix("casemate-")
        .tempdir()
        .unwrap();
    let fleet = block_in_place(|| {
        use std::os::unix::fs::PermissionsExt as _;
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(temporary.path(), open).unwrap();
        let start = |folder: &std::path::Path, token: &str| {
            let workers = Workers {
                spares: 2,
                max: u32::try_from(attack.filling + attack.spinning + 10).unwrap(),
            };
            let settings = Settings {
                workers,
                ..Settings::default()
            };
            Node::start(folder, token, &settings)
        };
        Fleet::start_with(temporary.path(), None, &mut |_| (), start).unwrap()
    });
    let (filling, spinning) = block_in_place(|| {
        let modest = fleet.small_project("modest", "", MODEST).unwrap();
        fleet.deploy(&modest).unwrap();
        let ceiling = attack.ceiling_mib.to_string();
        let ceiling = ["--max-memory-mib", &ceiling];
        let fill = fleet.add_tenant_with("fill", &["*.fill.test"], &ceiling);
        let fill = fill.unwrap();
        let spin = fleet.add_tenant("spin", &["*.spin.test"]).unwrap();
        let limits = "[limits]\nheap_mib = 64\ncpu_time_ms = 1000\n";
        let filling = deploy(&fleet, &fill, ("fill", attack.filling), limits, FILL);
        let spinning = deploy(&fleet, &spin, ("spin", attack.spinning), limits, SPIN);
        (filling, spinning)
    });
    let idle = pace(&fleet, attack.requests).await;
    let (over, answers) = (Arc::new(AtomicBool::new(false)), Answers::default());
    let hosts = filling.into_iter().chain(spinning);
    let besiegers: Vec<_> = hosts
        .map(|host| besiege(fleet.node.gateway, host, over.clone(), answers.clone()))
        .map(tokio::spawn)
        .collect();
    // The attack has begun when some workers have run out of memory or processor time. Callers
    // cannot always distinguish the two: the gateway may see the worker's channel close before it
    // learns the reason.
    let under_way = || {
        let is_spinning = answers.lock().contains_key("exceeded_cpu");
        is_spinning && fleet.node.log().contains("end=OutOfMemory")
    };
    let end = Instant::now() + SOON;
    while !under_way() {
        assert!(Instant::now() < end, "{answers:?}\n{}", fleet.node.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let attacked = pace(&fleet, attack.requests).await;
    over.store(true, Ordering::Relaxed);
    for besieger in besiegers {
        besieger.await.unwrap();
    }
    println!(
        "answers of the greedy tenants' functions: {:?}",
        answers.lock()
    );
    (idle, attacked)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_neighbour_of_functions_that_fill_memory_and_spin_is_served() {
    let attack = Attack {
        filling: 4,
        spinning: 3,
        ceiling_mib: 256,
        requests: 40,
    };
    let (idle, attacked) = under(attack).await;
    println!("idle: {idle}; attacked: {attacked}");
}

/// The long form, with figures: `make test-shares`. The figures mean nothing on a machine with
/// other load.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes the machine's processors and gigabytes of memory for minutes"]
async fn forty_that_fill_memory_and_fifty_that_spin_leave_a_neighbour_its_pace() {
    let attack = Attack {
        filling: 40,
        spinning: 50,
        ceiling_mib: 1024,
        requests: 300,
    };
    let (idle, attacked) = under(attack).await;
    println!("idle: {idle}; attacked: {attacked}");
    assert!(
        attacked.p99 < idle.p99 * 5,
        "idle: {idle}; attacked: {attacked}"
    );
}
