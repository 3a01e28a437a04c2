//! The small facts of a data directory: whose it is, how often it was started, whether its last
//! life ended cleanly, which partitions have a log in it.

use std::collections::BTreeSet;
use std::io;

use quorate_types::{
    BootId, BrokerEpoch, ClusterId, DirectoryId, NodeId, PartitionId, TopicId, TopicPartition,
};

use crate::checkpoint::{crc, frame, unframe};
use crate::dir::{Dir, read_file, replace_file};

pub(crate) const META: &str = "meta.properties";
pub(crate) const STARTS: &str = "start-count";
pub(crate) const CLEAN: &str = "clean-shutdown";
const FORMAT: &str = "1";
const CRC_KEY: &str = "crc=";

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
        let crc = crc(text.as_bytes());
        text.push_str(&format!("{CRC_KEY}{crc:08x}\n"));
        text
    }

    /// Reads the file's text; the error says which line is wrong. Its last line is the CRC-32C of
    /// those before: an id with one digit changed is an id too, and the node would speak under it.
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
        let changed = || {
            "the crc in its last line does not fit the lines before: the file was changed or \
             damaged; put it back as it was, or empty the whole data directory so that the node \
             joins as a new member"
                .to_owned()
        };
        let body = text.find(CRC_KEY).map_or(text, |at| &text[..at]);
        if text[body.len()..] != format!("{CRC_KEY}{:08x}\n", crc(body.as_bytes())) {
            return Err(changed());
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

/// What an unreadable file of the directory's own leads to.
fn unusable(name: &str, why: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!(
            "{name} {why}: put it back as it was, or empty the whole data directory so that the \
             node joins as a new member"
        ),
    )
}

/// Begins the files that count and list, before the directory has an identity: where it has one,
/// they must be there.
pub(crate) fn begin_directory<D: Dir>(dir: &D) -> io::Result<()> {
    replace_file(dir, ".", STARTS, &frame(&0_u64.to_be_bytes()))?;
    write_hosted(dir, &BTreeSet::new())
}

/// Counts this start, durably; gives the new count. A count that went back would make this life
/// one of the past, whose every proposal is refused.
pub(crate) fn count_start<D: Dir>(dir: &D) -> io::Result<u64> {
    let file = read_file(dir, STARTS)?.ok_or_else(|| unusable(STARTS, "is missing"))?;
    let before = unframe(&file)
        .and_then(|body| body.try_into().ok())
        .map(u64::from_be_bytes)
        .ok_or_else(|| {
            unusable(
                STARTS,
                "is damaged: its checksum or its length does not fit",
            )
        })?;
    replace_file(dir, ".", STARTS, &frame(&(before + 1).to_be_bytes()))?;
    Ok(before + 1)
}

pub(crate) const HOSTED: &str = "hosted";
const HOSTED_LEN: usize = 20;

/// The partitions whose logs were made here: one that is listed and has no directory is lost.
/// None where there is no list.
pub(crate) fn read_hosted<D: Dir>(dir: &D) -> io::Result<Option<BTreeSet<TopicPartition>>> {
    let Some(file) = read_file(dir, HOSTED)? else {
        return Ok(None);
    };
    let ids = unframe(&file).and_then(hosted_of).ok_or_else(|| {
        unusable(
            HOSTED,
            "is damaged: its checksum or its length does not fit",
        )
    })?;
    Ok(Some(ids))
}

/// The partitions that the list's body names; none where it is no list.
pub(crate) fn hosted_of(body: &[u8]) -> Option<BTreeSet<TopicPartition>> {
    let (ids, []) = body.as_chunks::<HOSTED_LEN>() else {
        return None;
    };
    let ids = ids.iter().filter_map(|id| {
        let (topic, partition) = id.split_first_chunk::<16>()?;
        let partition = u32::from_be_bytes(partition.try_into().ok()?);
        let topic = TopicId::from_bytes(*topic);
        Some(TopicPartition::new(topic, PartitionId::new(partition)))
    });
    Some(ids.collect())
}

pub(crate) fn write_hosted<D: Dir>(dir: &D, ids: &BTreeSet<TopicPartition>) -> io::Result<()> {
    let mut body = Vec::with_capacity(ids.len() * HOSTED_LEN);
    for id in ids {
        body.extend_from_slice(id.topic_id.as_bytes());
        body.extend_from_slice(&id.partition.get().to_be_bytes());
    }
    replace_file(dir, ".", HOSTED, &frame(&body))
}

/// The broker epoch that the clean mark is of.
pub(crate) fn read_clean_mark<D: Dir>(dir: &D) -> io::Result<Option<BrokerEpoch>> {
    let file = read_file(dir, CLEAN)?;
    let epoch = file
        .as_deref()
        .and_then(unframe)
        .and_then(|body| body.get(..8)?.try_into().ok());
    Ok(epoch.map(|bytes| BrokerEpoch::new(u64::from_be_bytes(bytes))))
}

/// Takes the clean mark away, durably.
pub(crate) fn remove_clean_mark<D: Dir>(dir: &D) -> io::Result<()> {
    match dir.remove_file(CLEAN) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => dir.sync_dir("."),
    }
}

pub(crate) fn write_clean_mark<D: Dir>(dir: &D, epoch: BrokerEpoch) -> io::Result<()> {
    replace_file(dir, ".", CLEAN, &frame(&epoch.get().to_be_bytes()))
}

pub(crate) const BOOT: &str = "boot-id";

/// The machine's boot as noted last.
pub(crate) fn read_boot<D: Dir>(dir: &D) -> io::Result<Option<BootId>> {
    let file = read_file(dir, BOOT)?;
    Ok(file
        .as_deref()
        .and_then(unframe)
        .and_then(BootId::from_slice))
}

/// Notes the machine's present boot, durably.
pub(crate) fn note_boot<D: Dir>(dir: &D, boot: BootId) -> io::Result<()> {
    replace_file(dir, ".", BOOT, &frame(boot.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identity_is_read_back_and_never_from_a_changed_file() {
        let meta = Meta {
            node: NodeId::new(3),
            directory: DirectoryId::from_bytes([7; 16]),
            cluster: Some(ClusterId::from_bytes([9; 16])),
        };
        let text = meta.to_text();
        assert_eq!(Meta::from_text(&text), Ok(meta));
        for at in 0..text.len() {
            for bit in 0..7 {
                let mut changed = text.clone().into_bytes();
                changed[at] ^= 1 << bit;
                let changed = String::from_utf8(changed).unwrap();
                assert!(Meta::from_text(&changed).is_err(), "{changed}");
            }
            assert!(Meta::from_text(&text[..at]).is_err(), "cut at {at}");
        }
    }
}
