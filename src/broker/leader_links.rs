//! Streams to the leaders of the partitions that this node follows: one a leader, opened when a
//! follower first has something to say, and left to the followers' own backoff when it ends.

use std::collections::BTreeMap;
use std::sync::Arc;

use quorate_replication::FollowerMessage;
use quorate_types::{Endpoint, NodeId};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info_span};

use crate::mailbox::{Mail, Mailbox};
use crate::transport::ReplicationTransport;

/// Tells apart the successive streams to one leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LinkId(u64);

struct Link {
    id: LinkId,
    /// None while connecting.
    outgoing: Option<mpsc::Sender<FollowerMessage>>,
    /// Ends the link's task when the link is dropped.
    _cancel: tokio_util::sync::DropGuard,
}

pub(crate) struct LeaderLinks {
    transport: Arc<dyn ReplicationTransport>,
    runtime: Handle,
    mailbox: Mailbox,
    cancel: CancellationToken,
    links: BTreeMap<NodeId, Link>,
    next: u64,
}

/// What became of a message to a leader.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    Queued,
    /// No stream yet: one is being opened, the message is dropped.
    Opening,
    /// The stream broke; it is dropped.
    Broken,
}

impl LeaderLinks {
    pub(crate) fn new(
        transport: Arc<dyn ReplicationTransport>,
        runtime: Handle,
        mailbox: Mailbox,
        cancel: CancellationToken,
    ) -> Self {
        Self {
            transport,
            runtime,
            mailbox,
            cancel,
            links: BTreeMap::new(),
            next: 0,
        }
    }

    pub(crate) fn send(
        &mut self,
        leader: NodeId,
        endpoint: Option<&Endpoint>,
        message: FollowerMessage,
    ) -> Sent {
        match self.links.get(&leader) {
            Some(Link {
                outgoing: Some(outgoing),
                ..
            }) => match outgoing.try_send(message) {
                Ok(()) => Sent::Queued,
                Err(_full_or_closed) => {
                    self.links.remove(&leader);
                    Sent::Broken
                }
            },
            Some(Link { outgoing: None, .. }) => Sent::Opening,
            None => match endpoint {
                Some(endpoint) => {
                    self.open(leader, endpoint.clone());
                    Sent::Opening
                }
                None => Sent::Broken,
            },
        }
    }

    fn open(&mut self, leader: NodeId, endpoint: Endpoint) {
        self.next += 1;
        let id = LinkId(self.next);
        let cancel = self.cancel.child_token();
        let task = run_link(
            id,
            leader,
            endpoint,
            Arc::clone(&self.transport),
            self.mailbox.clone(),
            cancel.clone(),
        );
        // The task tells of its own end, whatever ends it; the guard below ends it with the link.
        self.runtime
            .spawn(task.instrument(info_span!("leader-link", %leader)));
        self.links.insert(
            leader,
            Link {
                id,
                outgoing: None,
                _cancel: cancel.drop_guard(),
            },
        );
    }

    /// Takes the opened stream into use; `false` where the link is of the past.
    pub(crate) fn opened(
        &mut self,
        leader: NodeId,
        id: LinkId,
        outgoing: mpsc::Sender<FollowerMessage>,
    ) -> bool {
        match self.links.get_mut(&leader) {
            Some(link) if link.id == id => {
                link.outgoing = Some(outgoing);
                true
            }
            _ => false,
        }
    }

    /// Drops a link that has ended; `false` where it is of the past.
    pub(crate) fn closed(&mut self, leader: NodeId, id: LinkId) -> bool {
        let current = self.links.get(&leader).is_some_and(|link| link.id == id);
        if current {
            self.links.remove(&leader);
        }
        current
    }

    pub(crate) fn is_current(&self, leader: NodeId, id: LinkId) -> bool {
        self.links.get(&leader).is_some_and(|link| link.id == id)
    }
}

async fn run_link(
    id: LinkId,
    leader: NodeId,
    endpoint: Endpoint,
    transport: Arc<dyn ReplicationTransport>,
    mailbox: Mailbox,
    cancel: CancellationToken,
) {
    let pump = async {
        let mut stream = transport.open(leader, &endpoint).await?;
        mailbox.notify(Mail::LeaderStreamOpened {
            leader,
            link: id,
            outgoing: stream.outgoing,
        });
        while let Some(message) = stream.incoming.recv().await {
            if !mailbox
                .send(Mail::FromLeader {
                    from: leader,
                    link: id,
                    message,
                })
                .await
            {
                break;
            }
        }
        Ok::<_, crate::transport::TransportError>(())
    };
    if let Some(Err(error)) = cancel.run_until_cancelled(pump).await {
        debug!(%leader, %error, "no stream to the leader");
    }
    mailbox.notify(Mail::LeaderStreamClosed { leader, link: id });
}
