//! Opening the files: everything is checked before the first byte is changed.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, backup};

use super::check;
use super::error::OpenError;
use super::schema::{self, Generation, Spelling};

/// The magic of a SQLite database, <https://sqlite.org/fileformat2.html>, section 1.3.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";
const HEADER_BYTES: usize = 100;

/// What the database file says of itself before SQLite has seen it.
#[derive(Debug, PartialEq, Eq)]
struct Header {
    /// `PRAGMA user_version` of the file without its WAL: the number of its checkpoint cycle.
    cycle: i64,
    /// The file is in WAL mode.
    wal_mode: bool,
}

/// The connection of the writer, the file migrated and in WAL mode.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) connection: Connection,
    pub(super) spelling: Spelling,
    pub(super) has_entries: bool,
    /// The copy that was made before a migration.
    pub(super) copy: Option<PathBuf>,
    /// The whole file was checked; a large one must still be.
    pub(super) is_checked: bool,
}

/// Checks, copies if a migration is due, migrates, and switches to WAL.
///
/// # Errors
/// When the file cannot be used; it is unchanged then.
pub(super) fn open(path: &Path, salt: &Path, salt_is_there: bool) -> Result<Opened, OpenError> {
    let header = read_header(path)?;
    let existed = header.is_some();
    if !existed {
        refuse_orphaned_wal(path)?;
    }
    let mut connection = connect(path, !existed)?;
    let sql = |source| OpenError::sqlite(path, source);
    // Until everything is known to be right, closing must not move the WAL into the database.
    // Without a WAL there is nothing to move, and closing removes the empty one that opening makes.
    let wal_has_content = has_content(&sibling(path, "-wal"));
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, wal_has_content).map_err(sql)?;
    let (generation, is_checked) = check(&connection, path, header.as_ref())?;
    if !salt_is_there {
        refuse_entries_without_salt(&connection, path, salt, generation)?;
    }
    let copy = match generation {
        Generation::Fresh | Generation::Ours => None,
        old => Some(copy_once(&connection, path, old)?),
    };
    schema::migrate(&mut connection, generation).map_err(sql)?;
    let spelling = schema::spelling(&connection).map_err(sql)?;
    configure(&connection, path)?;
    let has_entries = connection
        .query_row("SELECT EXISTS (SELECT 1 FROM configurations)", [], |row| row.get(0))
        .map_err(sql)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false).map_err(sql)?;
    if is_checked {
        check::clear_mark(path)?;
    }
    Ok(Opened { connection, spelling, has_entries, copy, is_checked })
}

/// Explicit flags: no `SQLITE_OPEN_URI`, which would give `?` and `file:` in a path a meaning.
fn connect(path: &Path, create: bool) -> Result<Connection, OpenError> {
    if create {
        // Made here and not by SQLite, which would leave it readable by everyone.
        fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path)
            .map_err(|source| OpenError::access("create", path, source))?;
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection =
        Connection::open_with_flags(path, flags).map_err(|source| OpenError::sqlite(path, source))?;
    connection.set_prepared_statement_cache_capacity(64);
    // SQLite falls back to reading when it may not write.
    if connection.is_readonly(rusqlite::MAIN_DB).map_err(|source| OpenError::sqlite(path, source))? {
        return Err(OpenError::access("write", path, io::Error::from(io::ErrorKind::PermissionDenied)));
    }
    Ok(connection)
}

/// `None` when there is no file, or an empty one, which is what SQLite calls an empty database.
fn read_header(path: &Path) -> Result<Option<Header>, OpenError> {
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
    // A page size of 65536 is written as 1.
    let page_bytes = match u16::from_be_bytes([bytes[16], bytes[17]]) {
        1 => 65536,
        size => u64::from(size),
    };
    let wal_mode = bytes[18] == 2;
    // The page count is valid only if the change counter agrees with "version valid for", and the file
    // may rightly be shorter than that if its last pages are still in a WAL.
    let page_count_is_valid = field(24) == field(92);
    let is_whole = !(wal_mode && has_content(&sibling(path, "-wal")));
    if page_count_is_valid && is_whole && u64::from(field(28)) * page_bytes > metadata.len() {
        return Err(truncated(path));
    }
    Ok(Some(Header { cycle: i64::from(field(60).cast_signed()), wal_mode }))
}

fn unusable(path: &Path, what: &str, remedy: &'static str) -> OpenError {
    OpenError::Unusable { path: path.to_owned(), what: what.to_owned(), remedy }
}

fn truncated(path: &Path) -> OpenError {
    unusable(path, "is truncated (shorter than its own header says)", RESTORE_UNCHANGED)
}

const RESTORE_UNCHANGED: &str = "restore it from a backup together with its -wal file, or save what can be read with \
     `sqlite3 FILE .recover` into a new file; nothing was changed";

/// SQLite deletes a WAL that it finds beside a missing or empty database, and acknowledged writes with it.
fn refuse_orphaned_wal(path: &Path) -> Result<(), OpenError> {
    let wal = sibling(path, "-wal");
    match fs::metadata(&wal) {
        Ok(metadata) if metadata.len() > 0 => Err(OpenError::Unusable {
            path: path.to_owned(),
            what: format!("is missing or empty, but {} has content", wal.display()),
            remedy: "restore the database file that belongs to it, or move the -wal file away to start empty",
        }),
        _ => Ok(()),
    }
}

