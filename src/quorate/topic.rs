//! `quorate topic`.

use quorate_proto::v1;
use serde_json::{Value, json};

use crate::cli::{Global, OutputFormat, TopicCommand};
use crate::failure::{Failure, Outcome};
use crate::output::{self, Column};
use crate::{client, told};

pub(crate) fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) async fn run(global: &Global, command: TopicCommand) -> Outcome {
    if let TopicCommand::Alter {
        name,
        config,
        unset,
        ..
    } = &command
        && config.is_empty()
        && unset.is_empty()
    {
        let failure = Failure::usage(format!("topic {name} was not altered"), "nothing to change");
        return Err(failure.hint("give --config KEY=VALUE or --unset KEY"));
    }
    let client = client(global)?;
    match command {
        TopicCommand::Create {
            name,
            partitions,
            replication_factor,
            config,
            ..
        } => {
            let created = client
                .create_topic(
                    &name,
                    partitions,
                    replication_factor.unwrap_or(0),
                    config.into_iter().collect(),
                )
                .await
                .map_err(|error| told(format!("topic {name} was not created"), &error))?;
            match global.output {
                OutputFormat::Json => output::json(&described(&created)),
                OutputFormat::Text => {
                    let count = created.partitions.len() as u64;
                    let replicas = created.partitions.first();
                    let replicas = replicas.map_or(0, |p| p.replicas.len()) as u64;
                    output::line(format!(
                        "created topic {name}: {}, {}{}",
                        output::counted(count, "partition", "partitions"),
                        output::counted(replicas, "replica", "replicas"),
                        if count == 1 { "" } else { " each" },
                    ))
                }
            }
        }
        TopicCommand::List => {
            let topics = client
                .list_topics()
                .await
                .map_err(|error| told("cannot list topics", &error))?;
            match global.output {
                OutputFormat::Json => {
                    let rows: Vec<Value> = topics
                        .iter()
                        .map(|topic| {
                            json!({
                                "name": topic.name,
                                "topic_id": hex(&topic.topic_id),
                                "partitions": topic.partitions,
                                "replication_factor": topic.replication_factor,
                            })
                        })
                        .collect();
                    output::json(&rows)
                }
                OutputFormat::Text => {
                    let columns: [Column<v1::TopicSummary>; 3] = [
                        Column::words("TOPIC", |topic| topic.name.clone()),
                        Column::number("PARTITIONS", |topic| topic.partitions.to_string()),
                        Column::number("REPLICAS", |topic| topic.replication_factor.to_string()),
                    ];
                    output::line(output::table(&columns, &topics))
                }
            }
        }
        TopicCommand::Describe { name, .. } => {
            let topic = client
                .describe_topic(&name)
                .await
                .map_err(|error| told(format!("cannot describe topic {name}"), &error))?;
            match global.output {
                OutputFormat::Json => output::json(&described(&topic)),
                OutputFormat::Text => describe(&topic),
            }
        }
        TopicCommand::Alter {
            name,
            config,
            unset,
            ..
        } => {
            let altered = client
                .alter_topic(&name, config.into_iter().collect(), unset)
                .await
                .map_err(|error| told(format!("topic {name} was not altered"), &error))?;
            match global.output {
                OutputFormat::Json => output::json(&described(&altered)),
                OutputFormat::Text => describe(&altered),
            }
        }
        TopicCommand::Delete { name, .. } => {
            client
                .delete_topic(&name)
                .await
                .map_err(|error| told(format!("topic {name} was not deleted"), &error))?;
            match global.output {
                OutputFormat::Json => output::json(&json!({ "name": name, "deleted": true })),
                OutputFormat::Text => output::line(format!("deleted topic {name}")),
            }
        }
    }
}

fn describe(topic: &v1::TopicDescription) -> Outcome {
    output::line(format!("topic {}, id {}", topic.name, hex(&topic.topic_id)))?;
    let mut config: Vec<_> = topic.config.iter().collect();
    config.sort();
    for (key, value) in config {
        output::line(format!("  {key}={value}"))?;
    }
    let columns: [Column<v1::PartitionDescription>; 6] = [
        Column::number("PARTITION", |p| p.partition.to_string()),
        Column::number("LEADER", |p| output::or_dash(p.leader)),
        Column::number("EPOCH", |p| p.leader_epoch.to_string()),
        Column::words("REPLICAS", |p| output::list(&p.replicas)),
        Column::words("ISR", |p| output::list(&p.isr)),
        Column::number("HIGH WATERMARK", |p| output::or_dash(p.high_watermark)),
    ];
    output::line(output::table(&columns, &topic.partitions))
}

fn described(topic: &v1::TopicDescription) -> Value {
    let partitions: Vec<Value> = topic
        .partitions
        .iter()
        .map(|p| {
            json!({
                "partition": p.partition,
                "leader": p.leader,
                "leader_epoch": p.leader_epoch,
                "partition_epoch": p.partition_epoch,
                "replicas": p.replicas,
                "isr": p.isr,
                "elr": p.elr,
                "high_watermark": p.high_watermark,
            })
        })
        .collect();
    json!({
        "name": topic.name,
        "topic_id": hex(&topic.topic_id),
        "partitions": partitions,
        "config": topic.config,
    })
}
