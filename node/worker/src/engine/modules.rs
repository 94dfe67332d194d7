//! Loads the function's modules from its bundle alone.
//!
//! A module's URL is `file:///` and its name in the bundle. Assets can be imported without
//! attributes: such an import yields a line of JavaScript that imports the asset with an attribute
//! of ours, for which [`evaluate`] makes the value.

use std::borrow::Cow;
use std::cell::RefCell;

use deno_core::{
    CustomModuleEvaluationKind, FastString, ModuleCodeBytes, ModuleCodeString, ModuleLoadOptions,
    ModuleLoadReferrer, ModuleLoadResponse, ModuleLoader, ModuleSource, ModuleSourceCode,
    ModuleSpecifier, ModuleType, RequestedModuleType, ResolutionKind, resolve_import, v8,
};
use deno_error::JsErrorBox;

use crate::bundle::{Bundle, Kind, Module};
use crate::source_map;

/// Import attribute of assets.
const ASSET: &str = "casemate-asset";
/// Prefix of module URLs.
const ROOT: &str = "file:///";
/// The suffix of a module's name that gives the name of its source map.
const MAP_ENDING: &str = ".map";

/// The loader of the isolate; empty until the function is known.
#[derive(Default)]
pub(crate) struct Modules(RefCell<Option<Bundle>>);

impl Modules {
    pub(crate) fn fill(&self, bundle: Bundle) {
        *self.0.borrow_mut() = Some(bundle);
    }

    /// URL of a module of the bundle.
    pub(crate) fn specifier(entry: &str) -> Result<ModuleSpecifier, JsErrorBox> {
        ModuleSpecifier::parse(&format!("{ROOT}{entry}")).map_err(JsErrorBox::from_err)
    }

    /// The source map at this URL, reduced to what stacks need.
    fn source_map(&self, url: &str) -> Option<Cow<'static, [u8]>> {
        let bundle = self.0.borrow();
        let map = bundle.as_ref()?.get(url.strip_prefix(ROOT)?)?;
        let is_map = map.kind == Kind::SourceMap;
        let reduced = is_map.then(|| source_map::reduced(&map.bytes)).flatten();
        reduced.map(Cow::Owned)
    }

    fn source(
        &self,
        specifier: &ModuleSpecifier,
        requested: &RequestedModuleType,
    ) -> Result<ModuleSource, JsErrorBox> {
        let missing = || JsErrorBox::type_error(format!("module {specifier} is not in the bundle"));
        let bundle = self.0.borrow();
        let name = specifier.as_str().strip_prefix(ROOT).unwrap_or_default();
        let module = bundle
            .as_ref()
            .and_then(|bundle| bundle.get(name))
            .ok_or_else(missing)?;
        let (kind, code) = code(specifier, module, requested)?;
        Ok(ModuleSource::new(kind, code, specifier, None))
    }
}

