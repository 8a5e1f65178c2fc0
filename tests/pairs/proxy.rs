//! What each side reaches the other by: passes on, slowly, or not at all, or loses answers.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::link::{ADDRESSES, Link};

/// Where a side's gateway listens, and where it finds the other's.
pub const GATEWAY: u16 = 9000;
pub const OTHER: u16 = 9100;

#[derive(Default)]
pub struct Orders {
    /// Milliseconds that each piece is held back.
    pub delay: AtomicU64,
    /// Nothing gets on; connections stay.
    pub stalled: AtomicBool,
    /// Every connection ends, at the next piece of an answer: calls arrive, answers do not.
    pub broken: AtomicBool,
    /// So many calls for a handover arrive and are answered, and the answer is lost. A client asks three times before it calls that no answer.
    pub lose: AtomicU64,
    /// How many were.
    pub lost: AtomicU64,
}

/// Listens on `side` of the link, and passes on to the other. Ends with the test's process.
pub fn start(link: &Link, side: usize) -> Arc<Orders> {
    let orders = Arc::new(Orders::default());
    let to: SocketAddr = format!("{}:{GATEWAY}", ADDRESSES[1 - side]).parse().expect("an address");
    let ordered = orders.clone();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            link.enter(side);
            let listener = TcpListener::bind(("127.0.0.1", OTHER)).expect("a port of an empty namespace");
            std::thread::spawn(move || {
                for client in listener.incoming().flatten() {
                    let orders = ordered.clone();
                    std::thread::spawn(move || connection(client, to, &orders));
                }
            });
        });
    });
    orders
}

fn connection(client: TcpStream, to: SocketAddr, orders: &Arc<Orders>) {
    let Ok(server) = TcpStream::connect_timeout(&to, Duration::from_secs(3)) else { return };
    let lost = Arc::new(AtomicBool::new(false));
    let Ok(up) = client.try_clone().and_then(|client| Ok((client, server.try_clone()?))) else { return };
    let (told, ordered) = (lost.clone(), orders.clone());
    let asks = std::thread::spawn(move || pass(up.0, up.1, &ordered, |piece| hears(piece, &told, &ordered)));
    pass(server, client, orders, |_| lost.load(Ordering::SeqCst) || orders.broken.load(Ordering::SeqCst));
    let _ = asks.join();
}

/// Looks at what is asked; nothing of it ends the connection.
fn hears(piece: &[u8], lost: &AtomicBool, orders: &Orders) -> bool {
    if loses(piece, orders) {
        lost.store(true, Ordering::SeqCst);
    }
    false
}

/// Whether the answer to what begins here is to be lost.
fn loses(piece: &[u8], orders: &Orders) -> bool {
    let text = String::from_utf8_lossy(&piece[..piece.len().min(2_048)]);
    let is_call = text.starts_with("PUT ") && text.lines().next().is_some_and(|line| line.contains("?tagging"));
    let loses =
        is_call && orders.lose.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
    if loses || (is_call && orders.broken.load(Ordering::SeqCst)) {
        orders.lost.fetch_add(1, Ordering::SeqCst);
    }
    loses
}

/// Passes on until either end is closed, or `ends` says so.
fn pass(mut from: TcpStream, mut into: TcpStream, orders: &Orders, ends: impl Fn(&[u8]) -> bool) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(got @ 1..) = from.read(&mut buffer) {
        while orders.stalled.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::sleep(Duration::from_millis(orders.delay.load(Ordering::SeqCst)));
        if ends(&buffer[..got]) || into.write_all(&buffer[..got]).is_err() {
            break;
        }
    }
    let _ = into.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
