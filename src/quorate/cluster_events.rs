//! `quorate cluster events`: what one node remembers, and with `--follow` what happens from then on,
//! whichever nodes come and go.

use std::time::Duration;

use quorate_client::{Client, ClientError, ClientOptions};
use quorate_proto::v1;
use quorate_types::{Endpoint, Timestamp};
use serde_json::{Value, json};
use tokio::time::{Instant, interval, timeout};
use tonic::Streaming;

use crate::cli::{Global, OutputFormat};
use crate::failure::{Failure, Outcome};
use crate::output;
use crate::parse::rfc3339;
use crate::{client, told};

/// A node that went away is replaced within so long, or the command ends.
const REPLACED: Duration = Duration::from_secs(10);
/// One node is asked so long; all are asked again after a pause.
const ONE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(100);
/// How often is asked which other nodes there are.
const LEARN: Duration = Duration::from_secs(5);

/// Which events have been shown. Every node has them in the same order, by their index in the
/// metadata log; one entry there may make several.
#[derive(Debug, Default)]
struct Shown {
    index: i64,
    of_index: usize,
}

impl Shown {
    /// Whether an event is to be shown: `seen` counts those of index [`Shown::index`] that the
    /// present stream has brought.
    fn admit(&mut self, index: i64, seen: &mut usize) -> bool {
        if index < self.index {
            return false;
        }
        if index > self.index {
            *self = Self { index, of_index: 0 };
            *seen = 0;
        }
        *seen += 1;
        let new = *seen > self.of_index;
        self.of_index = self.of_index.max(*seen);
        new
    }
}

fn print(global: &Global, event: &v1::ClusterEvent) -> Outcome {
    match global.output {
        OutputFormat::Text => {
            let time = rfc3339(Timestamp::from_millis(event.time_ms));
            output::line(format!("{time}  {}", event.text))
        }
        OutputFormat::Json => output::json_line(&described(event)),
    }
}

/// An event as JSON.
pub(crate) fn described(event: &v1::ClusterEvent) -> Value {
    json!({
        "index": event.index,
        "time_ms": event.time_ms,
        "kind": event.kind,
        "node_id": event.node_id,
        "topic": event.topic,
        "partition": event.partition,
        "leader": event.leader,
        "leader_epoch": event.leader_epoch,
        "isr": event.isr,
        "lost_from": event.lost_from,
        "lost_to": event.lost_to,
        "cause": event.cause,
        "text": event.text,
    })
}

pub(crate) async fn run(global: &Global, follow: bool) -> Outcome {
    if follow {
        return follow_on(global).await;
    }
    let failed = |error| told("cannot watch events", &error);
    let mut events = client(global)?.watch_events(false).await.map_err(failed)?;
    while let Some(event) = events.message().await.map_err(|why| failed(why.into()))? {
        print(global, &event)?;
    }
    Ok(())
}

async fn follow_on(global: &Global) -> Outcome {
    let mut nodes = global.bootstrap.clone();
    let mut shown = Shown::default();
    let mut gone: Option<(Endpoint, String)> = None;
    loop {
        let (node, client, mut events) = match (reach(&nodes).await, &gone) {
            (Ok(reached), _) => reached,
            (Err(error), None) => return Err(told("cannot watch events", &error)),
            (Err(_), Some((old, why))) => {
                let why = format!("{old} went away ({why}) and no node answers since");
                return Err(Failure::new("events are not watched any more", why));
            }
        };
        if let Some((old, why)) = &gone {
            eprintln!("{old} went away ({why}); going on at {node}");
        }
        let (mut seen, mut first) = (0, true);
        let mut again = interval(LEARN);
        let why = loop {
            let event = tokio::select! {
                event = events.message() => event,
                _ = again.tick() => {
                    learn(&client, &mut nodes).await;
                    continue;
                }
            };
            let event = match event {
                Ok(Some(event)) => event,
                Ok(None) => break "it ended the stream".to_owned(),
                Err(status) => break status.message().to_owned(),
            };
            if first && shown.index > 0 && event.index > shown.index {
                eprintln!("{node} remembers nothing older: events may be missing here");
            }
            first = false;
            if shown.admit(event.index, &mut seen) {
                print(global, &event)?;
            }
        };
        // It is asked again when no other answers.
        nodes.retain(|other| *other != node);
        nodes.push(node.clone());
        gone = Some((node, why));
    }
}

/// Watches the first node that answers; the client knows no other.
async fn reach(
    nodes: &[Endpoint],
) -> Result<(Endpoint, Client, Streaming<v1::ClusterEvent>), ClientError> {
    let deadline = Instant::now() + REPLACED;
    let mut again = interval(PAUSE);
    loop {
        again.tick().await;
        let mut last = ClientError::Connection("no node is known".into());
        for node in nodes {
            let options = ClientOptions {
                // Nobody else is asked by this client: once is enough.
                call_timeout: Duration::ZERO,
                ..ClientOptions::default()
            };
            let client = Client::new(vec![node.clone()], options)?;
            let asked = timeout(ONE, client.watch_events(true)).await;
            match asked.unwrap_or_else(|_| Err(ClientError::Connection(format!("{node}: silent"))))
            {
                Ok(events) => return Ok((node.clone(), client, events)),
                Err(error) if !error.is_retriable() => return Err(error),
                Err(error) => last = error,
            }
        }
        if Instant::now() >= deadline {
            return Err(last);
        }
    }
}

/// Learns where the other nodes are.
async fn learn(client: &Client, nodes: &mut Vec<Endpoint>) {
    let Ok(Ok(cluster)) = timeout(ONE, client.describe_cluster()).await else {
        return;
    };
    for at in cluster
        .brokers
        .into_iter()
        .filter_map(|broker| broker.endpoint)
    {
        let known = |node: &Endpoint| node.host == at.host && u32::from(node.port) == at.port;
        if let (false, Ok(port)) = (nodes.iter().any(known), u16::try_from(at.port)) {
            nodes.push(Endpoint {
                host: at.host,
                port,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_shown_once_though_a_node_goes_away_within_an_entry() {
        let mut shown = Shown::default();
        let mut of = |indices: &[i64]| -> Vec<bool> {
            let mut seen = 0;
            let mut one = |index: &i64| shown.admit(*index, &mut seen);
            indices.iter().map(&mut one).collect()
        };
        assert_eq!(of(&[3, 5, 5]), [true; 3]);
        assert_eq!(of(&[3, 5, 5, 5, 8]), [false, false, false, true, true]);
        assert_eq!(
            of(&[5, 5, 5, 8, 8, 9]),
            [false, false, false, false, true, true]
        );
    }
}
