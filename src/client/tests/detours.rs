//! A leader whose advertised address cannot be reached from here is reached through a bootstrap
//! address, and asked so that the node there may forward.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

mod fake;

use fake::{Answers, DEADLINE, Known, LEADER, client_of, not_here};
use quorate_client::{Assignment, Client, ConsumerOptions, ProducerOptions, ToSend};
use quorate_proto::v1;
use quorate_proto::v1::consumer_server::{Consumer, ConsumerServer};
use quorate_proto::v1::producer_server::{Producer, ProducerServer};
use quorate_types::{Offset, PartitionId};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// A node that may forward.
struct Fake;

fn may_be_forwarded<T>(request: &Request<T>) -> Result<(), Status> {
    match request.metadata().contains_key("quorate-forwarded") {
        true => Err(Status::internal("marked: this node may not forward it")),
        false => Ok(()),
    }
}

#[tonic::async_trait]
impl Producer for Fake {
    async fn produce(
        &self,
        _: Request<v1::ProduceRequest>,
    ) -> Result<Response<v1::ProduceResponse>, Status> {
        not_here()
    }

    type ProduceStreamStream = Answers<v1::ProduceStreamResponse>;

    async fn produce_stream(
        &self,
        request: Request<Streaming<v1::ProduceStreamRequest>>,
    ) -> Result<Response<Self::ProduceStreamStream>, Status> {
        may_be_forwarded(&request)?;
        let mut requests = request.into_inner();
        let (answers, outgoing) = mpsc::channel(16);
        tokio::spawn(async move {
            while let Ok(Some(message)) = requests.message().await {
                use v1::produce_stream_response::Result as Answer;
                let answer = v1::ProduceStreamResponse {
                    request_id: message.request_id,
                    result: Some(Answer::Response(v1::ProduceResponse {
                        base_offset: Some(5),
                        ..v1::ProduceResponse::default()
                    })),
                };
                if answers.send(Ok(answer)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }

    async fn init_producer(
        &self,
        _: Request<v1::InitProducerRequest>,
    ) -> Result<Response<v1::InitProducerResponse>, Status> {
        Ok(Response::new(v1::InitProducerResponse::default()))
    }
}

#[tonic::async_trait]
impl Consumer for Fake {
    async fn fetch(
        &self,
        request: Request<v1::FetchRequest>,
    ) -> Result<Response<v1::FetchResponse>, Status> {
        may_be_forwarded(&request)?;
        Ok(Response::new(v1::FetchResponse {
            high_watermark: 6,
            ..v1::FetchResponse::default()
        }))
    }

    type ConsumeStream = Answers<v1::ConsumeResponse>;

    async fn consume(
        &self,
        _: Request<v1::ConsumeRequest>,
    ) -> Result<Response<Self::ConsumeStream>, Status> {
        not_here()
    }

    async fn list_offsets(
        &self,
        _: Request<v1::ListOffsetsRequest>,
    ) -> Result<Response<v1::ListOffsetsResponse>, Status> {
        not_here()
    }
}

/// A client whose only bootstrap address is that of `node`, which knows the leader at an address
/// where nobody listens.
async fn client_at(node: u32) -> Client {
    // A port that the kernel gave and nobody listens on any more.
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let known = Known {
        node,
        leader_port: closed.local_addr().unwrap().port(),
        partitions: 1,
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    drop(closed);
    let port = listener.local_addr().unwrap().port();
    let server = tonic::transport::Server::builder()
        .add_service(known.service())
        .add_service(ProducerServer::new(Fake))
        .add_service(ConsumerServer::new(Fake))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(server);
    client_of(port)
}

#[tokio::test]
async fn records_reach_a_leader_whose_address_means_nothing_here() {
    // The bootstrap address is the leader's other one, or that of a node that forwards.
    for node in [LEADER, LEADER + 1] {
        let client = client_at(node).await;
        let producer = client.producer(ProducerOptions::default());
        let record = ToSend {
            value: Some(b"value"),
            ..ToSend::default()
        };
        let delivery = producer.send("t", record).await.unwrap();
        let acked = timeout(DEADLINE, delivery.wait()).await;
        let acked = acked.expect("a produce by a detour is answered");
        assert_eq!(acked.unwrap().offset, Some(5));
    }
}

#[tokio::test]
async fn a_consumer_reads_from_a_leader_whose_address_means_nothing_here() {
    for node in [LEADER, LEADER + 1] {
        let client = client_at(node).await;
        let assigned = Assignment {
            topic: "t".into(),
            partition: PartitionId::new(0),
            offset: Offset::ZERO,
        };
        let mut consumer = client.consumer(vec![assigned], ConsumerOptions::default());
        let consumed = timeout(DEADLINE, consumer.poll()).await;
        let consumed = consumed.expect("a fetch by a detour is answered");
        assert_eq!(consumed.unwrap().unwrap().high_watermark.to_signed(), 6);
    }
}
