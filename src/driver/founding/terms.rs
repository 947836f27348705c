//! Who founds: the part of a node's configuration in which all founding members must agree.
//!
//! Without `Config::bootstrap_expect` the addresses are the founding members, all of them. With
//! it, they are seeds, some of which may be down, and any so many nodes found, provided that they
//! have enough of the seeds among them: two groups that could found always share a majority of
//! either, so that a second cluster takes the loss of a majority of the first one's disks.

use std::collections::BTreeSet;

use crate::error::{Error, Result};

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Terms {
    /// How many found; None: as many as there are addresses.
    pub(crate) expect: Option<usize>,
    /// The founding members, this node included; or the seeds.
    pub(crate) addrs: BTreeSet<String>,
}

impl Terms {
    /// The terms of a node that was given these addresses.
    ///
    /// # Errors
    /// `Config` when no group of nodes could ever found by them.
    pub(crate) fn new(own: &str, given: &[String], expect: Option<usize>) -> Result<Self> {
        let mut addrs: BTreeSet<String> = given.iter().cloned().collect();
        let Some(expect) = expect else {
            addrs.insert(own.to_owned());
            return Ok(Self { expect: None, addrs });
        };
        addrs.retain(|addr| addr != own || given.contains(addr));
        let terms = Self { expect: Some(expect), addrs };
        let possible = |seeds: usize| needed(seeds, expect) <= seeds.min(expect);
        let seeds = terms.addrs.len();
        // NB: whoever leaves its own address out still means the same seeds as the others.
        let with_own = seeds + usize::from(!terms.addrs.contains(own));
        if !possible(seeds) && !possible(with_own) {
            let (least, most) = (expect / 2 + 1, (2 * expect).saturating_sub(expect / 2 + 1));
            return Err(Error::Config {
                field: "bootstrap_expect",
                reason: format!(
                    "with {expect} founding members, name {least} to {most} seed addresses, not \
                     {seeds}: otherwise two groups of nodes could each found a cluster"
                ),
            });
        }
        Ok(terms)
    }

    /// How many nodes found.
    pub(crate) fn count(&self) -> usize {
        self.expect.unwrap_or(self.addrs.len())
    }

    /// Whether the terms of two nodes, at these addresses, are the same.
    pub(crate) fn fit(&self, own: &str, other: &Self, at: &str) -> bool {
        // One that names seeds may leave its own address out.
        let own_left_out = |terms: &Self| -> BTreeSet<String> {
            let both = [own, at].map(str::to_owned);
            terms.addrs.iter().cloned().chain(both).collect()
        };
        match (self.expect, other.expect) {
            (None, None) => self.addrs == other.addrs,
            (Some(a), Some(b)) => a == b && own_left_out(self) == own_left_out(other),
            (None, Some(_)) | (Some(_), None) => false,
        }
    }

    /// Whether nodes at these addresses, the one at `own` among them, may found.
    pub(crate) fn allow(&self, own: &str, addrs: &BTreeSet<&str>) -> bool {
        let Some(expect) = self.expect else {
            return addrs.len() == self.addrs.len()
                && addrs.iter().all(|a| self.addrs.contains(*a));
        };
        let seeds = addrs.iter().filter(|a| self.addrs.contains(**a)).count();
        let own_counts = usize::from(!self.addrs.contains(own));
        let all = self.addrs.len();
        // NB: a seed that leaves its own address out judges as one that does not; for a node that
        // is no seed the second view is too generous, which the seeds in the group make up for.
        let enough =
            seeds >= needed(all, expect) || seeds + own_counts >= needed(all + own_counts, expect);
        addrs.len() == expect && enough
    }
}

/// How many of so many seeds must found, so that two groups share a majority of `expect`.
fn needed(seeds: usize, expect: usize) -> usize {
    (seeds + expect / 2 + 2) / 2
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn addrs(numbers: &[usize]) -> Vec<String> {
        numbers.iter().map(|n| format!("n{n}:1")).collect()
    }

    fn subsets(all: usize, size: usize) -> Vec<Vec<usize>> {
        let sets = (0u32..1 << all).filter(|bits| bits.count_ones() as usize == size);
        sets.map(|bits| (0..all).filter(|i| bits >> i & 1 == 1).collect()).collect()
    }

    /// Every pair of groups, for up to five founding members, six seeds and seven nodes.
    #[test]
    fn two_groups_that_may_found_share_a_majority() {
        let nodes = 7;
        let mut tried = 0;
        for expect in 1..=5 {
            for seeds in 1..=6 {
                let list = addrs(&(0..seeds).collect::<Vec<_>>());
                let may = |group: &Vec<usize>| {
                    let named = addrs(group);
                    let set = named.iter().map(String::as_str).collect();
                    named.iter().all(|own| {
                        // Every second one leaves its own address out.
                        let own_out = own.as_bytes()[1] % 2 == 0;
                        let given: Vec<String> =
                            list.iter().filter(|a| !own_out || *a != own).cloned().collect();
                        let terms = Terms::new(own, &given, Some(expect));
                        terms.is_ok_and(|terms| terms.allow(own, &set))
                    })
                };
                let groups: Vec<_> = subsets(nodes, expect).into_iter().filter(may).collect();
                for (a, b) in groups.iter().flat_map(|a| groups.iter().map(move |b| (a, b))) {
                    let shared = a.iter().filter(|n| b.contains(n)).count();
                    assert!(shared > expect / 2, "{a:?} and {b:?} of {seeds} seeds");
                    tried += 1;
                }
            }
        }
        assert!(tried > 200, "{tried} pairs");
    }

    #[test]
    fn seeds_that_allow_two_clusters_or_none_are_refused() {
        for (expect, seeds) in [(3, 1), (3, 5), (5, 2), (1, 2)] {
            let given = addrs(&(1..=seeds).collect::<Vec<_>>());
            let error = Terms::new("n1:1", &given, Some(expect)).unwrap_err().to_string();
            assert!(error.contains("bootstrap_expect"), "{error}");
            assert!(error.contains("seed addresses"), "{error}");
        }
        for (expect, seeds) in [(3, 2), (3, 3), (3, 4), (5, 5), (5, 7), (1, 1), (2, 2)] {
            let given = addrs(&(1..=seeds).collect::<Vec<_>>());
            Terms::new("n1:1", &given, Some(expect)).unwrap();
        }
    }

    #[test]
    fn a_list_is_the_same_with_and_without_the_own_address() {
        let one = Terms::new("n1:1", &addrs(&[2, 3]), None).unwrap();
        let two = Terms::new("n2:1", &addrs(&[3, 1, 2, 2]), None).unwrap();
        assert!(one.fit("n1:1", &two, "n2:1"));
        let other = Terms::new("n2:1", &addrs(&[1, 4]), None).unwrap();
        assert!(!one.fit("n1:1", &other, "n2:1"));
        let more = Terms::new("n4:1", &addrs(&[1, 2, 3]), None).unwrap();
        assert!(!one.fit("n1:1", &more, "n4:1"));
        let seeds = Terms::new("n1:1", &addrs(&[2, 3]), Some(3)).unwrap();
        assert!(!one.fit("n1:1", &seeds, "n1:1"));
        let spare = Terms::new("n4:1", &addrs(&[1, 2, 3]), Some(3)).unwrap();
        assert!(seeds.fit("n1:1", &spare, "n4:1"));
    }
}
