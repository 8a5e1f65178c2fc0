//! Hundreds of recalls that clients wait for at once, and what other clients meet meanwhile who want nothing that is remote.

use std::fs;
use std::time::{Duration, Instant};

use tierfs::gateway::faults::{Effect, Rule};

use crate::ganesha::{Client, Export};
use crate::rig::*;

const PENDING: usize = 200;
/// The usual size of the files that are recalled.
const SMALL: usize = 5000;
const VERSIONS: [u32; 2] = [3, 4];
/// What other clients do, each over a connection of its own: see `pace` in `client.c`.
const WORK: [&str; 3] = ["read", "stat", "create"];

/// How it is set up.
struct Case {
    /// Options of the mount.
    options: String,
    /// `RPC_Ioq_ThrdMax`; `None`: the template's.
    threads: Option<String>,
    /// Bytes of each file that is recalled.
    size: usize,
    /// How long each answer of the endpoint takes.
    slow: Duration,
    /// How long other clients work.
    seconds: u32,
}

/// What one client did: how often, and how long it took, in microseconds.
#[derive(Clone, Copy)]
struct Figures {
    count: u64,
    median: u64,
    late: u64,
    longest: u64,
}

impl Figures {
    fn of(line: &str) -> Self {
        let numbers: Vec<u64> = line.split(' ').map(|number| number.parse().expect(line)).collect();
        let [count, median, late, longest] = numbers[..] else { panic!("not four figures: {line}") };
        Self { count, median, late, longest }
    }
}

