//! What the edge counts: connections, requests, bytes, what was refused.
//!
//! Labels have few values: the port, a method of the published protocol (or `other`), a gRPC code.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use axum::response::Response;
use metrics::{Counter, Gauge, Histogram, counter, describe_counter, describe_gauge};
use metrics::{Unit, describe_histogram, gauge, histogram};
use prost::Message;
use quorate_proto::v1::FILE_DESCRIPTOR_SET;
use tonic::Code;

/// What every path counts as that is no method.
const OTHER: &str = "other";
/// The methods whose requests are records.
const PRODUCES: [&str; 2] = [
    "quorate.v1.Producer/Produce",
    "quorate.v1.Producer/ProduceStream",
];

/// Says what the edge's metrics mean; once, when the recorder is there.
pub fn describe() {
    describe_gauge!("quorate_connections", "Open connections");
    describe_counter!(
        "quorate_connections_refused_total",
        "Connections closed at once: too many, or the system gave no more"
    );
    describe_counter!(
        "quorate_requests_shed_total",
        "Requests refused at a limit of the port"
    );
    describe_counter!("quorate_grpc_requests_total", "Calls that have ended");
    describe_gauge!("quorate_grpc_calls", "Calls that go on, streams included");
    describe_histogram!(
        "quorate_grpc_request_duration_seconds",
        Unit::Seconds,
        "From a call's head to the end of its answer; streams are left out"
    );
    describe_counter!(
        "quorate_grpc_request_bytes_total",
        Unit::Bytes,
        "Bytes of messages received"
    );
    describe_counter!(
        "quorate_grpc_response_bytes_total",
        Unit::Bytes,
        "Bytes of messages handed to connections"
    );
}

/// A connection was refused.
pub(crate) fn refused(port: &'static str) {
    counter!("quorate_connections_refused_total", "port" => port).increment(1);
}

/// A request was refused at a limit.
pub(crate) fn shed(port: &'static str, limit: &'static str) {
    counter!("quorate_requests_shed_total", "port" => port, "limit" => limit).increment(1);
}

/// Something that is counted while it is there.
pub(crate) struct Open(Gauge);

impl Open {
    pub(crate) fn connection(port: &'static str) -> Self {
        Self::of(gauge!("quorate_connections", "port" => port))
    }

    fn of(gauge: Gauge) -> Self {
        gauge.increment(1.0);
        Self(gauge)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// A method of the published protocol, as its calls are counted at one port.
pub(crate) struct Method {
    port: &'static str,
    name: String,
    /// Either side sends a stream: the call lives on.
    pub(crate) streams: bool,
    /// Its requests are records.
    pub(crate) produces: bool,
    ok: Counter,
    calls: Gauge,
    duration: Histogram,
    received: Counter,
    sent: Counter,
}

impl Method {
    fn new(port: &'static str, name: String, streams: bool) -> Self {
        Self {
            ok: requests(port, &name, Code::Ok),
            calls: gauge!("quorate_grpc_calls", "port" => port, "method" => name.clone()),
            duration: histogram!(
                "quorate_grpc_request_duration_seconds", "port" => port, "method" => name.clone()
            ),
            received: counter!(
                "quorate_grpc_request_bytes_total", "port" => port, "method" => name.clone()
            ),
            sent: counter!(
                "quorate_grpc_response_bytes_total", "port" => port, "method" => name.clone()
            ),
            produces: PRODUCES.contains(&name.as_str()),
            port,
            name,
            streams,
        }
    }

    /// Whether it is one of the protocol's, not what a stranger asks for.
    pub(crate) fn is_known(&self) -> bool {
        self.name != OTHER
    }

    pub(crate) fn received(&self, bytes: usize) {
        self.received.increment(bytes as u64);
    }
}

fn requests(port: &'static str, method: &str, code: Code) -> Counter {
    counter!(
        "quorate_grpc_requests_total",
        "port" => port, "method" => method.to_owned(), "code" => name(code)
    )
}

/// The methods that a port serves.
pub(crate) struct Methods {
    by_path: HashMap<String, Arc<Method>>,
    other: Arc<Method>,
}

impl Methods {
    /// Those of the published protocol, of health and of reflection.
    pub(crate) fn of(port: &'static str) -> Self {
        let files = prost_types::FileDescriptorSet::decode(FILE_DESCRIPTOR_SET)
            .expect("the descriptors were encoded by the build");
        let mut by_path = HashMap::new();
        let mut add = |path: String, streams| {
            let name = path.trim_start_matches('/').to_owned();
            by_path.insert(path, Arc::new(Method::new(port, name, streams)));
        };
        for file in &files.file {
            for service in &file.service {
                for method in &service.method {
                    let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                    add(path, method.client_streaming() || method.server_streaming());
                }
            }
        }
        add("/grpc.health.v1.Health/Check".to_owned(), false);
        add("/grpc.health.v1.Health/Watch".to_owned(), true);
        for version in ["v1", "v1alpha"] {
            let service = format!("/grpc.reflection.{version}.ServerReflection");
            add(format!("{service}/ServerReflectionInfo"), true);
        }
        Self {
            by_path,
            other: Arc::new(Method::new(port, OTHER.to_owned(), false)),
        }
    }

    pub(crate) fn get(&self, path: &str) -> &Arc<Method> {
        self.by_path.get(path).unwrap_or(&self.other)
    }
}

/// A call from its head to the end of its answer, or until either side gave it up.
pub(crate) struct Call {
    method: Arc<Method>,
    begun: Instant,
    code: Option<Code>,
    _open: Open,
}

impl Call {
    pub(crate) fn begun(method: &Arc<Method>) -> Self {
        Self {
            method: Arc::clone(method),
            begun: Instant::now(),
            code: None,
            _open: Open::of(method.calls.clone()),
        }
    }

    /// An answer without a body has its code in its head.
    pub(crate) fn answered(&mut self, response: &Response) {
        self.ended(response.headers());
    }

    pub(crate) fn sent(&self, bytes: usize) {
        self.method.sent.increment(bytes as u64);
    }

    /// The code, where these headers or trailers have it.
    pub(crate) fn ended(&mut self, headers: &http::HeaderMap) {
        if let Some(status) = headers.get("grpc-status") {
            self.code = Some(Code::from_bytes(status.as_bytes()));
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let method = &self.method;
        if !method.streams {
            method.duration.record(self.begun.elapsed().as_secs_f64());
        }
        match self.code {
            Some(Code::Ok) => method.ok.increment(1),
            // Without a code the caller went away.
            code => {
                let code = code.unwrap_or(Code::Cancelled);
                requests(method.port, &method.name, code).increment(1);
            }
        }
    }
}

/// A code by the name that gRPC gives it.
fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_those_of_the_protocol() {
        let methods = Methods::of("test");
        let get = |path: &str| (methods.get(path).name.clone(), methods.get(path).streams);
        let produce = "quorate.v1.Producer/Produce".to_owned();
        assert_eq!(get("/quorate.v1.Producer/Produce"), (produce, false));
        let all = methods.by_path.values();
        assert_eq!(all.filter(|method| method.produces).count(), PRODUCES.len());
        let consume = "quorate.v1.Consumer/Consume".to_owned();
        assert_eq!(get("/quorate.v1.Consumer/Consume"), (consume, true));
        assert_eq!(
            get("/whatever/a/stranger/asks"),
            ("other".to_owned(), false)
        );
    }
}
