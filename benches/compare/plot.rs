//! The table of resident files as a picture: one bar a contender, one group a row, the length the ratio to native.

use std::fmt::Write;

use super::report::Row;

const LABEL_WIDTH: usize = 270;
const SCALE: f64 = 480.0;
const BAR: usize = 9;
const GROUP_GAP: usize = 9;
const TOP: usize = 64;
/// Longer bars are cut here, and say so by their figure.
const RATIO_MAX: f64 = 1.2;
const COLOURS: [(&str, &str); 3] = [("tierfs", "#1f6f8b"), ("mergerfs", "#c9a227"), ("bindfs", "#b0b0b0")];

fn colour(name: &str) -> &'static str {
    COLOURS.iter().find(|(known, _)| *known == name).map_or("#000000", |(_, colour)| colour)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

/// The picture, with `caption` below its title.
pub fn svg(rows: &[Row], caption: &str) -> String {
    let groups: Vec<_> = rows.iter().map(|row| (row.name.as_str(), row.contenders())).collect();
    let height = TOP + groups.iter().map(|(_, bars)| bars.len() * BAR + GROUP_GAP).sum::<usize>() + 24;
    let width = LABEL_WIDTH + (SCALE * RATIO_MAX) as usize + 60;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n\
         <text x=\"10\" y=\"18\" font-size=\"14\">Speed on resident files, as a ratio to the filesystem below (1 = as fast)</text>\n\
         <text x=\"10\" y=\"34\" fill=\"#555555\" font-size=\"10\">{}</text>\n",
        escape(caption)
    );
    // Writing into a string cannot fail.
    for (n, (name, colour)) in COLOURS.iter().enumerate() {
        let x = LABEL_WIDTH + n * 90;
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"44\" width=\"10\" height=\"10\" fill=\"{colour}\"/><text x=\"{}\" y=\"53\">{name}</text>",
            x + 14
        );
    }
    for tick in 0..=6 {
        let ratio = f64::from(tick) * 0.2;
        let x = LABEL_WIDTH as f64 + ratio * SCALE;
        let dark = if tick == 5 { "#333333" } else { "#dddddd" };
        let _ = writeln!(
            svg,
            "<line x1=\"{x:.0}\" y1=\"{TOP}\" x2=\"{x:.0}\" y2=\"{}\" stroke=\"{dark}\"/>\
             <text x=\"{x:.0}\" y=\"{}\" text-anchor=\"middle\" fill=\"#555555\">{ratio:.1}</text>",
            height - 20,
            height - 8
        );
    }
    let mut y = TOP + 4;
    for (name, bars) in groups {
        let middle = y + bars.len() * BAR / 2 + 4;
        let _ =
            writeln!(svg, "<text x=\"{}\" y=\"{middle}\" text-anchor=\"end\">{}</text>", LABEL_WIDTH - 8, escape(name));
        for (contender, ratio) in bars {
            let length = ratio.unwrap_or(0.0).min(RATIO_MAX) * SCALE;
            let said = ratio.map_or("fails".to_owned(), |ratio| format!("{ratio:.2}"));
            let _ = writeln!(
                svg,
                "<rect x=\"{LABEL_WIDTH}\" y=\"{y}\" width=\"{length:.1}\" height=\"{}\" fill=\"{}\"/>\
                 <text x=\"{:.1}\" y=\"{}\" font-size=\"8\" fill=\"#333333\">{said}</text>",
                BAR - 1,
                colour(contender),
                LABEL_WIDTH as f64 + length + 3.0,
                y + BAR - 2
            );
            y += BAR;
        }
        y += GROUP_GAP;
    }
    svg + "</svg>\n"
}
