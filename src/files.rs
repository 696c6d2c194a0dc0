//! Files that are whole or not there.

use std::io::Write;
use std::path::Path;

use crate::{Error, Result};

/// Writes `bytes` to a temporary name beside `path` and renames it.
///
/// # Errors
/// [`Error::Io`] naming the file.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let error = |source| Error::Io { path: path.to_owned(), source };
    let Some(name) = path.file_name() else {
        return Err(error(std::io::Error::new(std::io::ErrorKind::InvalidInput, "no file name")));
    };
    let mut temporary = name.to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(temporary);
    let written = std::fs::File::create(&temporary)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&temporary, path));
    written.map_err(|source| {
        // The temporary file is of no use to anybody; that it may be gone already does not matter.
        let _ = std::fs::remove_file(&temporary);
        error(source)
    })
}
