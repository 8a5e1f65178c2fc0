//! Why a file is, or is not, tiered: every rule that speaks of it, what keeps each off it, and who had it recalled last.

use std::path::Path;

use super::choose::{Picked, Recalled};
use super::rule::Rule;
use super::run::Manager;
use crate::catalog::index::{HEAT_HALF_LIFE_S, now_s};
use crate::catalog::walk::{Found, resolve};
use crate::control::protocol::{WhyFile, WhyRule, WirePath};
use crate::engine::{Engine, activity_of};
use crate::ports::FileKind;
use crate::types::{FileState, Inode};

impl Manager {
    /// All that speaks for and against a file. Blocks.
    pub(super) fn why(&self, path: &Path) -> Result<WhyFile, String> {
        self.index.take();
        let found = resolve(&*self.lower, path).map_err(|error| error.source.to_string())?;
        if found.attr.kind != FileKind::Regular {
            return Err("only regular files are tiered".into());
        }
        let (state, pinned) = self.state(&found.node).map_or((FileState::Damaged, false), |known| known);
        let known = if self.index.is_empty() { None } else { self.known(&found)? };
        let (picked, recalled) = match known {
            Some((picked, recalled)) => (picked, Some(recalled)),
            None => (Picked::unknown(&found), None),
        };
        let policies = self.policies();
        let rules = policies.rules.iter().map(|rule| self.judge(rule, &found, &picked, state, pinned)).collect();
        let (accesses, heat, accessed) = picked.uses();
        let heat = heat.map_or(0.0, |heat| (heat - now_s() as f64 / HEAT_HALF_LIFE_S).exp2());
        Ok(WhyFile {
            path: WirePath::from_path(path),
            state,
            indexed: recalled.is_some(),
            accesses,
            heat,
            accessed,
            recalled: recalled.as_ref().and_then(|recalled| recalled.at),
            recalled_by: recalled.and_then(|recalled| recalled.by),
            against: self.against(&found.node, state, pinned),
            rules,
        })
    }

    fn known(&self, found: &Found) -> Result<Option<(Picked, Recalled)>, String> {
        self.picked(&found.node, &found.path).map_err(|error| error.to_string())
    }

    fn judge(&self, rule: &Rule, found: &Found, picked: &Picked, state: FileState, pinned: bool) -> WhyRule {
        let now = now_s();
        let xattr = |name: &str| self.lower.xattr(&found.node, name.as_ref()).ok();
        let subject = picked.subject(&found.attr, &xattr);
        let conditions: Vec<(String, bool)> =
            rule.conditions.iter().map(|condition| (condition.to_string(), condition.holds(&subject, now))).collect();
        let mut against = rule.unfit(&found.attr, state, pinned);
        if against.is_none() && self.engine.is_retained(&found.node) {
            against = Some("it is retention-locked".into());
        }
        if against.is_none() && self.is_set(rule, &found.node) {
            against = Some("it says so itself already".into());
        }
        if against.is_none() && !rule.enabled {
            against = Some("the policy is switched off".into());
        }
        let applies = against.is_none() && conditions.iter().all(|(_, holds)| *holds);
        let last = self.last_run(&rule.name).and_then(|run| run.ended);
        WhyRule { name: rule.name.clone(), action: rule.action_text(), applies, against, conditions, last_run: last }
    }

    /// What keeps every rule off the file.
    fn against(&self, node: &Inode, state: FileState, pinned: bool) -> Vec<String> {
        let mut against = Vec::new();
        if state == FileState::Damaged {
            against.push("its record cannot be read, or contradicts it: `tierfs check` tells more".into());
        }
        if self.engine.is_retained(node) {
            against.push("it is retention-locked: neither archived, released nor recalled".into());
        }
        if pinned {
            against.push("it is pinned: never released".into());
        }
        if let Some(cell) = self.engine.cells.live(node.id) {
            let inner = cell.lock();
            if let Some(activity) = activity_of(&inner) {
                against.push(format!("it is {activity} just now"));
            }
            let handles = inner.machine.handles();
            if handles > 0 {
                against.push(format!("it is open ({handles} handles): not released while it is"));
            }
        }
        against.extend(pair_problem(&self.engine));
        against
    }
}

fn pair_problem(engine: &Engine) -> Option<String> {
    match engine.pair_name() {
        None => Some("the mount has no pair: nothing is archived".into()),
        Some(_) => engine.pair_problem().map(|problem| format!("the pair cannot be used at present: {problem}")),
    }
}
