//! A member of a group: start it several times, stop some with Ctrl-C, and see the partitions move.
//!
//! `cargo run -p quorate-client --example group -- 127.0.0.1:7070 demo readers`
//! `… readers manual` commits by hand, after the records were processed.

use std::error::Error;

use quorate_client::{
    Client, ClientOptions, Consumed, GroupConsumer, GroupEvent, GroupOptions, OffsetToCommit,
    StartPosition,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let bootstrap = args.next().unwrap_or_else(|| "127.0.0.1:7070".to_owned());
    let topic = args.next().unwrap_or_else(|| "demo".to_owned());
    let group = args.next().unwrap_or_else(|| "readers".to_owned());
    let by_hand = args.next().as_deref() == Some("manual");
    let client = Client::new(vec![bootstrap.parse()?], ClientOptions::default())?;
    let mut options = GroupOptions {
        start: StartPosition::Earliest,
        ..GroupOptions::new(group, [topic])
    };
    if by_hand {
        options.auto_commit = None;
    }
    let mut member = client.group(options)?;
    loop {
        let event = tokio::select! {
            event = member.poll() => event?,
            pressed = tokio::signal::ctrl_c() => {
                pressed?;
                break;
            }
        };
        follow(&mut member, event, by_hand).await?;
    }
    // Others have the partitions at once, rather than when the session ends.
    member.close().await?;
    Ok(())
}

async fn follow(
    member: &mut GroupConsumer,
    event: GroupEvent,
    by_hand: bool,
) -> Result<(), Box<dyn Error>> {
    match event {
        GroupEvent::Records(read) => {
            process(&read);
            if by_hand && !read.records.is_empty() {
                let mut offset = OffsetToCommit::new(read.topic, read.partition, read.next);
                offset.leader_epoch = read.leader_epoch;
                offset.metadata = "by hand".to_owned();
                member.commit_offsets(&[offset]).await?;
            }
        }
        GroupEvent::Assigned(assigned) => {
            for of in assigned {
                println!("+ {}-{} from {}", of.topic, of.partition, of.offset);
            }
        }
        // What is under way for these is finished and committed here, before the next poll.
        GroupEvent::Revoked(revoked) => revoked.iter().for_each(|of| println!("- {of}")),
        // Too late for that: others may read them already.
        GroupEvent::Lost(lost) => lost.iter().for_each(|of| println!("lost: {of}")),
        _ => {}
    }
    Ok(())
}

fn process(read: &Consumed) {
    for record in &read.records {
        let value = record.value.as_deref().unwrap_or_default();
        let value = String::from_utf8_lossy(value);
        println!(
            "{}-{} {}: {value}",
            read.topic, read.partition, record.offset
        );
    }
}
