//! Bytes as what the metadata quorum stores: envelopes, outcomes, an image; and lines of envelopes,
//! applied one after the other.

use quorate_metadata::{Command, Envelope, LogId, MetadataImage, Outcome};
use quorate_types::{RaftIndex, Term};

/// Topics of more partitions are left out: they cost time and show nothing more.
const PARTITIONS: u32 = 50;

/// Decodes all of it, and each line as an envelope for one image.
///
/// # Panics
/// Where what was read is not the same when it is written and read again.
pub fn metadata(bytes: &[u8]) {
    if let Ok(envelope) = Envelope::decode(bytes) {
        assert_eq!(Envelope::decode(&envelope.encode()), Ok(envelope));
    }
    if let Ok(outcome) = Outcome::decode(bytes) {
        assert_eq!(Outcome::decode(&outcome.encode()), Ok(outcome));
    }
    if let Ok(image) = MetadataImage::decode(bytes) {
        same_when_read_again(&image);
    }
    let mut image = MetadataImage::new();
    let lines = bytes.split(|byte| *byte == b'\n');
    let envelopes = lines.filter_map(|line| Envelope::decode(line).ok());
    for (index, envelope) in (1..).zip(envelopes.filter(is_small)) {
        let at = LogId {
            term: Term::new(1),
            index: RaftIndex::new(index),
        };
        let _outcomes = image.apply(&envelope, at);
    }
    same_when_read_again(&image);
}

fn is_small(envelope: &Envelope) -> bool {
    envelope.commands.iter().all(|command| match command {
        Command::CreateTopic(topic) => topic.partitions <= PARTITIONS,
        _ => true,
    })
}

fn same_when_read_again(image: &MetadataImage) {
    let bytes = image.encode();
    match MetadataImage::decode(&bytes) {
        Ok(again) => assert!(again.encode() == bytes, "an image reads differently"),
        Err(error) => panic!("an image that was written is refused: {error}"),
    }
}
