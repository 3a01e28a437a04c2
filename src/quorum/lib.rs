//! The metadata quorum: openraft on sled.
