//! Every bound of the server in one place: bytes, counts and durations, with the relations
//! between them checked at compile time.
//!
//! Names end in the unit or the qualifier (`_BYTES_MAX`, `_COUNT_MAX`, `_MS`).

use std::time::Duration;

// --- entries (contract of the API) -----------------------------------------------------------

/// Longest entry key, in Unicode scalar values, not bytes.
pub const ENTRY_KEY_CHARS_MAX: usize = 255;
/// Longest category, in Unicode scalar values.
pub const CATEGORY_CHARS_MAX: usize = 100;
/// Longest environment, in Unicode scalar values.
pub const ENVIRONMENT_CHARS_MAX: usize = 100;
/// Longest text that a 422 answer shows of what was found, its quotes included: a name that is one character too
/// long is shown, a value in the place of a name is not.
pub const FAULT_INPUT_CHARS_MAX: usize = ENTRY_KEY_CHARS_MAX + 3;
/// Deepest nesting of arrays and objects in a request body. The original stores deeper values, but
/// its own encoder stops at about 250 levels below the value and then fails for ever after.
pub const JSON_DEPTH_MAX: usize = 256;
/// Most digits of an integer: CPython refuses to parse longer ones (`sys.int_info`), so a value
/// with more of them could not be read by the published clients.
pub const JSON_INTEGER_DIGITS_MAX: usize = 4300;

/// Longest token: a value that fills a whole body, sealed.
pub const TOKEN_BYTES_MAX: usize = BODY_BYTES_MAX + 73;

// --- HTTP ------------------------------------------------------------------------------------

/// Longest request line (method, target, version); beyond it 414.
pub const REQUEST_LINE_BYTES_MAX: usize = 8 * 1024;
/// Longest request head; beyond it 431.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Most header fields in a request; beyond it 431.
pub const HEADERS_COUNT_MAX: usize = 64;
/// Largest request body; beyond it 413. Leaves room for a value of 1 MiB in escapes.
pub const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Largest body between nodes: one value of the largest size, sealed, in base64.
pub const PEER_BODY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// A body between nodes that is larger is read and written by the pool: an executor needs about a millisecond for
/// so much JSON.
pub const PEER_INLINE_BYTES: usize = 64 * 1024;
/// Bytes of large bodies between nodes, and of answers to them, that the process works on at a time; beyond it 503.
pub const PEER_WORK_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes of request bodies that one shard holds at a time; beyond it 503.
pub const BODIES_BYTES_MAX_PER_SHARD: usize = 64 * 1024 * 1024;
/// A connection that has waited for its client so long gives way to others when a budget of bytes is used up.
pub const STALL_UNDER_PRESSURE: Duration = Duration::from_secs(2);
/// Connections of one executor that give way in one tick, because other executors found no room.
pub const EVICTIONS_COUNT_MAX_PER_TICK: u64 = 64;
/// Longest chunk extension of one chunk; beyond it 400.
pub const CHUNK_EXTENSION_BYTES_MAX: usize = 256;
/// Longest sum of all chunk extensions of one body; beyond it 400.
pub const CHUNK_EXTENSIONS_BYTES_MAX: usize = 16 * 1024;
/// Longest trailer section; beyond it 431.
pub const TRAILERS_BYTES_MAX: usize = 8 * 1024;
/// Requests on one connection; the last answer says `Connection: close`. High, because the limit
/// only serves to move long-lived connections between executors now and then.
pub const REQUESTS_COUNT_MAX_PER_CONNECTION: u32 = 1_000_000;
/// Connections of the process at a time; beyond it 503.
pub const CONNECTIONS_COUNT_MAX: usize = 10_240;
/// Connections beyond that number that the admin listener still accepts.
pub const ADMIN_CONNECTIONS_RESERVE: usize = 8;
/// A value or an answer that is longer than this is sent piece by piece.
pub const LARGE_VALUE_BYTES: usize = 64 * 1024;
/// Bytes of one piece; a multiple of a block of AES.
pub const PIECE_BYTES: usize = 32 * 1024;
/// Memory that one waiting piece takes, in pieces: that of the connection, and of TLS or the ring.
pub const PIECE_COPIES: usize = 3;
/// Bytes of answers that wait for their clients, of the whole process, at least.
pub const ANSWERS_BYTES_MIN: usize = 32 * 1024 * 1024;
/// The same, at most.
pub const ANSWERS_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Between the two it is this part of the memory that the process may use: one sixteenth.
pub const ANSWERS_MEMORY_PART: u64 = 16;
/// Without a setting, one address may have this part of the connections: a flood from one leaves room for others.
pub const CONNECTIONS_PER_ADDRESS_PART: (usize, usize) = (3, 4);
/// Bytes that pipelined answers may gather before they are written.
pub const OUTBOX_BYTES_MAX: usize = 64 * 1024;
/// Initial and idle size of a connection's read buffer.
pub const INBOX_BYTES: usize = 2 * 1024;
/// API keys that are valid at a time: each request is compared with all of them.
pub const API_KEYS_COUNT_MAX: usize = 64;
/// Largest file of API keys that is read.
pub const API_KEY_FILE_BYTES_MAX: u64 = 64 * 1024;
/// Largest file of certificates or keys that is read; bundles of all public authorities have a quarter of this.
pub const TLS_FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Longest rest of a header of the PROXY protocol: addresses and the extensions that load balancers add.
pub const PROXY_HEADER_BYTES_MAX: usize = 2048;
/// Lines of the access log that one executor writes in a second about reads that were answered from memory; of
/// those beyond it only the number is logged.
pub const ACCESS_LINES_PER_SECOND: u32 = 100;
/// Buffers of each kind that a shard keeps for connections that have none.
pub const SPARE_BUFFERS_COUNT_MAX: usize = 256;
/// Bytes that the kernel holds for a connection without having sent them.
pub const UNSENT_BYTES_MAX: u32 = 256 * 1024;
/// Backlog of each listening socket (Linux caps it at `net.core.somaxconn`).
pub const LISTEN_BACKLOG: i32 = 4096;

