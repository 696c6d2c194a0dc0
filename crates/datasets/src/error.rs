//! The one error type of the crate.

use std::path::{Path, PathBuf};

/// What was wrong with a data set, and what to do about it.
///
/// Every message names the file, the folder or the argument.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file that ships with the repository is nowhere to be found: the Emoji-ID pack, or the captions.
    #[error(
        "data of the repository were not found; looked at {}. Run from a checkout of the repository (the files are \
         below `data/`), set the environment variable {variable} to the file's path, or rebuild it with \
         `tools/emoji-id.sh` or `tools/emoji-captions.sh`",
        list(.tried)
    )]
    PackNotFound {
        /// The paths that were looked at.
        tried: Vec<PathBuf>,
        /// The environment variable that names the pack.
        variable: &'static str,
    },
    /// A file is not an intact pack: foreign, truncated, damaged, or of another version.
    #[error("{}: not an intact image pack: {reason}", .path.display())]
    Pack {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// A file is not a table of captions.
    #[error("{}: not a table of captions: {reason}", .path.display())]
    Captions {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// A folder that the layout needs is not there.
    #[error("{}: no such folder; expected {expected}", .path.display())]
    MissingFolder {
        /// The folder.
        path: PathBuf,
        /// What should have been there.
        expected: String,
    },
    /// A folder (or list file) is there but holds no usable image.
    #[error("{}: no usable image; expected {expected}", .path.display())]
    EmptyFolder {
        /// The folder.
        path: PathBuf,
        /// What should have been in it.
        expected: String,
    },
    /// An image's file name does not say who it shows and which camera took it.
    #[error("{}: cannot read the identity and the camera from the file name; expected {expected}", .path.display())]
    Name {
        /// The image.
        path: PathBuf,
        /// The form of the name.
        expected: &'static str,
    },
    /// An image cannot be decoded.
    #[error("{}: unreadable image: {source}", .path.display())]
    Image {
        /// The image.
        path: PathBuf,
        /// The decoder's complaint.
        source: image::ImageError,
    },
    /// A file or folder cannot be read or written.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's complaint.
        source: std::io::Error,
    },
    /// An argument is outside its range.
    #[error("{function}: `{argument}` is {got}, expected {expected}")]
    Argument {
        /// The function.
        function: &'static str,
        /// The argument's name.
        argument: &'static str,
        /// The value that came in.
        got: String,
        /// The admissible range, in words.
        expected: String,
    },
}

/// The result of everything here that can fail.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_path_buf(), source }
    }

    pub(crate) fn pack(path: &Path, reason: impl Into<String>) -> Self {
        Self::Pack { path: path.to_path_buf(), reason: reason.into() }
    }
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|p| format!("`{}`", p.display())).collect::<Vec<_>>().join(", ")
}
