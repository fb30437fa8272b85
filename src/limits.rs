//! All limits of the server: bytes, counts and durations, with the relations between them checked at compile time.
//!
//! Names end in the unit or the qualifier (`_BYTES_MAX`, `_COUNT_MAX`, `_MS`).

use std::time::Duration;

// --- entries (API contract) ------------------------------------------------------------------

/// Longest entry key, in Unicode scalar values, not bytes.
pub const ENTRY_KEY_CHARS_MAX: usize = 255;
/// Longest category, in Unicode scalar values.
pub const CATEGORY_CHARS_MAX: usize = 100;
/// Longest environment, in Unicode scalar values.
pub const ENVIRONMENT_CHARS_MAX: usize = 100;
/// Longest invalid input that a 422 response quotes, in characters, including its quotation marks: a name that is one
/// character too long is quoted, a value in the place of a name is not.
pub const ERROR_INPUT_CHARS_MAX: usize = ENTRY_KEY_CHARS_MAX + 3;
/// Deepest nesting of arrays and objects in a request body. The Python server stores deeper values, but its own encoder
/// stops at about 250 levels below the value, so that reading the entry fails permanently.
pub const JSON_DEPTH_MAX: usize = 256;
/// Most digits of an integer. CPython refuses to parse longer ones (`sys.int_info`), so the published clients could not
/// read a value that contains one.
pub const JSON_INTEGER_DIGITS_MAX: usize = 4300;
/// Number of names in an object up to which they are compared one by one, which is faster than hashing them.
pub const JSON_NAMES_LINEAR_COUNT_MAX: usize = 16;
/// Revisions that are reserved at once, so that few commits record a reservation.
pub const REVISIONS_RESERVED_COUNT: i64 = 1 << 20;

/// Longest token: the sealed value of a request body of the maximum size.
pub const TOKEN_BYTES_MAX: usize = BODY_BYTES_MAX + 73;

// --- settings --------------------------------------------------------------------------------

/// Longest part of a setting's value that an error shows.
pub const SETTING_SHOWN_CHARS_MAX: usize = 80;
/// Largest `.env` file.
pub const DOTENV_FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Largest total size of the values of a `.env` file: each statement may repeat the preceding ones, so that a file of a
/// hundred lines could exhaust the memory.
pub const DOTENV_EXPANDED_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most executors.
pub const WORKERS_COUNT_MAX: usize = 1024;
/// Default of the shortest accepted user key.
pub const USER_KEY_BYTES_MIN_DEFAULT: usize = 8;
/// Largest minimum of a user key that can be set: a longer key would not fit into a request head.
pub const USER_KEY_BYTES_MIN_MAX: usize = 8192;
/// Longest node ID.
pub const NODE_ID_CHARS_MAX: usize = 255;
/// Longest host name.
pub const HOST_NAME_BYTES_MAX: usize = 253;
/// Shortest allowed API key.
pub const API_KEY_BYTES_MIN: usize = 8;
/// Shortest API key without a warning: 16 hexadecimal digits are 64 random bits.
pub const API_KEY_BYTES_WITHOUT_WARNING: usize = 16;
/// Shortest allowed cluster secret: a shorter one could be guessed from the handshakes on the wire.
pub const CLUSTER_SECRET_CHARS_MIN: usize = 32;
/// Largest value of the rate and connection limits.
pub const RATE_MAX: u32 = 1_000_000;
/// Default of failed keys per minute without a consequence: more than people and clients with an outdated key cause,
/// and too few for guessing.
pub const FAILED_KEYS_DEFAULT: u32 = 30;
/// Largest limit of failed keys per minute: one per millisecond.
pub const FAILED_KEYS_MAX: u32 = 60_000;
/// Largest number of peers in `OSC_CLUSTER_NODES`.
pub const PEERS_COUNT_MAX: usize = 128;
/// Default interval of anti-entropy, in seconds.
pub const SYNC_INTERVAL_DEFAULT_SECONDS: u64 = 30;
/// Default timeout of a federated lookup, in milliseconds.
pub const FEDERATED_TIMEOUT_DEFAULT_MS: u64 = 2000;

// --- HTTP ------------------------------------------------------------------------------------