/// From the first byte of a request head to its last; beyond it 408.
pub const HEAD_DEADLINE: Duration = Duration::from_secs(10);
/// Longest time for the next [`TRANSFER_BYTES_MIN`] of a request body, or for its end; beyond it 408.
pub const BODY_DEADLINE: Duration = Duration::from_secs(10);
/// Fewest bytes of a body or an answer in each window of [`BODY_DEADLINE`] or [`WRITE_STALL`]: 1 KiB/s.
pub const TRANSFER_BYTES_MIN: usize = 10 * 1024;
/// Idle keep-alive connections are closed after this.
pub const KEEP_ALIVE_IDLE: Duration = Duration::from_secs(60);
/// Longest time for a client to take the next [`TRANSFER_BYTES_MIN`] of its answers; beyond it the client is dropped.
pub const WRITE_STALL: Duration = Duration::from_secs(10);
/// How long bytes are read and thrown away after an error, so that the answer is not lost to a reset.
pub const LINGER: Duration = Duration::from_secs(2);
/// How often a shard looks at the deadlines of its connections.
pub const DEADLINE_TICK: Duration = Duration::from_millis(100);

// --- HTTP between nodes ----------------------------------------------------------------------

/// Interim responses (1xx) that are skipped before the one that counts; beyond it the call fails.
/// This server sends none that was not asked for, and a proxy between has no reason to send many.
pub const INTERIM_RESPONSES_COUNT_MAX: usize = 8;

// --- work ------------------------------------------------------------------------------------

/// PBKDF2 rounds: part of the file format of the original.
pub const KDF_ROUNDS: u32 = 480_000;
/// Derivations that may wait in the queue, for each deriving thread; beyond it 503.
/// At 20 to 30 ms each, two side by side, this is a wait of a second on a core with little else to do.
pub const DERIVATIONS_QUEUED_MAX_PER_THREAD: usize = 32;
/// Reads of the database that may wait; beyond it 503.
pub const STORE_READS_QUEUED_MAX: usize = 4096;
/// For so long a thread of the pool gathers the results of reads that wait before it tells them: about ten.
pub const READS_GATHERED: Duration = Duration::from_micros(200);
/// Writes that may wait for the writer; beyond it 503.
pub const WRITES_QUEUED_MAX: usize = 4096;
/// Writes in one transaction.
pub const WRITES_PER_COMMIT_MAX: usize = 256;
/// What a client is told to wait after a 503, in seconds.
pub const RETRY_AFTER_SECONDS: u32 = 1;
/// Nice value of the pool's threads: cached reads go before derivations.
pub const POOL_NICE: i32 = 10;

/// Time in which the failed keys that are allowed to a client are forgotten.
pub const FAILURE_WINDOW: Duration = Duration::from_secs(60);
/// Longest delay of the response to a failed key, before further ones are refused with 429.
pub const FAILURE_DELAY_MAX: Duration = Duration::from_secs(1);
/// Failed keys that are allowed for one entry, of all clients together, as a multiple of those of one client.
pub const FAILURES_PER_ENTRY_FACTOR: u32 = 4;
/// Parts of each table of failures, with a lock each.
pub const FAILURES_TRACKED_SHARDS: usize = 64;
/// Clients, keys or entries in one part; beyond it the ones with the fewest failures are forgotten.
pub const FAILURES_TRACKED_COUNT_MAX_PER_SHARD: usize = 512;
/// For this long a client that opened an entry may try keys on it while others fail on it.
pub const OPENER_KNOWN: Duration = Duration::from_secs(24 * 60 * 60);

