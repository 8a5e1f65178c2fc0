//! A proxy before the endpoint that hands on every request as it is and twists the answers.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::mutate::{Mutation, mutated, mutations};

/// What is done to an answer.
#[derive(Clone, Debug)]
pub enum Twist {
    Status(u16),
    /// The n-th header goes.
    Drop(u8),
    /// The n-th header comes twice.
    Repeat(u8),
    /// A header in place of the one of that name, or beside it.
    Header {
        name: &'static str,
        value: String,
        beside: bool,
    },
    /// The body is changed; `counted`: its length is told as it is then.
    Body {
        mutations: Vec<Mutation>,
        counted: bool,
    },
    /// Another body altogether.
    Other(&'static str),
    /// So many bytes of nothing in particular in place of the body.
    Huge(u32),
    /// Nothing after this part of the whole, in 65,536ths.
    Cut(u16),
    /// What follows the answer in the stream.
    Then(Vec<u8>),
    /// What comes before it.
    First(&'static str),
    /// The bytes of the whole answer.
    Raw(Vec<Mutation>),
}

const HEADERS: [&str; 12] = [
    "content-length",
    "content-range",
    "etag",
    "content-type",
    "transfer-encoding",
    "content-encoding",
    "location",
    "x-amz-version-id",
    "x-amz-checksum-crc32",
    "x-amz-meta-tierfs-root",
    "last-modified",
    "connection",
];

const BODIES: [&str; 13] = [
    "",
    "<p>It works</p>",
    "<?xml version=\"1.0\"?><Error><Code>InternalError</Code><Message>x</Message></Error>",
    "<Error><Code>NoSuchKey</Code></Error>",
    "<Error><Code>SlowDown</Code><Message>y</Message></Error>",
    "<ListBucketResult><Contents></Contents></ListBucketResult>",
    "<ListBucketResult><Contents><Key>zzz</Key><Size>-1</Size></Contents></ListBucketResult>",
    "<ListBucketResult><Contents><Key>some/prefix/k1</Key><Size>18446744073709551616</Size></Contents></ListBucketResult>",
    "<ListBucketResult><Contents><Key>some/prefix/k9</Key><Size>1</Size></Contents></ListBucketResult>",
    "<ListBucketResult><Contents><Key>another/k1</Key><Size>1</Size></Contents></ListBucketResult>",
    "<ListBucketResult><Contents><Key>some/prefix/k4</Key><Size>1</Size></Contents><Contents><Key>some/prefix/k3</Key><Size>1</Size></Contents></ListBucketResult>",
    "<!DOCTYPE a [<!ENTITY b \"bbbbbbbb\"><!ENTITY c \"&b;&b;&b;&b;\">]><ListBucketResult><Name>&c;&c;&c;</Name></ListBucketResult>",
    "<a><a><a><a><a><a><a><a><a><a><a><a><a><a><a><a><a><a><a><a><a><a><a><a><a><a><a><a><a><a><a><a><a><a><a><a>",
];

fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<u64>().prop_map(|n| n.to_string()),
        any::<i16>().prop_map(|n| n.to_string()),
        (any::<u32>(), any::<u32>(), any::<u64>()).prop_map(|(a, b, c)| format!("bytes {a}-{b}/{c}")),
        (0u64..70_000, any::<u64>()).prop_map(|(a, b)| format!("bytes {a}-{b}/*")),
        Just(format!("bytes 0-{}/9", u64::MAX)),
        Just("\"0123456789abcdef0123456789abcdef\"".to_owned()),
        Just("\"\"".to_owned()),
        Just("W/\"x\"".to_owned()),
        Just("chunked".to_owned()),
        Just("gzip".to_owned()),
        Just("http://127.0.0.1:1/else".to_owned()),
        (0usize..9_000).prop_map(|n| "v".repeat(n)),
        "[ -~]{0,40}",
    ]
}

pub fn twist() -> impl Strategy<Value = Twist> {
    prop_oneof![
        2 => prop_oneof![Just(200), Just(204), Just(206), Just(301), Just(304), Just(307), Just(404), Just(412), Just(416), Just(500), Just(503), 100u16..600].prop_map(Twist::Status),
        2 => any::<u8>().prop_map(Twist::Drop),
        1 => any::<u8>().prop_map(Twist::Repeat),
        5 => (0..HEADERS.len(), value(), any::<bool>()).prop_map(|(n, value, beside)| Twist::Header { name: HEADERS[n], value, beside }),
        4 => (mutations(3), any::<bool>()).prop_map(|(mutations, counted)| Twist::Body { mutations, counted }),
        3 => (0..BODIES.len()).prop_map(|n| Twist::Other(BODIES[n])),
        1 => (0u32..3 << 20).prop_map(Twist::Huge),
        2 => any::<u16>().prop_map(Twist::Cut),
        1 => vec(any::<u8>(), 0..200).prop_map(Twist::Then),
        1 => prop_oneof![Just("HTTP/1.1 100 Continue\r\n\r\n"), Just("HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"), Just("SSH-2.0-x\r\n"), Just("\r\n")].prop_map(Twist::First),
        2 => mutations(4).prop_map(Twist::Raw),
    ]
}

