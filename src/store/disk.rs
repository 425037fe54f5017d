//! One folder of files, as a journal needs it.
//!
//! [`Disk`] and [`DiskFile`] are the few calls that decide what survives a crash: positioned writes, `fdatasync` of a
//! file, `fsync` of the folder. [`RealDisk`] is a folder of the file system, locked against a second process.
//! [`SimDisk`] is a deterministic disk in memory that knows what was synced and what was not, and can crash, fill up
//! and fail on demand.
//!
//! Every call takes `&self`: handles may be shared between threads, and a positioned write needs no seek. Errors are
//! [`std::io::Error`] that keep their kind and name the operation and the path.

mod real;
mod sim;

pub use real::{Locked, RealDisk, RealFile};
pub use sim::{CrashMode, SimDisk, SimFile};

use std::io;

/// A folder of files. Names are plain file names without separators.
///
/// What the folder contains (creations, removals, renames) is durable only after [`Disk::sync_folder`]; what a file
/// contains only after [`DiskFile::sync_data`].
pub trait Disk: Send {
    /// An open file. It stays readable after the file is removed or renamed.
    type File: DiskFile;

    /// The names of all files, sorted. The disk's own lock file is not among them.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Creates an empty file. `AlreadyExists` if there is one of that name.
    fn create(&self, name: &str) -> io::Result<Self::File>;

    /// Opens an existing file for reading and writing. `NotFound` if there is none.
    fn open(&self, name: &str) -> io::Result<Self::File>;

    /// Removes a file. `NotFound` if there is none.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Removes files in this order, each removal durable before the next begins. It may go on in the background, for as
    /// long as this disk lives at most; what fails there is told by the next call.
    fn remove_in_order(&self, names: Vec<String>) -> io::Result<()> {
        for name in names {
            self.remove(&name)?;
            self.sync_folder()?;
        }
        Ok(())
    }

    /// Renames a file, atomically replacing a file named `to`.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Makes all creations, removals and renames so far durable.
    fn sync_folder(&self) -> io::Result<()>;

    /// How messages name this folder.
    fn location(&self) -> String;
}

/// An open file of a [`Disk`].
pub trait DiskFile: Send + Sync {
    /// Length in bytes.
    fn length(&self) -> io::Result<u64>;

    /// Fills all of `buffer` from `offset`. `UnexpectedEof` if the file ends before.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`, growing the file where needed. After an error any part may be written.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Reserves space up to `length` bytes and grows the file to that length if it is shorter; new bytes read as zero.
    fn allocate(&self, length: u64) -> io::Result<()>;

    /// Cuts or grows the file to `length` bytes.
    fn truncate(&self, length: u64) -> io::Result<()>;

    /// `fdatasync`: when it returns `Ok`, all earlier writes to this file and its length are durable. After an error
    /// they may be lost for good, and a later `Ok` says nothing about them.
    fn sync_data(&self) -> io::Result<()>;
}
