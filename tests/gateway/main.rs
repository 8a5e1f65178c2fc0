//! The embedded S3 endpoint, driven over HTTP as its clients do: by the SDK, and by raw requests where the SDK is too polite.

mod basics;
mod multipart;
mod rig;
