//! `Producer`: batches on their way to the leader.

use std::pin::Pin;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{Stream, StreamExt};
use quorate_broker::{PendingProduce, ProduceCall};
use quorate_proto::v1;
use quorate_proto::v1::producer_client::ProducerClient;
use quorate_proto::v1::producer_server::Producer;
use quorate_record::{Batch, BatchError, partition_for_key};
use quorate_replication::{ProduceError, Produced};
use quorate_types::{ErrorCode, LeaderEpoch, NodeId, PartitionId, Timestamp};
use quorate_wire::ErrorInfo;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use crate::channels::MESSAGE_BYTES;
use crate::edge::{Edge, Located, Route, forward, forward_failed, is_forwarded};
use crate::forwarding::Forwarding;
use crate::records::records_to_batch;
use crate::status::{from_status, invalid, produce_error, to_status};

/// Requests of one stream that may wait for their answers.
const IN_FLIGHT: usize = 1_024;

/// A forwarded request has a little longer than its own time-out, so that the leader's answer wins.
const FORWARD_GRACE: Duration = Duration::from_millis(500);

/// A request, ready for the leader.
struct Prepared {
    located: Located,
    call: ProduceCall,
    request: v1::ProduceRequest,
}

impl Prepared {
    /// The request as it goes on to the leader, and how long its answer may take.
    fn onward(self) -> (v1::ProduceRequest, Duration) {
        let mut request = self.request;
        // The partition was chosen here: the leader must not choose another.
        request.partition = Some(self.located.id.partition.to_signed());
        (request, self.call.timeout + FORWARD_GRACE)
    }
}

/// What a request has become.
enum Started {
    Pending(Located, PendingProduce),
    /// For the leader at the other end.
    Forward(Box<Prepared>, NodeId, Channel, OwnedSemaphorePermit),
    Answered(Result<v1::ProduceResponse, ErrorInfo>),
}

fn wall_clock() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let millis = since.unwrap_or_default().as_millis();
    Timestamp::from_millis(i64::try_from(millis).unwrap_or(i64::MAX))
}

fn batch_error(error: &BatchError) -> ErrorInfo {
    let code = match error {
        BatchError::Compression(_) => ErrorCode::UnsupportedCompressionType,
        BatchError::RecordCount { .. } | BatchError::Negative(_) => ErrorCode::InvalidRecord,
        _ => ErrorCode::CorruptMessage,
    };
    ErrorInfo::new(code, error.to_string())
}

fn response(id: PartitionId, produced: &Produced) -> v1::ProduceResponse {
    v1::ProduceResponse {
        partition: id.to_signed(),
        base_offset: produced.base_offset.map(|offset| offset.to_signed()),
        log_append_time_ms: produced.append_time.unwrap_or_default().millis(),
        leader_epoch: produced.leader_epoch.to_signed(),
        replicas: produced.replicas,
        fsynced: produced.fsynced,
    }
}

impl Edge {
    fn prepare(&self, request: v1::ProduceRequest) -> Result<Prepared, ErrorInfo> {
        let topic_id = request
            .topic_id
            .as_deref()
            .map(quorate_wire::topic_id)
            .transpose();
        let topic = self.topic(&request.topic, topic_id.map_err(|error| invalid(&error))?)?;
        let acks = quorate_wire::acks(request.acks).map_err(|error| invalid(&error))?;
        let current_epoch = request
            .current_leader_epoch
            .map(LeaderEpoch::from_signed)
            .transpose();
        let current_epoch = current_epoch
            .map_err(|error| ErrorInfo::new(ErrorCode::InvalidRequest, error.to_string()))?;
        let batch = match &request.payload {
            Some(v1::produce_request::Payload::Batch(bytes)) => {
                Batch::parse(bytes.clone()).map_err(|error| batch_error(&error))?
            }
            Some(v1::produce_request::Payload::Records(list)) => {
                records_to_batch(&request, &list.records, wall_clock())
                    .map_err(|error| invalid(&error))?
            }
            None => {
                let message = "a produce needs records or a batch";
                return Err(ErrorInfo::new(ErrorCode::InvalidRequest, message));
            }
        };
        let partition = match request.partition {
            Some(number) => Self::partition(number)?,
            None if batch.header().producer.is_some() => {
                // Its sequence counts in one partition: a retry must not land in another.
                let message = "a produce of an idempotent producer needs a partition";
                return Err(ErrorInfo::new(ErrorCode::InvalidRequest, message));
            }
            None => self.choose_partition(&request, topic.partitions)?,
        };
        let located = self.locate(topic, partition)?;
        let timeout = self.timeout(request.timeout_ms);
        let partition = located.id;
        let call = ProduceCall {
            partition,
            batch,
            acks,
            timeout,
            current_epoch,
        };
        Ok(Prepared {
            located,
            call,
            request,
        })
    }

