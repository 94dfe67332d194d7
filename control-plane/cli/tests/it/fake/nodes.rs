//! Nodes of the fake control plane.

use super::*;

pub(super) async fn nodes(State(given): State<Shared>) -> Response {
    let given = given.lock();
    let names = given
        .admitted
        .iter()
        .map(|admission| admission.name.to_string());
    let nodes = names
        .filter_map(|name| view(&given, &name))
        .map(|view| view.summary)
        .collect();
    json(&NodeList { nodes })
}

pub(crate) fn view(given: &Given, name: &str) -> Option<NodeView> {
    let admission = given
        .admitted
        .iter()
        .rfind(|admission| admission.name.as_str() == name)?;
    let join = given
        .joins
        .iter()
        .find(|join| join.request == admission.request)?;
    let grants = given
        .grants
        .iter()
        .filter(|grant| grant.node_key == admission.node_key);
    Some(NodeView {
        summary: NodeSummary {
            machine: None,
            duplicate_seen: None,
            health: given.health.clone(),
            name: admission.name.clone(),
            pool: admission.pool.clone(),
            key: admission.node_key,
            admitted: 1,
            connected_since: None,
            last_seen: None,
            version: given.evil.map(str::to_owned),
            synced_revision: None,
        },
        join: join.envelope.clone(),
        grants: grants.map(|grant| grant.epoch).collect(),
        status: serde_json::json!(given.evil),
        manifests: BTreeMap::new(),
        refused: given
            .evil
            .iter()
            .map(|evil| refusal(evil, evil, evil))
            .collect(),
    })
}

pub(super) async fn admit(State(given): State<Shared>, body: Bytes) -> Response {
    let admission: Admission = serde_json::from_slice(&body).unwrap();
    let mut given = given.lock();
    given.grants.extend(admission.grants.clone());
    let name = admission.name.clone();
    given.admitted.push(admission);
    json(&view(&given, name.as_str()).unwrap())
}

pub(super) async fn node(State(given): State<Shared>, Path(name): Path<String>) -> Response {
    match view(&given.lock(), &name) {
        Some(view) => json(&view),
        None => no(StatusCode::NOT_FOUND, code::NOT_FOUND),
    }
}

pub(super) async fn revoke(State(given): State<Shared>, Path(name): Path<String>) -> Response {
    let mut given = given.lock();
    given.deleted.push(format!("node {name}"));
    match given.refuse_revoking {
        Some((status, code)) => no(StatusCode::from_u16(status).unwrap(), code),
        None => StatusCode::OK.into_response(),
    }
}

pub(super) async fn grant(
    State(given): State<Shared>,
    Path(name): Path<String>,
    body: Bytes,
) -> Response {
    let new: NewGrants = serde_json::from_slice(&body).unwrap();
    let mut given = given.lock();
    given.grants.extend(new.grants);
    json(&view(&given, &name).unwrap())
}
