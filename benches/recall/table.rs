//! What was measured, as a table, as JSON, and as a picture. Computed from the samples of this run alone.

use std::fmt::Write;

use serde_json::json;

use super::page::{least, median, most, short};
use super::plot::Picture;
use super::sides::{SIDES, Side};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    Less,
    More,
}

pub struct Row {
    name: String,
    unit: &'static str,
    better: Better,
    latency_ms: u64,
    /// A value a round, by [`SIDES`]; none where there is nothing to measure.
    pub samples: [Vec<f64>; SIDES.len()],
}

impl Row {
    pub fn new(name: &str, unit: &'static str, better: Better, latency_ms: u64) -> Self {
        Self { name: name.to_owned(), unit, better, latency_ms, samples: Default::default() }
    }

    /// Whether anybody did it in a round that counts.
    pub fn is_measured(&self) -> bool {
        self.samples.iter().any(|samples| !samples.is_empty())
    }

    fn of(&self, side: Side) -> &[f64] {
        &self.samples[side as usize]
    }

    /// How many times as well as `other` this side does, round by round; the median.
    fn ratio(&self, side: Side, other: Side) -> Option<f64> {
        let each = self.of(side).iter().zip(self.of(other)).map(|(ours, theirs)| match self.better {
            Better::Less => theirs / ours,
            Better::More => ours / theirs,
        });
        let each: Vec<_> = each.collect();
        (!each.is_empty()).then(|| median(&each))
    }

    /// One line for who watches.
    pub fn line(&self) -> String {
        let each = SIDES.map(|side| format!("{} {}", side.name(), cell(self.of(side))));
        format!("{} ({}, {} ms): {}", self.name, self.unit, self.latency_ms, each.join("; "))
    }
}

fn cell(values: &[f64]) -> String {
    match values {
        [] => "–".to_owned(),
        [one] => short(*one),
        many => format!("{} ({}–{})", short(median(many)), short(least(many)), short(most(many))),
    }
}

pub fn markdown(rows: &[Row], about: &str) -> String {
    let mut text = format!("{about}\n");
    let mut latency = None;
    let times = |ratio: Option<f64>| ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.2}"));
    for row in rows {
        // Writing into a string cannot fail.
        if latency != Some(row.latency_ms) {
            latency = Some(row.latency_ms);
            let _ = writeln!(
                text,
                "\n### {} ms added to each request\n\n| | unit | bare GET | tierfs | rclone mount | s3fs | of bare GET | times rclone |\n\
                 |---|---|---|---|---|---|---|---|",
                row.latency_ms
            );
        }
        let cells = SIDES.map(|side| cell(row.of(side)));
        let _ = writeln!(
            text,
            "| {} | {} | {} | **{}** | **{}** |",
            row.name,
            row.unit,
            cells.join(" | "),
            times(row.ratio(Side::Tierfs, Side::Bare)),
            times(row.ratio(Side::Tierfs, Side::Rclone)),
        );
    }
    text + "\n![the table, drawn](recall.svg)\n"
}

pub fn json(rows: &[Row], about: &str) -> String {
    let rows = rows.iter().map(|row| {
        let samples: serde_json::Map<_, _> =
            SIDES.iter().map(|side| (side.name().to_owned(), json!(row.of(*side)))).collect();
        json!({
            "name": row.name, "unit": row.unit, "latency_ms": row.latency_ms, "less_is_better": row.better == Better::Less,
            "samples": samples, "tierfs_of_bare": row.ratio(Side::Tierfs, Side::Bare),
            "tierfs_times_rclone": row.ratio(Side::Tierfs, Side::Rclone),
        })
    });
    json!({ "machine": about, "rows": rows.collect::<Vec<_>>() }).to_string()
}

/// Rows that bare GETs have a figure for.
pub fn picture<'a>(rows: &[Row], about: &'a str) -> Picture<'a> {
    let contenders = [Side::Tierfs, Side::Rclone, Side::S3fs];
    let groups = rows.iter().filter(|row| !row.of(Side::Bare).is_empty()).map(|row| {
        let name = format!("{}, {} ms", row.name, row.latency_ms);
        (name, contenders.map(|side| (side.name(), row.ratio(side, Side::Bare))).to_vec())
    });
    Picture {
        title: "Reading what is remote, as a ratio to a bare loop of GETs (1 = as fast)",
        caption: about,
        contenders: &["tierfs", "rclone mount", "s3fs"],
        groups: groups.collect(),
        ratio_max: 1.2,
    }
}
