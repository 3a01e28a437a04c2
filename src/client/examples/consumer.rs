//! Reads one partition from its beginning to its end, then its last ten records again.
//!
//! `cargo run -p quorate-client --example consumer -- 127.0.0.1:7070 demo 0`

use std::error::Error;

use quorate_client::v1::list_offsets_request::{Earliest, Latest, Position};
use quorate_client::{
    Assignment, Client, ClientOptions, Consumer, ConsumerOptions, Offset, PartitionId,
    TopicPartition,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let bootstrap = args.next().unwrap_or_else(|| "127.0.0.1:7070".to_owned());
    let topic = args.next().unwrap_or_else(|| "demo".to_owned());
    let number = args.next().map_or(Ok(0), |number| number.parse())?;
    let partition = TopicPartition::new(topic.clone(), PartitionId::new(number));
    let client = Client::new(vec![bootstrap.parse()?], ClientOptions::default())?;

    let find = |position| client.list_offset(&topic, partition.partition, position);
    let start = find(Position::Earliest(Earliest {})).await?.unwrap_or(0);
    let end = find(Position::Latest(Latest {})).await?.unwrap_or(0);
    let (start, end) = (Offset::from_signed(start)?, Offset::from_signed(end)?);

    let mut consumer = client.consumer(Vec::new(), ConsumerOptions::default());
    consumer.assign([Assignment {
        topic: topic.clone(),
        partition: partition.partition,
        offset: start,
    }]);
    read(&mut consumer, &partition, end).await?;

    println!("once more, the last of them:");
    let again = Offset::new(end.get().saturating_sub(10)).max(start);
    consumer.seek(&partition, again)?;
    read(&mut consumer, &partition, end).await
}

/// Prints what lies between the consumer's position and `end`.
async fn read(
    consumer: &mut Consumer,
    partition: &TopicPartition,
    end: Offset,
) -> Result<(), Box<dyn Error>> {
    while consumer.position(partition).is_some_and(|at| at < end) {
        let Some(read) = consumer.poll().await else {
            break;
        };
        for record in read?.records {
            let value = record.value.unwrap_or_default();
            println!("{} {}", record.offset, String::from_utf8_lossy(&value));
        }
    }
    Ok(())
}
