//! The administrator's socket: what the commands say to a running mount.
//!
//! One connection carries one request: a JSON line; the answer is JSON lines that end with `done` or `error`.
//! Only root may connect: the socket lies in a directory of mode 0700 and the peer's uid is checked.

pub mod protocol;
