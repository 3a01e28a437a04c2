//! What a browser, a load balancer or an orchestrator asks of a node, on the clients' port.

mod metrics;

use std::convert::Infallible;
use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::stream;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub use crate::metrics::{Metrics, install as install_metrics};

/// Tells whether the node takes part in the cluster, else why not.
pub type Readiness = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Figures that are looked up rather than counted, in the text format of Prometheus.
pub type Figures = Arc<dyn Fn() -> String + Send + Sync>;

/// The text format of Prometheus.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Answers of `/metrics` at a time, each until it has been read: they are large. Further ones are
/// refused. Health is told always.
const SCRAPES: usize = 4;
/// Bytes of such an answer that are handed to the connection at a time.
const PIECE: usize = 64 << 10;

/// `/healthz`: the process serves; `/readyz`: it takes part in the cluster; `/metrics`, where the
/// process counts.
pub fn router(readiness: Readiness, metrics: Option<(Metrics, Figures)>) -> Router {
    let ready = move || {
        let answer = answer(readiness());
        async move { answer }
    };
    let router = Router::new()
        .route("/healthz", get(|| async { answer(Ok(())) }))
        .route("/readyz", get(ready));
    let Some((metrics, figures)) = metrics else {
        return router;
    };
    let places = Arc::new(Semaphore::new(SCRAPES));
    let render = move || {
        let answer = scrape(&places, || metrics.render() + &figures());
        async move { answer }
    };
    router.route("/metrics", get(render))
}

fn scrape(places: &Arc<Semaphore>, text: impl FnOnce() -> String) -> Response {
    let Ok(place) = Arc::clone(places).try_acquire_owned() else {
        let why = "too many ask for the figures at a time: try again later\n";
        return (StatusCode::SERVICE_UNAVAILABLE, why).into_response();
    };
    ([(CONTENT_TYPE, TEXT)], given(text().into(), place)).into_response()
}

/// A body that keeps its place until the connection has taken all of it.
fn given(text: Bytes, place: OwnedSemaphorePermit) -> Body {
    let pieces = stream::unfold((text, place), |(mut text, place)| async move {
        let piece = text.split_to(text.len().min(PIECE));
        (!piece.is_empty()).then_some((Ok::<_, Infallible>(piece), (text, place)))
    });
    Body::from_stream(pieces)
}

fn answer(state: Result<(), String>) -> (StatusCode, Json<Value>) {
    match state {
        Ok(()) => (StatusCode::OK, Json(json!({ "status": "ok" }))),
        Err(reason) => {
            let body = json!({ "status": "unavailable", "reason": reason });
            (StatusCode::SERVICE_UNAVAILABLE, Json(body))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_ready_says_why() {
        let (status, Json(body)) = answer(Err("fenced".to_owned()));
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(body["reason"], "fenced");
        assert_eq!(answer(Ok(())).0, StatusCode::OK);
    }

    #[tokio::test]
    async fn figures_are_given_to_a_few_at_a_time() {
        let places = Arc::new(Semaphore::new(SCRAPES));
        let text = || "figures ".repeat(PIECE);
        let mut unread: Vec<_> = (0..SCRAPES).map(|_| scrape(&places, text)).collect();
        let refused = scrape(&places, || panic!("nothing is looked up"));
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
        let first = unread.remove(0);
        assert_eq!(first.status(), StatusCode::OK);
        let read = axum::body::to_bytes(first.into_body(), usize::MAX).await;
        assert_eq!(read.unwrap(), text());
        assert_eq!(scrape(&places, text).status(), StatusCode::OK);
    }
}
