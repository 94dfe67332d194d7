//! `casemate image push` with the real programs: from the operator's file to a verified file on the
//! node's disk, despite kills at any step and despite a lying control plane.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use casemate_tests::caller;
use casemate_tests::fleet::{Fleet, SOON};
use casemate_trust::id::Digest;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};
use tokio::task::block_in_place;

/// Size of the image: large enough that a kill interrupts the transfer.
const IMAGE_BYTES: usize = 48 * 1024 * 1024;

/// A PE file for 64-bit machines with one section, `.osrel`, and many bytes behind it.
fn fake_image(version: &str, bytes: usize) -> Vec<u8> {
    let text = format!("ID=casemate\nIMAGE_VERSION={version}\nVARIANT_ID=test\n");
    let mut file = vec![0; 0x400];
    let mut put = |at: usize, value: &[u8]| file[at..at + value.len()].copy_from_slice(value);
    put(0, b"MZ");
    put(0x3c, &0x80_u32.to_le_bytes());
    put(0x80, b"PE\0\0");
    // The COFF header: machine, one section, an optional header of 240 bytes with 16 empty
    // directories.
    put(0x84, &0x8664_u16.to_le_bytes());
    put(0x86, &1_u16.to_le_bytes());
    put(0x94, &240_u16.to_le_bytes());
    put(0x98, &0x20b_u16.to_le_bytes());
    put(0x98 + 108, &16_u32.to_le_bytes());
    let section = 0x98 + 240;
    put(section, b".osrel");
    let length = u32::try_from(text.len()).unwrap();
    for (at, value) in [(8, length), (12, 0x1000), (16, length), (20, 0x400)] {
        put(section + at, &value.to_le_bytes());
    }
    file.extend_from_slice(text.as_bytes());
    // All pieces of the content differ.
    let start = file.len();
    file.resize(bytes.max(start), 0);
    ChaCha8Rng::seed_from_u64(1).fill_bytes(&mut file[start..]);
    file
}

struct World {
    fleet: Fleet,
    file: PathBuf,
    image: Vec<u8>,
    digest: Digest,
}

impl World {
    fn start(version: &str, bytes: usize) -> Self {
        let fleet = Fleet::start().unwrap();
        let image = fake_image(version, bytes);
        let file = fleet.folder.join("image.efi");
        std::fs::write(&file, &image).unwrap();
        Self {
            digest: Digest::of(&image),
            fleet,
            file,
            image,
        }
    }

    fn push(&self, file: &Path) -> Value {
        let args = [
            "image",
            "push",
            file.to_str().unwrap(),
            "--pool",
            "main",
            "--unsigned",
        ];
        self.fleet.operator.json(&self.fleet.folder, &args).unwrap()
    }

    fn machine(&self, version: &str) {
        let said = json!({
            "version": version, "blessed": true, "takes_images": true, "refused": [], "storage_key": "tpm", "update": null,
        });
        self.fleet.node.say_of_machine(&said).unwrap();
    }

    fn restart_node(&mut self) {
        self.fleet.node.kill().unwrap();
        self.fleet.node.restart().unwrap();
    }

    fn state(&self) -> PathBuf {
        self.fleet.node.folder().join("state")
    }

    fn whole(&self) -> PathBuf {
        self.state()
            .join("node/images")
            .join(self.digest.to_string())
    }

    fn fetched(&self) -> u64 {
        let part = self.whole().with_extension("part");
        std::fs::metadata(part).map_or(0, |found| found.len())
    }

    fn wait_for_fetched(&self, bytes: u64) -> u64 {
        let end = Instant::now() + SOON;
        loop {
            let fetched = self.fetched();
            if fetched > bytes {
                return fetched;
            }
            let status = self.fleet.node.status().ok();
            let image = status.map(|status| status["image"].clone());
            assert!(Instant::now() < end, "{fetched} of {bytes}: {image:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn wait_for_state(&self, wanted: &str) -> Value {
        let is_so = |status: &Value| status["image"]["state"] == wanted;
        self.fleet.node.wait_for(wanted, SOON, is_so).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "one story, step by step")]
async fn an_image_arrives_whole_over_kills_of_both_ends_and_deployments_meanwhile() {
    let mut world = block_in_place(|| World::start("1.2.3", IMAGE_BYTES));
    // A node that does not boot from images acknowledges the statement, and fetches nothing.
    let pushed = block_in_place(|| world.push(&world.file));
    assert_eq!(pushed["version"], "1.2.3");
    assert_eq!(pushed["profile"], "test");
    assert_eq!(pushed["sent_bytes"], world.image.len());
    block_in_place(|| world.wait_for_state("not_an_image"));
    let said = std::fs::read_to_string(world.state().join("vault/image.json")).unwrap();
    let digest = world.digest.to_string();
    let wanted = json!({ "version": "1.2.3", "digest": digest, "bytes": world.image.len() });
    assert_eq!(serde_json::from_str::<Value>(&said).unwrap(), wanted);
    assert!(!world.state().join("node/images").exists());

    world.machine("1.2.2");
    block_in_place(|| world.restart_node());
    let total = world.image.len() as u64;
    let first = block_in_place(|| world.wait_for_fetched(0));
    block_in_place(|| world.fleet.node.kill()).unwrap();
    let first = world.fetched().max(first);
    assert!(first < total, "the kill came too late: {first}");
    block_in_place(|| world.fleet.node.restart()).unwrap();
    let second = block_in_place(|| world.wait_for_fetched(first));
    block_in_place(|| world.fleet.control.kill()).unwrap();
    assert!(second < total && !world.whole().exists());
    block_in_place(|| world.fleet.control.restart()).unwrap();
    let code = "export default { fetch() { return new Response(\"deployed\"); } };";
    let project = world.fleet.small_project("web", "", code).unwrap();
    block_in_place(|| world.fleet.deploy(&project)).unwrap();
    let status = block_in_place(|| world.wait_for_state("ready"));
    assert_eq!(status["machine"]["storage_key"], "tpm");
    assert_eq!(status["image"]["fetched_bytes"], total);
    assert!(std::fs::read(world.whole()).unwrap() == world.image);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&world.whole()), 0o644);
    assert_eq!(mode(world.whole().parent().unwrap()), 0o755);
    let answer = caller::get(world.fleet.node.gateway, "web.apps.demo.test", "/").await;
    assert_eq!(answer.unwrap().text(), "deployed");

