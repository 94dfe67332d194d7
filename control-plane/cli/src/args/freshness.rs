//! Commands of the tenant about freshness.

use std::path::PathBuf;

use casemate_api::limits::FRESHNESS_INTERVAL_SECS;
use casemate_trust::freshness::{MAX_MAX_AGE_SECS, MIN_MAX_AGE_SECS};
use casemate_trust::key::PublicKey;
use clap::{Args, Subcommand};

use super::{NewKey, Signing, Whose, seconds, span};

/// `casemate freshness`
#[derive(Debug, Subcommand)]
pub enum Freshness {
    /// Make a key that can renew freshness and nothing else
    Key(FreshnessKey),
    /// Sign a manifest whose credentials stop unless freshness is renewed in time
    Require(FreshnessRequire),
    /// Confirm that the newest manifest is still the newest
    Renew(FreshnessRenew),
    /// What is demanded, and until when the manifest is fresh
    Show(Whose),
    /// Demand no freshness any more
    Off(FreshnessOff),
}

/// `casemate freshness key`
#[derive(Debug, Args)]
pub struct FreshnessKey {
    /// How the key is kept
    #[command(flatten)]
    pub new_key: NewKey,
}

/// `casemate freshness require`
#[derive(Debug, Args)]
pub struct FreshnessRequire {
    /// How long credentials are used after freshness was last renewed, from 60s to 30d
    #[arg(long, value_name = "TIME", value_parser = max_age)]
    pub max_age: u64,
    /// The public key that `casemate freshness key` printed: it may renew freshness too [default:
    /// the earlier one]
    #[arg(long, value_name = "PUBLIC_KEY", conflicts_with = "no_key")]
    pub key: Option<PublicKey>,
    /// Only the tenant's keys renew freshness from now on
    #[arg(long)]
    pub no_key: bool,
    /// How the manifest is signed
    #[command(flatten)]
    pub signing: Signing,
}

/// `casemate freshness renew`
#[derive(Debug, Args)]
pub struct FreshnessRenew {
    /// Go on until stopped, and renew this often, such as 10m
    #[arg(long, value_name = "TIME", value_parser = every)]
    pub every: Option<u64>,
    /// A file that holds the version of the newest manifest, or what `casemate --json deploy` printed: needed where another
    /// home deploys, and read before each renewal
    #[arg(long, value_name = "FILE")]
    pub newest_from: Option<PathBuf>,
    /// One more of the tenant's key files that signs, where several must; once for each
    #[arg(long = "with-key", value_name = "FILE")]
    pub with_keys: Vec<PathBuf>,
    /// For whom
    #[command(flatten)]
    pub whose: Whose,
}

/// `casemate freshness off`
#[derive(Debug, Args)]
pub struct FreshnessOff {
    /// How the manifest is signed
    #[command(flatten)]
    pub signing: Signing,
}

fn max_age(text: &str) -> Result<u64, String> {
    within(text, MIN_MAX_AGE_SECS, MAX_MAX_AGE_SECS)
}

fn every(text: &str) -> Result<u64, String> {
    within(text, FRESHNESS_INTERVAL_SECS, MAX_MAX_AGE_SECS)
}

fn within(text: &str, least: u64, most: u64) -> Result<u64, String> {
    let time = seconds(text)?;
    if (least..=most).contains(&time) {
        Ok(time)
    } else {
        let (least, most) = (span(least), span(most));
        Err(format!("expected {least} to {most}, got {}", span(time)))
    }
}
