//! What is in the share: walks over its names. (The SQL index of a later version fills itself from these.)

pub mod walk;
