//! Which salt the nodes of a cluster use: a pure decision, made again with each thing that is learnt.

use super::peer::NodeInfo;

/// How long peers that do not answer are waited for before a salt is made without them.
pub const PATIENCE_MS: u64 = 10_000;

/// What is known of a peer, as far as the salt is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Candidate {
    /// It is this node itself.
    Myself,
    /// It does not answer, or has not been asked yet.
    Silent,
    /// It says that it is a node, and the two do not recognise each other as nodes of one cluster.
    Stranger,
    /// It has told of itself.
    Known(NodeInfo),
}

/// What to do about the salt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The own salt is the one.
    Keep,
    /// Ask again.
    Wait,
    /// Make one: this node was chosen to.
    Make,
    /// Take the salt of this peer.
    Take(usize),
}

/// Decides. `own` and the peers are told apart by name and, since names may be equal, by instance.
pub fn decide(own: &NodeInfo, peers: &[Candidate], waited_ms: u64) -> Decision {
    if own.salt.is_some() && own.has_entries {
        return Decision::Keep;
    }
    let known = || {
        peers.iter().enumerate().filter_map(|(index, peer)| match peer {
            Candidate::Known(introduction) => Some((index, introduction)),
            Candidate::Myself | Candidate::Silent | Candidate::Stranger => None,
        })
    };
    // One that has sealed something cannot yield; of others the smaller one stays, on every node alike.
    let best = known().filter_map(|(index, peer)| Some(((!peer.has_entries, peer.salt?), index))).min();
    match (own.salt, best) {
        (Some(salt), Some((rank, index))) if rank.1 != salt && rank < (true, salt) => Decision::Take(index),
        (Some(_), _) => Decision::Keep,
        (None, Some((_, index))) => Decision::Take(index),
        (None, None) => {
            let all_answer = !peers.contains(&Candidate::Silent);
            let is_first = known().all(|(_, peer)| own.rank() < peer.rank());
            // A node with the wrong secret must not make a salt of its own; most others are strangers to it.
            let strangers_count = peers.iter().filter(|peer| **peer == Candidate::Stranger).count();
            let is_odd = strangers_count > 1 + known().count();
            match is_first && !is_odd && (all_answer || waited_ms >= PATIENCE_MS) {
                true => Decision::Make,
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
        NodeInfo { name: name.into(), instance, node, is_federated: false, salt, has_entries, horizon }
    }

    fn known(name: &str, instance: u64, salt: Option<u64>, has_entries: bool) -> Candidate {
        Candidate::Known(node(name, instance, salt, has_entries))
    }

    #[test]
    fn without_any_salt_the_first_one_that_can_be_reached_makes_it() {
        let own = node("b", 1, None, false);
        let silent = Candidate::Silent;
        for (peers, waited_ms, expected) in [
            (vec![], 0, Decision::Make),
            (vec![Candidate::Myself], 0, Decision::Make),
            (vec![known("c", 2, None, false)], 0, Decision::Make),
            (vec![known("a", 2, None, false)], 0, Decision::Wait),
            (vec![known("a", 2, None, false)], 60_000, Decision::Wait),
            (vec![known("b", 2, None, false)], 0, Decision::Make),
            (vec![known("b", 0, None, false)], 0, Decision::Wait),
            (vec![known("c", 2, None, false), silent.clone()], 9_999, Decision::Wait),
            (vec![known("c", 2, None, false), silent.clone()], 10_000, Decision::Make),
            (vec![silent.clone(), silent], 10_000, Decision::Make),
            (vec![Candidate::Stranger], 0, Decision::Make),
            (vec![Candidate::Stranger, known("c", 2, None, false)], 0, Decision::Make),
            (vec![Candidate::Stranger, Candidate::Stranger], 60_000, Decision::Wait),
        ] {
            assert_eq!(decide(&own, &peers, waited_ms), expected, "{peers:?} {waited_ms}");
        }
    }

    #[test]
    fn a_salt_that_sealed_something_stays_and_the_others_yield() {
        let peers = [known("a", 2, Some(5), false), known("c", 3, Some(9), true), Candidate::Silent];
        assert_eq!(decide(&node("b", 1, None, false), &peers, 0), Decision::Take(1));
        assert_eq!(decide(&node("b", 1, Some(1), false), &peers, 0), Decision::Take(1));
        assert_eq!(decide(&node("b", 1, Some(1), true), &peers, 0), Decision::Keep);
        assert_eq!(decide(&node("b", 1, Some(9), false), &peers, 0), Decision::Keep);
        let none_sealed = [known("a", 2, Some(5), false)];
        assert_eq!(decide(&node("b", 1, Some(7), false), &none_sealed, 0), Decision::Take(0));
        assert_eq!(decide(&node("b", 1, Some(5), false), &none_sealed, 0), Decision::Keep);
        assert_eq!(decide(&node("b", 1, Some(3), false), &none_sealed, 0), Decision::Keep);
    }
}
