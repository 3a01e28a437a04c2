//! Bytes that no client sends, to both ports of a running node: it answers or closes, stays ready,
//! gives back its files and memory, takes records, and says nothing of a panic.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use cluster_tests::{Cluster, eventually, produce_raw, resident};
use prost::Message;
use prost_types::FileDescriptorSet;
use quorate_proto::v1::{Acks, FILE_DESCRIPTOR_SET};
use quorate_types::Endpoint;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const TOPIC: &str = "bad-bytes";
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
const MAX_CONCURRENT_STREAMS: u16 = 3;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PRODUCE: &str = "/quorate.v1.Producer/Produce";
const CONNECTIONS: usize = 1_000;
const STREAMS: u32 = 5_000;
/// Streams opened above a port's limit.
const ABOVE: u32 = 1_000;
/// How long a node may take to answer or close.
const SOON: Duration = Duration::from_secs(15);
/// Resident memory may grow by so much over all of it, in KiB: the allocator keeps what it had.
const GROWTH_KIB: u64 = 256 << 10;

/// An HTTP/2 frame.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// The header block of a gRPC call (HPACK, nothing indexed by us).
fn headers(path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let literal = |text: &str| {
        let mut bytes = vec![u8::try_from(text.len()).unwrap()];
        assert!(text.len() < 127, "longer lengths take more bytes");
        bytes.extend(text.as_bytes());
        bytes
    };
    // :method POST, :scheme http, then :path by its name's index.
    let mut block = vec![0x83, 0x86, 0x04];
    block.extend(literal(path));
    let fields = [("content-type", "application/grpc"), ("te", "trailers")];
    for (name, value) in [(":authority", "q")].iter().chain(&fields).chain(more) {
        block.push(0);
        block.extend(literal(name));
        block.extend(literal(value));
    }
    block
}

/// A connection that has begun to speak HTTP/2.
async fn opened(to: &Endpoint) -> TcpStream {
    let mut stream = TcpStream::connect(to.to_string()).await.unwrap();
    stream.write_all(PREFACE).await.unwrap();
    stream.write_all(&SETTINGS).await.unwrap();
    stream
}

/// Opens stream 1 as a call and sends what stands for its messages.
async fn call(
    to: &Endpoint,
    path: &str,
    more: &[(&str, &str)],
    body: &[u8],
    end: bool,
) -> TcpStream {
    let mut stream = opened(to).await;
    let mut bytes = frame(HEADERS, END_HEADERS, 1, &headers(path, more));
    for piece in body.chunks(16 << 10) {
        bytes.extend(frame(DATA, 0, 1, piece));
    }
    if end {
        bytes.extend(frame(DATA, END_STREAM, 1, &[]));
    }
    stream.write_all(&bytes).await.unwrap();
    stream
}

/// Everything that comes until the peer closes or falls silent for a moment.
async fn answer(stream: &mut TcpStream, until: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let mut all = Vec::new();
    let reading = async {
        let mut piece = [0; 4_096];
        while let Ok(read @ 1..) = stream.read(&mut piece).await {
            all.extend_from_slice(&piece[..read]);
            if until(&all) {
                return;
            }
        }
    };
    let ended = timeout(SOON, reading).await;
    assert!(
        ended.is_ok(),
        "neither closed nor answered: {}",
        String::from_utf8_lossy(&all)
    );
    all
}

/// Whether a frame of this kind, for this stream, stands in what came.
fn has_frame(bytes: &[u8], kind: u8, stream: u32) -> bool {
    let mut rest = bytes;
    while rest.len() >= 9 {
        let length = u32::from_be_bytes([0, rest[0], rest[1], rest[2]]) as usize;
        let of = u32::from_be_bytes([rest[5], rest[6], rest[7], rest[8]]);
        if rest[3] == kind && of == stream {
            return true;
        }
        rest = rest.get(9 + length..).unwrap_or_default();
    }
    false
}

/// The limit of streams that the settings among these frames announce.
fn streams_allowed(bytes: &[u8]) -> Option<u32> {
    let mut rest = bytes;
    while rest.len() >= 9 {
        let length = u32::from_be_bytes([0, rest[0], rest[1], rest[2]]) as usize;
        let payload = rest.get(9..9 + length)?;
        if rest[3] == 4 {
            let mut settings = payload.chunks_exact(6);
            let found = settings.find(|pair| pair[..2] == MAX_CONCURRENT_STREAMS.to_be_bytes());
            return found.map(|pair| u32::from_be_bytes([pair[2], pair[3], pair[4], pair[5]]));
        }
        rest = &rest[9 + length..];
    }
    None
}

