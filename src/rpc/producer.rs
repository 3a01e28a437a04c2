//! `Producer`: batches on their way to the leader.

use std::time::{Duration, Instant};

use quorate_broker::{PendingProduce, ProduceCall, Waiter};
use quorate_metadata::{Command, Outcome};
use quorate_proto::v1;
use quorate_proto::v1::producer_client::ProducerClient;
use quorate_proto::v1::producer_server::Producer;
use quorate_record::{Batch, BatchError, ProducerTag, partition_for_key};
use quorate_replication::{ProduceError, Produced};
use quorate_types::{
    ErrorCode, LeaderEpoch, NodeId, PartitionId, ProducerEpoch, ProducerId, Timestamp,
};
use quorate_wire::{ErrorInfo, WireError};
use tokio::sync::OwnedSemaphorePermit;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use crate::channels::MESSAGE_BYTES;
use crate::edge::{Edge, Located, Route, forward, forward_failed, is_forwarded};
use crate::produce_stream::{Answers, answers};
use crate::records::records_to_batch;
use crate::status::{from_status, invalid, produce_error, to_status};

/// A forwarded request has a little longer than its own time-out, so that the leader's answer wins.
const FORWARD_GRACE: Duration = Duration::from_millis(500);

/// A request, ready for the leader.
struct Prepared {
    located: Located,
    call: ProduceCall,
    request: v1::ProduceRequest,
}

/// A request for the leader at the other end, with the partition chosen.
pub(crate) struct Onward {
    pub(crate) request: v1::ProduceRequest,
    /// How long its answer may take.
    pub(crate) within: Duration,
    pub(crate) leader: NodeId,
    pub(crate) channel: Channel,
    pub(crate) room: OwnedSemaphorePermit,
}

/// What a request has become.
pub(crate) enum Started {
    Pending(Located, PendingProduce),
    Forward(Box<Onward>),
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

/// From whom a producer takes over, if from anybody.
fn former_self(
    request: &v1::InitProducerRequest,
) -> Result<Option<(ProducerId, ProducerEpoch)>, ErrorInfo> {
    let (id, epoch) = match (request.producer_id, request.producer_epoch) {
        (None, None) => return Ok(None),
        (Some(id), Some(epoch)) => (id, epoch),
        _ => {
            let message = "producer_id and producer_epoch go together: give both, or none of them";
            return Err(ErrorInfo::new(ErrorCode::InvalidRequest, message));
        }
    };
    let id = ProducerId::from_signed(id).map_err(|_| WireError::Range("producer_id"));
    let epoch = quorate_wire::producer_epoch(epoch);
    let both = id.and_then(|id| Ok((id, epoch?)));
    both.map(Some).map_err(|error| invalid(&error))
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
        if let Some(tag) = &batch.header().producer {
            self.check_producer(tag)?;
        }
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

    /// Refuses what was written before the quorum gave the producer's next epoch to another (R11), also
    /// in partitions to which that one has written nothing yet.
    fn check_producer(&self, tag: &ProducerTag) -> Result<(), ErrorInfo> {
        let current = self.image().producer_epoch(tag.id);
        if tag.epoch < current {
            return Err(produce_error(&ProduceError::StaleProducerEpoch { current }));
        }
        Ok(())
    }

    /// The next epoch of an id, which nobody else gets; or a new id in its place.
    async fn next_epoch(
        &self,
        id: ProducerId,
        epoch: ProducerEpoch,
    ) -> Result<(ProducerId, ProducerEpoch), ErrorInfo> {
        let command = Command::BumpProducerEpoch { id, epoch };
        match self.propose(command, self.timeout(0)).await? {
            Outcome::ProducerEpoch { id, epoch } => Ok((id, epoch)),
            other => {
                let message = format!("unexpected outcome {other:?}");
                Err(ErrorInfo::new(ErrorCode::UnknownServerError, message))
            }
        }
    }

    async fn init(
        &self,
        request: &v1::InitProducerRequest,
    ) -> Result<(ProducerId, ProducerEpoch), ErrorInfo> {
        match former_self(request)? {
            Some((id, epoch)) => self.next_epoch(id, epoch).await,
            None => Ok((self.producer_id().await?, ProducerEpoch::ZERO)),
        }
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

    /// Hands a request to the leader, in order; what this node leads is answered later. Waits for
    /// room at most; [`Waiter`] says what counts the request meanwhile.
    pub(crate) async fn start(
        &self,
        request: v1::ProduceRequest,
        forwarded: bool,
        waiter: Waiter,
    ) -> Started {
        let begun = Instant::now();
        let prepared = match self.prepare(request) {
            Ok(prepared) => prepared,
            Err(error) => return Started::Answered(Err(error)),
        };
        let route = match self.route(&prepared.located, forwarded) {
            Ok(route) => route,
            Err(error) => return Started::Answered(Err(error)),
        };
        // Of the request and the batch that was made of it only one is kept while it waits.
        let Prepared {
            located,
            mut call,
            mut request,
        } = prepared;
        let (size, patience) = (call.batch.size(), call.timeout);
        match route {
            Route::Here => {
                drop(request);
                match self.broker().produce_room(size, patience, waiter).await {
                    Ok(room) => {
                        call.timeout = patience.saturating_sub(begun.elapsed());
                        Started::Pending(located, self.broker().submit(call, room).await)
                    }
                    Err(error) => Started::Answered(Err(produce_error(&error))),
                }
            }
            Route::There(leader, channel) => {
                drop(call);
                // The partition was chosen here: the leader must not choose another.
                request.partition = Some(located.id.partition.to_signed());
                // What waits for another node takes memory here too.
                match self.broker().produce_room(size, patience, waiter).await {
                    Ok(room) => Started::Forward(Box::new(Onward {
                        request,
                        within: patience + FORWARD_GRACE,
                        leader,
                        channel,
                        room,
                    })),
                    Err(error) => Started::Answered(Err(produce_error(&error))),
                }
            }
        }
    }

    /// Sends a request on to its leader. Never a second try: it may have arrived (R11).
    async fn forward_produce(&self, onward: Onward) -> Result<v1::ProduceResponse, ErrorInfo> {
        let Onward {
            request,
            within,
            channel,
            room: _room,
            ..
        } = onward;
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

    pub(crate) fn finish(
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
        match self.start(request, forwarded, Waiter::Counted).await {
            Started::Answered(answer) => answer,
            Started::Pending(located, pending) => self.finish(&located, pending.wait().await),
            Started::Forward(onward) => self.forward_produce(*onward).await,
        }
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

    type ProduceStreamStream = Answers;

    async fn produce_stream(
        &self,
        request: Request<Streaming<v1::ProduceStreamRequest>>,
    ) -> Result<Response<Self::ProduceStreamStream>, Status> {
        let forwarded = is_forwarded(&request);
        let answers = answers(self.clone(), request.into_inner(), forwarded);
        Ok(Response::new(answers))
    }

    async fn init_producer(
        &self,
        request: Request<v1::InitProducerRequest>,
    ) -> Result<Response<v1::InitProducerResponse>, Status> {
        let given = self.init(request.get_ref()).await;
        let (id, epoch) = given.map_err(|error| to_status(&error))?;
        Ok(Response::new(v1::InitProducerResponse {
            producer_id: id.to_signed(),
            producer_epoch: epoch.to_signed().into(),
        }))
    }
}
