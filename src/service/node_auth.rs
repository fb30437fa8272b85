//! Mutual authentication of nodes: a challenge and two MACs, keyed by the secret that the nodes of a cluster share.
//!
//! The secret itself never goes over the wire. A node that connects sends a challenge and gets one back, which is
//! the answering node's for as long as its process lives. With that it makes a token, the credential of each of its
//! requests on this connection, and it believes an answer only if its proof covers both challenges. The server
//! compares a token with the ones that it computed once, so a request costs no MAC.
//!
//! A live relay between two nodes is not detected: that takes TLS. See `docs/decisions/0017-node-identity.md`.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use super::exchange::{
    ENTRIES_HEADER, HORIZON_HEADER, INSTANCE_HEADER, MODE_HEADER, NODE_HEADER, SALT_HEADER,
};
use crate::model::{ApiKeys, ClusterSecret};

/// Header of a health check and of its answer: a [`Challenge`].
pub const CHALLENGE_HEADER: &str = "x-osc-challenge";
/// Header of the answer to a health check with a challenge: a [`SharedKey`] or a [`Barrier`].
pub const AUTH_HEADER: &str = "x-osc-auth";
/// Header of the same answer: the MAC of both challenges and of the answer.
pub const PROOF_HEADER: &str = "x-osc-proof";
/// Header of each request between nodes: the MAC of the server's challenge.
pub const TOKEN_HEADER: &str = "x-osc-token";

/// Headers by which a node says what it is; a proof covers them, and the body.
pub const IDENTITY_HEADERS: [&str; 6] =
    [INSTANCE_HEADER, NODE_HEADER, MODE_HEADER, SALT_HEADER, ENTRIES_HEADER, HORIZON_HEADER];

/// Each MAC is of one of these, so that none can stand for another one.
const TOKEN_CONTEXT: &[u8] = b"opensecureconf node token 1\0";
const PROOF_CONTEXT: &[u8] = b"opensecureconf node proof 1\0";

/// Time between two log lines about refused credentials.
const REFUSALS_INTERVAL: Duration = Duration::from_secs(10);

/// Kind of key that the nodes of a cluster share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SharedKey {
    /// The cluster secret.
    Secret,
    /// The first API key, when there is no cluster secret.
    ApiKey,
    /// None: neither is configured, and every client may do what a node may.
    Nothing,
}

/// Why a node does not get as far as its credentials on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Barrier {
    /// Its TLS client certificate is not that of a node.
    Certificate,
    /// It has connected to the port of clients, and nodes have a dedicated one.
    OtherPort,
}

/// Random bytes that a MAC must cover, so that it cannot be one from before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Challenge([u8; 32]);

/// The keys of nodes that are valid now.
pub struct NodeCredentials {
    shared: SharedKey,
    /// The first one is presented, all are accepted.
    keys: Vec<Hmac<Sha256>>,
    /// Tokens that this node accepts, one per key, in hexadecimal.
    tokens: Vec<String>,
}

/// Credentials of this node, and the challenge of this process; shared by all threads.
#[derive(Debug)]
pub struct NodeAuth {
    challenge: Challenge,
    current: ArcSwap<NodeCredentials>,
    refused_count: AtomicU64,
    unlogged: Mutex<Unlogged>,
}

#[derive(Debug, Default)]
struct Unlogged {
    count: u64,
    logged: Option<Instant>,
}

impl SharedKey {
    /// Name in [`AUTH_HEADER`].
    pub fn name(self) -> &'static str {
        match self {
            Self::Secret => "secret",
            Self::ApiKey => "api-key",
            Self::Nothing => "none",
        }
    }

    /// Reads what [`Self::name`] gave.
    pub fn parse(name: &[u8]) -> Option<Self> {
        [Self::Secret, Self::ApiKey, Self::Nothing].into_iter().find(|kind| kind.name().as_bytes() == name)
    }

    /// Whether a MAC may be shown to a client that has proven nothing. One by an API key may not: API keys can be
    /// short, and a MAC lets its reader try candidates offline.
    pub fn resists_guessing(self) -> bool {
        self != Self::ApiKey
    }
}

impl Barrier {
    /// Name in [`AUTH_HEADER`].
    pub fn name(self) -> &'static str {
        match self {
            Self::Certificate => "certificate",
            Self::OtherPort => "other-port",
        }
    }

    /// Reads what [`Self::name`] gave.
    pub fn parse(name: &[u8]) -> Option<Self> {
        [Self::Certificate, Self::OtherPort].into_iter().find(|barrier| barrier.name().as_bytes() == name)
    }
}

impl Challenge {
    /// Returns new random bytes.
    pub fn random() -> Self {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).expect("Linux has random bytes once it has booted");
        Self(bytes)
    }

    /// Reads 64 hexadecimal digits.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let digits: &[u8; 64] = text.try_into().ok()?;
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.as_chunks::<2>().0) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for Challenge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hexadecimal(&self.0))
    }
}

