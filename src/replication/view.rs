//! What one image says about one partition, from where this broker stands: every step uses one
//! such snapshot.

use std::sync::Arc;

use quorate_config::TopicSettings;
use quorate_metadata::{BrokerState, MetadataImage, Registration};
use quorate_types::{BrokerEpoch, NodeId, RaftIndex, TopicPartition};

/// A partition's registration with all that is judged by it.
#[derive(Debug, Clone, PartialEq)]
pub struct PartitionView {
    /// The image's place in the metadata log.
    pub applied: RaftIndex,
    /// The registration.
    pub registration: Arc<Registration>,
    /// The topic's settings.
    pub settings: TopicSettings,
    /// This broker.
    pub me: NodeId,
    /// This process's registration; zero before it has one.
    pub my_epoch: BrokerEpoch,
    /// The image shows this process's own registration, and not fenced: it may take roles.
    pub serving: bool,
    /// The replicas' brokers.
    pub brokers: Vec<(NodeId, BrokerEpoch, BrokerState)>,
}

impl PartitionView {
    /// What `image` says; none where it does not know the partition. `my_epoch` is that of this
    /// very process.
    pub fn of(
        image: &MetadataImage,
        id: &TopicPartition,
        me: NodeId,
        my_epoch: Option<BrokerEpoch>,
    ) -> Option<Self> {
        let registration = Arc::clone(image.partition(id)?);
        let settings = image.topic(id.topic_id)?.settings.clone();
        let registered = |node| image.broker(node);
        let serving = registered(me).is_some_and(|broker| {
            Some(broker.epoch) == my_epoch && broker.state != BrokerState::Fenced
        });
        let brokers = registration
            .replicas
            .iter()
            .filter_map(|replica| registered(replica.node))
            .map(|broker| (broker.node, broker.epoch, broker.state))
            .collect();
        Some(Self {
            applied: image.applied().index,
            registration,
            settings,
            me,
            my_epoch: my_epoch.unwrap_or_default(),
            serving,
            brokers,
        })
    }

    /// The registration of a replica's broker that may be in an ISR (KIP-903).
    pub(crate) fn eligible_epoch(&self, node: NodeId) -> Option<BrokerEpoch> {
        self.brokers
            .iter()
            .find(|(id, _, state)| *id == node && *state == BrokerState::Active)
            .map(|(_, epoch, _)| *epoch)
    }
}
