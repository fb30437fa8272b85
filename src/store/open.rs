//! Opening the files: everything is checked before the first byte is changed.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior, backup, ffi};

use super::error::OpenError;
use super::room::{self, Shortage, WalIndex};
use super::salt_file::SaltFile;
use super::schema::{self, Generation, NullEncoding};
use super::{BUSY_TIMEOUT, check, immutable, maintenance};

/// Between two attempts to copy a database that another program has locked.
const BUSY_PAUSE: Duration = Duration::from_millis(20);
/// The magic of a SQLite database, <https://sqlite.org/fileformat2.html>, section 1.3.
pub(super) const MAGIC: &[u8; 16] = b"SQLite format 3\0";
pub(super) const HEADER_BYTES: usize = 100;

/// What the database file says of itself before SQLite has seen it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// `PRAGMA user_version` of the file without its WAL: the number of its checkpoint cycle.
    cycle: i64,
    /// The file is in WAL mode.
    wal_mode: bool,
    /// The file was changed after its WAL. As root, SQLite changes the WAL when it opens it.
    is_later_than_wal: bool,
}

/// The connection of the writer, the file migrated and in WAL mode.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) connection: Connection,
    pub(super) spelling: NullEncoding,
    pub(super) has_entries: bool,
    /// There are entries, and the database has the tag of the salt that they were sealed with.
    pub(super) is_bound_to_salt: bool,
    pub(super) wal_index: WalIndex,
    /// What the start would have written, it had no room for: the writer does it later.
    pub(super) lacks_room: bool,
    /// The copy that was made before a migration.
    pub(super) copy: Option<PathBuf>,
    /// The whole file was checked; a large one must still be.
    pub(super) is_checked: bool,
}

/// Checks, copies if a migration is due, migrates, and switches to WAL. A database in the current shape needs no room.
///
/// # Errors
/// When the file cannot be used; it is unchanged then.
pub(super) fn open(path: &Path, salt: &SaltFile) -> Result<Opened, OpenError> {
    match open_with(path, salt, WalIndex::Shared) {
        Err(OpenError::NoRoom { shortage, .. }) if has_content(path) => {
            let opened = open_with(path, salt, WalIndex::Private)?;
            tracing::warn!(
                "no room for writes, reading goes on: {shortage}; until the next start, other programs such as sqlite3 \
                 find the database locked"
            );
            Ok(Opened { lacks_room: true, ..opened })
        }
        Ok(opened) => {
            if opened.lacks_room {
                tracing::warn!("no room for writes, reading goes on: {}", Shortage::of(path));
            }
            Ok(opened)
        }
        Err(error) => Err(error),
    }
}

