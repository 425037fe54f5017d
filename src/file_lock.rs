//! A file that says: in use.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::Path;

/// More than any process id in decimal digits: what is read of a lock file.
const MAX_PID_DIGITS: u64 = 20;

/// A file, held with `flock` for as long as this lives. It contains the process id of its holder, and stays where it is.
///
/// The kernel drops the lock when the process ends, however it ends.
#[derive(Debug)]
pub struct FileLock {
    file: File,
}

/// Why a file could not be locked.
#[derive(Debug)]
pub enum FileLockError {
    /// Another [`FileLock`] holds it, in this process or in another.
    Held {
        /// The process, if it has noted itself by now.
        pid: Option<u32>,
    },
    /// What the operating system says, and at what.
    Io {
        /// As in "cannot … PATH".
        tried: &'static str,
        /// Its error.
        source: io::Error,
    },
}

impl FileLock {
    /// Locks the file, which is made where it is missing, and notes this process in it. Does not wait.
    ///
    /// # Errors
    /// [`FileLockError`].
    pub fn take(path: &Path) -> Result<Self, FileLockError> {
        let io = |tried| move |source| FileLockError::Io { tried, source };
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)
            .map_err(io("open the lock file"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(FileLockError::Held {
                    pid: holder(&mut file),
                });
            }
            Err(TryLockError::Error(source)) => return Err(io("lock")(source)),
        }
        file.set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(io("write the process id into"))?;
        Ok(Self { file })
    }
}

impl Drop for FileLock {
    /// Closing the file is not enough: a process that is being spawned holds all files of its parent until it runs its program,
    /// and the lock lives as long as any of them.
    fn drop(&mut self) {
        // The one error that remains is a file that was never open.
        let _ = self.file.unlock();
    }
}

fn holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(MAX_PID_DIGITS).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_one_is_told_who_holds_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let lock = FileLock::take(&path).unwrap();
        match FileLock::take(&path) {
            Err(FileLockError::Held { pid }) => assert_eq!(pid, Some(std::process::id())),
            other => panic!("{other:?}"),
        }
        drop(lock);
        FileLock::take(&path).unwrap();
    }

    #[test]
    fn what_a_spawned_process_has_of_it_keeps_nobody_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let lock = FileLock::take(&path).unwrap();
        let inherited = lock.file.try_clone().unwrap();
        drop(lock);
        let again = FileLock::take(&path).unwrap();
        drop(inherited);
        assert!(matches!(FileLock::take(&path), Err(FileLockError::Held { .. })));
        drop(again);
    }
}
