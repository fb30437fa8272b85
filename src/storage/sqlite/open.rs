//! Opening of the database file. Every check precedes the first change to the file.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior, backup, ffi};

use super::error;
use super::schema::{self, Generation, NullEncoding};
use super::wal_index::WalIndex;
use super::{check, immutable, maintenance};
use crate::limits::{SQLITE_BUSY_PAUSE, SQLITE_BUSY_TIMEOUT};
use crate::storage::disk_space::Shortage;
use crate::storage::error::OpenError;
use crate::storage::paths::{HEADER_BYTES, MAGIC, sibling};
use crate::storage::salt_store::SaltStore;
use crate::storage::sync::sync_directory;

/// Header of the database file, read before SQLite opens it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// `PRAGMA user_version` of the file without its WAL: the number of its checkpoint cycle.
    cycle: i64,
    /// Whether the file is in WAL mode.
    wal_mode: bool,
    /// Whether the file was changed after its WAL. As root, SQLite changes the WAL when it opens it.
    is_later_than_wal: bool,
}

/// An opened database, migrated and in WAL mode.
#[derive(Debug)]
pub(super) struct Opened {
    /// Connection of the writer.
    pub(super) connection: Connection,
    pub(super) spelling: NullEncoding,
    pub(super) has_entries: bool,
    /// Whether there are entries, and the database has the tag of the salt that encrypted them.
    pub(super) is_bound_to_salt: bool,
    pub(super) wal_index: WalIndex,
    /// Whether startup lacked space for its own writes, which the writer makes later.
    pub(super) lacks_room: bool,
    /// Copy that was made before a migration.
    pub(super) copy: Option<PathBuf>,
    /// Whether the whole file was checked. A large one is checked in the background.
    pub(super) is_checked: bool,
}

/// Checks the database, copies it if a migration is due, migrates it and switches it to WAL mode. A database with the
/// current schema needs no disk space.
///
/// # Errors
/// Fails if the file cannot be used; it is then unchanged.
pub(super) fn open(path: &Path, salt: &SaltStore) -> Result<Opened, OpenError> {
    match open_with(path, salt, WalIndex::Shared) {
        Err(OpenError::NoSpace { shortage, .. }) if has_content(path) => {
            let opened = open_with(path, salt, WalIndex::Private)?;
            tracing::warn!(
                cause = %shortage,
                "no space for writes, serving reads only; other programs such as sqlite3 find the database locked \
                 until a restart"
            );
            Ok(Opened { lacks_room: true, ..opened })
        }
        Ok(opened) => {
            if opened.lacks_room {
                tracing::warn!(cause = %Shortage::of(path), "no space for writes, serving reads only");
            }
            Ok(opened)
        }
        Err(error) => Err(error),
    }
}

fn open_with(path: &Path, salt: &SaltStore, wal_index: WalIndex) -> Result<Opened, OpenError> {
    maintenance::refuse_unfinished(path)?;
    let header = read_header(path)?;
    let existed = header.is_some();
    if !existed {
        refuse_orphaned_wal(path)?;
    }
    let mut connection = connect(path, wal_index, !existed)?;
    let sql = |source| OpenError::sqlite(path, source);
    // Until all checks have passed, closing must not checkpoint the WAL. Without a WAL there is nothing to checkpoint,
    // and closing removes the empty one that opening creates.
    let wal_has_content = has_content(&sibling(path, "-wal"));
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, wal_has_content).map_err(sql)?;
    let (generation, is_checked) = check(&connection, path, header.as_ref())?;
    if generation != Generation::Fresh && has_entries(&connection).map_err(sql)? {
        check_salt(&connection, path, salt, generation)?;
    }
    let copy = match generation {
        Generation::Fresh | Generation::Ours => None,
        old => Some(copy_once(&connection, path, old)?),
    };
    schema::migrate(&mut connection, generation).map_err(sql)?;
    let spelling = schema::null_encoding(&connection).map_err(sql)?;
    configure(&connection, path)?;
    let has_entries = has_entries(&connection).map_err(sql)?;
    let emptied = none_if_out_of_space(empty_wal(&connection, path)).map_err(sql)?;
    let bound = match has_entries {
        true => none_if_out_of_space(bind_to_salt(&mut connection, path, salt)).map_err(sql)?,
        false => None,
    };
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false).map_err(sql)?;
    if is_checked {
        check::clear_mark(path)?;
    }
    let is_bound_to_salt = bound.is_some();
    let lacks_room = emptied.is_none() || (has_entries && !is_bound_to_salt);
    Ok(Opened {
        connection,
        spelling,
        has_entries,
        is_bound_to_salt,
        wal_index,
        lacks_room,
        copy,
        is_checked,
    })
}

