//! How `quorate dev kill 2` reaches the `quorate dev` that runs: a socket in its data directory,
//! and a note of the last one started.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

/// An action and its answer take at most so long.
const ANSWER: Duration = Duration::from_secs(60);
/// The longest line.
const LINE: u64 = 256;

/// Where the directory of the last started cluster is noted; one note a user.
fn note() -> PathBuf {
    let user = nix::unistd::getuid();
    std::env::temp_dir().join(format!("quorate-dev-{user}"))
}

fn socket(directory: &Path) -> PathBuf {
    directory.join("dev.sock")
}

/// Makes the directory this process's own for as long as what is returned lives: two clusters in
/// one would take each other's socket and data.
///
/// # Errors
/// [`io::ErrorKind::ResourceBusy`] where another `quorate dev` has it.
pub(crate) fn lock(directory: &Path) -> io::Result<Flock<File>> {
    fs::create_dir_all(directory)?;
    let file = File::create(directory.join("dev.lock"))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
        Errno::EWOULDBLOCK => io::Error::new(
            io::ErrorKind::ResourceBusy,
            format!("{} is used by another `quorate dev`", directory.display()),
        ),
        other => other.into(),
    })
}

/// The cluster that the data of a node in `directory` belongs to, once it is known there.
pub(crate) fn cluster_id(directory: &Path, node: u32) -> Option<String> {
    let path = directory.join(format!("node-{node}/meta.properties"));
    let text = fs::read_to_string(path).ok()?;
    let mut lines = text.lines();
    lines.find_map(|line| Some(line.strip_prefix("cluster.id=")?.trim().to_owned()))
}

/// Opens the socket and notes the directory, which is [locked](lock).
pub(crate) fn open(directory: &Path) -> io::Result<UnixListener> {
    let listener = listen(directory)?;
    fs::write(note(), directory.as_os_str().as_encoded_bytes())?;
    Ok(listener)
}

/// Opens the socket alone.
pub(crate) fn listen(directory: &Path) -> io::Result<UnixListener> {
    let path = socket(directory);
    // Left behind by one that was killed: a live one holds the lock.
    let _none = fs::remove_file(&path);
    UnixListener::bind(path)
}

/// Takes one action from a connection.
pub(crate) async fn receive(stream: UnixStream) -> io::Result<(String, UnixStream)> {
    let mut reader = BufReader::new(stream.take(LINE));
    let mut line = String::new();
    timeout(ANSWER, reader.read_line(&mut line))
        .await
        .map_err(io::Error::other)??;
    Ok((line.trim().to_owned(), reader.into_inner().into_inner()))
}

/// Answers an action: empty for done, else why not.
pub(crate) async fn answer(mut stream: UnixStream, text: &str) -> io::Result<()> {
    stream.write_all(text.as_bytes()).await
}

/// The directory that was named, or that of the last started cluster.
pub(crate) fn directory(named: Option<PathBuf>) -> io::Result<PathBuf> {
    match named {
        Some(directory) => Ok(directory),
        None => Ok(PathBuf::from(
            fs::read_to_string(note()).map_err(|_| nobody())?,
        )),
    }
}

/// Sends an action to the running cluster in `directory`, or to the last started.
pub(crate) async fn send(named: Option<PathBuf>, action: &str) -> io::Result<String> {
    let directory = directory(named)?;
    let mut stream = UnixStream::connect(socket(&directory))
        .await
        .map_err(|_| nobody())?;
    stream.write_all(format!("{action}\n").as_bytes()).await?;
    let mut text = String::new();
    timeout(ANSWER, stream.read_to_string(&mut text))
        .await
        .map_err(io::Error::other)??;
    Ok(text)
}

fn nobody() -> io::Error {
    io::Error::new(
        io::ErrorKind::NotFound,
        "no running `quorate dev` was found",
    )
}
