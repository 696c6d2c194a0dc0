//! Machines for which no split products are written: nothing here can be called.

#![allow(unused_variables, dead_code, reason = "the same signatures as where there are")]

/// As where there are.
pub(crate) const SIDE: usize = 32;

/// As on the machines that have them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Terms {
    One,
    TwoByOne,
    ThreeByOne,
    Three,
    Six,
}

#[derive(Clone, Copy)]
pub(crate) struct Source<'a>(&'a [f32]);

impl<'a> Source<'a> {
    pub(crate) fn new(data: &'a [f32], stride: usize, shape: (usize, usize), factors: &'a [f32]) -> Self {
        Self(data)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Packed;

#[derive(Debug, Default)]
pub(crate) struct Buffers;

/// No thread may multiply.
pub(crate) enum Unit {}

pub(crate) fn available() -> bool {
    false
}

impl Unit {
    pub(crate) fn new() -> Option<Self> {
        None
    }

    pub(crate) fn pack(&self, terms: Terms, source: Source<'_>, rows: usize, out: &mut Packed) {
        match *self {}
    }

    pub(crate) fn scores(
        &self,
        terms: Terms,
        x: &Packed,
        y: (Source<'_>, usize),
        out: (&mut [f32], usize),
        buffers: &mut Buffers,
    ) {
        match *self {}
    }

    pub(crate) fn split(&self, row: &mut [f32]) {
        match *self {}
    }

    pub(crate) fn accumulate(
        &self,
        terms: Terms,
        p: (&[f32], usize, usize),
        y: (Source<'_>, usize),
        out: (&mut [f32], usize),
        buffers: &mut Buffers,
    ) {
        match *self {}
    }

    pub(crate) fn accumulate_transposed(
        &self,
        rows: usize,
        x: Source<'_>,
        p: Source<'_>,
        out: (&mut [f32], usize),
        buffers: &mut Buffers,
    ) {
        match *self {}
    }
}
