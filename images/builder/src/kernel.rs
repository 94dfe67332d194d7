//! The kernel and the modules that init loads.

use std::collections::BTreeSet;

use crate::package::{Package, Packed};
use crate::{Error, elf};

/// The folder of modules in the image; their order is in [`MODULE_LIST`].
pub(crate) const MODULE_FOLDER: &str = "lib/modules";
/// Names of the modules' files, a line each, in the order in which they can be loaded.
pub(crate) const MODULE_LIST: &str = "lib/modules/order";

/// A kernel package.
pub(crate) struct Kernel<'a> {
    package: &'a Package,
    /// The kernel's release, such as `6.1.0-56-cloud-amd64`.
    pub(crate) release: String,
}

impl<'a> Kernel<'a> {
    pub(crate) fn of(package: &'a Package) -> Result<Self, Error> {
        let mut images = package
            .files
            .keys()
            .filter_map(|path| path.strip_prefix("boot/vmlinuz-"));
        let release = images.next().ok_or_else(|| Error::NotInPackage {
            package: package.name.clone(),
            path: "boot/vmlinuz-*".into(),
        })?;
        Ok(Self {
            package,
            release: release.to_owned(),
        })
    }

    /// The kernel image.
    pub(crate) fn image(&self) -> Result<&'a [u8], Error> {
        self.package.file(&format!("boot/vmlinuz-{}", self.release))
    }

    /// The named modules and their dependencies, each after those that it depends on. Built-in
    /// modules are left out.
    pub(crate) fn modules(&self, names: &[String]) -> Result<Vec<(String, &'a [u8])>, Error> {
        let mut ordered = Vec::new();
        let mut seen = BTreeSet::new();
        for name in names {
            self.load(name, &mut seen, &mut ordered)?;
        }
        Ok(ordered)
    }

    fn load(
        &self,
        name: &str,
        seen: &mut BTreeSet<String>,
        ordered: &mut Vec<(String, &'a [u8])>,
    ) -> Result<(), Error> {
        let name = canonical(name);
        if self.is_built_in(&name) || !seen.insert(name.clone()) {
            return Ok(());
        }
        let (path, bytes) = self.find(&name).ok_or_else(|| Error::Module {
            name: name.clone(),
            message: format!(
                "{} has no such module, and it is not built in",
                self.package.name
            ),
        })?;
        for needed in depends(path, bytes)? {
            self.load(&needed, seen, ordered)?;
        }
        ordered.push((format!("{name}.ko"), bytes));
        Ok(())
    }

    fn find(&self, name: &str) -> Option<(&'a str, &'a [u8])> {
        self.package.files.iter().find_map(|(path, packed)| {
            let file = path.rsplit('/').next()?.strip_suffix(".ko")?;
            match packed {
                Packed::File(bytes) if canonical(file) == name => Some((path.as_str(), &bytes[..])),
                _ => None,
            }
        })
    }

    fn is_built_in(&self, name: &str) -> bool {
        let path = format!("lib/modules/{}/modules.builtin", self.release);
        let list = self.package.file(&path).unwrap_or_default();
        let list = String::from_utf8_lossy(list);
        list.lines().any(|line| {
            let file = line.rsplit('/').next().unwrap_or_default();
            file.strip_suffix(".ko")
                .is_some_and(|file| canonical(file) == name)
        })
    }
}

/// The canonical form of a module's name: the kernel treats `-` and `_` alike.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// The dependencies that a module's own description names.
fn depends(path: &str, module: &[u8]) -> Result<Vec<String>, Error> {
    let description = elf::section(path, module, ".modinfo")?;
    let mut fields = description.split(|byte| *byte == 0);
    let depends = fields.find_map(|field| field.strip_prefix(b"depends="));
    let depends = String::from_utf8_lossy(depends.unwrap_or_default()).into_owned();
    let names = depends.split(',').filter(|name| !name.is_empty());
    Ok(names.map(str::to_owned).collect())
}
