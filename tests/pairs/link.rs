//! Two network namespaces and the cable between them.

use std::fs::File;
use std::os::fd::AsFd;
use std::process::Command;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::common::{private_mounts, run};

/// East is `.1`, west is `.2`; nobody else is in there.
pub const ADDRESSES: [&str; 2] = ["10.99.0.1", "10.99.0.2"];
const CABLE: &str = "cable";

/// Gone when dropped.
pub struct Link {
    spaces: [String; 2],
}

impl Link {
    pub fn new() -> Self {
        private_mounts();
        let spaces = ["east", "west"].map(|side| format!("tierfs-{side}-{}", std::process::id()));
        for space in &spaces {
            run("ip", &["netns", "add", space]);
        }
        let [east, west] = &spaces;
        run("ip", &["link", "add", CABLE, "netns", east, "type", "veth", "peer", "name", CABLE, "netns", west]);
        for (space, address) in spaces.iter().zip(ADDRESSES) {
            run("ip", &["-n", space, "addr", "add", &format!("{address}/24"), "dev", CABLE]);
            run("ip", &["-n", space, "link", "set", "lo", "up"]);
            run("ip", &["-n", space, "link", "set", CABLE, "up"]);
        }
        Self { spaces }
    }

    /// The cable is plugged in, or pulled out.
    pub fn set(&self, up: bool) {
        run("ip", &["-n", &self.spaces[0], "link", "set", CABLE, if up { "up" } else { "down" }]);
    }

    fn file(&self, side: usize) -> String {
        format!("/run/netns/{}", self.spaces[side])
    }

    /// A command whose process is on this side.
    pub fn command(&self, side: usize, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.file(side))).args(["--", program]);
        command
    }

    /// This thread is on this side from now on.
    pub fn enter(&self, side: usize) {
        let space = File::open(self.file(side)).expect("the namespace");
        move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network)).expect("setns");
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        for space in &self.spaces {
            let _ = Command::new("ip").args(["netns", "del", space]).status();
        }
    }
}
