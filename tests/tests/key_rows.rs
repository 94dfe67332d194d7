//! Two rows of the operator's table of keys, tested with the real programs: a node's storage key
//! and the TLS keys of host names, each lost and stolen.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use casemate_tests::caller;
use casemate_tests::fleet::{Fleet, SOON, UPSTREAM_HOST, UPSTREAM_KEY};
use casemate_tests::node::{Node, Settings};
use casemate_tests::programs::wait_until;
use casemate_tests::upstream::Upstream;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio::task::block_in_place;
use tokio_rustls::TlsConnector;

const HOST: &str = "key.apps.demo.test";

/// Calls the upstream through its slot.
const CALLER: &str = r#"
export default {
  async fetch(request, env) {
    const answer = await env.payments.fetch("/v1/charges", { method: "POST", body: "x" });
    return new Response(await answer.text(), { status: answer.status });
  },
};
"#;

fn project(fleet: &Fleet, upstream: &Upstream) -> std::path::PathBuf {
    let config = format!(
        "[[credential]]\nbinding = \"payments\"\nsecret = \"PAYMENTS_KEY\"\nhost = \"{UPSTREAM_HOST}:{}\"\n\
         methods = [\"POST\"]\npaths = [\"/v1/*\"]\nslot = \"bearer\"\nca = \"ca.pem\"\n",
        upstream.address.port()
    );
    let project = fleet.small_project("key", &config, CALLER).unwrap();
    std::fs::write(project.join("ca.pem"), &upstream.ca_pem).unwrap();
    project
}

