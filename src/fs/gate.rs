//! Who may start a recall, and as what: the mount's rules (`admission`) put to a request that waits for content.
//!
//! Nothing here costs a request that need not wait.

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Fs;
use super::error::{FsError, FsResult};
use super::requester::Requesters;
use super::wait::{Taken, Waiter};
use crate::admission::{Budgets, Class, Counted, Entry, Noticed, Requester, Rules, Scans, Seen, Ticket, Wanted};
use crate::catalog::walk::resolve;
use crate::engine::{CUT_WITHIN, Cell, Demand, EngineError, EngineResult, Recall, Wish};
use crate::ports::Lower;
use crate::types::{ByteRange, FileId};

/// Directories whose listing is kept to tell its order, the newest; and how many of its first entries.
const ORDERS_MAX: usize = 8;
const ENTRIES_MAX: usize = 1 << 16;

/// How long what a server of others asked for is brought back without anybody waiting: longer than the remote is waited for.
const GOES_ON: Duration = Duration::from_secs(90);

/// The place of each inode in a listing.
type Order = Arc<HashMap<u64, u32>>;

/// The rules, and what they count.
pub(super) struct Gate {
    rules: Rules,
    pub requesters: Requesters,
    begun: Instant,
    budgets: Mutex<Budgets>,
    /// Somebody gave back what he had of a budget.
    freed: Notify,
    /// For whose budgets which recall (by its address) is on its way.
    under_way: Mutex<HashSet<(usize, Vec<Counted>)>>,
    scans: Option<Mutex<Scans>>,
    orders: Mutex<VecDeque<(u64, Order)>>,
}

/// What a request has of budgets; given back when it is dropped.
struct Share {
    gate: Arc<Gate>,
    ticket: Option<Ticket>,
}

impl Drop for Share {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.gate.budgets.lock().leave(ticket);
            self.gate.freed.notify_waiters();
        }
    }
}

/// What a request waits for. Of a server of others it goes on after its request was told to come back later: nobody else asks for it meanwhile. What has
/// come may be nowhere else but with the demand, which is kept until the request has had its next attempt.
struct Unmet {
    demand: Option<Demand>,
    goes_on: bool,
    runtime: Handle,
}

impl Unmet {
    async fn met(mut self) -> EngineResult<Option<Demand>> {
        let Some(demand) = &self.demand else { return Ok(None) };
        let ended = demand.met().await;
        let demand = self.demand.take();
        ended.map(|()| demand)
    }
}

impl Drop for Unmet {
    fn drop(&mut self) {
        if let Some(demand) = self.demand.take().filter(|_| self.goes_on) {
            self.runtime.spawn(async move {
                // Whether it is there then or not, its client asks again.
                let _ = tokio::time::timeout(GOES_ON, demand.met()).await;
            });
        }
    }
}

impl Gate {
    pub(super) fn new(rules: Rules) -> Arc<Self> {
        Arc::new(Self {
            requesters: Requesters::default(),
            begun: Instant::now(),
            budgets: Mutex::new(Budgets::new(rules.budgets.clone())),
            freed: Notify::new(),
            under_way: Mutex::default(),
            scans: rules.scan_files.map(|files| Mutex::new(Scans::new(files))),
            orders: Mutex::default(),
            rules,
        })
    }

    fn now_ns(&self) -> u64 {
        self.begun.elapsed().as_nanos() as u64
    }

    /// Whether somebody gets no content that is not local.
    pub(super) fn refuses_some(&self) -> bool {
        !self.rules.no_recall.is_empty()
    }

    /// Whether there are budgets.
    fn counts(&self) -> bool {
        !self.rules.budgets.is_empty()
    }

    pub(super) fn refuses(&self, who: &Requester) -> bool {
        self.rules.refuses(who)
    }

