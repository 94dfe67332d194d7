//! Builds one bundle of ES modules from TypeScript or JavaScript with npm imports. It uses neither
//! Node.js nor the network.

mod archive;
mod diagnose;
mod grammar;
mod tsconfig;
mod walls;
mod workspace;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ring::digest::{SHA256, digest};
use rolldown::{
    BundlerOptions, CommentsOptions, InputItem, ModuleType, OutputFormat, Platform, ResolveOptions,
    SourceMapType, TsConfig,
};
use rolldown_common::{Output, OutputChunk};
use serde::Serialize;

pub use archive::{Files, pack};

use crate::error::{Code, Error};
use walls::Walls;

/// Largest bundle that a node accepts, in bytes.
pub const MAX_BUNDLE_BYTES: usize = 10 * 1024 * 1024;
/// Name of the entry module in every bundle.
pub const ENTRY: &str = "main.js";
/// How many of the largest modules are named when a bundle is too large.
const LARGEST_NAMED: usize = 5;

/// A function's code, ready to be named by a release.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// The archive.
    pub bytes: Vec<u8>,
    /// SHA-256 of `bytes`.
    pub digest: [u8; 32],
    /// Number of modules in the bundle, npm packages included.
    pub modules: usize,
    /// The files that were packed from folders beside the project.
    pub beside: Vec<Beside>,
    /// Warnings for the author, each with file, line and column.
    pub warnings: Vec<String>,
}

/// The sources of a function.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    /// The project's folder.
    pub folder: &'a Path,
    /// The main module, a path relative to `folder`.
    pub main: &'a str,
    /// Folders beside the project that its modules may be imported from.
    pub include: &'a [PathBuf],
    /// The home folder: no file of it becomes part of a bundle.
    pub home: &'a Path,
}

/// Files that were packed from a folder beside the project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Beside {
    /// The package's folder, relative to the project's.
    pub folder: String,
    /// How many files.
    pub files: usize,
}

/// Bundle a function. The bundle contains only files of the project, installed packages, linked
/// packages of the project's workspace, and the folders that `include` names.
///
/// # Errors
/// The function imports a file outside of these; a `tsconfig.json` cannot be read; V8 cannot parse
/// a module, or an import cannot be resolved (both with file, line, column and the line itself);
/// the entry has no default export; the bundle is over [`MAX_BUNDLE_BYTES`] (with its largest
/// modules).
pub async fn bundle(sources: Sources<'_>) -> Result<Bundle, Error> {
    let main = sources.main;
    let folder = sources.folder.canonicalize().map_err(|error| {
        Error::new(
            Code::Input,
            "cannot open the project's folder",
            "check the path",
        )
        .at(sources.folder.display())
        .source(error)
    })?;
    let frames = diagnose::Frames::new(&folder);
    let walls = Arc::new(Walls::new(&folder, &sources));
    let config = tsconfig::find(&folder, main, &walls)?;
    let mut bundler = rolldown::Bundler::with_plugins(
        options(&folder, main, config),
        vec![Arc::clone(&walls) as _],
    )
    .map_err(|errors| frames.failed(errors.iter()))?;
    let output = bundler.generate().await.map_err(|errors| {
        let refusal = walls.refusal();
        refusal.unwrap_or_else(|| frames.failed(errors.iter()))
    })?;
    walls.check_copied(&output.assets)?;
    let beside = walls.packed_from_beside(&output.assets);
    let warnings = frames.warnings(&output.warnings)?;
    let (files, chunks) = collect(output.assets)?;
    for chunk in &chunks {
        grammar::check(chunk)?;
    }
    must_export_default(&chunks, main)?;
    let bytes = pack(&files)?;
    if bytes.len() > MAX_BUNDLE_BYTES {
        return Err(too_large(&folder, bytes.len(), &chunks, &files));
    }
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, &bytes).as_ref());
    Ok(Bundle {
        bytes,
        digest: hash,
        modules: chunks.iter().map(|chunk| chunk.module_ids.len()).sum(),
        beside,
        warnings,
    })
}