    /// The partition of a request that names none: by its key, else in turn. All records of one
    /// request go to one partition.
    fn choose_partition(
        &self,
        request: &v1::ProduceRequest,
        partitions: u32,
    ) -> Result<PartitionId, ErrorInfo> {
        let Some(v1::produce_request::Payload::Records(list)) = &request.payload else {
            return Ok(self.sticky_partition(partitions));
        };
        let mut chosen = None;
        for key in list
            .records
            .iter()
            .filter_map(|record| record.key.as_deref())
        {
            let partition = partition_for_key(key, partitions);
            if chosen.is_some_and(|other| other != partition) {
                let message = "the records' keys belong to different partitions: send a request \
                               for each, or name the partition";
                return Err(ErrorInfo::new(ErrorCode::InvalidRequest, message));
            }
            chosen = Some(partition);
        }
        Ok(chosen.unwrap_or_else(|| self.sticky_partition(partitions)))
    }

    /// Hands a request to the leader, in order; what this node leads is answered later.
    async fn start(&self, request: v1::ProduceRequest, forwarded: bool) -> Started {
        let prepared = match self.prepare(request) {
            Ok(prepared) => prepared,
            Err(error) => return Started::Answered(Err(error)),
        };
        match self.route(&prepared.located, forwarded) {
            Err(error) => Started::Answered(Err(error)),
            Ok(Route::Here) => {
                let pending = self.broker().submit(prepared.call).await;
                Started::Pending(prepared.located, pending)
            }
            Ok(Route::There(leader, channel)) => {
                // What waits for another node takes memory here too.
                let (size, patience) = (prepared.call.batch.size(), prepared.call.timeout);
                match self.broker().produce_room(size, patience).await {
                    Ok(room) => Started::Forward(Box::new(prepared), leader, channel, room),
                    Err(error) => Started::Answered(Err(produce_error(&error))),
                }
            }
        }
    }

