//! Private keys, plain or encrypted.

use pkcs8::{EncryptedPrivateKeyInfoRef, SecretDocument};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use super::error::FileProblem;
use super::files::Password;

const ENCRYPTED_BEGIN: &str = "-----BEGIN ENCRYPTED PRIVATE KEY-----";
const ENCRYPTED_END: &str = "-----END ENCRYPTED PRIVATE KEY-----";
/// Header of the encrypted format that OpenSSL used before PKCS#8; its key derivation is weak.
const LEGACY_ENCRYPTED: &str = "Proc-Type: 4,ENCRYPTED";

/// Returns the first private key of a PEM file.
pub(super) fn parse(pem: &[u8], password: Option<&Password>) -> Result<PrivateKeyDer<'static>, FileProblem> {
    // There may be anything around the key, even bytes that are not UTF-8.
    let text = Zeroizing::new(String::from_utf8_lossy(pem).into_owned());
    if let Some(begin) = text.find(ENCRYPTED_BEGIN) {
        let length = text[begin..].find(ENCRYPTED_END).ok_or(FileProblem::NoKey)? + ENCRYPTED_END.len();
        return decrypt(&text[begin..begin + length], password.ok_or(FileProblem::NoPassword)?);
    }
    if text.contains(LEGACY_ENCRYPTED) {
        return Err(FileProblem::OldEncryption);
    }
    PrivateKeyDer::from_pem_slice(pem).map_err(|_| FileProblem::NoKey)
}

fn decrypt(pem: &str, password: &Password) -> Result<PrivateKeyDer<'static>, FileProblem> {
    let (_, encrypted) = SecretDocument::from_pem(pem).map_err(|_| FileProblem::NoKey)?;
    // Anything but PBES2 is rejected here; unsupported algorithms of PBES2 are rejected by `decrypt`.
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