/// Derived keys that have opened an entry.
pub const DERIVED_KEYS_PROVEN_MAX: usize = 4096;
/// Derived keys that have opened nothing yet.
pub const DERIVED_KEYS_UNPROVEN_MAX: usize = 256;
/// Derived keys unused for this long are wiped.
pub const DERIVED_KEY_IDLE: Duration = Duration::from_secs(15 * 60);

/// Memory for cached rows, at least; a store that was not read holds none of it.
pub const ENTRY_CACHE_BYTES_MIN: usize = 16 * 1024 * 1024;
/// The same, at most: more than a million small entries. A row that is not cached costs a thread and SQLite.
pub const ENTRY_CACHE_BYTES_MAX: usize = 1024 * 1024 * 1024;
/// Between the two it is this part of the memory that the process may use: one eighth.
pub const ENTRY_CACHE_MEMORY_PART: u64 = 8;
/// This part of it is for pages of lists: one eighth.
pub const PAGE_CACHE_PART: usize = 8;
/// Pages that are cached: each write looks at all of them.
pub const PAGES_CACHED_COUNT_MAX: usize = 64;
/// Bytes of changed rows that are remembered while a page is read, before that page is not cached.
pub const PAGE_CHANGES_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Environments of one entry key that are cached together; a key with more is read from the database.
pub const ENTRY_GROUP_COUNT_MAX: usize = 64;
/// Bytes of tokens that one page of a list reads from the database.
pub const LIST_PAGE_BYTES: usize = 1024 * 1024;
/// Rows that one page of a list reads from the database.
pub const LIST_PAGE_ROWS_MAX: usize = 4096;
/// A page of a list that is in memory and takes no more of it is opened by the executor, in less than 100 us:
/// about 280 small entries. Asking the pool would cost 40 us more.
pub const LIST_INLINE_BYTES: usize = 128 * 1024;
/// Largest `limit` of a list.
pub const LIST_LIMIT_MAX: u64 = 1_000_000;

// --- files -----------------------------------------------------------------------------------

/// Size of a salt; others are refused unless `OSC_ACCEPT_SALT` names them.
pub const SALT_BYTES: usize = 64;
/// A salt with fewer distinct byte values is not random. One of 64 random bytes has about 56; that it has at most
/// 15 is less probable than C(256, 15) (15/256)^64 < 2^-180.
pub const SALT_DISTINCT_BYTES_MIN: usize = 16;
/// Shorter salts get no tag in the database: 128 bits and more cannot be found by trying them against it.
pub const SALT_TAGGED_BYTES_MIN: usize = 16;
/// Largest salt file that is read.
pub const SALT_BYTES_MAX: u64 = 1024 * 1024;
/// Oldest SQLite that is free of the WAL-reset bug (<https://sqlite.org/wal.html#walresetbug>).
pub const SQLITE_VERSION_MIN: i32 = 3_051_003;
/// Pages of the WAL after which the writer empties it into the database.
pub const WAL_PAGES_MAX: u32 = 4096;
/// Largest database that is checked before the server listens; a larger one is checked beside it. A check
/// takes 0.6 to 0.8 ms for each MiB that the system holds in memory, and as long as the disk needs for others.
pub const CHECK_AT_START_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// A check beside the server gives up its snapshot when the WAL, which cannot be emptied meanwhile, is larger.
pub const CHECK_WAL_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Nice value of that check: everything else goes first.
pub const CHECK_NICE: i32 = 19;
/// How long the writer waits for readers when it empties the WAL, before it goes on without.
pub const CHECKPOINT_PATIENCE: Duration = Duration::from_millis(50);

// --- cluster ---------------------------------------------------------------------------------

