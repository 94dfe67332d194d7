//! Refused calls: the error that the function sees, and the answer of the caller if the function
//! does not catch it.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod harness;

use casemate_channel::StreamError;
use casemate_wire::CallCode;
use casemate_wire::control::Failure;
use harness::{answer, function, head, whole};

#[tokio::test]
async fn every_code_reaches_the_function_and_its_failure_the_caller() {
    let source = r#"export default {
        async fetch(request) {
            if (request.url.endsWith("/uncaught")) return fetch("https://api.test/");
            const error = await fetch("https://api.test/").catch((error) => error);
            return new Response(`${error instanceof TypeError} ${error.code} ${error.message}`);
        },
    };"#;
    let mut worker = function(source).await;
    let known = CallCode::ALL
        .iter()
        .map(|code| (code.name(), code.name(), code.failure()));
    // A taken-over vault may send any code.
    let unknown = [("exceeded_cpu", "call_failed", Failure::Exception)];
    for (said, code, failure) in known.chain(unknown) {
        let refusal = [(":error", said), (":message", "because")];
        let exchange = worker.open(head("GET", "https://fn.test/"), true);
        answer(worker.vault.accept().await.unwrap(), 0, &refusal, "").await;
        let (_, mut body) = exchange.response.head().await.unwrap();
        let expected = format!("true {code} because");
        assert_eq!(whole(&mut body).await.unwrap(), expected.as_bytes());
        assert_eq!(worker.outcome().await.failure, None);

        let exchange = worker.open(head("GET", "https://fn.test/uncaught"), true);
        answer(worker.vault.accept().await.unwrap(), 0, &refusal, "").await;
        let error = exchange.response.head().await.unwrap_err();
        assert_eq!(error, StreamError::Reset(failure.to_reset()), "{said}");
        assert_eq!(worker.outcome().await.failure, Some(failure), "{said}");
    }
}