/// Also answers whether the whole file was checked; if not, that is still to be done.
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
        OpenError::Sqlite { source, .. } if check::is_damage(&source) => damaged(&source.to_string()),
        other => other,
    })?;
    if !is_checked {
        // A migration changes the file, and takes longer than a check.
        is_checked = generation != Generation::Ours;
        undamaged(if is_checked { check::quick(connection) } else { check::ends(connection) })?;
    }
    if let (Generation::Ours, Some(header)) = (generation, header) {
        check_wal_belongs(connection, path, header)?;
    }
    let duplicate =
        schema::duplicate_key(connection, generation).map_err(|error| OpenError::sqlite(path, error))?;
    if let Some(key) = duplicate {
        return Err(OpenError::Unusable {
            path: path.to_owned(),
            what: format!("has two entries with the key {key:?}"),
            remedy: "delete or rename one of them with sqlite3",
        });
    }
    Ok((generation, is_checked))
}

/// SQLite replays a WAL over whatever database it lies beside, so a database that was restored
/// alone, its old `-wal` left there, would become a mixture of two states. Each checkpoint cycle has
/// a number: the file's header holds the last one that was completed, and the first commit of a
/// cycle writes into the WAL on which one it builds (`wal_base`). They must fit: equal, or the file
/// one ahead, when a checkpoint was cut short or the original wrote to the file since. In those two
/// cases the WAL does not take the number back: one that does was copied in the middle of its cycle,
/// and holds old pages of which the database has newer ones.
fn check_wal_belongs(connection: &Connection, path: &Path, header: &Header) -> Result<(), OpenError> {
    let wal = sibling(path, "-wal");
    if !(header.wal_mode && has_content(&wal)) {
        return Ok(());
    }
    let base =
        schema::meta(connection, "wal_base").map_err(|error| OpenError::sqlite(path, error))?.unwrap_or(0);
    let cycle: i64 = connection
        .query_row("PRAGMA user_version", [], |row| row.get(0))
        .map_err(|error| OpenError::sqlite(path, error))?;
    if (0..=1).contains(&(header.cycle - base)) && cycle >= header.cycle {
        return Ok(());
    }
    Err(OpenError::Unusable {
        path: path.to_owned(),
        what: format!(
            "and {} do not belong together (cycle {} and {base} to {cycle})",
            wal.display(),
            header.cycle
        ),
        remedy: "if the database was restored from a backup, restore or move away its -wal and -shm files too; \
                 nothing was changed",
    })
}

fn has_content(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.len() > 0)
}

/// A new salt would make every entry unreadable for ever.
fn refuse_entries_without_salt(
    connection: &Connection,
    path: &Path,
    salt: &Path,
    generation: Generation,
) -> Result<(), OpenError> {
    if generation == Generation::Fresh {
        return Ok(());
    }
    let has_entries: bool = connection
        .query_row("SELECT EXISTS (SELECT 1 FROM configurations)", [], |row| row.get(0))
        .map_err(|source| OpenError::sqlite(path, source))?;
    if !has_entries {
        return Ok(());
    }
    Err(OpenError::Unusable {
        path: salt.to_owned(),
        what: format!("is missing, but {} has entries that were sealed with it", path.display()),
        remedy: "restore the salt file from a backup or from another node (a new salt would make every entry \
                 unreadable), or set OSC_SALT_FILE_PATH to where it is",
    })
}

fn configure(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let sql = |source| OpenError::sqlite(path, source);
    connection.busy_timeout(super::BUSY_TIMEOUT).map_err(sql)?;
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
    // What a crash left in the WAL ends its cycle; the next one has another number and an empty WAL.
    if has_content(&sibling(path, "-wal")) {
        schema::end_cycle(connection).map_err(sql)?;
    }
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).map_err(sql)
}

/// Copies the database with whatever its WAL holds to `FILE.backup-GENERATION`, completely or not at all.
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

fn copy_to(connection: &Connection, target: &Path) -> Result<(), OpenError> {
    let sql = |source| OpenError::sqlite(target, source);
    let access = |error| OpenError::access("copy the database to", target, error);
    fs::remove_file(target).or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(access(error)),
    })?;
    {
        let mut copy = Connection::open(target).map_err(sql)?;
        let backup = backup::Backup::new(connection, &mut copy).map_err(sql)?;
        backup.run_to_completion(1024, std::time::Duration::ZERO, None).map_err(sql)?;
    }
    let file = File::open(target).map_err(access)?;
    file.set_permissions(fs::Permissions::from_mode(0o600)).map_err(access)?;
    file.sync_all().map_err(access)
}

/// `path` with `suffix` behind its name, as SQLite names its own files.
pub(super) fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Makes a new name in the directory of `path` durable.
pub(super) fn sync_directory(path: &Path) -> Result<(), OpenError> {
    let directory = directory_of(path);
    File::open(&directory)
        .and_then(|handle| handle.sync_all())
        .map_err(|error| OpenError::access("sync the directory", &directory, error))
}

/// The directory that holds `path`: for a bare file name the working directory.
pub(super) fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}