/// The source of an import of `module`, with the requested attribute.
fn code(
    specifier: &ModuleSpecifier,
    module: &Module,
    requested: &RequestedModuleType,
) -> Result<(ModuleType, ModuleSourceCode), JsErrorBox> {
    let text = || match std::str::from_utf8(&module.bytes) {
        Ok(text) => Ok(ModuleSourceCode::String(ModuleCodeString::from(
            text.to_owned(),
        ))),
        Err(error) => Err(JsErrorBox::type_error(format!(
            "module {specifier} is not UTF-8: {error}"
        ))),
    };
    let bytes = || ModuleSourceCode::Bytes(ModuleCodeBytes::Boxed(module.bytes.clone()));
    Ok(match (requested, module.kind) {
        (_, Kind::SourceMap) => {
            return Err(JsErrorBox::type_error(format!(
                "{specifier} is a source map, not a module"
            )));
        }
        (RequestedModuleType::None, Kind::Script) => (ModuleType::JavaScript, text()?),
        (RequestedModuleType::None, _) => {
            let line =
                format!(r#"export {{ default }} from "{specifier}" with {{ type: "{ASSET}" }};"#);
            (
                ModuleType::JavaScript,
                ModuleSourceCode::String(line.into()),
            )
        }
        (RequestedModuleType::Json, Kind::Json) => (ModuleType::Json, text()?),
        (RequestedModuleType::Text, _) => (ModuleType::Text, text()?),
        (RequestedModuleType::Bytes, _) => (ModuleType::Bytes, bytes()),
        (RequestedModuleType::Other(kind), _) if kind == ASSET => {
            (ModuleType::Other(Cow::Borrowed(ASSET)), bytes())
        }
        (other, _) => {
            return Err(JsErrorBox::type_error(format!(
                "{specifier} cannot be imported with {{ type: {other} }}"
            )));
        }
    })
}

impl ModuleLoader for Modules {
    fn resolve(
        &self,
        specifier: &str,
        referrer: &str,
        _: ResolutionKind,
    ) -> Result<ModuleSpecifier, JsErrorBox> {
        let resolved = resolve_import(specifier, referrer).map_err(|_| unknown(specifier))?;
        // Internal scripts (`ext:`) and modules of other runtimes (`node:`) cannot be imported.
        if resolved.as_str().starts_with(ROOT) {
            Ok(resolved)
        } else {
            Err(unknown(specifier))
        }
    }

    fn load(
        &self,
        specifier: &ModuleSpecifier,
        _: Option<&ModuleLoadReferrer>,
        options: ModuleLoadOptions,
    ) -> ModuleLoadResponse {
        ModuleLoadResponse::Sync(self.source(specifier, &options.requested_module_type))
    }

    fn get_source_map(&self, module: &str) -> Option<Cow<'_, [u8]>> {
        self.source_map(&format!("{module}{MAP_ENDING}"))
    }

    fn load_external_source_map(&self, url: &str) -> Option<Cow<'_, [u8]>> {
        self.source_map(url)
    }

    /// Sources are not in the bundle, but a stack shows their names all the same.
    fn source_map_source_exists(&self, _: &str) -> Option<bool> {
        Some(true)
    }
}

fn unknown(specifier: &str) -> JsErrorBox {
    let hint = if specifier.starts_with("node:") {
        "; modules of Node.js do not exist here"
    } else {
        ""
    };
    JsErrorBox::type_error(format!(
        "cannot import {specifier:?}: only modules of the bundle can be imported{hint}"
    ))
}

/// Makes the value of an asset.
pub(crate) fn evaluate(
    scope: &mut v8::PinScope<'_, '_>,
    _: Cow<'_, str>,
    specifier: &FastString,
    code: ModuleSourceCode,
) -> Result<CustomModuleEvaluationKind, JsErrorBox> {
    let bytes = code.as_bytes();
    let wrong =
        |what: &str| JsErrorBox::type_error(format!("{} is not {what}", specifier.as_str()));
    let ending = specifier
        .as_str()
        .rsplit_once('.')
        .map_or("", |(_, ending)| ending);
    v8::tc_scope!(let scope, scope);
    let value: Option<v8::Local<'_, v8::Value>> = match ending {
        "wasm" => v8::WasmModuleObject::compile(scope, bytes).map(Into::into),
        "bin" => {
            let store =
                v8::ArrayBuffer::new_backing_store_from_boxed_slice(bytes.into()).make_shared();
            Some(v8::ArrayBuffer::with_backing_store(scope, &store).into())
        }
        _ => {
            let text = v8::String::new_from_utf8(scope, bytes, v8::NewStringType::Normal);
            if ending == "json" {
                text.and_then(|text| v8::json::parse(scope, text))
            } else {
                text.map(Into::into)
            }
        }
    };
    match value {
        Some(value) => Ok(CustomModuleEvaluationKind::Synthetic(v8::Global::new(
            scope, value,
        ))),
        None => {
            let reason = scope
                .exception()
                .map(|exception| exception.to_rust_string_lossy(scope));
            Err(wrong(&format!(
                "a valid .{ending} module: {}",
                reason.unwrap_or_default()
            )))
        }
    }
}
