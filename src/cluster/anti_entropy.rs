//! Replication requests to a peer: pushes of local changes, and anti-entropy. Each response is validated against its
//! request.

use std::cell::RefCell;
use std::collections::HashMap;

use super::peer::{Comparison, Difference, PeerError, Pushed};
use super::remarks::Remark;
use super::transport::Transport;
use super::{Context, Network, PeerTask, difference, settled_count};
use crate::limits::{
    BUCKETS_COUNT, CHANGES_PER_MESSAGE_MAX, PEER_REQUEST_TIMEOUT, VERSIONS_BYTES_PER_MESSAGE,
};
use crate::model::{Change, EntryId, HlcTimestamp, Timestamp};
use crate::service::Error;
use crate::storage::root_of;
use crate::wire::replication::{
    decode_applied, decode_digests, decode_entries, decode_versions, encode_digest,
};
use crate::wire::{DecodeError, Message};

impl<N: Network> Context<N> {
    /// Records a problem of a peer, and logs it if it is new.
    pub(super) fn remark(&self, peer: &RefCell<PeerTask>, remark: Remark) {
        let mut peer = peer.borrow_mut();
        if !peer.remarks.make(self.network.now_ms(), remark) {
            return;
        }
        let address = &peer.address;
        match remark {
            Remark::IsAhead(ahead_ms) => {
                tracing::warn!(%address, ahead_ms, "peer has versions ahead of this node's clock, which are refused");
            }
            Remark::IsBehind(ahead_ms) => {
                tracing::warn!(%address, ahead_ms, "peer refuses versions that are ahead of its clock");
            }
            Remark::Malformed => tracing::warn!(%address, "peer sends malformed replies"),
        }
    }

    async fn send_message(
        &self,
        transport: &mut Transport<N>,
        message: &Message<'_>,
    ) -> Result<Vec<u8>, PeerError> {
        transport.call(&*self.network, message, PEER_REQUEST_TIMEOUT).await
    }

    /// Sends changes; returns whether the peer refused some because they are ahead of its clock.
    async fn post_changes(
        &self,
        transport: &mut Transport<N>,
        peer: &RefCell<PeerTask>,
        changes: &[Change],
    ) -> Result<bool, PeerError> {
        let salt = self.service.salt.in_use().0.ok_or(PeerError::SaltDiffers)?;
        let reply = self.send_message(transport, &Message::Changes { salt, changes }).await?;
        let reply = decode_applied(&reply, changes.len()).map_err(malformed)?;
        if reply.refused > 0 {
            self.remark(peer, Remark::IsBehind(reply.ahead_ms));
        }
        Ok(reply.refused > 0)
    }

    /// Pushes one page of the local changes after a position of the replication log.
    pub(super) async fn push(
        &self,
        transport: &mut Transport<N>,
        peer: &RefCell<PeerTask>,
        after: i64,
    ) -> Result<Pushed, PeerError> {
        let page = self.service.replication.log_changes(after).await.map_err(store_error)?;
        let has_refused = match page.changes.is_empty() {
            true => false,
            false => self.post_changes(transport, peer, &page.changes).await?,
        };
        Ok(Pushed { sequence: page.sequence, more: page.more, has_refused })
    }

    /// Sends all tombstones to a peer that may lack some. Digests do not cover them, so anti-entropy sends only those of
    /// entries that the peer has, and a third node would bring the rest of the entries back.
    pub(super) async fn send_tombstones(
        &self,
        transport: &mut Transport<N>,
        peer: &RefCell<PeerTask>,
    ) -> Result<(), PeerError> {
        let mut first = 0;
        while first < BUCKETS_COUNT {
            let buckets = (first..BUCKETS_COUNT).collect();
            let versions = self.service.replication.versions(buckets, VERSIONS_BYTES_PER_MESSAGE);
            let page = versions.await.map_err(store_error)?;
            first += page.buckets_count;
            let tombstones: Vec<Change> =
                page.known.into_iter().filter_map(|known| known.tombstone()).collect();
            for group in tombstones.chunks(CHANGES_PER_MESSAGE_MAX) {
                self.post_changes(transport, peer, group).await?;
            }
        }
        Ok(())
    }

