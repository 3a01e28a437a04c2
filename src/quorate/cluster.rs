//! `quorate cluster`.

use quorate_client::{Client, ClientError};
use quorate_config::Key;
use quorate_proto::v1;
use quorate_types::NodeId;
use serde_json::{Value, json};

use crate::cli::{ClusterCommand, Global, OutputFormat};
use crate::failure::{Failure, Outcome};
use crate::logging::DEFAULT_LEVELS;
use crate::output::{self, Column};
use crate::{client, cluster_events, told};

/// A broker's state in one word.
pub(crate) fn state_name(state: v1::BrokerState) -> &'static str {
    match state {
        v1::BrokerState::Fenced => "fenced",
        v1::BrokerState::Active => "active",
        v1::BrokerState::ShuttingDown => "shutting-down",
    }
}

fn address(endpoint: Option<&v1::Endpoint>) -> String {
    endpoint.map_or_else(|| "-".to_owned(), |at| format!("{}:{}", at.host, at.port))
}

pub(crate) async fn run(global: &Global, command: ClusterCommand) -> Outcome {
    let client = client(global)?;
    match command {
        ClusterCommand::Events { follow } => return cluster_events::run(global, follow).await,
        ClusterCommand::SetFeature { level } => {
            return set_feature(global, &client, level).await;
        }
        ClusterCommand::LogLevel { node, level } => {
            return log_level(global, &client, node, level).await;
        }
        _ => {}
    }
    let cluster = client
        .describe_cluster()
        .await
        .map_err(|error| told("cannot describe the cluster", &error))?;
    match command {
        ClusterCommand::Status => status(global, &cluster),
        ClusterCommand::Brokers => brokers(global, &cluster),
        ClusterCommand::Quorum => quorum(global, &cluster),
        ClusterCommand::Events { .. }
        | ClusterCommand::SetFeature { .. }
        | ClusterCommand::LogLevel { .. } => Ok(()),
    }
}

async fn set_feature(global: &Global, client: &Client, level: u32) -> Outcome {
    let answer = client.set_feature(level).await.map_err(|error| {
        let what = match &error {
            ClientError::Refused(info) if !info.code.is_retriable() => {
                "the feature level was not raised"
            }
            _ => "the feature level is not known to have been raised",
        };
        told(what, &error)
    })?;
    match global.output {
        OutputFormat::Json => output::json(&json!({ "feature_level": answer.level })),
        OutputFormat::Text => output::line(format!("feature level {}", answer.level)),
    }
}

/// The level in force, and a higher one that all brokers speak.
fn feature_level(cluster: &v1::DescribeClusterResponse) -> String {
    let level = cluster.feature_level;
    let of_all = cluster.brokers.iter().map(|b| b.max_feature_level).min();
    match of_all.filter(|of_all| *of_all > level) {
        Some(more) => {
            format!("{level}; every broker speaks {more} (quorate cluster set-feature {more})")
        }
        None => level.to_string(),
    }
}

async fn log_level(
    global: &Global,
    client: &Client,
    node: Option<NodeId>,
    level: Option<String>,
) -> Outcome {
    const UNCHANGED: &str = "the log's levels were not changed";
    if let Some(level) = level.as_deref().filter(|level| *level != DEFAULT_LEVELS) {
        let key = Key::find("log-level").expect("it is a setting");
        key.check(level).map_err(|why| {
            Failure::usage(UNCHANGED, format!("{level:?}: {why}")).hint(
                "error, warn, info, debug or trace, also by part, or default for those of the start",
            )
        })?;
    }
    let changes = level.is_some();
    let answer = client.log_level(node, level).await.map_err(|error| {
        let what = match &error {
            _ if !changes => "the log's levels are not known",
            ClientError::Refused(info) if !info.code.is_retriable() => UNCHANGED,
            _ => "the log's levels are not known to have changed",
        };
        told(what, &error)
    })?;
    if changes && node.is_none() {
        eprintln!(
            "only node {} was asked; --node names another",
            answer.node_id
        );
    }
    match global.output {
        OutputFormat::Json => output::json(&json!({
            "node_id": answer.node_id,
            "level": answer.level,
        })),
        OutputFormat::Text => output::line(format!("node {}: {}", answer.node_id, answer.level)),
    }
}