/// Opens a connection for writing. The flags are explicit, without `SQLITE_OPEN_URI`, which would interpret `?` and
/// `file:` in a path.
pub(super) fn connect(path: &Path, wal_index: WalIndex, create: bool) -> Result<Connection, OpenError> {
    if create {
        // Created here and not by SQLite, which would make it readable by all users.
        fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path)
            .map_err(|source| OpenError::access("create", path, source))?;
    }
    let connection = wal_index
        .connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)
        .map_err(|source| OpenError::sqlite(path, source))?;
    connection.set_prepared_statement_cache_capacity(64);
    // SQLite falls back to a read-only connection if it may not write.
    if connection.is_readonly(rusqlite::MAIN_DB).map_err(|source| OpenError::sqlite(path, source))? {
        return Err(OpenError::access("write", path, io::Error::from(io::ErrorKind::PermissionDenied)));
    }
    Ok(connection)
}

/// Reads the header. Returns `None` if the file is missing or empty; SQLite treats an empty file as an empty
/// database.
pub(super) fn read_header(path: &Path) -> Result<Option<Header>, OpenError> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(OpenError::access("read", path, error)),
    };
    let metadata = file.metadata().map_err(|error| OpenError::access("read", path, error))?;
    if !metadata.is_file() {
        return Err(unusable(path, "is not a regular file", "set OSC_DATABASE_PATH to a file"));
    }
    if metadata.len() == 0 {
        return Ok(None);
    }
    let mut bytes = [0; HEADER_BYTES];
    if let Err(error) = file.read_exact(&mut bytes) {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return Err(truncated(path));
        }
        return Err(OpenError::access("read", path, error));
    }
    if &bytes[..MAGIC.len()] != MAGIC {
        let remedy =
            "set OSC_DATABASE_PATH to a file of OpenSecureConf; if this was one, restore it from a backup";
        return Err(unusable(path, "is not a SQLite database", remedy));
    }
    let field = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    // A page size of 65536 is stored as 1.
    let page_bytes = match u16::from_be_bytes([bytes[16], bytes[17]]) {
        1 => 65536,
        size => u64::from(size),
    };
    let wal_mode = bytes[18] == 2;
    // The page count is valid only if the change counter equals "version valid for". The file may legitimately be
    // shorter than that while its last pages are in the WAL.
    let page_count_is_valid = field(24) == field(92);
    let is_whole = !(wal_mode && has_content(&sibling(path, "-wal")));
    if page_count_is_valid && is_whole && u64::from(field(28)) * page_bytes > metadata.len() {
        return Err(truncated(path));
    }
    let changed = |path: &Path| fs::metadata(path).ok().map(|found| (found.ctime(), found.ctime_nsec()));
    let is_later_than_wal = changed(path) > changed(&sibling(path, "-wal"));
    Ok(Some(Header { cycle: i64::from(field(60).cast_signed()), wal_mode, is_later_than_wal }))
}

fn unusable(path: &Path, what: &str, remedy: &'static str) -> OpenError {
    OpenError::Unusable { path: path.to_owned(), what: what.to_owned(), remedy }
}

fn truncated(path: &Path) -> OpenError {
    unusable(path, "is truncated (shorter than its header states)", RESTORE_UNCHANGED)
}

