//! The id that a producer's senders share, and its successors.

use std::time::Duration;

use quorate_proto::v1;
use quorate_proto::v1::producer_client::ProducerClient;
use quorate_types::{ProducerEpoch, ProducerId};
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::client::Client;
use crate::error::ClientError;

/// A node gives an id within so long, or the next one is asked.
const ANSWER: Duration = Duration::from_secs(5);

/// The producer's id, fetched when it is first needed and again when its epochs are used up.
pub(crate) struct ProducerIds {
    client: Client,
    /// With the epoch it begins at.
    current: Mutex<Option<(ProducerId, ProducerEpoch)>>,
}

impl ProducerIds {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            client,
            current: Mutex::default(),
        }
    }

    /// The present id, or the next one for a sender that has used up the epochs of the present one.
    pub(crate) async fn other_than(
        &self,
        used_up: Option<ProducerId>,
    ) -> Result<(ProducerId, ProducerEpoch), ClientError> {
        let mut current = self.current.lock().await;
        if let Some(given) = current.filter(|(id, _)| Some(*id) != used_up) {
            return Ok(given);
        }
        let given = self.fresh().await?;
        *current = Some(given);
        Ok(given)
    }

    async fn fresh(&self) -> Result<(ProducerId, ProducerEpoch), ClientError> {
        let mut last = ClientError::Connection("no node is known".into());
        for node in self.client.nodes() {
            let mut client = ProducerClient::new(self.client.channel(&node)?);
            match timeout(
                ANSWER,
                client.init_producer(v1::InitProducerRequest::default()),
            )
            .await
            {
                Ok(Ok(answer)) => {
                    let answer = answer.into_inner();
                    let id = ProducerId::from_signed(answer.producer_id)
                        .map_err(|error| ClientError::Protocol(error.to_string()))?;
                    let epoch = quorate_wire::producer_epoch(answer.producer_epoch)
                        .map_err(|error| ClientError::Protocol(error.to_string()))?;
                    return Ok((id, epoch));
                }
                Ok(Err(status)) => last = status.into(),
                Err(_) => last = ClientError::Connection(format!("{node}: no answer in time")),
            }
        }
        Err(last)
    }
}