fn open_with(path: &Path, salt: &SaltFile, wal_index: WalIndex) -> Result<Opened, OpenError> {
    maintenance::refuse_unfinished(path)?;
    let header = read_header(path)?;
    let existed = header.is_some();
    if !existed {
        refuse_orphaned_wal(path)?;
    }
    let mut connection = connect(path, wal_index, !existed)?;
    let sql = |source| OpenError::sqlite(path, source);
    // Until everything is known to be right, closing must not move the WAL into the database.
    // Without a WAL there is nothing to move, and closing removes the empty one that opening makes.
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
    let spelling = schema::spelling(&connection).map_err(sql)?;
    configure(&connection, path)?;
    let has_entries = has_entries(&connection).map_err(sql)?;
    let emptied = if_there_is_room(empty_wal(&connection, path)).map_err(sql)?;
    let bound = match has_entries {
        true => if_there_is_room(bind_to_salt(&mut connection, path, salt)).map_err(sql)?,
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

/// Explicit flags: no `SQLITE_OPEN_URI`, which would give `?` and `file:` in a path a meaning.
pub(super) fn connect(path: &Path, wal_index: WalIndex, create: bool) -> Result<Connection, OpenError> {
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
    let connection = wal_index
        .connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)
        .map_err(|source| OpenError::sqlite(path, source))?;
    connection.set_prepared_statement_cache_capacity(64);
    // SQLite falls back to reading when it may not write.
    if connection.is_readonly(rusqlite::MAIN_DB).map_err(|source| OpenError::sqlite(path, source))? {
        return Err(OpenError::access("write", path, io::Error::from(io::ErrorKind::PermissionDenied)));
    }
    Ok(connection)
}

/// `None` when there is no file, or an empty one, which is what SQLite calls an empty database.
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
    let changed = |path: &Path| fs::metadata(path).ok().map(|found| (found.ctime(), found.ctime_nsec()));
    let is_later_than_wal = changed(path) > changed(&sibling(path, "-wal"));
    Ok(Some(Header { cycle: i64::from(field(60).cast_signed()), wal_mode, is_later_than_wal }))
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
pub(super) fn refuse_orphaned_wal(path: &Path) -> Result<(), OpenError> {
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
    if let Some(header) = header
        && (generation == Generation::Ours || !header.wal_mode)
    {
        check_wal_belongs(connection, path, header)?;
    }
    refuse_duplicate(connection, path, generation)?;
    Ok((generation, is_checked))
}

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

/// SQLite replays a WAL over whatever database it lies beside, so a database that was restored
/// alone, its old `-wal` left there, would become a mixture of two states. Each checkpoint cycle has
/// a number: the file's header holds the last one that was completed, and the first commit of a
/// cycle writes into the WAL on which one it builds (`wal_base`). They must fit: equal, or the file
/// one ahead, when a checkpoint was cut short or the original wrote to the file since. In those two
/// cases the WAL does not take the number back: one that does was copied in the middle of its cycle,
/// and holds old pages of which the database has newer ones.
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
        // A copy by SQLite's backup has left that mode. The WAL would be replayed over it all the same.
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

/// A database that was copied in the middle of the cycle of this very WAL fits it, and replaying the WAL would undo the
/// restore. It was written after the WAL, which the server leaves as it is only after the database
/// (`Worker::checkpoint`).
fn refuse_copy_of_the_cycle(path: &Path, wal: &Path) -> Result<(), OpenError> {
    let is_in_mid_cycle = immutable::connect(path).and_then(|alone| schema::is_in_mid_cycle(&alone));
    match is_in_mid_cycle {
        Ok(true) => Err(OpenError::Unusable {
            path: path.to_owned(),
            what: format!("was changed after {}, which would undo that", wal.display()),
            remedy: "if it was restored from a backup, move its -wal and -shm files away; if not, `touch` the -wal file; \
                     nothing was changed",
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

/// The salt of a database that has entries must be there, and must be the one they were sealed with: what is written
/// under another one is lost as soon as the right one is back. Without a tag yet the salt is believed.
pub(super) fn check_salt(
    connection: &Connection,
    path: &Path,
    salt: &SaltFile,
    generation: Generation,
) -> Result<(), OpenError> {
    let unusable = |what, remedy| Err(OpenError::Unusable { path: salt.path().to_owned(), what, remedy });
    let Some(current) = salt.current() else {
        return unusable(
            format!("is missing, but {} has entries that were sealed with it", path.display()),
            "restore the salt file from a backup or from another node (a new salt would make every entry \
             unreadable), or set OSC_SALT_FILE_PATH to where it is",
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
            "the database had another salt; this one is used because OSC_ACCEPT_SALT names it, and entries that were \
             sealed with the other one do not open"
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

/// Puts the tag of the salt into a database that has entries and another tag, or none yet.
fn bind_to_salt(connection: &mut Connection, path: &Path, salt: &SaltFile) -> rusqlite::Result<()> {
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
        "the database is bound to this salt from now on; whether its entries open can only be seen with their user keys"
    );
    Ok(())
}

fn configure(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let sql = |source| OpenError::sqlite(path, source);
    connection.busy_timeout(BUSY_TIMEOUT).map_err(sql)?;
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
        .map_err(sql)
}

/// What a crash left in the WAL ends its cycle; the next one has another number and an empty WAL.
fn empty_wal(connection: &Connection, path: &Path) -> rusqlite::Result<()> {
    if has_content(&sibling(path, "-wal")) {
        schema::end_cycle(connection)?;
    }
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
}

/// `None` for what can wait until there is room.
fn if_there_is_room<T>(outcome: rusqlite::Result<T>) -> rusqlite::Result<Option<T>> {
    match outcome {
        Ok(done) => Ok(Some(done)),
        Err(error) if room::is_lack_of_room(&error) => {
            tracing::debug!(%error, "left to a later time, for want of room");
            Ok(None)
        }
        Err(error) => Err(error),
    }
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

/// Copies all pages in one step, and so of one snapshot, whatever is written meanwhile.
pub(super) fn copy_into(connection: &Connection, copy: &mut Connection) -> rusqlite::Result<()> {
    let backup = backup::Backup::new(connection, copy)?;
    let started = Instant::now();
    loop {
        match backup.step(-1)? {
            backup::StepResult::Done => return Ok(()),
            _ if started.elapsed() < BUSY_TIMEOUT => thread::sleep(BUSY_PAUSE),
            _ => return Err(rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_BUSY), None)),
        }
    }
}

/// The file that a link leads to, or would: SQLite puts its own files beside that.
pub(super) fn resolved(path: &Path) -> PathBuf {
    if !path.is_symlink() {
        return path.to_owned();
    }
    path.canonicalize().unwrap_or_else(|_| match fs::read_link(path) {
        Ok(target) => directory_of(path).join(target),
        Err(_) => path.to_owned(),
    })
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
