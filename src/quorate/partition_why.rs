//! Why a partition is as it is, in words: its present state in one sentence, what would change it,
//! and the events that led there.

use quorate_proto::v1;
use quorate_types::Timestamp;

use crate::output::{self, Column};
use crate::parse::rfc3339;
use crate::partition::common;

/// `broker 1`, `brokers 1 and 2`, `brokers 1, 2 and 3`.
fn brokers(nodes: &[u32], and: &str) -> String {
    let names: Vec<String> = nodes.iter().map(u32::to_string).collect();
    match names.split_last() {
        Some((last, rest)) if !rest.is_empty() => {
            format!("brokers {} {and} {last}", rest.join(", "))
        }
        _ => format!("broker {}", names.concat()),
    }
}

fn outside(state: &v1::PartitionState) -> Vec<&v1::ReplicaState> {
    let replicas = state.replicas.iter();
    replicas.filter(|replica| !replica.in_sync).collect()
}

fn ids(replicas: &[&v1::ReplicaState]) -> Vec<u32> {
    replicas.iter().map(|replica| replica.node_id).collect()
}

/// The present state in one sentence.
fn state_of(topic: &str, state: &v1::PartitionState) -> String {
    let of = common(state);
    let (number, epoch) = (of.partition, of.leader_epoch);
    let behind = ids(&outside(state));
    let verb = if behind.len() == 1 { "is" } else { "are" };
    match of.leader {
        Some(leader) => {
            let rest = match (&behind[..], state.replicas.len()) {
                ([], 1) => "it has the only replica".to_owned(),
                ([], count) => format!("all {count} replicas are in sync"),
                (behind, _) => format!("{} {verb} not in sync", brokers(behind, "and")),
            };
            format!("{topic}-{number} is led by broker {leader} at epoch {epoch}; {rest}")
        }
        None => {
            let members = match &of.isr[..] {
                [] => "no replica is in sync".to_owned(),
                [only] => format!("only broker {only} is in sync"),
                more => format!("{} are in sync", brokers(more, "and")),
            };
            format!("{topic}-{number} is offline since epoch {epoch}; {members}")
        }
    }
}

/// Registered and not active yet: nobody has to do anything.
fn starts(replica: &v1::ReplicaState) -> bool {
    let since = replica.since.as_ref();
    replica.state() == v1::BrokerState::Fenced
        && since.is_some_and(|event| event.kind == "broker-registered")
}

/// What keeps a replica from its part.
fn obstacle(replica: &v1::ReplicaState) -> String {
    let node = replica.node_id;
    let since = replica.since.as_ref();
    let (time, cause) = since.map_or_else(
        || (String::new(), String::new()),
        |event| {
            let time = rfc3339(Timestamp::from_millis(event.time_ms));
            (format!(" since {time}"), format!(": {}", event.cause))
        },
    );
    match replica.state() {
        v1::BrokerState::Fenced if starts(replica) => {
            format!("broker {node} is registered{time} and not ready yet{cause}")
        }
        v1::BrokerState::Fenced => format!("broker {node} is fenced{time}{cause}"),
        v1::BrokerState::ShuttingDown => format!("broker {node} is shutting down{time}{cause}"),
        v1::BrokerState::Active if replica.in_sync => {
            format!("broker {node} is active{time}, but its replica failed")
        }
        v1::BrokerState::Active => {
            format!("broker {node} is active{time}, and its replica has to catch up")
        }
    }
}

/// What would change the present state; empty where it is as it should be.
fn hints(state: &v1::PartitionState) -> Vec<String> {
    let of = common(state);
    if of.leader.is_none() {
        return vec![leads_again(state, &of)];
    }
    let behind = outside(state);
    let mut hints = Vec::new();
    let minimum = state.effective_min_isr as usize;
    if of.isr.len() < minimum {
        let count = output::counted(minimum as u64, "replica is", "replicas are");
        hints.push(format!(
            "produces with acks=all are refused (NOT_ENOUGH_REPLICAS) until {count} in sync"
        ));
    }
    let (coming, gone): (Vec<_>, Vec<_>) = behind
        .iter()
        .copied()
        .partition(|replica| replica.state() == v1::BrokerState::Active || starts(replica));
    if !gone.is_empty() {
        let who = brokers(&ids(&gone), "and");
        hints.push(format!("start {who}: in sync again once caught up"));
    }
    if !coming.is_empty() {
        let who = brokers(&ids(&coming), "and");
        hints.push(format!(
            "{who}: in sync once caught up; where that does not come, the log there says why"
        ));
    }
    hints
}

