//! `casemate init`: creates a project.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;

use serde_json::json;

use crate::args::{Init, Template};
use crate::error::{Code, Error};
use crate::home::cannot_write;
use crate::session::Context;

const TYPESCRIPT: &str = include_str!("templates/main.ts");
const JAVASCRIPT: &str = include_str!("templates/main.js");
const PROJECT: &str = include_str!("templates/casemate.toml");
const GITIGNORE: &str = "node_modules/\n";

/// `casemate init`
pub(super) fn init(cx: &Context, args: &Init) -> Result<(), Error> {
    let host = args
        .host
        .as_ref()
        .map_or_else(|| format!("{}.example.com", args.name), ToString::to_string);
    let (main, source) = match args.template {
        Template::Ts => ("src/main.ts", TYPESCRIPT),
        Template::Js => ("src/main.js", JAVASCRIPT),
    };
    let fill = |text: &str| {
        let text = text.replace("@NAME@", args.name.as_str());
        text.replace("@HOST@", &host).replace("@MAIN@", main)
    };
    let package = format!(
        "{{\n  \"name\": \"{}\",\n  \"private\": true,\n  \"type\": \"module\"\n}}\n",
        args.name
    );
    let folder = Path::new(args.name.as_str());
    let files = [
        ("casemate.toml", fill(PROJECT)),
        (main, fill(source)),
        ("package.json", package),
        (".gitignore", GITIGNORE.to_owned()),
    ];
    if let Some((there, _)) = files.iter().find(|(name, _)| folder.join(name).exists()) {
        return Err(Error::new(
            Code::Exists,
            "there is a project already; nothing was overwritten",
            "choose another name, or remove that file",
        )
        .at(folder.join(there).display()));
    }
    for (name, text) in &files {
        let path = folder.join(name);
        let written = path
            .parent()
            .map_or(Ok(()), std::fs::create_dir_all)
            .and_then(|()| OpenOptions::new().create_new(true).write(true).open(&path))
            .and_then(|mut file| file.write_all(text.as_bytes()));
        written.map_err(|error| cannot_write(&path, error))?;
    }
    let names: Vec<_> = files.iter().map(|(name, _)| *name).collect();
    let result = json!({ "name": args.name, "folder": folder, "files": names, "host": host });
    cx.output
        .result(&result, || format!("{}/ is a project", args.name))?;
    cx.output.hint(&format!(
        "Next: cd {}, look at casemate.toml, then `casemate deploy`",
        args.name
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::bundle;
    use crate::project::Project;

    #[tokio::test]
    async fn the_created_project_can_be_bundled() {
        for (main, source) in [("src/main.ts", TYPESCRIPT), ("src/main.js", JAVASCRIPT)] {
            let dir = tempfile::tempdir().unwrap();
            let text = PROJECT
                .replace("@NAME@", "shop")
                .replace("@HOST@", "shop.test");
            std::fs::create_dir(dir.path().join("src")).unwrap();
            std::fs::write(
                dir.path().join("casemate.toml"),
                text.replace("@MAIN@", main),
            )
            .unwrap();
            std::fs::write(dir.path().join(main), source.replace("@NAME@", "shop")).unwrap();
            let project = Project::load(dir.path(), None).unwrap();
            assert_eq!(project.name().as_str(), "shop");
            let bundle = bundle(project.sources(Path::new(""))).await.unwrap();
            assert_eq!(bundle.warnings, Vec::<String>::new());
        }
    }
}
