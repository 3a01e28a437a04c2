//! A TCP proxy before a node that loses answers: each connection through it works for a while; then what
//! the node answers is thrown away while requests still reach it; soon after the first loss the
//! connection is cut. Whoever asked does not know what became of it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use quorate_types::Endpoint;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

/// A connection works for so many milliseconds, from … to.
const WORKS_MS: (u64, u64) = (20, 400);
/// After the first loss requests are passed on for so many milliseconds, from … to.
const GOES_ON_MS: (u64, u64) = (0, 30);
/// Answers are passed on by so many bytes at most.
const BUFFER: usize = 64 << 10;

struct Shared {
    to: Endpoint,
    loses: AtomicBool,
    draws: Mutex<StdRng>,
    cut: AtomicU64,
    lost: AtomicU64,
}

/// A proxy on a loopback port of its own. It ends when it is dropped, and its connections with it.
pub struct Proxy {
    at: Endpoint,
    shared: Arc<Shared>,
    _accepts: JoinSet<()>,
}

impl Proxy {
    /// Listens, and passes everything on to `to`, whether that is up or not. It loses nothing before it
    /// is told to; when it does is drawn by `seed`.
    ///
    /// # Errors
    /// Where no port can be had.
    pub async fn start(to: Endpoint, seed: u64) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let at = Endpoint {
            host: "127.0.0.1".to_owned(),
            port: listener.local_addr()?.port(),
        };
        let shared = Arc::new(Shared {
            to,
            loses: AtomicBool::new(false),
            draws: Mutex::new(StdRng::seed_from_u64(seed)),
            cut: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        });
        let mut accepts = JoinSet::new();
        accepts.spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self {
            at,
            shared,
            _accepts: accepts,
        })
    }

    /// Where it listens.
    pub fn at(&self) -> &Endpoint {
        &self.at
    }

    /// Whether answers are lost from now on.
    pub fn lose(&self, loses: bool) {
        self.shared.loses.store(loses, Ordering::Relaxed);
    }

    /// How many connections it has cut.
    pub fn cut(&self) -> u64 {
        self.shared.cut.load(Ordering::Relaxed)
    }

    /// How many bytes of answers it has thrown away.
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            // One that is gone before it is taken does not matter.
            accepted = listener.accept() => if let Ok((client, _)) = accepted {
                connections.spawn(pass(client, Arc::clone(&shared)));
            },
            Some(_ended) = connections.join_next() => {}
        }
    }
}

/// One connection, until either side ends it or it is cut.
async fn pass(client: TcpStream, shared: Arc<Shared>) {
    // A node that is down takes none: then the client's ends.
    let Ok(node) = TcpStream::connect((shared.to.host.as_str(), shared.to.port)).await else {
        return;
    };
    for stream in [&client, &node] {
        if stream.set_nodelay(true).is_err() {
            return;
        }
    }
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_node, mut to_node) = node.into_split();
    let answers = async {
        let mut answer = vec![0; BUFFER];
        let mut works_until = shared.after(WORKS_MS);
        let mut cut_at = None;
        let mut loses = false;
        loop {
            tokio::select! {
                read = from_node.read(&mut answer) => {
                    let bytes = read.unwrap_or(0);
                    if bytes == 0 {
                        return;
                    }
                    if loses {
                        shared.lost.fetch_add(bytes as u64, Ordering::Relaxed);
                        cut_at.get_or_insert_with(|| shared.after(GOES_ON_MS));
                    } else if to_client.write_all(&answer[..bytes]).await.is_err() {
                        return;
                    }
                }
                () = sleep_until(works_until), if !loses => {
                    loses = shared.loses.load(Ordering::Relaxed);
                    works_until = shared.after(WORKS_MS);
                }
                () = sleep_until(cut_at.unwrap_or(works_until)), if cut_at.is_some() => {
                    shared.cut.fetch_add(1, Ordering::Relaxed);
                    return;
                }
            }
        }
    };
    tokio::select! {
        () = answers => {}
        _ended = copy(&mut from_client, &mut to_node) => {}
    }
}

impl Shared {
    fn after(&self, (from, to): (u64, u64)) -> Instant {
        let drawn = self.draws.lock().random_range(from..=to);
        Instant::now() + Duration::from_millis(drawn)
    }
}
