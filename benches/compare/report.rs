//! What was measured, as tables and as JSON.
//!
//! Invariant: nothing here computes a figure from anything but the samples of this run; the document's tables are written
//! by this program alone, between two markers.

use std::fmt::Write;

use serde_json::json;

use super::page::{self, least, median, most, short};
use super::plot::Picture;
use super::rig::{Result, Target};
use super::small;

/// One comparison. Rates, so more is better; `ours[i]` and `base[i]` were measured side by side.
pub struct Row {
    pub name: String,
    pub unit: &'static str,
    pub base: Vec<f64>,
    pub ours: Vec<f64>,
    /// The same, of other filesystems of our kind.
    pub peers: Vec<PeerRates>,
    pub target: Target,
}

/// What a peer did, measured beside `base`; nothing where the peer fails the call.
pub struct PeerRates {
    pub name: &'static str,
    pub rates: Option<Vec<f64>>,
}

/// Medians of CPU seconds, client and endpoint, of tierfs, rclone, and rclone wide.
pub struct CpuRow {
    pub name: String,
    pub tool: String,
    /// Command and daemons.
    pub client_s: f64,
    pub endpoint_s: f64,
}

pub struct Report {
    rounds: usize,
    samples: usize,
    /// Whom tierfs is compared with on resident files.
    pub peers: Vec<&'static str>,
    pub resident_on: String,
    pub transfers_on: String,
    pub rclone: String,
    pub resident: Vec<Row>,
    pub transfers: Vec<Row>,
    pub small: Vec<Row>,
    pub cpu: Vec<CpuRow>,
    pub took_s: f64,
}

/// Median of ratios of samples taken side by side.
fn ratio(rates: &[f64], base: &[f64]) -> f64 {
    median(&ratios(rates, base))
}

fn ratios(rates: &[f64], base: &[f64]) -> Vec<f64> {
    rates.iter().zip(base).map(|(rate, base)| rate / base).collect()
}

impl Row {
    fn ratios(&self) -> Vec<f64> {
        ratios(&self.ours, &self.base)
    }

    /// Median ratio to the base of tierfs and of each peer, with their names.
    pub fn contenders(&self) -> Vec<(&'static str, Option<f64>)> {
        let peers =
            self.peers.iter().map(|peer| (peer.name, peer.rates.as_ref().map(|rates| ratio(rates, &self.base))));
        std::iter::once(("tierfs", Some(median(&self.ratios())))).chain(peers).collect()
    }

    fn verdict(&self) -> String {
        let ours = median(&self.ratios());
        let met = |met: bool| if met { "met" } else { "**missed**" };
        match self.target {
            Target::None => "–".to_owned(),
            Target::Ratio(least) => format!("≥ {least}: {}", met(ours >= least)),
            Target::Ahead => {
                let ahead = self.contenders()[1..].iter().all(|(_, peer)| peer.is_none_or(|peer| ours > peer));
                format!("ahead of both: {}", met(ahead))
            }
        }
    }

    /// One line for who watches.
    pub fn line(&self) -> String {
        let ratios = self.ratios();
        let peers: String = self.contenders()[1..]
            .iter()
            .map(|(name, ratio)| {
                format!("; {name} {}", ratio.map_or("fails".to_owned(), |ratio| format!("{ratio:.2}")))
            })
            .collect();
        format!(
            "{}: {} against {} {}, ratio {:.2} ({:.2}–{:.2}){peers}",
            self.name,
            short(median(&self.ours)),
            short(median(&self.base)),
            self.unit,
            median(&ratios),
            least(&ratios),
            most(&ratios),
        )
    }

    fn cells(&self) -> String {
        let ratios = self.ratios();
        let peers: String = self.contenders()[1..]
            .iter()
            .map(|(_, ratio)| format!(" {} |", ratio.map_or("fails".to_owned(), |ratio| format!("{ratio:.2}"))))
            .collect();
        let verdict = self.verdict();
        format!(
            "| {} | {} | {} ({}–{}) | {} ({}–{}) | **{:.2}** ({:.2}–{:.2}) |{peers} {verdict} |",
            self.name,
            self.unit,
            short(median(&self.base)),
            short(least(&self.base)),
            short(most(&self.base)),
            short(median(&self.ours)),
            short(least(&self.ours)),
            short(most(&self.ours)),
            median(&ratios),
            least(&ratios),
            most(&ratios),
        )
    }

