//! From a plan to an image.

use std::collections::{BTreeMap, BTreeSet};

use casemate_measured_boot::ApprovalKey;
use casemate_trust::image::{ImageVersion, MAX_IMAGE_BYTES};

use crate::debian::Source;
use crate::elf::Needs;
use crate::kernel::{Kernel, MODULE_FOLDER, MODULE_LIST};
use crate::package::{Package, Packed};
use crate::plan::{Plan, Programs};
use crate::sbom::bill;
use crate::squashfs::squash;
use crate::uki::{Parts, unify};
use crate::{Error, Node, Profile, Tree, elf, initramfs};

const STUB_PATH: &str = "usr/lib/systemd/boot/efi/linuxx64.efi.stub";
const CERTIFICATE_FOLDER: &str = "usr/share/ca-certificates/";
const CERTIFICATES: &str = "etc/ssl/certs/ca-certificates.crt";
/// Where Debian's loader looks for libraries.
const LIBRARY_FOLDER: &str = "lib/x86_64-linux-gnu";

/// Folders of the system that something is mounted on. What the boot stub passes on is found in
/// `.extra`.
const FOLDERS: &[&str] = &[".extra", "dev", "proc", "run", "state", "sys", "tmp"];

/// Where init stands in the initramfs: the kernel looks for it there.
const INIT: &str = "init";
/// The system's file system, in the initramfs.
const SYSTEM: &str = "system.squashfs";
/// Folders of the initramfs: for devices, and for the system until it is the root.
const FIRST_FOLDERS: &[&str] = &["dev", "mnt"];
/// What mounting the system needs of the kernel: init loads it as it is listed, but for the disk in
/// memory, to which it says a size.
const FIRST_MODULES: [&str; 1] = ["squashfs"];
const DISK_MODULE: &str = "brd";

/// How hard to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// In a second: for tests.
    Fast,
    /// A quarter smaller, in a minute.
    Small,
}

/// The loader that starts one of several images and counts tries.
const LOADER_PATH: &str = "usr/lib/systemd/boot/efi/systemd-bootx64.efi";

/// What can be booted.
#[derive(Debug)]
pub struct Image {
    /// The kernel, for a machine that loads it by itself.
    pub kernel: Vec<u8>,
    /// Its initramfs.
    pub initramfs: Vec<u8>,
    /// Its command line.
    pub command_line: String,
    /// All three in one file for UEFI, not signed.
    pub uki: Vec<u8>,
    /// The boot loader for a disk, not signed.
    pub loader: Vec<u8>,
    /// Its version.
    pub version: String,
    /// What it is made of: CycloneDX, JSON.
    pub bill_of_materials: String,
    /// The paths of everything in it that can be run, in order.
    pub executables: BTreeSet<String>,
    /// What else is in the unified image.
    stub: Vec<u8>,
    os_release: String,
    kernel_release: String,
}

impl Image {
    /// The three in one, approved by a key if there is one.
    pub(crate) fn unify(
        &self,
        key: Option<(&ApprovalKey, ImageVersion)>,
    ) -> Result<Vec<u8>, Error> {
        let parts = Parts {
            os_release: &self.os_release,
            command_line: &self.command_line,
            kernel_release: &self.kernel_release,
            initramfs: &self.initramfs,
            kernel: &self.kernel,
        };
        let uki = unify(&self.stub, &parts, key)?;
        if uki.len() as u64 > MAX_IMAGE_BYTES {
            return Err(Error::TooLarge {
                what: "the unified kernel image".into(),
                max: MAX_IMAGE_BYTES,
                got: uki.len() as u64,
            });
        }
        Ok(uki)
    }
}

