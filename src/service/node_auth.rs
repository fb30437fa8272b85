//! Mutual authentication of nodes: a challenge and two MACs, keyed by the secret that the nodes of a cluster share.
//!
//! The secret itself is never transmitted. A connecting node (the client) sends a challenge and receives that of the
//! server, which is constant for the lifetime of the server process. From it, the client computes a token, the
//! credential of each of its requests on this connection. It trusts a response only if the proof covers both
//! challenges. The server compares a token with precomputed ones, so a request costs no MAC.
//!
//! A live relay between two nodes is not detected: that requires TLS. See `docs/decisions/0017-node-identity.md`.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use arc_swap::ArcSwap;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use crate::limits::NODE_REFUSALS_LOG_INTERVAL;
use crate::model::{ApiKeys, ClusterSecret};
use crate::wire::header;

/// Contexts of the MACs, which prevent one kind of MAC from being used as the other.
const TOKEN_CONTEXT: &[u8] = b"opensecureconf node token 1\0";
const PROOF_CONTEXT: &[u8] = b"opensecureconf node proof 1\0";

/// Kind of key that the nodes of a cluster share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SharedKey {
    /// Cluster secret.
    Secret,
    /// First API key, used without a cluster secret.
    ApiKey,
    /// No key: neither is configured, and every client has the permissions of a node.
    Nothing,
}

/// Reason why the credentials of a node are not checked on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Barrier {
    /// Its TLS client certificate is not a node certificate.
    Certificate,
    /// It has connected to the client port, and nodes have a dedicated one.
    OtherPort,
}

/// Random bytes that a MAC must cover, which prevents replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Challenge([u8; 32]);

/// Currently valid keys of the nodes.
pub struct NodeCredentials {
    shared: SharedKey,
    /// Keys, of which the first one is used for requests and all are accepted.
    keys: Vec<Hmac<Sha256>>,
    /// Accepted tokens, one per key, in hexadecimal.
    tokens: Vec<String>,
}

/// Node credentials and the challenge of this process, shared by all threads.
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
    /// Returns the name in [`header::AUTH`].
    pub fn name(self) -> &'static str {
        match self {
            Self::Secret => "secret",
            Self::ApiKey => "api-key",
            Self::Nothing => "none",
        }
    }

    /// Parses the output of [`Self::name`].
    pub fn parse(name: &[u8]) -> Option<Self> {
        [Self::Secret, Self::ApiKey, Self::Nothing].into_iter().find(|kind| kind.name().as_bytes() == name)
    }

    /// Returns whether a MAC with this kind of key may be sent to an unauthenticated client. With an API key it may
    /// not: API keys can be short, and a MAC enables offline guessing.
    pub fn resists_guessing(self) -> bool {
        self != Self::ApiKey
    }
}

impl Barrier {
    /// Returns the name in [`header::AUTH`].
    pub fn name(self) -> &'static str {
        match self {
            Self::Certificate => "certificate",
            Self::OtherPort => "other-port",
        }
    }

    /// Parses the output of [`Self::name`].
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

    /// Parses 64 hexadecimal digits.
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
        let (shared, keys) = match (secrets, api_keys.first()) {
            ([], None) => (SharedKey::Nothing, vec![key(b"")]),
            // Only the first one: further API keys belong to clients.
            ([], Some(first)) => (SharedKey::ApiKey, vec![key(first.expose().as_bytes())]),
            (secrets, _) => (SharedKey::Secret, secrets.iter().map(|secret| key(secret.expose())).collect()),
        };
        let tokens = keys.iter().map(|key| mac(key, TOKEN_CONTEXT, &[&challenge.0])).collect();
        Self { shared, keys, tokens }
    }

    /// Returns the kind of the keys.
    pub fn shared(&self) -> SharedKey {
        self.shared
    }

    /// Returns the token for requests to the node with this challenge.
    pub fn token(&self, server: Challenge) -> String {
        mac(&self.keys[0], TOKEN_CONTEXT, &[&server.0])
    }

    /// Returns the proof that the node with the challenge `server` sent this response to the challenge `client`.
    pub fn proof(&self, client: Challenge, server: Challenge, response: &[u8]) -> String {
        mac(&self.keys[0], PROOF_CONTEXT, &[&client.0, &server.0, response])
    }

    /// Returns whether a proof was made with any of the keys.
    pub fn verify(&self, proof: &[u8], client: Challenge, server: Challenge, response: &[u8]) -> bool {
        let expected = self.keys.iter().map(|key| mac(key, PROOF_CONTEXT, &[&client.0, &server.0, response]));
        is_one_of(proof, expected)
    }
}

impl fmt::Debug for NodeCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeCredentials({}, {} keys, redacted)", self.shared.name(), self.keys.len())
    }
}

impl NodeAuth {
    /// Creates the credentials from the secrets or, if there are none, from the first API key.
    pub fn new(secrets: &[ClusterSecret], api_keys: &ApiKeys) -> Self {
        let challenge = Challenge::random();
        let current = ArcSwap::from_pointee(NodeCredentials::new(secrets, api_keys, challenge));
        Self { challenge, current, refused_count: AtomicU64::default(), unlogged: Mutex::default() }
    }

    /// Replaces the keys; connections to peers are then authenticated again.
    pub fn replace(&self, secrets: &[ClusterSecret], api_keys: &ApiKeys) {
        let credentials = NodeCredentials::new(secrets, api_keys, self.challenge);
        let current = self.current.load();
        // If the keys are unchanged, connections are kept.
        if credentials.shared != current.shared || credentials.tokens != current.tokens {
            self.current.store(Arc::new(credentials));
        }
    }

