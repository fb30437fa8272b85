//! `.env` files, parsed like python-dotenv 1.0.0, which the Python server uses.
//!
//! A file that enables authentication there must have the same meaning in this server. There is one difference: a byte
//! order mark is skipped, whereas python-dotenv 1.0 silently loses the first line.

mod expand;
mod statement;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::Path;

use self::statement::Statements;
use super::error::SettingError;
use super::text_file;
use crate::limits::{DOTENV_EXPANDED_BYTES_MAX, DOTENV_FILE_BYTES_MAX};

/// Parsed `.env` file.
#[derive(Debug, Default)]
pub struct File {
    /// Expanded values by name.
    pub values: BTreeMap<String, OsString>,
    /// First lines, from 1, of the statements that could not be parsed.
    pub unread_lines: Vec<usize>,
}

/// Reads the file; returns `None` if it does not exist.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, SettingError> {
    let is_absent = path.symlink_metadata().is_err_and(|error| error.kind() == ErrorKind::NotFound);
    // Some users have a directory of that name with a Python virtual environment.
    if is_absent || path.is_dir() {
        return Ok(None);
    }
    read_named(path).map(Some).map_err(|message| SettingError::new(".env", message))
}

/// Reads a file that must exist.
pub(super) fn read_named(path: &Path) -> Result<Vec<u8>, String> {
    text_file::read(path, DOTENV_FILE_BYTES_MAX).map(|text| text.as_bytes().to_vec())
}

