//! `Consumer`: reading from the leader.

use std::time::Duration;

use quorate_broker::{FetchCall, Holder, OffsetPosition};
use quorate_proto::v1;
use quorate_proto::v1::consumer_client::ConsumerClient;
use quorate_proto::v1::consumer_server::Consumer;
use quorate_types::{ErrorCode, LeaderEpoch, NegativeNumber, Offset, Timestamp};
use quorate_wire::ErrorInfo;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::sleep;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::admission::ResponseRoom;
use crate::channels::MESSAGE_BYTES;
use crate::consume::Consumed;
use crate::edge::{Edge, Located, Route, forward, forward_failed, is_forwarded};
use crate::status::{fetch_error, invalid, to_status};

/// Bytes of a fetch that asks for none in particular, and at most.
const FETCH_BYTES: (u32, u32) = (1 << 20, 64 << 20);

/// Bytes of an answer that comes through this node from another.
const FORWARDED_BYTES: u32 = 512 << 10;

/// The longest poll.
const WAIT_MAX: Duration = Duration::from_secs(60);

const FORWARD_GRACE: Duration = Duration::from_secs(5);

/// How long a stream waits before it asks another node again, where too many poll there.
const SHORT_POLL: Duration = Duration::from_millis(250);

fn negative(error: NegativeNumber) -> ErrorInfo {
    ErrorInfo::new(ErrorCode::InvalidRequest, error.to_string())
}

fn epoch(number: Option<i32>) -> Result<Option<LeaderEpoch>, ErrorInfo> {
    number
        .map(LeaderEpoch::from_signed)
        .transpose()
        .map_err(negative)
}

fn client(channel: Channel) -> ConsumerClient<Channel> {
    ConsumerClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES)
        .max_encoding_message_size(MESSAGE_BYTES)
}

impl Edge {
    fn find(
        &self,
        topic: &str,
        topic_id: Option<&[u8]>,
        partition: i32,
    ) -> Result<Located, ErrorInfo> {
        let id = topic_id.map(quorate_wire::topic_id).transpose();
        let topic = self.topic(topic, id.map_err(|error| invalid(&error))?)?;
        self.locate(topic, Self::partition(partition)?)
    }

    async fn fetch_here(
        &self,
        located: &Located,
        request: &v1::FetchRequest,
        max_wait: Duration,
        holder: Holder,
    ) -> Result<(v1::FetchResponse, Option<OwnedSemaphorePermit>), ErrorInfo> {
        let max_bytes = match request.max_bytes {
            0 => FETCH_BYTES.0,
            asked => asked.min(FETCH_BYTES.1),
        };
        let call = FetchCall {
            partition: located.id,
            offset: Offset::from_signed(request.offset).map_err(negative)?,
            max_bytes: max_bytes as usize,
            min_bytes: request.min_bytes as usize,
            max_wait,
            current_epoch: epoch(request.current_leader_epoch)?,
            last_fetched_epoch: epoch(request.last_fetched_epoch)?,
            seen_epoch: epoch(request.seen_leader_epoch)?,
            holder,
        };
        let fetched = self
            .broker()
            .fetch(call)
            .await
            .map_err(|error| self.name_leader(fetch_error(&error), &located.id))?;
        let response = v1::FetchResponse {
            batches: fetched.bytes,
            high_watermark: fetched.high_watermark.to_signed(),
            log_start_offset: fetched.log_start.to_signed(),
            leader_epoch: fetched.leader_epoch.to_signed(),
            diverging: fetched.diverging.map(|(epoch, end)| v1::Diverging {
                epoch: epoch.to_signed(),
                end_offset: end.to_signed(),
            }),
        };
        Ok((response, fetched.room))
    }

    async fn list_here(
        &self,
        located: &Located,
        request: &v1::ListOffsetsRequest,
    ) -> Result<v1::ListOffsetsResponse, ErrorInfo> {
        use v1::list_offsets_request::Position;
        let position = match &request.position {
            Some(Position::Earliest(_)) => OffsetPosition::Earliest,
            Some(Position::Latest(_)) => OffsetPosition::Latest,
            Some(Position::TimestampMs(at)) => {
                OffsetPosition::Timestamp(Timestamp::from_millis(*at))
            }
            None => {
                let message = "a position is needed: earliest, latest or timestamp_ms";
                return Err(ErrorInfo::new(ErrorCode::InvalidRequest, message));
            }
        };
        let current_epoch = epoch(request.current_leader_epoch)?;
        let listed = self
            .broker()
            .list_offset(located.id, position, current_epoch)
            .await
            .map_err(|error| self.name_leader(fetch_error(&error), &located.id))?;
        Ok(v1::ListOffsetsResponse {
            offset: listed.offset.map(|offset| offset.to_signed()),
            timestamp_ms: listed.timestamp.map(Timestamp::millis),
            leader_epoch: listed.leader_epoch.to_signed(),
        })
    }

