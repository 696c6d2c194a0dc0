//! Large zeroed arrays whose pages exist once they are touched.

use std::io;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use memmap2::{MmapMut, MmapOptions};

/// Integers for which every bit pattern is a value.
pub(crate) trait Word: Copy {}
impl Word for u8 {}
impl Word for u64 {}

/// A zeroed slice in memory of its own, page-aligned.
pub(crate) struct Pages<T: Word> {
    memory: MmapMut,
    element: PhantomData<T>,
}

impl<T: Word> Pages<T> {
    pub(crate) fn new(len: usize) -> io::Result<Self> {
        let bytes = len.max(1) * size_of::<T>();
        let memory = MmapOptions::new().len(bytes).no_reserve_swap().map_anon()?;
        Ok(Self { memory, element: PhantomData })
    }
}

impl<T: Word> Deref for Pages<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: a mapping is page-aligned and its bytes are initialised; every pattern is a value of `T`.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().cast(), self.memory.len() / size_of::<T>()) }
    }
}

impl<T: Word> DerefMut for Pages<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let len = self.memory.len() / size_of::<T>();
        // SAFETY: as in `deref`; the mapping is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_mut_ptr().cast(), len) }
    }
}
