//! Idempotent producers at real nodes: who takes over fences its former self, and who is silent for
//! long is forgotten (R11).

use std::time::Duration;

use quorate_proto::v1;
use quorate_proto::v1::producer_client::ProducerClient;
use quorate_types::Endpoint;
use tonic::Code;

use crate::tests::{create, create_of, eventually, plan, start_with, stop, url};

/// A producer by its id and epoch.
type Who = (i64, i32);

/// The code by Kafka's name.
fn reason(status: &tonic::Status) -> String {
    let info = quorate_rpc::from_status(status);
    info.map_or_else(|| status.to_string(), |info| info.code.to_string())
}

async fn init(at: &Endpoint, former: Option<Who>) -> Result<Who, String> {
    let mut client = ProducerClient::connect(url(at))
        .await
        .map_err(|error| error.to_string())?;
    let request = v1::InitProducerRequest {
        producer_id: former.map(|(id, _)| id),
        producer_epoch: former.map(|(_, epoch)| epoch),
    };
    let answer = client.init_producer(request).await;
    let answer = answer.map_err(|status| reason(&status))?.into_inner();
    Ok((answer.producer_id, answer.producer_epoch))
}

/// One record; gives its offset.
async fn write(at: &Endpoint, partition: i32, who: Who, sequence: i32) -> Result<i64, String> {
    let mut client = ProducerClient::connect(url(at))
        .await
        .map_err(|error| error.to_string())?;
    let list = v1::RecordList {
        records: vec![v1::Record::default()],
    };
    let request = v1::ProduceRequest {
        topic: "t".into(),
        partition: Some(partition),
        payload: Some(v1::produce_request::Payload::Records(list)),
        timeout_ms: 5_000,
        producer_id: Some(who.0),
        producer_epoch: Some(who.1),
        base_sequence: Some(sequence),
        ..Default::default()
    };
    let answer = client.produce(request).await;
    let answer = answer.map_err(|status| reason(&status))?.into_inner();
    answer.base_offset.ok_or_else(|| "no offset".to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_takes_over_fences_its_former_self_in_every_partition() {
    let root = tempfile::tempdir().unwrap();
    let plan = plan(3);
    let running = start_with(&plan, root.path(), |_| {}).await;
    let clients: Vec<&Endpoint> = plan.iter().map(|(_, client, _)| client).collect();
    eventually("a topic is created", || create(clients[0])).await;
    let former = eventually("an id is given", || init(clients[0], None)).await;
    assert_eq!(former.1, 0);
    for partition in 0..6 {
        let taken = || write(clients[0], partition, former, 0);
        assert_eq!(eventually("a record is taken", taken).await, 0);
    }
    let now = init(clients[1], Some(former)).await.unwrap();
    assert_eq!(now, (former.0, 1));
    // Not one of its batches has been written: the quorum has told every leader.
    for partition in 0..6 {
        eventually("the former self is refused", async || {
            match write(clients[2], partition, former, 1).await {
                Err(code) if code == "INVALID_PRODUCER_EPOCH" => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }
    // It cannot get the epoch of the one that took over, nor its next one.
    for asked in [former, (former.0, 7)] {
        let refused = init(clients[2], Some(asked)).await;
        assert_eq!(refused, Err("INVALID_PRODUCER_EPOCH".to_owned()));
    }
    let unknown = init(clients[2], Some((1 << 40, 0))).await;
    assert_eq!(unknown, Err("UNKNOWN_PRODUCER_ID".to_owned()));
    let taken = || write(clients[0], 0, now, 0);
    let offset = eventually("the new self writes", taken).await;
    assert_eq!(write(clients[2], 0, now, 0).await, Ok(offset), "a repeat");
    stop(running).await;
    // And so it stays.
    let running = start_with(&plan, root.path(), |_| {}).await;
    let taken = || write(clients[0], 1, now, 0);
    eventually("the new self writes after a restart of all", taken).await;
    let refused = write(clients[0], 1, former, 1).await;
    assert_eq!(refused, Err("INVALID_PRODUCER_EPOCH".to_owned()));
    assert_eq!(init(clients[0], Some(now)).await, Ok((former.0, 2)));
    stop(running).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_producer_and_one_that_no_batch_can_name_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let plan = plan(1);
    let running = start_with(&plan, root.path(), |_| {}).await;
    let at = &plan[0].1;
    eventually("an id is given", || init(at, None)).await;
    let mut client = ProducerClient::connect(url(at)).await.unwrap();
    let wrong = [
        (Some(0), None),
        (None, Some(0)),
        (Some(-1), Some(0)),
        (Some(0), Some(-1)),
        (Some(0), Some(32_768)),
    ];
    for (producer_id, producer_epoch) in wrong {
        let request = v1::InitProducerRequest {
            producer_id,
            producer_epoch,
        };
        let status = client.init_producer(request).await.unwrap_err();
        assert_eq!(
            status.code(),
            Code::InvalidArgument,
            "{request:?}: {status}"
        );
        assert_eq!(reason(&status), "INVALID_REQUEST");
    }
    stop(running).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_producer_that_is_silent_for_too_long_is_forgotten_also_over_a_restart() {
    let root = tempfile::tempdir().unwrap();
    let plan = plan(1);
    let soon = |settings: &mut quorate_config::NodeSettings| {
        settings.producer_id_expiration = Duration::from_millis(2_400);
    };
    let running = start_with(&plan, root.path(), soon).await;
    let at = &plan[0].1;
    eventually("a topic is created", || create_of(at, 1, 1)).await;
    let who = eventually("an id is given", || init(at, None)).await;
    let taken = || write(at, 0, who, 0);
    assert_eq!(eventually("a record is taken", taken).await, 0);
    assert_eq!(write(at, 0, who, 1).await, Ok(1));
    let forgotten = Err("UNKNOWN_PRODUCER_ID".to_owned());
    eventually("the producer is forgotten", async || {
        // Repeats are no sign of life: nothing of them is in the log.
        let repeat = write(at, 0, who, 1).await;
        if repeat == forgotten {
            Ok(())
        } else {
            Err(format!("{repeat:?}"))
        }
    })
    .await;
    stop(running).await;
    let running = start_with(&plan, root.path(), soon).await;
    eventually("the node leads again", async || {
        match write(at, 0, who, 2).await {
            refused if refused == forgotten => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    // As a client of ours does.
    assert_eq!(write(at, 0, (who.0, who.1 + 1), 0).await, Ok(2));
    stop(running).await;
}
