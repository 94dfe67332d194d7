//! `casemate image push` and `list`: an image file becomes the image of the machines of a pool.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use casemate_api::image::{ImageList, ImageUpload, ImageView};
use casemate_api::limits::{MAX_IMAGE_BYTES, MAX_IMAGE_PART_BYTES};
use casemate_images::inspect;
use casemate_trust::dsse::Envelope;
use casemate_trust::id::Digest;
use casemate_trust::image::{Image, ImageVersion};
use casemate_trust::judge::Refusal;
use casemate_trust::key::SigningKey;
use casemate_trust::name::Name;
use casemate_trust::statement::Statement as _;
use http::Method;
use serde_json::json;

use crate::args::ImagePush;
use crate::client::Api;
use crate::error::{Code, Error};
use crate::machine::{DAY, date, now, short};
use crate::memory::refused_statement;
use crate::output::{Progress, table};
use crate::session::{Context, Session};

/// How often a part that does not arrive is sent again; each part that arrives resets the count.
const TRIES: u32 = 5;
/// Pause between two tries.
const PAUSE: Duration = Duration::from_secs(1);

/// An image file, read whole: the file is checked and hashed before any byte of it is sent.
struct Candidate {
    bytes: Bytes,
    digest: Digest,
    version: ImageVersion,
    profile: Option<String>,
}

impl Candidate {
    fn read(path: &Path, may_be_unsigned: bool) -> Result<Self, Error> {
        let unreadable = |error: std::io::Error| {
            Error::new(Code::Input, "the image cannot be read", "check the path")
                .at(path.display())
                .source(error)
        };
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(unreadable)?;
        let mut file = file.take(MAX_IMAGE_BYTES + 1);
        file.read_to_end(&mut bytes).map_err(unreadable)?;
        if bytes.len() as u64 > MAX_IMAGE_BYTES {
            let what = format!("the file is larger than {MAX_IMAGE_BYTES} bytes");
            let next = "name the .efi file that `casemate image build` made, not a disk";
            return Err(Error::new(Code::Input, what, next).at(path.display()));
        }
        let no_image = |error: Box<dyn std::error::Error + Send + Sync>| {
            let next = "name a .efi file that `casemate image build` made; `--image-version` gives \
                 it a version";
            Error::new(Code::Input, "the file cannot be pushed", next)
                .at(path.display())
                .source(error)
        };
        let inspected = inspect(&bytes).map_err(|error| no_image(error.into()))?;
        let is_whole = inspected.is_signed && inspected.is_approved;
        if !is_whole && !may_be_unsigned {
            // A machine with Secure Boot would not start an unsigned image, and somebody would have
            // to repair it by hand.
            let next = "build it with `--secure-boot-key`; `--unsigned` is for machines without \
                 Secure Boot";
            return Err(Error::new(
                Code::Refused,
                "the image is not signed, or was changed after it was signed",
                next,
            )
            .at(path.display()));
        }
        let version = inspected.version.parse();
        Ok(Self {
            digest: Digest::of(&bytes),
            bytes: bytes.into(),
            version: version.map_err(|error: casemate_trust::image::ImageVersionError| {
                no_image(error.into())
            })?,
            profile: inspected.profile,
        })
    }
}

/// `casemate image push`
pub(super) async fn push(cx: &Context, args: &ImagePush) -> Result<(), Error> {
    let progress = cx.output.progress("reading the image");
    let image = Candidate::read(&args.file, args.unsigned)?;
    let mut session = Session::open(cx).await?;
    session.read_pools().await?;
    let mut pools: Vec<Name> = args.pools.clone();
    pools.sort();
    pools.dedup();
    for pool in &pools {
        if session.known.judge().newest_pool(pool).is_none() {
            return Err(Error::new(
                Code::NotFound,
                format!("there is no pool {pool}"),
                "`casemate pool list` shows the pools of the fleet",
            ));
        }
    }
    drop(progress);
    let root = cx.root_key()?;
    let issued = session.known.judge().time(now());
    let statement = Image {
        fleet: session.fleet(),
        version: image.version,
        digest: image.digest,
        bytes: image.bytes.len() as u64,
        pools: pools.clone(),
        issued,
        expires: issued + u64::from(args.lifetime.expires_days) * DAY,
    };
    let envelope = statement.sign(&[&root]);
    // Check before minutes of upload whether the statement would be refused; a refusal changes
    // nothing.
    let decided = session.known.decide(&envelope, now());
    drop(decided.map_err(|refusal| refused_statement(&envelope, refusal))?);
    // Other commands may use this home during the upload.
    session.unlock();
    let progress = cx.output.progress("uploading the image");
    let sent_bytes = upload(&mut session.api, &image, &progress).await?;
    drop(progress);
    session.relock()?;
    let answer = session.publish(&envelope).await?;
    let result = json!({
        "version": image.version, "digest": image.digest, "bytes": image.bytes.len(),
        "profile": image.profile, "pools": pools, "sent_bytes": sent_bytes, "revision": answer.revision,
    });
    let names: Vec<_> = pools.iter().map(Name::as_str).collect();
    let names = names.join(", ");
    cx.output.result(&result, || {
        format!(
            "image {} is now the image of the machines of {names}, sha256 {}",
            image.version, image.digest
        )
    })?;
    cx.output.hint(
        "Each node fetches and checks the image; machines that boot from images then restart into \
         it. `casemate node list` shows each node's progress.",
    );
    Ok(())
}

