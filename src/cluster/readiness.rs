//! Readiness of a node that differs from its peers: a pure decision.
//!
//! If two nodes differ, at most the outvoted one becomes unready. Only the peers that this node reaches vote, and in a
//! cluster of three or more a single peer never suffices to outvote it.

use super::peer::{IncompatibleReason, NodeInfo, State};

/// Returns the index of a peer that makes this node unready, if there is one.
pub fn readiness_blocker(own: &NodeInfo, peers: &[(&State, Option<&NodeInfo>)]) -> Option<usize> {
    // A peer that fails to prove its identity has no vote, whatever it reported before.
    let reached = || {
        peers.iter().enumerate().filter_map(|(index, (state, node_info))| match state {
            State::Healthy
            | State::Incompatible(
                IncompatibleReason::SaltDiffers
                | IncompatibleReason::CopiedData
                | IncompatibleReason::Outdated
                | IncompatibleReason::OutdatedHere
                | IncompatibleReason::ModeDiffers,
            ) => Some((index, *state, (*node_info)?)),
            State::Unknown
            | State::Down
            | State::Myself
            | State::Incompatible(IncompatibleReason::Identity(_) | IncompatibleReason::Tls(_)) => None,
        })
    };
    let count_with = |salt: Option<u64>| reached().filter(|(.., peer)| peer.salt == salt).count();
    let outdated_count = reached()
        .filter(|(_, state, _)| **state == State::Incompatible(IncompatibleReason::OutdatedHere))
        .count();
    let blocking = reached().find(|(_, state, peer)| match state {
        State::Incompatible(IncompatibleReason::SaltDiffers) => {
            count_with(peer.salt) > 1 + count_with(own.salt)
        }
        State::Incompatible(IncompatibleReason::OutdatedHere) => 2 * outdated_count > reached().count(),
        // Both hold the same data, so either may serve: the one with the larger random number becomes unready.
        State::Incompatible(IncompatibleReason::CopiedData) => own.instance > peer.instance,
        _ => false,
    });
    blocking.map(|(index, ..)| index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::peer::IdentityError;
    use crate::tls::PeerTlsError;

    fn node(instance: u64, salt: u64) -> NodeInfo {
        NodeInfo { instance, salt: Some(salt), has_entries: true, ..NodeInfo::default() }
    }

    /// Checks the readiness of a node with salt 7 and random number 5, given the states and salts of its peers.
    fn check(peers: &[(State, u64)], expected: Option<usize>) {
        let peers: Vec<_> = peers
            .iter()
            .zip(4..)
            .map(|((state, salt), instance)| {
                (state.clone(), node(if instance == 5 { 9 } else { instance }, *salt))
            })
            .collect();
        let peers: Vec<_> = peers.iter().map(|(state, node)| (state, Some(node))).collect();
        assert_eq!(readiness_blocker(&node(5, 7), &peers), expected, "{peers:?}");
    }

    #[test]
    fn a_node_with_an_odd_salt_is_outvoted() {
        let differs = || State::Incompatible(IncompatibleReason::SaltDiffers);
        // A tie of one against one: both serve.
        check(&[(differs(), 8)], None);
        check(&[(differs(), 8), (State::Healthy, 7)], None);
        check(&[(differs(), 8), (differs(), 8)], Some(0));
        check(&[(State::Healthy, 7), (differs(), 8), (differs(), 8)], None);
        check(&[(State::Healthy, 7), (differs(), 8), (differs(), 8), (differs(), 8)], Some(1));
        // Three salts on three nodes.
        check(&[(differs(), 8), (differs(), 9)], None);
        // Unreachable peers do not vote.
        check(&[(differs(), 8), (State::Down, 8)], None);
    }

    #[test]
    fn a_node_with_old_data_is_outvoted() {
        let outdated = || State::Incompatible(IncompatibleReason::OutdatedHere);
        check(&[(outdated(), 7)], Some(0));
        check(&[(State::Healthy, 7), (outdated(), 7)], None);
        check(&[(State::Healthy, 7), (outdated(), 7), (outdated(), 7)], Some(1));
        check(&[(State::Down, 7), (outdated(), 7)], Some(1));
        check(&[(State::Incompatible(IncompatibleReason::Outdated), 7)], None);
    }

    #[test]
    fn one_of_two_nodes_with_copied_data_becomes_unready() {
        let copied = || State::Incompatible(IncompatibleReason::CopiedData);
        check(&[(copied(), 7)], Some(0));
        check(&[(State::Healthy, 7), (copied(), 7)], None);
    }

    #[test]
    fn credentials_certificates_and_mode_never_block_readiness() {
        for reason in [
            IncompatibleReason::Identity(IdentityError::ApiKey),
            IncompatibleReason::Identity(IdentityError::SecretRefused),
            IncompatibleReason::Identity(IdentityError::Unproven),
            IncompatibleReason::Tls(PeerTlsError::Expired),
            IncompatibleReason::ModeDiffers,
        ] {
            check(&[(State::Incompatible(reason), 8), (State::Incompatible(reason), 8)], None);
        }
    }
}
