//! `casemate image`.

use std::path::{Path, PathBuf};
use std::process::Command;

use casemate_images::{
    Apt, Compression, Image, Plan, Profile, Programs, SecureBootKey, boot_files,
    build as build_image, uki_path, write_disk,
};
use casemate_trust::id::Digest;
use serde_json::json;

use crate::args::{ImageBuild, ImageFormat};
use crate::error::{Code, Error};
use crate::machine::now;
use crate::output::table;
use crate::session::Context;

/// The environment variable with the image's date, so that two builds are the same
/// (reproducible-builds.org).
const SOURCE_DATE: &str = "SOURCE_DATE_EPOCH";

/// `casemate image build`
pub(super) fn build(cx: &Context, args: &ImageBuild) -> Result<(), Error> {
    let programs = match &args.programs {
        Some(folder) => folder.clone(),
        None => own_folder()?,
    };
    let programs = Programs::in_folder(programs);
    let mut packages = Apt::new(cache()?.join("debian"));
    let progress = cx.output.progress("planning: which kernel, which packages");
    let plan = plan(args, &programs, &mut packages)?;
    progress.say("downloading packages and packing files");
    let compression = if args.fast {
        Compression::Fast
    } else {
        Compression::Small
    };
    let mut image = build_image(&plan, &programs, &mut packages, compression).map_err(told)?;
    if let (Some(key), Some(certificate)) = (&args.secure_boot_key, &args.secure_boot_certificate) {
        let (key, certificate) = (key.clone(), certificate.clone());
        image
            .sign(&SecureBootKey { key, certificate })
            .map_err(told)?;
    }

    std::fs::create_dir_all(&args.out).map_err(cannot_write(&args.out))?;
    let mut made = write_parts(args, &plan, &image)?;
    if wants(args, ImageFormat::Raw) || wants(args, ImageFormat::Qcow2) {
        progress.say("writing the disk");
        made.extend(write_disks(args, &plan, &image)?);
    }
    drop(progress);
    tell(cx, args, &plan, &image, &made)
}

/// The plan of the option `--plan`, or a new one.
fn plan(args: &ImageBuild, programs: &Programs, packages: &mut Apt) -> Result<Plan, Error> {
    let plan = match &args.plan {
        Some(path) => Plan::read(path),
        None => {
            let profile = Profile::named(&args.profile).map_err(told)?;
            let version = args.image_version.map(|version| version.to_string());
            let version = version.unwrap_or_else(|| env!("CARGO_PKG_VERSION").to_owned());
            Plan::make(&profile, &version, source_date()?, programs, packages)
        }
    };
    plan.map_err(told)
}

/// A file that was written into the folder of the image.
struct Written {
    name: String,
    bytes: u64,
    /// The digest, for files that are small enough to be in memory.
    sha256: Option<Digest>,
}

impl Written {
    fn on_disk(folder: &Path, name: String) -> Result<Self, Error> {
        let path = folder.join(&name);
        let bytes = std::fs::metadata(&path).map_err(cannot_write(&path))?.len();
        Ok(Self {
            name,
            bytes,
            sha256: None,
        })
    }
}

fn wants(args: &ImageBuild, format: ImageFormat) -> bool {
    match &args.formats[..] {
        [] => format == ImageFormat::Uki,
        formats => formats.contains(&format),
    }
}

fn stem(plan: &Plan) -> String {
    format!("casemate_{}", plan.version)
}

/// Writes the plan, the bill of materials, and the files that boot without a disk.
fn write_parts(args: &ImageBuild, plan: &Plan, image: &Image) -> Result<Vec<Written>, Error> {
    let mut made = Vec::new();
    let mut write = |name: String, bytes: &[u8]| {
        let path = args.out.join(&name);
        std::fs::write(&path, bytes).map_err(cannot_write(&path))?;
        made.push(Written {
            name,
            bytes: bytes.len() as u64,
            sha256: Some(Digest::of(bytes)),
        });
        Ok::<_, Error>(())
    };
    write("plan.json".to_owned(), plan.to_text().as_bytes())?;
    let name = stem(plan);
    write(
        format!("{name}.cdx.json"),
        image.bill_of_materials.as_bytes(),
    )?;
    if wants(args, ImageFormat::Uki) {
        write(format!("{name}.efi"), &image.uki)?;
    }
    if wants(args, ImageFormat::Direct) {
        write(format!("{name}.vmlinuz"), &image.kernel)?;
        write(format!("{name}.initramfs"), &image.initramfs)?;
        write(
            format!("{name}.cmdline"),
            format!("{}\n", image.command_line).as_bytes(),
        )?;
    }
    Ok(made)
}

/// Writes the disk, in each of the formats that are wanted.
fn write_disks(args: &ImageBuild, plan: &Plan, image: &Image) -> Result<Vec<Written>, Error> {
    let mut made = Vec::new();
    let name = stem(plan);
    let raw = args.out.join(format!("{name}.raw"));
    disk(&raw, image, plan, args.state_mib)?;
    if wants(args, ImageFormat::Raw) {
        made.push(Written::on_disk(&args.out, format!("{name}.raw"))?);
    }
    if wants(args, ImageFormat::Qcow2) {
        convert(&raw, &args.out.join(format!("{name}.qcow2")))?;
        made.push(Written::on_disk(&args.out, format!("{name}.qcow2"))?);
        if !wants(args, ImageFormat::Raw) {
            std::fs::remove_file(&raw).map_err(cannot_write(&raw))?;
        }
    }
    Ok(made)
}

