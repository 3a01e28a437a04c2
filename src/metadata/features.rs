//! Feature levels: what `apply` does depends on the level in the image and never on the binary, so
//! that nodes of two versions build the same image while a cluster is upgraded node by node.
//!
//! Each broker registers the levels that its binary speaks, the image keeps them, and the level
//! rises only to one that all of them speak; it never falls. A node whose binary does not speak the
//! image's level must stop ([`check_level`]).

use quorate_types::ErrorCode;

use crate::apply::Change;
use crate::command::Outcome;
use crate::event::EventKind;

/// The lowest feature level that this binary speaks.
pub const MIN_LEVEL: u32 = 1;
/// The highest.
pub const MAX_LEVEL: u32 = 1;

/// An image at a level that this binary does not speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the cluster is at feature level {0}, this program speaks {MIN_LEVEL} to {MAX_LEVEL}: run the \
     version that the other nodes run"
)]
pub struct UnknownLevel(pub u32);

/// Whether this binary can go on with an image of that level.
///
/// # Errors
/// [`UnknownLevel`]: the node must stop, its image would drift.
pub fn check_level(level: u32) -> Result<(), UnknownLevel> {
    if (MIN_LEVEL..=MAX_LEVEL).contains(&level) {
        Ok(())
    } else {
        Err(UnknownLevel(level))
    }
}

/// The level of an image, and the only one of a broker, where none is written: that of the first
/// version.
pub(crate) fn first_level() -> u32 {
    1
}

pub(crate) fn is_first_level(level: &u32) -> bool {
    *level == first_level()
}

impl Change<'_> {
    pub(crate) fn set_feature(&mut self, level: u32) -> Outcome {
        let now = self.image.feature_level;
        if level == now {
            return Outcome::Done;
        }
        if level < now {
            return Outcome::refused(
                ErrorCode::InvalidRequest,
                format!("the cluster is at feature level {now}, and the level never falls"),
            );
        }
        // Without brokers nobody has said what it speaks.
        if self.image.brokers.is_empty() {
            let message = "no broker is registered".to_owned();
            return Outcome::refused(ErrorCode::BrokerNotAvailable, message);
        }
        let brokers = self.image.brokers.values();
        let without: Vec<String> = brokers
            .filter(|broker| level < broker.min_level || level > broker.max_level)
            .map(|broker| {
                let (node, min, max) = (broker.node, broker.min_level, broker.max_level);
                format!("broker {node} speaks {min} to {max}")
            })
            .collect();
        if !without.is_empty() {
            let who = without.join(", ");
            let message = format!("not every broker speaks feature level {level}: {who}");
            return Outcome::refused(ErrorCode::UnsupportedVersion, message);
        }
        self.image.feature_level = level;
        self.tell(EventKind::FeatureLevelRaised { level }, "asked for");
        Outcome::Done
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::{Cluster, node, register};
    use crate::{Command, EventKind, MetadataImage, Outcome};

    use super::*;

    fn speaks(cluster: &mut Cluster, id: u32, min_level: u32, max_level: u32) -> Outcome {
        cluster.run(Command::RegisterBroker(crate::RegisterBroker {
            min_level,
            max_level,
            ..register(id, 1, id as u8, 1)
        }))
    }

    fn refused(outcome: &Outcome) -> ErrorCode {
        match outcome {
            Outcome::Refused(refusal) => refusal.code,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_level_rises_only_to_what_every_registered_broker_speaks_and_never_falls() {
        let mut cluster = Cluster::default();
        assert_eq!(cluster.image.feature_level(), 1);
        let nobody = cluster.run(Command::SetFeature { level: 2 });
        assert_eq!(refused(&nobody), ErrorCode::BrokerNotAvailable);
        speaks(&mut cluster, 1, 1, 3);
        speaks(&mut cluster, 2, 1, 1);
        let outcome = cluster.run(Command::SetFeature { level: 2 });
        assert_eq!(refused(&outcome), ErrorCode::UnsupportedVersion);
        assert!(format!("{outcome:?}").contains("broker 2 speaks 1 to 1"));
        // Node 2 comes back with a newer version.
        let newer = crate::RegisterBroker {
            max_level: 2,
            ..register(2, 2, 2, 1)
        };
        cluster.run(Command::RegisterBroker(newer));
        let envelope = cluster.envelope(vec![Command::SetFeature { level: 2 }]);
        let at = cluster.at();
        let applied = cluster.image.apply(&envelope, at);
        assert_eq!(applied.outcomes, [Outcome::Done]);
        assert_eq!(
            applied.events[0].kind,
            EventKind::FeatureLevelRaised { level: 2 }
        );
        assert_eq!(cluster.image.feature_level(), 2);
        assert_eq!(cluster.run(Command::SetFeature { level: 2 }), Outcome::Done);
        let fall = cluster.run(Command::SetFeature { level: 1 });
        assert_eq!(refused(&fall), ErrorCode::InvalidRequest);
        // An older version does not get in any more, a newer one that knows the level does.
        let old = speaks(&mut cluster, 3, 1, 1);
        assert_eq!(refused(&old), ErrorCode::UnsupportedVersion);
        assert!(matches!(
            speaks(&mut cluster, 3, 2, 9),
            Outcome::Registered { .. }
        ));
        let broker = cluster.image.broker(node(3)).unwrap();
        assert_eq!((broker.min_level, broker.max_level), (2, 9));
    }

    #[test]
    fn an_image_of_the_first_level_is_written_as_before_there_were_levels() {
        let mut cluster = Cluster::default();
        speaks(&mut cluster, 1, 1, 1);
        let bytes = cluster.image.encode();
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains("level"), "{text}");
        assert_eq!(MetadataImage::decode(&bytes).unwrap(), cluster.image);
    }

    #[test]
    fn an_image_at_a_level_that_this_program_does_not_speak_is_refused() {
        let mut cluster = Cluster::default();
        let level = MAX_LEVEL + 1;
        speaks(&mut cluster, 1, 1, level);
        cluster.run(Command::SetFeature { level });
        let error = MetadataImage::decode(&cluster.image.encode()).unwrap_err();
        assert!(error.to_string().contains("feature level"), "{error}");
    }
}
