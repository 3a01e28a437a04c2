//! Records through the client's producer, which gathers them into batches.
//!
//! Partitions get runs of records, one batch full at a time: so does the client's own choice for
//! records without a key, but here the partition is known, and each is awaited for itself.

use quorate_client::{Client, ClientError, Delivery, Producer, ProducerOptions, ToSend};
use quorate_types::PartitionId;

use crate::drive::{Delivered, Sink};

/// What a record takes in a batch beside its value, about.
const OVERHEAD: usize = 32;

pub(crate) struct BatchSink {
    producer: Producer,
    topic: String,
    partitions: u32,
    current: u32,
    /// Records of a run, and those that are left of this one.
    run: usize,
    left: usize,
}

impl BatchSink {
    /// A producer of its own that begins at partition `first`.
    pub(crate) fn new(
        client: &Client,
        options: ProducerOptions,
        topic: &str,
        partitions: u32,
        record_bytes: usize,
        first: usize,
    ) -> Self {
        let run = (options.batch_bytes / (record_bytes + OVERHEAD)).max(1);
        Self {
            producer: client.producer(options),
            topic: topic.to_owned(),
            partitions: partitions.max(1),
            current: u32::try_from(first).unwrap_or(0) % partitions.max(1),
            run,
            left: run,
        }
    }

    /// Gives every record another partition than the one before it.
    pub(crate) fn spread(mut self) -> Self {
        (self.run, self.left) = (1, 1);
        self
    }
}

impl Sink for BatchSink {
    type Delivery = Delivery;

    fn lane(&mut self) -> usize {
        if self.left == 0 {
            self.current = (self.current + 1) % self.partitions;
            self.left = self.run;
        }
        self.left -= 1;
        self.current as usize
    }

    fn lanes(&self) -> usize {
        self.partitions as usize
    }

    async fn send(&mut self, lane: usize, value: &[u8]) -> Result<Delivery, ClientError> {
        let record = ToSend {
            value: Some(value),
            partition: u32::try_from(lane).ok().map(PartitionId::new),
            ..ToSend::default()
        };
        self.producer.send(&self.topic, record).await
    }
}

impl Delivered for Delivery {
    async fn wait(self) -> Result<(), ClientError> {
        Delivery::wait(&self).await.map(drop)
    }
}
