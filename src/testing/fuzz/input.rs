//! Bytes as decisions: what a fuzzer gives, read from the front. Beyond the end everything is 0.

/// The rest of an input.
#[derive(Clone, Debug)]
pub(super) struct Input<'a> {
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    pub(super) fn new(data: &'a [u8]) -> Self {
        Self { rest: data }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Everything that was not read.
    pub(super) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// At most this many bytes.
    pub(super) fn take(&mut self, n: usize) -> &'a [u8] {
        let (head, tail) = self.rest.split_at(n.min(self.rest.len()));
        self.rest = tail;
        head
    }

    pub(super) fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    /// A number below `n`, which is at most 256.
    pub(super) fn below(&mut self, n: usize) -> usize {
        usize::from(self.byte()) % n.max(1)
    }

    pub(super) fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    pub(super) fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    pub(super) fn u64(&mut self) -> u64 {
        let mut out = [0; 8];
        for (place, byte) in out.iter_mut().zip(self.take(8)) {
            *place = *byte;
        }
        u64::from_le_bytes(out)
    }

    /// Bytes behind their own length, at most 255.
    pub(super) fn blob(&mut self) -> &'a [u8] {
        let n = self.byte();
        self.take(usize::from(n))
    }

    /// A number around `near`, sometimes far away.
    pub(super) fn number(&mut self, near: u64) -> u64 {
        let kind = self.byte();
        let step = u64::from(kind >> 4);
        match kind & 15 {
            0..=4 => near,
            5..=7 => near.saturating_add(1 + step),
            8..=10 => near.saturating_sub(1 + step),
            11 => step,
            12 => (1 << 62) - 8 + step,
            13 => u64::MAX - step,
            14 => near.saturating_add(1 << 32).saturating_add(step).saturating_sub(8),
            _ => self.u64(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_the_end_everything_is_zero() {
        let mut input = Input::new(&[3, 1, 2, 3, 9]);
        assert_eq!(input.blob(), [1, 2, 3]);
        assert_eq!((input.byte(), input.byte(), input.u64()), (9, 0, 0));
        assert!(input.is_empty() && input.rest().is_empty());
        assert_eq!(input.number(7), 7);
    }

    #[test]
    fn numbers_never_overflow() {
        for kind in 0..=255 {
            let bytes = [kind, 255, 255, 255, 255, 255, 255, 255, 255];
            for near in [0, 5, u64::MAX] {
                Input::new(&bytes).number(near);
            }
        }
    }
}
