//! What weighs most in a stream, in bounded memory.
//!
//! Space-Saving (Metwally, Agrawal, El Abbadi, "Efficient computation of frequent and top-k
//! elements in data streams", 2005), with weights: a table of `m` rows; a stranger that finds it full takes
//! the row of the least rank, and goes on from there. Whatever has more than 1/m of all weight
//! is then certainly in the table. The rank so inherited is kept apart from what is
//! told: a row's value begins anew with each owner, and is therefore never too high.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

/// The heaviest keys of a stream, each with a value.
#[derive(Debug)]
pub(crate) struct Summary<K, V> {
    places: BTreeMap<K, usize>,
    rows: Vec<Row<K, V>>,
    rows_max: usize,
    /// The place of each row, by the rank that it had when it was last looked at here: ranks only rise, so where
    /// the first still has its rank, no row has a lower one.
    least: BinaryHeap<Reverse<(u64, usize)>>,
}

#[derive(Debug)]
struct Row<K, V> {
    key: K,
    rank: u64,
    value: V,
}

impl<K: Ord + Clone, V: Default> Summary<K, V> {
    /// Of at most so many keys; at least one.
    pub(crate) fn new(rows_max: usize) -> Summary<K, V> {
        Summary {
            places: BTreeMap::new(),
            rows: Vec::new(),
            rows_max: rows_max.max(1),
            least: BinaryHeap::new(),
        }
    }

    /// The value of a key that has just come, with so much weight.
    pub(crate) fn of(&mut self, key: K, weight: u64) -> &mut V {
        let place = if let Some(place) = self.places.get(&key) { *place } else { self.take_in(key) };
        let row = &mut self.rows[place];
        row.rank = row.rank.saturating_add(weight);
        &mut row.value
    }

    /// The value of a key that is still in the table.
    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let place = *self.places.get(key)?;
        self.rows.get_mut(place).map(|row| &mut row.value)
    }

    /// All keys and their values, in no order.
    pub(crate) fn rows(&self) -> impl Iterator<Item = (&K, &V)> {
        self.rows.iter().map(|row| (&row.key, &row.value))
    }

    /// The keys from `first` up to, and without, `end`.
    pub(crate) fn between(&self, first: &K, end: &K) -> impl Iterator<Item = &K> {
        self.places.range(first..end).map(|(key, _)| key)
    }

    fn take_in(&mut self, key: K) -> usize {
        let place = if self.rows.len() < self.rows_max {
            self.rows.push(Row { key: key.clone(), rank: 0, value: V::default() });
            self.least.push(Reverse((0, self.rows.len() - 1)));
            self.rows.len() - 1
        } else {
            let place = self.least_ranked();
            let row = &mut self.rows[place];
            self.places.remove(&row.key);
            row.key = key.clone();
            row.value = V::default();
            place
        };
        self.places.insert(key, place);
        place
    }

    /// The row of the lowest rank, the first of those if there are several.
    fn least_ranked(&mut self) -> usize {
        while let Some(mut first) = self.least.peek_mut() {
            let Reverse((rank, place)) = *first;
            let risen = self.rows[place].rank;
            if rank == risen {
                return place;
            }
            *first = Reverse((risen, place));
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_makes_up_more_than_its_share_is_in_the_table(
            stream in proptest::collection::vec((0u16..400, 0u64..9), 1..2_000), rows_max in 1usize..40,
        ) {
            let mut summary = Summary::<u16, u64>::new(rows_max);
            let mut truth = BTreeMap::<u16, u64>::new();
            for (key, weight) in &stream {
                let least = summary.rows.iter().map(|row| row.rank).min().unwrap_or(0);
                let has_room = summary.rows.len() < rows_max || summary.places.contains_key(key);
                *summary.of(*key, *weight) += weight;
                let rank = summary.rows[summary.places[key]].rank;
                prop_assert!(has_room || rank == least + weight, "who weighs least makes room");
                *truth.entry(*key).or_default() += weight;
            }
            let all: u64 = truth.values().sum();
            prop_assert!(summary.rows.len() <= rows_max && summary.places.len() == summary.rows.len());
            let told: BTreeMap<u16, u64> = summary.rows().map(|(key, value)| (*key, *value)).collect();
            for (key, weight) in &truth {
                prop_assert!(*weight * rows_max as u64 <= all || told.contains_key(key));
                prop_assert!(told.get(key).is_none_or(|told| told <= weight));
            }
        }
    }
}