fn leads_again(state: &v1::PartitionState, of: &v1::PartitionDescription) -> String {
    let candidates: Vec<&v1::ReplicaState> = state
        .replicas
        .iter()
        .filter(|replica| replica.in_sync || of.elr.contains(&replica.node_id))
        .collect();
    let (active, gone): (Vec<_>, Vec<_>) = candidates
        .iter()
        .copied()
        .partition(|replica| replica.state() == v1::BrokerState::Active);
    if let [_, ..] = &gone[..] {
        let who = brokers(&ids(&gone), "or");
        return format!("{who} must come back: what was acknowledged is there");
    }
    if let [_, ..] = &active[..] {
        let who = brokers(&ids(&active), "and");
        return format!("restart {who}: recovery tells what its replica still has");
    }
    let last = state.last_known_leader.map_or_else(String::new, |last| {
        format!("broker {last}, the last leader, must come back with its directory, or ")
    });
    format!(
        "no replica is known to have all that was acknowledged: {last}the topic must allow \
         unclean.leader.election.enable, which may lose records"
    )
}

/// What the unclean election at an epoch lost, as far as it was told.
fn lost(state: &v1::PartitionState, epoch: i32) -> String {
    let mut losses = state.losses.iter();
    let Some(loss) = losses.find(|loss| loss.leader_epoch == epoch) else {
        return "records may be lost, the leader has not told yet from which offset on".to_owned();
    };
    let from = loss.from;
    match loss.to {
        Some(to) => format!("records from offset {from} to {to} are lost, or some of them"),
        None => format!("records from offset {from} on may be lost"),
    }
}

/// The event without its place and its cause.
fn what(event: &v1::ClusterEvent) -> String {
    let text = &event.text;
    let cause = format!(" ({})", event.cause);
    let text = text.strip_suffix(&cause).unwrap_or(text);
    let place = match (&event.topic, event.partition) {
        (Some(topic), Some(partition)) => format!("{topic}-{partition}: "),
        _ => String::new(),
    };
    text.strip_prefix(&place).unwrap_or(text).to_owned()
}

