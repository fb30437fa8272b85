//! Permissions of the data files: those that the server lacks, and those of other users.

use std::fmt;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};
use rustix::process::{getegid, geteuid};

use super::paths::{directory_of, lock_path, sibling};

/// Mode bits of users who are neither the owner nor in the group.
const OTHERS: u32 = 0o007;

/// Data files and parent directories that the user of this process cannot use.
#[derive(Debug)]
pub struct Denials(Vec<Denial>);

#[derive(Debug)]
struct Denial {
    path: PathBuf,
    lacks: &'static str,
    owner: u32,
    group: u32,
    mode: u32,
}

impl fmt::Display for Denials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Denial { path, lacks, owner, group, mode }) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            let path = path.display();
            write!(f, "{separator}{path} {lacks} (owner {owner}:{group}, mode {mode:04o})")?;
        }
        let (user, group) = (geteuid().as_raw(), getegid().as_raw());
        write!(
            f,
            ": the server runs as {user}:{group}; change the owner (`chown {user}:{group}`), or run the server as the owner"
        )
    }
}

/// Finds the data files and directories that this process cannot use.
pub(super) fn denials(database: &Path, salt: &Path) -> Option<Denials> {
    let read_write = Access::READ_OK | Access::WRITE_OK;
    let mut denials: Vec<Denial> = Vec::new();
    let mut examine = |path: &Path, needs: Access| {
        if let Some(denial) = denial(path, needs)
            && !denials.iter().any(|known| known.path == denial.path)
        {
            denials.push(denial);
        }
    };
    examine(&directory_of(database), Access::WRITE_OK | Access::EXEC_OK);
    for file in own_files(database) {
        examine(&file, read_write);
    }
    examine(salt, Access::READ_OK);
    (!denials.is_empty()).then_some(Denials(denials))
}

/// Returns the database and the files that the server creates beside it.
fn own_files(database: &Path) -> [PathBuf; 4] {
    let [wal, index] = ["-wal", "-shm"].map(|suffix| sibling(database, suffix));
    [database.to_owned(), wal, index, lock_path(database)]
}

/// Checks a file, or if it is not accessible the nearest accessible parent directory.
fn denial(path: &Path, needs: Access) -> Option<Denial> {
    // If the working directory cannot be searched, only its absolute path identifies it.
    let (mut path, mut needs) = (std::path::absolute(path).ok()?, needs);
    loop {
        match fs::metadata(&path) {
            Ok(found) => return lacks(&path, &found, needs),
            Err(error) => {
                needs = match error.kind() {
                    io::ErrorKind::NotFound => Access::WRITE_OK | Access::EXEC_OK,
                    io::ErrorKind::PermissionDenied => Access::EXEC_OK,
                    _ => return None,
                };
                path = path.parent()?.to_owned();
            }
        }
    }
}

fn lacks(path: &Path, found: &Metadata, needs: Access) -> Option<Denial> {
    let words = [
        (Access::EXEC_OK, "cannot be searched"),
        (Access::READ_OK, "is not readable"),
        (Access::WRITE_OK, "is not writable"),
    ];
    let lacks = words.into_iter().find_map(|(permission, words)| {
        if !needs.contains(permission) {
            return None;
        }
        match access(path, permission) {
            Err(rustix::io::Errno::PERM) => Some("is immutable (`chattr -i`)"),
            Err(rustix::io::Errno::ACCESS) => Some(words),
            _ => None,
        }
    })?;
    Some(Denial {
        path: path.to_owned(),
        lacks,
        owner: found.uid(),
        group: found.gid(),
        mode: found.permissions().mode() & 0o7777,
    })
}

/// Logs a warning if users other than the owner and the group have permissions on the data files.
pub(super) fn warn_of_other_users(database: &Path, salt: &Path) {
    let exposed: Vec<String> = own_files(database)
        .into_iter()
        .chain([salt.to_owned()])
        .filter_map(|path| {
            let mode = fs::metadata(&path).ok()?.permissions().mode() & 0o7777;
            (mode & OTHERS != 0).then(|| format!("{} (mode {mode:04o})", path.display()))
        })
        .collect();
    if !exposed.is_empty() {
        tracing::warn!(
            files = exposed.join(", "),
            "data files are accessible to all users of this machine; remove the permissions with `chmod o= FILE`"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn denials_name_each_file_once() {
        let denial = |path: &str, lacks| Denial { path: path.into(), lacks, owner: 7, group: 8, mode: 0o644 };
        let denials = Denials(vec![denial("/d/c.db", "is not writable"), denial("/d/s", "is not readable")]);
        let text = denials.to_string();
        let (user, group) = (geteuid().as_raw(), getegid().as_raw());
        assert!(
            text.starts_with(&format!(
                "/d/c.db is not writable (owner 7:8, mode 0644); /d/s is not readable (owner 7:8, mode 0644): the \
                 server runs as {user}:{group};"
            )),
            "{text}"
        );
    }
}
