//! A folder of the file system.

use super::{Disk, DiskFile};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::file_lock::{FileLock, FileLockError};
use crate::store::background;

/// Locked for as long as the [`RealDisk`] lives.
const LOCK_FILE: &str = "lock";

/// A folder of the file system, locked: at most one `RealDisk` of a folder exists at a time, in all processes.
#[derive(Debug)]
pub struct RealDisk {
    folder: PathBuf,
    /// What [`Disk::remove_in_order`] began.
    removing: Mutex<Option<JoinHandle<io::Result<()>>>>,
    _lock: FileLock,
}

/// A file of a [`RealDisk`].
#[derive(Debug)]
pub struct RealFile {
    file: File,
    path: PathBuf,
}

/// The folder is in use. Found inside the [`io::Error`] of kind `ResourceBusy` that [`RealDisk::open`] returns.
#[derive(Debug, thiserror::Error)]
#[error(
    "the folder {} is in use by {}: stop that process, or use another folder",
    folder.display(),
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
)]
pub struct Locked {
    /// The folder that is locked.
    pub folder: PathBuf,
    /// The process that holds it, if it wrote its id.
    pub pid: Option<u32>,
}

impl RealDisk {
    /// Opens an existing folder and locks it. `NotFound` if there is no such folder, `ResourceBusy` with [`Locked`]
    /// inside if another `RealDisk` has it open.
    pub fn open(folder: impl Into<PathBuf>) -> io::Result<Self> {
        let folder = folder.into();
        let path = folder.join(LOCK_FILE);
        let lock = match FileLock::take(&path) {
            Ok(lock) => lock,
            Err(FileLockError::Held { pid }) => {
                return Err(io::Error::new(
                    io::ErrorKind::ResourceBusy,
                    Locked { folder, pid },
                ));
            }
            Err(FileLockError::Io { tried, source }) => return Err(context(source, tried, &path)),
        };
        Ok(Self {
            folder,
            removing: Mutex::new(None),
            _lock: lock,
        })
    }

    /// Creates the folder, with parents, where it does not exist, makes that durable, and opens it.
    pub fn create(folder: impl Into<PathBuf>) -> io::Result<Self> {
        let folder = folder.into();
        fs::create_dir_all(&folder).map_err(|e| context(e, "create the folder", &folder))?;
        for parent in folder.ancestors().skip(1).take(2) {
            let parent = if parent.as_os_str().is_empty() {
                Path::new(".")
            } else {
                parent
            };
            sync_directory(parent)?;
        }
        Self::open(folder)
    }

    /// The folder, as it was given.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Waits for what goes on in the background, and says how it went.
    fn removed(&self) -> io::Result<()> {
        let removing = self
            .removing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        match removing.map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(done)) => done,
            Some(Err(_)) => Err(io::Error::other("the thread that removes files panicked")),
        }
    }
}

impl Drop for RealDisk {
    /// The folder is unlocked only when nothing in it changes any more.
    fn drop(&mut self) {
        // What is left of a file that could not be removed is removed later.
        let _ = self.removed();
    }
}

impl Disk for RealDisk {
    type File = RealFile;