/// All of it, over several lines.
pub(crate) fn told(topic: &str, state: &v1::PartitionState) -> String {
    let mut lines = vec![state_of(topic, state)];
    if let Some(epoch) = state.unclean_epoch {
        let lost = lost(state, epoch);
        lines.push(format!(
            "  the election at epoch {epoch} was unclean: {lost}"
        ));
    }
    let offline = common(state).leader.is_none();
    let concerned = state.replicas.iter().filter(|r| offline || !r.in_sync);
    lines.extend(concerned.map(|replica| format!("  {}", obstacle(replica))));
    lines.extend(hints(state).iter().map(|hint| format!("  {hint}")));
    let columns: [Column<v1::ClusterEvent>; 3] = [
        Column::words("TIME", |event| {
            rfc3339(Timestamp::from_millis(event.time_ms))
        }),
        Column::words("WHAT", what),
        Column::words("BECAUSE", |event| event.cause.clone()),
    ];
    if state.history.is_empty() {
        lines.push("  nothing is remembered of how it came to this".to_owned());
    } else {
        let events = output::table(&columns, &state.history);
        lines.extend(events.lines().map(|line| format!("  {line}")));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: &str, what: &str, cause: &str) -> v1::ClusterEvent {
        v1::ClusterEvent {
            time_ms: 1_000,
            kind: kind.to_owned(),
            topic: Some("orders".to_owned()),
            partition: Some(3),
            cause: cause.to_owned(),
            text: format!("{what} ({cause})"),
            ..v1::ClusterEvent::default()
        }
    }

    fn replica(node: u32, state: v1::BrokerState, in_sync: bool) -> v1::ReplicaState {
        let since = match state {
            v1::BrokerState::Fenced => event("broker-fenced", "", "no heartbeat for 3012 ms"),
            _ => event("broker-unfenced", "", "ready and reachable"),
        };
        v1::ReplicaState {
            node_id: node,
            state: state.into(),
            in_sync,
            since: Some(since),
            ..v1::ReplicaState::default()
        }
    }

    /// Three replicas, minimum 2; those of `gone` are fenced, those of `isr` in sync.
    fn partition(leader: Option<u32>, isr: &[u32], gone: &[u32]) -> v1::PartitionState {
        let of = |node| {
            let state = if gone.contains(&node) {
                v1::BrokerState::Fenced
            } else {
                v1::BrokerState::Active
            };
            replica(node, state, isr.contains(&node))
        };
        v1::PartitionState {
            partition: Some(v1::PartitionDescription {
                partition: 3,
                leader,
                leader_epoch: 7,
                isr: isr.to_vec(),
                ..v1::PartitionDescription::default()
            }),
            effective_min_isr: 2,
            last_known_leader: Some(1),
            replicas: (1..=3).map(of).collect(),
            ..v1::PartitionState::default()
        }
    }

    #[test]
    fn a_partition_as_it_should_be_needs_one_sentence() {
        let state = partition(Some(2), &[1, 2, 3], &[]);
        let first = state_of("orders", &state);
        assert_eq!(
            first,
            "orders-3 is led by broker 2 at epoch 7; all 3 replicas are in sync"
        );
        let nothing = "nothing is remembered of how it came to this";
        assert_eq!(told("orders", &state), format!("{first}\n  {nothing}"));
    }

    #[test]
    fn whoever_is_missing_is_named_with_the_reason_and_what_it_stops() {
        let mut state = partition(Some(2), &[2], &[1]);
        let leads = "orders-3: broker 2 leads at epoch 7, isr 2,3";
        let cause = "broker 1 was fenced: no heartbeat for 3012 ms";
        state.history = vec![event("leader-elected", leads, cause)];
        assert_eq!(
            told("orders", &state),
            "orders-3 is led by broker 2 at epoch 7; brokers 1 and 3 are not in sync\n  \
             broker 1 is fenced since 1970-01-01T00:00:01.000Z: no heartbeat for 3012 ms\n  \
             broker 3 is active since 1970-01-01T00:00:01.000Z, and its replica has to catch up\n  \
             produces with acks=all are refused (NOT_ENOUGH_REPLICAS) until 2 replicas are in sync\n  \
             start broker 1: in sync again once caught up\n  \
             broker 3: in sync once caught up; where that does not come, the log there says why\n  \
             TIME                      WHAT                                BECAUSE\n  \
             1970-01-01T00:00:01.000Z  broker 2 leads at epoch 7, isr 2,3  broker 1 was fenced: no \
             heartbeat for 3012 ms"
        );
    }

    #[test]
    fn an_offline_partition_tells_who_must_come_back() {
        let hint = |state: &v1::PartitionState| hints(state).concat();
        let last = partition(None, &[3], &[1, 2, 3]);
        assert_eq!(
            state_of("orders", &last),
            "orders-3 is offline since epoch 7; only broker 3 is in sync"
        );
        assert!(hint(&last).starts_with("broker 3 must come back"));
        let mut eligible = last.clone();
        eligible.partition.as_mut().unwrap().elr = vec![2];
        assert!(hint(&eligible).starts_with("brokers 2 or 3 must come back"));
        let damaged = partition(None, &[3], &[1, 2]);
        assert!(hint(&damaged).starts_with("restart broker 3"));
        assert!(told("orders", &damaged).contains("broker 3 is active since"));
        let nobody = partition(None, &[], &[1, 2, 3]);
        assert!(hint(&nobody).contains("broker 1, the last leader, must come back"));
    }
}
