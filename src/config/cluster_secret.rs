//! `OSC_CLUSTER_SECRET`: secrets with which nodes authenticate each other.
//!
//! No message reveals the content of the variable or the file.

use std::path::Path;

use super::error::Warning;
use super::secret_file;
use super::variables::{Variables, shown};
use crate::limits::CLUSTER_SECRET_CHARS_MIN;
use crate::model::ClusterSecret;

/// Reads the accepted secrets: that in `OSC_CLUSTER_SECRET` first, then those in `OSC_CLUSTER_SECRET_FILE`. The list is
/// empty on a standalone node. Warns about a cluster node without a secret.
pub(super) fn read(
    variables: &mut Variables<'_>,
    warnings: &mut Vec<Warning>,
    is_clustered: bool,
    has_api_key: bool,
) -> Vec<ClusterSecret> {
    let errors_before = variables.errors.len();
    let text = variables.secret("OSC_CLUSTER_SECRET");
    let file = variables.text("OSC_CLUSTER_SECRET_FILE");
    if !is_clustered {
        let names = [("OSC_CLUSTER_SECRET", text.is_some()), ("OSC_CLUSTER_SECRET_FILE", file.is_some())];
        let unused = names.into_iter().filter(|(_, is_set)| *is_set);
        warnings.extend(unused.map(|(name, _)| Warning::ClusterUnused(name)));
        return Vec::new();
    }
    let mut secrets = Vec::new();
    match text.as_deref().map(|text| (text, problem(text))) {
        Some((_, Some(problem))) => variables.add_error("OSC_CLUSTER_SECRET", problem),
        Some((text, None)) => secrets.push(ClusterSecret::new(text)),
        None => {}
    }
    if let Some(path) = &file {
        match secret_file::read(Path::new(path), "secret", problem) {
            Ok(more) => secrets.extend(more.iter().map(|text| ClusterSecret::new(text))),
            Err(problem) => {
                variables.add_error("OSC_CLUSTER_SECRET_FILE", format!("{} {problem}", shown(path)));
            }
        }
    }
    if secrets.is_empty() && variables.errors.len() == errors_before {
        warnings.push(if has_api_key { Warning::ClusterByApiKey } else { Warning::ClusterOpen });
    }
    secrets
}

fn problem(text: &str) -> Option<&'static str> {
    let mut characters = text.chars();
    let first = characters.next();
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        Some("contains a character that is not visible ASCII (allowed: letters, digits, punctuation)")
    } else if text.len() < CLUSTER_SECRET_CHARS_MIN {
        Some("is shorter than 32 characters (for example: the output of `openssl rand -hex 32`)")
    } else if characters.all(|character| Some(character) == first) {
        Some("is one repeated character, which is not a secret")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weak_secrets_are_refused() {
        for (text, word) in [
            ("", "shorter"),
            ("0123456789abcdef0123456789abcde", "shorter"),
            (&"x".repeat(32), "repeated"),
            ("0123456789abcdef 123456789abcdef", "visible"),
            ("0123456789abcdef\u{e4}123456789abcdef", "visible"),
            ("0123456789abcdef\t123456789abcdef", "visible"),
        ] {
            assert!(problem(text).is_some_and(|problem| problem.contains(word)), "{text}");
        }
        assert_eq!(problem("0123456789abcdef0123456789abcdef"), None);
    }
}