    fn json(&self) -> serde_json::Value {
        json!({
            "name": self.name, "unit": self.unit, "verdict": self.verdict(), "base": self.base, "tierfs": self.ours,
            "ratio_median": median(&self.ratios()),
            "peers": self.peers.iter().map(|peer| json!({ "name": peer.name, "rates": peer.rates })).collect::<Vec<_>>(),
        })
    }
}

impl Report {
    fn machine(&self) -> String {
        page::machine(self.took_s)
    }

    pub fn new(rounds: usize, samples: usize) -> Self {
        Self {
            rounds,
            samples,
            peers: vec!["mergerfs", "bindfs"],
            resident_on: String::new(),
            transfers_on: String::new(),
            rclone: String::new(),
            resident: Vec::new(),
            transfers: Vec::new(),
            small: Vec::new(),
            cpu: Vec::new(),
            took_s: 0.0,
        }
    }

    pub fn markdown(&self) -> String {
        let mut text = self.machine();
        text.push('\n');
        let mut table = |title: &str, intro: &str, head: [&str; 2], rows: &[Row]| {
            let Some(first) = rows.first() else { return };
            let [base, ours] = head;
            let peers: String = first.peers.iter().map(|peer| format!(" {} |", peer.name)).collect();
            let rule = "---|".repeat(first.peers.len());
            // Writing into a string cannot fail.
            let _ = write!(
                text,
                "\n### {title}\n\n{intro}\n\n| | unit | {base} | {ours} | ratio |{peers} target |\n|---|---|---|---|---|{rule}---|\n"
            );
            for row in rows {
                let _ = writeln!(text, "{}", row.cells());
            }
        };
        table(
            "Resident files: through the mount against the filesystem below",
            &format!(
                "On {}; up to {} samples a side, in turns. The columns of peers are their ratios. ![the table, drawn](benchmarks.svg)",
                self.resident_on, self.samples
            ),
            ["below", "mount"],
            &self.resident,
        );
        table(
            "Transfers: tierfs against rclone",
            &format!("On {}; {} rounds, alternating; rclone {}.", self.transfers_on, self.rounds, self.rclone),
            ["rclone", "tierfs"],
            &self.transfers,
        );
        table(
            "Small files: tierfs against rclone and s5cmd",
            &format!("{} rounds, in turns, one endpoint; rclone {}.", small::rounds(self.rounds), self.rclone),
            ["theirs", "tierfs"],
            &self.small,
        );
        if !self.cpu.is_empty() {
            text.push_str("\nCPU-seconds, medians:\n\n| | tool | client | endpoint |\n|---|---|---|---|\n");
            for CpuRow { name, tool, client_s, endpoint_s } in &self.cpu {
                let _ = writeln!(text, "| {name} | {tool} | {client_s:.2} | {endpoint_s:.2} |");
            }
        }
        text
    }

    pub fn json(&self) -> String {
        let rows = |rows: &[Row]| rows.iter().map(Row::json).collect::<Vec<_>>();
        let cpu: Vec<_> = self
            .cpu
            .iter()
            .map(|row| json!({ "name": row.name, "tool": row.tool, "client_s": row.client_s, "endpoint_s": row.endpoint_s }))
            .collect();
        json!({
            "machine": self.machine(), "rounds": self.rounds, "samples": self.samples,
            "resident_on": self.resident_on, "resident": rows(&self.resident),
            "transfers_on": self.transfers_on, "rclone": self.rclone, "transfers": rows(&self.transfers), "small": rows(&self.small),
            "cpu": cpu,
        })
        .to_string()
    }

    /// Puts the tables into the document, and the picture beside it.
    pub fn write_document(&self) -> Result<()> {
        page::write("benchmarks.md", "make bench", &self.markdown())?;
        let picture = Picture {
            title: "Speed on resident files, as a ratio to the filesystem below (1 = as fast)",
            caption: &self.machine(),
            contenders: &["tierfs", "mergerfs", "bindfs"],
            groups: self.resident.iter().map(|row| (row.name.clone(), row.contenders())).collect(),
            ratio_max: 1.2,
        };
        page::write_picture("benchmarks.svg", &picture)
    }
}
