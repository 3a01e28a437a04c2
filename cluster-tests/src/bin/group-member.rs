//! A member of a consumer group: `group-member NODES GROUP TOPIC SESSION_MS` reads numbered records from
//! the topic's beginning until its stdin is closed, and then leaves. It commits by itself what it has
//! processed, and tells on stdout what it does, see [`cluster_tests::Told`].

use std::error::Error;
use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::time::Duration;

use cluster_tests::{Told, What};
use quorate_client::{
    Client, ClientOptions, Consumed, GroupEvent, GroupOptions, StartPosition, TopicPartition,
};
use quorate_types::Endpoint;
use tokio::sync::oneshot;

/// It commits so often.
const COMMITS: Duration = Duration::from_millis(200);

fn options(arguments: &[String]) -> Result<(Vec<Endpoint>, GroupOptions), Box<dyn Error>> {
    let [nodes, group, topic, session] = arguments else {
        return Err("usage: group-member NODES GROUP TOPIC SESSION_MS".into());
    };
    let nodes = nodes.split(',').map(str::parse).collect::<Result<_, _>>()?;
    let options = GroupOptions {
        start: StartPosition::Earliest,
        session_timeout: Duration::from_millis(session.parse()?),
        auto_commit: Some(COMMITS),
        ..GroupOptions::new(group, [topic])
    };
    Ok((nodes, options))
}

/// Writes all at once, and at once.
fn tell(what: impl IntoIterator<Item = What>) -> Result<(), Box<dyn Error>> {
    let mut lines = String::new();
    for what in what {
        writeln!(lines, "{}", Told::now(what))?;
    }
    let mut out = io::stdout().lock();
    out.write_all(lines.as_bytes())?;
    Ok(out.flush()?)
}

/// As if it took a record to do something with it: that it is there is told.
fn processed(read: Consumed) -> Result<Vec<What>, Box<dyn Error>> {
    let partition = read.partition.get();
    let each = read.records.into_iter().map(|record| {
        let value = record.value.ok_or("a record without a number")?;
        Ok(What::Processed {
            partition,
            offset: record.offset.get(),
            number: std::str::from_utf8(&value)?.parse()?,
        })
    });
    each.collect()
}

fn given_up(partitions: Vec<TopicPartition>) -> impl Iterator<Item = What> {
    let each = partitions.into_iter();
    each.map(|of| What::GivenUp {
        partition: of.partition.get(),
    })
}

/// Becomes known when stdin is closed, also because whoever started this is gone.
fn closed() -> oneshot::Receiver<()> {
    let (close, closed) = oneshot::channel();
    std::thread::spawn(move || {
        let mut nothing = Vec::new();
        // What is read, or why nothing is, does not matter.
        let _ended = io::stdin().read_to_end(&mut nothing);
        let _ended = close.send(());
    });
    closed
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (nodes, options) = options(&arguments)?;
    let client = Client::new(nodes, ClientOptions::default())?;
    let mut member = client.group(options)?;
    let mut closed = closed();
    loop {
        let event = tokio::select! {
            event = member.poll() => event?,
            _ = &mut closed => break,
        };
        match event {
            GroupEvent::Records(read) => tell(processed(read)?)?,
            GroupEvent::Assigned(new) => tell(new.into_iter().map(|of| What::Assigned {
                partition: of.partition.get(),
                offset: of.offset.get(),
            }))?,
            GroupEvent::Revoked(gone) => tell(given_up(gone))?,
            GroupEvent::Lost(gone) => tell(gone.into_iter().map(|of| What::Lost {
                partition: of.partition.get(),
            }))?,
            _ => {}
        }
    }
    let has = member.assigned();
    tell(given_up(
        has.iter().map(|of| of.topic_partition()).collect(),
    ))?;
    Ok(member.close().await?)
}
