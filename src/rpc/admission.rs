//! What a port lets in: so many requests at a time, so many streams, so many bytes of requests that
//! are being received. Above a limit a request is refused at once, with a typed error, while others
//! go on: nothing queues without end (load shedding).

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::error_handling::HandleErrorLayer;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures::future::BoxFuture;
use quorate_types::ErrorCode;
use quorate_wire::ErrorInfo;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;
use tower::limit::GlobalConcurrencyLimitLayer;
use tower::{BoxError, Layer, Service, ServiceBuilder};

use crate::body::{Given, Taken};
use crate::metrics::{Call, Method, Methods};
use crate::status::to_status;

/// Bounds of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdmissionLimits {
    /// Requests that are being answered at a time, and so many long-lived streams beside them.
    pub requests: usize,
    /// See there.
    pub streams: usize,
    /// Bytes of messages that have been received in part, or not been decoded yet.
    pub request_bytes: usize,
    /// How long a message may take from its first byte to its last.
    pub receive: Duration,
}

/// The services behind the limits.
pub fn limited(services: Router, port: &'static str, limits: AdmissionLimits) -> Router {
    let layer = AdmissionLayer {
        shared: Arc::new(Shared {
            streams: Arc::new(Semaphore::new(limits.streams)),
            request_bytes: Arc::new(Semaphore::new(limits.request_bytes)),
            methods: Methods::of(port),
            limits,
            port,
        }),
    };
    services.layer(
        ServiceBuilder::new()
            .layer(HandleErrorLayer::new(move |error: BoxError| async move {
                crate::metrics::shed(port, "requests");
                refusal(&overloaded(
                    "too many requests at a time",
                    &error.to_string(),
                ))
            }))
            .load_shed()
            .layer(GlobalConcurrencyLimitLayer::new(limits.requests))
            .layer(layer),
    )
}

pub(crate) fn overloaded(what: &str, why: &str) -> Status {
    let message = format!("{what}: try again later ({why})");
    to_status(&ErrorInfo::new(ErrorCode::ThrottlingQuotaExceeded, message))
}

fn refusal(status: &Status) -> Response {
    status.clone().into_http::<Body>()
}

/// What a caller gets that does not speak HTTP/2.
fn not_grpc(known: bool) -> Response {
    if known {
        let why = "this is a gRPC method: it needs HTTP/2\n";
        return (StatusCode::HTTP_VERSION_NOT_SUPPORTED, why).into_response();
    }
    let why = "not found; there are /healthz, /readyz, /metrics, and gRPC over HTTP/2\n";
    (StatusCode::NOT_FOUND, why).into_response()
}

struct Shared {
    streams: Arc<Semaphore>,
    request_bytes: Arc<Semaphore>,
    methods: Methods,
    limits: AdmissionLimits,
    port: &'static str,
}

#[derive(Clone)]
struct AdmissionLayer {
    shared: Arc<Shared>,
}

impl<S> Layer<S> for AdmissionLayer {
    type Service = Admission<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Admission {
            inner,
            shared: Arc::clone(&self.shared),
        }
    }
}

#[derive(Clone)]
struct Admission<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S> Admission<S> {
    /// The place of a long-lived stream; none for other methods.
    fn stream(&self, method: &Method) -> Result<Option<OwnedSemaphorePermit>, Status> {
        if !method.streams {
            return Ok(None);
        }
        match Arc::clone(&self.shared.streams).try_acquire_owned() {
            Ok(permit) => Ok(Some(permit)),
            Err(_) => {
                crate::metrics::shed(self.shared.port, "streams");
                let limit = format!("the limit is {}", self.shared.limits.streams);
                Err(overloaded("too many streams", &limit))
            }
        }
    }
}

impl<S> Service<http::Request<Body>> for Admission<S>
where
    S: Service<http::Request<Body>, Response = Response> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send,
{
    type Response = Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = Arc::clone(self.shared.methods.get(request.uri().path()));
        if request.version() < http::Version::HTTP_2 {
            let answer = not_grpc(method.is_known());
            return Box::pin(std::future::ready(Ok(answer)));
        }
        let stream = match self.stream(&method) {
            Ok(stream) => stream,
            Err(status) => return Box::pin(std::future::ready(Ok(refusal(&status)))),
        };
        let mut observed = Call::begun(&method);
        let room = Arc::clone(&self.shared.request_bytes);
        let receive = self.shared.limits.receive;
        let request = request.map(|body| Body::new(Taken::new(body, room, receive, Some(method))));
        let answer = self.inner.call(request);
        Box::pin(async move {
            let mut response = answer.await?;
            let room = response.extensions_mut().remove::<ResponseRoom>();
            observed.answered(&response);
            Ok(response.map(|body| Body::new(Given::new(body, stream, room, observed))))
        })
    }
}

/// Room for the bytes of a response, held until they have been handed to the connection; services
/// put it into a response's extensions.
#[derive(Clone, Debug)]
pub(crate) struct ResponseRoom(
    #[allow(dead_code, reason = "held, not read")] Arc<OwnedSemaphorePermit>,
);

impl ResponseRoom {
    pub(crate) fn new(permit: OwnedSemaphorePermit) -> Self {
        Self(Arc::new(permit))
    }
}

/// A pinned box of a future that is waited for inside a body.
pub(crate) type Waiting<T> = Pin<Box<dyn Future<Output = T> + Send>>;
