//! The page of `tierfs report --html`: tables, and a picture in SVG of which ages and sizes hold how much in which state.

use std::fmt::Write;

use super::{AGES, Found, SIZES, Sum};
use crate::control::protocol::FileState;
use crate::pair::units::format_size;

/// Of a cell, and of what is left and above of the cells, pixels.
const WIDTH: f64 = 120.0;
const HEIGHT: f64 = 74.0;
const LEFT: f64 = 130.0;
const ABOVE: f64 = 34.0;
/// Of the largest circle.
const RADIUS: f64 = 33.0;
/// Of the smallest that is drawn: what is there can be seen.
const RADIUS_LEAST: f64 = 1.5;

const STYLE: &str = "body{font:14px/1.4 system-ui,sans-serif;margin:2em auto;max-width:70em;padding:0 1em;color:#222;background:#fff}\
h1{font-size:1.4em}h2{font-size:1.1em;margin-top:2em}table{border-collapse:collapse}td,th{padding:.2em .9em .2em 0;text-align:right}\
td:first-child,th:first-child{text-align:left}th{border-bottom:1px solid #bbb;font-weight:600}svg{max-width:100%;height:auto}\
svg text{font:12px system-ui,sans-serif;fill:#333}.key{display:inline-block;width:.9em;height:.9em;margin:0 .3em 0 1em;border-radius:2px}";

fn colour(state: FileState) -> &'static str {
    match state {
        FileState::Resident => "#4e79a7",
        FileState::Dual => "#59a14f",
        FileState::Releasing => "#edc948",
        FileState::Stub => "#b9b2a8",
        FileState::Partial => "#f28e2b",
        FileState::Patched => "#af7aa1",
        FileState::Damaged => "#e15759",
    }
}

/// Text within HTML.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The whole page; it loads nothing.
pub(super) fn page(found: &Found) -> String {
    let mut page = String::new();
    let place = escaped(&found.place);
    let all = found.sum(|_, _, _| true);
    let _ = write!(
        page,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{place}</title><style>{STYLE}</style></head><body>\n<h1>{place}</h1>\n<p>{}: {} files, {}; {} here, {} remote only.</p>\n",
        found.at,
        all.files,
        format_size(all.bytes),
        format_size(all.online),
        format_size(all.offline)
    );
    page.push_str(
        "<h2>By age, size and state</h2>\n<p>A circle's area is the bytes of the files; its colours are their states.",
    );
    for (state, _) in found.states() {
        let _ = write!(page, " <span class=\"key\" style=\"background:{}\"></span>{state}", colour(state));
    }
    page.push_str("</p>\n");
    page.push_str(&picture(found));
    table(&mut page, "By state", "State", found.states().map(|(state, sum)| (state.to_string(), sum)));
    let ages = AGES.iter().enumerate().map(|(at, (_, name))| ((*name).to_owned(), found.sum(|age, _, _| age == at)));
    table(&mut page, "By last use", "Last used", ages);
    table(&mut page, "Users with most", "User", found.users.iter().cloned());
    table(&mut page, "Directories with most", "Directory", found.directories.iter().cloned());
    page.push_str("</body></html>");
    page
}

fn table(page: &mut String, title: &str, first: &str, rows: impl Iterator<Item = (String, Sum)>) {
    let _ = write!(
        page,
        "<h2>{title}</h2>\n<table><tr><th>{first}</th><th>Files</th><th>Size</th><th>Online</th><th>Offline</th></tr>\n"
    );
    for (name, sum) in rows {
        let _ = writeln!(
            page,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escaped(&name),
            sum.files,
            format_size(sum.bytes),
            format_size(sum.online),
            format_size(sum.offline)
        );
    }
    page.push_str("</table>\n");
}

