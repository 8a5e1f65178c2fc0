//! The remote against a real S3 server over real sockets: the contract every store must keep, what each kind of failure
//! becomes, and that nothing is left behind. The server is tierfs's own endpoint with its faults; the contract runs on a
//! foreign store too where `TIERFS_TEST_S3_ENDPOINT` names one (bucket `TIERFS_TEST_S3_BUCKET`, credentials from the
//! standard chain).

mod archived;
mod bench;
mod configuration;
mod contract;
mod failures;
mod measure;
#[path = "../common/port.rs"]
mod port;
mod rig;
mod scripted;
mod streams;
mod uploads;
