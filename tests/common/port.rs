//! Ports of loopback that nobody else gets.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with, sockopt};

/// A port of 127.0.0.1 that is a test's own while this lives, whether or not anything listens there: a server can be stopped and
/// started on it.
///
/// A socket that is bound and does not listen keeps the kernel from giving the port to anybody who asks for any, as a listener or as
/// the near end of a connection; who asks for this very one gets it, for both set SO_REUSEADDR (socket(7)), as std and tokio do.
pub struct Port {
    pub addr: SocketAddr,
    _held: OwnedFd,
}

impl Port {
    pub fn held() -> Self {
        let held = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).expect("socket");
        sockopt::set_socket_reuseaddr(&held, true).expect("SO_REUSEADDR");
        bind(&held, &SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port");
        let addr = getsockname(&held).expect("getsockname").try_into().expect("it was bound to IPv4");
        Self { addr, _held: held }
    }
}