impl NodeCredentials {
    fn new(secrets: &[ClusterSecret], api_keys: &ApiKeys, challenge: Challenge) -> Self {
        let key = |bytes: &[u8]| Hmac::new_from_slice(bytes).expect("HMAC takes keys of any length");
        let (shared, keys) = match (secrets, api_keys.own()) {
            ([], None) => (SharedKey::Nothing, vec![key(b"")]),
            // Only the first: the others are keys of clients.
            ([], Some(first)) => (SharedKey::ApiKey, vec![key(first.expose().as_bytes())]),
            (secrets, _) => (SharedKey::Secret, secrets.iter().map(|secret| key(secret.expose())).collect()),
        };
        let tokens = keys.iter().map(|key| mac(key, TOKEN_CONTEXT, &[&challenge.0])).collect();
        Self { shared, keys, tokens }
    }

    /// Kind of the keys.
    pub fn shared(&self) -> SharedKey {
        self.shared
    }

    /// Returns the credential for requests to the node with this challenge.
    pub fn token(&self, server: Challenge) -> String {
        mac(&self.keys[0], TOKEN_CONTEXT, &[&server.0])
    }

    /// Returns the proof that the node with the challenge `server` gave this answer to `client`.
    pub fn proof(&self, client: Challenge, server: Challenge, answer: &[u8]) -> String {
        mac(&self.keys[0], PROOF_CONTEXT, &[&client.0, &server.0, answer])
    }

    /// Whether a proof was made with any of the keys.
    pub fn verify(&self, proof: &[u8], client: Challenge, server: Challenge, answer: &[u8]) -> bool {
        let expected = self.keys.iter().map(|key| mac(key, PROOF_CONTEXT, &[&client.0, &server.0, answer]));
        is_one_of(proof, expected)
    }
}

impl fmt::Debug for NodeCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({}, {} keys, redacted)", self.shared.name(), self.keys.len())
    }
}

impl NodeAuth {
    /// Takes the secrets or, without any, the first API key.
    pub fn new(secrets: &[ClusterSecret], api_keys: &ApiKeys) -> Self {
        let challenge = Challenge::random();
        let current = ArcSwap::from_pointee(NodeCredentials::new(secrets, api_keys, challenge));
        Self { challenge, current, refused_count: AtomicU64::default(), unlogged: Mutex::default() }
    }

    /// Replaces the keys; connections to peers are authenticated again.
    pub fn replace(&self, secrets: &[ClusterSecret], api_keys: &ApiKeys) {
        let credentials = NodeCredentials::new(secrets, api_keys, self.challenge);
        let current = self.current.load();
        // Connections of unchanged keys are kept.
        if credentials.shared != current.shared || credentials.tokens != current.tokens {
            self.current.store(Arc::new(credentials));
        }
    }

    /// The keys that are valid now.
    pub fn credentials(&self) -> Arc<NodeCredentials> {
        self.current.load_full()
    }

    /// Whether these keys are still the valid ones.
    pub fn is_current(&self, credentials: &Arc<NodeCredentials>) -> bool {
        Arc::ptr_eq(&self.current.load(), credentials)
    }

    /// Kind of the keys.
    pub fn shared(&self) -> SharedKey {
        self.current.load().shared
    }

    /// Challenge of this process.
    pub fn challenge(&self) -> Challenge {
        self.challenge
    }

    /// Whether the sender of this token has one of the keys.
    pub fn accepts(&self, token: &[u8]) -> bool {
        is_one_of(token, self.current.load().tokens.iter())
    }

    /// Requests that were refused because of their node credentials.
    pub fn refused_count(&self) -> u64 {
        self.refused_count.load(Ordering::Relaxed)
    }

    /// Counts a refused request. Returns how many there were since the last log line, if it is time for another one.
    pub fn note_refusal(&self) -> Option<u64> {
        self.refused_count.fetch_add(1, Ordering::Relaxed);
        let mut unlogged = self.unlogged.lock().unwrap_or_else(PoisonError::into_inner);
        unlogged.count += 1;
        if unlogged.logged.is_some_and(|logged| logged.elapsed() < REFUSALS_INTERVAL) {
            return None;
        }
        unlogged.logged = Some(Instant::now());
        Some(std::mem::take(&mut unlogged.count))
    }
}

/// Returns the bytes of an answer to a health check that its proof covers.
pub fn signed_answer<'a>(header: impl Fn(&str) -> Option<&'a str>, body: &[u8]) -> Vec<u8> {
    let mut signed = Vec::new();
    for name in IDENTITY_HEADERS {
        if let Some(value) = header(name) {
            signed.extend_from_slice(format!("{name}: {value}\n").as_bytes());
        }
    }
    signed.push(b'\n');
    signed.extend_from_slice(body);
    signed
}

/// The MAC of these parts in hexadecimal. All but the last have a fixed length.
fn mac(key: &Hmac<Sha256>, context: &[u8], parts: &[&[u8]]) -> String {
    let mut mac = key.clone();
    mac.update(context);
    parts.iter().for_each(|part| mac.update(part));
    hexadecimal(&mac.finalize().into_bytes())
}

