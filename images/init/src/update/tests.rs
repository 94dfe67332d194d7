use super::*;
use crate::boot_partition::tests::{names, partition, rename};
use crate::image::Image;

const WELL: Health = Health {
    vault: true,
    connected: true,
    serving: true,
};

fn trial(before: Health) -> (Trial, Instant) {
    let now = Instant::now();
    let trial = Trial {
        before,
        until: now + Duration::from_secs(600),
        well_since: None,
        well_for: Duration::from_secs(60),
    };
    (trial, now)
}

#[test]
fn an_image_is_good_when_the_node_stays_well_for_a_while() {
    let (mut trial, start) = trial(WELL);
    let after = |secs| start + Duration::from_secs(secs);
    assert_eq!(trial.look(Health::default(), after(0)), Verdict::Wait);
    assert_eq!(trial.look(WELL, after(10)), Verdict::Wait);
    // After a failure the time begins anew.
    let away = Health {
        connected: false,
        ..WELL
    };
    assert_eq!(trial.look(away, after(60)), Verdict::Wait);
    assert_eq!(trial.look(WELL, after(70)), Verdict::Wait);
    assert_eq!(trial.look(WELL, after(129)), Verdict::Wait);
    assert_eq!(trial.look(WELL, after(130)), Verdict::Good);
}

#[test]
fn an_image_is_bad_when_the_node_is_not_as_well_as_before_in_time() {
    let cases = [
        (
            Health {
                vault: false,
                ..WELL
            },
            "the vault is not open",
        ),
        (
            Health {
                connected: false,
                ..WELL
            },
            "the control plane is not reached",
        ),
        (
            Health {
                serving: false,
                ..WELL
            },
            "no function serves",
        ),
    ];
    for (ill, why) in cases {
        let (mut one, start) = trial(WELL);
        assert_eq!(
            one.look(ill, start + Duration::from_secs(599)),
            Verdict::Wait
        );
        assert_eq!(
            one.look(ill, start + Duration::from_secs(600)),
            Verdict::Bad(why)
        );
        // A part that was down before the trial is not the image's fault.
        let (mut one, start) = trial(ill);
        assert_eq!(one.look(ill, start), Verdict::Wait);
        assert_eq!(
            one.look(ill, start + Duration::from_secs(60)),
            Verdict::Good
        );
    }
    // A trial that becomes healthy late still gets its full time.
    let (mut one, start) = trial(WELL);
    assert_eq!(
        one.look(WELL, start + Duration::from_secs(590)),
        Verdict::Wait
    );
    assert_eq!(
        one.look(WELL, start + Duration::from_secs(620)),
        Verdict::Wait
    );
    assert_eq!(
        one.look(WELL, start + Duration::from_secs(650)),
        Verdict::Good
    );
}

#[test]
fn what_the_vault_has_accepted_is_read_and_what_is_no_such_file_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.json");
    assert!(
        read_json::<Accepted>(&path, MAX_FILE_BYTES)
            .unwrap()
            .is_none()
    );
    let digest = Digest::of(b"image");
    let text = format!(r#"{{"version":"1.2.3","digest":"{digest}","bytes":5,"new":1}}"#);
    std::fs::write(&path, text).unwrap();
    let accepted = read_json::<Accepted>(&path, MAX_FILE_BYTES)
        .unwrap()
        .unwrap();
    assert_eq!(accepted.version.to_string(), "1.2.3");
    for wrong in ["", "{}", r#"{"version":"1.2","digest":"","bytes":5}"#] {
        std::fs::write(&path, wrong).unwrap();
        assert!(
            read_json::<Accepted>(&path, MAX_FILE_BYTES).is_err(),
            "{wrong}"
        );
    }
}

#[test]
fn what_is_no_file_is_not_opened() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    let link = folder.path().join("link");
    std::os::unix::fs::symlink("/etc/hostname", &link).unwrap();
    for path in [pipe, link, folder.path().to_owned()] {
        assert!(open_file(&path).is_err(), "{}", path.display());
    }
}

const NEW: &[u8] = b"the new image";

/// A machine with version 1.0.0 on its boot partition, whose vault has accepted 1.0.1.
struct Bench {
    folder: tempfile::TempDir,
    boot: BootPartition,
    storage: Storage,
    page: Page,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let digest = Digest::of(NEW);
        let write = |path: &str, bytes: &[u8]| {
            let path = folder.path().join("casemate").join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        };
        let bytes = NEW.len();
        let accepted = format!(r#"{{"version":"1.0.1","digest":"{digest}","bytes":{bytes}}}"#);
        write("vault/image.json", accepted.as_bytes());
        write(&format!("node/images/{digest}"), NEW);
        Self {
            boot: partition(folder.path()),
            folder,
            storage: Storage::in_clear(),
            page: Page::new(&Image {
                version: "1.0.0".parse().unwrap(),
                profile: "test".into(),
                time: 0,
            }),
        }
    }

