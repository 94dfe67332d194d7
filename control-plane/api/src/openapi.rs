//! The OpenAPI document, made from [`ENDPOINTS`] and the types.

use utoipa::OpenApi as _;
use utoipa::openapi::path::{OperationBuilder, ParameterBuilder, ParameterIn};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    ContentBuilder, HttpMethod, InfoBuilder, ObjectBuilder, OpenApi, PathItem, PathsBuilder, Ref,
    RefOr, Required, ResponseBuilder, Schema, Type,
};

use crate::endpoint::{Access, Body, ENDPOINTS, Endpoint, Method};
use crate::{audit, error, fleet, image, log, node, tenant, token};

#[derive(utoipa::OpenApi)]
#[openapi(components(schemas(
    audit::AuditPage,
    error::ErrorBody,
    fleet::FleetView,
    fleet::PoolList,
    fleet::StatementAnswer,
    image::ImageList,
    image::ImageUpload,
    log::LogRecord,
    node::Admission,
    node::JoinList,
    node::NewGrants,
    node::NewJoinToken,
    node::NodeList,
    node::NodeView,
    node::Readmission,
    tenant::FreshnessAnswer,
    tenant::ManifestAnswer,
    tenant::TenantList,
    tenant::TenantStatus,
    tenant::TenantView,
    token::MadeToken,
    token::NewToken,
    token::TokenList,
)))]
struct Components;

/// The document.
pub fn document() -> OpenApi {
    let mut document = Components::openapi();
    document.info = InfoBuilder::new()
        .title("Casemate control plane")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some("The server's certificate is self-signed: clients pin the key that the fleet's root has signed."))
        .build();
    let components = document.components.get_or_insert_default();
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
    components.add_security_scheme("token", SecurityScheme::Http(bearer));
    let mut paths = PathsBuilder::new();
    for endpoint in ENDPOINTS {
        paths = paths.path(
            endpoint.path,
            PathItem::new(http_method(endpoint.method), operation(endpoint)),
        );
    }
    document.paths = paths.build();
    document
}

/// The document, in the form of the golden file.
pub fn json() -> String {
    let mut text = document().to_pretty_json().expect("the document is JSON");
    text.push('\n');
    text
}

fn operation(endpoint: &Endpoint) -> OperationBuilder {
    let error = ResponseBuilder::new()
        .description("Refused; the reason is in `error.code`")
        .content(
            "application/json",
            ContentBuilder::new()
                .schema(Some(Ref::from_schema_name("ErrorBody")))
                .build(),
        );
    let success = ResponseBuilder::new().description("Done");
    let success = match content(endpoint.answer) {
        Some((kind, schema)) => {
            success.content(kind, ContentBuilder::new().schema(Some(schema)).build())
        }
        None => success,
    };
    let mut operation = OperationBuilder::new()
        .operation_id(Some(endpoint.id.as_str()))
        .summary(Some(endpoint.summary))
        .description(Some(format!("Allowed to: {}.", endpoint.access.as_str())))
        .response("2XX", success.build())
        .response("default", error.build());
    for name in endpoint.path.split(['{', '}']).skip(1).step_by(2) {
        operation = operation.parameter(parameter(name, ParameterIn::Path, Required::True));
    }
    for name in endpoint.query {
        operation = operation.parameter(parameter(name, ParameterIn::Query, Required::False));
    }
    if let Some((kind, schema)) = content(endpoint.request) {
        let body = RequestBodyBuilder::new()
            .content(kind, ContentBuilder::new().schema(Some(schema)).build())
            .required(Some(Required::True));
        operation = operation.request_body(Some(body.build()));
    }
    if endpoint.access == Access::Public {
        operation
    } else {
        operation.security(SecurityRequirement::new("token", Vec::<String>::new()))
    }
}

fn parameter(
    name: &str,
    place: ParameterIn,
    required: Required,
) -> utoipa::openapi::path::Parameter {
    let text = ObjectBuilder::new().schema_type(Type::String).build();
    ParameterBuilder::new()
        .name(name)
        .parameter_in(place)
        .required(required)
        .schema(Some(text))
        .build()
}

fn content(body: Body) -> Option<(&'static str, RefOr<Schema>)> {
    let object = |kind| Schema::Object(ObjectBuilder::new().schema_type(kind).build()).into();
    match body {
        Body::Empty => None,
        Body::Json("object") | Body::Envelope => Some(("application/json", object(Type::Object))),
        Body::Json(name) => Some(("application/json", Ref::from_schema_name(name).into())),
        Body::Lines(name) => Some(("application/x-ndjson", Ref::from_schema_name(name).into())),
        Body::Bytes => Some(("application/octet-stream", object(Type::String))),
    }
}

const fn http_method(method: Method) -> HttpMethod {
    match method {
        Method::Get => HttpMethod::Get,
        Method::Head => HttpMethod::Head,
        Method::Put => HttpMethod::Put,
        Method::Post => HttpMethod::Post,
        Method::Delete => HttpMethod::Delete,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// To update it: `CASEMATE_GOLDEN=write cargo test -p casemate-api`.
    #[test]
    fn the_golden_file_matches_the_code() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json");
        let wanted = json();
        if std::env::var("CASEMATE_GOLDEN").is_ok_and(|value| value == "write") {
            std::fs::write(path, &wanted).unwrap();
        }
        let found = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            found == wanted,
            "openapi.json is out of date: CASEMATE_GOLDEN=write cargo test -p casemate-api"
        );
    }

    #[test]
    fn every_schema_that_is_named_is_there() {
        let document = document();
        let schemas = document.components.unwrap().schemas;
        let bodies = ENDPOINTS
            .iter()
            .flat_map(|endpoint| [endpoint.request, endpoint.answer]);
        for body in bodies {
            if let Body::Json(name) | Body::Lines(name) = body {
                assert!(name == "object" || schemas.contains_key(name), "{name}");
            }
        }
    }

    #[test]
    fn every_reference_resolves() {
        let value = serde_json::to_value(document()).unwrap();
        let text = value.to_string();
        for reference in text.split("\"$ref\":\"#").skip(1) {
            let pointer = reference.split('"').next().unwrap();
            assert!(value.pointer(pointer).is_some(), "{pointer}");
        }
    }

    #[test]
    fn each_endpoint_is_in_the_document() {
        let paths = document().paths.paths;
        assert_eq!(
            ENDPOINTS
                .iter()
                .map(|endpoint| endpoint.path)
                .collect::<std::collections::BTreeSet<_>>()
                .len(),
            paths.len()
        );
        let item = &paths["/v1/nodes/{name}"];
        assert!(item.get.is_some() && item.delete.is_some());
    }
}
