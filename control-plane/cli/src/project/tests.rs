use casemate_trust::release::{Limits, Perimeter, Scheme, Slot};

use super::*;

fn parse(text: &str) -> Result<Project, Vec<String>> {
    Project::parse(Path::new("/nowhere"), text).map(|(project, _)| project)
}

const FULL: &str = r#"
name = "shop"
main = "src/main.ts"
owner = "payments team"
hosts = ["shop.example.com", "www.example.com"]
pools = ["main", "eu"]
dynamic_code = false

[perimeter]
methods = ["GET", "POST"]
paths = ["/v1/*"]
max_body_bytes = 1_000_000

[limits]
cpu_time_ms = 50
wall_time_ms = 10000
heap_mib = 64
subrequests = 0
concurrency = 8

[vars]
GREETING = "hello"

[[egress]]
host = "cdn.example.com"
methods = ["GET"]

[[egress]]
scheme = "http"
host = "plain.example.com:8080"

[[credential]]
binding = "payments"
secret = "PAYMENTS_KEY"
host = "127.0.0.1:8443"
methods = ["POST"]
paths = ["/v1/*"]
slot = "bearer"

[[credential]]
binding = "maps"
secret = "MAPS_KEY"
host = "maps.example.com"
slot = { header = "X-Api-Key", prefix = "key " }
auto = true

[[credential]]
binding = "mail"
secret = "MAIL_KEY"
host = "[::1]:25"
slot = { basic = { username = "api" } }

[[credential]]
binding = "weather"
secret = "WEATHER_KEY"
host = "weather.example.com"
slot = { query = "appid" }
"#;

#[test]
fn a_file_with_every_key_is_read() {
    let project = parse(FULL).unwrap();
    assert_eq!(project.name().as_str(), "shop");
    assert_eq!(project.pools.len(), 2);
    let release = &project.release;
    assert_eq!(release.limits.subrequests, 0);
    assert_eq!(release.perimeter.max_body_bytes, 1_000_000);
    assert_eq!(release.egress[0].port, 443);
    assert_eq!(
        (release.egress[1].port, release.egress[1].scheme),
        (8080, Scheme::Http)
    );
    let hosts: Vec<_> = release
        .credentials
        .iter()
        .map(|slot| (slot.host.as_str(), slot.port))
        .collect();
    assert_eq!(
        hosts,
        [
            ("127.0.0.1", 8443),
            ("maps.example.com", 443),
            ("::1", 25),
            ("weather.example.com", 443)
        ]
    );
    let header = Slot::Header {
        name: "x-api-key".into(),
        prefix: "key ".into(),
    };
    assert_eq!(release.credentials[1].slot, header);
    assert_eq!(release.flaw(), None);
}

#[test]
fn keys_that_are_left_out_have_defaults() {
    let project = parse("name = \"a\"\nmain = \"main.js\"\nhosts = [\"a.test\"]\n").unwrap();
    assert_eq!(project.pools, [DEFAULT_POOL.parse().unwrap()]);
    assert_eq!(project.release.limits, Limits::default());
    assert_eq!(project.release.perimeter, Perimeter::default());
}

fn mistakes(text: &str) -> String {
    parse(text).unwrap_err().join("\n")
}

#[test]
fn all_mistakes_are_reported_at_once_with_their_lines() {
    insta::assert_snapshot!(mistakes(
        r#"nam = "shop"
main = "../main.ts"
hosts = ["Shop.example.com", "shop.example.com:80", 3]
pools = []
dynamic_code = "no"

[perimeter]
method = ["GET"]
paths = ["/../x", "/v1*"]
max_body_bytes = 99999999999

[limits]
cpu_time = 50
heap_mib = 4
subrequests = 1.5

[vars]
GOOD = "yes"
COUNT = 3
"with space" = "x"

[[egress]]
scheme = "ftp"
port = 0

[[credential]]
binding = "pay"
secret = "PAY-KEY"
host = "api.example.com:99999"
slot = "cookie"

[[credential]]
binding = "two"
secret = "TWO"
host = "api.example.com"
slot = { header = "x-key", query = "key" }
ca = "missing.pem"
colour = "red"
"#
    ));
}

#[test]
fn rules_for_the_whole_have_the_line_of_the_part() {
    let text = format!(
        "{FULL}\n[[credential]]\nbinding = \"GREETING\"\nsecret = \"A\"\nhost = \"a.test\"\nslot \
         = \"bearer\"\n\
         [[credential]]\nbinding = \"b\"\nsecret = \"A\"\nhost = \"a.test\"\nslot = {{ \
         header = \"Host\" }}\n"
    );
    insta::assert_snapshot!(mistakes(&text));
}

#[test]
fn broken_toml_has_a_line_too() {
    insta::assert_snapshot!(mistakes("name = \"shop\nmain = \"a.ts\"\n\n[limits\n"));
}

#[test]
fn one_quote_too_many_is_one_mistake() {
    let text = "name = \"shop\"\nhosts = [\"a.test\"\"]\n[limits]\ncpu_time_ms = 5\n";
    assert_eq!(
        mistakes(text),
        "line 2, column 18: missing comma between array elements, expected `,`"
    );
}

#[test]
fn no_file_makes_the_reader_panic() {
    proptest::proptest!(|(text in "[a-z\\[\\]=\"\n{}.0-9 #']{0,200}")| {
        drop(parse(&text));
    });
}

