//! One file explored exhaustively: every interleaving of users, transfers, failures and crashes within stated bounds. The machine that decides is
//! the real one; the procedures are modelled step by step as the engine does them. `docs/exploration.md` tells what is covered.

mod archive;
mod background;
mod bugs;
mod crashes;
mod disk;
mod doubles;
mod engine;
mod environment;
#[path = "../common/explorer.rs"]
mod explorer;
mod invariants;
mod recall;
mod release;
mod requests;
mod state;
mod steps;
mod tests;
mod worlds;
