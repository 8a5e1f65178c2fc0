//! S3: one pair's bucket over HTTP.

pub mod manifest;
