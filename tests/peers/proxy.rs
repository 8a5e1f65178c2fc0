//! Something between the two sides that loses answers, or everything.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

#[derive(Default)]
struct Orders {
    /// Nobody gets through.
    cut: AtomicBool,
    /// So many answers to attribute calls get lost; the calls arrive.
    lose: AtomicU32,
    /// When a request comes by whose first line has this: nobody gets through from then on, not even it, or not its answer.
    cut_at: Mutex<Option<(&'static str, Cut)>>,
    /// The same, but what comes by waits until it is let go.
    hold_at: Mutex<Option<(&'static str, Cut)>>,
    /// Something waits.
    held: AtomicBool,
    /// Attribute calls that came by.
    calls: AtomicU32,
    /// Requests for content that came by.
    contents: AtomicU32,
    /// Bytes that went to who asks.
    answered: AtomicU64,
    /// Each attribute call is sent once more, later, on a connection of its own.
    repeat: AtomicBool,
}

impl Orders {
    fn wait_here(&self) {
        self.held.store(true, Ordering::SeqCst);
        while self.held.load(Ordering::SeqCst) {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }
}

/// What of a request is lost, or late.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cut {
    Request,
    Answer,
}

/// A listener that passes on to `to`.
pub struct Proxy {
    pub addr: SocketAddr,
    orders: Arc<Orders>,
}

impl Proxy {
    pub fn to(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let orders = Arc::new(Orders::default());
        let ordered = orders.clone();
        // Ends with the test's process.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let orders = ordered.clone();
                std::thread::spawn(move || pass(client, to, &orders));
            }
        });
        Self { addr, orders }
    }

    pub fn cut(&self, cut: bool) {
        self.orders.cut.store(cut, Ordering::SeqCst);
    }

    /// Cuts the link when a request comes by whose first line has `what`.
    pub fn cut_at(&self, what: &'static str, cut: Cut) {
        *self.orders.cut_at.lock().unwrap() = Some((what, cut));
    }

    /// Whether that has happened.
    pub fn is_cut(&self) -> bool {
        self.orders.cut.load(Ordering::SeqCst)
    }

    /// Holds a request back whose first line has `what`, or its answer, until [`Proxy::let_go`].
    pub fn hold_at(&self, what: &'static str, cut: Cut) {
        *self.orders.hold_at.lock().unwrap() = Some((what, cut));
    }

    /// Whether something waits.
    pub fn holds(&self) -> bool {
        self.orders.held.load(Ordering::SeqCst)
    }

    /// What waits goes on; whether something did, or would have.
    pub fn let_go(&self) -> bool {
        let waited = self.orders.held.swap(false, Ordering::SeqCst);
        self.orders.hold_at.lock().unwrap().take();
        waited
    }

    pub fn lose_answers(&self, count: u32) {
        self.orders.lose.store(count, Ordering::SeqCst);
    }

    pub fn repeat_calls(&self, repeat: bool) {
        self.orders.repeat.store(repeat, Ordering::SeqCst);
    }

    pub fn calls(&self) -> u32 {
        self.orders.calls.load(Ordering::SeqCst)
    }

    /// Requests for content, and bytes of answers of all kinds, until now.
    pub fn fetched(&self) -> (u32, u64) {
        (self.orders.contents.load(Ordering::SeqCst), self.orders.answered.load(Ordering::SeqCst))
    }
}

fn pass(client: TcpStream, to: SocketAddr, orders: &Arc<Orders>) {
    if orders.cut.load(Ordering::SeqCst) {
        return;
    }
    let Ok(server) = TcpStream::connect(to) else { return };
    let (lost, late) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (mut from, mut into) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    let (told, waits, on) = (lost.clone(), late.clone(), orders.clone());
    let up = std::thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(got @ 1..) = from.read(&mut buffer) {
            if on.cut.load(Ordering::SeqCst) {
                break;
            }
            let text = String::from_utf8_lossy(&buffer[..got.min(4_096)]).into_owned();
            let line = text.lines().next().unwrap_or_default();
            let mut at = on.cut_at.lock().unwrap();
            if let Some((_, cut)) = at.take_if(|(what, _)| line.contains(*what)) {
                on.cut.store(true, Ordering::SeqCst);
                if cut == Cut::Request {
                    break;
                }
            }
            drop(at);
            let held = on.hold_at.lock().unwrap().take_if(|(what, _)| line.contains(*what));
            match held {
                Some((_, Cut::Request)) => {
                    on.wait_here();
                    if on.cut.load(Ordering::SeqCst) {
                        break;
                    }
                }
                Some((_, Cut::Answer)) => waits.store(true, Ordering::SeqCst),
                None => {}
            }
            if text.starts_with("GET ") && text.lines().next().is_some_and(|line| line.contains("-gateway/content/")) {
                on.contents.fetch_add(1, Ordering::SeqCst);
            }
            if text.starts_with("PUT ") && text.lines().next().is_some_and(|line| line.contains("?tagging")) {
                on.calls.fetch_add(1, Ordering::SeqCst);
                let less = |left: u32| left.checked_sub(1);
                if on.lose.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok() {
                    told.store(true, Ordering::SeqCst);
                }
                if on.repeat.load(Ordering::SeqCst) {
                    let again = buffer[..got].to_vec();
                    std::thread::spawn(move || {
                        std::thread::sleep(std::time::Duration::from_millis(300));
                        let Ok(mut server) = TcpStream::connect(to) else { return };
                        let _ = server.write_all(&again);
                        let mut answer = vec![0; 4_096];
                        let _ = server.read(&mut answer);
                    });
                }
            }
            if into.write_all(&buffer[..got]).is_err() {
                break;
            }
        }
        let _ = into.shutdown(Shutdown::Both);
    });
    let (mut from, mut into) = (server, client);
    let mut buffer = vec![0; 64 << 10];
    while let Ok(got @ 1..) = from.read(&mut buffer) {
        if late.swap(false, Ordering::SeqCst) {
            orders.wait_here();
        }
        // The call has arrived and is answered; nobody hears of it.
        let silent = lost.load(Ordering::SeqCst) || orders.cut.load(Ordering::SeqCst);
        orders.answered.fetch_add(got as u64, Ordering::SeqCst);
        if silent || into.write_all(&buffer[..got]).is_err() {
            break;
        }
    }
    let _ = into.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
    let _ = up.join();
}
