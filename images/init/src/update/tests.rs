use super::*;

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
    // A stumble, and it begins anew.
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
        // What was so before is no fault of the image.
        let (mut one, start) = trial(ill);
        assert_eq!(one.look(ill, start), Verdict::Wait);
        assert_eq!(
            one.look(ill, start + Duration::from_secs(60)),
            Verdict::Good
        );
    }
    // One that becomes well late has its time all the same.
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
    assert!(read::<Accepted>(&path).unwrap().is_none());
    let digest = Digest::of(b"image");
    let text = format!(r#"{{"version":"1.2.3","digest":"{digest}","bytes":5,"new":1}}"#);
    std::fs::write(&path, text).unwrap();
    let accepted = read::<Accepted>(&path).unwrap().unwrap();
    assert_eq!(accepted.version.to_string(), "1.2.3");
    for wrong in ["", "{}", r#"{"version":"1.2","digest":"","bytes":5}"#] {
        std::fs::write(&path, wrong).unwrap();
        assert!(read::<Accepted>(&path).is_err(), "{wrong}");
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
