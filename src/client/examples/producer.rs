//! Sends the lines of stdin to a topic, keyed by their first word, and says where each went.
//!
//! `seq 5 | cargo run -p quorate-client --example producer -- 127.0.0.1:7070 demo`

use std::error::Error;
use std::io::stdin;

use quorate_client::{Client, ClientOptions, Compression, ProducerOptions, ToSend};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let bootstrap = args.next().unwrap_or_else(|| "127.0.0.1:7070".to_owned());
    let topic = args.next().unwrap_or_else(|| "demo".to_owned());
    let client = Client::new(vec![bootstrap.parse()?], ClientOptions::default())?;
    let producer = client.producer(ProducerOptions {
        compression: Compression::Lz4,
        ..ProducerOptions::default()
    });

    let mut deliveries = Vec::new();
    for line in stdin().lines() {
        let line = line?;
        let record = ToSend {
            key: line.split_whitespace().next().map(str::as_bytes),
            value: Some(line.as_bytes()),
            ..ToSend::default()
        };
        // Waits only for room in the buffer: batches are on their way meanwhile.
        deliveries.push(producer.send(&topic, record).await?);
    }
    producer.flush().await;
    for delivery in deliveries {
        let acked = delivery.wait().await?;
        let offset = acked.offset.unwrap_or_default();
        println!("{topic}-{} {offset}", acked.partition);
    }
    producer.close().await;
    Ok(())
}