fn tell(
    cx: &Context,
    args: &ImageBuild,
    plan: &Plan,
    image: &Image,
    made: &[Written],
) -> Result<(), Error> {
    let files = made.iter().map(|written| {
        let file = args.out.join(&written.name);
        json!({ "file": file, "bytes": written.bytes, "sha256": written.sha256 })
    });
    let result = json!({
        "version": plan.version, "profile": plan.profile, "kernel": plan.kernel.version,
        "files": files.collect::<Vec<_>>(), "executables": image.executables,
    });
    cx.output.result(&result, || {
        let row = |written: &Written| {
            let digest = written.sha256;
            vec![
                args.out.join(&written.name).display().to_string(),
                format!("{:.1} MB", written.bytes as f64 / 1e6),
                digest.map_or("-".to_owned(), |digest| digest.to_string()),
            ]
        };
        let rows: Vec<_> = made.iter().map(row).collect();
        table(&["FILE", "SIZE", "SHA-256"], &rows)
    })?;
    cx.output.hint(
        "A node boots it with a join token from its seed: see the operator's guide, \"A node from \
         an image\".",
    );
    Ok(())
}

fn disk(path: &Path, image: &Image, plan: &Plan, state_mib: u32) -> Result<(), Error> {
    let state_bytes = u64::from(state_mib) * 1024 * 1024;
    let uki = uki_path(&plan.version);
    let files = boot_files(image, &uki);
    write_disk(path, &files, state_bytes, &plan.to_text()).map_err(told)
}

fn convert(raw: &Path, qcow2: &Path) -> Result<(), Error> {
    let run = Command::new("qemu-img")
        .args(["convert", "-f", "raw", "-O", "qcow2"])
        .args([raw, qcow2])
        .output();
    let failed = |what: String| {
        let next = "install qemu-utils, or take the raw format";
        Error::new(Code::CannotCreate, what, next).at(qcow2.display())
    };
    let run = run.map_err(|error| failed("qemu-img could not be run".to_owned()).source(error))?;
    if run.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&run.stderr);
    Err(failed(format!("qemu-img ended with {}", run.status)).lines([said.trim().to_owned()]))
}

fn own_folder() -> Result<PathBuf, Error> {
    let this = std::env::current_exe().ok();
    let folder = this.and_then(|path| Some(path.parent()?.to_owned()));
    folder.ok_or_else(|| {
        Error::new(
            Code::Input,
            "the node's programs are not found",
            "name their folder with `--programs`",
        )
    })
}

fn cache() -> Result<PathBuf, Error> {
    let named = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache"));
    let folder = named.filter(|path| path.is_absolute()).or_else(home);
    folder.map(|folder| folder.join("casemate")).ok_or_else(|| {
        Error::new(
            Code::Usage,
            "there is no folder for downloads",
            "set HOME or XDG_CACHE_HOME",
        )
    })
}

fn source_date() -> Result<u32, Error> {
    let Some(text) = std::env::var_os(SOURCE_DATE) else {
        return Ok(u32::try_from(now()).unwrap_or(u32::MAX));
    };
    let text = text.to_string_lossy();
    text.parse().map_err(|error| {
        let next = "set it to Unix seconds, or not at all";
        Error::new(
            Code::Usage,
            format!("{SOURCE_DATE} is not a time: {text:?}"),
            next,
        )
        .source(Box::<dyn std::error::Error + Send + Sync>::from(format!(
            "{error}"
        )))
    })
}

fn cannot_write(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let place = path.display().to_string();
    move |error| {
        let next = "check the folder and the free disk space";
        Error::new(Code::CannotCreate, "cannot write the image", next)
            .at(place)
            .source(error)
    }
}

/// The builder's error, with a next step.
fn told(error: casemate_images::Error) -> Error {
    use casemate_images::Error as E;
    let (code, next) = match &error {
        E::ProfileUnknown { .. } => (Code::Usage, "name one of these with `--profile`"),
        E::Program { .. } => (
            Code::Input,
            "build them, or name their folder with `--programs`",
        ),
        E::Tool { .. } => (
            Code::Unreachable,
            "check that the tool is installed and that Debian's archive can be reached",
        ),
        E::File { .. } => (Code::Io, "check the path and the free disk space"),
        E::Key(_) => (
            Code::Input,
            "sign with an RSA key of 2048 bits, which every TPM knows: `openssl genrsa 2048`",
        ),
        E::Version(_) => (Code::Usage, "give it a version such as 1.2.3"),
        E::Digest { .. } => (
            Code::Refused,
            "the plan names other bytes: make a new plan, or find out who changed them",
        ),
        _ => (
            Code::Internal,
            "this profile does not fit these packages: please report it with the plan",
        ),
    };
    Error::new(code, "no image was made", next).source(error)
}
