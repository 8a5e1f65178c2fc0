//! `tierfs tasks`: jobs over many files that go on without whoever asked for them.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::exit::{self, CliError, Exit};
use super::files::{each_reply, on_mounts};
use super::report::utc;
use super::{Global, output};
use crate::control::protocol::{Reply, Request, TaskAction, TaskInfo, TaskRate};
use crate::control::tasks::Rates;
use crate::pair::units::{exact_duration, format_rate, format_size};

/// Queue migrations, releases and recalls of many files: they go on when the command has returned, and after a crash or a restart.
///
/// Files are taken 500 at a time (`-o task_files=`), the task with the highest priority first, one after the other; a file that is queued for the same already is not queued twice. While the
/// store does not answer, tasks wait. `-o task_rate=` bounds how fast they go at which hour.
#[derive(Debug, Args)]
pub struct TasksCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Add(Add),
    List(List),
    /// Have tasks wait; what is in hand is finished first.
    Pause(Chosen),
    /// Have paused tasks go on.
    Resume(Chosen),
    /// End tasks; what was done stays.
    Cancel(Chosen),
    Priority(Priority),
    Rate(RateCommand),
}

/// Queue a task. It is on stable storage when the command returns.
#[derive(Debug, Args)]
#[command(after_help = exit::help(
    "  tierfs tasks add migrate -r /mnt/tiered/projects/2019\n  \
     tierfs tasks add recall -r --priority 10 /mnt/tiered/projects/next"))]
struct Add {
    #[arg(value_enum)]
    kind: Kind,
    /// Files or, with -r, directories on one tierfs mount.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// All regular files below the directories named.
    #[arg(short, long)]
    recursive: bool,
    /// Higher ones come first.
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    priority: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Archive, then release.
    Migrate,
    /// Copy only.
    Archive,
    Release,
    Recall,
}

/// Show the tasks in their order, with how far they are.
#[derive(Debug, Args)]
#[command(after_help = exit::help(
    "  tierfs tasks list\n  \
     tierfs tasks list --all --json /mnt/tiered | jq 'select(.failed > 0)'"))]
struct List {
    /// The mount [default: every tierfs mount].
    #[arg(value_name = "PATH")]
    path: Option<PathBuf>,
    /// Also those that are over.
    #[arg(long)]
    all: bool,
}

#[derive(Debug, Args)]
#[command(after_help = exit::help(
    "  tierfs tasks pause 7\n  \
     tierfs tasks cancel --on /mnt/tiered 7 8\n  \
     tierfs tasks resume --all"))]
struct Chosen {
    /// Numbers of tasks.
    #[arg(value_name = "ID", required_unless_present = "all")]
    ids: Vec<i64>,
    /// All that are not over.
    #[arg(long, conflicts_with = "ids")]
    all: bool,
    /// The mount; needed where there are several.
    #[arg(long, value_name = "PATH")]
    on: Option<PathBuf>,
}

/// Give a task another priority.
#[derive(Debug, Args)]
#[command(after_help = exit::help("  tierfs tasks priority 7 10"))]
struct Priority {
    #[arg(value_name = "ID")]
    id: i64,
    #[arg(value_name = "N", allow_negative_numbers = true)]
    priority: i64,
    /// The mount; needed where there are several.
    #[arg(long, value_name = "PATH")]
    on: Option<PathBuf>,
}

/// Show how fast tasks may go at which hour, or change it until the unmount.
///
/// What is given takes the place of all that `-o task_rate=` says, from the next second on.
#[derive(Debug, Args)]
#[command(after_help = exit::help(
    "  tierfs tasks rate\n  \
     tierfs tasks rate 20MiB\n  \
     tierfs tasks rate 50MiB+unlimited@22:00-06:00 --on /mnt/tiered"))]
struct RateCommand {
    /// RATE[@HH:MM-HH:MM], several with `+`: a size a second, unlimited or off; hours are UTC.
    #[arg(value_name = "RATES", value_parser = parse_rates)]
    rates: Option<String>,
    /// The mount; to change something, needed where there are several.
    #[arg(long, value_name = "PATH")]
    on: Option<PathBuf>,
}

fn parse_rates(text: &str) -> Result<String, String> {
    Rates::parse(text).map(|rates| rates.to_string())
}

