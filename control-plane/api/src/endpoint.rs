//! What can be asked, and by whom. The server routes and authorises by this table.

use casemate_trust::id::TenantId;

use crate::token::Scope;

/// HTTP methods in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// GET
    Get,
    /// HEAD
    Head,
    /// PUT
    Put,
    /// POST
    Post,
    /// DELETE
    Delete,
}

impl Method {
    /// As in a request.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Put => "PUT",
            Self::Post => "POST",
            Self::Delete => "DELETE",
        }
    }
}

/// Who may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everybody, without a token.
    Public,
    /// Every token.
    Any,
    /// The operator.
    Operator,
    /// The operator, and who may look at everything.
    Look,
    /// The operator, who may look at everything, and the tenant in the path.
    LookOwn,
    /// The tenant in the path only.
    Own,
    /// Any tenant.
    Tenants,
    /// The operator; a tenant, for its own key rotation: the endpoint looks closer.
    Statements,
}

impl Access {
    /// Whether `scope` may ask, of the tenant in the path if there is one.
    pub fn allows(self, scope: &Scope, tenant: Option<&TenantId>) -> bool {
        let own = matches!(scope, Scope::Tenant(id) if Some(id) == tenant);
        let is_tenant = matches!(scope, Scope::Tenant(_));
        match self {
            Self::Public | Self::Any => true,
            Self::Operator => *scope == Scope::Operator,
            Self::Look => !is_tenant,
            Self::LookOwn => !is_tenant || own,
            Self::Own => own,
            Self::Tenants => is_tenant,
            Self::Statements => *scope != Scope::ReadOnly,
        }
    }

    /// For the document.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Public => "everybody, without a token",
            Self::Any => "every token",
            Self::Operator => "operator",
            Self::Look => "operator, read-only",
            Self::LookOwn => "operator, read-only, the tenant itself",
            Self::Own => "the tenant itself",
            Self::Tenants => "any tenant",
            Self::Statements => "operator; a tenant for its own key rotation",
        }
    }
}

/// What a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// None.
    Empty,
    /// JSON with this schema.
    Json(&'static str),
    /// A DSSE envelope, JSON.
    Envelope,
    /// Bytes.
    Bytes,
    /// A JSON object a line, with this schema.
    Lines(&'static str),
}

/// One thing that can be asked.
#[derive(Debug, Clone, Copy)]
pub struct Endpoint {
    /// Method.
    pub method: Method,
    /// Path with `{parameters}`.
    pub path: &'static str,
    /// Name in generated clients.
    pub id: &'static str,
    /// What it does.
    pub summary: &'static str,
    /// Who may ask.
    pub access: Access,
    /// Body of the request.
    pub request: Body,
    /// Body of the answer.
    pub answer: Body,
    /// Query parameters.
    pub query: &'static [&'static str],
}

const fn ask(
    method: Method,
    path: &'static str,
    id: &'static str,
    access: Access,
    summary: &'static str,
) -> Endpoint {
    let (request, answer, query) = (Body::Empty, Body::Empty, &[]);
    Endpoint {
        method,
        path,
        id,
        summary,
        access,
        request,
        answer,
        query,
    }
}

impl Endpoint {
    const fn takes(mut self, body: Body) -> Self {
        self.request = body;
        self
    }

    const fn gives(mut self, body: Body) -> Self {
        self.answer = body;
        self
    }

    const fn with_query(mut self, query: &'static [&'static str]) -> Self {
        self.query = query;
        self
    }
}

use Access::{Any, Look, LookOwn, Operator, Own, Public, Statements, Tenants};
use Body::{Bytes, Envelope, Json, Lines};
use Method::{Delete, Get, Head, Post, Put};