    /// Returns the currently valid keys.
    pub fn credentials(&self) -> Arc<NodeCredentials> {
        self.current.load_full()
    }

    /// Returns whether these keys are still valid.
    pub fn is_current(&self, credentials: &Arc<NodeCredentials>) -> bool {
        Arc::ptr_eq(&self.current.load(), credentials)
    }

    /// Returns the kind of the keys.
    pub fn shared(&self) -> SharedKey {
        self.current.load().shared
    }

    /// Returns the challenge of this process.
    pub fn challenge(&self) -> Challenge {
        self.challenge
    }

    /// Returns whether the sender of this token has one of the keys.
    pub fn accepts(&self, token: &[u8]) -> bool {
        is_one_of(token, self.current.load().tokens.iter())
    }

    /// Returns the number of requests refused because of their node credentials.
    pub fn refused_count(&self) -> u64 {
        self.refused_count.load(Ordering::Relaxed)
    }

    /// Counts a refused request. Returns the number of refusals since the last log line, if another line is due.
    pub fn note_refusal(&self) -> Option<u64> {
        self.refused_count.fetch_add(1, Ordering::Relaxed);
        let mut unlogged = self.unlogged.lock().unwrap_or_else(PoisonError::into_inner);
        unlogged.count += 1;
        if unlogged.logged.is_some_and(|logged| logged.elapsed() < NODE_REFUSALS_LOG_INTERVAL) {
            return None;
        }
        unlogged.logged = Some(Instant::now());
        Some(std::mem::take(&mut unlogged.count))
    }
}

/// Returns the bytes of a health check response that its proof covers.
pub fn signed_response<'a>(field: impl Fn(&str) -> Option<&'a str>, body: &[u8]) -> Vec<u8> {
    let mut signed = Vec::new();
    for name in header::IDENTITY {
        if let Some(value) = field(name) {
            signed.extend_from_slice(format!("{name}: {value}\n").as_bytes());
        }
    }
    signed.push(b'\n');
    signed.extend_from_slice(body);
    signed
}

/// Returns the MAC of these parts in hexadecimal. All but the last have a fixed length.
fn mac(key: &Hmac<Sha256>, context: &[u8], parts: &[&[u8]]) -> String {
    let mut mac = key.clone();
    mac.update(context);
    parts.iter().for_each(|part| mac.update(part));
    hexadecimal(&mac.finalize().into_bytes())
}

/// Compares with all expected texts in constant time.
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

    /// Returns whether the server accepts the client, and whether the client verifies the proof of the server.
    fn agree(client: &NodeAuth, server: &NodeAuth) -> (bool, bool) {
        let challenge = Challenge::random();
        let (ours, theirs) = (client.credentials(), server.credentials());
        let accepted = server.accepts(ours.token(server.challenge()).as_bytes());
        let proof = theirs.proof(challenge, server.challenge(), b"response");
        (accepted, ours.verify(proof.as_bytes(), challenge, server.challenge(), b"response"))
    }

    #[test]
    fn secret_rotation_refuses_no_node() {
        let steps = [&["old"][..], &["old", "new"], &["new", "old"], &["new"]];
        for pair in steps.windows(2) {
            let (before, after) = (auth(pair[0], &[]), auth(pair[1], &[]));
            assert_eq!(agree(&before, &after), (true, true), "{pair:?}");
            assert_eq!(agree(&after, &before), (true, true), "{pair:?}");
        }
        assert_eq!(agree(&auth(steps[0], &[]), &auth(steps[3], &[])), (false, false));
    }

    #[test]
    fn only_the_first_api_key_authenticates_nodes() {
        let server = auth(&[], &["first", "second"]);
        assert_eq!(server.shared(), SharedKey::ApiKey);
        assert_eq!(agree(&auth(&[], &["first"]), &server), (true, true));
        assert_eq!(agree(&auth(&[], &["second"]), &server), (false, false));
        assert_eq!(agree(&auth(&[], &[]), &auth(&[], &[])), (true, true));
        assert_eq!(agree(&auth(&[], &[]), &server), (false, false));
        // With a secret, API keys authenticate clients only.
        assert_eq!(auth(&["secret"], &["first"]).shared(), SharedKey::Secret);
        assert_eq!(agree(&server, &auth(&["secret"], &["first"])), (false, false));
    }

    #[test]
    fn a_proof_covers_one_response_to_one_client_by_one_process() {
        let server = auth(&["secret"], &[]);
        let credentials = server.credentials();
        let (client, challenge) = (Challenge::random(), server.challenge());
        let proof = credentials.proof(client, challenge, b"response");
        assert!(credentials.verify(proof.as_bytes(), client, challenge, b"response"));
        let other = Challenge::random();
        assert!(!credentials.verify(proof.as_bytes(), other, challenge, b"response"));
        assert!(!credentials.verify(proof.as_bytes(), client, other, b"response"));
        assert!(!credentials.verify(proof.as_bytes(), client, challenge, b"another"));
        assert!(!credentials.verify(b"", client, challenge, b"response"));
        // A proof is never a valid token, and a token is valid for one process only.
        assert!(!server.accepts(proof.as_bytes()) && !server.accepts(b""));
        assert!(!server.accepts(credentials.token(other).as_bytes()));
    }

    #[test]
    fn replaced_keys_invalidate_credentials() {
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
    fn challenges_and_key_kinds_are_parsed() {
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
    fn refusals_are_counted_and_their_log_lines_limited() {
        let auth = auth(&["secret"], &[]);
        assert_eq!(auth.note_refusal(), Some(1));
        assert_eq!((auth.note_refusal(), auth.note_refusal()), (None, None));
        assert_eq!(auth.refused_count(), 3);
    }
}