    /// Sends a request on to its leader. Never a second try: it may have arrived (R11).
    async fn forward_produce(
        &self,
        prepared: Prepared,
        channel: Channel,
    ) -> Result<v1::ProduceResponse, ErrorInfo> {
        let (request, within) = prepared.onward();
        let mut client = ProducerClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES)
            .max_encoding_message_size(MESSAGE_BYTES);
        match client.produce(forward(request, within)).await {
            Ok(answer) => Ok(answer.into_inner()),
            Err(status) => {
                let status = forward_failed(status, true);
                Err(from_status(&status).unwrap_or_else(|| {
                    ErrorInfo::new(ErrorCode::RequestTimedOut, status.message())
                }))
            }
        }
    }

    fn finish(
        &self,
        located: &Located,
        result: Result<Produced, ProduceError>,
    ) -> Result<v1::ProduceResponse, ErrorInfo> {
        match result {
            Ok(produced) => Ok(response(located.id.partition, &produced)),
            Err(error) => Err(self.name_leader(produce_error(&error), &located.id)),
        }
    }

    async fn produce_one(
        &self,
        request: v1::ProduceRequest,
        forwarded: bool,
    ) -> Result<v1::ProduceResponse, ErrorInfo> {
        match self.start(request, forwarded).await {
            Started::Answered(answer) => answer,
            Started::Pending(located, pending) => self.finish(&located, pending.wait().await),
            Started::Forward(prepared, _, channel, _room) => {
                self.forward_produce(*prepared, channel).await
            }
        }
    }

    /// Answers one stream until it ends; requests are taken in order, answers come as decided.
    async fn answer_stream(
        self,
        mut requests: Streaming<v1::ProduceStreamRequest>,
        forwarded: bool,
        answers: mpsc::Sender<Result<v1::ProduceStreamResponse, Status>>,
    ) {
        let mut pending: FuturesUnordered<BoxFuture<'static, _>> = FuturesUnordered::new();
        let mut forwarding = Forwarding::default();
        let mut open = true;
        while open || !pending.is_empty() {
            let answer = tokio::select! {
                biased;
                Some(answer) = pending.next(), if !pending.is_empty() => answer,
                request = requests.message(), if open && pending.len() < IN_FLIGHT => {
                    let Ok(Some(v1::ProduceStreamRequest { request_id, request })) = request else {
                        open = false;
                        continue;
                    };
                    match self.start(request.unwrap_or_default(), forwarded).await {
                        Started::Answered(answer) => stream_response(request_id, answer),
                        Started::Pending(located, waiting) => {
                            let edge = self.clone();
                            pending.push(Box::pin(async move {
                                let answer = edge.finish(&located, waiting.wait().await);
                                stream_response(request_id, answer)
                            }));
                            continue;
                        }
                        Started::Forward(prepared, leader, channel, room) => {
                            let (request, within) = prepared.onward();
                            let answer = forwarding.send(leader, channel, request, within).await;
                            pending.push(Box::pin(async move {
                                let answer = answer.await.unwrap_or_else(|_ended| {
                                    let message = "the way to the leader ended";
                                    Err(ErrorInfo::new(ErrorCode::RequestTimedOut, message))
                                });
                                drop(room);
                                stream_response(request_id, answer)
                            }));
                            continue;
                        }
                    }
                }
            };
            if answers.send(Ok(answer)).await.is_err() {
                return;
            }
        }
    }
}

fn stream_response(
    request_id: u64,
    answer: Result<v1::ProduceResponse, ErrorInfo>,
) -> v1::ProduceStreamResponse {
    use v1::produce_stream_response::Result as Answer;
    let result = match answer {
        Ok(response) => Answer::Response(response),
        Err(error) => Answer::Error(v1::ProduceError {
            reason: error.code.name().to_owned(),
            retriable: error.code.is_retriable(),
            message: error.message,
            metadata: error.metadata.into_iter().collect(),
        }),
    };
    v1::ProduceStreamResponse {
        request_id,
        result: Some(result),
    }
}

#[tonic::async_trait]
impl Producer for Edge {
    async fn produce(
        &self,
        request: Request<v1::ProduceRequest>,
    ) -> Result<Response<v1::ProduceResponse>, Status> {
        let forwarded = is_forwarded(&request);
        let answer = self.produce_one(request.into_inner(), forwarded).await;
        answer.map(Response::new).map_err(|error| to_status(&error))
    }

    type ProduceStreamStream =
        Pin<Box<dyn Stream<Item = Result<v1::ProduceStreamResponse, Status>> + Send>>;

    async fn produce_stream(
        &self,
        request: Request<Streaming<v1::ProduceStreamRequest>>,
    ) -> Result<Response<Self::ProduceStreamStream>, Status> {
        let forwarded = is_forwarded(&request);
        let (answers, outgoing) = mpsc::channel(64);
        // Ends when the client ends its side, or stops reading.
        tokio::spawn(
            self.clone()
                .answer_stream(request.into_inner(), forwarded, answers),
        );
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }

    async fn init_producer(
        &self,
        _: Request<v1::InitProducerRequest>,
    ) -> Result<Response<v1::InitProducerResponse>, Status> {
        let id = self
            .producer_id()
            .await
            .map_err(|error| to_status(&error))?;
        let response = v1::InitProducerResponse {
            producer_id: id.to_signed(),
            producer_epoch: 0,
        };
        Ok(Response::new(response))
    }
}
