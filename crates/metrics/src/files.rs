//! Files that are either whole or not there.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Error, Result};

/// Distinguishes the temporary files of one process; the process id distinguishes those of several.
static COUNTER: AtomicU64 = AtomicU64::new(0);

/// Writes `bytes` to `path` so that a reader, or a run that is killed half way, sees the old file or the new one and never
/// a part: the bytes go to a temporary file in the same folder, are synced to the disk, and the file is renamed.
///
/// Missing parent folders are created. A temporary file is named `.NAME.PID.N.tmp`, and is removed when writing fails.
///
/// # Errors
/// [`Error::Io`] with the path, if `path` has no file name, or a folder or file cannot be created, written or renamed.
pub fn write_atomically(path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> Result<()> {
    let path = path.as_ref();
    write(path, bytes.as_ref()).map_err(|source| Error::Io { path: path.to_path_buf(), source })
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path has no file name"))?;
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(folder)?;
    let serial = COUNTER.fetch_add(1, Ordering::Relaxed);
    let mut temporary_name = std::ffi::OsString::from(".");
    temporary_name.push(name);
    temporary_name.push(format!(".{}.{serial}.tmp", std::process::id()));
    let temporary = folder.join(temporary_name);
    let written = fill(&temporary, bytes).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // The first error is the one to report; a temporary file that never came to be cannot be removed.
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn fill(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    // Without this, a power cut after the rename could leave an empty file under the final name.
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_a_file_and_leaves_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/er/table.csv");
        write_atomically(&path, "first").unwrap();
        write_atomically(&path, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        let names: Vec<_> =
            fs::read_dir(path.parent().unwrap()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["table.csv"]);
    }

    #[test]
    fn a_failed_write_names_the_path_and_cleans_up() {
        let folder = tempfile::tempdir().unwrap();
        // A folder stands where the file should go: the rename fails after the temporary file was written.
        let path = folder.path().join("taken");
        fs::create_dir_all(path.join("inside")).unwrap();
        let message = write_atomically(&path, "x").unwrap_err().to_string();
        assert!(message.contains("taken"), "{message}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        // A file stands where a folder should be.
        let file = folder.path().join("file");
        write_atomically(&file, "x").unwrap();
        assert!(matches!(write_atomically(file.join("below"), "x"), Err(Error::Io { .. })));
        assert!(matches!(write_atomically("", "x"), Err(Error::Io { .. })));
        assert!(matches!(write_atomically("/", "x"), Err(Error::Io { .. })));
    }
}
