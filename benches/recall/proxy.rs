//! Latency, where the kernel has none to give: a TCP proxy that holds back what clients send.
//!
//! Each piece a client sends is passed on so much later; what the endpoint sends passes at once. So every request takes one round trip of that time
//! more, however many are under way, and bandwidth is not touched. Connecting costs nothing, which a real line would charge once.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, tcp};
use tokio::time::Instant;

use super::rig::{Result, said};

/// Bytes read at a time.
const PIECE: usize = 256 << 10;
/// Pieces held back at most: what a client sends beyond them waits.
const HELD_MAX: usize = 64;

/// Ends when dropped, and its connections with it.
pub struct Proxy {
    pub url: String,
    _runtime: tokio::runtime::Runtime,
}

impl Proxy {
    /// In front of `endpoint` (`http://address`).
    pub fn new(endpoint: &str, delay: Duration) -> Result<Self> {
        let failed = said("the proxy");
        let endpoint: SocketAddr =
            endpoint.trim_start_matches("http://").parse().map_err(|error| format!("{endpoint}: {error}"))?;
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().map_err(&failed)?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).map_err(&failed)?;
        let url = format!("http://{}", listener.local_addr().map_err(&failed)?);
        runtime.spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(async move {
                    // Whoever ends a connection ends it for both.
                    let _ = serve(client, endpoint, delay).await;
                });
            }
        });
        Ok(Self { url, _runtime: runtime })
    }
}

async fn serve(client: TcpStream, endpoint: SocketAddr, delay: Duration) -> std::io::Result<()> {
    let server = TcpStream::connect(endpoint).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut client_says, mut client_hears) = client.into_split();
    let (mut server_says, mut server_hears) = server.into_split();
    let down = async {
        let mut piece = vec![0; PIECE];
        loop {
            match server_says.read(&mut piece).await? {
                0 => return Ok(()),
                n => client_hears.write_all(&piece[..n]).await?,
            }
        }
    };
    tokio::select! {
        ended = down => ended,
        ended = late(&mut client_says, &mut server_hears, delay) => ended,
    }
}

/// Passes on what `from` says, `delay` later.
async fn late(from: &mut tcp::OwnedReadHalf, to: &mut tcp::OwnedWriteHalf, delay: Duration) -> std::io::Result<()> {
    let mut held: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let mut piece = vec![0; PIECE];
    loop {
        let due = held.front().map(|(due, _)| *due);
        tokio::select! {
            read = from.read(&mut piece), if held.len() < HELD_MAX => match read? {
                0 => return Ok(()),
                n => held.push_back((Instant::now() + delay, piece[..n].to_vec())),
            },
            () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                if let Some((_, piece)) = held.pop_front() {
                    to.write_all(&piece).await?;
                }
            }
        }
    }
}