/// Sends the parts that the control plane lacks; returns the number of bytes sent.
async fn upload(api: &mut Api, image: &Candidate, progress: &Progress) -> Result<u64, Error> {
    let total = image.bytes.len() as u64;
    let path = format!("/v1/images/{}", image.digest);
    let (mut sent, mut tries, mut most) = (0, 0, None);
    loop {
        let step = async {
            let there: ImageUpload = api.get(&path).await?;
            if there.whole {
                return Ok::<_, Error>((there, 0));
            }
            let offset = there.received_bytes.min(total);
            progress.bytes("uploading the image", offset, total);
            let end = total.min(offset + MAX_IMAGE_PART_BYTES);
            // Both indexes are within a file that is in memory.
            let part = image.bytes.slice(offset as usize..end as usize);
            let path = format!("{path}?offset={offset}&bytes={total}");
            let kind = "application/octet-stream";
            api.send_bytes(Method::PUT, &path, kind, part).await?;
            Ok((there, end - offset))
        };
        let error = match step.await {
            Ok((there, _)) if there.whole => return Ok(sent),
            Ok((there, bytes)) => {
                sent += bytes;
                if most.replace(there.received_bytes) < Some(there.received_bytes) {
                    tries = 0;
                    continue;
                }
                let next = "see the control plane's log";
                Error::new(
                    Code::Api,
                    "the control plane does not keep the uploaded bytes of the image",
                    next,
                )
            }
            // The control plane keeps the parts that arrived; another person may upload the same
            // file at the same time.
            Err(error) if matches!(error.code(), Code::Unreachable | Code::Conflict) => error,
            Err(error) => return Err(error),
        };
        tries += 1;
        if tries >= TRIES {
            let line = "the control plane keeps the uploaded part for a day: run the same command \
            again to continue";
            return Err(error.lines([line.to_owned()]));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// `casemate image list`
pub(super) async fn list(cx: &Context) -> Result<(), Error> {
    let mut session = Session::open(cx).await?;
    let list: ImageList = session.api.get("/v1/images").await?;
    // Lower versions first: each image is judged as the next one of its pools.
    for view in list.images.iter().rev() {
        if let Some(why) = doubt(&mut session, view) {
            cx.output.warn(&format!(
                "image {} is not the newest image that the root has signed: {why}; no node accepts \
                 it",
                view.version
            ));
        }
    }
    session.keep()?;
    cx.output.result(&list.images, || {
        let rows: Vec<_> = list
            .images
            .iter()
            .map(|image| {
                let pools: Vec<_> = image.pools.iter().map(Name::as_str).collect();
                vec![
                    image.version.to_string(),
                    pools.join(", "),
                    format!("{:.1} MB", image.bytes as f64 / 1e6),
                    date(image.expires),
                    short(&image.digest),
                ]
            })
            .collect();
        table(&["IMAGE", "POOLS", "SIZE", "EXPIRES", "SHA-256"], &rows)
    })
}

/// Signs the images that an earlier root signed again with the newest root's key, for machines that
/// join later; returns how many.
pub(super) async fn sign_anew(
    session: &mut Session<'_>,
    root: &SigningKey,
) -> Result<usize, Error> {
    if session
        .known
        .judge()
        .root()
        .is_none_or(|root| root.version == 1)
    {
        return Ok(0);
    }
    let list: ImageList = session.api.get("/v1/images").await?;
    let mut count = 0;
    for view in list.images {
        let is_signed = view.statement.verify(&[root.public()], 1);
        // Only statements that this home knows to be signed by the root are signed again; the
        // control plane's claim does not suffice.
        if !is_signed && session.known.was_signed_by_root(&view.statement) {
            let payload = view.statement.unverified_payload().to_vec();
            let again = Envelope::sign(view.statement.payload_type(), payload, &[root]);
            session.publish_image(&again).await?;
            count += 1;
        }
    }
    Ok(count)
}

/// Why a listed image is not to be believed, if so.
fn doubt(session: &mut Session<'_>, view: &ImageView) -> Option<String> {
    let image = match Image::read(&view.statement) {
        Ok(image) => image,
        Err(message) => return Some(message),
    };
    let is_same = (image.version, image.digest, image.bytes, image.expires)
        == (view.version, view.digest, view.bytes, view.expires)
        && view.pools.iter().all(|pool| image.pools.contains(pool));
    if !is_same {
        return Some("the list and the statement differ".into());
    }
    match session.known.decide(&view.statement, now()) {
        Ok(change) => session
            .known
            .keep(change, &view.statement)
            .err()
            .map(|error| error.summary()),
        Err(Refusal::ImageExpired(_)) => None,
        Err(refusal) => Some(refusal.to_string()),
    }
}
