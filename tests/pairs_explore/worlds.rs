//! The bounds within which is explored: small worlds, each about one subject, for every run of the tests; large ones for `make explore`.

use crate::bugs::Bug;
use crate::state::Spent;
use crate::steps::World;

/// A named set of bounds.
#[derive(Clone, Copy, Debug)]
pub struct Named {
    pub name: &'static str,
    pub bounds: Spent,
}

impl Named {
    pub fn world(&self, bug: Option<Bug>, partial: bool) -> World {
        World { bounds: self.bounds, partial, bug }
    }
}

const fn named(name: &'static str, bounds: Spent) -> Named {
    Named { name, bounds }
}

const B: Spent = Spent {
    writes: 0,
    cuts: 0,
    reads: 0,
    unsynced: 0,
    migrations: 0,
    takes: 0,
    heads: 0,
    holds: 0,
    frees: 0,
    crashes: 0,
    powers: 0,
    timeouts: 0,
    losses: 0,
    repeats: 0,
    evictions: 0,
    strays: 0,
    giveups: 0,
};

/// For every run. The first in which a planted bug is found is the one where it is looked for.
pub const SMALL: &[Named] = &[
    named("migrate, write", Spent { migrations: 1, writes: 1, frees: 1, ..B }),
    named("take, write", Spent { takes: 1, writes: 1, frees: 1, ..B }),
    named("migrate, crash", Spent { migrations: 1, crashes: 1, frees: 1, ..B }),
    named("take, crash", Spent { takes: 1, crashes: 1, frees: 1, ..B }),
    named("take, power", Spent { takes: 1, powers: 1, ..B }),
    named("migrate, evicted", Spent { migrations: 1, evictions: 1, losses: 1, ..B }),
    named("write unsynced, migrate, power", Spent { migrations: 1, writes: 1, unsynced: 1, powers: 1, ..B }),
    named("migrate, late", Spent { migrations: 1, timeouts: 1, writes: 1, ..B }),
    named("take, late", Spent { takes: 1, timeouts: 1, writes: 1, ..B }),
    named("migrate, stray", Spent { migrations: 1, strays: 1, timeouts: 1, ..B }),
    named("migrate and take", Spent { migrations: 1, takes: 1, ..B }),
    named("read, write", Spent { reads: 2, writes: 1, ..B }),
    named("migrate, evicted, late", Spent { migrations: 1, evictions: 1, timeouts: 1, repeats: 1, ..B }),
    named("look, write", Spent { heads: 2, writes: 1, reads: 2, ..B }),
    named("read, write, power", Spent { reads: 2, heads: 1, writes: 1, powers: 1, ..B }),
    named("read, look, crash", Spent { reads: 2, heads: 1, writes: 1, crashes: 1, ..B }),
    named("hold, take", Spent { holds: 1, takes: 1, frees: 1, ..B }),
    named("taken twice, again", Spent { takes: 2, repeats: 1, ..B }),
    named("refused, staged again", Spent { migrations: 1, evictions: 1, repeats: 2, ..B }),
    named("refused, staged again, crash", Spent { migrations: 1, evictions: 1, repeats: 2, crashes: 1, ..B }),
    named("refused twice, again", Spent { migrations: 2, evictions: 1, repeats: 1, ..B }),
    named("both at once, refused, again", Spent { migrations: 1, takes: 1, evictions: 1, repeats: 1, ..B }),
    named("staged older, again", Spent { migrations: 2, writes: 1, evictions: 1, repeats: 1, ..B }),
    named("read, write, again", Spent { reads: 1, writes: 1, repeats: 1, heads: 1, ..B }),
    named("cuts", Spent { cuts: 2, takes: 2, migrations: 1, ..B }),
    named("cut, crash", Spent { cuts: 1, takes: 1, crashes: 1, ..B }),
    named("cut, power", Spent { cuts: 1, takes: 1, powers: 1, ..B }),
    named("cut, gives up", Spent { cuts: 1, takes: 1, giveups: 1, timeouts: 1, ..B }),
    named("cut, late", Spent { cuts: 1, takes: 2, timeouts: 1, repeats: 1, ..B }),
    named("cut, migrate, write", Spent { cuts: 1, takes: 1, migrations: 1, writes: 1, ..B }),
    named("cut, read", Spent { cuts: 1, takes: 2, reads: 1, holds: 1, ..B }),
    named("cut on both sides", Spent { cuts: 2, takes: 2, giveups: 1, ..B }),
];

/// For `make explore`.
pub const LARGE: &[Named] = &[
    named("there and back", Spent { migrations: 2, takes: 2, writes: 1, frees: 1, timeouts: 1, crashes: 1, ..B }),
    named(
        "late, twice, lost",
        Spent { migrations: 2, takes: 1, timeouts: 2, repeats: 2, losses: 1, evictions: 1, ..B },
    ),
    named(
        "writers on both sides",
        Spent { migrations: 1, takes: 2, writes: 3, unsynced: 1, timeouts: 1, giveups: 1, ..B },
    ),
    named("crashes of both", Spent { migrations: 1, takes: 1, writes: 1, unsynced: 1, crashes: 2, powers: 1, ..B }),
    named("power", Spent { migrations: 1, takes: 2, writes: 2, unsynced: 2, powers: 2, ..B }),
    named("cuts", Spent { migrations: 1, takes: 2, cuts: 2, writes: 1, crashes: 1, timeouts: 1, ..B }),
    named("thrown away", Spent { cuts: 2, takes: 3, writes: 1, giveups: 1, timeouts: 1, repeats: 1, crashes: 1, ..B }),
    named("thrown away, power", Spent { cuts: 2, takes: 2, migrations: 1, writes: 1, losses: 1, powers: 1, ..B }),
    named("readers", Spent { reads: 2, writes: 2, heads: 1, takes: 1, repeats: 1, powers: 1, ..B }),
    named("who reads by himself", Spent { holds: 2, migrations: 1, takes: 2, writes: 1, frees: 1, repeats: 1, ..B }),
    named("refusals", Spent { migrations: 2, takes: 2, writes: 1, evictions: 2, repeats: 1, crashes: 1, ..B }),
    named("strays", Spent { migrations: 1, takes: 2, strays: 2, timeouts: 1, writes: 1, ..B }),
];

/// For long ways by dice.
pub const WIDE: Named = named(
    "all of it",
    Spent {
        writes: 4,
        cuts: 2,
        reads: 3,
        unsynced: 2,
        migrations: 4,
        takes: 6,
        heads: 2,
        holds: 2,
        frees: 4,
        crashes: 3,
        powers: 2,
        timeouts: 3,
        losses: 3,
        repeats: 4,
        evictions: 2,
        strays: 2,
        giveups: 2,
    },
);
