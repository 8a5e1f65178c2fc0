//! A table as a picture: one bar a contender, one group a row, the length a ratio.

use std::fmt::Write;

const LABEL_WIDTH: usize = 270;
const WIDTH: f64 = 576.0;
const BAR: usize = 9;
const GROUP_GAP: usize = 9;
const TOP: usize = 64;
const COLOURS: [&str; 3] = ["#1f6f8b", "#c9a227", "#b0b0b0"];

/// A row: its name, and each contender's ratio; nothing where it fails.
pub type Group = (String, Vec<(&'static str, Option<f64>)>);

pub struct Picture<'a> {
    pub title: &'a str,
    /// Below the title.
    pub caption: &'a str,
    /// In the order of their colours.
    pub contenders: &'a [&'static str],
    pub groups: Vec<Group>,
    /// Longer bars are cut here, and say so by their figure.
    pub ratio_max: f64,
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

pub fn svg(picture: &Picture<'_>) -> String {
    let Picture { title, caption, contenders, groups, ratio_max } = picture;
    let colour = |name: &str| {
        let at = contenders.iter().position(|known| *known == name);
        at.and_then(|at| COLOURS.get(at)).unwrap_or(&"#000000")
    };
    let scale = WIDTH / ratio_max;
    let height = TOP + groups.iter().map(|(_, bars)| bars.len() * BAR + GROUP_GAP).sum::<usize>() + 24;
    let width = LABEL_WIDTH + WIDTH as usize + 60;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n\
         <text x=\"10\" y=\"18\" font-size=\"14\">{}</text>\n\
         <text x=\"10\" y=\"34\" fill=\"#555555\" font-size=\"10\">{}</text>\n",
        escape(title),
        escape(caption)
    );
    // Writing into a string cannot fail.
    for (n, name) in contenders.iter().enumerate() {
        let colour = colour(name);
        let x = LABEL_WIDTH + n * 90;
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"44\" width=\"10\" height=\"10\" fill=\"{colour}\"/><text x=\"{}\" y=\"53\">{name}</text>",
            x + 14
        );
    }
    for tick in 0..=(ratio_max * 5.0) as u32 {
        let ratio = f64::from(tick) * 0.2;
        let x = LABEL_WIDTH as f64 + ratio * scale;
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
            let length = ratio.unwrap_or(0.0).min(*ratio_max) * scale;
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
