//! One directed link between two nodes: a recording TCP proxy that can be cut, stalled or slowed down.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// How often an idle link checks its mode.
const TICK: Duration = Duration::from_millis(10);

/// Current address of a node; it changes with each start, because the system chooses the port.
#[derive(Clone, Debug, Default)]
pub(crate) struct Place(Arc<Mutex<Option<SocketAddr>>>);

/// How a link treats bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Open,
    /// Closes every connection, new ones as soon as they are accepted.
    Cut,
    /// Accepts connections and discards their input, like a network that loses every packet.
    Stalled,
    /// Forwards everything after a delay.
    Delayed(Duration),
}

/// A running proxy. Dropping it closes the listener and all its connections.
pub(crate) struct Link {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    target: Place,
    mode: Mutex<Mode>,
    is_stopped: AtomicBool,
    connections: AtomicUsize,
    requests: Mutex<Vec<u8>>,
    replies: Mutex<Vec<u8>>,
}

impl Place {
    pub(crate) fn set(&self, address: Option<SocketAddr>) {
        *lock(&self.0) = address;
    }

    pub(crate) fn get(&self) -> Option<SocketAddr> {
        *lock(&self.0)
    }
}

impl Link {
    pub(crate) fn to(target: Place) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        // So that the thread notices that the link is stopped.
        listener.set_nonblocking(true).expect("non-blocking mode can be set");
        let shared = Arc::new(Shared {
            target,
            mode: Mutex::new(Mode::Open),
            is_stopped: AtomicBool::new(false),
            connections: AtomicUsize::new(0),
            requests: Mutex::default(),
            replies: Mutex::default(),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            while !accepting.is_stopped.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        let shared = Arc::clone(&accepting);
                        shared.connections.fetch_add(1, Ordering::Relaxed);
                        thread::spawn(move || shared.serve(stream));
                    }
                    Err(_) => thread::sleep(TICK),
                }
            }
        });
        Self { address, shared }
    }

    pub(crate) fn set(&self, mode: Mode) {
        *lock(&self.shared.mode) = mode;
    }

    /// Returns all bytes that have passed, in both directions.
    pub(crate) fn passed(&self) -> Vec<u8> {
        let mut all = lock(&self.shared.requests).clone();
        all.extend_from_slice(&lock(&self.shared.replies));
        all
    }

    /// Returns the number of connections so far.
    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Returns the number of requests for this target that have passed.
    pub(crate) fn requests(&self, target: &str) -> usize {
        let line = format!(" {target} HTTP/1.1\r\n").into_bytes();
        lock(&self.shared.requests).windows(line.len()).filter(|window| *window == line).count()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.is_stopped.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn mode(&self) -> Mode {
        match self.is_stopped.load(Ordering::Relaxed) {
            true => Mode::Cut,
            false => *lock(&self.mode),
        }
    }

    fn serve(self: Arc<Self>, near: TcpStream) {
        // Some systems let accepted sockets inherit non-blocking mode.
        if near.set_nonblocking(false).is_err() {
            return;
        }
        if self.mode() == Mode::Stalled {
            let Ok(sink) = near.try_clone() else { return };
            return self.pump(near, sink, |shared| &shared.requests);
        }
        let Some(target) = self.target.get().filter(|_| self.mode() != Mode::Cut) else { return };
        let Ok(far) = TcpStream::connect(target) else { return };
        let (Ok(near_too), Ok(far_too)) = (near.try_clone(), far.try_clone()) else { return };
        let back = Arc::clone(&self);
        thread::spawn(move || back.pump(far_too, near_too, |shared| &shared.replies));
        self.pump(near, far, |shared| &shared.requests);
    }

    /// Forwards bytes in one direction until either end closes or the link is cut.
    fn pump(&self, mut from: TcpStream, mut to: TcpStream, record: fn(&Self) -> &Mutex<Vec<u8>>) {
        let are_set = from.set_read_timeout(Some(TICK)).is_ok() && to.set_nodelay(true).is_ok();
        let mut has_discarded = self.mode() == Mode::Stalled;
        let mut buffer = [0; 65536];
        while are_set && self.mode() != Mode::Cut {
            // Bytes were discarded, so the connection cannot be resumed.
            if has_discarded && self.mode() != Mode::Stalled {
                break;
            }
            let count = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => break,
            };
            match self.mode() {
                Mode::Stalled => {
                    has_discarded = true;
                    continue;
                }
                Mode::Cut => break,
                // The sleep simulates a slow network; it synchronises nothing.
                Mode::Delayed(delay) => thread::sleep(delay),
                Mode::Open => {}
            }
            lock(record(self)).extend_from_slice(&buffer[..count]);
            if to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        from.shutdown(Shutdown::Both).ok();
        to.shutdown(Shutdown::Both).ok();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
