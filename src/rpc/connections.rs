//! Accepting connections: so many and no more, and none that is silent for ever.
//!
//! An HTTP/2 client answers the server's pings, so that whoever lives is heard every few seconds;
//! half-open connections, port scanners and forgotten telnets are not, and go.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use futures::stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tonic::transport::server::{Connected, TcpConnectInfo};
use tracing::warn;

/// Pause after an accept that failed (no file descriptors left, most often).
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);
/// Refused connections are told of once in so long.
const TELL: Duration = Duration::from_secs(5);

/// Bounds of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Open connections at most; further ones are closed at once.
    pub connections: usize,
    /// A connection that has sent nothing for so long is closed.
    pub idle: Duration,
    /// The same before its first byte.
    pub first_byte: Duration,
}

/// Connections as they come, without end.
pub fn accept(
    listener: TcpListener,
    port: &'static str,
    limits: ConnectionLimits,
) -> impl Stream<Item = io::Result<Connection>> {
    let room = Arc::new(Semaphore::new(limits.connections));
    let state = (listener, room, None::<Instant>);
    stream::unfold(state, move |(listener, room, mut told)| async move {
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    crate::metrics::refused(port);
                    warn!(port, %error, "a connection could not be taken");
                    sleep(ACCEPT_AGAIN).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
                crate::metrics::refused(port);
                if told.is_none_or(|at| at.elapsed() > TELL) {
                    told = Some(Instant::now());
                    let limit = limits.connections;
                    warn!(port, limit, "too many connections: new ones are closed");
                }
                continue;
            };
            // Only latency suffers where it cannot be set.
            let _slower = stream.set_nodelay(true);
            let connection = Connection::new(stream, permit, port, limits);
            return Some((Ok(connection), (listener, room, told)));
        }
    })
}

/// An accepted connection, counted for as long as it is open.
pub struct Connection {
    stream: TcpStream,
    limits: ConnectionLimits,
    heard: Instant,
    spoke: bool,
    silence: Pin<Box<Sleep>>,
    _open: crate::metrics::Open,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    fn new(
        stream: TcpStream,
        permit: OwnedSemaphorePermit,
        port: &'static str,
        limits: ConnectionLimits,
    ) -> Self {
        let heard = Instant::now();
        Self {
            stream,
            limits,
            heard,
            spoke: false,
            silence: Box::pin(sleep_until(heard + limits.first_byte)),
            _open: crate::metrics::Open::connection(port),
            _permit: permit,
        }
    }

    /// Ends the wait for a peer that says nothing. The timer is set anew only when it fires: reads
    /// are many.
    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let allowed = if self.spoke {
            self.limits.idle
        } else {
            self.limits.first_byte
        };
        loop {
            std::task::ready!(self.silence.as_mut().poll(cx));
            let due = self.heard + allowed;
            if due <= Instant::now() {
                let message = format!("nothing heard for {allowed:?}");
                return Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, message));
            }
            self.silence.as_mut().reset(due);
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_read(cx, buffer) {
            Poll::Ready(done) => {
                self.heard = Instant::now();
                self.spoke = true;
                Poll::Ready(done)
            }
            Poll::Pending => self.poll_silence(cx).map(Err),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use futures::StreamExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const SHORT: Duration = Duration::from_millis(50);

    async fn listening(
        connections: usize,
    ) -> (
        SocketAddr,
        Pin<Box<impl Stream<Item = io::Result<Connection>>>>,
    ) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let limits = ConnectionLimits {
            connections,
            idle: SHORT * 4,
            first_byte: SHORT,
        };
        (at, Box::pin(accept(listener, "test", limits)))
    }

    #[tokio::test]
    async fn connections_above_the_limit_are_closed_at_once() {
        let (at, mut incoming) = listening(1).await;
        let _first = TcpStream::connect(at).await.unwrap();
        let first = incoming.next().await.unwrap().unwrap();
        let mut second = TcpStream::connect(at).await.unwrap();
        let mut third = None;
        let accepting = async {
            // Refuses the second, and waits.
            third = Some(incoming.next().await);
        };
        tokio::select! {
            () = accepting => panic!("a second connection was taken"),
            read = second.read_u8() => assert!(read.is_err(), "the second is closed"),
        }
        drop(first);
        let _fourth = TcpStream::connect(at).await.unwrap();
        assert!(incoming.next().await.unwrap().is_ok());
    }

    #[tokio::test]
    async fn a_silent_connection_is_given_up() {
        let (at, mut incoming) = listening(9).await;
        let mut peer = TcpStream::connect(at).await.unwrap();
        let mut silent = incoming.next().await.unwrap().unwrap();
        let begun = Instant::now();
        let error = silent.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(
            begun.elapsed() < SHORT * 4,
            "its first byte is waited for less"
        );

        let mut other = TcpStream::connect(at).await.unwrap();
        let mut heard = incoming.next().await.unwrap().unwrap();
        other.write_u8(7).await.unwrap();
        assert_eq!(heard.read_u8().await.unwrap(), 7);
        let begun = Instant::now();
        let error = heard.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(begun.elapsed() >= SHORT * 3, "{:?}", begun.elapsed());
        drop(silent);
        assert!(peer.read_u8().await.is_err());
    }
}