/// Longest request line (method, target, version); above the limit 414.
pub const REQUEST_LINE_BYTES_MAX: usize = 8 * 1024;
/// Longest request head; above the limit 431.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Most header fields in a request; above the limit 431.
pub const HEADERS_COUNT_MAX: usize = 64;
/// Largest request body; above the limit 413. Leaves room for a value of 1 MiB that consists of escapes.
pub const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Largest body of a message between nodes: one sealed value of the maximum size, in base64.
pub const PEER_BODY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Largest body between nodes that an executor decodes and encodes itself, in about a millisecond; the pool handles
/// larger ones.
pub const PEER_INLINE_BYTES: usize = 64 * 1024;
/// Bytes of large bodies between nodes, and of the responses to them, in flight in the process; above the limit 503.
pub const PEER_WORK_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes of request bodies that one executor buffers in total; above the limit 503.
pub const BODIES_BYTES_MAX_PER_EXECUTOR: usize = 64 * 1024 * 1024;
/// Time after which a connection that waits for its client may be evicted, if a byte budget is exhausted.
pub const STALL_UNDER_PRESSURE: Duration = Duration::from_secs(2);
/// Most connections that one executor evicts per tick after requests on other executors found no room in a byte budget.
pub const EVICTIONS_COUNT_MAX_PER_TICK: u64 = 64;
/// Longest chunk extension of one chunk; above the limit 400.
pub const CHUNK_EXTENSION_BYTES_MAX: usize = 256;
/// Total length of the chunk extensions of one body; above the limit 400.
pub const CHUNK_EXTENSIONS_BYTES_MAX: usize = 16 * 1024;
/// Longest trailer section; above the limit 431.
pub const TRAILERS_BYTES_MAX: usize = 8 * 1024;
/// Requests per connection; the last response has `Connection: close`. High, because the limit serves only to
/// redistribute long-lived connections among the executors now and then.
pub const REQUESTS_COUNT_MAX_PER_CONNECTION: u32 = 1_000_000;
/// Concurrent connections of the process; above the limit 503.
pub const CONNECTIONS_COUNT_MAX: usize = 10_240;
/// Connections above that limit that the admin listener still accepts.
pub const ADMIN_CONNECTIONS_RESERVE: usize = 8;
/// Largest value or response that is sent in one piece.
pub const LARGE_VALUE_BYTES: usize = 64 * 1024;
/// Size of one piece in bytes; a multiple of the AES block size.
pub const PIECE_BYTES: usize = 32 * 1024;
/// Memory that one pending piece takes, in pieces: the buffers of the connection, and those of TLS or the ring.
pub const PIECE_COPIES: usize = 3;
/// Smallest budget of the process for bytes of responses that wait for their clients.
pub const RESPONSES_BYTES_MIN: usize = 32 * 1024 * 1024;
/// Largest budget of the process for bytes of responses that wait for their clients.
pub const RESPONSES_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Divisor of the usable memory for this budget, between those two bounds: one sixteenth.
pub const RESPONSES_MEMORY_PART: u64 = 16;
/// Default share of the connections that one address may have, as a numerator and a denominator: a flood from one
/// address leaves room for others.
pub const CONNECTIONS_PER_ADDRESS_PART: (usize, usize) = (3, 4);
/// Bytes of pipelined responses that are batched before they are written.
pub const PIPELINED_OUTPUT_BYTES_MAX: usize = 64 * 1024;
/// Initial and idle size of a connection's read buffer, in bytes.
pub const READ_BUFFER_BYTES: usize = 2 * 1024;
/// Most API keys that are valid together: each request is compared with all of them.
pub const API_KEYS_COUNT_MAX: usize = 64;
/// Largest API key file.
pub const API_KEY_FILE_BYTES_MAX: u64 = 64 * 1024;
/// Largest certificate or key file. Bundles of all public CAs have a quarter of this size.
pub const TLS_FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Longest variable part of a PROXY protocol header: addresses, and the extensions that load balancers add.
pub const PROXY_HEADER_BYTES_MAX: usize = 2048;
/// Access log lines per second that one executor writes for cached reads; of further ones only the number is logged.
pub const ACCESS_LINES_PER_SECOND: u32 = 100;
/// Spare buffers of each kind that an executor keeps for connections without one.
pub const SPARE_BUFFERS_COUNT_MAX: usize = 256;
/// Unsent bytes that the kernel buffers per connection.
pub const UNSENT_BYTES_MAX: u32 = 256 * 1024;
/// Backlog of each listening socket (Linux caps it at `net.core.somaxconn`).
pub const LISTEN_BACKLOG: i32 = 4096;

