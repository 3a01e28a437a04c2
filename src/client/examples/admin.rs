//! Makes a topic, and shows the groups with how far each is; takes one back to the beginning where a
//! group is named, which must have no members.
//!
//! `cargo run -p quorate-client --example admin -- 127.0.0.1:7070 orders readers`

use std::collections::BTreeMap;
use std::error::Error;

use quorate_client::{Client, ClientError, ClientOptions, ErrorCode, Offset, OffsetToCommit};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let bootstrap = args.next().unwrap_or_else(|| "127.0.0.1:7070".to_owned());
    let topic = args.next().unwrap_or_else(|| "orders".to_owned());
    let client = Client::new(vec![bootstrap.parse()?], ClientOptions::default())?;

    let settings = BTreeMap::from([("min.insync.replicas".to_owned(), "2".to_owned())]);
    match client.create_topic(&topic, 6, 3, settings).await {
        Ok(made) => println!("{topic} has {} partitions", made.partitions.len()),
        Err(ClientError::Refused(why)) if why.code == ErrorCode::TopicAlreadyExists => {
            println!("{topic} is there already");
        }
        Err(error) => return Err(error.into()),
    }

    for group in client.list_groups().await? {
        let described = client.describe_group(&group.group).await?;
        let lag: i64 = described.offsets.iter().filter_map(|of| of.lag).sum();
        println!("{}: {} members, {lag} behind", group.group, group.members);
    }

    if let Some(group) = args.next() {
        let partitions = client.topic(&topic).await?.partitions.len();
        let ids = (0..partitions as u32).map(quorate_client::PartitionId::new);
        let beginning = ids.map(|id| OffsetToCommit::new(topic.clone(), id, Offset::ZERO));
        let beginning: Vec<OffsetToCommit> = beginning.collect();
        client.alter_offsets(&group, &beginning).await?;
        for at in client.committed_offsets(&group).await? {
            println!("{group}: {}-{} from {}", at.topic, at.partition, at.offset);
        }
    }
    Ok(())
}
