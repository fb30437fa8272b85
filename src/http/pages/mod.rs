//! The documentation pages and their assets. All of them are embedded in the binary, and nothing is loaded from another
//! host. `vendor/update` documents the origin of the third-party files.

/// A page, or an asset of a page.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct File {
    /// Path of the file.
    pub path: &'static str,
    /// Media type.
    pub(super) content_type: &'static str,
    /// Further header fields.
    pub(super) headers: &'static [(&'static str, &'static str)],
    /// Response body.
    pub(super) bytes: &'static [u8],
}

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

const REVALIDATE: (&str, &str) = ("cache-control", "no-cache");
const NO_REFERRER: (&str, &str) = ("referrer-policy", "no-referrer");

/// Policy without inline code, `eval` or other hosts. `data:` is for the images in Swagger UI's style sheet.
const DOCS_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// ReDoc's policy. ReDoc inserts a style element with the rules of its scroll bar, and empty ones that it fills by
/// script: the hashes are those of these rules and of the empty string. It searches in a worker created from a blob.
const REDOC_POLICY: &str = "default-src 'none'; script-src 'self'; worker-src blob:; \
     style-src 'self' 'sha256-QMIg+bpjm3JdElJ388KYke01izlUW0UoNOeKjpMxdgc=' \
     'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='; img-src 'self' data:; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const DOCS_PAGE: &[(&str, &str)] = &[("content-security-policy", DOCS_POLICY), NO_REFERRER, REVALIDATE];
const REDOC_PAGE: &[(&str, &str)] = &[("content-security-policy", REDOC_POLICY), NO_REFERRER, REVALIDATE];
const UNPACKED: &[(&str, &str)] = &[REVALIDATE];
/// Header fields of files that are sent gzip-compressed to every client: every browser accepts gzip, and only browsers
/// load them. Their names include their version.
const PACKED: &[(&str, &str)] =
    &[("content-encoding", "gzip"), ("cache-control", "public, max-age=31536000, immutable")];

static FILES: [File; 8] = [
    File { path: "/docs", content_type: HTML, headers: DOCS_PAGE, bytes: include_bytes!("docs.html") },
    File { path: "/docs/docs.js", content_type: SCRIPT, headers: UNPACKED, bytes: include_bytes!("docs.js") },
    File {
        path: "/docs/swagger-ui-5.35.0.js",
        content_type: SCRIPT,
        headers: PACKED,
        bytes: include_bytes!("vendor/swagger-ui-5.35.0.js.gz"),
    },
    File {
        path: "/docs/swagger-ui-5.35.0.css",
        content_type: STYLE,
        headers: PACKED,
        bytes: include_bytes!("vendor/swagger-ui-5.35.0.css.gz"),
    },
    File { path: "/redoc", content_type: HTML, headers: REDOC_PAGE, bytes: include_bytes!("redoc.html") },
    File {
        path: "/docs/redoc.js",
        content_type: SCRIPT,
        headers: UNPACKED,
        bytes: include_bytes!("redoc.js"),
    },
    File {
        path: "/docs/redoc-2.5.4.js",
        content_type: SCRIPT,
        headers: PACKED,
        bytes: include_bytes!("vendor/redoc-2.5.4.js.gz"),
    },
    File {
        path: "/docs/licences.txt",
        content_type: TEXT,
        headers: UNPACKED,
        bytes: include_bytes!("vendor/licences.txt"),
    },
];

/// Returns the file at a path.
pub(super) fn find(path: &[u8]) -> Option<&'static File> {
    FILES.iter().find(|file| file.path.as_bytes() == path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the references of a page. They are relative, so that it works behind a proxy that adds a path prefix.
    fn references(page: &str) -> impl Iterator<Item = &str> {
        let after = |marker: &'static str| page.split(marker).skip(1);
        let texts = after("src=\"").chain(after("href=\"")).chain(after("url: \""));
        texts.filter_map(|text| text.split('"').next()).filter(|target| !target.starts_with("data:"))
    }

    #[test]
    fn pages_load_only_embedded_files() {
        for file in FILES.iter().filter(|file| file.content_type == HTML) {
            let page = str::from_utf8(file.bytes).expect("UTF-8");
            assert!(references(page).count() >= 2, "{}", file.path);
            for target in references(page) {
                assert!(find(format!("/{target}").as_bytes()).is_some(), "{}: {target}", file.path);
            }
            assert!(!page.contains("<style") && !page.contains(" style="), "{}", file.path);
            assert!(!page.contains("<script>") && !page.contains(" on"), "{}", file.path);
        }
    }

    #[test]
    fn policies_forbid_inline_code_and_other_hosts() {
        for policy in [DOCS_POLICY, REDOC_POLICY] {
            assert!(policy.starts_with("default-src 'none';"));
            for word in ["unsafe", "http", "*", "  "] {
                assert!(!policy.contains(word), "{word} in {policy}");
            }
        }
    }

    #[test]
    fn licences_of_vendored_files_are_served() {
        let licences =
            str::from_utf8(find(b"/docs/licences.txt").expect("the licences file").bytes).expect("UTF-8");
        for text in ["Apache License", "SmartBear", "The MIT License (MIT)", "Rebilly", "DOMPurify", "lunr"] {
            assert!(licences.contains(text), "{text}");
        }
    }
}
