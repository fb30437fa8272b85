//! Read access to a database file without its WAL. No process may change the file, as in a backup.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};

/// Opens the file, also on a read-only file system. SQLite creates no file beside it.
pub(super) fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags =
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(uri(path), flags)
}

/// Returns the path as a URI, see <https://sqlite.org/uri.html>.
fn uri(path: &Path) -> String {
    use std::fmt::Write;
    use std::os::unix::ffi::OsStrExt;
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut uri = String::from("file://");
    for byte in absolute.as_os_str().as_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => {
                uri.push(char::from(*byte));
            }
            other => write!(uri, "%{other:02X}").expect("a String never fails"),
        }
    }
    uri + "?immutable=1"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_characters_in_a_path_are_escaped_in_the_uri() {
        assert_eq!(
            uri(Path::new("/a b/x?mode=rw#é.db")),
            "file:///a%20b/x%3Fmode%3Drw%23%C3%A9.db?immutable=1"
        );
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("100% ?mode=memory&x#.db");
        Connection::open(&path).expect("new").execute_batch("CREATE TABLE t (x)").expect("valid");
        let count: i64 = connect(&path)
            .expect("there")
            .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
            .expect("a table");
        assert_eq!(count, 1);
    }
}