    /// Waits until `who`'s budgets have room for a file.
    async fn share(self: &Arc<Self>, who: &Requester, file: FileId, wanted: Wanted) -> Option<Share> {
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            // Registered before looking, or what is given back in between would be missed.
            freed.as_mut().enable();
            let entry = {
                let mut budgets = self.budgets.lock();
                if budgets.is_empty() {
                    return None;
                }
                budgets.enter(who, file, wanted, self.now_ns())
            };
            match entry {
                Entry::Go(ticket) => return Some(Share { gate: self.clone(), ticket: Some(ticket) }),
                Entry::Wait { until_ns: None } => freed.await,
                Entry::Wait { until_ns: Some(at) } => {
                    let at = self.begun + Duration::from_nanos(at);
                    tokio::select! {
                        () = freed => {}
                        () = tokio::time::sleep_until(at) => {}
                    }
                }
            }
        }
    }

    /// Keeps what somebody has of budgets until `recall`, which he has joined, brings nothing more: also what comes when he has what he waited for.
    fn keep(self: &Arc<Self>, share: Share, recall: &Arc<Recall>, runtime: &Handle) {
        let Some(ticket) = share.ticket.as_ref().filter(|ticket| !ticket.counted().is_empty()) else { return };
        let key = (Arc::as_ptr(recall) as usize, ticket.counted().to_vec());
        if !self.under_way.lock().insert(key.clone()) {
            // Who has it looks once more, after this one has joined the recall.
            return;
        }
        let (gate, recall) = (self.clone(), recall.clone());
        runtime.spawn(async move {
            loop {
                recall.rested().await;
                let mut under_way = gate.under_way.lock();
                if !recall.brings_more() {
                    under_way.remove(&key);
                    break;
                }
            }
            drop(share);
        });
    }

    /// Whether `who` reads everything, as far as what he asks for tells. `lower` is asked for the order of a directory, rarely.
    async fn is_scan(self: &Arc<Self>, lower: &Arc<dyn Lower>, cell: &Cell, who: &Arc<Requester>) -> bool {
        let Some(scans) = &self.scans else { return false };
        if let Some(scan) = scans.lock().goes_on(who, cell.node.id.ino, self.now_ns()) {
            return scan;
        }
        let Ok(Some(path)) = lower.path_of(&cell.node) else { return false };
        let Some((parent, name)) = path.parent().zip(path.file_name()) else { return false };
        let dir = hash_of(parent);
        let seen = Seen { dir, name: name.as_encoded_bytes().to_vec(), ino: cell.node.id.ino };
        // The lock is not held any more where the match begins to work.
        let noticed = scans.lock().note(who, &seen, self.now_ns());
        match noticed {
            Noticed::Nothing => false,
            Noticed::Scan => true,
            Noticed::Asks { dir } => {
                let order = self.order(lower, dir, parent.to_owned()).await;
                scans.lock().judge(who, |ino| order.get(&ino).copied())
            }
        }
    }

    async fn order(self: &Arc<Self>, lower: &Arc<dyn Lower>, dir: u64, path: PathBuf) -> Order {
        let known = self.orders.lock().iter().find(|(known, _)| *known == dir).map(|(_, order)| order.clone());
        if let Some(order) = known {
            return order;
        }
        let lower = lower.clone();
        let listed = tokio::task::spawn_blocking(move || list(&*lower, &path)).await;
        let order = Arc::new(listed.unwrap_or_default());
        let mut orders = self.orders.lock();
        if orders.len() >= ORDERS_MAX {
            orders.pop_front();
        }
        orders.push_back((dir, order.clone()));
        order
    }
}

fn hash_of(path: &Path) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    path.hash(&mut hasher);
    hasher.finish()
}

/// The places of a directory's first entries. A directory that cannot be read has no order that anybody could follow.
fn list(lower: &dyn Lower, path: &Path) -> HashMap<u64, u32> {
    let mut order = HashMap::new();
    let Ok(found) = resolve(lower, path) else { return order };
    let Ok(dir) = lower.open_dir(&found.node) else { return order };
    let mut take = |entry: &crate::ports::DirEntryRef<'_>| {
        order.insert(entry.ino, order.len() as u32);
        // Whether that is enough.
        order.len() >= ENTRIES_MAX
    };
    // What came before an error has its order all the same.
    let _ = dir.each(0, &mut take);
    order
}

impl Fs {
    /// Brings `range` of a file back for a request, or all of it, as the mount's rules allow. With `opens`, the requester only opens the file
    /// for reading: he may get it without content, and is served as he reads.
    pub(super) async fn bring(
        &self,
        cell: &Arc<Cell>,
        range: Option<ByteRange>,
        opens: bool,
        waiter: Waiter,
    ) -> FsResult<Option<Taken>> {
        let file = cell.node.id;
        let who = self.gate.requesters.of(waiter);
        let (len, done) = {
            let inner = cell.lock();
            let away = inner.record.object.as_ref().filter(|_| !inner.machine.is_local());
            (away.map(|object| object.len), inner.recall.as_ref().map_or(0, |recall| recall.bytes_done()))
        };
        let (mut class, mut keep, mut share) = (Class::Interactive, true, None);
        // Else nothing is fetched: it is here, or what is in doubt is settled.
        if let Some(len) = len {
            if self.gate.refuses(&who) {
                return Err(FsError::Withheld);
            }
            if self.gate.is_scan(&self.lower, cell, &who).await {
                if opens {
                    return Ok(None);
                }
                // What is read once need not stay. Who wants all of it is about to change it.
                (class, keep) = (Class::Bulk, range.is_none());
            }
            // What comes without being asked for by anybody has to be paid for by who began it.
            let part = range.filter(|_| !(keep && self.gate.counts() && self.engine.brings_all(cell)));
            let more = part.map_or_else(|| len.saturating_sub(done), |range| range.len);
            share = self.gate.share(&who, file, Wanted { done, more }).await;
        }
        let Some(demand) = self.engine.start_recall_for(cell, Wish { range, keep }, &who, class).await? else {
            return Ok(None);
        };
        if let Some(share) = share {
            self.gate.keep(share, &demand.recall, &self.engine.runtime);
        }
        let unmet = Unmet {
            demand: Some(demand),
            goes_on: self.delays.passes_on(&who.program),
            runtime: self.engine.runtime.clone(),
        };
        match self.engine.or_stopped(file, &who, unmet.met().await) {
            // Somebody cuts the file to nothing, or has it set aside: the next attempt finds what is there then.
            Err(EngineError::Cancelled) => {
                tokio::time::sleep(CUT_WITHIN).await;
                Ok(None)
            }
            ended => Ok(ended?.map(Taken::Content)),
        }
    }
}
