//! Who takes part, and to whom each message goes: a pure function of sender and sequence, so that the receiving side can
//! check it without a table.

use crate::core::ids::{DeviceId, IdError, UserId};

/// The shape of a load.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    /// Names this run: users of an earlier one have nothing to do with it.
    pub(super) run: u32,
    /// Regions that take part; user `u` is at home in region `u % regions`.
    pub(super) regions: usize,
    /// Users that are online and send.
    pub(super) users: usize,
    /// Connections of each of them, each a device of its own.
    pub(super) devices: usize,
    /// Users that are away; their numbers follow those of `users`.
    pub(super) away: usize,
    /// Share of the messages that goes to those, 0 to 1.
    pub(super) away_share: f64,
    /// Recipients are at home in another region than the sender.
    pub(super) cross: bool,
    /// Whether those who are away come online before the run ends.
    pub(super) return_home: bool,
}

/// Users by number.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    shape: Shape,
    ids: Vec<UserId>,
    /// Online users by region.
    homes: Vec<Vec<u32>>,
    /// Those who are away, by region.
    away_homes: Vec<Vec<u32>>,
}

impl Plan {
    pub(super) fn new(shape: Shape) -> Result<Self, IdError> {
        let all = shape.users + shape.away;
        let ids = (0..all)
            .map(|user| UserId::new(&format!("bench-{:08x}-{user}", shape.run)))
            .collect::<Result<_, _>>()?;
        let mut homes = vec![Vec::new(); shape.regions];
        let mut away_homes = vec![Vec::new(); shape.regions];
        for user in 0..all {
            let homes = if user < shape.users {
                &mut homes
            } else {
                &mut away_homes
            };
            homes[user % shape.regions].push(user as u32);
        }
        Ok(Self {
            shape,
            ids,
            homes,
            away_homes,
        })
    }

    pub(super) fn shape(&self) -> &Shape {
        &self.shape
    }

    pub(super) fn id(&self, user: usize) -> &UserId {
        &self.ids[user]
    }

    pub(super) fn region(&self, user: usize) -> usize {
        user % self.shape.regions
    }

    /// The user of a sending connection.
    pub(super) fn user(&self, connection: usize) -> usize {
        connection % self.shape.users
    }

    /// Which of its user's devices a connection is.
    pub(super) fn device(&self, connection: usize) -> usize {
        connection / self.shape.users
    }

    pub(super) fn device_id(device: usize) -> Result<DeviceId, IdError> {
        DeviceId::new(&format!("d{device}"))
    }

    /// The recipient of a sender's message.
    pub(super) fn recipient(&self, connection: usize, seq: u64) -> usize {
        let random = mix(connection as u64, seq);
        let homes = if self.is_away(seq) {
            &self.away_homes
        } else {
            &self.homes
        };
        let own = self.region(self.user(connection));
        let regions = homes.len() as u64;
        let high = random >> 32;
        // Every region has a user of either kind, or there is none of that kind: `Shape` is checked where it is made.
        let region = if self.shape.cross {
            (own as u64 + 1 + high % (regions - 1)) % regions
        } else {
            high % regions
        } as usize;
        let home = &homes[region];
        home[(random as u32 % home.len() as u32) as usize] as usize
    }

    /// How many devices are to receive what goes to this user.
    pub(super) fn copies(&self, user: usize) -> u32 {
        if user < self.shape.users {
            self.shape.devices as u32
        } else {
            u32::from(self.shape.return_home)
        }
    }

    /// Whether a sender's message goes to somebody who is away: evenly spread over the sequence.
    fn is_away(&self, seq: u64) -> bool {
        let whole = |seq: u64| (seq as f64 * self.shape.away_share) as u64;
        self.shape.away > 0 && whole(seq + 1) > whole(seq)
    }
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood 2014) over both numbers.
fn mix(connection: u64, seq: u64) -> u64 {
    let mut z = (connection << 40 ^ seq).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::cli::bench) fn shape() -> Shape {
        Shape {
            run: 7,
            regions: 3,
            users: 12,
            devices: 2,
            away: 3,
            away_share: 0.25,
            cross: true,
            return_home: true,
        }
    }

    #[test]
    fn recipients_are_elsewhere_and_the_share_is_away() {
        let plan = Plan::new(shape()).unwrap();
        let mut away = 0;
        let mut seen = std::collections::BTreeSet::new();
        for connection in 0..24 {
            for seq in 0..1000 {
                let to = plan.recipient(connection, seq);
                assert_ne!(plan.region(to), plan.region(plan.user(connection)));
                away += usize::from(to >= 12);
                seen.insert(to);
            }
        }
        assert_eq!((away, seen.len()), (6000, 15));
        assert_eq!((plan.copies(0), plan.copies(12)), (2, 1));
    }
}
