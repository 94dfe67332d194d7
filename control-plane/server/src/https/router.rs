//! From a request to its response: routed by the API's table, answered in a task of its own,
//! refused tries recorded.

use std::sync::Arc;

use axum::Router;
use axum::extract::{RawPathParams, Request};
use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, on};
use casemate_api::endpoint::{ENDPOINTS, Endpoint, Method};
use casemate_api::error::code;
use http::header::{SERVER, WWW_AUTHENTICATE};
use http::{HeaderValue, StatusCode};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::answer::answer;
use super::ask::{Ask, Served};
use super::room::{self, Room};
use crate::fault::Fault;
use crate::plane::Plane;

/// Every endpoint of the table. Each request runs in one of `tasks`, to its end: a change whose
/// client disconnects would otherwise be on the disk and not in memory.
pub(super) fn router(
    plane: &Arc<Plane>,
    stopping: &CancellationToken,
    tasks: &TaskTracker,
) -> Router {
    let served = Served {
        plane: Arc::clone(plane),
        stopping: stopping.clone(),
        room: Room::new(),
    };
    let mut router = Router::new();
    for endpoint in ENDPOINTS {
        let (served, tasks) = (served.clone(), tasks.clone());
        let handler = move |params: RawPathParams, request: Request| {
            respond_to(Ask::new(&served, endpoint, &params, request), tasks.clone())
        };
        router = router.route(endpoint.path, on(filter(endpoint.method), handler));
    }
    let no_path = async || respond(&Fault::new(404, code::NOT_FOUND, "there is no such path"));
    let no_method = async || {
        respond(&Fault::new(
            405,
            code::METHOD_NOT_ALLOWED,
            "this path does not take that method",
        ))
    };
    router
        .fallback(no_path)
        .method_not_allowed_fallback(no_method)
        .layer(map_response(named))
}

/// Adds this program's name and version to an answer, for clients that cannot parse it.
async fn named(mut response: Response) -> Response {
    let software =
        HeaderValue::from_static(concat!("casemate-control/", env!("CARGO_PKG_VERSION")));
    response.headers_mut().insert(SERVER, software);
    response
}

const fn filter(method: Method) -> MethodFilter {
    match method {
        Method::Get => MethodFilter::GET,
        Method::Head => MethodFilter::HEAD,
        Method::Put => MethodFilter::PUT,
        Method::Post => MethodFilter::POST,
        Method::Delete => MethodFilter::DELETE,
    }
}

/// Whether the client was not allowed to do this, or its change was refused. Own failures are in
/// the log.
fn is_refused_try(endpoint: &Endpoint, status: u16) -> bool {
    matches!(status, 401 | 403) || changes(endpoint) && (400..500).contains(&status)
}

const fn changes(endpoint: &Endpoint) -> bool {
    !matches!(endpoint.method, Method::Get | Method::Head)
}

fn respond(fault: &Fault) -> Response {
    let status = StatusCode::from_u16(fault.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = (status, axum::Json(&fault.body)).into_response();
    if status == StatusCode::UNAUTHORIZED {
        response
            .headers_mut()
            .insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

async fn respond_to(ask: Ask, tasks: TaskTracker) -> Response {
    let id = ask.endpoint.id.as_str();
    let answered = tasks.spawn(answer_recorded(ask)).await;
    let answered = answered.unwrap_or_else(|error| {
        tracing::error!(endpoint = id, %error, "a request was not answered");
        Err(Fault::new(
            500,
            code::INTERNAL,
            "the control plane failed to answer; its log has the \
         error",
        ))
    });
    answered.unwrap_or_else(|fault| {
        tracing::debug!(
            endpoint = id,
            status = fault.status,
            code = fault.code(),
            "refused"
        );
        respond(&fault)
    })
}

/// Authorises and answers; a refused try leaves a record, as a change does.
async fn answer_recorded(mut ask: Ask) -> Result<Response, Fault> {
    let authorised = ask.authorise().and_then(|()| ask.find_room());
    let (plane, actor) = (Arc::clone(&ask.plane), ask.actor.clone());
    let (endpoint, path) = (ask.endpoint, ask.path().to_owned());
    let answered = match authorised {
        Ok(place) => {
            let answered = answer(ask).await;
            answered.map(|answer| room::hold(answer, place))
        }
        Err(fault) => Err(fault),
    };
    if let Err(fault) = &answered
        && is_refused_try(endpoint, fault.status)
    {
        let about = fault.about.as_deref().unwrap_or(&path);
        let action = format!("{}.refused", endpoint.id);
        plane.refused(&actor, &action, about, fault.code()).await;
    }
    answered
}