/// Everything that can be asked.
#[rustfmt::skip]
pub const ENDPOINTS: &[Endpoint] = &[
    ask(Get, "/healthz", "health", Public, "Whether the server runs and its store answers"),
    ask(Get, "/v1/openapi.json", "openapi", Public, "This document").gives(Json("object")),
    ask(Get, "/v1/fleet", "fleet", Public, "What a client checks the fleet with").gives(Json("FleetView")),
    ask(Post, "/v1/statements", "post_statement", Statements, "Hands in a signed Root, OnlineKey, Pool, Tenant or Image")
        .takes(Envelope).gives(Json("StatementAnswer")),
    ask(Get, "/v1/pools", "list_pools", Any, "All pools with their statements").gives(Json("PoolList")),
    ask(Get, "/v1/tenants", "list_tenants", Any, "The tenants that the token may see").gives(Json("TenantList")),
    ask(Get, "/v1/tenants/{id}", "get_tenant", LookOwn, "A tenant's statements and newest manifest").gives(Json("TenantView")),
    ask(Put, "/v1/tenants/{id}/objects/{digest}", "put_object", Own,
        "Uploads a release or a sealed secret; over the tenant's storage: 413 `quota_exceeded`").takes(Bytes),
    ask(Get, "/v1/tenants/{id}/objects/{digest}", "get_object", LookOwn, "A release or a sealed secret").gives(Bytes),
    ask(Put, "/v1/tenants/{id}/manifest", "put_manifest", Own, "Hands in the next manifest")
        .takes(Envelope).gives(Json("ManifestAnswer")),
    ask(Put, "/v1/tenants/{id}/freshness", "put_freshness", Own,
        "Renews the freshness of the newest manifest; 429 `too_soon` shortly after the renewal before")
        .takes(Envelope).gives(Json("FreshnessAnswer")),
    ask(Get, "/v1/tenants/{id}/status", "tenant_status", LookOwn, "What the nodes made of the newest manifest")
        .gives(Json("TenantStatus")),
    ask(Get, "/v1/tenants/{id}/logs", "tenant_logs", LookOwn, "The tenant's log; streams while following")
        .gives(Lines("LogRecord")).with_query(&[
            "follow", "function", "since", "since_ms", "until_ms", "level", "status", "request", "grep", "node",
        ]),
    ask(Put, "/v1/bundles/{digest}", "put_bundle", Tenants,
        "Uploads a bundle; over the tenant's storage: 413 `quota_exceeded`").takes(Bytes),
    ask(Head, "/v1/bundles/{digest}", "head_bundle", Tenants,
        "Whether a bundle is there, and will be when the manifest comes that lists it"),
    ask(Get, "/v1/images", "list_images", Look, "The newest image of each pool").gives(Json("ImageList")),
    ask(Get, "/v1/images/{digest}", "get_image", Look, "How much of an image is there").gives(Json("ImageUpload")),
    ask(Put, "/v1/images/{digest}", "put_image", Operator,
        "Uploads a part of an image, of `bytes` in all, from `offset` on; 409 `conflict` says from where")
        .takes(Bytes).gives(Json("ImageUpload")).with_query(&["offset", "bytes"]),
    ask(Post, "/v1/tokens", "make_token", Operator, "Makes a token and shows it once")
        .takes(Json("NewToken")).gives(Json("MadeToken")),
    ask(Get, "/v1/tokens", "list_tokens", Look, "All tokens without their secret part").gives(Json("TokenList")),
    ask(Get, "/v1/token", "own_token", Any, "The token that asks, without its secret part").gives(Json("TokenView")),
    ask(Delete, "/v1/tokens/{token}", "delete_token", Operator, "Takes a token away"),
    ask(Post, "/v1/nodes/tokens", "register_join_token", Operator, "Registers the public part of a join token")
        .takes(Json("NewJoinToken")),
    ask(Get, "/v1/nodes/joins", "list_joins", Look, "Join requests that wait").gives(Json("JoinList")),
    ask(Post, "/v1/nodes/admit", "admit_node", Operator, "Registers a node's key and stores its grants")
        .takes(Json("Admission")).gives(Json("NodeView")),
    ask(Post, "/v1/nodes", "readmit_node", Operator, "Registers again a node that a restored control plane does not know")
        .takes(Json("Readmission")).gives(Json("NodeView")),
    ask(Get, "/v1/nodes", "list_nodes", Look, "All nodes").gives(Json("NodeList")),
    ask(Get, "/v1/nodes/{name}", "get_node", Look, "One node: what it has, what it refused, which layers are in force")
        .gives(Json("NodeView")),
    ask(Post, "/v1/nodes/{name}/grants", "grant_node", Operator, "Stores more pool keys sealed to a node")
        .takes(Json("NewGrants")).gives(Json("NodeView")),
    ask(Delete, "/v1/nodes/{name}", "revoke_node", Operator, "Throws a node out and closes its connection"),
    ask(Get, "/v1/audit", "audit", Look, "Hash-chained records of every change").gives(Json("AuditPage")).with_query(&["since"]),
];

/// The endpoint of a method and a path with `{parameters}`. GET also answers HEAD.
pub fn find(method: &str, path: &str) -> Option<&'static Endpoint> {
    let of = |method: &str| {
        ENDPOINTS
            .iter()
            .find(|endpoint| endpoint.path == path && endpoint.method.as_str() == method)
    };
    of(method).or_else(|| if method == "HEAD" { of("GET") } else { None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_tenants_token_never_reaches_another() {
        let (own, other) = (TenantId([1; 32]), TenantId([2; 32]));
        for endpoint in ENDPOINTS
            .iter()
            .filter(|endpoint| endpoint.path.contains("{id}"))
        {
            assert!(
                endpoint.access.allows(&Scope::Tenant(own), Some(&own)),
                "{}",
                endpoint.id
            );
            assert!(
                !endpoint.access.allows(&Scope::Tenant(own), Some(&other)),
                "{}",
                endpoint.id
            );
        }
    }

    #[test]
    fn a_read_only_token_changes_nothing() {
        let changing = ENDPOINTS
            .iter()
            .filter(|endpoint| !matches!(endpoint.method, Get | Head));
        for endpoint in changing {
            assert!(
                !endpoint
                    .access
                    .allows(&Scope::ReadOnly, Some(&TenantId([1; 32]))),
                "{}",
                endpoint.id
            );
        }
    }

    #[test]
    fn an_operator_does_not_speak_for_a_tenant() {
        for id in ["put_manifest", "put_freshness", "put_object", "put_bundle"] {
            let endpoint = ENDPOINTS.iter().find(|endpoint| endpoint.id == id).unwrap();
            assert!(
                !endpoint
                    .access
                    .allows(&Scope::Operator, Some(&TenantId([1; 32]))),
                "{id}"
            );
        }
    }

    #[test]
    fn head_is_get_without_a_body() {
        assert_eq!(find("HEAD", "/v1/fleet").unwrap().id, "fleet");
        assert_eq!(
            find("HEAD", "/v1/bundles/{digest}").unwrap().id,
            "head_bundle"
        );
        assert!(find("PUT", "/v1/fleet").is_none());
    }
}
