//! Settings: topic configuration and node settings.