/// Makes the image of a plan.
///
/// # Errors
/// Something is not there any more, or is not what the plan names.
pub fn build(
    plan: &Plan,
    programs: &Programs,
    packages: &mut dyn Source,
    compression: Compression,
) -> Result<Image, Error> {
    let profile = Profile::named(&plan.profile)?;
    profile.check(&plan.profile_sha256)?;
    let mut get = |file| Package::read(&packages.get(file)?, &file.file);
    let (kernel_package, stub) = (get(&plan.kernel)?, get(&plan.stub)?);
    let mut others = BTreeMap::new();
    for (name, file) in &plan.packages {
        others.insert(name.as_str(), get(file)?);
    }
    let kernel = Kernel::of(&kernel_package)?;

    let libraries: Result<Vec<_>, _> = profile
        .libraries
        .iter()
        .map(|name| other(&others, name))
        .collect();
    let libraries = libraries?;

    let mut first = Tree::default();
    let mut system = Tree::default();
    for (tree, folders) in [(&mut first, FIRST_FOLDERS), (&mut system, FOLDERS)] {
        for folder in folders {
            tree.add(folder, Node::Folder)?;
        }
    }
    for file in &plan.programs {
        let is_init = file.path == INIT;
        let tree = if is_init { &mut first } else { &mut system };
        tree.program(&file.path, programs.get(file)?)?;
    }
    add_files(&mut system, &profile, &others)?;
    let certificates = certificates(other(&others, &profile.certificates)?);
    system.file(CERTIFICATES, certificates)?;
    let os_release = os_release(plan);
    add_settings(&mut system, plan, &os_release)?;
    add_libraries(&mut system, &libraries)?;
    add_libraries(&mut first, &libraries)?;
    add_modules(
        &mut first,
        &kernel.modules(&FIRST_MODULES.map(str::to_owned))?,
    )?;
    add_disk_module(&mut first, &kernel)?;
    add_modules(&mut system, &kernel.modules(&profile.modules)?)?;
    let executables = first.executables().chain(system.executables());
    let executables = executables.map(ToOwned::to_owned).collect();

    let mut made_of = vec![(&plan.kernel, &kernel_package), (&plan.stub, &stub)];
    made_of.extend(plan.packages.values().zip(others.values()));
    let bill_of_materials = bill(plan, &made_of);
    let command_line = profile.command_line.join(" ");
    let level = match compression {
        Compression::Fast => 3,
        Compression::Small => 19,
    };
    first.file(SYSTEM, squash(&system, plan.time, level)?)?;
    let initramfs = initramfs::archive(&first, plan.time)?;
    let initramfs = initramfs::compress(&initramfs, level.cast_signed())?;
    let mut image = Image {
        kernel: kernel.image()?.to_vec(),
        initramfs,
        command_line,
        uki: Vec::new(),
        loader: stub.file(LOADER_PATH)?.to_vec(),
        version: plan.version.clone(),
        bill_of_materials,
        executables,
        stub: stub.file(STUB_PATH)?.to_vec(),
        os_release,
        kernel_release: kernel.release.clone(),
    };
    image.uki = image.unify(None)?;
    Ok(image)
}

/// Adds what the system says of itself, and how names are resolved.
fn add_settings(system: &mut Tree, plan: &Plan, os_release: &str) -> Result<(), Error> {
    system.file("etc/os-release", os_release)?;
    system.file("etc/casemate/image.json", description(plan))?;
    system.file("etc/nsswitch.conf", "hosts: files dns\n")?;
    system.file("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n")?;
    system.add("etc/resolv.conf", Node::Link("/run/resolv.conf".into()))
}

/// Adds the profile's files from their packages; what can be run, as programs.
fn add_files(
    system: &mut Tree,
    profile: &Profile,
    others: &BTreeMap<&str, Package>,
) -> Result<(), Error> {
    for (name, paths) in &profile.files {
        let package = other(others, name)?;
        for path in paths {
            let bytes = package.file(path)?.to_vec();
            if bytes.starts_with(b"\x7fELF") {
                system.program(path, bytes)?;
            } else {
                system.file(path, bytes)?;
            }
        }
    }
    Ok(())
}

