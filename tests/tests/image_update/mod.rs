//! Updates of an image: pushed, tried, and then kept or rolled back.

use super::*;

/// A machine that serves a function and accepts image updates.
struct Updated {
    temporary: tempfile::TempDir,
    fleet: Fleet<Machine>,
    first: Image,
    _upstream: Upstream,
}

impl Updated {
    /// Time that the machine gives a new image to become healthy.
    async fn start(trial_secs: u32) -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let upstream = Upstream::start(UPSTREAM_HOST, UPSTREAM_KEY).await.unwrap();
        let signed = block_in_place(|| signed_image(temporary.path())).unwrap();
        let start = |folder: &Path, token: &str| {
            let mut hardware = Hardware {
                tpm: Some(temporary.path().join("tpm")),
                restarts: true,
                seed: seed(token),
                ..Hardware::default()
            };
            let update = format!("spread_secs = 0\nhealthy_secs = 5\ntrial_secs = {trial_secs}\n");
            hardware
                .seed
                .push(("update.toml".into(), update.into_bytes()));
            Machine::start_from_disk(folder, &signed, &hardware)
        };
        let started =
            block_in_place(|| Fleet::start_with(temporary.path(), Some(HOST), &mut |_| (), start));
        let fleet = started.unwrap();
        let web = project(&fleet, &upstream, 1);
        block_in_place(|| fleet.put_secret(&web)).unwrap();
        deploy(&fleet, &web);
        until(&fleet.node, "/charges", |answer| answer.status == 200).await;
        Self {
            temporary,
            fleet,
            first: signed,
            _upstream: upstream,
        }
    }

    fn push(&self, version: &str, changes: &[(&str, &str)]) {
        let folder = self.temporary.path();
        let image = changed_image(folder, version, changes).unwrap();
        let file = folder.join(format!("{version}.efi"));
        std::fs::write(&file, &image.uki).unwrap();
        let args = ["image", "push", file.to_str().unwrap(), "--pool", "main"];
        self.fleet.operator.json(folder, &args).unwrap();
    }

    /// Pushes a faulty image, and waits until the earlier image serves again.
    async fn push_in_vain(&mut self, version: &str, change: (&str, &str), serves: &str, why: &str) {
        block_in_place(|| self.push(version, &[change]));
        let said = format!("the image {version} was tried and refused: {why}");
        let node = &mut self.fleet.node;
        block_in_place(|| node.wait_for_within(&said, SEVERAL_STARTS)).unwrap();
        until(node, "/charges", |answer| answer.status == 200).await;
        self.wait_for(|machine| {
            let update = machine["update"].as_str().unwrap_or_default();
            machine["version"] == serves && update.contains(version) && update.contains(why)
        })
        .await;
    }

    /// Waits for a state of the machine in the operator's list.
    async fn wait_for(&self, is_so: impl Fn(&Value) -> bool) {
        let end = Instant::now() + CONSOLE_TIMEOUT;
        loop {
            let args = ["node", "show", "edge-1"];
            let shown = block_in_place(|| self.fleet.operator.json(self.temporary.path(), &args));
            let shown = shown.unwrap();
            if is_so(&shown["machine"]) {
                return;
            }
            assert!(Instant::now() < end, "{shown}");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}

/// `make test-image`. A pushed image is kept once the node is healthy with it. An image that panics
/// is started three times; then the earlier image serves.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by `make test-image`"]
async fn an_update_is_blessed_and_one_that_panics_is_taken_back() {
    // Long enough for an emulated machine on a busy host.
    let mut updated = Updated::start(200).await;
    block_in_place(|| updated.push("0.0.2", &[]));
    let serving = "Casemate 0.0.2 (virtual-machine): serving 1 function";
    let node = &mut updated.fleet.node;
    block_in_place(|| node.wait_for_within(serving, SEVERAL_STARTS)).unwrap();
    until(node, "/charges", |answer| answer.status == 200).await;
    updated
        .wait_for(|machine| machine["version"] == "0.0.2" && machine["update"].is_null())
        .await;
    // The first program exits at once, and the kernel panics without it.
    let change = ("casemate-init", "casemate-launch");
    updated
        .push_in_vain(
            "0.0.3",
            change,
            "0.0.2",
            "it did not become healthy in 3 tries",
        )
        .await;
    // An attacker restores the first image's file, which is signed as well.
    let back = |root: &fatfs::Dir<'_, &mut Cursor<Vec<u8>>>| {
        root.remove(&uki_path("0.0.2"))?;
        let mut first = root.create_file(&uki_path("0.0.1"))?;
        Ok(first.write_all(&updated.first.uki)?)
    };
    let node = &mut updated.fleet.node;
    block_in_place(|| node.edit_boot_partition(back)).unwrap();
    let hardware = Hardware {
        tpm: Some(updated.temporary.path().join("tpm")),
        ..Hardware::default()
    };
    block_in_place(|| node.boot(&hardware)).unwrap();
    let older = "this image is older than one that this machine has run: its version is 0.0.1, expected at least 0.0.2";
    block_in_place(|| node.wait_for(older)).unwrap();
}

/// `make test-image`. An image with a dying node and an image with which no function serves are
/// rolled back too.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by `make test-image`"]
async fn an_update_with_which_the_node_is_not_well_is_taken_back() {
    let mut updated = Updated::start(40).await;
    let change = ("casemate-node", "casemate-launch");
    let why = "the vault is not open, after 40 seconds";
    updated.push_in_vain("0.0.2", change, "0.0.1", why).await;
    let change = ("casemate-worker", "casemate-launch");
    let why = "no function serves, after 40 seconds";
    updated.push_in_vain("0.0.3", change, "0.0.1", why).await;
}