impl Twist {
    /// Whether bytes of the body, or where they begin and end, may be others now.
    pub fn touches_content(&self) -> bool {
        !matches!(self, Self::Drop(_) | Self::Repeat(_) | Self::Status(_) | Self::Cut(_))
    }
}

struct Answer {
    status: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Answer {
    fn of(raw: &[u8]) -> Option<Self> {
        let end = raw.windows(4).position(|four| four == b"\r\n\r\n")?;
        let head = std::str::from_utf8(&raw[..end]).ok()?;
        let mut lines = head.split("\r\n");
        let status = lines.next()?.to_owned();
        let headers = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()));
        Some(Self { status, headers: headers.collect(), body: raw[end + 4..].to_vec() })
    }

    fn set(&mut self, name: &str, value: String) {
        self.headers.retain(|(known, _)| known != name);
        self.headers.push((name.to_owned(), value));
    }

    fn replace(&mut self, body: Vec<u8>) {
        self.set("content-length", body.len().to_string());
        self.headers.retain(|(name, _)| name != "transfer-encoding");
        self.body = body;
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = format!("{}\r\n", self.status).into_bytes();
        for (name, value) in &self.headers {
            out.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(&self.body);
        out
    }
}

fn twisted(raw: Vec<u8>, twists: &[Twist]) -> Vec<u8> {
    let Some(mut answer) = Answer::of(&raw) else { return raw };
    let (mut first, mut then, mut cut, mut damage) = (Vec::new(), Vec::new(), None, Vec::new());
    for twist in twists {
        let headers = answer.headers.len().max(1);
        match twist {
            Twist::Status(status) => answer.status = format!("HTTP/1.1 {status} X"),
            Twist::Drop(n) if !answer.headers.is_empty() => drop(answer.headers.remove(usize::from(*n) % headers)),
            Twist::Repeat(n) if !answer.headers.is_empty() => {
                let again = answer.headers[usize::from(*n) % headers].clone();
                answer.headers.push(again);
            }
            Twist::Drop(_) | Twist::Repeat(_) => {}
            Twist::Header { name, value, beside: false } => answer.set(name, value.clone()),
            Twist::Header { name, value, beside: true } => answer.headers.push(((*name).to_owned(), value.clone())),
            Twist::Body { mutations, counted } => {
                let body = mutated(&answer.body, mutations);
                if *counted { answer.replace(body) } else { answer.body = body }
            }
            Twist::Other(body) => answer.replace(body.as_bytes().to_vec()),
            Twist::Huge(len) => answer.replace(vec![b'x'; *len as usize]),
            Twist::Cut(at) => cut = Some(*at),
            Twist::Then(bytes) => then.extend_from_slice(bytes),
            Twist::First(text) => first.extend_from_slice(text.as_bytes()),
            Twist::Raw(mutations) => damage.extend(mutations.iter().cloned()),
        }
    }
    let mut out = [first, answer.bytes(), then].concat();
    damage.iter().for_each(|mutation| mutation.apply(&mut out));
    if let Some(at) = cut {
        out.truncate((usize::from(at) * (out.len() + 1)) >> 16);
    }
    out
}

/// The proxy. It ends with the process.
pub struct Proxy {
    pub url: String,
    twists: Arc<Mutex<Vec<Twist>>>,
    /// Answers that were given twisted.
    pub twisted: Arc<AtomicU64>,
}

impl Proxy {
    pub fn before(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (twists, count) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicU64::new(0)));
        let (shared, counted) = (twists.clone(), count.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (twists, counted) = (shared.clone(), counted.clone());
                // A client that goes away, or an endpoint that does, ends this connection only.
                std::thread::spawn(move || drop(hand_on(client, upstream, &twists, &counted)));
            }
        });
        Self { url, twists, twisted: count }
    }

    /// What is done to each answer from now on.
    pub fn twist(&self, twists: &[Twist]) {
        *self.twists.lock() = twists.to_vec();
    }
}

/// One request, one answer, then the connection ends.
fn hand_on(
    mut client: TcpStream,
    upstream: SocketAddr,
    twists: &Mutex<Vec<Twist>>,
    counted: &AtomicU64,
) -> std::io::Result<()> {
    let mut request = Vec::new();
    let mut buffer = [0; 65536];
    let head = loop {
        let got = client.read(&mut buffer)?;
        request.extend_from_slice(&buffer[..got]);
        if let Some(end) = request.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        if got == 0 {
            return Ok(());
        }
    };
    let text = String::from_utf8_lossy(&request[..head]).to_ascii_lowercase();
    let len = text.split_once("content-length: ").and_then(|(_, rest)| rest.split_once('\r'));
    let len: usize = len.map_or(0, |(len, _)| len.parse().unwrap_or(0));
    while request.len() < head + len {
        let got = client.read(&mut buffer)?;
        if got == 0 {
            return Ok(());
        }
        request.extend_from_slice(&buffer[..got]);
    }
    let mut server = TcpStream::connect(upstream)?;
    server.write_all(&request[..head - 2])?;
    server.write_all(b"connection: close\r\n\r\n")?;
    server.write_all(&request[head..])?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer)?;
    let twists = twists.lock().clone();
    if !twists.is_empty() {
        answer = twisted(answer, &twists);
        counted.fetch_add(1, Ordering::Relaxed);
    }
    client.write_all(&answer)
}