/// A status in trailers: HEADERS with END_STREAM on stream 1; or the stream is reset.
fn call_ended(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    while rest.len() >= 9 {
        let length = u32::from_be_bytes([0, rest[0], rest[1], rest[2]]) as usize;
        if rest[8] == 1 && (rest[3] == RST_STREAM || rest[4] & END_STREAM != 0) {
            return true;
        }
        rest = rest.get(9 + length..).unwrap_or_default();
    }
    false
}

/// Sends bytes of no protocol; the node must close the connection or answer.
async fn closes(to: &Endpoint, what: &str, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(to.to_string()).await.unwrap();
    // It may close before it has read all.
    let _cut = stream.write_all(bytes).await;
    let _cut = stream.shutdown().await;
    let came = answer(&mut stream, |_| false).await;
    println!("{to} {what}: {} bytes back", came.len());
    came
}

async fn no_protocol(to: &Endpoint, random: &mut StdRng) {
    for length in [1, 24, 1_000, 100_000] {
        let mut bytes = vec![0; length];
        random.fill_bytes(&mut bytes);
        closes(to, "random", &bytes).await;
    }
    // The beginning of a TLS 1.2 client hello.
    let mut hello = vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    hello.resize(517, 0x41);
    closes(to, "TLS", &hello).await;
    for text in [
        "GET \r\n\r\n",
        "NONSENSE / HTTP/9.9\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: q\r\nContent-Length: -5\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: q\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ] {
        closes(to, "HTTP/1", text.as_bytes()).await;
    }
    let mut garbage = PREFACE.to_vec();
    let mut bytes = vec![0; 10_000];
    random.fill_bytes(&mut bytes);
    garbage.extend(&bytes);
    closes(to, "frames", &garbage).await;
    let long = format!(
        "GET / HTTP/1.1\r\nHost: q\r\nX: {}\r\n\r\n",
        "y".repeat(1 << 20)
    );
    closes(to, "1 MiB of HTTP/1 headers", long.as_bytes()).await;
    // Of HTTP/2: one HEADERS frame and CONTINUATIONs without end, 1 MiB of them.
    let mut flood = [
        PREFACE,
        &SETTINGS[..],
        &frame(HEADERS, 0, 1, &headers(PRODUCE, &[])),
    ]
    .concat();
    let mut field = vec![0, 1, b'x', 100];
    field.extend([b'y'; 100]);
    for _ in 0..100 {
        flood.extend(frame(9, 0, 1, &field.repeat(100)));
    }
    closes(to, "1 MiB of HTTP/2 headers", &flood).await;
}

