//! Salt agreement: a pure decision on the salt of the cluster, repeated as more is known about the peers.

use super::peer::NodeInfo;
use crate::limits::SALT_AGREEMENT_TIMEOUT_MS;

/// State of a peer with regard to the salt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Candidate {
    /// This node itself.
    Myself,
    /// A peer that does not reply, or has not been contacted yet.
    Unreachable,
    /// A node with other credentials: the two do not authenticate each other as members of one cluster.
    Foreign,
    /// A peer that has described itself.
    Known(NodeInfo),
}

/// Decision on the salt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Keep this node's salt.
    Keep,
    /// Decide again later.
    Wait,
    /// Generate a salt: this node is the one to do so.
    Generate,
    /// Adopt the salt of the peer with this index.
    Adopt(usize),
}

/// Decides on the salt. Nodes are ordered by name and, since names may be equal, by instance.
pub fn decide(own: &NodeInfo, peers: &[Candidate], waited_ms: u64) -> Decision {
    if own.salt.is_some() && own.has_entries {
        return Decision::Keep;
    }
    let known = || {
        peers.iter().enumerate().filter_map(|(index, peer)| match peer {
            Candidate::Known(node_info) => Some((index, node_info)),
            Candidate::Myself | Candidate::Unreachable | Candidate::Foreign => None,
        })
    };
    // A salt that has encrypted something cannot be replaced. Of other salts the smallest wins, on every node alike.
    let best = known().filter_map(|(index, peer)| Some(((!peer.has_entries, peer.salt?), index))).min();
    match (own.salt, best) {
        (Some(salt), Some((rank, index))) if rank.1 != salt && rank < (true, salt) => Decision::Adopt(index),
        (Some(_), _) => Decision::Keep,
        (None, Some((_, index))) => Decision::Adopt(index),
        (None, None) => {
            let all_replied = !peers.contains(&Candidate::Unreachable);
            let is_first = known().all(|(_, peer)| own.rank() < peer.rank());
            // A node with the wrong secret must not generate a salt; most of its peers are strangers to it.
            let strangers_count = peers.iter().filter(|peer| **peer == Candidate::Foreign).count();
            let is_outvoted = strangers_count > 1 + known().count();
            match is_first && !is_outvoted && (all_replied || waited_ms >= SALT_AGREEMENT_TIMEOUT_MS) {
                true => Decision::Generate,
                false => Decision::Wait,
            }
        }
    }
}

impl NodeInfo {
    fn rank(&self) -> (&str, u64) {
        (&self.name, self.instance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ReplicaId, TombstoneHorizon};

    fn node(name: &str, instance: u64, salt: Option<u64>, has_entries: bool) -> NodeInfo {
        let node = Some(ReplicaId::from_random(instance << 1));
        let horizon = TombstoneHorizon::default();
        NodeInfo { name: name.into(), instance, node, salt, has_entries, horizon, ..NodeInfo::default() }
    }

    fn known(name: &str, instance: u64, salt: Option<u64>, has_entries: bool) -> Candidate {
        Candidate::Known(node(name, instance, salt, has_entries))
    }

    #[test]
    fn the_first_reachable_node_generates_the_salt() {
        let own = node("b", 1, None, false);
        let silent = Candidate::Unreachable;
        for (peers, waited_ms, expected) in [
            (vec![], 0, Decision::Generate),
            (vec![Candidate::Myself], 0, Decision::Generate),
            (vec![known("c", 2, None, false)], 0, Decision::Generate),
            (vec![known("a", 2, None, false)], 0, Decision::Wait),
            (vec![known("a", 2, None, false)], 60_000, Decision::Wait),
            (vec![known("b", 2, None, false)], 0, Decision::Generate),
            (vec![known("b", 0, None, false)], 0, Decision::Wait),
            (vec![known("c", 2, None, false), silent.clone()], 9_999, Decision::Wait),
            (vec![known("c", 2, None, false), silent.clone()], 10_000, Decision::Generate),
            (vec![silent.clone(), silent], 10_000, Decision::Generate),
            (vec![Candidate::Foreign], 0, Decision::Generate),
            (vec![Candidate::Foreign, known("c", 2, None, false)], 0, Decision::Generate),
            (vec![Candidate::Foreign, Candidate::Foreign], 60_000, Decision::Wait),
        ] {
            assert_eq!(decide(&own, &peers, waited_ms), expected, "{peers:?} {waited_ms}");
        }
    }

    #[test]
    fn a_salt_that_encrypted_something_replaces_unused_ones() {
        let peers = [known("a", 2, Some(5), false), known("c", 3, Some(9), true), Candidate::Unreachable];
        assert_eq!(decide(&node("b", 1, None, false), &peers, 0), Decision::Adopt(1));
        assert_eq!(decide(&node("b", 1, Some(1), false), &peers, 0), Decision::Adopt(1));
        assert_eq!(decide(&node("b", 1, Some(1), true), &peers, 0), Decision::Keep);
        assert_eq!(decide(&node("b", 1, Some(9), false), &peers, 0), Decision::Keep);
        let unused = [known("a", 2, Some(5), false)];
        assert_eq!(decide(&node("b", 1, Some(7), false), &unused, 0), Decision::Adopt(0));
        assert_eq!(decide(&node("b", 1, Some(5), false), &unused, 0), Decision::Keep);
        assert_eq!(decide(&node("b", 1, Some(3), false), &unused, 0), Decision::Keep);
    }
}
