//! The upstream that functions call, in a process of its own. The program prints one line of JSON
//! with its address and its certificate authority, and runs until it is killed.
#![forbid(unsafe_code)]

use std::io::Write as _;

use anyhow::Result;
use casemate_tests::fleet::{UPSTREAM_HOST, UPSTREAM_KEY};
use casemate_tests::upstream::Upstream;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let upstream = Upstream::start_forgetful(UPSTREAM_HOST, UPSTREAM_KEY).await?;
    let said = serde_json::json!({ "address": upstream.address, "ca_pem": upstream.ca_pem });
    writeln!(std::io::stdout(), "{said}")?;
    std::future::pending::<()>().await;
    Ok(())
}
