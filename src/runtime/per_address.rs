//! Connection limit per client address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::config::{ClientLimits, Proxies};
use crate::limits::CONNECTIONS_PER_ADDRESS_PART;
use crate::model::requester::network;

/// Connection counts by address, shared by all executors; checked once per connection.
#[derive(Clone, Debug)]
pub(super) struct PerAddress(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    counts: Mutex<HashMap<IpAddr, usize>>,
    count_max: usize,
    /// Trusted proxies, which are exempt: they carry the connections of many clients.
    proxies: Proxies,
    /// Whether the limit also applies to loopback addresses; not by default, because local proxies and tunnels carry
    /// many clients.
    limits_loopback: bool,
}

/// Permit of one connection, counted for its address; released when it is dropped.
#[derive(Debug)]
pub(super) struct AddressPermit(Option<(PerAddress, IpAddr)>);

/// The address has reached its connection limit.
#[derive(Debug)]
pub(super) struct TooMany;

impl PerAddress {
    /// Creates the counts with the limit from the settings, or by default a fraction of `connections_max`.
    pub(super) fn new(limits: &ClientLimits, connections_max: usize) -> Self {
        let (part, whole) = CONNECTIONS_PER_ADDRESS_PART;
        let configured =
            limits.connections_per_address.map(|count| usize::try_from(count.get()).unwrap_or(usize::MAX));
        Self(Arc::new(Shared {
            counts: Mutex::default(),
            count_max: configured.unwrap_or_else(|| (connections_max * part / whole).max(1)),
            proxies: limits.proxies.clone(),
            limits_loopback: configured.is_some(),
        }))
    }

    /// Takes a permit for a connection.
    ///
    /// # Errors
    /// Fails if the address has reached its limit.
    pub(super) fn take(&self, address: IpAddr) -> Result<AddressPermit, TooMany> {
        let is_exempt = self.0.proxies.contain(address) || address.is_loopback() && !self.0.limits_loopback;
        if is_exempt {
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
        let Some((per_address, network)) = &self.0 else { return };
        let mut counts = per_address.0.lock();
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

    /// Returns how many of ten connections of this address get a permit.
    fn permitted_count(per_address: &PerAddress, text: &str) -> usize {
        let permits: Vec<_> = (0..10).map(|_| per_address.take(address(text))).collect();
        permits.iter().filter(|permit| permit.is_ok()).count()
    }

    #[test]
    fn permits_are_released_and_counts_removed() {
        let limits = ClientLimits { connections_per_address: NonZeroU32::new(2), ..ClientLimits::default() };
        let per_address = PerAddress::new(&limits, 100);
        let [one, other] = ["192.0.2.1", "192.0.2.2"].map(address);
        let permits = [per_address.take(one), per_address.take(one), per_address.take(other)];
        assert!(permits.iter().all(Result::is_ok));
        assert!(per_address.take(one).is_err());
        drop(permits);
        assert!(per_address.take(one).is_ok());
        assert!(per_address.0.lock().is_empty());
        assert_eq!(
            permitted_count(&per_address, "127.0.0.1"),
            2,
            "an explicit limit applies to loopback, too"
        );
    }

    #[test]
    fn the_default_is_a_fraction_per_address_without_loopback() {
        let per_address = PerAddress::new(&ClientLimits::default(), 8);
        for (text, count) in [("192.0.2.1", 6), ("2001:db8::1", 6), ("127.0.0.1", 10), ("::1", 10)] {
            assert_eq!(permitted_count(&per_address, text), count, "{text}");
        }
        // A /64 counts as one IPv6 client.
        let permits: Vec<_> =
            (0..10).map(|number| per_address.take(address(&format!("2001:db8::{number}")))).collect();
        assert_eq!(permits.iter().filter(|permit| permit.is_ok()).count(), 6);
        assert_eq!(permitted_count(&per_address, "2001:db8:0:1::1"), 6);
        assert_eq!(permitted_count(&PerAddress::new(&ClientLimits::default(), 1), "192.0.2.1"), 1);
    }
}
