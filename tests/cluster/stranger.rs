//! What may answer at the address of a peer without being one.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::wire::contains;

/// A stranger that answers everything with `ok`, and what it has received.
pub(crate) struct Stranger {
    pub(crate) address: SocketAddr,
    received: Arc<Mutex<Vec<u8>>>,
    open_count: Arc<AtomicUsize>,
}

impl Stranger {
    /// With these header fields in each answer.
    pub(crate) fn start(fields: &'static str) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").expect("a free port"), fields)
    }

    pub(crate) fn on(listener: TcpListener, fields: &'static str) -> Self {
        let address = listener.local_addr().expect("it is bound");
        let (received, open_count) = (Arc::<Mutex<Vec<u8>>>::default(), Arc::<AtomicUsize>::default());
        let (record, open) = (Arc::clone(&received), Arc::clone(&open_count));
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let (record, open) = (Arc::clone(&record), Arc::clone(&open));
                open.fetch_add(1, Ordering::Relaxed);
                thread::spawn(move || {
                    let mut piece = [0; 65536];
                    let mut request = Vec::new();
                    while let Ok(count) = stream.read(&mut piece) {
                        if count == 0 {
                            break;
                        }
                        record.lock().expect("no panic").extend_from_slice(&piece[..count]);
                        request.extend_from_slice(&piece[..count]);
                        if contains(&request, b"\r\n\r\n") {
                            request.clear();
                            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n{fields}\r\nok");
                            if stream.write_all(answer.as_bytes()).is_err() {
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
        self.received.lock().expect("no panic").clone()
    }

    /// Connections that the node has not closed.
    pub(crate) fn open_count(&self) -> usize {
        self.open_count.load(Ordering::Relaxed)
    }
}
