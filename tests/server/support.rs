//! Test harness: starts the real binary on a free port and speaks plain HTTP/1.1 to it.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

pub(crate) const USER_KEY: &str = "correct-horse-battery";
pub(crate) const OTHER_KEY: &str = "another-user-key-42";
/// Timeout of every wait in the tests. Everything expected happens long before; only a hang takes this long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A valid salt, different for each number.
pub(crate) fn proper_salt(number: u8) -> [u8; 64] {
    std::array::from_fn(|at| at.to_le_bytes()[0] ^ number)
}

/// A running server. Its data directory may outlive it.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
    pub(crate) directory: Arc<tempfile::TempDir>,
    log: Arc<Mutex<String>>,
}

/// Exit status and log of a server that failed to start.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) status: ExitStatus,
    pub(crate) log: String,
}

/// Environment and data directory of a server to start.
pub(crate) struct Launch {
    pub(crate) directory: Arc<tempfile::TempDir>,
    /// Binary to start: the one under test, unless a test sets another.
    pub(crate) binary: PathBuf,
    variables: Vec<(String, String)>,
}

impl Launch {
    pub(crate) fn new() -> Self {
        Self::at(Arc::new(tempfile::tempdir().expect("temporary directory")))
    }

    pub(crate) fn at(directory: Arc<tempfile::TempDir>) -> Self {
        let binary = env!("CARGO_BIN_EXE_opensecureconf").into();
        let launch = Self { directory, binary, variables: Vec::new() };
        launch.set("OSC_HOST", "127.0.0.1").set("OSC_HOST_PORT", "0").set("OSC_WORKERS", "1")
    }

    pub(crate) fn set(mut self, name: &str, value: &str) -> Self {
        self.variables.retain(|(known, _)| known != name);
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command.current_dir(self.directory.path()).stdin(Stdio::null());
        for (name, _) in std::env::vars() {
            // These select the engine and the sockets on which the whole suite runs.
            if name.starts_with("OSC_") && !["OSC_ENGINE", "OSC_TEST_SOCKETS"].contains(&name.as_str()) {
                command.env_remove(name);
            }
        }
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    pub(crate) fn start(self) -> Server {
        self.try_start().unwrap_or_else(|refused| panic!("{}: {}", refused.status, refused.log))
    }

    pub(crate) fn try_start(self) -> Result<Server, Refused> {
        let mut command = self.command();
        Server::spawn(&mut command, self.directory)
    }
}

impl Server {
    pub(crate) fn start() -> Self {
        Launch::new().start()
    }

