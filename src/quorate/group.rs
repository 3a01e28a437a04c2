//! `quorate group`: groups and how far they are, as tables or JSON.

use quorate_client::Client;
use quorate_proto::v1;
use serde_json::{Value, json};

use crate::cli::{Global, OutputFormat};
use crate::failure::{Failure, Outcome};
use crate::group_args::GroupCommand;
use crate::output::{self, Column};
use crate::topic::hex;
use crate::{client, group_reset, told};

pub(crate) async fn run(global: &Global, command: GroupCommand) -> Outcome {
    match command {
        GroupCommand::List => list(global).await,
        GroupCommand::Describe { group } => {
            let described = client(global)?
                .describe_group(&group)
                .await
                .map_err(|error| told(format!("cannot describe group {group}"), &error))?;
            match global.output {
                OutputFormat::Json => output::json(&described_json(&described)),
                OutputFormat::Text => describe(&described),
            }
        }
        GroupCommand::ResetOffsets(args) => group_reset::run(global, args).await,
        GroupCommand::Delete { groups } => delete(global, &client(global)?, groups).await,
    }
}

async fn list(global: &Global) -> Outcome {
    let groups = client(global)?
        .list_groups()
        .await
        .map_err(|error| told("cannot list groups", &error))?;
    match global.output {
        OutputFormat::Json => {
            let rows: Vec<Value> = groups.iter().map(summary).collect();
            output::json(&rows)
        }
        OutputFormat::Text => {
            let columns: [Column<v1::GroupSummary>; 4] = [
                Column::words("GROUP", |group| group.group.clone()),
                Column::words("STATE", |group| state_name(group.state()).to_owned()),
                Column::number("MEMBERS", |group| group.members.to_string()),
                Column::number("COORDINATOR", |group| output::or_dash(group.coordinator)),
            ];
            output::line(output::table(&columns, &groups))
        }
    }
}

/// Deletes those that can be; each that cannot is told, and the command fails in the end.
async fn delete(global: &Global, client: &Client, groups: Vec<String>) -> Outcome {
    let mut deleted = Vec::new();
    let mut outcome = Ok(());
    for group in groups {
        match client.delete_group(&group).await {
            Ok(()) => {
                if global.output == OutputFormat::Text {
                    output::line(format!("deleted group {group}"))?;
                }
                deleted.push(json!({ "group": group, "deleted": true }));
            }
            Err(error) => {
                let failure = told(format!("group {group} was not deleted"), &error);
                eprintln!("{failure}");
                outcome = Err(Failure::Said);
            }
        }
    }
    if global.output == OutputFormat::Json {
        output::json(&deleted)?;
    }
    outcome
}

fn state_name(state: v1::GroupState) -> &'static str {
    match state {
        v1::GroupState::Empty => "empty",
        v1::GroupState::Stable => "stable",
        v1::GroupState::Reconciling => "reconciling",
    }
}

fn summary(group: &v1::GroupSummary) -> Value {
    json!({
        "group": group.group,
        "state": state_name(group.state()),
        "members": group.members,
        "coordinator": group.coordinator,
        "group_epoch": group.group_epoch,
    })
}

fn describe(described: &v1::DescribeGroupResponse) -> Outcome {
    let group = described.group.clone().unwrap_or_default();
    output::line(format!(
        "group {}, {}, epoch {}, coordinated by {}",
        group.group,
        state_name(group.state()),
        group.group_epoch,
        output::or_dash(group.coordinator),
    ))?;
    output::line("")?;
    output::line(members(&described.members))?;
    output::line("")?;
    output::line(offsets(&described.offsets))
}

fn members(members: &[v1::MemberDescription]) -> String {
    if members.is_empty() {
        return "no members".to_owned();
    }
    let columns: [Column<v1::MemberDescription>; 7] = [
        Column::words("MEMBER", |m| m.member_id.clone()),
        Column::words("INSTANCE", |m| output::or_dash(m.instance_id.as_ref())),
        Column::words("CLIENT", |m| m.client_id.clone()),
        Column::words("HOST", |m| m.client_host.clone()),
        Column::number("EPOCH", |m| m.member_epoch.to_string()),
        Column::words("PARTITIONS", |m| shown(&m.partitions)),
        Column::words("GIVES UP", |m| shown(&m.revoking)),
    ];
    output::table(&columns, members)
}

/// `orders 0,1,2; returns 0`.
fn shown(topics: &[v1::TopicPartitions]) -> String {
    let topics = topics.iter().filter(|of| !of.partitions.is_empty());
    let each = topics.map(|of| format!("{} {}", of.topic, output::list(&of.partitions)));
    let each: Vec<String> = each.collect();
    if each.is_empty() {
        "-".to_owned()
    } else {
        each.join("; ")
    }
}

