//! What a browser, a load balancer or an orchestrator asks of a node, on the clients' port.

mod metrics;

use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use serde_json::{Value, json};

pub use crate::metrics::{Metrics, install as install_metrics};

/// Tells whether the node takes part in the cluster, else why not.
pub type Readiness = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Figures that are looked up rather than counted, in the text format of Prometheus.
pub type Figures = Arc<dyn Fn() -> String + Send + Sync>;

/// The text format of Prometheus.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

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
    let render = move || {
        let text = metrics.render() + &figures();
        async move { ([(CONTENT_TYPE, TEXT)], text) }
    };
    router.route("/metrics", get(render))
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
}