#[test]
fn a_missing_project_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let error = Project::load(dir.path(), None).unwrap_err();
    assert_eq!(error.code(), Code::Input);
    assert!(error.to_text().contains("casemate init"));
}

#[test]
fn a_private_key_is_refused_as_a_certificate_authority() {
    let dir = tempfile::tempdir().unwrap();
    let pem = "-----BEGIN CERTIFICATE-----\n-----BEGIN PRIVATE KEY-----\n";
    std::fs::write(dir.path().join("ca.pem"), pem).unwrap();
    let text = "name = \"a\"\nmain = \"m.js\"\nhosts = [\"a.test\"]\n[[egress]]\nhost \
         = \"b.test\"\nca = \"ca.pem\"\n";
    let found = Project::parse(dir.path(), text).unwrap_err().join("\n");
    assert!(found.contains("and no key"), "{found}");
}

const ENVIRONMENTS: &str = r#"
[env.staging]
name = "shop-staging"
hosts = ["staging.example.com"]
pools = ["test"]
profile = "staging"
control = "https://control.staging.example.com:8700#9F2C000000000000000000000000000000000000000000000000000000000001"
tenant = "shop-test"

[env.staging.vars]
GREETING = "hello, tester"
EXTRA = "1"

[env.staging.secrets]
PAYMENTS_KEY = "STAGING_PAYMENTS_KEY"

[env.empty]
"#;

fn within(name: &str) -> Result<Project, Error> {
    let text = format!("{FULL}{ENVIRONMENTS}");
    let (project, environments) = Project::parse(Path::new("/nowhere"), &text).unwrap();
    project.within(&name.parse().unwrap(), environments)
}

#[test]
fn an_environment_replaces_what_it_names_and_nothing_else() {
    let base = parse(&format!("{FULL}{ENVIRONMENTS}")).unwrap();
    assert_eq!(base.release, parse(FULL).unwrap().release);
    let staging = within("staging").unwrap();
    let release = &staging.release;
    assert_eq!(release.function.as_str(), "shop-staging");
    assert_eq!(release.hosts, ["staging.example.com".parse().unwrap()]);
    let vars: Vec<_> = release
        .vars
        .iter()
        .map(|var| (var.name.as_str(), var.value.as_str()))
        .collect();
    assert_eq!(vars, [("GREETING", "hello, tester"), ("EXTRA", "1")]);
    let secrets: Vec<_> = release
        .credentials
        .iter()
        .map(|slot| slot.secret.as_str())
        .collect();
    assert_eq!(
        secrets,
        [
            "STAGING_PAYMENTS_KEY",
            "MAPS_KEY",
            "MAIL_KEY",
            "WEATHER_KEY"
        ]
    );
    assert_eq!(staging.pools, ["test".parse().unwrap()]);
    let environment = staging.environment.unwrap();
    assert_eq!(
        environment.function(&"shop".parse().unwrap()).as_str(),
        "shop-staging"
    );
    assert_eq!(
        environment.function(&"other".parse().unwrap()).as_str(),
        "other"
    );
    assert_eq!(environment.profile.unwrap().as_str(), "staging");
    assert_eq!(release.egress, base.release.egress);
    assert_eq!(within("empty").unwrap().release, base.release);
    let unknown = within("prod").unwrap_err().to_text();
    assert!(unknown.contains("there are empty, staging"), "{unknown}");
}

#[test]
fn mistakes_in_any_environment_are_shown_with_their_lines() {
    let large = format!("[env.a.vars]\nX = \"{}\"\n", "x".repeat(33 * 1024));
    for (wrong, told) in [
        (
            "[env.a]\nhost = []\n",
            "`host` is not a key of an environment; did you mean `hosts`?",
        ),
        ("[env.a]\nhosts = []\n", "`hosts`: expected at least one"),
        (&large, "environment a: "),
        ("[env]\na = 1\n", "`a`: expected a table"),
        ("[env.\"A B\"]\n", "environment: "),
        (
            "[env.a]\ncontrol = \"https://control.example.com\"\n",
            "https://HOST:PORT#FINGERPRINT",
        ),
        (
            "[env.a.secrets]\nPAYMENTS_KEY = 1\n",
            "secret: expected the name",
        ),
        ("[env.a.vars]\nX = 1\n", "variable `X`: expected a string"),
    ] {
        let mistakes = parse(&format!("{FULL}\n{wrong}")).unwrap_err();
        let lines = FULL.matches('\n').count();
        assert!(
            mistakes.iter().any(|mistake| {
                let line = mistake["line ".len()..].split(',').next().unwrap();
                mistake.contains(told) && line.parse::<usize>().unwrap() > lines
            }),
            "{wrong}: {mistakes:?}"
        );
    }
}

#[test]
fn folders_beside_the_project_must_be_there() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, text) = (
        dir.path().join("web"),
        FULL.replacen('\n', "\ninclude = [\"../shared\"]\n", 1),
    );
    std::fs::create_dir(&folder).unwrap();
    let mistakes = Project::parse(&folder, &text).unwrap_err();
    assert!(
        mistakes[0].contains("line 2") && mistakes[0].contains("../shared"),
        "{mistakes:?}"
    );
    std::fs::create_dir(dir.path().join("shared")).unwrap();
    let (project, _) = Project::parse(&folder, &text).unwrap();
    assert_eq!(
        project.sources(Path::new("")).include,
        [folder.join("../shared")]
    );
}