const RESTORE_UNCHANGED: &str = "restore it from a backup together with its -wal file, or save what can be read with \
     `sqlite3 FILE .recover` into a new file; nothing was changed";

/// Refuses a WAL beside a missing or empty database: SQLite would delete it, and acknowledged writes with it.
pub(super) fn refuse_orphaned_wal(path: &Path) -> Result<(), OpenError> {
    let wal = sibling(path, "-wal");
    match fs::metadata(&wal) {
        Ok(metadata) if metadata.len() > 0 => Err(OpenError::Unusable {
            path: path.to_owned(),
            what: format!("is missing or empty, but {} has content", wal.display()),
            remedy: "restore the database file of this WAL, or move the -wal file away to start with an empty database",
        }),
        _ => Ok(()),
    }
}

/// Checks the database. Also returns whether the whole file was checked; if not, a background check is due.
fn check(
    connection: &Connection,
    path: &Path,
    header: Option<&Header>,
) -> Result<(Generation, bool), OpenError> {
    let damaged = |what: &str| unusable(path, &format!("is damaged ({what})"), RESTORE_UNCHANGED);
    let undamaged = |checked: rusqlite::Result<Option<String>>| match checked {
        Ok(None) => Ok(()),
        Ok(Some(what)) => Err(damaged(&what)),
        Err(error) => Err(OpenError::sqlite(path, error)),
    };
    let mut is_checked = check::is_due_at_start(path);
    if is_checked {
        undamaged(check::quick(connection))?;
    }
    let generation = schema::detect(connection, path).map_err(|error| match error {
        OpenError::Engine { source, .. } if error::is_damage(&source) => damaged(&source.to_string()),
        other => other,
    })?;
    if !is_checked {
        // A migration changes the file, and takes longer than the check before it.
        is_checked = generation != Generation::Ours;
        undamaged(if is_checked { check::quick(connection) } else { check::ends(connection) })?;
    }
    if let Some(header) = header
        && (generation == Generation::Ours || !header.wal_mode)
    {
        check_wal_belongs(connection, path, header)?;
    }
    refuse_duplicate(connection, path, generation)?;
    Ok((generation, is_checked))
}

/// Refuses a database whose entries would violate the new unique index.
pub(super) fn refuse_duplicate(
    connection: &Connection,
    path: &Path,
    generation: Generation,
) -> Result<(), OpenError> {
    let duplicate =
        schema::duplicate_key(connection, generation).map_err(|error| OpenError::sqlite(path, error))?;
    match duplicate {
        Some(key) => Err(OpenError::Unusable {
            path: path.to_owned(),
            what: format!("has two entries with the key {key:?}"),
            remedy: "delete or rename one of them with sqlite3",
        }),
        None => Ok(()),
    }
}

/// Checks that the WAL belongs to the database.
///
/// SQLite replays a WAL over any database that it is beside. A database that was restored without removing the old
/// `-wal` would become a mixture of two states. Therefore each checkpoint cycle has a number: the header of the file
/// holds the last completed cycle, and the first commit of a cycle records in the WAL the cycle that it is based on
/// (`wal_base`). The two must match: they are equal, or the file is one ahead because a checkpoint was interrupted or
/// the Python server has written to the file since. In those two cases the WAL does not lower the number. A WAL that
/// does was copied in the middle of its cycle, and holds pages older than those of the database.
pub(super) fn check_wal_belongs(
    connection: &Connection,
    path: &Path,
    header: &Header,
) -> Result<(), OpenError> {
    let wal = sibling(path, "-wal");
    if !has_content(&wal) {
        return Ok(());
    }
    if !header.wal_mode {
        // A copy made by SQLite's backup is not in WAL mode, but SQLite would still replay the WAL over it.
        return Err(OpenError::Unusable {
            path: path.to_owned(),
            what: format!("is not in WAL mode, so {} does not belong to it", wal.display()),
            remedy: RESTORED,
        });
    }
    let base =
        schema::meta(connection, "wal_base").map_err(|error| OpenError::sqlite(path, error))?.unwrap_or(0);
    let cycle: i64 = connection
        .query_row("PRAGMA user_version", [], |row| row.get(0))
        .map_err(|error| OpenError::sqlite(path, error))?;
    if (0..=1).contains(&(header.cycle - base)) && cycle >= header.cycle {
        return if header.is_later_than_wal { refuse_copy_of_the_cycle(path, &wal) } else { Ok(()) };
    }
    Err(OpenError::Unusable {
        path: path.to_owned(),
        what: format!(
            "and {} do not belong together (cycle {} and {base} to {cycle})",
            wal.display(),
            header.cycle
        ),
        remedy: RESTORED,
    })
}

