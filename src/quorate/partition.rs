//! `quorate partition`: all that is known of a topic's partitions, as tables or JSON.

use quorate_proto::v1;
use quorate_types::PartitionId;
use serde_json::{Value, json};

use crate::cli::{Global, OutputFormat, PartitionCommand};
use crate::cluster::state_name;
use crate::cluster_events;
use crate::failure::{Failure, Outcome};
use crate::output::{self, Column};
use crate::partition_why;
use crate::{client, told};

pub(crate) async fn run(global: &Global, command: PartitionCommand) -> Outcome {
    let PartitionCommand::Describe {
        topic,
        partition,
        why,
    } = command;
    let what = match partition {
        Some(partition) => format!("cannot describe partition {topic}-{partition}"),
        None => format!("cannot describe the partitions of topic {topic}"),
    };
    if partition.is_some_and(|number| i32::try_from(number).is_err()) {
        return Err(Failure::usage(what, "there is no such partition number"));
    }
    let answer = client(global)?
        .describe_partitions(&topic, partition.map(PartitionId::new), why)
        .await
        .map_err(|error| told(what, &error))?;
    if answer.controller.is_none() {
        eprintln!(
            "the metadata quorum has no leader: what follows is what node {} last knew",
            answer.node_id
        );
    }
    let states = answer.partitions;
    match global.output {
        OutputFormat::Json => {
            let rows: Vec<Value> = states
                .iter()
                .map(|state| described(&topic, state, why))
                .collect();
            output::json(&rows)
        }
        OutputFormat::Text if why => {
            for (number, state) in states.iter().enumerate() {
                if number > 0 {
                    output::line("")?;
                }
                output::line(partition_why::told(&topic, state))?;
            }
            Ok(())
        }
        OutputFormat::Text => {
            output::line(table(&states))?;
            match &states[..] {
                [only] if partition.is_some() => {
                    output::line("")?;
                    output::line(replicas(only))
                }
                _ => Ok(()),
            }
        }
    }
}

/// The part that `topic describe` shows, too.
pub(crate) fn common(state: &v1::PartitionState) -> v1::PartitionDescription {
    state.partition.clone().unwrap_or_default()
}

fn table(states: &[v1::PartitionState]) -> String {
    let columns: [Column<v1::PartitionState>; 9] = [
        Column::number("PARTITION", |s| common(s).partition.to_string()),
        Column::number("LEADER", |s| output::or_dash(common(s).leader)),
        Column::number("EPOCH", |s| common(s).leader_epoch.to_string()),
        Column::words("REPLICAS", |s| output::list(common(s).replicas)),
        Column::words("ISR", |s| output::list(common(s).isr)),
        Column::number("MIN ISR", |s| s.effective_min_isr.to_string()),
        Column::words("ELR", |s| output::list(common(s).elr)),
        Column::number("LAST LEADER", |s| output::or_dash(s.last_known_leader)),
        Column::number("HIGH WATERMARK", |s| {
            output::or_dash(common(s).high_watermark)
        }),
    ];
    output::table(&columns, states)
}

fn replicas(state: &v1::PartitionState) -> String {
    let columns: [Column<v1::ReplicaState>; 4] = [
        Column::number("NODE", |r| r.node_id.to_string()),
        Column::words("BROKER", |r| state_name(r.state()).to_owned()),
        Column::words("IN SYNC", |r| {
            if r.in_sync { "yes" } else { "no" }.to_owned()
        }),
        Column::words("DIRECTORY", |r| r.directory_id.clone()),
    ];
    output::table(&columns, &state.replicas)
}

fn described(topic: &str, state: &v1::PartitionState, why: bool) -> Value {
    let of = common(state);
    let replicas: Vec<Value> = state
        .replicas
        .iter()
        .map(|replica| {
            json!({
                "node_id": replica.node_id,
                "state": state_name(replica.state()),
                "directory_id": replica.directory_id,
                "in_sync": replica.in_sync,
                "since": replica.since.as_ref().map(cluster_events::described),
            })
        })
        .collect();
    let losses: Vec<Value> = state
        .losses
        .iter()
        .map(|loss| json!({"leader_epoch": loss.leader_epoch, "from": loss.from, "to": loss.to}))
        .collect();
    let mut described = json!({
        "topic": topic,
        "partition": of.partition,
        "leader": of.leader,
        "leader_epoch": of.leader_epoch,
        "partition_epoch": of.partition_epoch,
        "isr": of.isr,
        "elr": of.elr,
        "high_watermark": of.high_watermark,
        "effective_min_isr": state.effective_min_isr,
        "last_known_leader": state.last_known_leader,
        "unclean_epoch": state.unclean_epoch,
        "fsync_established": state.fsync_established,
        "losses": losses,
        "adding": state.adding,
        "removing": state.removing,
        "replicas": replicas,
    });
    if why {
        let events = state.history.iter().map(cluster_events::described);
        described["history"] = events.collect();
    }
    described
}