    fn list(&self) -> io::Result<Vec<String>> {
        let listing = |e| context(e, "list the folder", &self.folder);
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(listing)? {
            let entry = entry.map_err(listing)?;
            if !entry.file_type().map_err(listing)?.is_file() {
                continue;
            }
            // A name that is not UTF-8 is not one of ours.
            if let Ok(name) = entry.file_name().into_string()
                && name != LOCK_FILE
            {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn create(&self, name: &str) -> io::Result<RealFile> {
        let path = self.folder.join(name);
        let file = OpenOptions::new()
            .create_new(true)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|e| context(e, "create", &path))?;
        Ok(RealFile { file, path })
    }

    fn open(&self, name: &str) -> io::Result<RealFile> {
        let path = self.folder.join(name);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|e| context(e, "open", &path))?;
        Ok(RealFile { file, path })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let path = self.folder.join(name);
        fs::remove_file(&path).map_err(|e| context(e, "remove", &path))
    }

    /// On a thread of its own: freeing the blocks of a segment takes 10 to 40 ms on ext4, for which no commit should wait.
    fn remove_in_order(&self, names: Vec<String>) -> io::Result<()> {
        self.removed()?;
        let folder = self.folder.clone();
        let remove = move || {
            background::yield_to_commits();
            for name in names {
                let path = folder.join(name);
                fs::remove_file(&path).map_err(|e| context(e, "remove", &path))?;
                sync_directory(&folder)?;
            }
            Ok(())
        };
        let thread = std::thread::Builder::new()
            .name("iris-remove".to_owned())
            .spawn(remove)?;
        *self.removing.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let path = self.folder.join(from);
        fs::rename(&path, self.folder.join(to)).map_err(|e| context(e, &format!("rename to {to}"), &path))
    }

    fn sync_folder(&self) -> io::Result<()> {
        sync_directory(&self.folder)
    }

    fn location(&self) -> String {
        self.folder.display().to_string()
    }
}

impl DiskFile for RealFile {
    fn length(&self) -> io::Result<u64> {
        let metadata = self
            .file
            .metadata()
            .map_err(|e| context(e, "read the length of", &self.path))?;
        Ok(metadata.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file
            .read_exact_at(buffer, offset)
            .map_err(|e| context(e, "read", &self.path))
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file
            .write_all_at(bytes, offset)
            .map_err(|e| context(e, "write", &self.path))
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        allocate(&self.file, length).map_err(|e| context(e, "allocate space for", &self.path))
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.file
            .set_len(length)
            .map_err(|e| context(e, "set the length of", &self.path))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data().map_err(|e| context(e, "sync", &self.path))
    }
}

#[cfg(target_os = "linux")]
fn allocate(file: &File, length: u64) -> io::Result<()> {
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, length) {
        Ok(()) => Ok(()),
        // A file system without it: the space is not reserved, and a write may meet a full disk.
        Err(rustix::io::Errno::OPNOTSUPP) => grow(file, length),
        Err(e) => Err(e.into()),
    }
}

#[cfg(not(target_os = "linux"))]
fn allocate(file: &File, length: u64) -> io::Result<()> {
    grow(file, length)
}

fn grow(file: &File, length: u64) -> io::Result<()> {
    if file.metadata()?.len() < length {
        file.set_len(length)
    } else {
        Ok(())
    }
}

fn sync_directory(folder: &Path) -> io::Result<()> {
    File::open(folder)
        .and_then(|f| f.sync_all())
        .map_err(|e| context(e, "sync the folder", folder))
}

/// Who wrote the lock file. `None` if it cannot be told: the holder may be about to write it.
/// The same kind of error, with what was tried and where in its text.
fn context(error: io::Error, tried: &str, path: &Path) -> io::Error {
    io::Error::new(
        error.kind(),
        format!("cannot {tried} {}: {error}", path.display()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_opener_is_refused_and_told_who_holds_it() {
        let temp = tempfile::tempdir().unwrap();
        let disk = RealDisk::create(temp.path().join("a/b")).unwrap();
        let error = RealDisk::open(temp.path().join("a/b")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
        let locked = error.get_ref().and_then(|e| e.downcast_ref::<Locked>()).unwrap();
        assert_eq!(locked.pid, Some(std::process::id()));
        assert!(error.to_string().contains("a/b"), "{error}");
        drop(disk);
        RealDisk::open(temp.path().join("a/b")).unwrap();
    }

    #[test]
    fn a_missing_folder_is_not_created_by_open() {
        let temp = tempfile::tempdir().unwrap();
        let error = RealDisk::open(temp.path().join("absent")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().contains("absent"), "{error}");
    }

    #[test]
    fn what_is_removed_in_the_background_is_gone_before_the_lock_and_errors_are_told() {
        let temp = tempfile::tempdir().unwrap();
        let disk = RealDisk::create(temp.path()).unwrap();
        let names = |count: usize| (0..count).map(|n| format!("file{n}")).collect::<Vec<_>>();
        for name in names(4) {
            disk.create(&name).unwrap().allocate(1024 * 1024).unwrap();
        }
        disk.remove_in_order(names(3)).unwrap();
        drop(disk);
        let disk = RealDisk::open(temp.path()).unwrap();
        assert_eq!(disk.list().unwrap(), ["file3"]);
        // The first is gone already: the one behind it stays.
        disk.remove_in_order(vec!["file0".to_owned(), "file3".to_owned()])
            .unwrap();
        let error = disk.remove_in_order(Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().contains("file0"), "{error}");
        assert_eq!(disk.list().unwrap(), ["file3"]);
    }

    #[test]
    fn files_are_made_read_renamed_and_removed() {
        let temp = tempfile::tempdir().unwrap();
        let disk = RealDisk::open(temp.path()).unwrap();
        let file = disk.create("one").unwrap();
        file.allocate(10_000).unwrap();
        file.write_at(b"abc", 5_000).unwrap();
        file.sync_data().unwrap();
        assert_eq!(file.length().unwrap(), 10_000);
        disk.rename("one", "two").unwrap();
        disk.sync_folder().unwrap();
        assert_eq!(disk.list().unwrap(), ["two"]);
        let again = disk.open("two").unwrap();
        let mut bytes = [9; 5];
        again.read_at(&mut bytes, 4_999).unwrap();
        assert_eq!(&bytes, b"\0abc\0");
        assert_eq!(
            again.read_at(&mut bytes, 9_999).unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
        assert_eq!(
            disk.create("two").unwrap_err().kind(),
            io::ErrorKind::AlreadyExists
        );
        disk.remove("two").unwrap();
        assert_eq!(disk.open("two").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
