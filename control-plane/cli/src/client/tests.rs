use casemate_api::error::{ErrorBody, code};
use http::StatusCode;

use super::*;

#[test]
fn addresses() {
    for (text, shown) in [
        (
            "https://control.example:8443#ab",
            "https://control.example:8443",
        ),
        ("https://control.example", "https://control.example:443"),
        ("https://[::1]:9", "https://[::1]:9"),
    ] {
        assert_eq!(Address::parse(text).unwrap().to_string(), shown);
    }
    for bad in [
        "",
        "control.example",
        "http://control.example",
        "https://",
        "https://user@x:1",
    ] {
        assert_eq!(
            Address::parse(bad).unwrap_err().code(),
            Code::Usage,
            "{bad}"
        );
    }
}

#[test]
fn answers_of_the_api_become_errors_with_a_next_step() {
    let body = |code: &str| serde_json::to_vec(&ErrorBody::new(code, "m\u{1b}[2J")).unwrap();
    for (remote, status, code) in [
        (code::UNAUTHENTICATED, 401, Code::Forbidden),
        (code::NOT_FOUND, 404, Code::NotFound),
        (code::MANIFEST_CONFLICT, 409, Code::Conflict),
        (code::NODE_EXISTS, 409, Code::Exists),
        (code::STORAGE_FULL, 507, Code::Unreachable),
        (code::QUOTA_EXCEEDED, 413, Code::Api),
        ("release_host_not_tenants", 422, Code::Api),
    ] {
        let error = refused(StatusCode::from_u16(status).unwrap(), &body(remote));
        assert_eq!((error.code(), error.remote_code()), (code, Some(remote)));
        assert!(!error.to_text().contains('\u{1b}'));
    }
    let html = refused(StatusCode::BAD_GATEWAY, "<html>".repeat(1000).as_bytes());
    assert_eq!(html.code(), Code::Unreachable);
    assert!(html.to_text().len() < 1000);
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_an_error_within_the_timeout() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let address = Address::parse(&format!("https://127.0.0.1:{port}")).unwrap();
    let error = Api::meet(address).await.unwrap_err();
    assert_eq!(error.code(), Code::Unreachable);
    assert_eq!(error.code().exit(), 69);
}

#[test]
fn versions_that_differ_are_named_where_one_may_not_know_the_other() {
    assert_eq!(versions(None), None);
    assert_eq!(versions(Some("nginx/1.2")), None);
    let ours = concat!("casemate-control/", env!("CARGO_PKG_VERSION"));
    assert_eq!(versions(Some(ours)), None);
    let text = versions(Some("casemate-control/0.0.9")).unwrap();
    for part in [
        "0.0.9",
        env!("CARGO_PKG_VERSION"),
        "Upgrade the control plane first",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(may_be_unknown(StatusCode::NOT_FOUND) && !may_be_unknown(StatusCode::FORBIDDEN));
}