/// Buckets by which two stores are compared: at 100,000 entries about a hundred entries each, and
/// all their digests together take 16 KiB.
pub const BUCKETS_COUNT: usize = 1024;
/// Changes in one message to a peer.
pub const CHANGES_PER_MESSAGE_MAX: usize = 512;
/// Entries that one message asks for by name.
pub const ENTRIES_PER_MESSAGE_MAX: usize = 512;
/// Bytes of sealed values in one message to a peer, unless a single one is larger.
pub const CHANGES_BYTES_PER_MESSAGE: usize = 1024 * 1024;
/// Bytes of names and versions in one message to a peer, after which it ends with the bucket.
pub const VERSIONS_BYTES_PER_MESSAGE: usize = 4 * 1024 * 1024;
/// Versions that are read from one message of a peer: more than fit its bytes, together with one large bucket.
pub const VERSIONS_COUNT_MAX_PER_MESSAGE: usize = 128 * 1024;
/// Body of an answer of a peer that has not proven its identity yet.
pub const HANDSHAKE_BODY_BYTES_MAX: usize = 8 * 1024;
/// Changes that are kept for a peer that does not answer; what it misses beyond that it gets by comparing.
pub const OUTBOX_COUNT_MAX: u64 = 100_000;
/// A deleted entry is remembered at least this long, and until every known peer has seen it.
pub const TOMBSTONE_GRACE: Duration = Duration::from_secs(10 * 24 * 60 * 60);
/// How far a version of another node may be ahead of this node's clock; beyond it the change is refused.
pub const CLOCK_AHEAD_MAX: Duration = Duration::from_secs(5 * 60);
/// How far a node's own stamps may be ahead of its wall clock after that was set back. Less than what others accept,
/// because their clocks may be behind.
pub const CLOCK_LEAD_MAX: Duration = Duration::from_secs(CLOCK_AHEAD_MAX.as_secs() / 2);
/// How far ahead of the clock the next stamp is noted, so that it need not be noted with each write.
pub const CLOCK_RESERVE: Duration = Duration::from_secs(1);

// --- federation ------------------------------------------------------------------------------

/// Questions to peers that are under way or wait, of all requests together; beyond it peers count as silent.
pub const QUESTIONS_COUNT_MAX: usize = 4096;
/// Questions to one peer at a time, each on a connection of its own; the others wait.
pub const QUESTIONS_COUNT_MAX_PER_PEER: usize = 32;
/// Entries of which it is remembered which peer had them.
pub const LOCATIONS_COUNT: usize = 16 * 1024;
/// Duplicates that are told at once.
pub const DUPLICATES_COUNT_MAX: usize = 1000;

// --- life cycle ------------------------------------------------------------------------------

/// Every shard must listen within this time after the start.
pub const START_DEADLINE: Duration = Duration::from_secs(30);

/// Room that is kept for deletions on a full disk: for the pages that one changes, and the `-shm` file. In bytes.
pub const RESERVE_BYTES: u64 = 512 * 1024;
/// The reserve is made when so many of its size are free.
pub const RESERVE_FREE_PART: u64 = 4;

/// Memory that a server needs: the least caches and answers, and what it takes idle. In bytes.
pub const MEMORY_BYTES_MIN: u64 = 64 * 1024 * 1024;
/// The same of the address space, in which the allocator reserves more than it uses.
pub const ADDRESS_SPACE_BYTES_MIN: u64 = 256 * 1024 * 1024;
/// Open connections get this long to finish after SIGTERM.
pub const DRAIN_DEADLINE: Duration = Duration::from_secs(10);

const _: () = assert!(REQUEST_LINE_BYTES_MAX < HEAD_BYTES_MAX);
const _: () = assert!(INBOX_BYTES <= HEAD_BYTES_MAX);
const _: () = assert!(PIECE_BYTES.is_multiple_of(16), "pieces are whole blocks");
const _: () = assert!(PEER_BODY_BYTES_MAX < ANSWERS_BYTES_MIN, "the largest answer has room");
const _: () = assert!(BODY_BYTES_MAX > 3 * 1024 * 1024 / 2, "a value of 1 MiB must fit");
const _: () = assert!(PEER_BODY_BYTES_MAX <= BODIES_BYTES_MAX_PER_SHARD);
const _: () = assert!(PEER_BODY_BYTES_MAX <= PEER_WORK_BYTES_MAX);
const _: () = assert!(BODY_BYTES_MAX / 3 * 4 + 2 * CHANGES_BYTES_PER_MESSAGE < PEER_BODY_BYTES_MAX);
const _: () = assert!(2 * VERSIONS_BYTES_PER_MESSAGE < PEER_BODY_BYTES_MAX, "escapes need room");
const _: () = assert!(CLOCK_RESERVE.as_secs() < CLOCK_LEAD_MAX.as_secs());
const _: () = assert!(DERIVED_KEYS_UNPROVEN_MAX < DERIVED_KEYS_PROVEN_MAX);
const _: () = assert!(ENTRY_CACHE_BYTES_MIN <= ENTRY_CACHE_BYTES_MAX);
const _: () = assert!(WRITES_PER_COMMIT_MAX <= WRITES_QUEUED_MAX);
const _: () = assert!(CHECK_WAL_BYTES_MAX > 4 * WAL_PAGES_MAX as u64 * 4096, "a check has time to end");
const _: () = assert!(CHUNK_EXTENSION_BYTES_MAX <= CHUNK_EXTENSIONS_BYTES_MAX);
