//! The parameters of storage kind `archive`.

use std::fmt;
use std::path::PathBuf;

use reqwest::Url;
use reqwest::header::HeaderValue;

use super::document::StorageParameters;
use super::parameters::{ParameterFault, Reader};
use crate::limits;
use crate::secret::Secret;
use crate::storage::unpack::Format;

/// Which archive, and how to read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchiveSpec {
    /// Where it is.
    pub source: ArchiveSource,
    /// The SHA-256 of the archive as it is stored, compressed or not.
    pub sha256: Option<[u8; 32]>,
    /// How it is compressed.
    pub format: Format,
    /// Directories to drop from the front of each name.
    pub strip_components: usize,
    /// Bearer token for the server.
    pub token: Option<Secret>,
}

/// Where an archive is.
#[derive(Clone, PartialEq, Eq)]
pub enum ArchiveSource {
    /// A file of this machine, by its absolute path.
    File(PathBuf),
    /// `http` or `https`.
    Url(Url),
}

/// Without what may be a secret: a URL can have a password in front, and a signature behind.
impl fmt::Display for ArchiveSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Url(url) => {
                write!(f, "{}://{}", url.scheme(), url.host_str().unwrap_or_default())?;
                if let Some(port) = url.port() {
                    write!(f, ":{port}")?;
                }
                f.write_str(url.path())
            }
        }
    }
}

impl fmt::Debug for ArchiveSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

const SOURCE: &str = "an absolute path, or a URL that begins with `http://` or `https://`";
const SHA256: &str = "64 hexadecimal digits, as `sha256sum` prints them";
const FORMAT: &str = "`auto`, `tar`, `gzip` or `zstd`";
const STRIP: &str = "a number from 0 to 31";
const TOKEN: &str = "a bearer token: printable ASCII, not empty";

/// Reads the parameters.
///
/// # Errors
/// All faults at once, never none.
pub fn decode(parameters: &StorageParameters) -> Result<ArchiveSpec, Vec<ParameterFault>> {
    let mut reader = Archives(Reader::new(parameters));
    let source = reader.source();
    let sha256 = reader.sha256();
    let format = reader.format();
    let strip_components = reader.strip_components();
    let token = reader.token(source.as_ref());
    let expected = "`source`, `sha256`, `format`, `strip_components` or `token`";
    let known = ["source", "sha256", "format", "strip_components", "token"];
    reader.0.unknown(&known, "a parameter that archives do not have", expected);
    match source {
        Some(source) if reader.0.faults.is_empty() => {
            Ok(ArchiveSpec { source, sha256, format, strip_components, token })
        }
        _ => Err(reader.0.faults),
    }
}

struct Archives<'a>(Reader<'a>);

