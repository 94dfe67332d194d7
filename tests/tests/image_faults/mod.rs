//! The console of a machine that lacks a part of its configuration or hardware.

use casemate_tests::machine::{
    Hardware, Machine, bare_metal_image, seed, seed_disk_arguments, write_seed_disk,
};

use crate::line;

/// Boots a machine with a fault, and waits for these texts on its console.
fn says(hardware: &Hardware, texts: &[&str]) {
    let temporary = tempfile::tempdir().unwrap();
    let mut machine = Machine::start(temporary.path(), hardware).unwrap();
    for text in texts {
        machine.wait_for(text).unwrap();
    }
}

#[test]
fn a_machine_without_a_seed_says_what_it_needs() {
    says(
        &Hardware::default(),
        &["waiting for a join token", "casemate node token"],
    );
}

/// Run by `make test-image`: NVMe and an Intel network card, with the general kernel and its
/// drivers.
#[test]
#[ignore = "run by `make test-image`"]
fn a_machine_of_metal_finds_its_disk_and_its_network() {
    let temporary = tempfile::tempdir().unwrap();
    let hardware = Hardware {
        is_metal: true,
        ..Hardware::default()
    };
    let image = bare_metal_image().unwrap();
    let mut machine = Machine::start_image(temporary.path(), &image, &hardware).unwrap();
    for text in ["waiting for a join token", "eth0 10.0.2.15/24"] {
        machine.wait_for(text).unwrap();
    }
    let said = machine.said();
    assert!(line(&said, "state").contains("/dev/nvme0n1p1"), "{said}");
    assert!(!said.contains("kernel module"), "{said}");
}

#[test]
fn a_broken_seed_is_shown_mistake_by_mistake() {
    let mut seed = seed("casemate-join-nonsense");
    seed.push((
        "network.toml".into(),
        b"metod = \"dhcp\"\naddresses = [\"x\"]\n".to_vec(),
    ));
    seed.push(("shadow".into(), b"root".to_vec()));
    let hardware = Hardware {
        seed,
        ..Hardware::default()
    };
    says(
        &hardware,
        &[
            "\"shadow\" is not a file of a seed",
            "network.toml:1: unknown field",
            "network.toml:2:",
            "the join token in /run/casemate/join-token",
        ],
    );
}

#[test]
fn a_machine_without_a_network_or_much_memory_is_in_a_defined_state() {
    let hardware = Hardware {
        no_network: true,
        memory_mib: Some(256),
        ..Hardware::default()
    };
    says(
        &hardware,
        &["no network interface was found", "waiting for a join token"],
    );
}

#[test]
fn a_network_without_dhcp_or_a_time_server_is_shown() {
    let card = [
        "-netdev",
        "hubport,id=net,hubid=0",
        "-device",
        "virtio-net-pci,netdev=net",
    ];
    let network = b"time_servers = [\"192.0.2.1\"]\n".to_vec();
    let hardware = Hardware {
        seed: vec![("network.toml".into(), network)],
        no_network: true,
        more: card.map(ToOwned::to_owned).to_vec(),
        ..Hardware::default()
    };
    says(
        &hardware,
        &[
            "waiting for a join token",
            "the time server 192.0.2.1",
            "no DHCP server answers on eth0",
        ],
    );
}

#[test]
fn a_full_state_disk_is_shown() {
    let temporary = tempfile::tempdir().unwrap();
    let disk = temporary.path().join("seed");
    let certificate = |number: u32| (format!("{number}.pem"), vec![b'x'; 60_000]);
    let certificates: Vec<_> = (0..20).map(certificate).collect();
    write_seed_disk(&disk, &certificates).unwrap();
    let hardware = Hardware {
        more: seed_disk_arguments(&disk),
        state_bytes: Some(1 << 20),
        ..Hardware::default()
    };
    says(&hardware, &["No space left", "make it larger"]);
}
