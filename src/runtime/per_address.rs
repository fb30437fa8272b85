//! How many connections each address has.

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Shared by all executors; looked at once for each connection.
#[derive(Clone, Debug)]
pub(super) struct PerAddress {
    counts: Arc<Mutex<HashMap<IpAddr, u32>>>,
    count_max: NonZeroU32,
}

/// One connection's place among those of its address, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    of: PerAddress,
    address: IpAddr,
}

impl PerAddress {
    pub(super) fn new(count_max: NonZeroU32) -> Self {
        Self { counts: Arc::default(), count_max }
    }

    /// `None` when the address has as many as it may.
    pub(super) fn take(&self, address: IpAddr) -> Option<Place> {
        let mut counts = self.lock();
        let count = counts.entry(address).or_default();
        if *count >= self.count_max.get() {
            return None;
        }
        *count += 1;
        Some(Place { of: self.clone(), address })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, u32>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.of.lock();
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_given_back_and_nothing_is_kept() {
        let per_address = PerAddress::new(NonZeroU32::new(2).expect("two"));
        let [one, other] = ["192.0.2.1", "192.0.2.2"].map(|text| text.parse().expect("an address"));
        let places = [per_address.take(one), per_address.take(one), per_address.take(other)];
        assert!(places.iter().all(Option::is_some));
        assert!(per_address.take(one).is_none());
        drop(places);
        assert!(per_address.take(one).is_some());
        assert!(per_address.lock().is_empty());
    }
}
