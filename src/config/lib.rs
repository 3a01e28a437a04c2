//! Settings: of a topic, by Kafka's names, and of a node. Every one has a default, a unit and a
//! range; what is out of range is refused by name.

mod node;
mod topic;

pub use node::NodeSettings;
pub use topic::{InvalidSetting, TopicSettings};
