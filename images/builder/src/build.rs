//! Makes an image from a plan.

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

/// Mount points of the system. `.extra` holds what the boot stub passes on.
const FOLDERS: &[&str] = &[".extra", "dev", "proc", "run", "state", "sys", "tmp"];

/// The path of init in the initramfs, where the kernel looks for it.
const INIT: &str = "init";
/// The system's file system, within the initramfs.
const SYSTEM: &str = "system.squashfs";
/// Folders of the initramfs: for devices, and for the system until it becomes the root.
const FIRST_FOLDERS: &[&str] = &["dev", "mnt"];
/// Modules for mounting the system. Init loads them in this order; it loads the disk in memory
/// separately, because that needs a size.
const FIRST_MODULES: [&str; 1] = ["squashfs"];
const DISK_MODULE: &str = "brd";

/// Effort of compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Takes a second; for tests.
    Fast,
    /// Takes a minute; a quarter smaller.
    Small,
}

/// The boot loader: it starts one of several images and counts tries.
const LOADER_PATH: &str = "usr/lib/systemd/boot/efi/systemd-bootx64.efi";

/// A bootable image in its formats.
#[derive(Debug)]
pub struct Image {
    /// The kernel, for a machine that loads it directly.
    pub kernel: Vec<u8>,
    /// The initramfs.
    pub initramfs: Vec<u8>,
    /// The kernel's command line.
    pub command_line: String,
    /// Kernel, initramfs and command line in one file for UEFI, unsigned.
    pub uki: Vec<u8>,
    /// The boot loader for a disk, unsigned.
    pub loader: Vec<u8>,
    /// The version.
    pub version: String,
    /// Bill of materials of the image: CycloneDX, JSON.
    pub bill_of_materials: String,
    /// Paths of all executables in the image, sorted.
    pub executables: BTreeSet<String>,
    /// The boot stub and other parts of the unified image.
    stub: Vec<u8>,
    os_release: String,
    kernel_release: String,
}

impl Image {
    /// The unified kernel image, with an approval when there is a key.
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
/// A package or program is gone, or differs from the plan.
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

/// Adds the system's description of itself, and the settings for name resolution.
fn add_settings(system: &mut Tree, plan: &Plan, os_release: &str) -> Result<(), Error> {
    system.file("etc/os-release", os_release)?;
    system.file("etc/casemate/image.json", description(plan))?;
    system.file("etc/nsswitch.conf", "hosts: files dns\n")?;
    system.file("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n")?;
    system.add("etc/resolv.conf", Node::Link("/run/resolv.conf".into()))
}

/// Adds the profile's files from their packages; executables are added as programs.
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

/// Adds the module for a disk in memory. Init loads this module by itself, with the size; built
/// into the kernel, it would have a fixed size.
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
        message: "the profile takes files from this package, but the plan does not name it".into(),
    })
}

/// Adds the loader and every library that a program, or one of its libraries, needs.
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
            // The loader is a library too, with a path of its own.
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

/// The certificates of all authorities in one file.
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

/// The text of `os-release(5)`.
fn os_release(plan: &Plan) -> String {
    let (version, profile) = (&plan.version, &plan.profile);
    format!(
        "NAME=\"Casemate\"\nID=casemate\nPRETTY_NAME=\"Casemate {version} ({profile})\"\n\
         VERSION_ID={version}\nIMAGE_ID=casemate\nIMAGE_VERSION={version}\n\
         VARIANT_ID={profile}\n"
    )
}

/// The description of the image that init reads.
fn description(plan: &Plan) -> String {
    let description = serde_json::json!({
        "version": plan.version,
        "profile": plan.profile,
        "time": plan.time,
    });
    format!("{description}\n")
}