const RESTORED: &str = "if the database was restored from a backup, restore or move away its -wal and -shm files too; \
     nothing was changed";

/// Refuses a database that was copied in the middle of the current cycle of this WAL.
///
/// Such a copy matches the WAL, and replaying the WAL would undo the restore. It was written after the WAL, whereas the
/// server always leaves the WAL newer than the database (`Worker::checkpoint`).
fn refuse_copy_of_the_cycle(path: &Path, wal: &Path) -> Result<(), OpenError> {
    let is_in_mid_cycle = immutable::connect(path).and_then(|alone| schema::is_in_mid_cycle(&alone));
    match is_in_mid_cycle {
        Ok(true) => Err(OpenError::Unusable {
            path: path.to_owned(),
            what: format!("was changed after {}, which would undo that", wal.display()),
            remedy: "if it was restored from a backup, move its -wal and -shm files away; otherwise `touch` the -wal \
                     file; nothing was changed",
        }),
        Ok(false) => Ok(()),
        Err(error) => Err(OpenError::sqlite(path, error)),
    }
}

pub(super) fn has_content(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.len() > 0)
}

pub(super) fn has_entries(connection: &Connection) -> rusqlite::Result<bool> {
    connection.query_row("SELECT EXISTS (SELECT 1 FROM configurations)", [], |row| row.get(0))
}

/// Checks that the salt of a database with entries exists and is the one that encrypted them: entries that were written
/// under another salt are lost once the right one is restored. A database without a tag accepts the salt unchecked.
pub(super) fn check_salt(
    connection: &Connection,
    path: &Path,
    salt: &SaltStore,
    generation: Generation,
) -> Result<(), OpenError> {
    let unusable = |what, remedy| Err(OpenError::Unusable { path: salt.path().to_owned(), what, remedy });
    let Some(current) = salt.current() else {
        return unusable(
            format!("is missing, but {} has entries that were sealed with it", path.display()),
            "restore the salt file from a backup or from another node (a new salt would make every entry \
             unreadable), or set OSC_SALT_FILE_PATH to its path",
        );
    };
    let bound = match generation {
        Generation::Ours => schema::salt_tag(connection).map_err(|source| OpenError::sqlite(path, source))?,
        _ => None,
    };
    if bound.is_none() || bound == salt.tag() {
        return Ok(());
    }
    if salt.is_accepted(&current) {
        tracing::warn!(
            salt = %salt.path().display(),
            database = %path.display(),
            "the database had another salt; using this one because OSC_ACCEPT_SALT names it, entries encrypted under \
             the other salt cannot be decrypted"
        );
        return Ok(());
    }
    unusable(
        format!("does not fit {}, whose entries were sealed with another salt", path.display()),
        "put the salt file of this database back, or the database of this salt; if this salt is the right one and the \
         database was once started with a wrong one, set OSC_ACCEPT_SALT to the SHA-256 of the file (sha256sum FILE); \
         nothing was changed",
    )
}

/// Writes the tag of the salt into a database that has entries and another tag or none.
fn bind_to_salt(connection: &mut Connection, path: &Path, salt: &SaltStore) -> rusqlite::Result<()> {
    if schema::salt_tag(connection)? == salt.tag() {
        return Ok(());
    }
    let begins_cycle = !has_content(&sibling(path, "-wal"));
    let transaction = Transaction::new(connection, TransactionBehavior::Immediate)?;
    if begins_cycle {
        schema::begin_cycle(&transaction)?;
    }
    schema::set_salt_tag(&transaction, salt.tag())?;
    transaction.commit()?;
    tracing::info!(
        salt = %salt.path().display(),
        database = %path.display(),
        "database bound to this salt; only a user key can show whether it decrypts the entries"
    );
    Ok(())
}

