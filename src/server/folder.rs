//! The data folder of a node: made only when asked for, and the counter of its incarnations.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::config::ADMIN_SOCKET;
use super::node::Create;
use crate::core::ids::Generation;

const GENERATION: &str = "generation";
/// How the node was begun: one word, written once.
const BEGUN: &str = "begun";
/// Which regions are evacuated.
const EVACUATIONS: &str = "evacuations";
/// What may be in a folder that holds no node yet: what a start leaves that dies before it has an incarnation.
const BEFORE_THE_FIRST_START: [&str; 5] = [BEGUN, "begun.new", "generation.new", "store.new", ADMIN_SOCKET];
/// What a file system puts into its own root: a folder with nothing else is empty.
const LOST_AND_FOUND: &str = "lost+found";

/// Why a data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// An empty or missing folder must not look like a new server: it may be a lost disk or a wrong mount.
    #[error(
        "the data folder {0} is missing or empty. If this is a new node, start it once with --create (the first node of \
         a new cluster: --new-cluster); if it is not, look for the lost disk or the wrong mount"
    )]
    Empty(PathBuf),
    /// `--create` and `--new-cluster` make something new.
    #[error("the data folder {0} holds a node's data already: start without --create or --new-cluster")]
    NotEmpty(PathBuf),
    /// Somebody else's files, and no node's: a wrong path or mount, most often.
    #[error(
        "the data folder {path} holds {entry:?}, which no node made, and no node's data. For a new node name a folder that is \
         missing or empty as node.data, or move {entry:?} away; if a node ran here, look for the lost disk or the wrong mount"
    )]
    Foreign {
        /// The folder.
        path: PathBuf,
        /// One of its entries.
        entry: String,
    },
    /// The counter of incarnations is gone, and a store is there: a number that comes again would be taken for the process before.
    #[error(
        "the data folder {0} holds a store, and its file `generation` is missing: restore it, or write one that holds the \
         time in milliseconds since 1970 (date +%s%3N), which is above every earlier number where the clock was right"
    )]
    GenerationMissing(PathBuf),
    /// The counter of incarnations is at its end.
    #[error(
        "{path} holds {found}, and no number is above it: write one that is above every earlier one, and lower"
    )]
    GenerationSpent {
        /// The file.
        path: PathBuf,
        /// Its content.
        found: u64,
    },
    /// A file in it.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The list of evacuated regions.
    #[error(
        "{}: {why}. Remove it: the node learns from the others which regions are evacuated, where `iris region evacuate` was \
         asked for", path.display()
    )]
    Evacuations {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The counter of incarnations.
    #[error(
        "{path} holds {found:?}; expected a number. Restore it, or write a number above every earlier one"
    )]
    Generation {
        /// The file.
        path: PathBuf,
        /// Its content.
        found: String,
    },
}

/// An opened data folder.
#[derive(Debug, Clone)]
pub struct NodeFolder {
    path: PathBuf,
    fresh: bool,
}

impl NodeFolder {
    /// Opens or makes it.
    ///
    /// # Errors
    /// [`FolderError`].
    pub fn open(path: &Path, create: Create) -> Result<Self, FolderError> {
        let io = |source| FolderError::Io {
            path: path.to_owned(),
            source,
        };
        let used = path.join(GENERATION).exists();
        if !used && path.join("store").exists() {
            return Err(FolderError::GenerationMissing(path.to_owned()));
        }
        if !used && let Some(entry) = foreign_entry(path, &BEFORE_THE_FIRST_START).map_err(io)? {
            let path = path.to_owned();
            return Err(FolderError::Foreign { path, entry });
        }
        match create {
            Create::No if !used => return Err(FolderError::Empty(path.to_owned())),
            // A node that died while its store was made has an incarnation and no store yet.
            Create::Store | Create::Cluster if used && path.join("store").exists() => {
                return Err(FolderError::NotEmpty(path.to_owned()));
            }
            _ => {}
        }
        make_durable(path).map_err(io)?;
        let begun = match create {
            Create::No => None,
            Create::Store => Some("create"),
            Create::Cluster => Some("new-cluster"),
            Create::IfMissing => Some("dev").filter(|_| !used),
            Create::ClusterIfMissing => Some("new-cluster").filter(|_| !used),
        };
        if let Some(word) = begun {
            write_synced(path, BEGUN, word)?;
        }
        Ok(Self {
            path: path.to_owned(),
            fresh: !used,
        })
    }