/// Time from the first byte of a request head to its last; after that 408.
pub const HEAD_DEADLINE: Duration = Duration::from_secs(10);
/// Time for the next [`TRANSFER_BYTES_MIN`] of a request body, or for its end; after that 408.
pub const BODY_DEADLINE: Duration = Duration::from_secs(10);
/// Fewest bytes of a body or a response in each window of [`BODY_DEADLINE`] or [`WRITE_STALL`]: 1 KiB/s.
pub const TRANSFER_BYTES_MIN: usize = 10 * 1024;
/// Idle timeout of keep-alive connections.
pub const KEEP_ALIVE_IDLE: Duration = Duration::from_secs(60);
/// Time for a client to read the next [`TRANSFER_BYTES_MIN`] of its responses; after that the client is dropped.
pub const WRITE_STALL: Duration = Duration::from_secs(10);
/// Time for a streamed response to produce its next piece; after that its connection is cut. Generous, because a filter
/// may scan the whole database for one page of a list.
pub const STREAM_PIECE_DEADLINE: Duration = Duration::from_secs(300);
/// Lingering close: how long input is drained after an error, so that a reset does not destroy the response.
pub const LINGER: Duration = Duration::from_secs(2);
/// Interval at which an executor checks the deadlines of its connections.
pub const DEADLINE_TICK: Duration = Duration::from_millis(100);
/// Most digits of a chunk size: 32 bits, so that no sum of sizes can overflow.
pub const CHUNK_SIZE_DIGITS_MAX: u8 = 8;
/// Longest `X-Request-ID` that is accepted from a client.
pub const REQUEST_ID_BYTES_MAX: usize = 128;
/// Longest chain of trusted proxies that is followed; a longer one ends at its farthest followed hop.
pub const PROXY_HOPS_MAX: usize = 32;
/// Size above which a list is streamed as it is read.
pub const LIST_UNSTREAMED_BYTES_MAX: usize = 256 * 1024;
/// Memory of the pieces in which a response is sent, in bytes.
pub const PIECES_BYTES: usize = PIECE_COPIES * PIECE_BYTES;
/// Capacity that an empty write buffer keeps, so that most responses allocate nothing. In bytes.
pub const WRITE_BUFFER_KEPT_BYTES: usize = 4 * READ_BUFFER_BYTES;
/// Largest response buffer that is kept for reuse, in bytes.
pub const RESPONSE_BYTES_KEPT_MAX: usize = 64 * 1024;
/// Steps of a connection before it yields to the other connections; a request takes two or three.
pub const CONNECTION_STEPS_PER_TURN: u32 = 128;
/// Longest timeout of a request once the server closes its connections, and of a connection for its first request.
pub const CLOSING_TIMEOUT: Duration = Duration::from_secs(1);
/// Time since its last tick after which an executor is considered stuck; it normally ticks ten times per second.
pub const EXECUTOR_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest response body that a health check reads; healthy responses are a few dozen bytes.
pub const HEALTHCHECK_BODY_BYTES_MAX: usize = 4 * 1024;
/// Longest part of a response body that the error of a health check shows.
pub const HEALTHCHECK_SHOWN_CHARS_MAX: usize = 200;

// --- sockets ---------------------------------------------------------------------------------

/// Time for which binding to an address in use is retried.
pub const ADDRESS_IN_USE_TIMEOUT: Duration = Duration::from_secs(1);
/// Interval between two attempts at binding to an address in use.
pub const ADDRESS_IN_USE_INTERVAL: Duration = Duration::from_millis(10);
/// Pause before the next accept after an error such as a lack of file descriptors.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Shortest interval between two log lines of an executor about untrusted senders of PROXY headers, and between two
/// about failed handshakes.
pub const CONNECTION_WARNING_INTERVAL: Duration = Duration::from_secs(10);
/// Shortest interval between two log lines about refused connections, in milliseconds.
pub const REFUSED_CONNECTIONS_LOG_INTERVAL_MS: u64 = 10_000;
/// Received bytes at which a connection on io_uring stops receiving until they have been read.
pub const SOCKET_INPUT_BYTES_MAX: usize = 64 * 1024;
/// Largest write that completes before it is sent. A larger one completes once it is sent, which bounds the memory and
/// the time that a connection whose client does not read can occupy.
pub const WRITE_BEHIND_BYTES_MAX: usize = 16 * 1024;
/// Largest single send; a larger write is sent in several steps.
pub const SEND_BYTES_MAX: usize = 1024 * 1024;
/// Largest output buffer of a socket that is kept for the next response.
pub const SOCKET_OUTPUT_KEPT_BYTES_MAX: usize = 16 * 1024;
/// Receive buffers of a ring; a power of two.
pub const RING_BUFFERS_COUNT: u16 = 512;
/// Size of a receive buffer of a ring.
pub const RING_BUFFER_BYTES: u32 = 2048;
/// Entries of the submission queue of a ring; further requests wait until there is space.
pub const RING_ENTRIES: u32 = 1024;
/// Entries of the completion queue of a ring; beyond that, the kernel falls back to a slower overflow list.
pub const RING_COMPLETIONS: u32 = 4096;
/// Pause after a failed submission to a ring.
pub const RING_RETRY_PAUSE: Duration = Duration::from_millis(10);