impl TasksCommand {
    pub(super) fn run(&self, global: &Global) -> Result<Exit, CliError> {
        let one = |on: &Option<PathBuf>| on.clone().into_iter().collect::<Vec<_>>();
        match &self.action {
            Action::Add(add) => {
                let kind = match add.kind {
                    Kind::Migrate => "migrate",
                    Kind::Archive => "archive",
                    Kind::Release => "release",
                    Kind::Recall => "recall",
                };
                ask(global, &add.paths, true, &|paths| TaskAction::Add {
                    kind: kind.into(),
                    paths,
                    recursive: add.recursive,
                    priority: add.priority,
                })
            }
            Action::List(list) => {
                let paths: Vec<_> = list.path.clone().into_iter().collect();
                ask(global, &paths, false, &|_| TaskAction::List { all: list.all })
            }
            Action::Pause(chosen) => {
                ask(global, &one(&chosen.on), !chosen.all, &|_| TaskAction::Pause { ids: chosen.ids.clone() })
            }
            Action::Resume(chosen) => {
                ask(global, &one(&chosen.on), !chosen.all, &|_| TaskAction::Resume { ids: chosen.ids.clone() })
            }
            Action::Cancel(chosen) => {
                ask(global, &one(&chosen.on), !chosen.all, &|_| TaskAction::Cancel { ids: chosen.ids.clone() })
            }
            Action::Priority(set) => {
                let (id, priority) = (set.id, set.priority);
                ask(global, &one(&set.on), true, &|_| TaskAction::Priority { id, priority })
            }
            Action::Rate(rate) => {
                let set = rate.rates.clone();
                ask(global, &one(&rate.on), set.is_some(), &|_| TaskAction::Rate { set: set.clone() })
            }
        }
    }
}

/// Asks the mounts, and shows the tasks that they answer with. `single`: numbers mean something on one mount only.
fn ask(
    global: &Global,
    paths: &[PathBuf],
    single: bool,
    action: &dyn Fn(Vec<crate::control::protocol::WirePath>) -> TaskAction,
) -> Result<Exit, CliError> {
    let groups = on_mounts(paths)?;
    if single && groups.len() > 1 {
        return Err(CliError::Usage("there are several mounts: name one (for `add`, paths on one)".into()));
    }
    let (mut rows, mut rates) = (Vec::new(), Vec::new());
    each_reply(groups, &|paths| Request::Tasks { action: action(paths) }, &mut |reply| match reply {
        reply @ Reply::Task(_) if global.json => output::json(&reply),
        Reply::Task(task) => rows.push(row(&task)),
        reply @ Reply::TaskRate(_) if global.json => output::json(&reply),
        Reply::TaskRate(rate) => rates.push(rate),
        _ => {}
    })?;
    for TaskRate { rates, now } in &rates {
        let now = match now {
            None => "unlimited".into(),
            Some(0) => "nothing begins".into(),
            Some(rate) => format_rate(*rate, 1.0),
        };
        output::line(&format!("{rates} (now: {now})"));
    }
    if !global.json && rates.is_empty() {
        output::table(&["ID", "KIND", "STATE", "PRIORITY", "FILES", "SIZE", "FAILED", "SINCE", "ETA", "PATHS"], &rows);
    }
    Ok(Exit::Done)
}

fn row(task: &TaskInfo) -> Vec<String> {
    let more = if task.walked { "" } else { "+" };
    let mut paths: Vec<_> = task.paths.iter().take(3).map(|path| output::shown(&path.to_path())).collect();
    if task.paths.len() > 3 {
        paths.push(format!("and {} more", task.paths.len() - 3));
    }
    let mut paths = paths.join(" ");
    if let Some(problem) = &task.problem {
        paths += &format!(" ({})", output::plain(problem));
    }
    vec![
        task.id.to_string(),
        task.kind.clone(),
        task.state.clone(),
        task.priority.to_string(),
        task.progress(),
        format!("{}/{}{more}", format_size(task.done_bytes), format_size(task.bytes)),
        task.failed.to_string(),
        utc(task.created),
        task.eta.map_or_else(|| "-".into(), exact_duration),
        paths,
    ]
}
