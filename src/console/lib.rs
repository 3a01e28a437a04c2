//! What a browser, a load balancer or an orchestrator asks of a node, on the clients' port.

use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use serde_json::{Value, json};

/// Tells whether the node takes part in the cluster, else why not.
pub type Readiness = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// `/healthz`: the process serves; `/readyz`: it takes part in the cluster.
pub fn router(readiness: Readiness) -> Router {
    let ready = move || {
        let answer = answer(readiness());
        async move { answer }
    };
    Router::new()
        .route("/healthz", get(|| async { answer(Ok(())) }))
        .route("/readyz", get(ready))
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
