//! Whether this node should take no requests because of how it differs from its peers: a pure decision.
//!
//! Of two nodes that differ at most the odd one goes out of service. So this node has to be outvoted by the peers that
//! it reaches, and what a single peer is or says never suffices in a cluster of three or more.

use super::peer::{IncompatibleReason, NodeInfo, State};

/// Returns the place of a peer that stands in the way of readiness, if there is one.
pub fn obstacle(own: &NodeInfo, peers: &[(&State, Option<&NodeInfo>)]) -> Option<usize> {
    // A peer that fails to prove its identity has no vote, whatever it said before.
    let reached = || {
        peers.iter().enumerate().filter_map(|(index, (state, introduction))| match state {
            State::Healthy
            | State::Incompatible(
                IncompatibleReason::SaltDiffers
                | IncompatibleReason::CopiedData
                | IncompatibleReason::Outdated
                | IncompatibleReason::OutdatedHere
                | IncompatibleReason::ModeDiffers,
            ) => Some((index, *state, (*introduction)?)),
            State::Unknown
            | State::Down
            | State::Myself
            | State::Incompatible(IncompatibleReason::Identity(_) | IncompatibleReason::Distrust(_)) => None,
        })
    };
    let count_with = |salt: Option<u64>| reached().filter(|(.., peer)| peer.salt == salt).count();
    let outdated_count = reached()
        .filter(|(_, state, _)| **state == State::Incompatible(IncompatibleReason::OutdatedHere))
        .count();
    let found = reached().find(|(_, state, peer)| match state {
        State::Incompatible(IncompatibleReason::SaltDiffers) => {
            count_with(peer.salt) > 1 + count_with(own.salt)
        }
        State::Incompatible(IncompatibleReason::OutdatedHere) => 2 * outdated_count > reached().count(),
        // Both hold the same data, so either may go: the one with the larger random number does.
        State::Incompatible(IncompatibleReason::CopiedData) => own.instance > peer.instance,
        _ => false,
    });
    found.map(|(index, ..)| index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::peer::IdentityError;
    use crate::tls::PeerTlsError;

    fn node(instance: u64, salt: u64) -> NodeInfo {
        NodeInfo { instance, salt: Some(salt), has_entries: true, ..NodeInfo::default() }
    }

    /// The readiness of a node with this salt and random number 5, by state and salt of its peers.
    fn check(peers: &[(State, u64)], expected: Option<usize>) {
        let peers: Vec<_> = peers
            .iter()
            .zip(4..)
            .map(|((state, salt), instance)| {
                (state.clone(), node(if instance == 5 { 9 } else { instance }, *salt))
            })
            .collect();
        let peers: Vec<_> = peers.iter().map(|(state, node)| (state, Some(node))).collect();
        assert_eq!(obstacle(&node(5, 7), &peers), expected, "{peers:?}");
    }

    #[test]
    fn a_node_with_an_odd_salt_is_outvoted() {
        let differs = || State::Incompatible(IncompatibleReason::SaltDiffers);
        // One against one: both serve.
        check(&[(differs(), 8)], None);
        check(&[(differs(), 8), (State::Healthy, 7)], None);
        check(&[(differs(), 8), (differs(), 8)], Some(0));
        check(&[(State::Healthy, 7), (differs(), 8), (differs(), 8)], None);
        check(&[(State::Healthy, 7), (differs(), 8), (differs(), 8), (differs(), 8)], Some(1));
        // Three salts on three nodes.
        check(&[(differs(), 8), (differs(), 9)], None);
        // Those that are not reached do not vote.
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
    fn one_of_two_nodes_on_a_copy_goes() {
        let copied = || State::Incompatible(IncompatibleReason::CopiedData);
        check(&[(copied(), 7)], Some(0));
        check(&[(State::Healthy, 7), (copied(), 7)], None);
    }

    #[test]
    fn what_a_peer_refuses_or_fails_to_prove_is_no_obstacle() {
        for refusal in [
            IncompatibleReason::Identity(IdentityError::ApiKey),
            IncompatibleReason::Identity(IdentityError::SecretRefused),
            IncompatibleReason::Identity(IdentityError::Unproven),
            IncompatibleReason::Distrust(PeerTlsError::Expired),
            IncompatibleReason::ModeDiffers,
        ] {
            check(&[(State::Incompatible(refusal), 8), (State::Incompatible(refusal), 8)], None);
        }
    }
}
