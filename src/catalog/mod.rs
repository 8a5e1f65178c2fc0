//! What is in the share: walks over its names, and an index of them in SQL that is never the truth.

pub mod glob;
pub mod index;
pub mod walk;