fn configure(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let sql = |source| OpenError::sqlite(path, source);
    connection.busy_timeout(SQLITE_BUSY_TIMEOUT).map_err(sql)?;
    let mode: String = connection.query_row("PRAGMA journal_mode=WAL", [], |row| row.get(0)).map_err(sql)?;
    if mode != "wal" {
        let remedy = "put the database on a local file system";
        return Err(unusable(
            path,
            "cannot be switched to WAL (its file system has no shared memory)",
            remedy,
        ));
    }
    connection
        .execute_batch(
            "PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=0; PRAGMA temp_store=MEMORY; \
             PRAGMA trusted_schema=OFF; PRAGMA cache_size=-8000; PRAGMA mmap_size=0;",
        )
        .map_err(sql)?;
    // The triggers record changes by other programs; this connection records its own.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false).map(|_| ()).map_err(sql)
}

/// Empties the WAL. Content that a crash left in it ends its cycle; the next one has another number and an empty WAL.
fn empty_wal(connection: &Connection, path: &Path) -> rusqlite::Result<()> {
    if has_content(&sibling(path, "-wal")) {
        schema::end_cycle(connection)?;
    }
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
}

/// Turns a lack of disk space into `None`, for writes that can be postponed.
fn none_if_out_of_space<T>(outcome: rusqlite::Result<T>) -> rusqlite::Result<Option<T>> {
    match outcome {
        Ok(done) => Ok(Some(done)),
        Err(error) if error::is_out_of_space(&error) => {
            tracing::debug!(%error, "write postponed for lack of space");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Copies the database including its WAL to `FILE.backup-GENERATION`, completely or not at all.
fn copy_once(connection: &Connection, path: &Path, generation: Generation) -> Result<PathBuf, OpenError> {
    let name = format!(".backup-{}", generation.name());
    let target = (1..)
        .map(|number| sibling(path, &if number == 1 { name.clone() } else { format!("{name}.{number}") }))
        .find(|candidate| !candidate.exists())
        .expect("one of infinitely many names is free");
    let unfinished = sibling(path, ".backup-unfinished");
    let copied = copy_to(connection, &unfinished).and_then(|()| {
        fs::rename(&unfinished, &target).map_err(|error| OpenError::access("rename", &unfinished, error))
    });
    if copied.is_err() {
        fs::remove_file(&unfinished).ok();
    }
    copied?;
    sync_directory(&target)?;
    Ok(target)
}

pub(super) fn copy_to(connection: &Connection, target: &Path) -> Result<(), OpenError> {
    let sql = |source| OpenError::sqlite(target, source);
    let access = |error| OpenError::access("copy the database to", target, error);
    fs::remove_file(target).or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(access(error)),
    })?;
    {
        let mut copy = Connection::open(target).map_err(sql)?;
        copy_into(connection, &mut copy).map_err(sql)?;
    }
    let file = File::open(target).map_err(access)?;
    file.set_permissions(fs::Permissions::from_mode(0o600)).map_err(access)?;
    file.sync_all().map_err(access)
}

/// Copies all pages in one step, and therefore of one snapshot, regardless of concurrent writes.
pub(super) fn copy_into(connection: &Connection, copy: &mut Connection) -> rusqlite::Result<()> {
    let backup = backup::Backup::new(connection, copy)?;
    let started = Instant::now();
    loop {
        match backup.step(-1)? {
            backup::StepResult::Done => return Ok(()),
            _ if started.elapsed() < SQLITE_BUSY_TIMEOUT => thread::sleep(SQLITE_BUSY_PAUSE),
            _ => return Err(rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_BUSY), None)),
        }
    }
}
