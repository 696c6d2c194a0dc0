//! Operations of a warp: lanes arrive one by one, the last one computes for all.

use crate::execution::{Execution, Next};
use crate::fault::FaultKind;
use crate::matrix;
use crate::race::Mode;
use crate::threads::{Arrival, Gathering, Signal, State, operation};

/// The numbers of `simt::Warp` and `simt::Matrix`.
mod op {
    pub(super) const SHUFFLE: u32 = 0;
    pub(super) const SHUFFLE_UP: u32 = 1;
    pub(super) const SHUFFLE_DOWN: u32 = 2;
    pub(super) const SHUFFLE_XOR: u32 = 3;
    pub(super) const BALLOT: u32 = 4;
    pub(super) const ANY: u32 = 5;
    pub(super) const ALL: u32 = 6;
    pub(super) const MIN_UNSIGNED: u32 = 7;
    pub(super) const MAX_UNSIGNED: u32 = 8;
    pub(super) const MIN_SIGNED: u32 = 9;
    pub(super) const MAX_SIGNED: u32 = 10;
    pub(super) const ADD: u32 = 11;
    pub(super) const AND: u32 = 12;
    pub(super) const OR: u32 = 13;
    pub(super) const XOR: u32 = 14;
    pub(super) const MATCH: u32 = 15;
    pub(super) const SYNC: u32 = 16;
    pub(super) const LOAD: u32 = 32;
    pub(super) const LOAD_TRANSPOSED: u32 = 33;
    pub(super) const MULTIPLY_BF16: u32 = 34;
    pub(super) const MULTIPLY_F16: u32 = 35;
}

impl Execution<'_> {
    /// The running lane comes to an operation of the lanes `mask`.
    pub(crate) fn warp(&mut self, op: u32, mask: u32, words: [u64; 5], at: usize) -> Next {
        let (warp, lane) = (self.current / 32, self.current % 32);
        let arrival = Arrival { op, mask, at, words };
        let gathering = &mut self.gathering[warp];
        if gathering.joins(&arrival, lane) {
            gathering.here |= 1 << lane;
            let complete = gathering.here == mask;
            self.threads[self.current].state = State::Warp(arrival);
            if complete {
                return self.complete(warp, mask, Some(self.current));
            }
            return Next::Yield(Signal::Blocked);
        }
        let name = operation(op);
        if mask >> lane & 1 == 0 {
            let message =
                format!("lane {lane} comes to {name} with the mask {mask:#010x}, which leaves it out");
            return self.fault(FaultKind::DivergedWarp, at, message);
        }
        let mut here = 1 << lane;
        let mut same_place = true;
        for other in lanes(mask).filter(|other| *other != lane) {
            let Some(thread) = self.threads.get(warp * 32 + other) else {
                let message =
                    format!("the mask {mask:#010x} of {name} has lane {other}, which this block lacks");
                return self.fault(FaultKind::DivergedWarp, at, message);
            };
            match thread.state {
                State::Warp(arrival) if arrival.op == op && arrival.mask == mask => {
                    here |= 1 << other;
                    same_place &= arrival.at == at;
                }
                State::Warp(arrival) if arrival.mask >> lane & 1 != 0 => {
                    let message = format!(
                        "lane {lane} comes to {name} with the mask {mask:#010x}, while lane {other} waits for it at \
                         {} with the mask {:#010x}",
                        operation(arrival.op),
                        arrival.mask
                    );
                    return self.fault_of(FaultKind::DivergedWarp, self.current, at, message, true);
                }
                State::Exited => {
                    let message = format!(
                        "lane {other} has exited, and {name} with the mask {mask:#010x} waits for it"
                    );
                    return self.fault_of(FaultKind::DivergedWarp, self.current, at, message, true);
                }
                _ => {}
            }
        }
        self.threads[self.current].state = State::Warp(arrival);
        if here == 1 << lane {
            self.gathering[warp] = Gathering { op, mask, at, here };
        } else {
            self.gathering[warp].here = 0;
        }
        if here != mask {
            return Next::Yield(Signal::Blocked);
        }
        if op >= op::LOAD && !same_place {
            // Lines are looked up by the scheduler, which has the stack for it.
            self.late = Some((warp, mask));
            return Next::Yield(Signal::Blocked);
        }
        self.complete(warp, mask, Some(self.current))
    }

    /// Does the operation for all lanes of `mask` and lets them run on; `running` runs already.
    pub(crate) fn complete(&mut self, warp: usize, mask: u32, running: Option<usize>) -> Next {
        self.gathering[warp].here = 0;
        let mut words = [[0; 5]; 32];
        let mut op = op::SYNC;
        let first = warp * 32;
        for lane in lanes(mask) {
            if let State::Warp(arrival) = self.threads[first + lane].state {
                words[lane] = arrival.words;
                op = arrival.op;
            }
        }
        let results = match op {
            op::SYNC => {
                self.order.sync_warp(warp, mask);
                [[0; 2]; 32]
            }
            op::LOAD | op::LOAD_TRANSPOSED => {
                self.statistics.matrix_loads += 1;
                matrix::load(&words.map(|w| [w[0], w[1]]), op == op::LOAD_TRANSPOSED)
            }
            op::MULTIPLY_BF16 | op::MULTIPLY_F16 => {
                self.statistics.products += 1;
                self.statistics.product_flops += 2 * 16 * 8 * 16;
                let format = if op == op::MULTIPLY_BF16 { matrix::BF16 } else { matrix::F16 };
                matrix::multiply_add(&words, format)
            }
            op::SHUFFLE..=op::SHUFFLE_XOR => {
                self.statistics.shuffles += 1;
                match shuffle(op, mask, &words) {
                    Ok(results) => results.map(|word| [word, 0]),
                    Err((lane, message)) => {
                        let thread = first + lane;
                        let at = self.place(thread);
                        return self.fault_of(FaultKind::DivergedWarp, thread, at, message, false);
                    }
                }
            }
            _ => {
                self.statistics.shuffles += 1;
                reduce(op, mask, &words).map(|word| [word, 0])
            }
        };
        for lane in lanes(mask) {
            let thread = &mut self.threads[first + lane];
            thread.state = State::Ready;
            thread.result = results[lane];
            if running != Some(first + lane) {
                self.ready.push((first + lane) as u32);
            }
        }
        Next::Continue
    }

    /// Where a waiting thread waits.
    pub(crate) fn place(&self, thread: usize) -> usize {
        match self.threads[thread].state {
            State::Barrier { at } => at,
            State::Warp(arrival) => arrival.at,
            State::Ready | State::Exited => 0,
        }
    }

    /// The running lane comes to a matrix load with the address of its row.
    pub(crate) fn load_matrices(&mut self, op: u32, row: usize, at: usize) -> Next {
        let Some(offset) = self.shared.offset(row, 16) else {
            let message = format!("{} of a row at {row:#x}, which is not in shared memory", operation(op));
            return self.fault(FaultKind::SharedBounds, at, message);
        };
        let next = self.access::<16>(Mode::Read, row, at);
        if matches!(next, Next::Yield(Signal::Fault)) {
            return next;
        }
        let mut words = [0; 5];
        for (word, bytes) in words.iter_mut().zip(self.shared.data[offset..offset + 16].chunks_exact(8)) {
            let mut buffer = [0; 8];
            buffer.copy_from_slice(bytes);
            *word = u64::from_le_bytes(buffer);
        }
        self.warp(op, u32::MAX, words, at)
    }
}