// --- HTTP between nodes ----------------------------------------------------------------------

/// Interim responses (1xx) that are skipped before the final one; above the limit the call fails. This server sends
/// none unsolicited, and a proxy in between has no reason to send many.
pub const INTERIM_RESPONSES_COUNT_MAX: usize = 8;

// --- work ------------------------------------------------------------------------------------

/// PBKDF2 rounds: part of the file format of the Python server.
pub const KDF_ROUNDS: u32 = 480_000;
/// Queued derivations per KDF worker thread; above the limit 503. At 20 to 30 ms each, two in parallel, this is a wait
/// of one second on a core with little other work.
pub const DERIVATIONS_QUEUED_MAX_PER_THREAD: usize = 32;
/// Queued database reads; above the limit 503.
pub const STORE_READS_QUEUED_MAX: usize = 4096;
/// How long a pool thread batches completed reads (about ten) before it wakes the executors.
pub const READ_BATCH_WINDOW: Duration = Duration::from_micros(200);
/// Writes queued for the writer; above the limit 503.
pub const WRITES_QUEUED_MAX: usize = 4096;
/// Writes per transaction.
pub const WRITES_PER_COMMIT_MAX: usize = 256;
/// Rounds in one step of a derivation, which takes about a tenth of a millisecond; the worker checks for other work in
/// between.
pub const KDF_ROUNDS_PER_STEP: u32 = 1024;
/// Most compare-and-swap attempts of a write. Each failed attempt means that another write succeeded.
pub const WRITE_ATTEMPTS_MAX: usize = 16;
/// Age from which a cached count of the entries is outdated; counting scans all of them.
pub const ENTRIES_COUNT_AGE_MAX: Duration = Duration::from_secs(10);
/// Time after which a transaction of the writer is considered stuck.
pub const WRITER_TIMEOUT: Duration = Duration::from_secs(30);
/// `Retry-After` of a 503, in seconds.
pub const RETRY_AFTER_SECONDS: u32 = 1;
/// Nice value of the threads of the pool and of derivations: cached reads take precedence.
pub const POOL_NICE: i32 = 10;

/// Time in which the failures that a client is allowed decay completely.
pub const FAILURE_WINDOW: Duration = Duration::from_secs(60);
/// Longest delay of the response to a failed key, before further attempts are rejected with 429.
pub const FAILURE_DELAY_MAX: Duration = Duration::from_secs(1);
/// Failed keys that are allowed per entry, from all clients together, as a multiple of those of one client.
pub const FAILURES_PER_ENTRY_FACTOR: u32 = 4;
/// Shards of each failure table, each with its own lock.
pub const FAILURES_TRACKED_SHARDS: usize = 64;
/// Clients, keys or entries per shard; above the limit the one with the fewest failures is evicted.
pub const FAILURES_TRACKED_COUNT_MAX_PER_SHARD: usize = 512;
/// How long a client that has opened an entry may try keys on it while other clients fail on it.
pub const OPENER_KNOWN: Duration = Duration::from_secs(24 * 60 * 60);

/// Cached derived keys that have opened an entry.
pub const DERIVED_KEYS_PROVEN_MAX: usize = 4096;
/// Cached derived keys that have not opened an entry yet.
pub const DERIVED_KEYS_UNPROVEN_MAX: usize = 256;
/// Time after which an unused derived key is wiped.
pub const DERIVED_KEY_IDLE: Duration = Duration::from_secs(15 * 60);
/// Interval at which unused derived keys are evicted.
pub const KEY_SWEEP_INTERVAL: Duration = Duration::from_secs(30);
/// Derived keys that a sweep examines in one critical section.
pub const KEY_SWEEP_STEP: usize = 256;
/// Derived keys that get a second chance before one is evicted in any case.
pub const KEY_SECOND_CHANCES_MAX: usize = 64;

