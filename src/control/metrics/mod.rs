//! What a mount measures, for Prometheus: names and meanings ([`FAMILIES`], docs/metrics.md), the figures, and who may read them over HTTP.

mod collect;
mod families;
mod serve;

pub use collect::Cached;
pub use families::{FAMILIES, Family, Kind};
pub use serve::{bind, serve};
