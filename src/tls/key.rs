//! Private keys, also encrypted ones.

use pkcs8::{EncryptedPrivateKeyInfoRef, SecretDocument};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use super::error::FileProblem;
use super::files::Password;

const ENCRYPTED_BEGINS: &str = "-----BEGIN ENCRYPTED PRIVATE KEY-----";
const ENCRYPTED_ENDS: &str = "-----END ENCRYPTED PRIVATE KEY-----";
/// A header of the form that OpenSSL had before PKCS#8, which has no proper derivation of a key.
const ENCRYPTED_LONG_AGO: &str = "Proc-Type: 4,ENCRYPTED";

/// The first key in PEM.
pub(super) fn parse(pem: &[u8], password: Option<&Password>) -> Result<PrivateKeyDer<'static>, FileProblem> {
    // What is around it may be anything.
    let text = Zeroizing::new(String::from_utf8_lossy(pem).into_owned());
    if let Some(begins) = text.find(ENCRYPTED_BEGINS) {
        let length = text[begins..].find(ENCRYPTED_ENDS).ok_or(FileProblem::NoKey)? + ENCRYPTED_ENDS.len();
        return decrypt(&text[begins..begins + length], password.ok_or(FileProblem::NoPassword)?);
    }
    if text.contains(ENCRYPTED_LONG_AGO) {
        return Err(FileProblem::OldEncryption);
    }
    PrivateKeyDer::from_pem_slice(pem).map_err(|_| FileProblem::NoKey)
}

fn decrypt(pem: &str, password: &Password) -> Result<PrivateKeyDer<'static>, FileProblem> {
    let (_, encrypted) = SecretDocument::from_pem(pem).map_err(|_| FileProblem::NoKey)?;
    // What is not PBES2 is refused here, what it cannot do by `decrypt`.
    let encrypted =
        EncryptedPrivateKeyInfoRef::try_from(encrypted.as_bytes()).map_err(|_| FileProblem::OldEncryption)?;
    let key = encrypted.decrypt(password.expose()).map_err(|error| match error {
        pkcs8::Error::EncryptedPrivateKey(
            pkcs8::pkcs5::Error::NoPbes1CryptSupport | pkcs8::pkcs5::Error::UnsupportedAlgorithm { .. },
        ) => FileProblem::OldEncryption,
        _ => FileProblem::WrongPassword,
    })?;
    Ok(PrivatePkcs8KeyDer::from(key.as_bytes().to_vec()).into())
}
