//! The small facts of a data directory: whose it is, how often it was started, whether its last
//! life ended cleanly.

use std::io;

use quorate_types::{BootId, BrokerEpoch, ClusterId, DirectoryId, NodeId};

use crate::checkpoint::{frame, unframe};
use crate::dir::{Dir, read_file, replace_file};

pub(crate) const META: &str = "meta.properties";
pub(crate) const STARTS: &str = "start-count";
pub(crate) const CLEAN: &str = "clean-shutdown";
const FORMAT: &str = "1";

/// What `meta.properties` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) node: NodeId,
    pub(crate) directory: DirectoryId,
    pub(crate) cluster: Option<ClusterId>,
}

impl Meta {
    pub(crate) fn to_text(self) -> String {
        let mut text = format!(
            "version={FORMAT}\nnode.id={}\ndirectory.id={}\n",
            self.node, self.directory
        );
        if let Some(cluster) = self.cluster {
            text.push_str(&format!("cluster.id={cluster}\n"));
        }
        text
    }

    /// Reads the file's text; the error says which line is wrong.
    pub(crate) fn from_text(text: &str) -> Result<Self, String> {
        let value = |key: &str| {
            text.lines()
                .filter_map(|line| line.split_once('='))
                .find(|(found, _)| found.trim() == key)
                .map(|(_, value)| value.trim())
        };
        let needed = |key: &str| value(key).ok_or_else(|| format!("there is no {key}"));
        let version = needed("version")?;
        if version != FORMAT {
            return Err(format!(
                "format version {version} is not known to this program"
            ));
        }
        let wrong = |key: &str| format!("{key} is not readable");
        Ok(Self {
            node: needed("node.id")?.parse().map_err(|_| wrong("node.id"))?,
            directory: needed("directory.id")?
                .parse()
                .map_err(|_| wrong("directory.id"))?,
            cluster: match value("cluster.id") {
                Some(text) => Some(text.parse().map_err(|_| wrong("cluster.id"))?),
                None => None,
            },
        })
    }
}

/// Counts this start, durably; gives the new count.
pub(crate) fn count_start<D: Dir>(dir: &D) -> io::Result<u64> {
    let before = read_file(dir, STARTS)?
        .as_deref()
        .and_then(unframe)
        .and_then(|body| body.try_into().ok())
        .map_or(0, u64::from_be_bytes);
    replace_file(dir, ".", STARTS, &frame(&(before + 1).to_be_bytes()))?;
    Ok(before + 1)
}

/// Takes the clean mark away, durably; gives the broker epoch that it was of.
pub(crate) fn take_clean_mark<D: Dir>(dir: &D) -> io::Result<Option<BrokerEpoch>> {
    let Some(file) = read_file(dir, CLEAN)? else {
        return Ok(None);
    };
    dir.remove_file(CLEAN)?;
    dir.sync_dir(".")?;
    let epoch = unframe(&file).and_then(|body| body.get(..8)?.try_into().ok());
    Ok(epoch.map(|bytes| BrokerEpoch::new(u64::from_be_bytes(bytes))))
}

pub(crate) fn write_clean_mark<D: Dir>(dir: &D, epoch: BrokerEpoch) -> io::Result<()> {
    replace_file(dir, ".", CLEAN, &frame(&epoch.get().to_be_bytes()))
}

const BOOT: &str = "boot-id";

/// Notes the machine's present boot; gives the one noted before.
pub(crate) fn note_boot<D: Dir>(dir: &D, boot: BootId) -> io::Result<Option<BootId>> {
    let before = read_file(dir, BOOT)?
        .as_deref()
        .and_then(unframe)
        .and_then(BootId::from_slice);
    if before != Some(boot) {
        replace_file(dir, ".", BOOT, &frame(boot.as_bytes()))?;
    }
    Ok(before)
}