/// Smallest memory limit of the entry cache; an unused cache takes no memory.
pub const ENTRY_CACHE_BYTES_MIN: usize = 16 * 1024 * 1024;
/// Largest memory limit of the entry cache: more than a million small entries. A miss costs a thread switch and a read
/// of SQLite.
pub const ENTRY_CACHE_BYTES_MAX: usize = 1024 * 1024 * 1024;
/// Divisor of the usable memory for this limit, between those two bounds: one eighth.
pub const ENTRY_CACHE_MEMORY_PART: u64 = 8;
/// Stripes of the entry cache: enough that executors seldom contend for a lock, few enough that a large value fits one
/// stripe.
pub const ENTRY_CACHE_STRIPES_COUNT: usize = 16;
/// Divisor of the entry cache's memory for pages of lists: one eighth.
pub const PAGE_CACHE_PART: usize = 8;
/// Cached pages: each write examines all of them.
pub const PAGES_CACHED_COUNT_MAX: usize = 64;
/// Bytes of changed entries in the buffer of the change feed; a reader that is further behind lags.
pub const FEED_BYTES_MAX: usize = 256 * 1024;
/// Changes in that buffer.
pub const FEED_CHANGES_MAX: usize = 512;
/// Environments of one entry key that are cached together; a key with more of them is read from the database.
pub const ENTRY_GROUP_COUNT_MAX: usize = 64;
/// Bytes of tokens per page that a list reads from the database.
pub const LIST_PAGE_BYTES: usize = 1024 * 1024;
/// Rows per page that a list reads from the database.
pub const LIST_PAGE_ROWS_MAX: usize = 4096;
/// Largest cached page of a list that the executor opens itself, in less than 100 us: about 280 small entries.
/// Submitting it to the pool would cost 40 us more.
pub const LIST_INLINE_BYTES: usize = 128 * 1024;
/// Largest `limit` of a list.
pub const LIST_LIMIT_MAX: u64 = 1_000_000;

// --- files -----------------------------------------------------------------------------------

/// Size of a salt; other sizes are refused unless `OSC_ACCEPT_SALT` names the salt.
pub const SALT_BYTES: usize = 64;
/// Fewest distinct byte values of a random salt. 64 random bytes have about 56; the probability of at most 15 is less
/// than C(256, 15) (15/256)^64 < 2^-180.
pub const SALT_DISTINCT_BYTES_MIN: usize = 16;
/// Shortest salt with a tag in the database: from 128 bits on it cannot be brute-forced from the tag.
pub const SALT_TAGGED_BYTES_MIN: usize = 16;
/// Largest salt file.
pub const SALT_BYTES_MAX: u64 = 1024 * 1024;
/// Oldest SQLite version without the WAL-reset bug (<https://sqlite.org/wal.html#walresetbug>).
pub const SQLITE_VERSION_MIN: i32 = 3_051_003;
/// Pages of the WAL above which the writer checkpoints and truncates it.
pub const WAL_PAGES_MAX: u32 = 4096;
/// Largest database that is checked before the server listens; a larger one is checked in the background. A check
/// takes 0.6 to 0.8 ms per MiB in the kernel's page cache; other pages take as long as the disk needs.
pub const CHECK_AT_START_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Size of the WAL above which a background check releases its snapshot, which blocks the reset of the WAL.
pub const CHECK_WAL_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Nice value of that check: all other work takes precedence.
pub const CHECK_NICE: i32 = 19;
/// How long the writer waits for readers at a WAL checkpoint before it postpones the checkpoint.
pub const CHECKPOINT_TIMEOUT: Duration = Duration::from_millis(50);
/// Size at which the WAL is emptied. A frame is a page and a header of 24 bytes.
pub const WAL_BYTES_MAX: u64 = WAL_PAGES_MAX as u64 * (4096 + 24);
/// Attempts at comparing the WAL with its index: the two cannot be read atomically, and another program may write to
/// them.
pub const WAL_COMPARISON_ATTEMPTS_COUNT: usize = 3;
/// SQLite busy timeout: how long a lock of another process, such as a backup, is waited for.
pub const SQLITE_BUSY_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause between two attempts to copy a database that another program has locked.
pub const SQLITE_BUSY_PAUSE: Duration = Duration::from_millis(20);
/// Interval at which an idle writer checks for changes by other processes.
pub const WRITER_IDLE_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Steps of SQLite, a page or an instruction each, between two polls whether a check should stop.
pub const CHECK_STEPS_BETWEEN_POLLS: i32 = 1000;
/// Pause before a background check that obstructed the writer is retried.
pub const CHECK_RETRY_PAUSE: Duration = Duration::from_secs(60);
/// Most attempts at a background check.
pub const CHECK_ATTEMPTS_COUNT_MAX: u32 = 10;
/// Most malformed tokens that an inspection names; further ones are only counted.
pub const MALFORMED_TOKENS_NAMED_COUNT_MAX: usize = 20;
/// Largest manifest of a backup.
pub const MANIFEST_BYTES_MAX: u64 = 64 * 1024;
/// Size of the buffer with which a file of a backup is hashed or copied.
pub const BACKUP_BUFFER_BYTES: usize = 128 * 1024;
/// Longest content of the marker of an unfinished restore.
pub const RESTORE_MARKER_BYTES_MAX: usize = 100;
/// Longest line that is read from the terminal or standard input; a longer user key would not fit into a request head.
pub const TERMINAL_LINE_BYTES_MAX: u64 = HEAD_BYTES_MAX as u64;
/// Interval at which the certificate files are checked for changes.
pub const CERTIFICATES_CHECK_INTERVAL: Duration = Duration::from_secs(3);
/// Days before its expiry from which a certificate is warned about.
pub const CERTIFICATE_EXPIRY_WARNING_DAYS: i64 = 14;
/// Log lines that are queued for the log thread; further ones are dropped.
pub const LOG_LINES_WAITING_MAX: usize = 16 * 1024;
/// Most daily log files; older ones are deleted.
pub const LOG_FILES_COUNT_MAX: usize = 14;
/// Interval between attempts to open a log file that cannot be opened, for example because the disk is full.
pub const LOG_FILE_RETRY_INTERVAL: Duration = Duration::from_secs(1);