async fn http1_to_grpc(to: &Endpoint) {
    for method in ["GET", "POST"] {
        let request = format!(
            "{method} {PRODUCE} HTTP/1.1\r\nHost: q\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        // Its side stays open: a server need not answer one that has closed it.
        let mut stream = TcpStream::connect(to.to_string()).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let came = answer(&mut stream, |_| false).await;
        let text = String::from_utf8_lossy(&came);
        assert!(text.starts_with("HTTP/1.1 505"), "{method}: {text}");
        let (_, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(body.contains("HTTP/2"), "{method}: {text}");
    }
}

/// Calls whose messages are wrong; each ends with a status or a reset.
async fn bad_messages(to: &Endpoint) {
    let huge = [0, 0xff, 0xff, 0xff, 0xff, 1, 2, 3];
    let compressed = [1, 0, 0, 0, 3, 8, 1, 1];
    for (what, body) in [
        ("4 GiB announced", &huge[..]),
        ("compressed without encoding", &compressed[..]),
        ("half a prefix", &[0, 0][..]),
        ("less than announced", &[0, 0, 0, 0, 9, 1][..]),
    ] {
        let mut stream = call(to, PRODUCE, &[], body, true).await;
        let came = answer(&mut stream, call_ended).await;
        assert!(call_ended(&came), "{to} {what}: {came:?}");
    }
    let unknown = [("grpc-encoding", "rot13")];
    let mut stream = call(to, PRODUCE, &unknown, &compressed, true).await;
    assert!(
        call_ended(&answer(&mut stream, call_ended).await),
        "an unknown encoding"
    );
}

/// Every method of the public services with bytes that are no message.
async fn every_method(to: &Endpoint, random: &mut StdRng) -> usize {
    let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
    let mut count = 0;
    for file in &set.file {
        for service in &file.service {
            for method in &service.method {
                let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                for _ in 0..20 {
                    let mut message = vec![0; random.random_range(1..200)];
                    random.fill_bytes(&mut message);
                    // A length that runs over the end: never a message.
                    message.extend([0x0a, 0xff, 0xff, 0x03]);
                    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
                    let body = [&[0][..], &length, &message].concat();
                    let mut stream = call(to, &path, &[], &body, true).await;
                    let came = answer(&mut stream, call_ended).await;
                    assert!(call_ended(&came), "{path}: {came:?}");
                }
                count += 1;
            }
        }
    }
    count
}

/// Calls that are opened and taken back at once, by thousands, on one connection.
async fn rapid_reset(to: &Endpoint) {
    let mut stream = opened(to).await;
    let block = headers(PRODUCE, &[]);
    let mut sent = 0;
    for number in 0..STREAMS {
        let id = 2 * number + 1;
        let mut bytes = frame(HEADERS, END_HEADERS, id, &block);
        bytes.extend(frame(RST_STREAM, 0, id, &8_u32.to_be_bytes()));
        if stream.write_all(&bytes).await.is_err() {
            break;
        }
        sent += 1;
    }
    println!("{to}: {sent} streams opened and reset");
    // And more of them than the port allows, without taking them back: those are refused one by one.
    let mut stream = opened(to).await;
    let greeting = answer(&mut stream, |bytes| streams_allowed(bytes).is_some()).await;
    let allowed = streams_allowed(&greeting).unwrap();
    assert!((1..100_000).contains(&allowed), "{allowed} streams");
    for number in 0..allowed + ABOVE {
        let bytes = frame(HEADERS, END_HEADERS, 2 * number + 1, &block);
        if stream.write_all(&bytes).await.is_err() {
            break;
        }
    }
    let refused = 2 * allowed + 1;
    let came = answer(&mut stream, |bytes| {
        has_frame(bytes, RST_STREAM, refused) || has_frame(bytes, GOAWAY, 0)
    })
    .await;
    let (reset, gone) = (
        has_frame(&came, RST_STREAM, refused),
        has_frame(&came, GOAWAY, 0),
    );
    assert!(reset || gone, "stream {refused} of {allowed} was taken");
    println!("{to}: {allowed} streams allowed, the next one reset: {reset}");
}

fn files(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .count()
}

async fn produces(cluster: &Cluster, node: &Endpoint, number: u64) {
    eventually("a produce through the node", || async {
        let soon = Duration::from_secs(5);
        let sent = produce_raw(node, (TOPIC, 0), number, Acks::All, soon).await;
        sent.map_err(|error| error.to_string())
    })
    .await;
    let described = cluster.client.describe_topic(TOPIC).await.unwrap();
    assert!(described.partitions[0].high_watermark >= Some(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_outlives_bytes_that_mean_nothing() {
    let cluster = Cluster::start(Path::new(env!("CARGO_BIN_EXE_quorate-under-test"))).await;
    let created = cluster
        .client
        .create_topic(TOPIC, 1, 3, BTreeMap::new())
        .await;
    created.unwrap();
    let node = cluster.processes.node_ids()[0];
    let client = cluster.processes.addresses()[0].clone();
    let internal = cluster.processes.internal_addresses()[0].clone();
    let pid = cluster.processes.pid(node).unwrap().unwrap();
    produces(&cluster, &client, 1).await;
    let (files_before, resident_before) = (files(pid), resident(pid).unwrap() >> 10);
    let seed = 7;
    let mut random = StdRng::seed_from_u64(seed);
    http1_to_grpc(&client).await;
    for port in [&client, &internal] {
        no_protocol(port, &mut random).await;
        bad_messages(port).await;
        println!("{port}: {} methods", every_method(port, &mut random).await);
        rapid_reset(port).await;
    }
    // Opened and left: nothing said, half a preface, a call without its message.
    let mut left = Vec::new();
    for number in 0..CONNECTIONS {
        let to = [&client, &internal][number % 2];
        let mut stream = TcpStream::connect(to.to_string()).await.unwrap();
        match number % 4 / 2 {
            0 if number % 3 == 0 => stream.write_all(&PREFACE[..10]).await.unwrap(),
            0 => {}
            _ => {
                stream.write_all(PREFACE).await.unwrap();
                stream.write_all(&SETTINGS).await.unwrap();
                let block = headers(PRODUCE, &[]);
                stream
                    .write_all(&frame(HEADERS, END_HEADERS, 1, &block))
                    .await
                    .unwrap();
            }
        }
        left.push(stream);
    }
    println!(
        "{} files open with {CONNECTIONS} connections left",
        files(pid)
    );
    produces(&cluster, &client, 2).await;
    drop(left);
    eventually("the files of the node to be closed", || async {
        let now = files(pid);
        (now < files_before + 50)
            .then_some(())
            .ok_or(format!("{now}, {files_before} before"))
    })
    .await;
    let resident = resident(pid).unwrap() >> 10;
    println!("resident: {resident_before} KiB before, {resident} KiB after");
    assert!(resident < resident_before + GROWTH_KIB);
    cluster.all_active().await;
    cluster.all_in_sync(TOPIC).await;
    produces(&cluster, &client, 3).await;
    let log = std::fs::read_to_string(cluster.processes.log_path(node).unwrap()).unwrap();
    assert!(!log.contains("panicked"), "{log}");
    assert_eq!(
        cluster.processes.pid(node).unwrap(),
        Some(pid),
        "it has never ended"
    );
}
