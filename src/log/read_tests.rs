//! What a read gives takes the memory that it fills.

use quorate_types::Offset;
use tempfile::TempDir;

use crate::tests::{AFTER_KILL, append, open};

#[test]
fn a_small_batch_does_not_keep_what_was_read_beside_it() {
    let root = TempDir::new().unwrap();
    let (mut log, _) = open(&root, AFTER_KILL);
    let small = append(&mut log, 1, 1, 0);
    let large = append(&mut log, 1, 20, 1);
    drop(log);
    // Nothing of it is in memory any more, and the second does not fit.
    let (log, _) = open(&root, AFTER_KILL);
    let asked = small.size() + large.size() - 1;
    let read = log.reader().read(Offset::ZERO, log.log_end(), asked);
    let read = read.unwrap();
    assert_eq!(read, *small.bytes());
    let memory = read.try_into_mut().unwrap();
    assert!(
        memory.capacity() < 2 * small.size(),
        "{}",
        memory.capacity()
    );
}
