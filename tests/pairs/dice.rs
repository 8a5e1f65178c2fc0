//! Dice that fall the same way for the same seed. What threads make of each other's timing does not repeat.

pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64, round: u64, who: u64) -> Self {
        let mut dice = Self((seed ^ round.rotate_left(20) ^ who.rotate_left(40)).wrapping_mul(2).wrapping_add(1));
        (0..8).for_each(|_| _ = dice.below(2));
        dice
    }

    /// A number below `sides`.
    pub fn below(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % sides
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len.div_ceil(4)).flat_map(|_| (self.below(1 << 31) as u32 | 1).to_le_bytes()).take(len).collect()
    }
}