/// Parses the bytes of a file; `${NAME}` is looked up in `environment` first, then in the preceding lines.
///
/// # Errors
/// Fails if the bytes are not UTF-8, or the values are larger than [`DOTENV_EXPANDED_BYTES_MAX`] in total.
pub fn parse(bytes: &[u8], environment: &BTreeMap<String, OsString>) -> Result<File, SettingError> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        SettingError::new(".env", format!("is not UTF-8 (from byte {} on)", error.valid_up_to() + 1))
    })?;
    // Normalises line ends, as Python does for text files; a quoted value may span several lines.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text).replace("\r\n", "\n").replace('\r', "\n");
    let mut unread_lines = Vec::new();
    // A name without `=` has no value, and unsets an earlier one.
    let mut values: BTreeMap<String, Option<OsString>> = BTreeMap::new();
    let mut left_bytes = DOTENV_EXPANDED_BYTES_MAX;
    for statement in Statements::new(&text) {
        match statement {
            Ok((name, value)) => {
                let value = match value {
                    Some(value) => {
                        let expanded = expand::expand(&value, environment, &values, left_bytes);
                        let expanded = expanded.ok_or_else(|| {
                            let message = format!(
                                "values are too large after expansion, at {name} \
                                 (allowed: {DOTENV_EXPANDED_BYTES_MAX} bytes in total)"
                            );
                            SettingError::new(".env", message)
                        })?;
                        left_bytes -= expanded.len();
                        Some(expanded)
                    }
                    None => None,
                };
                values.insert(name, value);
            }
            Err(line) => unread_lines.push(line),
        }
    }
    let values = values.into_iter().filter_map(|(name, value)| value.map(|value| (name, value))).collect();
    Ok(File { values, unread_lines })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENVIRONMENT: [(&str, &str); 2] = [("SET", "from-environment"), ("EMPTY", "")];

    fn check(file: &str, expected: &[(&str, &str)], unread_lines: &[usize]) {
        let environment =
            ENVIRONMENT.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value))).collect();
        let found = parse(file.as_bytes(), &environment).expect("UTF-8");
        let expected: BTreeMap<String, OsString> =
            expected.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value))).collect();
        assert_eq!(found.values, expected, "{file:?}");
        assert_eq!(found.unread_lines, unread_lines, "{file:?}");
    }

    /// Every row was verified with python-dotenv 1.0.0 and the variables of [`ENVIRONMENT`].
    #[test]
    fn values_equal_those_of_python_dotenv() {
        for (file, expected) in [
            ("", &[][..]),
            ("\n\n  \n", &[]),
            ("A=1", &[("A", "1")]),
            ("A=1\nB=2\n", &[("A", "1"), ("B", "2")]),
            ("A=1\r\nB=2\r\n", &[("A", "1"), ("B", "2")]),
            ("A=1\rB=2", &[("A", "1"), ("B", "2")]),
            ("A=1\nA=2", &[("A", "2")]),
            ("  A = 1  ", &[("A", "1")]),
            ("\tA\t=\t1\t", &[("A", "1")]),
            ("export A=1", &[("A", "1")]),
            ("export  A = 1", &[("A", "1")]),
            ("export=1", &[("export", "1")]),
            ("# A=1", &[]),
            ("#A=1\nB=2 # no", &[("B", "2")]),
            ("A=1#2", &[("A", "1#2")]),
            ("A=1 #2 #3", &[("A", "1")]),
            ("A=1\t# two", &[("A", "1")]),
            ("A=#1", &[("A", "#1")]),
            ("A= # one", &[("A", "# one")]),
            ("A=", &[("A", "")]),
            ("A=\nB=", &[("A", ""), ("B", "")]),
            ("A=''\nB=\"\"", &[("A", ""), ("B", "")]),
            ("A", &[]),
            ("A=1\nA", &[]),
            ("A\nB=2", &[("B", "2")]),
            ("A=one two", &[("A", "one two")]),
            ("A=a=b", &[("A", "a=b")]),
            ("A=it's", &[("A", "it's")]),
            ("A=a\\nb", &[("A", "a\\nb")]),
            ("A='one # two' # three", &[("A", "one # two")]),
            ("A='a\\'b\\\\c\\nd\"'", &[("A", "a'b\\c\\nd\"")]),
            ("A=\"a\\\"b\\\\c\\nd\\te'\\'\\q\"", &[("A", "a\"b\\c\nd\te''\\q")]),
            ("A=\"\\a\\b\\f\\r\\v\"", &[("A", "\u{7}\u{8}\u{c}\r\u{b}")]),
            ("A=\"\\u00e9\\x41\\0\"", &[("A", "\\u00e9\\x41\\0")]),
            ("A=\"one\ntwo\"\nB='three\n four'", &[("A", "one\ntwo"), ("B", "three\n four")]),
            ("A=\"one\r\ntwo\"\r\nB=2", &[("A", "one\ntwo"), ("B", "2")]),
            ("A=\"1\"# one", &[("A", "1")]),
            ("A='x\\'", &[("A", "x\\")]),
            ("A=\"x\\\\\"", &[("A", "x\\")]),
            ("'A'=1", &[("A", "1")]),
            ("'A B'=1", &[("A B", "1")]),
            ("\"A\"=1", &[("\"A\"", "1")]),
            ("A.B-C=1", &[("A.B-C", "1")]),
            ("ключ=значение", &[("ключ", "значение")]),
            ("A=\u{a0}1\u{a0}", &[("A", "1")]),
            ("A=1\u{c}\u{1f}", &[("A", "1")]),
            // Expansion is independent of quotes.
            ("A=1\nB=${A}2\nC='${A}'\nD=\"${A}\"", &[("A", "1"), ("B", "12"), ("C", "1"), ("D", "1")]),
            ("A=$A ${} $ {A} ${A", &[("A", "$A  $ {A} ${A")]),
            ("A=${NONE}\nB=${NONE:-x y}\nC=${NONE:-}", &[("A", ""), ("B", "x y"), ("C", "")]),
            ("A=${NONE:x}\nB=${NONE:${A}}", &[("A", "${NONE:x}"), ("B", "${NONE:${NONE:x}}")]),
            ("SET=1\nA=${SET}", &[("SET", "1"), ("A", "from-environment")]),
            ("EMPTY=1\nA=${EMPTY:-x}", &[("EMPTY", "1"), ("A", "")]),
            ("A\nB=${A:-x}", &[("B", "")]),
            ("B=${A:-x}\nA=1", &[("A", "1"), ("B", "x")]),
            ("A=1\nB=${A:-${SET}}", &[("A", "1"), ("B", "1}")]),
            ("A=\\${SET}", &[("A", "\\from-environment")]),
        ] {
            check(file, expected, &[]);
        }
    }

    #[test]
    fn invalid_lines_are_reported_and_skipped() {
        for (file, expected, unread_lines) in [
            ("=1\nB=2", &[("B", "2")][..], &[1][..]),
            ("B=2\n\n\nA B=1\nC=3", &[("B", "2"), ("C", "3")], &[4]),
            ("A='1\nB=2", &[("B", "2")], &[1]),
            ("A=\"1\nB=2", &[("B", "2")], &[1]),
            ("A=\"1\" 2\nB=2", &[("B", "2")], &[1]),
            ("export =1", &[], &[1]),
            ("'A=1\nB=2", &[("B", "2")], &[1]),
            // As in python-dotenv, a missing quote also loses the second line.
            ("A=\"1\nB=\"2\"\nC=3", &[("C", "3")], &[1]),
            ("A='x\\'\nB='y'\nC=3", &[("C", "3")], &[1]),
        ] {
            check(file, expected, unread_lines);
        }
    }

    #[test]
    fn values_that_repeat_each_other_do_not_exhaust_the_memory() {
        let doubling: String =
            (1..64).map(|line| format!("V{line}=${{V{0}}}${{V{0}}}\n", line - 1)).collect();
        let parsed = parse(format!("V0=0123456789abcdef\n{doubling}").as_bytes(), &BTreeMap::new());
        let error = parsed.expect_err("too large").to_string();
        assert!(error.starts_with(".env: values are too large after expansion, at V18 "), "{error}");
    }

    /// Each of these took minutes when the search for a reference was repeated after every dollar sign.
    #[test]
    fn unterminated_references_take_linear_time() {
        let size = 512 * 1024;
        for (text, end) in [("${", ""), ("${", ":x}"), ("${A:-", ""), ("${a:", "}"), ("${a:", "")] {
            let value = format!("{}{end}", text.repeat(size / text.len()));
            let file = parse(format!("A={value}").as_bytes(), &BTreeMap::new()).expect("not too large");
            assert_eq!(file.values.get("A"), Some(&OsString::from(value)));
        }
    }

    #[test]
    fn a_byte_order_mark_does_not_hide_the_first_line() {
        check(
            "\u{feff}OSC_API_KEY_REQUIRED=true\r\nOSC_API_KEY=k3y-example\r\nexport OSC_HOST_PORT=9321\r\n",
            &[("OSC_API_KEY_REQUIRED", "true"), ("OSC_API_KEY", "k3y-example"), ("OSC_HOST_PORT", "9321")],
            &[],
        );
    }

    #[test]
    fn other_encodings_are_an_error() {
        for bytes in [&b"A=1\nB=\xff"[..], b"\xff\xfeA\0=\x001\0", b"\xfe\xff\0A\0=\x001"] {
            let error = parse(bytes, &BTreeMap::new()).expect_err("not UTF-8").to_string();
            assert!(error.starts_with(".env: is not UTF-8 (from byte "), "{error}");
        }
    }

    #[test]
    fn absent_files_and_directories_are_ignored_and_large_files_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join(".env");
        assert_eq!(read(&path), Ok(None));
        std::fs::write(&path, "A=1").expect("written");
        assert_eq!(read(&path), Ok(Some(b"A=1".to_vec())));
        std::fs::write(&path, " ".repeat(1024 * 1024 + 1)).expect("written");
        assert!(read(&path).is_err_and(|error| error.message.contains("too large")));
        assert_eq!(read(directory.path()), Ok(None));
    }
}
