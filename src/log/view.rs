//! What the small files of a partition say, to be shown.

use quorate_record::{LeaderEpochCache, ProducerStates};
use quorate_types::Offset;

use crate::checkpoint::{POSITIONS_LEN, Positions, decode_epochs, unframe};
use crate::dir::Dir;
use crate::error::{LogError, at};
use crate::finding::Findings;
use crate::partition_log::{EPOCHS_FILE, POSITIONS_FILE};
use crate::segment::base_of;
use crate::verify_files::read;

/// A whole record of the positions file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredPositions {
    /// Where it stands in the file, in bytes.
    pub position: u64,
    /// High watermark.
    pub high_watermark: Offset,
    /// Everything below was on the disk.
    pub recovery_point: Offset,
    /// First offset held.
    pub log_start: Offset,
}

/// The files beside a partition's segments; what is damaged is left out.
#[derive(Debug, Clone, Default)]
pub struct PartitionFiles {
    /// All whole records; the last one counts.
    pub positions: Vec<StoredPositions>,
    /// Which leader epoch begins where.
    pub epochs: LeaderEpochCache,
    /// The producers as of an offset.
    pub snapshots: Vec<(Offset, ProducerStates)>,
}

impl PartitionFiles {
    /// Reads them; `verify_partition` says what is wrong with those left out.
    ///
    /// # Errors
    /// [`LogError`] where the directory cannot be listed.
    pub fn read<D: Dir>(dir: &D, folder: &str) -> Result<Self, LogError> {
        let mut unsaid = Findings::new(std::path::Path::new(""));
        let mut file = |name: &str| read(dir, &format!("{folder}/{name}"), &mut unsaid);
        let positions = file(POSITIONS_FILE).unwrap_or_default();
        let positions = positions
            .chunks_exact(POSITIONS_LEN)
            .enumerate()
            .filter_map(|(number, record)| {
                let found = Positions::decode(record)?;
                Some(StoredPositions {
                    position: (number * POSITIONS_LEN) as u64,
                    high_watermark: found.high_watermark,
                    recovery_point: found.recovery_point,
                    log_start: found.log_start,
                })
            })
            .collect();
        let epochs = file(EPOCHS_FILE).as_deref().and_then(decode_epochs);
        let mut snapshots = Vec::new();
        for entry in dir.list(folder).map_err(at(folder))? {
            let Some(base) = base_of(&entry.name, "snapshot") else {
                continue;
            };
            let states = file(&entry.name)
                .as_deref()
                .and_then(unframe)
                .and_then(ProducerStates::decode);
            snapshots.extend(states.map(|states| (base, states)));
        }
        Ok(Self {
            positions,
            epochs: epochs.unwrap_or_default(),
            snapshots,
        })
    }
}