fn status(global: &Global, cluster: &v1::DescribeClusterResponse) -> Outcome {
    let partitions = || cluster.topics.iter().flat_map(|topic| &topic.partitions);
    let offline = partitions()
        .filter(|partition| partition.leader.is_none())
        .count();
    let thin = partitions()
        .filter(|p| p.isr.len() < p.replicas.len())
        .count();
    let active = cluster
        .brokers
        .iter()
        .filter(|b| b.state() == v1::BrokerState::Active)
        .count();
    let outage = cluster.quorum.as_ref().and_then(|q| q.outage.as_deref());
    let healthy = offline == 0 && cluster.controller.is_some();
    match global.output {
        OutputFormat::Json => output::json(&json!({
            "cluster_id": cluster.cluster_id,
            "controller": cluster.controller,
            "outage": outage,
            "feature_level": cluster.feature_level,
            "brokers": cluster.brokers.len(),
            "active_brokers": active,
            "topics": cluster.topics.len(),
            "partitions": partitions().count(),
            "offline_partitions": offline,
            "under_replicated_partitions": thin,
        }))?,
        OutputFormat::Text => {
            let node = cluster.node_id;
            if cluster.cluster_id.is_empty() {
                output::line(format!(
                    "cluster     none yet: node {node} waits for the other controllers"
                ))?;
                if let Some(why) = outage {
                    output::line(format!("quorum      {why}"))?;
                }
                return Err(Failure::Said);
            }
            output::line(format!("cluster     {}", cluster.cluster_id))?;
            let controller = cluster.controller.map_or_else(
                || {
                    format!(
                        "none: the metadata quorum has no leader; what follows is what node \
                         {node} last knew"
                    )
                },
                |controller| controller.to_string(),
            );
            output::line(format!("controller  {controller}"))?;
            if let Some(why) = outage {
                output::line(format!("quorum      {why}"))?;
            }
            output::line(format!("features    level {}", feature_level(cluster)))?;
            output::line(format!(
                "brokers     {active} of {} active",
                cluster.brokers.len()
            ))?;
            output::line(format!(
                "partitions  {} in {}: {offline} offline, {thin} under-replicated",
                partitions().count(),
                output::counted(cluster.topics.len() as u64, "topic", "topics"),
            ))?;
        }
    }
    if healthy { Ok(()) } else { Err(Failure::Said) }
}

fn brokers(global: &Global, cluster: &v1::DescribeClusterResponse) -> Outcome {
    if global.output == OutputFormat::Json {
        let rows: Vec<Value> = cluster
            .brokers
            .iter()
            .map(|broker| {
                json!({
                    "node_id": broker.node_id,
                    "state": state_name(broker.state()),
                    "endpoint": address(broker.endpoint.as_ref()),
                    "internal_endpoint": address(broker.internal_endpoint.as_ref()),
                    "rack": broker.rack,
                    "broker_epoch": broker.broker_epoch,
                    "leaders": broker.leaders,
                    "replicas": broker.replicas,
                    "out_of_sync": broker.out_of_sync,
                    "min_feature_level": broker.min_feature_level,
                    "max_feature_level": broker.max_feature_level,
                })
            })
            .collect();
        return output::json(&rows);
    }
    let columns: [Column<v1::BrokerDescription>; 7] = [
        Column::number("NODE", |b| b.node_id.to_string()),
        Column::words("STATE", |b| state_name(b.state()).to_owned()),
        Column::words("CLIENTS", |b| address(b.endpoint.as_ref())),
        Column::words("NODES", |b| address(b.internal_endpoint.as_ref())),
        Column::number("LEADS", |b| b.leaders.to_string()),
        Column::number("REPLICAS", |b| b.replicas.to_string()),
        Column::number("OUT OF SYNC", |b| b.out_of_sync.to_string()),
    ];
    output::line(output::table(&columns, &cluster.brokers))
}

fn quorum(global: &Global, cluster: &v1::DescribeClusterResponse) -> Outcome {
    let quorum = cluster.quorum.clone().unwrap_or_default();
    let member = |role: &'static str, member: &v1::QuorumMember| {
        (role, member.clone(), quorum.leader == Some(member.node_id))
    };
    let voters = quorum.voters.iter().map(|voter| member("voter", voter));
    let observers = quorum
        .observers
        .iter()
        .map(|observer| member("observer", observer));
    let rows: Vec<(&str, v1::QuorumMember, bool)> = voters.chain(observers).collect();
    if global.output == OutputFormat::Json {
        let members: Vec<Value> = rows
            .iter()
            .map(|(role, member, leads)| {
                json!({
                    "node_id": member.node_id,
                    "role": role,
                    "leader": leads,
                    "directory_id": member.directory_id,
                    "address": member.address,
                    "matched_index": member.matched_index,
                })
            })
            .collect();
        return output::json(&json!({
            "term": quorum.term,
            "leader": quorum.leader,
            "members": members,
            "last_log_index": quorum.last_log_index,
            "snapshot_index": quorum.snapshot_index,
            "purged_index": quorum.purged_index,
            "outage": quorum.outage,
        }));
    }
    output::line(format!(
        "term {}, leader {}, as node {} sees it: last entry {}, snapshot {}, purged {}",
        quorum.term,
        output::or_dash(quorum.leader),
        cluster.node_id,
        quorum.last_log_index,
        quorum.snapshot_index,
        quorum.purged_index
    ))?;
    if let Some(why) = &quorum.outage {
        output::line(why)?;
    }
    let columns: [Column<(&str, v1::QuorumMember, bool)>; 4] = [
        Column::number("NODE", |row| row.1.node_id.to_string()),
        Column::words("ROLE", |row| {
            if row.2 {
                "leader".to_owned()
            } else {
                row.0.to_owned()
            }
        }),
        Column::words("ADDRESS", |row| row.1.address.clone()),
        Column::number("MATCHED", |row| output::or_dash(row.1.matched_index)),
    ];
    output::line(output::table(&columns, &rows))
}
