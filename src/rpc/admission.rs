//! What a port lets in: so many requests at a time, until their answers have been handed to the
//! connection; so many streams, so many bytes of requests that are being received. Above a limit a request is refused at once, with a typed error, while others
//! go on: nothing queues without end (load shedding).

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures::future::BoxFuture;
use quorate_types::ErrorCode;
use quorate_wire::ErrorInfo;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;
use tower::{Layer, Service};

use crate::body::{Given, Taken};
use crate::metrics::{Call, Method, Methods};
use crate::status::to_status;

/// Bounds of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdmissionLimits {
    /// Requests at a time, from their heads to the ends of their answers, and so many long-lived
    /// streams beside them.
    pub requests: usize,
    /// See there.
    pub streams: usize,
    /// Bytes of produces that have been received in part, or not been decoded yet.
    pub request_bytes: usize,
    /// The same of everything else: whoever produces does not keep others from asking.
    pub other_bytes: usize,
    /// How long a message may take from its first byte to its last.
    pub receive: Duration,
}

/// The services behind the limits.
pub fn limited(services: Router, port: &'static str, limits: AdmissionLimits) -> Router {
    services.layer(AdmissionLayer {
        shared: Arc::new(Shared {
            requests: Arc::new(Semaphore::new(limits.requests)),
            streams: Arc::new(Semaphore::new(limits.streams)),
            request_bytes: Arc::new(Semaphore::new(limits.request_bytes)),
            other_bytes: Arc::new(Semaphore::new(limits.other_bytes)),
            methods: Methods::of(port),
            limits,
            port,
        }),
    })
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
    requests: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    request_bytes: Arc<Semaphore>,
    other_bytes: Arc<Semaphore>,
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
    /// The place of a call among the requests or the long-lived streams.
    fn place(&self, method: &Method) -> Result<OwnedSemaphorePermit, Status> {
        let Shared { limits, port, .. } = *self.shared;
        let (places, most, name, what) = if method.streams {
            let what = "too many streams";
            (&self.shared.streams, limits.streams, "streams", what)
        } else {
            let what = "too many requests at a time";
            (&self.shared.requests, limits.requests, "requests", what)
        };
        Arc::clone(places).try_acquire_owned().map_err(|_full| {
            crate::metrics::shed(port, name);
            overloaded(what, &format!("the limit is {most}"))
        })
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
        let place = match self.place(&method) {
            Ok(place) => place,
            Err(status) => return Box::pin(std::future::ready(Ok(refusal(&status)))),
        };
        let mut observed = Call::begun(&method);
        let room = if method.produces {
            Arc::clone(&self.shared.request_bytes)
        } else {
            Arc::clone(&self.shared.other_bytes)
        };
        let receive = self.shared.limits.receive;
        let request = request.map(|body| Body::new(Taken::new(body, room, receive, Some(method))));
        let answer = self.inner.call(request);
        Box::pin(async move {
            let mut response = answer.await?;
            let room = response.extensions_mut().remove::<ResponseRoom>();
            observed.answered(&response);
            Ok(response.map(|body| Body::new(Given::new(body, place, room, observed))))
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

#[cfg(test)]
mod tests {
    use http_body::Body as _;

    use super::*;

    #[tokio::test]
    async fn an_answer_keeps_its_place_until_it_has_been_read() {
        let limits = AdmissionLimits {
            requests: 2,
            streams: 1,
            request_bytes: 1 << 20,
            other_bytes: 1 << 20,
            receive: Duration::from_secs(1),
        };
        let router = Router::new().fallback(|| async { "an answer" });
        let mut port = limited(router, "test", limits);
        let mut ask = async || {
            let request = http::Request::post("/quorate.v1.Admin/ListTopics");
            let request = request.version(http::Version::HTTP_2);
            let answer = Service::call(&mut port, request.body(Body::empty()).unwrap());
            answer.await.unwrap()
        };
        let refused = |answer: &Response| answer.headers().contains_key("grpc-status");
        let (mut first, second) = (ask().await, ask().await);
        assert!(!refused(&first) && !refused(&second));
        assert!(refused(&ask().await), "nobody has read the two");
        loop {
            let body = Pin::new(first.body_mut());
            let mut body = body;
            if std::future::poll_fn(|cx| body.as_mut().poll_frame(cx))
                .await
                .is_none()
            {
                break;
            }
        }
        drop(first);
        assert!(!refused(&ask().await));
    }
}
