//! The protocol of two clusters explored exhaustively: both sides of one file, their users, the network between them, crashes of either. What is decided is
//! decided by `tierfs::peer`; what is done is modelled step by step. `docs/exploration.md` tells what is covered.

mod bugs;
mod calls;
mod crashes;
#[path = "../common/explorer.rs"]
mod explorer;
mod invariants;
mod jobs;
mod judge;
mod state;
mod steps;
mod tests;
mod users;
mod wander;
mod worlds;
