//! Reading back what a [`Writer`](crate::Writer) wrote.

use std::collections::BTreeMap;

use quorate_client::{Assignment, Client, ClientError, ConsumerOptions};
use quorate_proto::v1::list_offsets_request::{Latest, Position};
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
    read_from(client, topic, &BTreeMap::new()).await
}

/// As [`read_all`], but from these offsets on; a partition without one from its beginning.
///
/// # Errors
/// [`ReadFailed`]; what was read so far is dropped.
pub async fn read_from(
    client: &Client,
    topic: &str,
    starts: &BTreeMap<u32, i64>,
) -> Result<Vec<Stored>, ReadFailed> {
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
        // A leader that has just gone is followed by another one.
        let latest = Position::Latest(Latest {});
        let end = client.list_offset(topic, id, latest).await?;
        let end = end.ok_or_else(|| unexpected(-1, "the leader tells no high watermark"))?;
        let mut next = starts.get(&id.get()).copied().unwrap_or(0);
        let offset = Offset::from_signed(next);
        let assigned = vec![Assignment {
            topic: topic.to_owned(),
            partition: id,
            offset: offset.map_err(|_| unexpected(next, "not an offset"))?,
        }];
        let mut consumer = client.consumer(assigned, ConsumerOptions::default());
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