/// Adds the module that makes a disk in memory. Init loads it alone, with a size: built into the
/// kernel, it would have another.
fn add_disk_module(first: &mut Tree, kernel: &Kernel<'_>) -> Result<(), Error> {
    let disk = kernel.modules(&[DISK_MODULE.to_owned()])?;
    let [(name, bytes)] = &disk[..] else {
        return Err(Error::Module {
            name: DISK_MODULE.to_owned(),
            message: format!("expected one module, got {}", disk.len()),
        });
    };
    first.file(&format!("{MODULE_FOLDER}/{name}"), *bytes)
}

/// Adds modules, and the order in which they are loaded.
fn add_modules(tree: &mut Tree, modules: &[(String, &[u8])]) -> Result<(), Error> {
    let mut order = String::new();
    for (name, bytes) in modules {
        tree.file(&format!("{MODULE_FOLDER}/{name}"), *bytes)?;
        order.push_str(name);
        order.push('\n');
    }
    tree.file(MODULE_LIST, order)
}

fn other<'a>(packages: &'a BTreeMap<&str, Package>, name: &str) -> Result<&'a Package, Error> {
    packages.get(name).ok_or_else(|| Error::Package {
        name: name.to_owned(),
        message: "the profile takes files from it, and the plan does not name it".into(),
    })
}

/// Adds the loader and every library that a program, or a library of one, asks for.
fn add_libraries(tree: &mut Tree, packages: &[&Package]) -> Result<(), Error> {
    let needs = |(path, node): (&str, &Node)| match node {
        Node::File {
            bytes,
            executable: true,
        } => Some(elf::needs(path, bytes).map(|needs| (path.to_owned(), needs))),
        _ => None,
    };
    let mut open: Vec<(String, Needs)> = tree.iter().filter_map(needs).collect::<Result<_, _>>()?;
    while let Some((path, needs)) = open.pop() {
        let named = needs.libraries.iter().map(String::as_str);
        let interpreter = needs.interpreter.as_deref();
        let interpreter = interpreter.and_then(|path| path.rsplit('/').next());
        for name in interpreter.into_iter().chain(named) {
            // The loader is a library too, at a path of its own.
            let folder = if name.starts_with("ld-linux") {
                "lib64"
            } else {
                LIBRARY_FOLDER
            };
            let place = format!("{folder}/{name}");
            if tree.contains(&place) {
                continue;
            }
            let places = [
                place.clone(),
                format!("usr/{LIBRARY_FOLDER}/{name}"),
                format!("{LIBRARY_FOLDER}/{name}"),
            ];
            let found = packages
                .iter()
                .find_map(|package| places.iter().find_map(|place| package.file(place).ok()));
            let library = found.ok_or_else(|| Error::Library {
                path: path.clone(),
                library: name.to_owned(),
            })?;
            tree.program(&place, library)?;
            let needs = elf::needs(&place, library)?;
            open.push((place, needs));
        }
    }
    Ok(())
}

/// Certificates of all authorities in one file.
fn certificates(package: &Package) -> Vec<u8> {
    let mut all = Vec::new();
    for (path, packed) in &package.files {
        if let Packed::File(bytes) = packed
            && path.starts_with(CERTIFICATE_FOLDER)
            && path.ends_with(".crt")
        {
            all.extend_from_slice(bytes);
            all.push(b'\n');
        }
    }
    all
}

/// `os-release(5)`.
fn os_release(plan: &Plan) -> String {
    let (version, profile) = (&plan.version, &plan.profile);
    format!(
        "NAME=\"Casemate\"\nID=casemate\nPRETTY_NAME=\"Casemate {version} ({profile})\"\n\
         VERSION_ID={version}\nIMAGE_ID=casemate\nIMAGE_VERSION={version}\n\
         VARIANT_ID={profile}\n"
    )
}

/// What init reads of the image that it is in.
fn description(plan: &Plan) -> String {
    let description = serde_json::json!({
        "version": plan.version,
        "profile": plan.profile,
        "time": plan.time,
    });
    format!("{description}\n")
}
