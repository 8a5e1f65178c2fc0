//! The share, or a bare directory, as an S3 endpoint.
