//! Pages that benchmarks write: figures in words, the machine they are of, the place between two markers, the picture beside it.

use std::path::{Path, PathBuf};

use super::plot::{self, Picture};
use super::rig::{self, Result, said};

const END: &str = "<!-- to here -->";

pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

pub fn least(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}

pub fn most(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NEG_INFINITY, f64::max)
}

/// Three digits that count.
pub fn short(value: f64) -> String {
    match value {
        value if value >= 10_000.0 => format!("{:.0}k", value / 1e3),
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

/// The machine, the day, and how long the run took.
pub fn machine(took_s: f64) -> String {
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let model = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = model
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("", |rest| rest.trim_start_matches([' ', '\t', ':']));
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default();
    let date = rig::run(rig::command("date").args(["-u", "+%Y-%m-%d"])).unwrap_or_default();
    let version = env!("CARGO_PKG_VERSION");
    format!(
        "{}, tierfs {version}, Linux {}, {cpus} CPUs ({model}), load {load} at the end, the run took {:.0} s.",
        date.trim(),
        kernel.trim(),
        took_s
    )
}

fn document(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name)
}

/// Replaces what stands between the markers of the document `name`; `command` is what the first marker says.
pub fn write(name: &str, command: &str, text: &str) -> Result<()> {
    let path = document(name);
    let begin = format!("<!-- {command} WRITE=1 writes from here -->");
    let old = std::fs::read_to_string(&path).map_err(said(name))?;
    let (before, rest) = old.split_once(&begin).ok_or_else(|| format!("{name} has lost its first marker"))?;
    let (_, after) = rest.split_once(END).ok_or_else(|| format!("{name} has lost its second marker"))?;
    std::fs::write(&path, format!("{before}{begin}\n\n{text}\n{END}{after}")).map_err(said(name))?;
    rig::progress(&format!("docs/{name} is written"));
    Ok(())
}

pub fn write_picture(name: &str, picture: &Picture<'_>) -> Result<()> {
    std::fs::write(document(name), plot::svg(picture)).map_err(said(name))?;
    rig::progress(&format!("docs/{name} is written"));
    Ok(())
}
