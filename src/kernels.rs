//! The CUDA kernels that this build carries.
//!
//! `build.rs` compiles every `kernels/<family>.cu` when nvcc is there; elsewhere the table is empty, and an op
//! asked to run on a GPU answers with an error.

include!(concat!(env!("OUT_DIR"), "/kernel_table.rs"));

/// The fatbin of a kernel family, when this build carries it.
pub fn fatbin(family: &str) -> Option<&'static [u8]> {
    EMBEDDED.iter().find(|(name, _)| *name == family).map(|(_, bytes)| *bytes)
}

/// The names of the kernel families that this build carries.
pub fn families() -> impl Iterator<Item = &'static str> {
    EMBEDDED.iter().map(|(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_names_each_family_once_and_an_unknown_one_not_at_all() {
        for family in families() {
            assert_eq!(families().filter(|other| *other == family).count(), 1, "{family}");
            assert!(fatbin(family).is_some_and(|bytes| !bytes.is_empty()), "{family}");
        }
        assert!(fatbin("no such family").is_none());
    }
}