/// Compares with all of them in constant time.
fn is_one_of(candidate: &[u8], expected: impl Iterator<Item = impl AsRef<str>>) -> bool {
    expected.fold(false, |found, text| bool::from(text.as_ref().as_bytes().ct_eq(candidate)) | found)
}

fn hexadecimal(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let pairs = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    pairs.map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ApiKey;

    fn auth(secrets: &[&str], api_keys: &[&str]) -> NodeAuth {
        let secrets: Vec<ClusterSecret> = secrets.iter().map(|text| ClusterSecret::new(text)).collect();
        NodeAuth::new(&secrets, &ApiKeys::new(api_keys.iter().map(|text| ApiKey::new(text)).collect()))
    }

    /// Whether a client with the credentials of one is accepted by the other, and believes it.
    fn agree(client: &NodeAuth, server: &NodeAuth) -> (bool, bool) {
        let challenge = Challenge::random();
        let (ours, theirs) = (client.credentials(), server.credentials());
        let accepted = server.accepts(ours.token(server.challenge()).as_bytes());
        let proof = theirs.proof(challenge, server.challenge(), b"answer");
        (accepted, ours.verify(proof.as_bytes(), challenge, server.challenge(), b"answer"))
    }

    #[test]
    fn a_secret_is_rotated_without_a_moment_of_refusal() {
        let steps = [&["old"][..], &["old", "new"], &["new", "old"], &["new"]];
        for pair in steps.windows(2) {
            let (before, after) = (auth(pair[0], &[]), auth(pair[1], &[]));
            assert_eq!(agree(&before, &after), (true, true), "{pair:?}");
            assert_eq!(agree(&after, &before), (true, true), "{pair:?}");
        }
        assert_eq!(agree(&auth(steps[0], &[]), &auth(steps[3], &[])), (false, false));
    }

    #[test]
    fn only_the_first_api_key_is_that_of_nodes() {
        let server = auth(&[], &["first", "second"]);
        assert_eq!(server.shared(), SharedKey::ApiKey);
        assert_eq!(agree(&auth(&[], &["first"]), &server), (true, true));
        assert_eq!(agree(&auth(&[], &["second"]), &server), (false, false));
        assert_eq!(agree(&auth(&[], &[]), &auth(&[], &[])), (true, true));
        assert_eq!(agree(&auth(&[], &[]), &server), (false, false));
        // With a secret, API keys are those of clients only.
        assert_eq!(auth(&["secret"], &["first"]).shared(), SharedKey::Secret);
        assert_eq!(agree(&server, &auth(&["secret"], &["first"])), (false, false));
    }

    #[test]
    fn a_proof_is_of_one_answer_to_one_client_by_one_process() {
        let server = auth(&["secret"], &[]);
        let credentials = server.credentials();
        let (client, challenge) = (Challenge::random(), server.challenge());
        let proof = credentials.proof(client, challenge, b"answer");
        assert!(credentials.verify(proof.as_bytes(), client, challenge, b"answer"));
        let other = Challenge::random();
        assert!(!credentials.verify(proof.as_bytes(), other, challenge, b"answer"));
        assert!(!credentials.verify(proof.as_bytes(), client, other, b"answer"));
        assert!(!credentials.verify(proof.as_bytes(), client, challenge, b"another"));
        assert!(!credentials.verify(b"", client, challenge, b"answer"));
        // A proof is not a token, whatever is proven, and tokens are of one process.
        assert!(!server.accepts(proof.as_bytes()) && !server.accepts(b""));
        assert!(!server.accepts(credentials.token(other).as_bytes()));
    }

    #[test]
    fn replaced_keys_are_noticed_by_connections() {
        let server = auth(&["old"], &[]);
        let before = server.credentials();
        let token = before.token(server.challenge());
        assert!(server.is_current(&before) && server.accepts(token.as_bytes()));
        server.replace(&[ClusterSecret::new("old")], &ApiKeys::default());
        assert!(server.is_current(&before));
        server.replace(&[ClusterSecret::new("new")], &ApiKeys::default());
        assert!(!server.is_current(&before) && !server.accepts(token.as_bytes()));
        assert!(!format!("{server:?}").contains("new,"));
    }

    #[test]
    fn texts_of_challenges_and_kinds() {
        let challenge = Challenge::random();
        assert_eq!(Challenge::parse(challenge.to_string().as_bytes()), Some(challenge));
        for wrong in ["", "00", &"0g".repeat(32), &"00".repeat(33)] {
            assert_eq!(Challenge::parse(wrong.as_bytes()), None, "{wrong}");
        }
        for kind in [SharedKey::Secret, SharedKey::ApiKey, SharedKey::Nothing] {
            assert_eq!(SharedKey::parse(kind.name().as_bytes()), Some(kind));
        }
        assert_eq!(SharedKey::parse(b"other"), None);
    }

    #[test]
    fn refusals_are_counted_and_seldom_logged() {
        let auth = auth(&["secret"], &[]);
        assert_eq!(auth.note_refusal(), Some(1));
        assert_eq!((auth.note_refusal(), auth.note_refusal()), (None, None));
        assert_eq!(auth.refused_count(), 3);
    }
}
