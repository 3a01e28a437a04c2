//! Commands, outcomes and images as bytes. JSON behind a version byte: it is read field by field,
//! and what this version does not know is refused instead of dropped in silence, since images that
//! are built from different readings drift apart.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use xxhash_rust::xxh3::xxh3_64;

use crate::command::{Envelope, Outcome};
use crate::features::{UnknownLevel, check_level};
use crate::image::{MetadataImage, Stored};

const VERSION: u8 = 1;

/// Bytes that are no command or outcome of this version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Written by a newer program.
    #[error("metadata format {0} is not known to this program: upgrade it")]
    Version(u8),
    /// Not readable.
    #[error("metadata entry is not readable: {0}")]
    Malformed(String),
}

/// Bytes that are no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// The checksum does not fit.
    #[error("metadata snapshot is torn or corrupt")]
    Checksum,
    /// As for commands.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// Made by commands that this program may not know.
    #[error(transparent)]
    Level(#[from] UnknownLevel),
}

pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let mut out = vec![VERSION];
    serde_json::to_writer(&mut out, value).expect("metadata types have string keys only");
    out
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    match bytes.split_first() {
        Some((&VERSION, body)) => {
            serde_json::from_slice(body).map_err(|error| CodecError::Malformed(error.to_string()))
        }
        Some((version, _)) => Err(CodecError::Version(*version)),
        None => Err(CodecError::Malformed("it is empty".to_owned())),
    }
}

impl Envelope {
    /// The envelope as bytes.
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// Reads an envelope.
    ///
    /// # Errors
    /// [`CodecError`] for anything unknown: the node that meets it must stop.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        decode(bytes)
    }
}

impl Outcome {
    /// The outcome as bytes.
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// Reads an outcome.
    ///
    /// # Errors
    /// [`CodecError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        decode(bytes)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Snapshot {
    checksum: u64,
    image: Box<serde_json::value::RawValue>,
}

impl MetadataImage {
    /// The whole image as bytes; equal images give equal bytes.
    pub fn encode(&self) -> Vec<u8> {
        let image = serde_json::value::to_raw_value(&self.to_stored())
            .expect("metadata types have string keys only");
        encode(&Snapshot {
            checksum: xxh3_64(image.get().as_bytes()),
            image,
        })
    }

    /// Reads an image.
    ///
    /// # Errors
    /// [`ImageError`]; a torn one is recognised.
    pub fn decode(bytes: &[u8]) -> Result<Self, ImageError> {
        let snapshot: Snapshot = decode(bytes)?;
        if xxh3_64(snapshot.image.get().as_bytes()) != snapshot.checksum {
            return Err(ImageError::Checksum);
        }
        let stored: Stored = serde_json::from_str(snapshot.image.get())
            .map_err(|error| CodecError::Malformed(error.to_string()))?;
        let image = Self::from_stored(stored);
        check_level(image.feature_level())?;
        Ok(image)
    }
}
