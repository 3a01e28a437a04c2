//! Connections to other nodes: one channel an address and purpose, made when first used.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use quorate_types::Endpoint;
use tonic::transport::{Channel, Server};

/// The largest message either way.
pub const MESSAGE_BYTES: usize = 72 << 20;

const FRAME: u32 = 1 << 20;
const STREAM_WINDOW: u32 = 8 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
const CONNECT: Duration = Duration::from_secs(1);
const KEEPALIVE: Duration = Duration::from_secs(1);
const KEEPALIVE_ANSWER: Duration = Duration::from_secs(2);

/// HTTP/2 settings of every server: large frames and windows halve the CPU a byte, and keepalive
/// finds a peer that was cut off, where TCP would wait.
pub fn tune_server(server: Server) -> Server {
    server
        .max_frame_size(FRAME)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keepalive_interval(Some(KEEPALIVE * 5))
        .http2_keepalive_timeout(Some(KEEPALIVE_ANSWER * 5))
}

/// Channels for one purpose.
#[derive(Debug, Default)]
pub(crate) struct Channels {
    open: Mutex<BTreeMap<Endpoint, Channel>>,
}

impl Channels {
    /// The channel to an address; connects when it is first used, and again after it broke.
    pub(crate) fn to(&self, endpoint: &Endpoint) -> Result<Channel, tonic::transport::Error> {
        let mut open = self.open.lock();
        if let Some(channel) = open.get(endpoint) {
            return Ok(channel.clone());
        }
        let channel = connect_lazy(endpoint)?;
        open.insert(endpoint.clone(), channel.clone());
        Ok(channel)
    }
}

fn connect_lazy(endpoint: &Endpoint) -> Result<Channel, tonic::transport::Error> {
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{endpoint}"))?
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_ANSWER)
        .keep_alive_while_idle(true)
        .max_frame_size(FRAME)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .connect_lazy();
    Ok(channel)
}
