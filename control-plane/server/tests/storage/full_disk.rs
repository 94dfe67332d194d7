//! A disk that is full.

use super::*;

/// A program that ends with its test, whatever the result.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// The command that makes a process with its own mount namespace and the right to mount; `None` if
/// this machine forbids it.
fn own_mounts() -> Option<&'static [&'static str]> {
    let ways: [&[&str]; 2] = [
        &["--user", "--map-root-user", "--mount"],
        // For root where user namespaces are forbidden.
        &["--mount"],
    ];
    ways.into_iter().find(|way| {
        let mounted = Command::new("unshare")
            .args(*way)
            .args(["mount", "-t", "tmpfs", "tmpfs", "/mnt"])
            .stderr(Stdio::null())
            .status();
        mounted.is_ok_and(|status| status.success())
    })
}

/// Restarts a stopped control plane on a disk of its own, by a script that mounts the disk and runs
/// the program there. The script's arguments are the program, the disk, the state and the
/// configuration.
fn on_a_small_disk(
    control: &mut Control,
    own_mounts: &[&str],
    script: &str,
) -> (Running, tempfile::TempDir) {
    let disk = tempfile::tempdir().unwrap();
    let mut program = Command::new("unshare")
        .args(own_mounts)
        .args(["sh", "-c", script])
        .arg(env!("CARGO_BIN_EXE_casemate-control"))
        .args([disk.path(), &control.state(), &config(control)])
        .stderr(Stdio::piped())
        .spawn()
        .map(Running)
        .unwrap();
    let mut lines = BufReader::new(program.0.stderr.take().unwrap()).lines();
    let mut said = Vec::new();
    let ready = lines.find_map(|line| {
        said.push(line.unwrap());
        let (_, address) = said.last()?.split_once("ready api=")?;
        Some(address.split(' ').next()?.to_owned())
    });
    control.plane.api = ready.unwrap_or_else(|| panic!("{said:#?}"));
    // The program's output is read continuously, so that it never waits.
    std::thread::spawn(move || lines.count());
    (program, disk)
}

#[tokio::test]
async fn on_a_full_disk_the_operator_can_still_revoke() {
    let Some(own_mounts) = own_mounts() else {
        println!("skipped: a small disk needs a mount namespace, which this machine forbids");
        return;
    };
    let mut control = Control::new().await;
    let fleet = Fleet::new(&control).await;
    let operator = control.operator();
    let tokens: Vec<String> = {
        let tokens = (0..4).map(|_| token(&operator, Scope::Tenant(fleet.tenant.id)));
        futures_util::future::join_all(tokens).await
    };
    let listed = operator.get("/v1/tokens").await.ok().json::<TokenList>();
    control.stop().await;
    // A small disk that one tenant can fill.
    let script = "mount -t tmpfs -o size=24m tmpfs \"$1\" && cp -a \"$2\" \"$3\" \"$1\" && \
                  exec \"$0\" serve --config \"$1/control.toml\"";
    let _program = on_a_small_disk(&mut control, own_mounts, script);
    let client = control.client(&tokens[0]);
    // Files of decreasing size, until none fits.
    for bytes in [1024 * 1024, 64 * 1024, 4096, 1] {
        for number in 0_u32.. {
            let mut bundle = vec![7; bytes];
            bundle.extend(number.to_be_bytes());
            let answer = client.put(&bundle_path(&bundle), bundle.clone()).await;
            if answer.status == 507 {
                break;
            }
            answer.ok();
        }
    }
    // The store itself is filled too, down to the size of the smallest change.
    let id = fleet.tenant.id;
    for bytes in [30_000, 1] {
        for number in 0_u32.. {
            let mut release = fleet.release(&fleet.tenant, b"bundle");
            let (name, value) = ("A".parse().unwrap(), format!("{number:0bytes$}"));
            release.vars = vec![Var { name, value }];
            let object = release.to_bytes();
            let path = tenant_path(&id, &format!("objects/{}", Digest::of(&object)));
            let answer = client.put(&path, object).await;
            if answer.status == 507 {
                break;
            }
            answer.ok();
        }
    }
    let operator = control.operator();
    for view in listed.tokens.iter().filter(|view| view.label == "test") {
        let path = format!("/v1/tokens/{}", view.id);
        operator.delete(&path).await.ok();
    }
    let gone = control.client(&tokens[1]).get("/v1/tenants").await;
    assert_eq!(gone.refused(401), "unauthenticated");
}

#[tokio::test]
async fn a_control_plane_that_was_killed_starts_on_a_full_disk() {
    let Some(own_mounts) = own_mounts() else {
        println!("skipped: a small disk needs a mount namespace, which this machine forbids");
        return;
    };
    let mut control = Control::new().await;
    let fleet = Fleet::new(&control).await;
    let operator = control.operator();
    let extra = token(&operator, Scope::Tenant(fleet.tenant.id)).await;
    let listed = operator.get("/v1/tokens").await.ok().json::<TokenList>();
    control.stop().await;
    // It runs once and is killed, so that the store has to be repaired; then another file fills the
    // disk.
    let script = "mount -t tmpfs -o size=24m tmpfs \"$1\" && cp -a \"$2\" \"$3\" \"$1\" || exit 1; \
                  \"$0\" serve --config \"$1/control.toml\" 2>\"$1/log\" & \
                  until grep -q ready \"$1/log\"; do sleep 0.1; done; kill -9 $!; wait; \
                  cat /dev/zero >\"$1/filling\"; \
                  exec \"$0\" serve --config \"$1/control.toml\"";
    let _program = on_a_small_disk(&mut control, own_mounts, script);
    let operator = control.operator();
    for view in listed.tokens.iter().filter(|view| view.label == "test") {
        operator
            .delete(&format!("/v1/tokens/{}", view.id))
            .await
            .ok();
    }
    let gone = control.client(&extra).get("/v1/tenants").await;
    assert_eq!(gone.refused(401), "unauthenticated");
}

#[tokio::test]
async fn a_store_that_cannot_be_written_does_not_keep_bundles_that_fill_the_disk() {
    let mut control = Control::new().await;
    let fleet = Fleet::new(&control).await;
    let (id, client) = (fleet.tenant.id, control.client(&fleet.tenant_token));
    fleet.deploy(&client, 1, b"bundle one").await;
    fleet.deploy(&client, 2, b"bundle two").await;
    control.stop().await;
    age(&control, LONG_AGO).await;
    // No file may grow over a KiB, so that the store can be read and not written.
    let mut program = Command::new("sh")
        .args([
            "-c",
            "trap '' XFSZ; ulimit -f 2; exec \"$0\" serve --config \"$1\"",
        ])
        .arg(env!("CARGO_BIN_EXE_casemate-control"))
        .arg(config(&control))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(program.stderr.take().unwrap()).lines();
    let told = lines.any(|line| line.unwrap().contains("without an audit record"));
    assert!(told, "the program ended before");
    let gone = file(&control, &id, b"bundle one");
    eventually("the removal", async || !gone.exists()).await;
    program.kill().unwrap();
    program.wait().unwrap();
    assert!(file(&control, &id, b"bundle two").exists());
    // The rest is removed when there is space.
    control.start().await;
    eventually("the record", async || removals(&control).await.len() == 1).await;
    let removals = removals(&control).await;
    assert!(
        removals[0].contains(": 0 bundles and 2 objects, "),
        "{removals:?}"
    );
}
