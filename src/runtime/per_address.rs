//! How many connections each address has.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::config::{ClientLimits, Proxies};
use crate::limits::CONNECTIONS_PER_ADDRESS_PART;
use crate::model::requester::network;

/// Shared by all executors; looked at once for each connection.
#[derive(Clone, Debug)]
pub(super) struct PerAddress(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    counts: Mutex<HashMap<IpAddr, usize>>,
    count_max: usize,
    /// Proxies bring the connections of many clients.
    proxies: Proxies,
    /// Whether the machine itself is bound, too; not by default, because local proxies and tunnels carry many clients.
    binds_loopback: bool,
}

/// One connection's place among those of its address, given back when it is dropped.
#[derive(Debug)]
pub(super) struct AddressPermit(Option<(PerAddress, IpAddr)>);

/// The address has as many connections as it may.
#[derive(Debug)]
pub(super) struct TooMany;

impl PerAddress {
    /// As in the settings, for a process with so many connections.
    pub(super) fn new(limits: &ClientLimits, connections_max: usize) -> Self {
        let (part, whole) = CONNECTIONS_PER_ADDRESS_PART;
        let set =
            limits.connections_per_address.map(|count| usize::try_from(count.get()).unwrap_or(usize::MAX));
        Self(Arc::new(Shared {
            counts: Mutex::default(),
            count_max: set.unwrap_or_else(|| (connections_max * part / whole).max(1)),
            proxies: limits.proxies.clone(),
            binds_loopback: set.is_some(),
        }))
    }

    /// Takes a place for a connection.
    ///
    /// # Errors
    /// When its address has as many as it may.
    pub(super) fn take(&self, address: IpAddr) -> Result<AddressPermit, TooMany> {
        let is_free = self.0.proxies.contain(address) || address.is_loopback() && !self.0.binds_loopback;
        if is_free {
            return Ok(AddressPermit(None));
        }
        let network = network(address);
        let mut counts = self.0.lock();
        let count = counts.entry(network).or_default();
        if *count >= self.0.count_max {
            return Err(TooMany);
        }
        *count += 1;
        Ok(AddressPermit(Some((self.clone(), network))))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for AddressPermit {
    fn drop(&mut self) {
        let Some((of, network)) = &self.0 else { return };
        let mut counts = of.0.lock();
        if let Some(count) = counts.get_mut(network) {
            *count -= 1;
            if *count == 0 {
                counts.remove(network);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    /// How many of ten connections of this address get a place.
    fn taken(per_address: &PerAddress, text: &str) -> usize {
        let places: Vec<_> = (0..10).map(|_| per_address.take(address(text))).collect();
        places.iter().filter(|place| place.is_ok()).count()
    }

    #[test]
    fn places_are_given_back_and_nothing_is_kept() {
        let limits = ClientLimits { connections_per_address: NonZeroU32::new(2), ..ClientLimits::default() };
        let per_address = PerAddress::new(&limits, 100);
        let [one, other] = ["192.0.2.1", "192.0.2.2"].map(address);
        let places = [per_address.take(one), per_address.take(one), per_address.take(other)];
        assert!(places.iter().all(Result::is_ok));
        assert!(per_address.take(one).is_err());
        drop(places);
        assert!(per_address.take(one).is_ok());
        assert!(per_address.0.lock().is_empty());
        assert_eq!(taken(&per_address, "127.0.0.1"), 2, "a setting is for the machine itself as well");
    }

    #[test]
    fn by_default_an_address_has_a_part_and_the_machine_itself_all() {
        let per_address = PerAddress::new(&ClientLimits::default(), 8);
        for (text, count) in [("192.0.2.1", 6), ("2001:db8::1", 6), ("127.0.0.1", 10), ("::1", 10)] {
            assert_eq!(taken(&per_address, text), count, "{text}");
        }
        // One client of IPv6 has a whole /64.
        let places: Vec<_> =
            (0..10).map(|number| per_address.take(address(&format!("2001:db8::{number}")))).collect();
        assert_eq!(places.iter().filter(|place| place.is_ok()).count(), 6);
        assert_eq!(taken(&per_address, "2001:db8:0:1::1"), 6);
        assert_eq!(taken(&PerAddress::new(&ClientLimits::default(), 1), "192.0.2.1"), 1);
    }
}
