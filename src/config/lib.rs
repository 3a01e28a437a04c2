//! Settings: of a topic, by Kafka's names, and of a node, in layers. Every one has a default, a unit
//! and a range; what is unknown or out of range is refused by name and place.

mod key;
mod layers;
mod node;
mod topic;
mod units;

pub use key::{KEYS, Key, Kind};
pub use layers::{ConfigError, Layers, Resolved, Setting};
pub use node::{COMMIT_BYTES, INTERNAL_CONNECTIONS, NodeSettings, OTHER_REQUEST_BYTES};
pub use topic::{InvalidSetting, TopicSettings};
pub use units::{format_bytes, format_duration, parse_bytes, parse_duration};