// --- cluster ---------------------------------------------------------------------------------

/// Buckets of the digest table by which two stores are compared. At 100,000 entries a bucket has about a hundred; the
/// digests of all buckets take 16 KiB.
pub const BUCKETS_COUNT: usize = 1024;
/// Changes per message to a peer.
pub const CHANGES_PER_MESSAGE_MAX: usize = 512;
/// Entries that one message requests by name.
pub const ENTRIES_PER_MESSAGE_MAX: usize = 512;
/// Bytes of sealed values per message to a peer, unless a single one is larger.
pub const CHANGES_BYTES_PER_MESSAGE: usize = 1024 * 1024;
/// Bytes of names and versions per message to a peer; the message ends after the bucket that exceeds it.
pub const VERSIONS_BYTES_PER_MESSAGE: usize = 4 * 1024 * 1024;
/// Versions that are decoded from one message of a peer: more than fit in its bytes, plus one large bucket.
pub const VERSIONS_COUNT_MAX_PER_MESSAGE: usize = 128 * 1024;
/// Largest response body of a peer that has not proven its identity yet.
pub const HANDSHAKE_BODY_BYTES_MAX: usize = 8 * 1024;
/// Entries of the replication log that are kept for an unreachable peer; anti-entropy delivers older changes.
pub const REPLICATION_LOG_COUNT_MAX: u64 = 100_000;
/// Timeout of a request to a peer, except for a health check.
pub const PEER_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout of a health check of a peer, including the connection set-up.
pub const PEER_HEALTH_TIMEOUT: Duration = Duration::from_secs(5);
/// Interval of the health checks of a healthy peer, in milliseconds. A peer that is down is checked once per sync
/// interval if that is shorter, so that nodes are in sync again two intervals after a network heals.
pub const PEER_HEALTH_INTERVAL_MS: u64 = 10_000;
/// Interval of the health checks of a peer that has not been reached yet: short, because nodes start together.
pub const PEER_FIRST_CONTACT_INTERVAL_MS: u64 = 200;
/// Time for which a peer that has not been reached yet counts as just starting, too.
pub const PEER_FIRST_CONTACT_MS: u64 = 30_000;
/// Backoff after the first failure of a peer; doubled with each further one.
pub const PEER_BACKOFF_MS_MIN: u64 = 200;
/// Largest backoff from a peer that fails.
pub const PEER_BACKOFF_MS_MAX: u64 = 10_000;
/// How long the reply of a cancelled request to a peer is drained, so that its connection can be reused.
pub const PEER_REPLY_DRAIN_TIMEOUT: Duration = Duration::from_millis(100);
/// Time after the start of a new node during which requests wait for an unreachable peer. `/ready` waits longer.
pub const PEER_CONTACT_TIMEOUT_MS: u64 = 2000;
/// How long a new node waits for a healthy peer without progress of its first anti-entropy round.
pub const JOIN_PROGRESS_TIMEOUT_MS: u64 = 60_000;
/// Timeout of client requests that wait for the first anti-entropy round of a new node; somewhat longer than the gate
/// stays closed for an unreachable peer.
pub const JOIN_TIMEOUT: Duration = Duration::from_millis(2500);
/// Client requests that wait for a closed gate; above the limit 503.
pub const GATE_WAITERS_COUNT_MAX: usize = 4096;
/// Time to wait for unreachable peers before a salt is generated without them.
pub const SALT_AGREEMENT_TIMEOUT_MS: u64 = 10_000;
/// Interval between two evaluations of the salt agreement.
pub const SALT_AGREEMENT_INTERVAL: Duration = Duration::from_millis(100);
/// Timeout of client requests that wait for the salt.
pub const SALT_TIMEOUT: Duration = Duration::from_secs(12);
/// Timeout of a write that waits for acknowledgements from peers.
pub const ACKS_TIMEOUT: Duration = Duration::from_secs(5);
/// Writes whose clients may not know that they were made, kept to recognise retries.
pub const UNCONFIRMED_WRITES_COUNT_MAX: usize = 4096;
/// Age up to which the retry of such a write is recognised.
pub const UNCONFIRMED_WRITE_AGE_MAX: Duration = Duration::from_secs(10 * 60);
/// Most separate refused ranges that are tracked per peer.
pub const REFUSED_RANGES_COUNT_MAX: usize = 64;
/// Shortest interval between two log lines about refused node credentials.
pub const NODE_REFUSALS_LOG_INTERVAL: Duration = Duration::from_secs(10);
/// Buckets whose versions are compared in one request to a peer.
pub const BUCKETS_PER_REQUEST: usize = 64;
/// Entries that are fetched or sent in one request to a peer; the size of a message is a further bound.
pub const ENTRIES_PER_REQUEST: usize = 256;
/// Resolution of the lag measurement, in milliseconds.
pub const LAG_RESOLUTION_MS: u64 = 100;
/// Samples of the lag that are kept per peer.
pub const LAG_SAMPLES_COUNT_MAX: usize = 1024;
/// Shortest time for which a tombstone is kept; it is also kept until every known peer has seen it.
pub const TOMBSTONE_GRACE: Duration = Duration::from_secs(10 * 24 * 60 * 60);
/// Interval of the garbage collection of tombstones.
pub const TOMBSTONE_COLLECTION_INTERVAL: Duration = Duration::from_secs(60 * 60);
/// How far a version of another node may be ahead of this node's clock; above the limit the change is refused.
pub const CLOCK_AHEAD_MAX: Duration = Duration::from_secs(5 * 60);
/// Tolerated difference of two clocks; a larger one may make a node's data look outdated.
pub const CLOCKS_DIFFER_MS_MAX: u64 = 60 * 60 * 1000;
/// Nodes in the record of refused changes. There are as many as peers, unless a peer fabricates replica IDs.
pub const CLOCK_SKEW_NODES_COUNT_MAX: usize = 1024;
/// Shortest interval between two log lines about changes that are refused because of their clock.
pub const CLOCK_SKEW_LOG_INTERVAL: Duration = Duration::from_secs(10);

