//! The bootable image: from power-on to a served request.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod image_faults;
mod image_update;
mod plaintext;

use std::io::{Cursor, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use casemate_images::{Compression, Image, inspect, uki_path};
use casemate_tests::caller::{self, Answer};
use casemate_tests::fleet::{Fleet, UPSTREAM_HOST, UPSTREAM_KEY};
use casemate_tests::machine::{
    CONSOLE_TIMEOUT, HOST, Hardware, Machine, changed_image, image, plan, seed,
    seed_disk_arguments, signed_image, write_seed_disk,
};
use casemate_tests::upstream::Upstream;
use serde_json::Value;
use tokio::task::block_in_place;

/// All programs of an image: ours, two tools for the state partition, and their libraries.
const EXECUTABLES: &[&str] = &[
    "init",
    "lib/x86_64-linux-gnu/libblkid.so.1",
    "lib/x86_64-linux-gnu/libc.so.6",
    "lib/x86_64-linux-gnu/libcom_err.so.2",
    "lib/x86_64-linux-gnu/libe2p.so.2",
    "lib/x86_64-linux-gnu/libext2fs.so.2",
    "lib/x86_64-linux-gnu/libgcc_s.so.1",
    "lib/x86_64-linux-gnu/libm.so.6",
    "lib/x86_64-linux-gnu/libuuid.so.1",
    "lib64/ld-linux-x86-64.so.2",
    "sbin/e2fsck",
    "sbin/mke2fs",
    "usr/lib/casemate/casemate-gateway",
    "usr/lib/casemate/casemate-launch",
    "usr/lib/casemate/casemate-node",
    "usr/lib/casemate/casemate-vault",
    "usr/lib/casemate/casemate-worker",
];

/// Time until a machine has received an image and started it three times.
const SEVERAL_STARTS: Duration = Duration::from_secs(900);

/// Ports through which callers and DHCP answers reach the machine.
const OPEN_PORTS: &str = "tcp 80, udp 68";

const CALLER: &str = r#"
export default {
  async fetch(request, env) {
    const url = new URL(request.url);
    if (url.pathname === "/version") return new Response(env.VERSION);
    const answer = await env.payments.fetch("/v1" + url.pathname, { method: "POST", body: "x" });
    return new Response(await answer.text(), { status: answer.status });
  },
};
"#;

fn project(fleet: &Fleet<Machine>, upstream: &Upstream, version: u32) -> std::path::PathBuf {
    let config = format!(
        "[limits]\nwall_time_ms = 60000\ncpu_time_ms = 20000\n[vars]\nVERSION = \"{version}\"\n[[credential]]\n\
         binding = \"payments\"\nsecret = \"PAYMENTS_KEY\"\nhost = \"{UPSTREAM_HOST}:{}\"\n\
         methods = [\"POST\"]\npaths = [\"/v1/*\"]\nslot = \"bearer\"\nca = \"ca.pem\"\n",
        upstream.address.port()
    );
    let project = fleet.small_project("web", &config, CALLER).unwrap();
    std::fs::write(project.join("ca.pem"), &upstream.ca_pem).unwrap();
    project
}

fn deploy(fleet: &Fleet<Machine>, project: &Path) {
    let args = ["deploy", "--wait", "120"];
    block_in_place(|| fleet.tenant.ok(project, &args, b"")).unwrap();
}

/// Sends requests until `is_wanted` accepts the answer.
async fn until(machine: &Machine, path: &str, wanted: impl Fn(&Answer) -> bool) -> Answer {
    let end = Instant::now() + CONSOLE_TIMEOUT;
    loop {
        let answer = caller::get(machine.gateway, "web.apps.demo.test", path).await;
        match answer {
            Ok(answer) if wanted(&answer) => return answer,
            answer => assert!(
                Instant::now() < end,
                "{path}: last {:?}; the end of the console:\n{}",
                answer.map_err(|error| error.to_string()),
                machine.said_last()
            ),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_joins_serves_with_a_credential_and_survives_power_cuts() {
    let temporary = tempfile::tempdir().unwrap();
    let upstream = Upstream::start(UPSTREAM_HOST, UPSTREAM_KEY).await.unwrap();
    // A disk provides the token; the firmware provides the rest of the seed.
    let disk = temporary.path().join("seed");
    let start = |folder: &Path, token: &str| {
        let (on_disk, seed) = seed(token)
            .into_iter()
            .partition(|(name, _)| name == "join-token");
        let on_disk: Vec<_> = on_disk;
        write_seed_disk(&disk, &on_disk)?;
        let more = seed_disk_arguments(&disk);
        Machine::start(
            folder,
            &Hardware {
                seed,
                more,
                ..Hardware::default()
            },
        )
    };
    let started =
        block_in_place(|| Fleet::start_with(temporary.path(), Some(HOST), &mut |_| (), start));
    let mut fleet = started.unwrap();
    let web = project(&fleet, &upstream, 1);
    block_in_place(|| fleet.put_secret(&web)).unwrap();
    deploy(&fleet, &web);
    let answer = until(&fleet.node, "/charges", |answer| answer.status == 200).await;
    assert!(
        answer.text().contains("\"path\":\"/v1/charges\""),
        "{}",
        answer.text()
    );
    let sent = upstream.seen();
    let bearer = format!("Bearer {UPSTREAM_KEY}");
    assert_eq!(sent[0].header("authorization"), Some(bearer.as_str()));
    block_in_place(|| fleet.node.wait_for("serving 1 function")).unwrap();
    let said = fleet.node.said();
    assert_eq!(line(&said, "ports"), OPEN_PORTS, "{said}");
    let left = std::fs::read(&disk).unwrap();
    assert!(
        !left.windows(5).any(|window| window == b"cmt1_"),
        "the token is wiped"
    );

    // Power is cut right after a second version was acknowledged, and again while the machine
    // starts.
    let web = project(&fleet, &upstream, 2);
    deploy(&fleet, &web);
    let again = Hardware::default();
    block_in_place(|| fleet.node.boot(&again)).unwrap();
    block_in_place(|| fleet.node.wait_for("starting the node")).unwrap();
    // The node serves from its own store: the control plane is not running.
    fleet.control.kill().unwrap();
    let start = Instant::now();
    block_in_place(|| fleet.node.boot(&again)).unwrap();
    let answer = until(&fleet.node, "/version", |answer| answer.status == 200).await;
    assert_eq!(answer.text(), "2");
    measured("kernel loaded directly", start, &mut fleet.node);
    // Calls with credentials wait for the control plane, because no lease outlives a boot.
    fleet.control.restart().unwrap();
    until(&fleet.node, "/charges", |answer| answer.status == 200).await;
    fleet.node.cut_power().unwrap();
    plaintext::must_not_be_below(temporary.path(), UPSTREAM_KEY.as_bytes());
}

/// Run by `make test-image`. Power is cut while a deployment is written; the acknowledged version
/// serves without the control plane.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by `make test-image`"]
async fn power_cuts_while_it_writes_lose_nothing_that_was_acknowledged() {
    let temporary = tempfile::tempdir().unwrap();
    let upstream = Upstream::start(UPSTREAM_HOST, UPSTREAM_KEY).await.unwrap();
    let start = |folder: &Path, token: &str| {
        let seed = seed(token);
        Machine::start(
            folder,
            &Hardware {
                seed,
                ..Hardware::default()
            },
        )
    };
    let started =
        block_in_place(|| Fleet::start_with(temporary.path(), Some(HOST), &mut |_| (), start));
    let mut fleet = started.unwrap();
    let web = project(&fleet, &upstream, 1);
    block_in_place(|| fleet.put_secret(&web)).unwrap();
    deploy(&fleet, &web);
    let mut acknowledged = 1;
    for (version, cut_after_ms) in (2..).zip([60, 150, 300, 500, 900, 1600]) {
        let web = project(&fleet, &upstream, version);
        let tenant = fleet.tenant.clone();
        let deployed =
            std::thread::spawn(move || tenant.ok(&web, &["deploy", "--wait", "4"], b"").is_ok());
        tokio::time::sleep(Duration::from_millis(cut_after_ms)).await;
        block_in_place(|| fleet.node.cut_power()).unwrap();
        if block_in_place(|| deployed.join()).unwrap() {
            acknowledged = version;
        }
        fleet.control.kill().unwrap();
        block_in_place(|| fleet.node.boot(&Hardware::default())).unwrap();
        let answer = until(&fleet.node, "/version", |answer| answer.status == 200).await;
        let served: u32 = answer.text().parse().unwrap();
        assert!(
            (acknowledged..=version).contains(&served),
            "{served} after {acknowledged} was acknowledged and {version} was not"
        );
        // The node may have accepted the version before its acknowledgement was lost.
        acknowledged = served;
        fleet.control.restart().unwrap();
        let connected = "control   connected";
        block_in_place(|| fleet.node.wait_for(connected)).unwrap();
    }
}

/// Run by `make test-image`, as all tests that need Debian's `ovmf` and `sbsigntool`. The image has
/// one bit flipped in the middle of the initramfs, or is not signed.
#[test]
#[ignore = "run by `make test-image`"]
fn firmware_starts_nothing_that_is_not_signed() {
    let temporary = tempfile::tempdir().unwrap();
    let mut flipped = signed_image(temporary.path()).unwrap();
    let whole = inspect(&flipped.uki).unwrap();
    assert!(whole.is_signed && whole.is_approved, "{whole:?}");
    let middle = flipped.uki.len() / 2;
    flipped.uki[middle] ^= 1;
    assert!(!inspect(&flipped.uki).unwrap().is_approved);
    let mut unsigned = signed_image(temporary.path()).unwrap();
    unsigned.uki.clone_from(&image().unwrap().uki);
    for (name, image) in [("flipped", &flipped), ("unsigned", &unsigned)] {
        let folder = temporary.path().join(name);
        let mut machine = Machine::start_from_disk(&folder, image, &Hardware::default()).unwrap();
        machine.wait_for("Access Denied").unwrap();
        let said = machine.said();
        assert!(!said.contains("Casemate"), "{name}: {said}");
    }
}

/// Run by `make test-image`. Through firmware with Secure Boot, the machine joins and serves with a
/// credential. Its storage key is sealed to the TPM: the key opens at the next boot of the same
/// machine, stays sealed on another machine, and opens there with the recovery key.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by `make test-image`"]
async fn a_storage_key_opens_on_its_machine_alone() {
    let temporary = tempfile::tempdir().unwrap();
    let upstream = Upstream::start(UPSTREAM_HOST, UPSTREAM_KEY).await.unwrap();
    let signed = block_in_place(|| signed_image(temporary.path())).unwrap();
    let with_tpm = |name: &str| Hardware {
        tpm: Some(temporary.path().join(name)),
        ..Hardware::default()
    };
    let start = |folder: &Path, token: &str| {
        let mut hardware = with_tpm("tpm");
        hardware.seed = seed(token);
        let require = b"require_tpm = true\n".to_vec();
        hardware.seed.push(("storage.toml".into(), require));
        Machine::start_from_disk(folder, &signed, &hardware)
    };
    let started =
        block_in_place(|| Fleet::start_with(temporary.path(), Some(HOST), &mut |_| (), start));
    let mut fleet = started.unwrap();
    let web = project(&fleet, &upstream, 1);
    block_in_place(|| fleet.put_secret(&web)).unwrap();
    deploy(&fleet, &web);
    until(&fleet.node, "/charges", |answer| answer.status == 200).await;
    let said = fleet.node.said();
    assert!(line(&said, "key") == "sealed to the TPM", "{said}");
    let recovery = line(&said, "recovery").split(' ').next().unwrap();

    let node = &mut fleet.node;
    let start = Instant::now();
    block_in_place(|| node.boot(&with_tpm("tpm"))).unwrap();
    until(node, "/version", |answer| answer.status == 200).await;
    measured("through firmware with Secure Boot and TPM", start, node);
    until(node, "/charges", |answer| answer.status == 200).await;

    // With another TPM, or with its own TPM cleared, the machine serves nothing, and the console
    // says why.
    block_in_place(|| node.boot(&with_tpm("other"))).unwrap();
    block_in_place(|| node.wait_for("sealed by another TPM, or this one was cleared")).unwrap();
    assert!(node.said().contains("sealed; nothing is served"));
    let mut hardware = with_tpm("other");
    hardware.seed = vec![("recovery-key".into(), recovery.as_bytes().to_vec())];
    block_in_place(|| node.boot(&hardware)).unwrap();
    until(node, "/charges", |answer| answer.status == 200).await;
    block_in_place(|| node.boot(&with_tpm("other"))).unwrap();
    until(node, "/version", |answer| answer.status == 200).await;

    // Without a TPM, the machine does not replace the sealed key by one in clear.
    block_in_place(|| node.boot(&Hardware::default())).unwrap();
    block_in_place(|| node.wait_for("this machine has no TPM, and the key was sealed to one"))
        .unwrap();
    node.cut_power().unwrap();
}

/// Run by `make test-image`. An attacker at the machine turns Secure Boot off, and starts the
/// kernel with another command line: the storage key stays sealed, and the page names the change.
/// When the change is undone, the machine works as before.
#[test]
#[ignore = "run by `make test-image`"]
fn what_was_changed_is_named_and_opens_nothing() {
    const ENTRY: &str = "loader/entries/theirs.conf";
    let temporary = tempfile::tempdir().unwrap();
    let signed = signed_image(temporary.path()).unwrap();
    let hardware = Hardware {
        tpm: Some(temporary.path().join("tpm")),
        ..Hardware::default()
    };
    let folder = temporary.path().join("machine");
    let mut machine = Machine::start_from_disk(&folder, &signed, &hardware).unwrap();
    machine.wait_for("waiting for a join token").unwrap();
    assert_eq!(line(&machine.said(), "key"), "sealed to the TPM");

    machine.set_secure_boot(false).unwrap();
    machine.boot(&hardware).unwrap();
    let sealed =
        "the storage key stays sealed: PCR 7 has changed: Secure Boot was turned on or off";
    machine.wait_for(sealed).unwrap();

    let entry = format!(
        "title theirs\nefi /{}\noptions console=ttyS0,115200 init=/bin/sh\n",
        uki_path("0.0.1")
    );
    let add = |root: &fatfs::Dir<'_, &mut Cursor<Vec<u8>>>| {
        root.create_dir("loader/entries")?;
        root.create_file(ENTRY)?.write_all(entry.as_bytes())?;
        let mut settings = root.create_file("loader/loader.conf")?;
        settings.truncate()?;
        Ok(settings.write_all(b"default theirs.conf\ntimeout 0\n")?)
    };
    machine.edit_boot_partition(add).unwrap();
    machine.boot(&hardware).unwrap();
    let sealed = "PCR 12 has changed: the kernel was given another command line";
    machine.wait_for(sealed).unwrap();

    let remove = |root: &fatfs::Dir<'_, &mut Cursor<Vec<u8>>>| Ok(root.remove(ENTRY)?);
    machine.edit_boot_partition(remove).unwrap();
    machine.set_secure_boot(true).unwrap();
    machine.boot(&hardware).unwrap();
    machine.wait_for("waiting for a join token").unwrap();
    assert_eq!(line(&machine.said(), "key"), "sealed to the TPM");
}

/// Run by `make test-image`. Firmware with Secure Boot loads the image over the network, as a file
/// (PXE); the disk holds only the state.
#[test]
#[ignore = "run by `make test-image`"]
fn a_machine_starts_over_the_network() {
    let temporary = tempfile::tempdir().unwrap();
    let signed = signed_image(temporary.path()).unwrap();
    let hardware = Hardware {
        tpm: Some(temporary.path().join("tpm")),
        ..Hardware::default()
    };
    let folder = temporary.path().join("machine");
    let mut machine = Machine::start_from_network(&folder, &signed, &hardware).unwrap();
    let is_sealed = |machine: &mut Machine| {
        machine.wait_for("waiting for a join token").unwrap();
        assert_eq!(line(&machine.said(), "key"), "sealed to the TPM");
    };
    is_sealed(&mut machine);
    machine.boot(&hardware).unwrap();
    is_sealed(&mut machine);
}

/// Figures for SPECIFICATION, measured with the programs built beside this test.
#[allow(clippy::print_stderr, reason = "prints figures, checks nothing")]
fn measured(how: &str, start: Instant, machine: &mut Machine) {
    let served = start.elapsed().as_secs_f64();
    block_in_place(|| machine.wait_for("serving 1 function")).unwrap();
    let said = machine.said();
    eprintln!(
        "{how}: {served:.1} s from QEMU's start to the first served request; {}; image {:.1} MB",
        line(&said, "memory"),
        image().unwrap().uki.len() as f64 / 1e6
    );
}

/// The line with this label on the last page of the console.
fn line<'a>(said: &'a str, name: &str) -> &'a str {
    let mut lines = said.lines().rev();
    let found = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    found.map(str::trim).unwrap_or_default()
}

#[test]
fn nothing_else_can_be_run_and_a_plan_makes_the_same_bytes_again() {
    let one = image().unwrap();
    assert!(one.executables.iter().eq(EXECUTABLES));
    let inspected = inspect(&one.uki).unwrap();
    assert!(!inspected.is_signed && !inspected.is_approved);
    let (plan, programs, mut packages) = plan().unwrap();
    let two = casemate_images::build(&plan, &programs, &mut packages, Compression::Fast).unwrap();
    assert!(one.uki == two.uki && one.initramfs == two.initramfs);
}