    /// Whether nothing was there.
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How it was begun: `new-cluster` (the cluster began with this store), `create` (for a node of a cluster that ran), `dev`;
    /// `None` where an earlier version began it.
    ///
    /// # Errors
    /// [`FolderError::Io`].
    pub fn begun(&self) -> Result<Option<String>, FolderError> {
        let path = self.path.join(BEGUN);
        match fs::read_to_string(&path) {
            Ok(word) => Ok(Some(word.trim().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(FolderError::Io { path, source }),
        }
    }

    /// The next incarnation: above the stored one and at least unix milliseconds; durable before it is given.
    ///
    /// # Errors
    /// [`FolderError`].
    pub fn next_generation(&self) -> Result<Generation, FolderError> {
        let path = self.path.join(GENERATION);
        let io = |source| FolderError::Io {
            path: path.clone(),
            source,
        };
        let stored = match fs::read_to_string(&path) {
            Ok(text) => text.trim().parse::<u64>().map_err(|_| FolderError::Generation {
                path: path.clone(),
                found: text.clone(),
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(io(error)),
        };
        let clock = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_millis();
        let next = stored
            .checked_add(1)
            .ok_or_else(|| FolderError::GenerationSpent {
                path: path.clone(),
                found: stored,
            })?;
        let next = next.max(u64::try_from(clock).unwrap_or(0));
        write_synced(&self.path, GENERATION, &next.to_string())?;
        Ok(Generation(next))
    }
}

impl NodeFolder {
    /// What is kept of evacuated regions; `read` says what is wrong with a text that it cannot read.
    ///
    /// # Errors
    /// [`FolderError`].
    pub(super) fn evacuations<T: Default>(
        &self,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<T, FolderError> {
        let path = self.path.join(EVACUATIONS);
        match fs::read_to_string(&path) {
            Ok(text) => read(&text).map_err(|why| FolderError::Evacuations { path, why }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(T::default()),
            Err(source) => Err(FolderError::Io { path, source }),
        }
    }

    /// Keeps it, durable when this returns.
    ///
    /// # Errors
    /// [`FolderError`].
    pub(super) fn keep_evacuations(&self, text: &str) -> Result<(), FolderError> {
        write_synced(&self.path, EVACUATIONS, text)
    }
}

/// The first by name of what is in a folder and is neither its own, by `own`, nor its file system's; none where the folder is
/// missing.
pub(super) fn foreign_entry(folder: &Path, own: &[&str]) -> io::Result<Option<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries?,
    };
    let mut first: Option<String> = None;
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let foreign = name != LOST_AND_FOUND && !own.contains(&name.as_str());
        if foreign && first.as_ref().is_none_or(|first| name < *first) {
            first = Some(name);
        }
    }
    Ok(first)
}

/// Makes a folder and those above it that are missing. Each is durable when this returns: without its entry in the folder
/// above it, what is synced within it would be lost with it.
fn make_durable(path: &Path) -> io::Result<()> {
    if path.as_os_str().is_empty() || path.is_dir() {
        return Ok(());
    }
    let above = path.parent().filter(|above| !above.as_os_str().is_empty());
    if let Some(above) = above {
        make_durable(above)?;
    }
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    fs::File::open(above.unwrap_or(Path::new(".")))?.sync_all()
}

/// Replaces a small file, durable when this returns.
fn write_synced(folder: &Path, name: &str, text: &str) -> Result<(), FolderError> {
    let path = folder.join(name);
    let write = || {
        let new = folder.join(format!("{name}.new"));
        let mut file = fs::File::create(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        fs::File::open(folder)?.sync_all()
    };
    write().map_err(|source| FolderError::Io {
        path: path.clone(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_folder_needs_a_word() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node");
        assert!(matches!(
            NodeFolder::open(&path, Create::No),
            Err(FolderError::Empty(_))
        ));
        let made = NodeFolder::open(&path, Create::Store).unwrap();
        let first = made.next_generation().unwrap();
        fs::create_dir(path.join("store")).unwrap();
        assert!(matches!(
            NodeFolder::open(&path, Create::Store),
            Err(FolderError::NotEmpty(_))
        ));
        let again = NodeFolder::open(&path, Create::No).unwrap();
        assert_eq!(again.begun().unwrap().as_deref(), Some("create"));
        assert!(again.next_generation().unwrap() > first);
    }

    #[test]
    fn a_folder_with_files_of_others_is_no_new_node_and_stays_as_it_is() {
        let words = [
            Create::No,
            Create::Store,
            Create::Cluster,
            Create::IfMissing,
            Create::ClusterIfMissing,
        ];
        for create in words {
            let folder = tempfile::tempdir().unwrap();
            fs::create_dir(folder.path().join("photos")).unwrap();
            fs::write(folder.path().join("thesis.txt"), "").unwrap();
            let error = NodeFolder::open(folder.path(), create).unwrap_err();
            assert!(
                matches!(&error, FolderError::Foreign { path, entry } if path == folder.path() && entry == "photos"),
                "{create:?}: {error}"
            );
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "{create:?}");
        }
    }

    #[test]
    fn a_fresh_mount_and_what_a_start_left_are_empty_and_a_node_may_have_neighbours() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join(LOST_AND_FOUND)).unwrap();
        for left in BEFORE_THE_FIRST_START {
            fs::write(folder.path().join(left), "").unwrap();
        }
        assert!(matches!(
            NodeFolder::open(folder.path(), Create::No),
            Err(FolderError::Empty(_))
        ));
        let made = NodeFolder::open(folder.path(), Create::Store).unwrap();
        made.next_generation().unwrap();
        fs::write(folder.path().join("note.txt"), "").unwrap();
        for create in [Create::No, Create::Store, Create::IfMissing] {
            assert!(NodeFolder::open(folder.path(), create).is_ok(), "{create:?}");
        }
    }

    #[test]
    fn the_folder_tells_how_it_was_begun_also_after_a_start_that_made_no_store() {
        let folder = tempfile::tempdir().unwrap();
        let begun = |create| {
            let open = NodeFolder::open(folder.path(), create).unwrap();
            open.next_generation().unwrap();
            open.begun().unwrap()
        };
        assert_eq!(begun(Create::Store).as_deref(), Some("create"));
        assert_eq!(begun(Create::Cluster).as_deref(), Some("new-cluster"));
        assert_eq!(begun(Create::No).as_deref(), Some("new-cluster"));
        assert_eq!(begun(Create::IfMissing).as_deref(), Some("new-cluster"));
    }

    #[test]
    fn a_store_without_its_generation_is_not_taken_for_a_new_node() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/node");
        NodeFolder::open(&path, Create::Cluster)
            .unwrap()
            .next_generation()
            .unwrap();
        fs::create_dir(path.join("store")).unwrap();
        fs::remove_file(path.join(GENERATION)).unwrap();
        for create in [
            Create::No,
            Create::Store,
            Create::Cluster,
            Create::IfMissing,
            Create::ClusterIfMissing,
        ] {
            let opened = NodeFolder::open(&path, create);
            assert!(
                matches!(opened, Err(FolderError::GenerationMissing(_))),
                "{create:?}"
            );
        }
        assert_eq!(fs::read_to_string(path.join(BEGUN)).unwrap(), "new-cluster");
    }

    #[test]
    fn generations_rise_when_the_clock_goes_back() {
        let folder = tempfile::tempdir().unwrap();
        let far = u64::MAX / 2;
        fs::write(folder.path().join(GENERATION), far.to_string()).unwrap();
        let open = NodeFolder::open(folder.path(), Create::No).unwrap();
        assert_eq!(open.next_generation().unwrap(), Generation(far + 1));
        fs::write(folder.path().join(GENERATION), u64::MAX.to_string()).unwrap();
        assert!(matches!(
            open.next_generation(),
            Err(FolderError::GenerationSpent { found: u64::MAX, .. })
        ));
        fs::write(folder.path().join(GENERATION), "x").unwrap();
        assert!(matches!(
            open.next_generation(),
            Err(FolderError::Generation { .. })
        ));
    }
}