fn offsets(offsets: &[v1::GroupOffset]) -> String {
    if offsets.is_empty() {
        return "nothing is committed".to_owned();
    }
    let columns: [Column<v1::GroupOffset>; 6] = [
        Column::words("TOPIC", |of| of.topic.clone()),
        Column::number("PARTITION", |of| of.partition.to_string()),
        Column::number("COMMITTED", |of| output::or_dash(of.committed)),
        Column::number("END", |of| output::or_dash(of.high_watermark)),
        Column::number("LAG", |of| output::or_dash(of.lag)),
        Column::words("MEMBER", |of| output::or_dash(of.member_id.as_ref())),
    ];
    output::table(&columns, offsets)
}

/// The protocol's fields, with a member's partitions one by one.
fn described_json(described: &v1::DescribeGroupResponse) -> Value {
    let partitions = |topics: &[v1::TopicPartitions]| -> Vec<Value> {
        let each = topics.iter().flat_map(|of| {
            let numbers = of.partitions.iter();
            numbers.map(|partition| {
                json!({
                    "topic": of.topic,
                    "topic_id": hex(&of.topic_id),
                    "partition": partition,
                })
            })
        });
        each.collect()
    };
    let members = described.members.iter().map(|member| {
        json!({
            "member_id": member.member_id,
            "member_epoch": member.member_epoch,
            "instance_id": member.instance_id,
            "client_id": member.client_id,
            "client_host": member.client_host,
            "topics": member.topics,
            "assignor": match member.assignor() {
                v1::Assignor::Uniform => "uniform",
                v1::Assignor::Range => "range",
            },
            "session_timeout_ms": member.session_timeout_ms,
            "rebalance_timeout_ms": member.rebalance_timeout_ms,
            "partitions": partitions(&member.partitions),
            "revoking": partitions(&member.revoking),
        })
    });
    let offsets = described.offsets.iter().map(|of| {
        json!({
            "topic": of.topic,
            "topic_id": hex(&of.topic_id),
            "partition": of.partition,
            "committed": of.committed,
            "high_watermark": of.high_watermark,
            "lag": of.lag,
            "member_id": of.member_id,
            "metadata": of.metadata,
        })
    });
    let mut shown = summary(&described.group.clone().unwrap_or_default());
    shown["members"] = members.collect();
    shown["offsets"] = offsets.collect();
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> v1::DescribeGroupResponse {
        let topic = |topic: &str, partitions: &[i32]| v1::TopicPartitions {
            topic: topic.into(),
            topic_id: vec![0xab; 16].into(),
            partitions: partitions.to_vec(),
        };
        v1::DescribeGroupResponse {
            group: Some(v1::GroupSummary {
                group: "billing".into(),
                state: v1::GroupState::Reconciling.into(),
                members: 1,
                coordinator: Some(2),
                group_epoch: 7,
            }),
            members: vec![v1::MemberDescription {
                member_id: "m".into(),
                client_id: "c".into(),
                client_host: "h".into(),
                member_epoch: 6,
                partitions: vec![topic("orders", &[0, 2]), topic("returns", &[1])],
                ..v1::MemberDescription::default()
            }],
            offsets: vec![v1::GroupOffset {
                topic: "orders".into(),
                partition: 2,
                committed: Some(5),
                high_watermark: Some(9),
                lag: Some(4),
                ..v1::GroupOffset::default()
            }],
            more: false,
        }
    }

    #[test]
    fn a_group_is_shown_with_all_that_its_members_read() {
        let sample = sample();
        assert_eq!(
            members(&sample.members),
            "MEMBER  INSTANCE  CLIENT  HOST  EPOCH  PARTITIONS             GIVES UP\n\
             m       -         c       h         6  orders 0,2; returns 1  -"
        );
        assert_eq!(
            offsets(&sample.offsets),
            "TOPIC   PARTITION  COMMITTED  END  LAG  MEMBER\n\
             orders          2          5    9    4  -"
        );
        let shown = described_json(&sample);
        assert_eq!(
            (&shown["group"], &shown["state"]),
            (&json!("billing"), &json!("reconciling"))
        );
        let partitions = &shown["members"][0]["partitions"];
        let numbers = partitions.as_array().unwrap().iter();
        let numbers: Vec<_> = numbers.map(|of| (&of["topic"], &of["partition"])).collect();
        let (orders, returns) = (json!("orders"), json!("returns"));
        let (zero, one, two) = (json!(0), json!(1), json!(2));
        assert_eq!(
            numbers,
            [(&orders, &zero), (&orders, &two), (&returns, &one)]
        );
        assert_eq!(shown["offsets"][0]["lag"], 4);
        assert_eq!(shown["offsets"][0]["member_id"], Value::Null);
    }
}