    pub(crate) fn spawn(command: &mut Command, directory: Arc<tempfile::TempDir>) -> Result<Self, Refused> {
        let mut child =
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary starts");
        let log = Arc::new(Mutex::new(String::new()));
        let (found, address) = mpsc::channel();
        let lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let copy = Arc::clone(&log);
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                {
                    let mut log = copy.lock().expect("the lock is not poisoned");
                    log.push_str(&line);
                    log.push('\n');
                }
                // The log already holds this line when the receiver gets the address.
                if let Some(address) = listening_at(&line) {
                    found.send(address).ok();
                }
            }
        });
        match address.recv_timeout(PATIENCE) {
            Ok(address) => Ok(Self { child, address, directory, log }),
            Err(_) => {
                let status = wait(&mut child, PATIENCE).unwrap_or_else(|| {
                    child.kill().ok();
                    child.wait().expect("killed")
                });
                let log = log.lock().expect("the lock is not poisoned").clone();
                Err(Refused { status, log })
            }
        }
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.directory.path().join("configurations.db")
    }

    pub(crate) fn salt(&self) -> PathBuf {
        self.directory.path().join("encryption.salt")
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().expect("the lock is not poisoned").clone()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends SIGTERM and waits for the exit.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        self.signal("TERM");
        wait(&mut self.child, PATIENCE).expect("the server exits on SIGTERM")
    }

    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").arg(format!("-{name}")).arg(self.pid().to_string()).status();
        assert!(status.expect("kill is installed").success());
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        wait(&mut self.child, PATIENCE).expect("the server exits")
    }

    /// Kills the process, which for it is the same as a power failure.
    pub(crate) fn kill(&mut self) {
        self.child.kill().ok();
        self.child.wait().expect("killed");
    }

    /// Stops the server cleanly and starts a new process on the same files.
    pub(crate) fn restart(mut self) -> Self {
        let status = self.stop();
        assert!(status.success(), "{status}: {}", self.log());
        Launch::at(Arc::clone(&self.directory)).start()
    }

    pub(crate) fn connect(&self) -> Client {
        Client::connect(self.address)
    }

    pub(crate) fn send(&self, method: &str, target: &str, user_key: &str, body: Option<&str>) -> Response {
        self.connect().send(method, target, &[("X-User-Key", user_key)], body.map(str::as_bytes))
    }

    pub(crate) fn get(&self, target: &str) -> Response {
        self.send("GET", target, USER_KEY, None)
    }

    pub(crate) fn create(&self, key: &str, value: &str) -> Response {
        self.send("POST", "/configs", USER_KEY, Some(&format!(r#"{{"key":"{key}","value":{value}}}"#)))
    }

    pub(crate) fn update(&self, key: &str, value: &str) -> Response {
        self.send("PUT", &format!("/configs/{key}"), USER_KEY, Some(&format!(r#"{{"value":{value}}}"#)))
    }

    pub(crate) fn value(&self, key: &str) -> String {
        let response = self.get(&format!("/configs/{key}"));
        assert_eq!(response.status, 200, "{response:?}");
        response.value()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Parses the address from the log line that reports it, in either log format.
pub(crate) fn listening_at(line: &str) -> Option<SocketAddr> {
    let (_, rest) = line.split_once("listening")?;
    let (_, rest) = rest.split_once("address=").or_else(|| rest.split_once(r#""address":""#))?;
    rest.split([' ', '"']).next()?.parse().ok()
}

fn wait(child: &mut Child, timeout: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + timeout;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().expect("the child can be waited on") {
            return Some(status);
        }
        thread::sleep(Duration::from_millis(5));
    }
    None
}

/// Polls until the condition holds; fails after [`PATIENCE`].
pub(crate) fn eventually(condition: &str, mut is_met: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_met() {
        assert!(Instant::now() < deadline, "not met after {PATIENCE:?}: {condition}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// A client connection.
pub(crate) struct Client<S = TcpStream> {
    pub(crate) stream: S,
    buffer: Vec<u8>,
}

#[derive(Clone, Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: HashMap<String, String>,
}

impl Response {
    /// Header field by its lower-case name.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("bodies are UTF-8")
    }

    pub(crate) fn detail(&self) -> String {
        let json: serde_json::Value = serde_json::from_slice(&self.body).expect("errors are JSON");
        json["detail"].as_str().expect("a string").to_owned()
    }

    /// JSON text of an entry's `value`, which must be its last member.
    pub(crate) fn value(&self) -> String {
        let text = self.text();
        let at = text.find("\"value\":").expect("an entry") + "\"value\":".len();
        text[at..text.len() - 1].to_owned()
    }

    pub(crate) fn closes(&self) -> bool {
        self.headers.get("connection").is_some_and(|value| value == "close")
    }
}

impl Client<TcpStream> {
    /// Connects from this address of the loopback interface.
    pub(crate) fn connect_from(source: [u8; 4], address: SocketAddr) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.bind(&SocketAddr::from((source, 0)).into()).expect("a loopback address");
        socket.connect(&address.into()).expect("the server listens");
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).expect("the timeout can be set");
        stream.set_nodelay(true).expect("TCP");
        Self::over(stream)
    }

    pub(crate) fn connect(address: SocketAddr) -> Self {
        Self::try_connect(address, PATIENCE).expect("the server listens")
    }

    /// Connects to a server that may not be listening or may not respond.
    pub(crate) fn try_connect(address: SocketAddr, timeout: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, timeout)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_nodelay(true)?;
        Ok(Self::over(stream))
    }
}

impl<S: Read + Write> Client<S> {
    pub(crate) fn over(stream: S) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    pub(crate) fn send(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: Option<&[u8]>,
    ) -> Response {
        self.write(&request(method, target, headers, body));
        self.receive(method == "HEAD")
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the server reads");
    }

    pub(crate) fn receive(&mut self, is_head: bool) -> Response {
        self.try_receive(is_head).expect("a complete response")
    }

    /// Fails if the connection closes before the response is complete.
    pub(crate) fn try_receive(&mut self, is_head: bool) -> io::Result<Response> {
        let head = self.read_until(b"\r\n\r\n")?;
        let head = String::from_utf8(head).expect("heads are ASCII");
        let mut lines = head.split("\r\n");
        let status =
            lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).expect("a status line");
        let headers = fields(lines);
        let mut response = Response { status, headers, body: Vec::new(), trailers: HashMap::new() };
        if is_head || status < 200 || status == 204 || status == 304 {
            return Ok(response);
        }
        if response.headers.get("transfer-encoding").is_some_and(|coding| coding == "chunked") {
            loop {
                let line = self.read_until(b"\r\n")?;
                let line = std::str::from_utf8(&line).expect("hexadecimal").trim_end();
                let size = usize::from_str_radix(line, 16).expect("hexadecimal");
                if size == 0 {
                    break;
                }
                response.body.extend(self.read_exactly(size)?);
                assert_eq!(self.read_exactly(2)?, b"\r\n");
            }
            let mut trailers = Vec::new();
            loop {
                let line = self.read_until(b"\r\n")?;
                if line == b"\r\n" {
                    break;
                }
                trailers.push(String::from_utf8(line).expect("ASCII").trim_end().to_owned());
            }
            response.trailers = fields(trailers.iter().map(String::as_str));
        } else {
            let length =
                response.headers.get("content-length").map_or(0, |text| text.parse().expect("a number"));
            response.body = self.read_exactly(length)?;
        }
        Ok(response)
    }

    /// Returns everything that is received until the server closes the connection.
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        let mut rest = std::mem::take(&mut self.buffer);
        // A reset ends the stream, too.
        self.stream.read_to_end(&mut rest).ok();
        rest
    }

    fn read_until(&mut self, end: &[u8]) -> io::Result<Vec<u8>> {
        loop {
            if let Some(at) = self.buffer.windows(end.len()).position(|window| window == end) {
                return Ok(self.buffer.drain(..at + end.len()).collect());
            }
            self.fill()?;
        }
    }

    fn read_exactly(&mut self, count: usize) -> io::Result<Vec<u8>> {
        while self.buffer.len() < count {
            self.fill()?;
        }
        Ok(self.buffer.drain(..count).collect())
    }

    fn fill(&mut self) -> io::Result<()> {
        let mut piece = [0; 65536];
        loop {
            match self.stream.read(&mut piece) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    self.buffer.extend_from_slice(&piece[..count]);
                    return Ok(());
                }
                // A read with a timeout is not restarted after a stop and a continue of the process (signal(7)).
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

pub(crate) fn request(method: &str, target: &str, headers: &[(&str, &str)], body: Option<&[u8]>) -> Vec<u8> {
    let mut bytes = format!("{method} {target} HTTP/1.1\r\nHost: test\r\n");
    for (name, value) in headers {
        bytes.push_str(&format!("{name}: {value}\r\n"));
    }
    if let Some(body) = body {
        bytes.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    bytes.push_str("\r\n");
    let mut bytes = bytes.into_bytes();
    bytes.extend_from_slice(body.unwrap_or_default());
    bytes
}

fn fields<'a>(lines: impl Iterator<Item = &'a str>) -> HashMap<String, String> {
    lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect()
}

/// Copies the named files of a data directory, as an operator would with `cp`.
pub(crate) fn copy_files(from: &Path, to: &Path, names: &[&str]) {
    for name in names {
        std::fs::copy(from.join(name), to.join(name)).expect("the file can be copied");
    }
}
