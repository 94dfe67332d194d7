//! The endpoints of the API, and who may use each. The server routes and authorises by this table.

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
    /// The name in a request.
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

/// The tokens that may use an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// No token is needed.
    Public,
    /// Every token.
    Any,
    /// The operator's tokens.
    Operator,
    /// The operator's and read-only tokens.
    Look,
    /// The operator's and read-only tokens, and those of the tenant in the path.
    LookOwn,
    /// The tokens of the tenant in the path alone.
    Own,
    /// The tokens of any tenant.
    Tenants,
    /// The operator's tokens, and a tenant's for its own key rotation: the endpoint checks further.
    Statements,
}

impl Access {
    /// Whether a token with this `scope` may use the endpoint, for the tenant in the path if there
    /// is one.
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

    /// The text for the OpenAPI document.
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

/// The kind of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// No body.
    Empty,
    /// JSON with this schema.
    Json(&'static str),
    /// A DSSE envelope, JSON.
    Envelope,
    /// Bytes.
    Bytes,
    /// JSON objects with this schema, one a line.
    Lines(&'static str),
}

macro_rules! operations {
    ($($variant:ident, $name:literal;)+) => {
        /// The operations, by name. The server's `match` over them is exhaustive.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Operation {
            $(#[doc = concat!("`", $name, "`")] $variant,)+
        }

        impl Operation {
            /// All operations.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The name in generated clients and in the audit log.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

operations! {
    Health, "health";
    Openapi, "openapi";
    Fleet, "fleet";
    PostStatement, "post_statement";
    ListPools, "list_pools";
    ListTenants, "list_tenants";
    GetTenant, "get_tenant";
    PutObject, "put_object";
    GetObject, "get_object";
    PutManifest, "put_manifest";
    PutFreshness, "put_freshness";
    TenantStatus, "tenant_status";
    TenantLogs, "tenant_logs";
    PutBundle, "put_bundle";
    HeadBundle, "head_bundle";
    ListImages, "list_images";
    GetImage, "get_image";
    PutImage, "put_image";
    MakeToken, "make_token";
    ListTokens, "list_tokens";
    OwnToken, "own_token";
    DeleteToken, "delete_token";
    RegisterJoinToken, "register_join_token";
    ListJoins, "list_joins";
    AdmitNode, "admit_node";
    ReadmitNode, "readmit_node";
    ListNodes, "list_nodes";
    GetNode, "get_node";
    GrantNode, "grant_node";
    RevokeNode, "revoke_node";
    Audit, "audit";
}

impl std::fmt::Display for Operation {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.write_str(self.as_str())
    }
}

/// An operation and how to call it.
#[derive(Debug, Clone, Copy)]
pub struct Endpoint {
    /// Method.
    pub method: Method,
    /// Path with `{parameters}`.
    pub path: &'static str,
    /// The operation.
    pub id: Operation,
    /// A summary for the document.
    pub summary: &'static str,
    /// The tokens that may use it.
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
    id: Operation,
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

/// All endpoints.
#[rustfmt::skip]
pub const ENDPOINTS: &[Endpoint] = &[
    ask(Get, "/healthz", Operation::Health, Public, "Whether the server runs and its store answers"),
    ask(Get, "/v1/openapi.json", Operation::Openapi, Public, "This document").gives(Json("object")),
    ask(Get, "/v1/fleet", Operation::Fleet, Public, "The statements with which a client verifies the fleet").gives(Json("FleetView")),
    ask(Post, "/v1/statements", Operation::PostStatement, Statements, "Submits a signed Root, OnlineKey, Pool, Tenant or Image")
        .takes(Envelope).gives(Json("StatementAnswer")),
    ask(Get, "/v1/pools", Operation::ListPools, Any, "All pools with their statements").gives(Json("PoolList")),
    ask(Get, "/v1/tenants", Operation::ListTenants, Any, "The tenants that the token may see").gives(Json("TenantList")),
    ask(Get, "/v1/tenants/{id}", Operation::GetTenant, LookOwn, "A tenant's statements and newest manifest").gives(Json("TenantView")),
    ask(Put, "/v1/tenants/{id}/objects/{digest}", Operation::PutObject, Own,
        "Uploads a release or a sealed secret; over the tenant's storage: 413 `quota_exceeded`").takes(Bytes),
    ask(Get, "/v1/tenants/{id}/objects/{digest}", Operation::GetObject, LookOwn, "A release or a sealed secret").gives(Bytes),
    ask(Put, "/v1/tenants/{id}/manifest", Operation::PutManifest, Own, "Submits the next manifest")
        .takes(Envelope).gives(Json("ManifestAnswer")),
    ask(Put, "/v1/tenants/{id}/freshness", Operation::PutFreshness, Own,
        "Renews the freshness of the newest manifest; 429 `too_soon` shortly after the renewal before")
        .takes(Envelope).gives(Json("FreshnessAnswer")),
    ask(Get, "/v1/tenants/{id}/status", Operation::TenantStatus, LookOwn, "The nodes' progress with the newest manifest")
        .gives(Json("TenantStatus")),
    ask(Get, "/v1/tenants/{id}/logs", Operation::TenantLogs, LookOwn, "The tenant's log; streams while following")
        .gives(Lines("LogRecord")).with_query(&[
            "follow", "function", "since", "since_ms", "until_ms", "level", "status", "request", "grep", "node",
        ]),
    ask(Put, "/v1/bundles/{digest}", Operation::PutBundle, Tenants,
        "Uploads a bundle; over the tenant's storage: 413 `quota_exceeded`").takes(Bytes),
    ask(Head, "/v1/bundles/{digest}", Operation::HeadBundle, Tenants,
        "Whether a bundle is stored, and stays until a manifest that lists it"),
    ask(Get, "/v1/images", Operation::ListImages, Look, "The newest image of each pool").gives(Json("ImageList")),
    ask(Get, "/v1/images/{digest}", Operation::GetImage, Look, "How much of an image has arrived").gives(Json("ImageUpload")),
    ask(Put, "/v1/images/{digest}", Operation::PutImage, Operator,
        "Uploads a part of an image, of `bytes` in all, from `offset` on; 409 `conflict` says from where")
        .takes(Bytes).gives(Json("ImageUpload")).with_query(&["offset", "bytes"]),
    ask(Post, "/v1/tokens", Operation::MakeToken, Operator, "Makes a token and shows it once")
        .takes(Json("NewToken")).gives(Json("MadeToken")),
    ask(Get, "/v1/tokens", Operation::ListTokens, Look, "All tokens without their secret part").gives(Json("TokenList")),
    ask(Get, "/v1/token", Operation::OwnToken, Any, "The token of the request, without its secret part").gives(Json("TokenView")),
    ask(Delete, "/v1/tokens/{token}", Operation::DeleteToken, Operator, "Revokes a token"),
    ask(Post, "/v1/nodes/tokens", Operation::RegisterJoinToken, Operator, "Registers the public part of a join token")
        .takes(Json("NewJoinToken")),
    ask(Get, "/v1/nodes/joins", Operation::ListJoins, Look, "Waiting join requests").gives(Json("JoinList")),
    ask(Post, "/v1/nodes/admit", Operation::AdmitNode, Operator, "Registers a node's key and stores its grants")
        .takes(Json("Admission")).gives(Json("NodeView")),
    ask(Post, "/v1/nodes", Operation::ReadmitNode, Operator, "Registers again a node that a restored control plane does not know")
        .takes(Json("Readmission")).gives(Json("NodeView")),
    ask(Get, "/v1/nodes", Operation::ListNodes, Look, "All nodes").gives(Json("NodeList")),
    ask(Get, "/v1/nodes/{name}", Operation::GetNode, Look, "One node: its statements, its refusals, its sandbox layers")
        .gives(Json("NodeView")),
    ask(Post, "/v1/nodes/{name}/grants", Operation::GrantNode, Operator, "Stores more pool keys sealed to a node")
        .takes(Json("NewGrants")).gives(Json("NodeView")),
    ask(Delete, "/v1/nodes/{name}", Operation::RevokeNode, Operator, "Removes a node and closes its connection"),
    ask(Get, "/v1/audit", Operation::Audit, Look, "Hash-chained records of every change").gives(Json("AuditPage")).with_query(&["since"]),
];

/// The endpoint of a method and a path with `{parameters}`. GET also serves HEAD.
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
    fn every_operation_stands_in_the_table_once() {
        let mut listed: Vec<_> = ENDPOINTS.iter().map(|endpoint| endpoint.id).collect();
        listed.sort_unstable();
        assert_eq!(listed, Operation::ALL);
        let mut names: Vec<_> = Operation::ALL.iter().map(|id| id.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Operation::ALL.len());
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
        for id in [
            Operation::PutManifest,
            Operation::PutFreshness,
            Operation::PutObject,
            Operation::PutBundle,
        ] {
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
        assert_eq!(find("HEAD", "/v1/fleet").unwrap().id, Operation::Fleet);
        assert_eq!(
            find("HEAD", "/v1/bundles/{digest}").unwrap().id,
            Operation::HeadBundle
        );
        assert!(find("PUT", "/v1/fleet").is_none());
    }
}
