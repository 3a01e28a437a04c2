//! What is asked about and of topics, wrongly.

use quorate_proto::v1;
use quorate_proto::v1::admin_client::AdminClient;
use quorate_proto::v1::cluster_client::ClusterClient;
use quorate_types::Endpoint;
use tonic::Code::{AlreadyExists, InvalidArgument};

use crate::{TOPIC, bad_names, expected, invalid, unknown};

pub(crate) async fn admin(node: &Endpoint) {
    let mut client = AdminClient::connect(format!("http://{node}"))
        .await
        .unwrap();
    let config = |pairs: &[(&str, &str)]| {
        let owned = pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        owned.collect::<std::collections::HashMap<_, _>>()
    };
    let create = |name: &str, partitions, replication_factor, pairs: &[(&str, &str)]| {
        v1::CreateTopicRequest {
            name: name.to_owned(),
            partitions,
            replication_factor,
            config: config(pairs),
        }
    };
    for (name, says) in bad_names() {
        let bad = expected(InvalidArgument, "INVALID_TOPIC_EXCEPTION", says);
        let answer = client.create_topic(create(&name, 1, 3, &[])).await;
        bad.check(&format!("create {name:?}"), answer);
    }
    let factor = expected(
        InvalidArgument,
        "INVALID_REPLICATION_FACTOR",
        "choose 1 to 3",
    );
    let partitions = expected(
        InvalidArgument,
        "INVALID_PARTITIONS",
        "1 to 10000 are possible",
    );
    let config_of = |says| expected(InvalidArgument, "INVALID_CONFIG", says);
    let good = ("segment.bytes", "4096");
    for (what, request, expected) in [
        (
            "exists",
            create(TOPIC, 1, 3, &[]),
            expected(AlreadyExists, "TOPIC_ALREADY_EXISTS", TOPIC),
        ),
        ("factor 4", create("never", 1, 4, &[]), factor),
        (
            "10,001 partitions",
            create("never", 10_001, 3, &[]),
            partitions,
        ),
        (
            "2^32 - 1 partitions",
            create("never", u32::MAX, 3, &[]),
            partitions,
        ),
        (
            "unknown",
            create("never", 1, 3, &[good, ("retention", "1")]),
            config_of("known are"),
        ),
        (
            "out of range",
            create("never", 1, 3, &[good, ("min.insync.replicas", "0")]),
            config_of("from 1 to 32"),
        ),
    ] {
        expected.check(
            &format!("create: {what}"),
            client.create_topic(request).await,
        );
    }
    let alter = |name: &str, pairs: &[(&str, &str)], unset: &[&str]| v1::AlterTopicRequest {
        name: name.to_owned(),
        set: config(pairs),
        unset: unset.iter().map(|key| (*key).to_owned()).collect(),
    };
    for (what, request, expected) in [
        (
            "no topic",
            alter("no-such", &[good], &[]),
            unknown("no topic"),
        ),
        (
            "nothing",
            alter(TOPIC, &[], &[]),
            invalid("name settings to set or to unset"),
        ),
        (
            "unknown",
            alter(TOPIC, &[good, ("segment.byte", "9")], &[]),
            config_of("known are"),
        ),
        (
            "range",
            alter(TOPIC, &[good, ("segment.ms", "-1")], &[]),
            config_of("of milliseconds"),
        ),
        (
            "unset unknown",
            alter(TOPIC, &[good], &["retention"]),
            config_of("unknown setting"),
        ),
    ] {
        expected.check(&format!("alter: {what}"), client.alter_topic(request).await);
    }
    let name = "no-such".to_owned();
    let deleted = client
        .delete_topic(v1::DeleteTopicRequest { name: name.clone() })
        .await;
    unknown("no topic").check("delete", deleted);
    let described = client
        .describe_topic(v1::DescribeTopicRequest { name })
        .await;
    unknown("no topic").check("describe", described);
    partitions_of(node).await;
}

async fn partitions_of(node: &Endpoint) {
    let mut client = ClusterClient::connect(format!("http://{node}"))
        .await
        .unwrap();
    let of = |topic: &str, partition, first_partition| v1::DescribePartitionsRequest {
        topic: topic.to_owned(),
        partition,
        first_partition,
        history: true,
    };
    for (what, request, expected) in [
        ("topic", of("no-such", None, 0), unknown("no topic")),
        ("partition", of(TOPIC, Some(99), 0), unknown("no 99")),
        ("first", of(TOPIC, None, 99), unknown("no 99")),
        ("negative", of(TOPIC, Some(-1), 0), invalid("-1")),
        ("negative first", of(TOPIC, None, -1), invalid("-1")),
    ] {
        let described = client.describe_partitions(request).await;
        expected.check(&format!("describe partitions: {what}"), described);
    }
}
