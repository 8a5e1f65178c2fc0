//! The embedded S3 endpoint, driven over HTTP as its clients do: by the SDK, and by raw requests where the SDK is too polite.

mod access;
mod archive;
mod basics;
mod conditions;
mod crash;
mod faults;
mod integrity;
mod measure;
mod multipart;
mod objects;
mod rig;