    /// Compares the root digests and, if they differ, those of the buckets.
    pub(super) async fn compare_digests(
        &self,
        transport: &mut Transport<N>,
        peer: &RefCell<PeerTask>,
    ) -> Result<Comparison, PeerError> {
        let begun = HlcTimestamp::from_milliseconds(Timestamp::now().as_milliseconds());
        let root = self.service.replication.root_digest().ok_or(PeerError::Refused)?;
        let reply = self.send_message(transport, &Message::Digest(root)).await?;
        // The earlier clock of the two: one that is ahead must not shorten the life of tombstones.
        let peer_time =
            transport.peer_time().map(|time| HlcTimestamp::from_milliseconds(time.as_milliseconds()));
        let begun = peer_time.map_or(begun, |peer_time| begun.min(peer_time));
        let record = |digest| peer.borrow_mut().digest = Some(digest);
        if reply == encode_digest(root).as_bytes() {
            record(root);
            return Ok(Comparison { buckets: Vec::new(), begun });
        }
        let theirs = decode_digests(&reply).map_err(malformed)?;
        record(root_of(&theirs));
        let own = self.service.replication.bucket_digests().map_err(store_error)?;
        let differing = own.iter().zip(&theirs).enumerate().filter(|(_, (own, theirs))| own != theirs);
        Ok(Comparison { buckets: differing.map(|(bucket, _)| bucket).collect(), begun })
    }

    /// Compares the versions of the first of these buckets, as many as the reply covers.
    pub(super) async fn compare_versions(
        &self,
        transport: &mut Transport<N>,
        peer: &RefCell<PeerTask>,
        mut buckets: Vec<usize>,
    ) -> Result<Difference, PeerError> {
        let reply = self.send_message(transport, &Message::Versions(&buckets)).await?;
        let theirs = decode_versions(&reply, &buckets).map_err(malformed)?;
        let buckets_count = theirs.buckets_count;
        buckets.truncate(buckets_count);
        let own = self.service.replication.versions(buckets, usize::MAX).await.map_err(store_error)?;
        let ahead = |version| self.service.replication.ahead_ms(version);
        let ahead: HashMap<EntryId, u64> =
            theirs.known.iter().filter_map(|known| Some((known.id.clone(), ahead(known.version)?))).collect();
        let mut difference = Difference { buckets_count, ..difference(own.known, theirs.known) };
        // Entries that are too far ahead would be refused after the transfer.
        let max_ahead_ms = difference.fetch.iter().filter_map(|id| ahead.get(id)).max();
        if let Some(ahead_ms) = max_ahead_ms {
            self.remark(peer, Remark::IsAhead(*ahead_ms));
            difference.fetch.retain(|id| !ahead.contains_key(id));
        }
        Ok(difference)
    }

    /// Fetches entries and applies them; returns how many of them are settled.
    pub(super) async fn fetch(
        &self,
        transport: &mut Transport<N>,
        peer: &RefCell<PeerTask>,
        ids: &[EntryId],
    ) -> Result<usize, PeerError> {
        let reply = self.send_message(transport, &Message::Entries(ids)).await?;
        let (salt, changes) = decode_entries(&reply, ids).map_err(malformed)?;
        let settled = settled_count(ids, changes.last().map(|change| &change.id));
        let applied = self.service.replication.apply(salt, changes).await.map_err(store_error)?;
        if let Some(ahead_ms) = applied.ahead.iter().map(|(_, ahead_ms)| *ahead_ms).max() {
            self.remark(peer, Remark::IsAhead(ahead_ms));
        }
        Ok(settled)
    }

    /// Sends entries; returns how many of them are settled.
    pub(super) async fn send(
        &self,
        transport: &mut Transport<N>,
        peer: &RefCell<PeerTask>,
        ids: Vec<EntryId>,
    ) -> Result<usize, PeerError> {
        let changes = self.service.replication.changes(ids.clone()).await.map_err(store_error)?;
        let settled = settled_count(&ids, changes.last().map(|change| &change.id));
        for group in changes.chunks(CHANGES_PER_MESSAGE_MAX) {
            // Refused changes are sent again in the next anti-entropy round.
            self.post_changes(transport, peer, group).await?;
        }
        Ok(settled)
    }
}

fn malformed(error: DecodeError) -> PeerError {
    tracing::debug!(%error, "malformed reply from a peer");
    PeerError::Malformed
}

pub(super) fn store_error(error: Error) -> PeerError {
    tracing::debug!(%error, "local store error");
    match error {
        Error::SaltDiffers => PeerError::SaltDiffers,
        _ => PeerError::Refused,
    }
}
