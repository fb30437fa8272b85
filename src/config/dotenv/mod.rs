//! The `.env` file, read as python-dotenv 1.0.0 reads it, because the original does.
//!
//! A file that switches authentication on there must not mean something else here. One thing is
//! different: a byte order mark is skipped, where python-dotenv 1.0 silently loses the first line.

mod expand;
mod statement;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::Path;

use self::statement::Statements;
use super::error::SettingError;
use super::text_file;

const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Largest sum of all values: each statement may repeat the ones before, so that a file of a hundred lines could
/// fill the memory.
pub const EXPANDED_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Statements of a `.env` file.
#[derive(Debug, Default)]
pub struct File {
    /// Expanded values by name.
    pub values: BTreeMap<String, OsString>,
    /// First lines, from 1, of the statements that could not be parsed.
    pub unread_lines: Vec<usize>,
}

/// The text of the file, if there is one.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, SettingError> {
    let is_absent = path.symlink_metadata().is_err_and(|error| error.kind() == ErrorKind::NotFound);
    // Some keep a directory of that name, with a Python environment in it.
    if is_absent || path.is_dir() {
        return Ok(None);
    }
    read_named(path).map(Some).map_err(|message| SettingError::new(".env", message))
}

/// The text of a file that must be there.
pub(super) fn read_named(path: &Path) -> Result<Vec<u8>, String> {
    text_file::read(path, FILE_BYTES_MAX).map(|text| text.as_bytes().to_vec())
}

/// Parses the bytes of a file; `${NAME}` is looked up in `environment` first, then in the lines before.
///
/// # Errors
/// When the bytes are not UTF-8, or the values are larger than [`EXPANDED_BYTES_MAX`] together.
pub fn parse(bytes: &[u8], environment: &BTreeMap<String, OsString>) -> Result<File, SettingError> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        SettingError::new(".env", format!("is not UTF-8 (from byte {} on)", error.valid_up_to() + 1))
    })?;
    // Python opens text files so, and a quoted value may go over several lines.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text).replace("\r\n", "\n").replace('\r', "\n");
    let mut unread_lines = Vec::new();
    // A name without `=` has no value, and takes away the one it had.
    let mut values: BTreeMap<String, Option<OsString>> = BTreeMap::new();
    let mut left_bytes = EXPANDED_BYTES_MAX;
    for statement in Statements::new(&text) {
        match statement {
            Ok((name, value)) => {
                let value = match value {
                    Some(value) => {
                        let expanded = expand::expand(&value, environment, &values, left_bytes);
                        let expanded = expanded.ok_or_else(|| {
                            let message = format!(
                                "values are too large with their references expanded, at {name} \
                                 (allowed: {EXPANDED_BYTES_MAX} bytes together)"
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

    /// Every row was run through python-dotenv 1.0.0, with the variables of [`ENVIRONMENT`] set.
    #[test]
    fn means_what_python_dotenv_makes_of_it() {
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
            // Expansion, whatever the quotes.
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
    fn bad_lines_are_reported_and_skipped() {
        for (file, expected, unread_lines) in [
            ("=1\nB=2", &[("B", "2")][..], &[1][..]),
            ("B=2\n\n\nA B=1\nC=3", &[("B", "2"), ("C", "3")], &[4]),
            ("A='1\nB=2", &[("B", "2")], &[1]),
            ("A=\"1\nB=2", &[("B", "2")], &[1]),
            ("A=\"1\" 2\nB=2", &[("B", "2")], &[1]),
            ("export =1", &[], &[1]),
            ("'A=1\nB=2", &[("B", "2")], &[1]),
            // What python-dotenv makes of a missing quote; the second line is lost with the first.
            ("A=\"1\nB=\"2\"\nC=3", &[("C", "3")], &[1]),
            ("A='x\\'\nB='y'\nC=3", &[("C", "3")], &[1]),
        ] {
            check(file, expected, unread_lines);
        }
    }

    #[test]
    fn values_that_repeat_each_other_do_not_fill_the_memory() {
        let doubling: String =
            (1..64).map(|line| format!("V{line}=${{V{0}}}${{V{0}}}\n", line - 1)).collect();
        let parsed = parse(format!("V0=0123456789abcdef\n{doubling}").as_bytes(), &BTreeMap::new());
        let fault = parsed.expect_err("too large").to_string();
        assert!(
            fault.starts_with(".env: values are too large with their references expanded, at V18 "),
            "{fault}"
        );
    }

    /// Each of these took minutes when a reference was searched for again behind every dollar sign.
    #[test]
    fn references_without_an_end_take_no_time() {
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
    fn other_encodings_are_a_fault() {
        for bytes in [&b"A=1\nB=\xff"[..], b"\xff\xfeA\0=\x001\0", b"\xfe\xff\0A\0=\x001"] {
            let fault = parse(bytes, &BTreeMap::new()).expect_err("a fault").to_string();
            assert!(fault.starts_with(".env: is not UTF-8 (from byte "), "{fault}");
        }
    }

    #[test]
    fn the_file_may_be_absent_or_a_directory_but_not_huge() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join(".env");
        assert_eq!(read(&path), Ok(None));
        std::fs::write(&path, "A=1").expect("written");
        assert_eq!(read(&path), Ok(Some(b"A=1".to_vec())));
        std::fs::write(&path, " ".repeat(1024 * 1024 + 1)).expect("written");
        assert!(read(&path).is_err_and(|fault| fault.message.contains("too large")));
        assert_eq!(read(directory.path()), Ok(None));
    }
}
