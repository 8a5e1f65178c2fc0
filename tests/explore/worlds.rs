//! The bounds within which is explored: small worlds, each about one subject, for every run of the tests; large ones for `make explore`.

use crate::bugs::Bug;
use crate::steps::{Bounds, Start, World};

/// A named set of bounds.
#[derive(Clone, Copy, Debug)]
pub struct Named {
    pub name: &'static str,
    pub start: Start,
    pub bounds: Bounds,
}

impl Named {
    pub fn world(&self, bug: Option<Bug>, small: bool) -> World {
        World { bounds: self.bounds, bug, start: self.start, small }
    }
}

const fn named(name: &'static str, start: Start, bounds: Bounds) -> Named {
    Named { name, start, bounds }
}

const B: Bounds = Bounds::NONE;
/// One handle at a time.
const ONE: Bounds = Bounds { handles: 1, ..B };
use Start::{Any, Dual, Resident, Stub};

/// For every run. The first in which a planted bug is found is the one where it is looked for.
pub const SMALL: &[Named] = &[
    named("release", Dual, Bounds { transfers: 1, crashes: 1, ..B }),
    named("unlink, dual", Dual, Bounds { names: 1, crashes: 1, ..B }),
    named("recall, fault", Stub, Bounds { transfers: 1, faults: 1, ..B }),
    named("archive", Resident, Bounds { transfers: 1, crashes: 1, ..B }),
    named("archive, fault", Resident, Bounds { transfers: 1, crashes: 1, faults: 1, ..B }),
    named("unlink, archive", Resident, Bounds { names: 1, transfers: 1, ..B }),
    named("release twice", Dual, Bounds { transfers: 2, ..B }),
    named("stub, open", Stub, Bounds { opens: 1, crashes: 1, ..B }),
    named("archive, bypass", Resident, Bounds { transfers: 1, bypasses: 2, ..B }),
    named("stub, cut", Stub, Bounds { changes: 1, crashes: 1, ..B }),
    named("release, faults", Dual, Bounds { transfers: 2, faults: 2, ..B }),
    named("stub, read, fault", Stub, Bounds { opens: 1, reads: 1, faults: 1, ..B }),
    named("archive, cut", Resident, Bounds { transfers: 1, changes: 1, ..B }),
    named("archive twice", Resident, Bounds { transfers: 2, crashes: 1, ..B }),
    named("release, times", Dual, Bounds { transfers: 1, times: 1, ..B }),
    named("two names, open", Dual, Bounds { names: 2, opens: 1, ..ONE }),
    named("archive twice, fault", Resident, Bounds { transfers: 2, faults: 1, ..B }),
    named("unlink, open", Stub, Bounds { names: 1, opens: 1, ..B }),
    named("dual, write, fault", Dual, Bounds { opens: 1, changes: 1, faults: 1, ..B }),
    named("dual, write", Dual, Bounds { opens: 1, changes: 1, crashes: 1, ..B }),
    named("two names", Dual, Bounds { names: 3, opens: 1, ..B }),
    named("stub, cut and open", Stub, Bounds { opens: 1, changes: 1, ..B }),
    named("dual, bypass, times, fault", Dual, Bounds { opens: 1, times: 1, bypasses: 1, faults: 1, ..ONE }),
    named("release, bypass, times", Dual, Bounds { transfers: 1, times: 1, bypasses: 1, ..B }),
    named("release, mapped", Dual, Bounds { transfers: 1, opens: 1, maps: 1, ..ONE }),
    named("release, open", Dual, Bounds { transfers: 1, opens: 1, crashes: 1, ..ONE }),
    named("dual, opens, fault", Dual, Bounds { opens: 2, changes: 1, faults: 1, ..ONE }),
    named("dual, opens, crash", Dual, Bounds { opens: 2, changes: 1, crashes: 1, ..ONE }),
    named("stub, cut, fault", Stub, Bounds { changes: 1, opens: 1, faults: 1, ..B }),
    named("archive, mapping", Resident, Bounds { transfers: 1, opens: 1, changes: 1, maps: 1, ..ONE }),
    named("unlink, archive, open, crash", Resident, Bounds { names: 1, opens: 1, transfers: 1, crashes: 1, ..ONE }),
    named("stub, read, cut", Stub, Bounds { opens: 1, reads: 1, changes: 1, ..ONE }),
];

/// For `make explore`.
pub const LARGE: &[Named] = &[
    named("one of all but names", Any, Bounds { transfers: 1, opens: 1, changes: 1, crashes: 1, ..B }),
    named("two transfers, two faults", Any, Bounds { transfers: 2, faults: 2, crashes: 1, ..B }),
    named("two opens, two reads, a fault", Any, Bounds { transfers: 1, opens: 2, reads: 2, faults: 1, ..B }),
    named("names, transfers, an open", Any, Bounds { names: 3, transfers: 2, opens: 1, crashes: 1, ..B }),
    named("two opens, two changes, a fault", Any, Bounds { opens: 2, changes: 2, crashes: 1, faults: 1, ..B }),
    named("mappings", Any, Bounds { transfers: 1, opens: 1, changes: 2, maps: 1, syncs: 1, crashes: 1, ..B }),
    named("beside the mount", Any, Bounds { bypasses: 2, times: 1, transfers: 1, opens: 1, pins: 1, ..B }),
    named("three transfers, two crashes", Any, Bounds { transfers: 3, crashes: 2, ..B }),
    named("pins and faults", Any, Bounds { transfers: 2, opens: 1, faults: 1, pins: 1, ..B }),
    named("changes, faults, crashes", Any, Bounds { opens: 1, changes: 1, faults: 2, crashes: 2, ..ONE }),
    named("names and faults", Any, Bounds { names: 2, transfers: 1, faults: 2, crashes: 1, ..B }),
];
