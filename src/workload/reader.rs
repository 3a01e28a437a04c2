//! Reading back what a [`Writer`](crate::Writer) wrote.

use quorate_client::{Assignment, Client, ClientError, ConsumerOptions};
use quorate_types::{Offset, PartitionId};

use crate::history::Stored;

/// Why a topic could not be read back.
#[derive(Debug, thiserror::Error)]
pub enum ReadFailed {
    /// The cluster did not answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Somebody else's record, or a leader without a high watermark.
    #[error("{topic}-{partition}, offset {offset}: {why}")]
    Unexpected {
        /// The topic.
        topic: String,
        /// The partition.
        partition: u32,
        /// The offset, where there is one.
        offset: i64,
        /// What is wrong.
        why: &'static str,
    },
}

/// Reads a topic from its beginning to its present high watermarks, each partition in offset
/// order.
///
/// # Errors
/// [`ReadFailed`]; what was read so far is dropped.
pub async fn read_all(client: &Client, topic: &str) -> Result<Vec<Stored>, ReadFailed> {
    let described = client.describe_topic(topic).await?;
    let mut stored = Vec::new();
    for partition in described.partitions {
        let id = PartitionId::new(partition.partition.unsigned_abs());
        let unexpected = |offset, why| ReadFailed::Unexpected {
            topic: topic.to_owned(),
            partition: id.get(),
            offset,
            why,
        };
        let Some(end) = partition.high_watermark else {
            return Err(unexpected(-1, "the leader tells no high watermark"));
        };
        let assigned = vec![Assignment {
            topic: topic.to_owned(),
            partition: id,
            offset: Offset::ZERO,
        }];
        let mut consumer = client.consumer(assigned, ConsumerOptions::default());
        let mut next = 0;
        while next < end {
            let consumed = match consumer.poll().await {
                Some(consumed) => consumed?,
                None => return Err(unexpected(next, "the consumer has ended")),
            };
            next = consumed.next.to_signed();
            for record in consumed.records {
                let offset = record.offset.to_signed();
                let text = |bytes: Option<&[u8]>| {
                    bytes.and_then(|bytes| String::from_utf8(bytes.to_vec()).ok())
                };
                let number = text(record.value.as_deref()).and_then(|value| value.parse().ok());
                let (Some(key), Some(number)) = (text(record.key.as_deref()), number) else {
                    return Err(unexpected(offset, "not a numbered record"));
                };
                stored.push(Stored {
                    partition: id.get(),
                    offset,
                    key,
                    number,
                });
            }
        }
    }
    Ok(stored)
}
