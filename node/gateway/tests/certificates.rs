//! Certificates whose files change while the sandboxed gateway serves them.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod harness;

use std::fs;

use bytes::Bytes;
use casemate_wire::control::gateway::{
    Certificate, CertificateFiles, FromGateway, Listener, Start, ToGateway,
};
use harness::{Node, SOON, describe, http2, http2_connector, perimeter, route, start, work};
use http::Request;
use http_body_util::{BodyExt as _, Empty};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_string_lossy().into_owned()
    }

    /// Writes a new pair and moves it into place, as tools for certificates do.
    fn renew(&self, year: i32) -> CertificateDer<'static> {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        let made = params.self_signed(&key).unwrap();
        for (name, text) in [("chain.pem", made.pem()), ("key.pem", key.serialize_pem())] {
            fs::write(self.path("new"), text).unwrap();
            fs::rename(self.path("new"), self.path(name)).unwrap();
        }
        made.der().clone()
    }
}

async fn report(node: &mut Node) -> Certificate {
    node.hear(|message| match message {
        FromGateway::Certificates(served) => Some(served[0].clone()),
        _ => None,
    })
    .await
}

async fn connect(node: &Node, trusted: &CertificateDer<'static>) -> TlsStream<TcpStream> {
    let connector = http2_connector(trusted);
    let name = ServerName::try_from("a.test").unwrap();
    let connected = connector.connect(name, node.connect().await);
    timeout(SOON, connected).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_renewed_certificate_is_served_and_a_bad_one_is_refused() {
    let files = Files {
        folder: tempfile::tempdir().unwrap(),
    };
    let first = files.renew(2040);
    let mut node = Node::start(Start {
        listeners: vec![Listener {
            address: "127.0.0.1:0".into(),
            tls: true,
        }],
        certificates: vec![CertificateFiles {
            chain: files.path("chain.pem"),
            key: files.path("key.pem"),
        }],
        ..start()
    })
    .await;
    node.say(route("f", &["a.test"], perimeter())).await;
    tokio::spawn(work(node.worker("f", 1, 8).await, describe));
    let told = report(&mut node).await;
    assert_eq!((told.chain, told.refused), (files.path("chain.pem"), None));
    let mut before = http2(connect(&node, &first).await).await;

    let second = files.renew(2041);
    node.say(ToGateway::Reload).await;
    assert!(report(&mut node).await.expires > told.expires);
    connect(&node, &second).await;
    // Existing connections continue.
    let request = Request::get("https://a.test/").body(Empty::<Bytes>::new());
    let answer = timeout(SOON, before.send_request(request.unwrap())).await;
    let answer = answer.unwrap().unwrap();
    assert_eq!(answer.status(), 200);
    answer.into_body().collect().await.unwrap();

    fs::write(files.path("chain.pem"), "half of a cert").unwrap();
    node.say(ToGateway::Reload).await;
    let refused = report(&mut node).await.refused.unwrap();
    assert!(refused.contains("chain.pem"), "{refused}");
    connect(&node, &second).await;

    // Found by the periodic check.
    let third = files.renew(2042);
    assert_eq!(report(&mut node).await.refused, None);
    connect(&node, &third).await;
}