fn options(folder: &Path, main: &str, tsconfig: Option<PathBuf>) -> BundlerOptions {
    BundlerOptions {
        // Rolldown treats a bare name as a package.
        input: Some(vec![InputItem {
            name: Some("main".to_owned()),
            import: format!("./{main}"),
        }]),
        cwd: Some(folder.to_path_buf()),
        platform: Some(Platform::Browser),
        format: Some(OutputFormat::Esm),
        // Nothing is written: paths in source maps are relative to this folder.
        dir: Some(".".to_owned()),
        entry_filenames: Some(ENTRY.to_owned().into()),
        chunk_filenames: Some("[name]-[hash].js".to_owned().into()),
        asset_filenames: Some("[name]-[hash][extname]".to_owned().into()),
        sourcemap: Some(SourceMapType::File),
        // Functions run in a worker with web APIs: a package's build for workers is used where it
        // offers one.
        resolve: Some(ResolveOptions {
            condition_names: Some(vec!["worker".to_owned()]),
            ..ResolveOptions::default()
        }),
        // `find` looks for the file: the bundler would look in every folder up to the root of the
        // disk.
        tsconfig: Some(tsconfig.map_or(TsConfig::Auto(false), TsConfig::Manual)),
        module_types: Some(
            [
                (".wasm", ModuleType::Copy),
                (".bin", ModuleType::Copy),
                (".txt", ModuleType::Text),
            ]
            .into_iter()
            .map(|(extension, kind)| (extension.to_owned(), kind))
            .collect(),
        ),
        define: Some(
            [(
                "process.env.NODE_ENV".to_owned(),
                "\"production\"".to_owned(),
            )]
            .into_iter()
            .collect(),
        ),
        comments: Some(CommentsOptions {
            legal: true,
            annotation: false,
            jsdoc: false,
        }),
        ..BundlerOptions::default()
    }
}

fn collect(assets: Vec<Output>) -> Result<(Files, Vec<Arc<OutputChunk>>), Error> {
    let mut files = Files::new();
    let mut chunks = Vec::new();
    for output in assets {
        files.insert(
            output.filename().to_owned(),
            output.content_as_bytes().to_vec(),
        );
        if let Output::Chunk(chunk) = output {
            chunks.push(chunk);
        }
    }
    if !files.contains_key(ENTRY) {
        return Err(Error::internal(format!("the bundler made no {ENTRY}")));
    }
    Ok((files, chunks))
}

fn must_export_default(chunks: &[Arc<OutputChunk>], main: &str) -> Result<(), Error> {
    let entry = chunks.iter().find(|chunk| chunk.is_entry);
    if entry.is_some_and(|chunk| chunk.exports.iter().any(|name| name == "default")) {
        return Ok(());
    }
    Err(Error::new(
        Code::Bundle,
        "the main module has no default export",
        "export the handler: `export default \
         { fetch(request, env, ctx) { return new Response(\"hello\") } }`",
    )
    .at(main))
}

fn too_large(folder: &Path, bytes: usize, chunks: &[Arc<OutputChunk>], files: &Files) -> Error {
    let mut sizes: Vec<(usize, String)> = Vec::new();
    for chunk in chunks {
        for (id, module) in chunk.modules.keys.iter().zip(&chunk.modules.values) {
            let path = Path::new(id.as_str());
            let name = path
                .strip_prefix(folder)
                .unwrap_or(path)
                .display()
                .to_string();
            sizes.push((module.rendered_length(), name));
        }
    }
    let copied = files
        .iter()
        .filter(|(name, _)| !name.ends_with(".js") && !name.ends_with(".map"));
    sizes.extend(copied.map(|(name, content)| (content.len(), name.clone())));
    sizes.sort_by(|a, b| b.cmp(a));
    let mut lines = vec!["the largest modules:".to_owned()];
    lines.extend(
        sizes
            .into_iter()
            .take(LARGEST_NAMED)
            .map(|(size, name)| format!("{:>9} KiB  {name}", size / 1024)),
    );
    Error::new(
        Code::Bundle,
        format!("the bundle has {bytes} bytes; at most {MAX_BUNDLE_BYTES} (10 MiB) are allowed"),
        "import less, or load large data with fetch when it is needed",
    )
    .lines(lines)
}

#[cfg(test)]
mod tests;
