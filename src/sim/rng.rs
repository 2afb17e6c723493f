//! Chance, from one seed: every random number of a simulation comes from here.
//!
//! PCG-64 (O'Neill, 2014) with an explicit stream number, so that parts of a simulation which
//! must not disturb each other (the plant's service times, each client's arrivals) draw from
//! streams of their own: adding a client does not change the service times of the others.

use rand_core::RngCore;
use rand_pcg::Pcg64;

/// A stream of random numbers.
#[derive(Clone, Debug)]
pub struct Rng(Pcg64);

impl Rng {
    /// The stream `stream` of `seed`.
    #[must_use]
    pub fn new(seed: u64, stream: u64) -> Rng {
        // Streams with neighbouring numbers are correlated at first: mix both words.
        let state =
            (u128::from(mix(seed ^ mix(stream))) << 64) | u128::from(mix(stream ^ seed.rotate_left(32)));
        let mut pcg = Pcg64::new(state, u128::from(mix(stream)));
        for _ in 0..4 {
            pcg.next_u64();
        }
        Rng(pcg)
    }

    /// Uniform in [0, 1).
    pub fn uniform(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Uniform in [low, high).
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.uniform()
    }

    /// Uniform over `0..count`; 0 when `count` is 0.
    pub fn index(&mut self, count: usize) -> usize {
        let product = u128::from(self.0.next_u64()) * (count as u128);
        usize::try_from(product >> 64).unwrap_or(0)
    }

    /// Exponential with this mean.
    pub fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.uniform()).ln()
    }

    /// Standard normal (Marsaglia's polar method).
    pub fn normal(&mut self) -> f64 {
        loop {
            let x = self.between(-1.0, 1.0);
            let y = self.between(-1.0, 1.0);
            let square = x * x + y * y;
            if square > 0.0 && square < 1.0 {
                return x * (-2.0 * square.ln() / square).sqrt();
            }
        }
    }

    /// A factor with mean 1 and a log-normal shape; `sigma` is the deviation of its logarithm.
    pub fn jitter(&mut self, sigma: f64) -> f64 {
        if sigma <= 0.0 { 1.0 } else { (sigma * self.normal() - 0.5 * sigma * sigma).exp() }
    }

    /// True with this probability.
    pub fn happens(&mut self, probability: f64) -> bool {
        self.uniform() < probability
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }
}

/// SplitMix64's finaliser: neighbouring inputs give unrelated outputs.
#[must_use]
pub fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean(mut draw: impl FnMut() -> f64) -> f64 {
        (0..40_000).map(|_| draw()).sum::<f64>() / 40_000.0
    }

    #[test]
    fn the_means_are_what_is_asked_for() {
        let mut rng = Rng::new(1, 2);
        assert!((mean(|| rng.uniform()) - 0.5).abs() < 0.01);
        assert!((mean(|| rng.exponential(3.0)) - 3.0).abs() < 0.06);
        assert!((mean(|| rng.jitter(0.5)) - 1.0).abs() < 0.02);
        assert!(mean(|| rng.normal()).abs() < 0.02);
    }

    #[test]
    fn neighbouring_streams_are_unrelated() {
        let (mut a, mut b) = (Rng::new(7, 0), Rng::new(7, 1));
        let correlation = mean(|| (a.uniform() - 0.5) * (b.uniform() - 0.5)) * 12.0;
        assert!(correlation.abs() < 0.03, "correlation {correlation}");
    }

    #[test]
    fn the_same_seed_and_stream_repeat() {
        let (mut a, mut b) = (Rng::new(7, 3), Rng::new(7, 3));
        assert!((0..100).all(|_| a.bits() == b.bits()));
    }
}