impl Archives<'_> {
    fn source(&mut self) -> Option<ArchiveSource> {
        let text = self.0.required("source", SOURCE)?;
        if text.starts_with('/') {
            if text.contains('\0') {
                self.0.fault("source", None, "a path with NUL", SOURCE);
                return None;
            }
            return Some(ArchiveSource::File(text.into()));
        }
        match Url::parse(text) {
            Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => {
                Some(ArchiveSource::Url(url))
            }
            // A URL may hold a password, and then it is no placeholder.
            Ok(_) => {
                self.0.fault("source", None, "a URL that is neither http nor https", SOURCE);
                None
            }
            Err(_) => {
                let shown = (!text.contains(':')).then_some(text);
                self.0.fault("source", shown, "neither an absolute path nor a URL", SOURCE);
                None
            }
        }
    }

    fn sha256(&mut self) -> Option<[u8; 32]> {
        let text = self.0.string("sha256", SHA256)?;
        let mut sum = [0; 32];
        let digits = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let read = digits
            && sum.iter_mut().zip(text.as_bytes().chunks(2)).all(|(byte, pair)| {
                let pair = std::str::from_utf8(pair).unwrap_or_default();
                u8::from_str_radix(pair, 16).map(|value| *byte = value).is_ok()
            });
        if !read {
            self.0.fault("sha256", Some(text), "no SHA-256", SHA256);
            return None;
        }
        Some(sum)
    }

    fn format(&mut self) -> Format {
        match self.0.string("format", FORMAT) {
            None | Some("auto") => Format::Auto,
            Some("tar") => Format::Tar,
            Some("gzip") => Format::Gzip,
            Some("zstd") => Format::Zstd,
            Some(text) => {
                self.0.fault("format", Some(text), "an unknown format", FORMAT);
                Format::Auto
            }
        }
    }

    fn strip_components(&mut self) -> usize {
        let value = match self.0.value("strip_components") {
            None => return 0,
            Some(value) => value.as_u64().and_then(|value| usize::try_from(value).ok()),
        };
        // What strips as much leaves nothing.
        value.filter(|value| *value < limits::UNPACK_DEPTH).unwrap_or_else(|| {
            self.0.fault("strip_components", None, "no such number", STRIP);
            0
        })
    }

    fn token(&mut self, source: Option<&ArchiveSource>) -> Option<Secret> {
        let text = self.0.string("token", TOKEN)?;
        let sendable = text.is_ascii() && HeaderValue::from_str(text).is_ok();
        if text.is_empty() || !sendable {
            self.0.fault("token", None, "text that no header may have", TOKEN);
        } else if let Some(ArchiveSource::Url(url)) = source
            && (!url.username().is_empty() || url.password().is_some())
        {
            let expected = "either a token, or a user and password in the URL";
            self.0.fault("token", None, "a token beside a user in the URL", expected);
        }
        Some(Secret::new(text))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const SUM: &str = "00ff000000000000000000000000000000000000000000000000000000000Aa0";

    fn read(value: Value) -> Result<ArchiveSpec, Vec<(String, &'static str)>> {
        let parameters = serde_json::from_value(value).unwrap();
        let short = |fault: ParameterFault| (fault.field, fault.found);
        decode(&parameters).map_err(|faults| faults.into_iter().map(short).collect())
    }

    #[test]
    fn all_parameters_are_read() {
        let spec = read(json!({
            "source": "https://user@example.org:8443/a/b.tar?signature=hunter2",
            "sha256": SUM, "format": "zstd", "strip_components": 1,
        }));
        let spec = spec.unwrap();
        let sum = spec.sha256.unwrap();
        assert_eq!((sum[0], sum[1], sum[2], sum[31]), (0, 255, 0, 160));
        assert_eq!((spec.format, spec.strip_components, &spec.token), (Format::Zstd, 1, &None));
        let shown = format!("{} {spec:?}", spec.source);
        assert!(shown.starts_with("https://example.org:8443/a/b.tar "), "{shown}");
        assert!(!shown.contains("hunter2") && !shown.contains("user"), "{shown}");
        let spec = read(json!({ "source": "/a", "sha256": null, "format": null, "token": "t" })).unwrap();
        assert_eq!(spec.source, ArchiveSource::File("/a".into()));
        assert_eq!((spec.sha256, spec.format), (None, Format::Auto));
        assert_eq!(spec.token.as_ref().unwrap().reveal(), "t");
        assert!(!format!("{spec:?}").contains("\"t\""));
    }

    #[test]
    fn each_fault_names_its_field() {
        let faults = [
            (json!({}), "source", "missing"),
            (json!({ "source": 5 }), "source", "no string"),
            (json!({ "source": "a.tar" }), "source", "neither"),
            (json!({ "source": "/a\0" }), "source", "NUL"),
            (json!({ "source": "ftp://a/b" }), "source", "neither http"),
            (json!({ "source": "/a", "sha256": &SUM[1..] }), "sha256", "no SHA-256"),
            (json!({ "source": "/a", "sha256": SUM.replace('f', "+") }), "sha256", "no SHA-256"),
            (json!({ "source": "/a", "format": "xz" }), "format", "unknown"),
            (json!({ "source": "/a", "format": 1 }), "format", "no string"),
            (json!({ "source": "/a", "strip_components": -1 }), "strip_components", "no such"),
            (json!({ "source": "/a", "strip_components": 32 }), "strip_components", "no such"),
            (json!({ "source": "/a", "token": "" }), "token", "no header"),
            (json!({ "source": "/a", "token": "a\nb" }), "token", "no header"),
            (json!({ "source": "http://u:p@h/", "token": "t" }), "token", "beside"),
            (json!({ "source": "/a", "sha265": SUM }), "sha265", "do not have"),
        ];
        for (parameters, field, words) in faults {
            let text = parameters.to_string();
            let found = read(parameters).unwrap_err();
            assert!(
                found.len() == 1 && found[0].0 == field && found[0].1.contains(words),
                "{text}: {found:?}"
            );
        }
        assert_eq!(read(json!({ "source": "x", "format": "y", "z": 1 })).unwrap_err().len(), 3);
    }
}