// --- federation ------------------------------------------------------------------------------

/// Peer requests in flight or queued, of all client requests; above the limit peers count as unreachable.
pub const PEER_REQUESTS_COUNT_MAX: usize = 4096;
/// Requests in flight to one peer, each on a dedicated connection; further ones are queued.
pub const PEER_REQUESTS_COUNT_MAX_PER_PEER: usize = 32;
/// Slots of the table of owner hints: the peer that last had an entry.
pub const OWNER_HINTS_COUNT: usize = 16 * 1024;
/// How long a request waits for the health check of a peer that was down: the peer may be back.
pub const PEER_RECONTACT_TIMEOUT: Duration = Duration::from_millis(250);
/// Names that were found on several nodes, kept so that each is counted and logged once.
pub const DUPLICATE_NAMES_COUNT_MAX: usize = 4096;
/// Duplicates per response.
pub const DUPLICATES_COUNT_MAX: usize = 1000;
/// Divisor of the timeout of a federated lookup: the hinted owner has this fraction of it to reply before the other
/// peers are queried, too.
pub const HEDGE_PART: u32 = 4;
/// Most compare-and-swap attempts of a remote write. More than for a local entry, because other writers have a lower
/// latency to the owner.
pub const REMOTE_WRITE_ATTEMPTS_MAX: usize = 64;
/// Timeout of a remote write; longer than that of a lookup, because the write must become durable.
pub const REMOTE_WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of encrypted values that a federated list holds per peer if there are few peers.
pub const FEDERATED_PAGE_BYTES_MAX: usize = 256 * 1024;
/// Bytes of encrypted values that a federated list holds per peer if there are many peers.
pub const FEDERATED_PAGE_BYTES_MIN: usize = 32 * 1024;

// --- life cycle ------------------------------------------------------------------------------

/// Time within which every executor must listen after startup.
pub const START_DEADLINE: Duration = Duration::from_secs(30);
/// Time for which a lack of locked memory is retried: the kernel frees the rings of a process some time after its exit.
pub const LOCKED_MEMORY_TIMEOUT: Duration = Duration::from_secs(5);
/// Interval between two attempts at allocating locked memory.
pub const LOCKED_MEMORY_INTERVAL: Duration = Duration::from_millis(50);
/// Smallest limit of locked memory with which glommio starts, in bytes.
pub const LOCKED_MEMORY_BYTES_MIN: u64 = 512 * 1024;

