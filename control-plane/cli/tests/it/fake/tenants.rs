//! Tenants of the fake control plane: what they hand in, and what nodes make of it.

use super::*;

fn digest(text: &str) -> Digest {
    text.parse().unwrap()
}

pub(super) async fn tenants(State(given): State<Shared>) -> Response {
    let given = given.lock();
    let summary = |(id, statements): (&TenantId, &Vec<Envelope>)| {
        let tenant = Tenant::read(statements.last().unwrap()).unwrap();
        TenantSummary {
            id: *id,
            name: tenant.name,
            version: tenant.version,
            expires: tenant.expires,
            hosts: tenant.hosts.iter().map(ToString::to_string).collect(),
            manifest_version: None,
            manifest_expires: None,
            functions: 0,
            memory_mib: Some(tenant.ceilings.memory_mib),
        }
    };
    let mut tenants: Vec<TenantSummary> = given.tenants.iter().map(summary).collect();
    if given.swap_tenants {
        let names: Vec<Name> = tenants.iter().map(|tenant| tenant.name.clone()).collect();
        for (tenant, name) in tenants.iter_mut().zip(names.into_iter().rev()) {
            tenant.name = name;
        }
    }
    json(&TenantList { tenants })
}

pub(super) async fn tenant(State(given): State<Shared>, Path(id): Path<TenantId>) -> Response {
    let given = given.lock();
    let Some(statements) = given.tenants.get(&id) else {
        return no(StatusCode::NOT_FOUND, code::NOT_FOUND);
    };
    let manifests = given.manifests.get(&id).cloned().unwrap_or_default();
    let manifest = given
        .show_manifest
        .map_or_else(|| manifests.last(), |at| manifests.get(at));
    json(&TenantView {
        id,
        name: Tenant::read(&statements[0]).unwrap().name,
        statements: statements.clone(),
        manifest: manifest.cloned(),
        freshness: given
            .freshness
            .get(&id)
            .and_then(|statements| statements.last().cloned()),
    })
}

pub(super) async fn put_object(
    State(given): State<Shared>,
    Path((_, name)): Path<(String, String)>,
    body: Bytes,
) -> Response {
    let mut given = given.lock();
    given.heard.extend(&body);
    if Digest::of(&body) != digest(&name) {
        return no(StatusCode::UNPROCESSABLE_ENTITY, code::DIGEST_MISMATCH);
    }
    given.objects.insert(digest(&name), body.to_vec());
    StatusCode::OK.into_response()
}

pub(super) async fn get_object(
    State(given): State<Shared>,
    Path((_, name)): Path<(String, String)>,
) -> Response {
    match given.lock().objects.get(&digest(&name)) {
        Some(bytes) => bytes.clone().into_response(),
        None => no(StatusCode::NOT_FOUND, code::NOT_FOUND),
    }
}

pub(super) async fn put_bundle(
    State(given): State<Shared>,
    Path(name): Path<String>,
    body: Bytes,
) -> Response {
    let mut given = given.lock();
    given.heard.extend(&body);
    given.bundles.insert(digest(&name), body.to_vec());
    StatusCode::OK.into_response()
}

pub(super) async fn head_bundle(
    State(given): State<Shared>,
    Path(name): Path<String>,
) -> StatusCode {
    let there = given.lock().bundles.contains_key(&digest(&name));
    if there {
        StatusCode::OK
    } else {
        StatusCode::NOT_FOUND
    }
}

pub(super) async fn manifest(
    State(given): State<Shared>,
    Path(id): Path<TenantId>,
    body: Bytes,
) -> Response {
    let envelope = Envelope::parse(&body).unwrap();
    let manifest = Manifest::read(&envelope).unwrap();
    let mut given = given.lock();
    given.heard.extend(&body);
    let held = given.manifests.entry(id).or_default();
    let newest = held
        .last()
        .map_or(0, |held| Manifest::read(held).unwrap().version);
    if manifest.version <= newest {
        return no(StatusCode::CONFLICT, code::MANIFEST_CONFLICT);
    }
    if let Some(code) = lacking(&given, &manifest) {
        return no(StatusCode::UNPROCESSABLE_ENTITY, code);
    }
    let held = given.manifests.entry(id).or_default();
    held.push(envelope);
    json(&ManifestAnswer {
        accepted: Outcome::New,
        revision: 1,
    })
}

pub(super) async fn freshness(
    State(given): State<Shared>,
    Path(id): Path<TenantId>,
    body: Bytes,
) -> Response {
    let envelope = Envelope::parse(&body).unwrap();
    let mut given = given.lock();
    given.freshness.entry(id).or_default().push(envelope);
    json(&FreshnessAnswer {
        accepted: Outcome::New,
        revision: 1,
    })
}

pub(super) async fn status(State(given): State<Shared>, Path(id): Path<TenantId>) -> Response {
    let given = given.lock();
    if given.silent {
        return no(StatusCode::INTERNAL_SERVER_ERROR, code::INTERNAL);
    }
    let newest = given.manifests.get(&id).and_then(|held| held.last());
    let manifest = newest.map(|held| Manifest::read(held).unwrap());
    let version = manifest.as_ref().map(|manifest| manifest.version);
    let digest = newest.map(Envelope::payload_digest);
    let progress = |node: &&str| {
        let refuses = given.refuses == Some(*node);
        let away = given.away == Some(*node);
        let held = given
            .hold
            .or(version.zip(digest).filter(|_| !refuses && !away));
        let refused = StatementId::Manifest {
            tenant: id,
            version: version.unwrap_or_default(),
        };
        NodeProgress {
            node: node.parse().unwrap(),
            pool: "main".parse().unwrap(),
            connected: !away,
            manifest_version: held.map(|(version, _)| version),
            manifest_digest: held.map(|(_, digest)| digest),
            acknowledged: Some(1),
            is_stored: true,
            refused: refuses.then(|| {
                let code = given.evil.unwrap_or("release_malformed");
                let message = given.evil.unwrap_or("the release is not understood");
                refusal(&refused.to_string(), code, message)
            }),
        }
    };
    let functions = manifest
        .iter()
        .flat_map(|manifest| &manifest.functions)
        .map(|(name, wanted)| {
            let status = FunctionStatus {
                release: wanted.release,
                pools: wanted.pools.clone(),
                hosts: Vec::new(),
                hosts_of_other_tenants: Vec::new(),
                nodes_current: given.nodes.len(),
                nodes_total: given.nodes.len(),
            };
            (name.clone(), status)
        });
    json(&TenantStatus {
        id,
        name: "shop".parse().unwrap(),
        manifest_version: version,
        manifest_digest: digest,
        manifest_expires: None,
        functions: functions.collect(),
        nodes: given.nodes.iter().map(progress).collect(),
        storage: casemate_api::tenant::StorageView {
            used_bytes: 3 << 20,
            limit_bytes: 1 << 30,
        },
        stopped_credentials: given.stopped.clone(),
    })
}