    // The operator's list shows the image, and a second push of it sends no bytes.
    let operator = &world.fleet.operator;
    let folder = &world.fleet.folder;
    let end = Instant::now() + SOON;
    loop {
        let nodes = block_in_place(|| operator.json(folder, &["node", "list"])).unwrap();
        let machine = &nodes[0]["machine"];
        if *machine == json!({ "version": "1.2.2", "storage_key": "tpm", "update": "1.2.3 ready" })
        {
            break;
        }
        assert!(Instant::now() < end, "{machine}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let images = block_in_place(|| operator.json(folder, &["image", "list"])).unwrap();
    assert_eq!(
        (&images[0]["version"], &images[0]["digest"]),
        (&json!("1.2.3"), &json!(digest))
    );
    let again = block_in_place(|| world.push(&world.file));
    assert_eq!(again["sent_bytes"], 0);
    // A lower version, and other bytes under the same version, are refused before any byte is sent.
    for (version, code) in [
        ("1.2.2", "image_version_lower"),
        ("1.2.3", "image_same_version_other_digest"),
    ] {
        let other = folder.join("other.efi");
        std::fs::write(&other, fake_image(version, 5000)).unwrap();
        let args = [
            "image",
            "push",
            other.to_str().unwrap(),
            "--pool",
            "main",
            "--unsigned",
        ];
        let refused = block_in_place(|| operator.run_in(folder, &args, b"")).unwrap();
        assert!(
            refused.code == 76 && refused.stderr.contains(code),
            "{}",
            refused.stderr
        );
    }
    // The machine now runs the new image.
    world.machine("1.2.3");
    block_in_place(|| world.wait_for_state("installed"));
    let gone = || {
        std::fs::read_dir(world.state().join("node/images"))
            .unwrap()
            .count()
            == 0
    };
    let end = Instant::now() + SOON;
    while !gone() {
        assert!(Instant::now() < end, "the file of a running image stays");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_that_serves_other_bytes_gets_nothing_under_the_images_name() {
    let mut world = block_in_place(|| World::start("2.0.0", 3 * 1024 * 1024));
    block_in_place(|| world.push(&world.file));
    block_in_place(|| world.wait_for_state("not_an_image"));
    let held = world
        .fleet
        .control
        .state()
        .join("images")
        .join(world.digest.to_string());
    let mut other = world.image.clone();
    other[2_000_000] ^= 1;
    std::fs::write(&held, &other).unwrap();
    world.machine("1.0.0");
    block_in_place(|| world.restart_node());
    let is_found = |status: &Value| {
        let error = status["image"]["error"].as_str();
        error.is_some_and(|error| error.contains("another digest"))
    };
    block_in_place(|| {
        world
            .fleet
            .node
            .wait_for("the wrong digest", SOON, is_found)
    })
    .unwrap();
    assert!(!world.whole().exists() && world.fetched() == 0);
    // The node goes on serving, and fetches the right bytes once they are available.
    let code = "export default { fetch() { return new Response(\"served\"); } };";
    let project = world.fleet.small_project("web", "", code).unwrap();
    block_in_place(|| world.fleet.deploy(&project)).unwrap();
    let answer = caller::get(world.fleet.node.gateway, "web.apps.demo.test", "/").await;
    assert_eq!(answer.unwrap().text(), "served");
    assert!(!world.whole().exists());
    std::fs::write(&held, &world.image).unwrap();
    block_in_place(|| world.wait_for_state("ready"));
    assert!(std::fs::read(world.whole()).unwrap() == world.image);
    // An image that did not start on this machine is not fetched again.
    let said = json!({
        "version": "1.0.0",
        "takes_images": true,
        "refused": [{ "version": "2.0.0", "digest": world.digest.to_string(), "why": "it did not start" }],
    });
    world.fleet.node.say_of_machine(&said).unwrap();
    let status = block_in_place(|| world.wait_for_state("refused"));
    assert_eq!(status["machine"], said);
}