pub(crate) fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    (0..32).filter(move |lane| mask >> lane & 1 != 0)
}

/// Words of a lane: value, selector, width.
fn shuffle(op: u32, mask: u32, words: &[[u64; 5]; 32]) -> Result<[u64; 32], (usize, String)> {
    let mut results = [0; 32];
    for lane in lanes(mask) {
        let [_, selector, width, ..] = words[lane];
        let width = width as usize;
        if !width.is_power_of_two() || width > 32 {
            return Err((lane, format!("a shuffle of the width {width}, which is no power of two up to 32")));
        }
        let segment = lane & !(width - 1);
        let end = segment + width;
        let selected = selector as usize;
        let source = match op {
            op::SHUFFLE => segment | selected & (width - 1),
            op::SHUFFLE_UP => lane.checked_sub(selected).filter(|s| *s >= segment).unwrap_or(lane),
            op::SHUFFLE_DOWN => lane.checked_add(selected).filter(|s| *s < end).unwrap_or(lane),
            _ => Some(lane ^ selected).filter(|s| *s < end).unwrap_or(lane),
        };
        if mask >> source & 1 == 0 {
            return Err((
                lane,
                format!(
                    "lane {lane} takes the value of lane {source}, which is not in the mask {mask:#010x}"
                ),
            ));
        }
        results[lane] = words[source][0];
    }
    Ok(results)
}

fn reduce(op: u32, mask: u32, words: &[[u64; 5]; 32]) -> [u64; 32] {
    let values = || lanes(mask).map(|lane| words[lane][0] as u32);
    if op == op::MATCH {
        let mut results = [0; 32];
        for lane in lanes(mask) {
            let equal = lanes(mask).filter(|other| words[*other][0] == words[lane][0]);
            results[lane] = equal.map(|other| 1 << other).sum();
        }
        return results;
    }
    let ballot = lanes(mask).filter(|lane| words[*lane][0] != 0).map(|lane| 1u32 << lane).sum::<u32>();
    let signed = || values().map(|v| v as i32);
    let result = match op {
        op::BALLOT => ballot,
        op::ANY => u32::from(ballot != 0),
        op::ALL => u32::from(ballot == mask),
        op::MIN_UNSIGNED => values().fold(u32::MAX, u32::min),
        op::MAX_UNSIGNED => values().fold(0, u32::max),
        op::MIN_SIGNED => signed().fold(i32::MAX, i32::min) as u32,
        op::MAX_SIGNED => signed().fold(i32::MIN, i32::max) as u32,
        op::ADD => values().fold(0, u32::wrapping_add),
        op::AND => values().fold(u32::MAX, |a, b| a & b),
        op::OR => values().fold(0, |a, b| a | b),
        op::XOR => values().fold(0, |a, b| a ^ b),
        _ => 0,
    };
    [u64::from(result); 32]
}
