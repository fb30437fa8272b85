//! A server at the address of a peer that is not a node of the cluster.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::wire::contains;

/// A server that responds to every request with `ok` and records its input.
pub(crate) struct Stranger {
    pub(crate) address: SocketAddr,
    received: Arc<Mutex<Vec<u8>>>,
    open_count: Arc<AtomicUsize>,
}

impl Stranger {
    /// Starts a stranger with these header fields in each response.
    pub(crate) fn start(fields: &'static str) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").expect("a free port"), fields)
    }

    pub(crate) fn on(listener: TcpListener, fields: &'static str) -> Self {
        let address = listener.local_addr().expect("bound");
        let (received, open_count) = (Arc::<Mutex<Vec<u8>>>::default(), Arc::<AtomicUsize>::default());
        let (record, open) = (Arc::clone(&received), Arc::clone(&open_count));
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let (record, open) = (Arc::clone(&record), Arc::clone(&open));
                open.fetch_add(1, Ordering::Relaxed);
                thread::spawn(move || {
                    let mut buffer = [0; 65536];
                    let mut request = Vec::new();
                    while let Ok(count) = stream.read(&mut buffer) {
                        if count == 0 {
                            break;
                        }
                        record.lock().expect("the lock is not poisoned").extend_from_slice(&buffer[..count]);
                        request.extend_from_slice(&buffer[..count]);
                        if contains(&request, b"\r\n\r\n") {
                            request.clear();
                            let response = format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n{fields}\r\nok");
                            if stream.write_all(response.as_bytes()).is_err() {
                                break;
                            }
                        }
                    }
                    open.fetch_sub(1, Ordering::Relaxed);
                });
            }
        });
        Self { address, received, open_count }
    }

    pub(crate) fn received(&self) -> Vec<u8> {
        self.received.lock().expect("the lock is not poisoned").clone()
    }

    /// Returns the number of connections that the node has not closed.
    pub(crate) fn open_count(&self) -> usize {
        self.open_count.load(Ordering::Relaxed)
    }
}