    fn boot(&mut self, version: &str) -> Update {
        let version = version.parse().unwrap();
        let boot = Some(self.boot.clone());
        let mut update = Update::start(version, boot, self.folder.path(), &mut self.page);
        let settings = Settings {
            spread_secs: 0,
            healthy_secs: 0,
            trial_secs: 0,
        };
        update.node_runs(&settings, &mut self.storage, &mut self.page);
        update
    }

    /// Polls the update until it asks for a restart, at most 200 times.
    fn look(&mut self, update: &mut Update, health: Health) -> Next {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            for _ in 0..200 {
                let next = update.look(health, &mut self.storage, &mut self.page).await;
                if next == Next::Restart {
                    return next;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Next::GoOn
        })
    }

    /// From 1.0.0 to the restart into 1.0.1.
    fn written() -> Self {
        let mut bench = Self::new();
        let mut update = bench.boot("1.0.0");
        // A node that is not healthy installs nothing.
        assert_eq!(bench.look(&mut update, Health::default()), Next::GoOn);
        assert_eq!(bench.look(&mut update, WELL), Next::Restart);
        assert_eq!(
            names(&bench.boot),
            ["casemate_1.0.0.efi", "casemate_1.0.1+3.efi"]
        );
        bench
    }

    fn refused(update: &Update) -> Option<&str> {
        update.record.refused.last().map(|refused| &refused.why[..])
    }
}

#[test]
fn a_good_image_is_written_tried_and_blessed() {
    let mut bench = Bench::written();
    rename(
        &bench.boot,
        "casemate_1.0.1+3.efi",
        "casemate_1.0.1+2-1.efi",
    );
    let mut update = bench.boot("1.0.1");
    assert!(update.is_trial() && update.record.before == WELL);
    assert_eq!(bench.look(&mut update, WELL), Next::GoOn);
    assert_eq!(
        names(&bench.boot),
        ["casemate_1.0.0.efi", "casemate_1.0.1.efi"]
    );
    assert!(!update.is_trial() && update.record == Record::default());
    let update = bench.boot("1.0.1");
    assert!(update.is_blessed && !update.is_trial());
}

#[test]
fn an_image_that_is_not_well_is_refused_with_its_reason() {
    let mut bench = Bench::written();
    rename(
        &bench.boot,
        "casemate_1.0.1+3.efi",
        "casemate_1.0.1+0-3.efi",
    );
    let mut update = bench.boot("1.0.1");
    let ill = Health {
        serving: false,
        ..WELL
    };
    assert_eq!(bench.look(&mut update, ill), Next::Restart);
    let mut update = bench.boot("1.0.0");
    assert_eq!(
        Bench::refused(&update),
        Some("no function serves, after 0 seconds")
    );
    assert_eq!(names(&bench.boot), ["casemate_1.0.0.efi"]);
    // The refusal is permanent.
    assert_eq!(bench.look(&mut update, WELL), Next::GoOn);
    assert_eq!(names(&bench.boot), ["casemate_1.0.0.efi"]);
    let update = bench.boot("1.0.0");
    assert!(Bench::refused(&update).is_some());
}

#[test]
fn an_image_that_never_came_up_or_was_never_started_is_refused() {
    let mut bench = Bench::written();
    rename(
        &bench.boot,
        "casemate_1.0.1+3.efi",
        "casemate_1.0.1+0-3.efi",
    );
    let update = bench.boot("1.0.0");
    assert_eq!(
        Bench::refused(&update),
        Some("it did not become healthy in 3 tries")
    );

    let mut bench = Bench::written();
    let update = bench.boot("1.0.0");
    assert_eq!(
        Bench::refused(&update),
        Some("the firmware does not start from this disk")
    );
    assert_eq!(names(&bench.boot), ["casemate_1.0.0.efi"]);
}

#[test]
fn a_cut_before_the_image_counts_is_no_fault_of_the_image() {
    let mut bench = Bench::new();
    let mut update = bench.boot("1.0.0");
    update.record.trying = read_json(&update.node.accepted_image(), MAX_FILE_BYTES).unwrap();
    update.save().unwrap();
    let mut update = bench.boot("1.0.0");
    assert!(update.record.trying.is_none() && Bench::refused(&update).is_none());
    assert_eq!(bench.look(&mut update, WELL), Next::Restart);
}

#[test]
fn a_machine_without_a_boot_partition_takes_no_image() {
    let mut bench = Bench::new();
    let version = "1.0.0".parse().unwrap();
    let mut update = Update::start(version, None, bench.folder.path(), &mut bench.page);
    let settings = Settings {
        healthy_secs: 0,
        ..Settings::default()
    };
    update.node_runs(&settings, &mut bench.storage, &mut bench.page);
    assert_eq!(bench.look(&mut update, WELL), Next::GoOn);
    assert!(update.doing.unwrap().contains("no boot partition"));
}