/// Sends requests until the answer has this status; returns its text.
async fn until(gateway: SocketAddr, status: u16) -> String {
    let mut last = None;
    let asked = async {
        loop {
            match caller::get(gateway, HOST, "/").await {
                Ok(answer) if answer.status == status => return answer.text(),
                other => last = Some(other),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let answer = tokio::time::timeout(SOON, asked).await;
    answer.unwrap_or_else(|_| panic!("expected {status}, got {last:?}"))
}

fn waits_for_log(node: &Node, text: &str) {
    let said = wait_until(SOON, || Ok(node.log().contains(text).then_some(())));
    assert!(said.is_ok(), "{text:?} is not in\n{}", node.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_storage_key_is_not_replaced_and_a_stolen_disk_uses_nothing_any_more() {
    let upstream = Upstream::start(UPSTREAM_HOST, UPSTREAM_KEY).await.unwrap();
    let mut fleet = block_in_place(Fleet::start).unwrap();
    let project = project(&fleet, &upstream);
    block_in_place(|| fleet.put_secret(&project)).unwrap();
    block_in_place(|| fleet.deploy(&project)).unwrap();
    until(fleet.node.gateway, 200).await;

    // Lost: the vault does not start, says what to do, and leaves its store untouched, so that the
    // operator can bring the file back.
    block_in_place(|| fleet.node.stop()).unwrap();
    let key = fleet.node.folder().join("state/vault/storage.key");
    let kept = fleet.folder.join("storage.key");
    std::fs::rename(&key, &kept).unwrap();
    block_in_place(|| fleet.node.restart()).unwrap();
    block_in_place(|| waits_for_log(&fleet.node, "storage.key is missing"));
    block_in_place(|| waits_for_log(&fleet.node, "casemate node revoke"));
    block_in_place(|| fleet.node.kill()).unwrap();
    assert!(!key.exists(), "no other key was made");
    std::fs::rename(&kept, &key).unwrap();
    block_in_place(|| fleet.node.restart()).unwrap();
    until(fleet.node.gateway, 200).await;

    // Stolen together with the disk that it opens: the machine joins anew, and the thief's copy
    // becomes worthless.
    block_in_place(|| fleet.node.stop()).unwrap();
    let folder = fleet.folder.clone();
    let operator =
        |args: &[&str]| block_in_place(|| fleet.operator.ok(&folder, args, b"")).unwrap();
    operator(&["node", "revoke", "edge-1", "--yes"]);
    operator(&["pool", "rotate", "main"]);
    operator(&["node", "token", "edge-1", "--out", "anew.token"]);
    let token = std::fs::read_to_string(folder.join("anew.token")).unwrap();
    let settings = Settings {
        hosts: vec![UPSTREAM_HOST.to_owned()],
        ..Settings::default()
    };
    let anew = block_in_place(|| Node::start(&folder.join("anew"), &token, &settings)).unwrap();
    operator(&["node", "admit", "edge-1", "--wait", "120"]);
    block_in_place(|| fleet.put_secret(&project)).unwrap();
    until(anew.gateway, 200).await;
    let mut stolen = std::mem::replace(&mut fleet.node, anew);
    block_in_place(|| fleet.node.stop()).unwrap();
    block_in_place(|| stolen.restart()).unwrap();
    let is_revoked = |status: &serde_json::Value| status["vault"]["revoked"] == true;
    block_in_place(|| stolen.wait_for("the copy is revoked", SOON, is_revoked)).unwrap();
    let text = until(stolen.gateway, 503).await;
    assert!(text.contains("credential_unusable"), "{text}");
    block_in_place(|| stolen.stop()).unwrap();
    block_in_place(|| fleet.node.restart()).unwrap();
    until(fleet.node.gateway, 200).await;
}

/// Signs certificates for [`HOST`].
struct Authority {
    root: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap();
        Self {
            root: root.der().clone(),
            issuer: Issuer::new(params, key),
        }
    }

    /// Writes a new key and its certificate into a folder, as an ACME client does; returns the
    /// certificate.
    fn renew(&self, folder: &Path) -> CertificateDer<'static> {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([HOST.to_owned()]).unwrap();
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        for (name, text) in [("chain.pem", leaf.pem()), ("key.pem", key.serialize_pem())] {
            let new = folder.join(format!("{name}.new"));
            std::fs::write(&new, text).unwrap();
            // The gateway's user has to read the key.
            std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o644)).unwrap();
            std::fs::rename(&new, folder.join(name)).unwrap();
        }
        leaf.der().clone()
    }

    /// The certificate that the node presents to a new connection; `None` without TLS.
    async fn shown(&self, address: SocketAddr) -> Option<CertificateDer<'static>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(address).await.ok()?;
        let name = ServerName::try_from(HOST).unwrap();
        let connector = TlsConnector::from(Arc::new(config));
        let stream = connector.connect(name, stream).await.ok()?;
        let (_, session) = stream.get_ref();
        Some(session.peer_certificates()?.first()?.clone().into_owned())
    }

    /// Waits until the node presents this certificate to new connections.
    async fn shows(&self, address: SocketAddr, wanted: &CertificateDer<'_>) {
        let looked = async {
            while self.shown(address).await.as_ref() != Some(wanted) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let came = tokio::time::timeout(SOON, looked).await;
        assert!(came.is_ok(), "the wanted certificate is not served");
    }
}

/// The address on which the node listens with TLS.
fn tls_address(fleet: &Fleet) -> SocketAddr {
    let is_listening = |status: &serde_json::Value| status["listening"][1].is_string();
    let status = block_in_place(|| fleet.node.wait_for("TLS", SOON, is_listening)).unwrap();
    status["listening"][1].as_str().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_tls_key_serves_on_until_a_new_pair_is_there_and_a_stolen_one_is_replaced() {
    let mut fleet = block_in_place(Fleet::start).unwrap();
    let source = "export default { fetch: () => new Response(\"served\") };";
    let project = fleet.small_project("key", "", source).unwrap();
    block_in_place(|| fleet.deploy(&project)).unwrap();
    block_in_place(|| fleet.node.stop()).unwrap();
    let (authority, folder) = (Authority::new(), fleet.node.folder().join("tls"));
    std::fs::create_dir(&folder).unwrap();
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    let first = authority.renew(&folder);
    let config = fleet.node.folder().join("node.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let tls = "listen_tls = [\"127.0.0.1:0\"]\n[[gateway.certificates]]\nchain = \"tls/chain.pem\"\nkey = \"tls/key.pem\"\n[workers]";
    std::fs::write(&config, text.replace("[workers]", tls)).unwrap();
    block_in_place(|| fleet.node.restart()).unwrap();
    let address = tls_address(&fleet);
    authority.shows(address, &first).await;

    // Stolen: the pair is replaced while the node runs, and no new connection gets the stolen
    // certificate.
    let second = authority.renew(&folder);
    authority.shows(address, &second).await;

    // Lost: the node serves on with the pair in memory, and loads the next pair without a restart.
    std::fs::remove_file(folder.join("key.pem")).unwrap();
    block_in_place(|| waits_for_log(&fleet.node, "renewed certificate refused"));
    authority.shows(address, &second).await;
    let third = authority.renew(&folder);
    authority.shows(address, &third).await;

    // Lost, and the node restarts: it serves nothing before the new pair exists, and then starts
    // without further help.
    block_in_place(|| fleet.node.stop()).unwrap();
    std::fs::remove_file(folder.join("key.pem")).unwrap();
    let log = fleet.node.folder().join("log");
    let fourth = block_in_place(|| {
        std::thread::scope(|scope| {
            let restarted = scope.spawn(|| fleet.node.restart());
            let is_said = || {
                let log = std::fs::read_to_string(&log)?;
                Ok(log.contains("the gateway cannot start").then_some(()))
            };
            wait_until(SOON, is_said).unwrap();
            let fourth = authority.renew(&folder);
            restarted.join().unwrap().unwrap();
            fourth
        })
    });
    authority.shows(tls_address(&fleet), &fourth).await;
    until(fleet.node.gateway, 200).await;
}
