//! Password verifiers, as a spec writes them and as the catalog holds them.

use std::borrow::Cow;

use super::error::PlanError;
use crate::limits;
use crate::secret::Secret;
use crate::spec::document::Role;

pub(super) fn is_md5(verifier: &Secret) -> bool {
    verifier.reveal().starts_with("md5")
}

/// The role's verifier as the catalog holds it: SCRAM as it came, MD5 with its prefix and in lower case.
pub(super) fn verifier(role: &Role) -> Result<Option<Cow<'_, Secret>>, PlanError> {
    let Some(password) = &role.encrypted_password else { return Ok(None) };
    let text = password.reveal();
    if is_scram(text) {
        return Ok(Some(Cow::Borrowed(password)));
    }
    // Some write the digest with the prefix; 35 characters can mean nothing else.
    let digest = if text.len() == 35 { text.strip_prefix("md5").unwrap_or(text) } else { text };
    if digest.len() == 32 && digest.bytes().all(|b| b.is_ascii_hexdigit()) {
        let mut verifier = ["md5", digest].concat();
        verifier.make_ascii_lowercase();
        return Ok(Some(Cow::Owned(Secret::new(verifier))));
    }
    Err(PlanError::BadVerifier { role: role.name.clone() })
}

/// `SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>`, the keys being 32 bytes in base64, as
/// PostgreSQL's `parse_scram_secret` demands.
pub(crate) fn is_scram(text: &str) -> bool {
    let base64 = |text: &str| {
        let digits = text.trim_end_matches('=');
        text.len().is_multiple_of(4)
            && text.len() - digits.len() <= 2
            && digits.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'+' || b == b'/')
    };
    let key = |text: &str| text.len() == 44 && text.ends_with('=') && !text.ends_with("==") && base64(text);
    let parts = || {
        let (iterations, rest) = text.strip_prefix("SCRAM-SHA-256$")?.split_once(':')?;
        let (salt, keys) = rest.split_once('$')?;
        let (stored, server) = keys.split_once(':')?;
        Some((iterations, salt, stored, server))
    };
    text.len() <= limits::CATALOG_VERIFIER
        && parts().is_some_and(|(iterations, salt, stored, server)| {
            iterations.parse::<i32>().is_ok_and(|count| count > 0)
                && !salt.is_empty()
                && base64(salt)
                && key(stored)
                && key(server)
        })
}