/// All that others did, by version and work.
type Others = Vec<(u32, &'static str, Figures)>;

fn say(when: &str, others: &Others) {
    for (version, work, Figures { count, median, late, longest }) in others {
        println!(
            "{when}: NFSv{version} {work}: {count} times, median {median} µs, 99 % {late} µs, longest {longest} µs"
        );
    }
}

/// Six clients at once, each at one thing; `resident` is what they read and look at.
struct Paces(Vec<(u32, &'static str, Client)>);

impl Paces {
    fn new(export: &Export) -> Self {
        let each = VERSIONS.iter().flat_map(|version| WORK.map(|work| (*version, work)));
        Self(
            each.map(|(version, work)| {
                let mut client = export.client(version);
                if work == "read" {
                    client.does("open 0 0 /resident");
                }
                (version, work, client)
            })
            .collect(),
        )
    }

    fn start(&mut self, seconds: u32) {
        for (version, work, client) in &mut self.0 {
            let path = if *work == "create" { format!("made-{version}") } else { "resident".to_owned() };
            client.send(&format!("pace {work} {seconds} {CHUNK} /{path}"));
        }
    }

    fn end(&mut self) -> Others {
        let told = |(version, work, client): &mut (u32, &'static str, Client)| {
            let line = client.answer().unwrap_or_else(|why| panic!("NFSv{version} {work}: {why:?}"));
            (*version, *work, Figures::of(&line))
        };
        self.0.iter_mut().map(told).collect()
    }
}

/// The recalls, and what it takes to look at them when they are done.
struct Pending {
    export: Export,
    contents: Vec<Vec<u8>>,
    /// Who asked for them.
    many: Client,
    /// What it sent.
    storm: String,
    /// What it was answered: "ok FINE LATER OTHER".
    first: String,
    /// After how long.
    after: Duration,
    quiet: Others,
    busy: Others,
}

/// Others work alone; then while [`PENDING`] files are recalled.
fn pending(case: &Case) -> Option<Pending> {
    let options: &'static str = case.options.clone().leak();
    let setup = Setup { mount: vec!["-o", options], size: 1 << 30, ..Setup::default() };
    let threads = case.threads.iter().map(|n| ("RPC_Ioq_ThrdMax = 1024;", format!("RPC_Ioq_ThrdMax = {n};")));
    let export = Export::with(setup.build(), &threads.collect::<Vec<_>>())?;
    let rig = &export.rig;
    rig.quiet();
    let resident = rig.write("resident", CHUNK);
    let contents = (0..PENDING).map(|n| rig.write(&format!("slow{n}"), case.size)).collect();
    rig.write("large", 24 * CHUNK);
    rig.write("local", SMALL);
    rig.on(&["migrate", "-r"], &[""]);
    rig.same("resident", &resident);
    let mut paces = Paces::new(&export);
    paces.start(case.seconds);
    let quiet = paces.end();
    say("alone", &quiet);

    let slow = rig.faults.add(Rule::new(Effect::Delay(case.slow)).method("GET"));
    let mut many = export.client(3);
    for n in 0..PENDING {
        many.does(&format!("open {n} 0 /slow{n}"));
    }
    let into = rig.scratch("into");
    fs::create_dir(&into).unwrap();
    let storm = format!("storm {PENDING} {} {}", SMALL.min(case.size), into.display());
    many.send(&storm);
    assert_eq!(many.line(), "sent");
    let sent = Instant::now();
    paces.start(case.seconds);
    let answered = std::thread::spawn(move || {
        let first = many.line();
        (many, first, sent.elapsed())
    });
    let busy = paces.end();
    let (many, first, after) = answered.join().unwrap();
    say(&format!("beside {PENDING} pending recalls"), &busy);
    println!("who asked for them: {first} after {after:?}; {} requests were slow", rig.faults.hits(slow));
    Some(Pending { contents, many, storm, first, after, quiet, busy, export })
}

/// A recall holds a thread of Ganesha's for so long; here longer than anything else takes, so that nothing else is taken for it.
const DELAY: Duration = Duration::from_secs(3);
/// What an operation that waits for no recall may take, on a machine with much else to do. One that waits for a thread takes [`DELAY`].
const HANGS: Duration = Duration::from_secs(2);

#[test]
fn two_hundred_pending_recalls_hurt_nobody() {
    let case = Case {
        options: format!("delay_after={}s", DELAY.as_secs()),
        threads: None,
        size: SMALL,
        slow: 2 * DELAY,
        seconds: DELAY.as_secs() as u32 + 1,
    };
    let Some(Pending { export, contents, mut many, storm, first, after, busy, .. }) = pending(&case) else { return };
    let rig = &export.rig;
    assert_eq!(first, format!("ok 0 {PENDING} 0"), "all are to come back later");
    assert!(after >= DELAY, "they waited for {after:?} only: nothing was pending");
    for (version, work, figures) in &busy {
        let longest = Duration::from_micros(figures.longest);
        assert!(longest < HANGS, "NFSv{version} {work} of what is resident took {longest:?}: it waited for recalls");
    }
    // The recalls go on. A local reader waits, and an NFSv4 client is put off as well.
    let path = rig.mnt("local");
    let reader = std::thread::spawn(move || fs::read(path).unwrap());
    let mut four = export.client(4);
    four.does("open 0 0 /large");
    assert_eq!(four.reads(0, 0, 100).expect_err("DELAY").0, libc::EAGAIN);
    assert_same(&reader.join().unwrap(), &noise("local", SMALL), "a local reader waits");
    rig.faults.clear();
    // What was asked for arrives by itself.
    for n in 0..PENDING {
        wait_for("the recall", || rig.state(&format!("slow{n}")) == "dual");
    }
    let gets = rig.gets();
    many.send(&storm);
    assert_eq!(many.line(), "sent");
    assert_eq!(many.line(), format!("ok {PENDING} 0 0"));
    for (n, content) in contents.iter().enumerate() {
        let found = fs::read(rig.scratch("into").join(n.to_string())).unwrap();
        assert_same(&found, content, &format!("slow{n}"));
    }
    assert_eq!(rig.gets(), gets, "nothing is fetched twice");
    assert_same(&four.reads_patiently(0, 0, 24 * CHUNK), &noise("large", 24 * CHUNK), "large");
}

/// The figures of `docs/nfs-ganesha.md`: `TIERFS_NFS_OPTIONS` are the mount's, `TIERFS_NFS_THREADS` is `RPC_Ioq_ThrdMax`, `TIERFS_NFS_SIZE` the
/// bytes of each file.
#[test]
#[ignore = "prints figures: docs/nfs-ganesha.md"]
fn measured() {
    let given = |name: &str| std::env::var(name).ok();
    let case = Case {
        options: given("TIERFS_NFS_OPTIONS").unwrap_or_else(|| "delay_after=1s".into()),
        threads: given("TIERFS_NFS_THREADS"),
        size: given("TIERFS_NFS_SIZE").map_or(SMALL, |size| size.parse().expect("TIERFS_NFS_SIZE is a number")),
        slow: Duration::from_secs(6),
        seconds: 2,
    };
    let Some(Pending { quiet, busy, .. }) = pending(&case) else { return };
    println!("| NFSv | | alone | median | 99 % | longest | beside {PENDING} | median | 99 % | longest |");
    for ((version, work, alone), (.., beside)) in quiet.iter().zip(&busy) {
        let row = |it: &Figures| {
            let ms = |us: u64| us as f64 / 1000.0;
            format!("{} | {:.2} ms | {:.1} ms | {:.0} ms", it.count, ms(it.median), ms(it.late), ms(it.longest))
        };
        println!("| {version} | {work} | {} | {} |", row(alone), row(beside));
    }
}
