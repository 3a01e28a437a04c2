//! Partitions as their leader has them: record n of partition p says `p/n`, ten to a fetch at most.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quorate_proto::v1;
use quorate_proto::v1::consumer_server::{Consumer, ConsumerServer};
use quorate_record::{BatchBuilder, Compression};
use quorate_types::{LeaderEpoch, Offset, Timestamp};
use tokio::sync::watch;
use tokio::time::timeout;
use tonic::{Request, Response, Status};

use super::{Answers, DEADLINE, EPOCH, not_here};

/// Records of a fetch.
pub const AT_ONCE: u64 = 10;

/// The ends of the partitions, how many fetches were answered, and who does not say where it is.
#[derive(Clone)]
pub struct Log {
    /// Its leader does not answer who asks where it begins or ends.
    silent: Arc<watch::Sender<Option<i32>>>,
    ends: Arc<watch::Sender<BTreeMap<i32, u64>>>,
    fetches: Arc<watch::Sender<u64>>,
}

impl Log {
    pub fn new() -> Self {
        Self {
            silent: Arc::default(),
            ends: Arc::new(watch::Sender::new(BTreeMap::new())),
            fetches: Arc::new(watch::Sender::new(0)),
        }
    }

    pub fn service(&self) -> ConsumerServer<Self> {
        ConsumerServer::new(self.clone())
    }

    /// Appends to a partition.
    pub fn append(&self, partition: i32, records: u64) {
        self.ends
            .send_modify(|ends| *ends.entry(partition).or_default() += records);
    }

    /// Has nobody told where this partition begins or ends; nor, with none, any keep silent.
    pub fn silence(&self, partition: Option<i32>) {
        self.silent.send_replace(partition);
    }

    pub fn fetches(&self) -> u64 {
        *self.fetches.borrow()
    }

    /// Waits until so many fetches were answered.
    pub async fn fetched(&self, enough: u64) {
        let mut fetches = self.fetches.subscribe();
        let seen = timeout(DEADLINE, fetches.wait_for(|fetches| *fetches >= enough)).await;
        seen.expect("the consumer fetches on").unwrap();
    }

    fn end(&self, partition: i32) -> u64 {
        self.ends.borrow().get(&partition).copied().unwrap_or(0)
    }
}

#[tonic::async_trait]
impl Consumer for Log {
    async fn fetch(
        &self,
        request: Request<v1::FetchRequest>,
    ) -> Result<Response<v1::FetchResponse>, Status> {
        let request = request.into_inner();
        let (partition, from) = (request.partition, request.offset as u64);
        let wait = Duration::from_millis(request.max_wait_ms.into());
        let mut ends = self.ends.subscribe();
        let more = |ends: &BTreeMap<i32, u64>| ends.get(&partition).is_some_and(|end| *end > from);
        let _more = timeout(wait, ends.wait_for(more)).await.is_ok();
        let end = self.end(partition);
        let mut batches = Bytes::new();
        if from < end {
            let mut builder = BatchBuilder::new(Compression::None);
            for offset in from..end.min(from + AT_ONCE) {
                let value = format!("{partition}/{offset}");
                let time = Timestamp::from_millis(0);
                builder.push(time, None, Some(value.as_bytes()), &[]);
            }
            let epoch = LeaderEpoch::from_signed(EPOCH).unwrap();
            let batch = builder.build().stamped(Offset::new(from), epoch);
            batches = batch.bytes().clone();
        }
        self.fetches.send_modify(|fetches| *fetches += 1);
        Ok(Response::new(v1::FetchResponse {
            batches,
            high_watermark: end as i64,
            leader_epoch: EPOCH,
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
        request: Request<v1::ListOffsetsRequest>,
    ) -> Result<Response<v1::ListOffsetsResponse>, Status> {
        use v1::list_offsets_request::Position;
        let request = request.into_inner();
        let mut silent = self.silent.subscribe();
        let speaks = silent.wait_for(|silent| *silent != Some(request.partition));
        speaks.await.expect("the log is there");
        let offset = match request.position {
            Some(Position::Earliest(_)) => 0,
            _ => self.end(request.partition) as i64,
        };
        Ok(Response::new(v1::ListOffsetsResponse {
            offset: Some(offset),
            ..v1::ListOffsetsResponse::default()
        }))
    }
}