/// Disk space reserved for deletions on a full disk: for the pages that one changes, and the `-shm` file. In bytes.
pub const RESERVE_BYTES: u64 = 512 * 1024;
/// Free disk space at which the reserve is allocated, in multiples of its size.
pub const RESERVE_FREE_PART: u64 = 4;
/// Time until creating the reserve is retried.
pub const RESERVE_RETRY_INTERVAL: Duration = Duration::from_secs(60);

/// Memory that a server needs: the smallest caches and response budget, and its idle memory. In bytes.
pub const MEMORY_BYTES_MIN: u64 = 64 * 1024 * 1024;
/// Address space that a server needs; the allocator reserves more of it than it uses. In bytes.
pub const ADDRESS_SPACE_BYTES_MIN: u64 = 256 * 1024 * 1024;
/// Threads in addition to the plan: the check of a large database, and short-lived threads of libraries.
pub const SPARE_THREADS: usize = 2;
/// Descriptors for the database and its readers, the salt, the log, reloaded certificates, and rejected connections.
pub const DESCRIPTORS_FIXED: usize = 64;
/// Descriptors of an executor: rings, listeners, and event descriptors.
pub const DESCRIPTORS_PER_EXECUTOR: usize = 16;
/// Descriptors for a peer: peer requests, replication and health checks.
pub const DESCRIPTORS_PER_PEER: usize = PEER_REQUESTS_COUNT_MAX_PER_PEER + 4;
/// Smallest number of descriptors in place of [`DESCRIPTORS_FIXED`], without a reserve.
pub const DESCRIPTORS_FIXED_MIN: usize = 56;
/// Smallest number of descriptors in place of [`DESCRIPTORS_PER_EXECUTOR`], without a reserve.
pub const DESCRIPTORS_PER_EXECUTOR_MIN: usize = 10;
/// Smallest useful number of connections.
pub const CONNECTIONS_COUNT_MIN: usize = 16;
/// Longest drain before the server stops, in seconds: one hour.
pub const DRAIN_SECONDS_MAX: u32 = 60 * 60;
/// Drain deadline: how long open connections may take to finish after SIGTERM.
pub const DRAIN_DEADLINE: Duration = Duration::from_secs(10);

const _: () = assert!(REQUEST_LINE_BYTES_MAX < HEAD_BYTES_MAX);
const _: () = assert!(READ_BUFFER_BYTES <= HEAD_BYTES_MAX);
const _: () = assert!(PIECE_BYTES.is_multiple_of(16), "pieces are whole AES blocks");
const _: () = assert!(PEER_BODY_BYTES_MAX < RESPONSES_BYTES_MIN, "the largest response fits");
const _: () = assert!(BODY_BYTES_MAX > 3 * 1024 * 1024 / 2, "a value of 1 MiB must fit");
const _: () = assert!(PEER_BODY_BYTES_MAX <= BODIES_BYTES_MAX_PER_EXECUTOR);
const _: () = assert!(PEER_BODY_BYTES_MAX <= PEER_WORK_BYTES_MAX);
const _: () = assert!(BODY_BYTES_MAX / 3 * 4 + 2 * CHANGES_BYTES_PER_MESSAGE < PEER_BODY_BYTES_MAX);
const _: () = assert!(2 * VERSIONS_BYTES_PER_MESSAGE < PEER_BODY_BYTES_MAX, "escapes need room");
const _: () = assert!(DERIVED_KEYS_UNPROVEN_MAX < DERIVED_KEYS_PROVEN_MAX);
const _: () = assert!(ENTRY_CACHE_BYTES_MIN <= ENTRY_CACHE_BYTES_MAX);
const _: () = assert!(WRITES_PER_COMMIT_MAX <= WRITES_QUEUED_MAX);
const _: () = assert!(CHECK_WAL_BYTES_MAX > 4 * WAL_PAGES_MAX as u64 * 4096, "a check has time to finish");
const _: () = assert!(CHUNK_EXTENSION_BYTES_MAX <= CHUNK_EXTENSIONS_BYTES_MAX);
const _: () = assert!(JOIN_TIMEOUT.as_millis() > PEER_CONTACT_TIMEOUT_MS as u128);
const _: () = assert!(SALT_TIMEOUT.as_millis() > SALT_AGREEMENT_TIMEOUT_MS as u128);
const _: () = assert!(PEER_BACKOFF_MS_MIN <= PEER_BACKOFF_MS_MAX);
const _: () = assert!(FEDERATED_PAGE_BYTES_MIN <= FEDERATED_PAGE_BYTES_MAX);
const _: () = assert!(RING_BUFFERS_COUNT.is_power_of_two());
