//! Pages of long answers, which stay below what any client takes in one message (4 MiB by gRPC's
//! default).

use quorate_proto::v1;
use quorate_types::{PartitionId, TopicPartition};
use quorate_wire::ErrorInfo;

use crate::edge::Edge;
use crate::status::invalid;

/// Bytes of a page, about: its last row may pass it.
const BYTES: usize = 1 << 20;

/// What a page has room for.
#[derive(Debug)]
pub(super) struct Page {
    left: usize,
    full: bool,
}

impl Default for Page {
    fn default() -> Self {
        Self {
            left: BYTES,
            full: false,
        }
    }
}

impl Page {
    /// As many rows as fit.
    pub(super) fn take<T>(
        &mut self,
        rows: impl Iterator<Item = T>,
        bytes: impl Fn(&T) -> usize,
    ) -> Vec<T> {
        let mut taken = Vec::new();
        for row in rows {
            if self.left == 0 {
                self.full = true;
                break;
            }
            self.left = self.left.saturating_sub(bytes(&row));
            taken.push(row);
        }
        taken
    }

    /// Whether something did not fit.
    pub(super) fn is_full(&self) -> bool {
        self.full
    }
}

/// Where the page before ended.
pub(super) fn place(of: &v1::PartitionPlace) -> Result<TopicPartition, ErrorInfo> {
    let topic_id = quorate_wire::topic_id(&of.topic_id).map_err(|error| invalid(&error))?;
    let partition: PartitionId = Edge::partition(of.partition)?;
    Ok(TopicPartition::new(topic_id, partition))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_ends_with_the_row_that_fills_it() {
        let take = |rows: usize, bytes| {
            let mut page = Page::default();
            let taken = page.take(0..rows, |_| bytes);
            (taken.len(), page.is_full())
        };
        assert_eq!(take(0, 1), (0, false));
        assert_eq!(take(4, BYTES / 4), (4, false));
        assert_eq!(take(5, BYTES / 4), (4, true));
        // One that is larger than a page is a page.
        assert_eq!(take(2, BYTES * 2), (1, true));
        let mut page = Page::default();
        assert_eq!(page.take(0..1, |_| BYTES), [0]);
        assert_eq!((page.take(0..0, |_| 1).len(), page.is_full()), (0, false));
        assert_eq!((page.take(0..1, |_| 1).len(), page.is_full()), (0, true));
    }
}
