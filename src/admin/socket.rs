//! Unix sockets at paths of any length: the system takes about a hundred bytes, a data folder may lie deeper.
//!
//! A longer path is named through its folder, which is opened first (`/proc/self/fd/N/admin.sock`). Where the system has no
//! such names the error says what to do.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

use crate::server::config::ADMIN_SOCKET;

/// Bytes of a path that every system takes (104 on some, one of them the end).
const MAX_PATH: usize = 103;

/// The socket could not be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on admin.socket {}: {why}", path.display())]
pub struct SocketError {
    /// Where.
    pub path: PathBuf,
    /// Why not, and what to do.
    pub why: String,
}

/// Listens at `path`, mode 0600 from its first moment under that name. A socket that nobody answers any more is replaced.
///
/// # Errors
/// [`SocketError`]: also where another process answers there.
pub async fn listen(path: &Path) -> Result<UnixListener, SocketError> {
    let error = |why: String| SocketError {
        path: path.to_owned(),
        why,
    };
    if connect(path).await.is_ok() {
        return Err(error(
            "another process answers there: stop it, or set another path".to_owned(),
        ));
    }
    if fs::symlink_metadata(path).is_ok_and(|found| !is_socket(&found)) {
        return Err(error(
            "something that is no socket is there: remove it, or set another path".to_owned(),
        ));
    }
    let mut draft = path.as_os_str().to_owned();
    draft.push(".new");
    let draft = PathBuf::from(draft);
    let failed = |source: io::Error| error(source.to_string());
    match fs::remove_file(&draft) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(failed(source)),
        _ => {}
    }
    let listener = short(&draft, |path| UnixListener::bind(path)).map_err(failed)?;
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    // Whoever connects meets it with its mode, or the one before.
    fs::rename(&draft, path).map_err(failed)?;
    Ok(listener)
}

/// Connects to the socket at `path`.
///
/// # Errors
/// What the system says.
pub async fn connect(path: &Path) -> io::Result<UnixStream> {
    // The system's connect to a Unix socket does not wait; so the folder may be closed after it.
    let stream = short(path, |path| std::os::unix::net::UnixStream::connect(path))?;
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

/// The sockets that a folder may hold: its own, as the data folder of a node; those of the nodes of `iris dev`, by name.
pub fn in_folder(data: &Path) -> Vec<(Option<String>, PathBuf)> {
    let mut found = Vec::new();
    let own = data.join(ADMIN_SOCKET);
    if own.exists() {
        found.push((None, own));
    }
    let nodes = fs::read_dir(data.join("nodes")).into_iter().flatten().flatten();
    let mut nodes: Vec<PathBuf> = nodes.map(|entry| entry.path()).collect();
    nodes.sort();
    for node in nodes {
        let socket = node.join("data").join(ADMIN_SOCKET);
        if socket.exists() {
            let name = node.file_name().map(|name| name.to_string_lossy().into_owned());
            found.push((name, socket));
        }
    }
    found
}

fn is_socket(found: &fs::Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt as _;
    found.file_type().is_socket()
}

/// Calls `with` with a name of `path` that the system takes.
fn short<T>(path: &Path, with: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    if path.as_os_str().len() <= MAX_PATH {
        return with(path);
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::other("the path names no file"));
    };
    let folder = File::open(parent)?;
    let through = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()));
    if !through.exists() {
        let why = format!(
            "the path is longer than the {MAX_PATH} bytes that this system takes: set a shorter admin.socket"
        );
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    with(&through.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_is_for_its_owner_alone_and_one_left_behind_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(ADMIN_SOCKET);
        let first = listen(&path).await.unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let error = listen(&path).await.unwrap_err().to_string();
        assert!(error.contains("another process"), "{error}");
        drop(first);
        assert!(path.exists());
        let _again = listen(&path).await.unwrap();
        connect(&path).await.unwrap();
        fs::write(folder.path().join("file"), "x").unwrap();
        let error = listen(&folder.path().join("file")).await.unwrap_err().to_string();
        assert!(error.contains("no socket"), "{error}");
    }

    #[tokio::test]
    async fn a_path_may_be_longer_than_the_system_takes() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("d".repeat(120));
        fs::create_dir(&deep).unwrap();
        let path = deep.join(ADMIN_SOCKET);
        assert!(
            UnixListener::bind(&path).is_err(),
            "the system takes it, so this proves nothing"
        );
        let _listener = listen(&path).await.unwrap();
        connect(&path).await.unwrap();
        assert_eq!(in_folder(&deep), [(None, path)]);
    }
}