    /// Looks an offset up where the partition is led.
    pub(crate) async fn list_offset(
        &self,
        request: v1::ListOffsetsRequest,
        forwarded: bool,
    ) -> Result<v1::ListOffsetsResponse, Status> {
        let topic_id = request.topic_id.as_deref();
        let routed = self
            .find(&request.topic, topic_id, request.partition)
            .and_then(|located| {
                let route = self.route(&located, forwarded)?;
                Ok((located, route))
            });
        match routed.map_err(|error| to_status(&error))? {
            (located, Route::Here) => self
                .list_here(&located, &request)
                .await
                .map_err(|error| to_status(&error)),
            (_, Route::There(_, channel)) => {
                let answer = client(channel)
                    .list_offsets(forward(request, FORWARD_GRACE))
                    .await;
                answer
                    .map(Response::into_inner)
                    .map_err(|status| forward_failed(status, false))
            }
        }
    }

    /// Fetches where the partition is led; gives the room too that the answer takes. A stream's
    /// long poll may come back early, with nothing, where many wait at other nodes already.
    pub(crate) async fn fetch_anywhere(
        &self,
        mut request: v1::FetchRequest,
        forwarded: bool,
        holder: Holder,
    ) -> Result<(v1::FetchResponse, Option<OwnedSemaphorePermit>), Status> {
        let topic_id = request.topic_id.as_deref();
        let routed = self
            .find(&request.topic, topic_id, request.partition)
            .and_then(|located| {
                let route = self.route(&located, forwarded)?;
                Ok((located, route))
            });
        let max_wait = Duration::from_millis(request.max_wait_ms.into()).min(WAIT_MAX);
        match routed.map_err(|error| to_status(&error))? {
            (located, Route::Here) => self
                .fetch_here(&located, &request, max_wait, holder)
                .await
                .map_err(|error| to_status(&error)),
            (_, Route::There(_, channel)) => {
                // How much comes is known only then: little enough that it needs no room before.
                request.max_bytes = match request.max_bytes {
                    0 => FORWARDED_BYTES,
                    asked => asked.min(FORWARDED_BYTES),
                };
                let polls = holder == Holder::Stream && !max_wait.is_zero();
                let answer = if polls {
                    self.poll(request, channel, max_wait).await?
                } else {
                    ask(request, channel, max_wait).await?
                };
                let room = self.broker().fetch_room(answer.batches.len(), holder);
                let room = room
                    .await
                    .map_err(|error| to_status(&fetch_error(&error)))?;
                Ok((answer, room))
            }
        }
    }

    /// A stream's long poll at another node. Above a number of them it is a short one, after a
    /// pause: what streams wait for must not take the place of what else is forwarded.
    async fn poll(
        &self,
        mut request: v1::FetchRequest,
        channel: Channel,
        max_wait: Duration,
    ) -> Result<v1::FetchResponse, Status> {
        let polls = self.polls();
        if let Ok(_place) = polls.long.try_acquire() {
            return ask(request, channel, max_wait).await;
        }
        sleep(SHORT_POLL).await;
        (request.max_wait_ms, request.min_bytes) = (0, 0);
        // Nobody closes it.
        let _place = polls.short.acquire().await;
        ask(request, channel, Duration::ZERO).await
    }
}

async fn ask(
    request: v1::FetchRequest,
    channel: Channel,
    max_wait: Duration,
) -> Result<v1::FetchResponse, Status> {
    let request = forward(request, max_wait + FORWARD_GRACE);
    let answer = client(channel).fetch(request).await;
    answer
        .map(Response::into_inner)
        .map_err(|status| forward_failed(status, false))
}

#[tonic::async_trait]
impl Consumer for Edge {
    async fn fetch(
        &self,
        request: Request<v1::FetchRequest>,
    ) -> Result<Response<v1::FetchResponse>, Status> {
        let forwarded = is_forwarded(&request);
        let fetched = self
            .fetch_anywhere(request.into_inner(), forwarded, Holder::Answer)
            .await;
        let (answer, room) = fetched?;
        let mut response = Response::new(answer);
        if let Some(room) = room {
            response.extensions_mut().insert(ResponseRoom::new(room));
        }
        Ok(response)
    }

    type ConsumeStream = Consumed;

    async fn consume(
        &self,
        request: Request<v1::ConsumeRequest>,
    ) -> Result<Response<Self::ConsumeStream>, Status> {
        let stream = self.consume_stream(&request.into_inner());
        stream.map(Response::new).map_err(|error| to_status(&error))
    }

    async fn list_offsets(
        &self,
        request: Request<v1::ListOffsetsRequest>,
    ) -> Result<Response<v1::ListOffsetsResponse>, Status> {
        let forwarded = is_forwarded(&request);
        self.list_offset(request.into_inner(), forwarded)
            .await
            .map(Response::new)
    }
}