fn picture(found: &Found) -> String {
    let (width, height) = (LEFT + WIDTH * AGES.len() as f64, ABOVE + HEIGHT * SIZES.len() as f64);
    let mut svg = format!(
        "<svg viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\" aria-label=\"bytes by age, size and state\">\n"
    );
    for (at, (_, name)) in AGES.iter().enumerate() {
        let x = LEFT + WIDTH * (at as f64 + 0.5);
        let _ = writeln!(svg, "<text x=\"{x}\" y=\"16\" text-anchor=\"middle\">{name}</text>");
    }
    // The largest files on top.
    let row = |size: usize| ABOVE + HEIGHT * ((SIZES.len() - 1 - size) as f64 + 0.5);
    for (at, (_, name)) in SIZES.iter().enumerate() {
        let (y, below) = (row(at) + 4.0, row(at) + HEIGHT / 2.0);
        let _ = writeln!(svg, "<text x=\"{}\" y=\"{y}\" text-anchor=\"end\">{name}</text>", LEFT - 10.0);
        let _ = writeln!(svg, "<line x1=\"{LEFT}\" x2=\"{width}\" y1=\"{below}\" y2=\"{below}\" stroke=\"#eee\"/>");
    }
    let sum_of = |age: usize, size: usize| found.sum(|a, s, _| (a, s) == (age, size));
    let cells = || (0..AGES.len()).flat_map(|age| (0..SIZES.len()).map(move |size| (age, size)));
    let largest = cells().map(|(age, size)| sum_of(age, size).bytes).max().unwrap_or(0).max(1);
    for (age, size) in cells() {
        let all = sum_of(age, size);
        if all.bytes == 0 {
            continue;
        }
        let radius = ((all.bytes as f64 / largest as f64).sqrt() * RADIUS).max(RADIUS_LEAST);
        let states: Vec<(FileState, Sum)> = FileState::ALL
            .into_iter()
            .filter_map(|state| Some((state, *found.cells.get(&(age, size, state))?)))
            .filter(|(_, sum)| sum.bytes > 0)
            .collect();
        let told: Vec<_> = states
            .iter()
            .map(|(state, sum)| format!("{state}: {} files, {}", sum.files, format_size(sum.bytes)))
            .collect();
        let (x, y) = (LEFT + WIDTH * (age as f64 + 0.5), row(size));
        let _ = write!(svg, "<g><title>{}, {}: {}</title>", SIZES[size].1, AGES[age].1, told.join("; "));
        pie(&mut svg, (x, y), radius, &states, all.bytes);
        let _ =
            writeln!(svg, "<text x=\"{}\" y=\"{}\">{}</text></g>", x + radius + 3.0, y + 4.0, format_size(all.bytes));
    }
    svg.push_str("</svg>\n");
    svg
}

/// A circle in slices; of one state, a plain one.
fn pie(svg: &mut String, (x, y): (f64, f64), radius: f64, states: &[(FileState, Sum)], all: u64) {
    if let [(state, _)] = states {
        let _ = write!(svg, "<circle cx=\"{x}\" cy=\"{y}\" r=\"{radius:.1}\" fill=\"{}\"/>", colour(*state));
        return;
    }
    let point = |part: f64| {
        let angle = std::f64::consts::TAU * part;
        (x + radius * angle.sin(), y - radius * angle.cos())
    };
    let mut from = 0.0;
    for (state, sum) in states {
        let part = sum.bytes as f64 / all as f64;
        let (a, b) = (point(from), point(from + part));
        let large = u8::from(part > 0.5);
        let _ = write!(
            svg,
            "<path d=\"M{x:.1} {y:.1}L{:.2} {:.2}A{radius:.1} {radius:.1} 0 {large} 1 {:.2} {:.2}Z\" fill=\"{}\"/>",
            a.0,
            a.1,
            b.0,
            b.1,
            colour(*state)
        );
        from += part;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_shows_what_is_there_and_no_markup_of_others() {
        let mut found = Found { place: "/mnt/<b>&\"".into(), ..Found::default() };
        let sum = |bytes: u64| Sum { files: 2, bytes, online: bytes, offline: 0 };
        found.cells.insert((0, 6, FileState::Resident), sum(3 << 30));
        found.cells.insert((0, 6, FileState::Stub), sum(1 << 30));
        found.cells.insert((6, 0, FileState::Dual), sum(1));
        found.directories.push(("<script>".into(), sum(5)));
        let page = page(&found);
        assert!(!page.contains("<script>") && page.contains("/mnt/&lt;b&gt;&amp;&quot;"), "{page}");
        assert_eq!((page.matches("<path").count(), page.matches("<circle").count()), (2, 1), "{page}");
        assert!(
            page.contains("over 1 GiB, under a day: resident: 2 files, 3.00 GiB; stub: 2 files, 1.00 GiB"),
            "{page}"
        );
        assert!(!page.contains("http"), "it loads nothing");
    }
}
