//! `quorate healthcheck`: asks one node over HTTP how it is, so that an image needs no other
//! program for its health check. It looks at that node alone, not at the cluster.

use std::time::Duration;

use quorate_types::Endpoint;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::cli::{Global, HealthcheckArgs, OutputFormat};
use crate::failure::{Failure, Outcome};
use crate::output;

/// An answer is read no further.
const ANSWER_BYTES: u64 = 64 << 10;

/// The parts of an HTTP answer that matter here: its status, and the reason in its body.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    reason: Option<String>,
}

fn parse(answer: &str) -> Option<Answer> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    let body: Option<Value> = serde_json::from_str(body).ok();
    let reason = body.and_then(|body| Some(body.get("reason")?.as_str()?.to_owned()));
    Some(Answer { status, reason })
}

async fn ask(node: &Endpoint, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect((node.host.as_str(), node.port)).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {node}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

pub(crate) async fn run(global: &Global, args: HealthcheckArgs) -> Outcome {
    let Some(node) = global.bootstrap.first() else {
        return Err(Failure::new(
            "no node to ask",
            "the list of addresses is empty",
        ));
    };
    let (path, wanted) = if args.live {
        ("/healthz", "live")
    } else {
        ("/readyz", "ready")
    };
    let what = format!("{node} is not {wanted}");
    let within = args.timeout.unwrap_or(Duration::from_secs(3));
    let answer = match timeout(within, ask(node, path)).await {
        Err(_) => return Err(Failure::new(what, format!("no answer within {within:?}"))),
        Ok(Err(error)) => {
            return Err(Failure::new(what, error).hint("check --bootstrap, or start the node"));
        }
        Ok(Ok(answer)) => answer,
    };
    match parse(&answer) {
        Some(Answer { status: 200, .. }) => match global.output {
            OutputFormat::Text => output::line(format!("{node} is {wanted}")),
            OutputFormat::Json => output::json(&json!({ "node": node.to_string(), wanted: true })),
        },
        Some(Answer { status, reason }) => {
            let why = reason.unwrap_or_else(|| format!("it answers with status {status}"));
            Err(Failure::new(what, why))
        }
        None => Err(Failure::new(what, "its answer is not HTTP")
            .hint("give the port for clients, not the one for nodes")),
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// Answers one request with `answer`, whatever it was; gives the request.
    async fn asked(answer: &'static str, live: bool) -> (Outcome, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let global = Global {
            bootstrap: vec![Endpoint {
                host: "127.0.0.1".to_owned(),
                port: listener.local_addr().unwrap().port(),
            }],
            output: OutputFormat::Text,
        };
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 1_024];
            let read = stream.read(&mut request).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8(request[..read].to_vec()).unwrap()
        });
        let timeout = None;
        let outcome = run(&global, HealthcheckArgs { live, timeout }).await;
        (outcome, server.await.unwrap())
    }

    #[tokio::test]
    async fn a_ready_node_is_told_from_one_that_is_not() {
        let ok = "HTTP/1.1 200 OK\r\ncontent-length: 15\r\n\r\n{\"status\":\"ok\"}";
        let (outcome, request) = asked(ok, false).await;
        assert!(outcome.is_ok() && request.starts_with("GET /readyz HTTP/1.1\r\n"));
        let (_, request) = asked(ok, true).await;
        assert!(request.starts_with("GET /healthz "));

        let fenced = "HTTP/1.1 503 Service Unavailable\r\n\r\n{\"reason\":\"it is fenced\"}";
        let told = asked(fenced, false).await.0.unwrap_err().to_string();
        assert!(told.contains("why: it is fenced"), "{told}");
        let told = asked("PRI * HTTP/2.0", false).await.0.unwrap_err();
        assert!(told.to_string().contains("not HTTP"), "{told}");
    }

    #[tokio::test]
    async fn a_node_that_does_not_answer_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let global = Global {
            bootstrap: vec![Endpoint {
                host: "127.0.0.1".to_owned(),
                port: listener.local_addr().unwrap().port(),
            }],
            output: OutputFormat::Text,
        };
        let timeout = Some(Duration::from_millis(50));
        let args = HealthcheckArgs {
            live: false,
            timeout,
        };
        let told = run(&global, args).await.unwrap_err().to_string();
        assert!(told.contains("no answer within 50ms"), "{told}");
    }
}
