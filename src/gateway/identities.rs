//! Who may use the gateway, and as whom: a file of access keys, each with the user of this machine that it stands for.

use std::collections::HashMap;
use std::fmt;
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::ports::User;
use crate::types::PairName;

/// Mode bits that what S3 users make does not get, unless their entry says otherwise.
const UMASK: u32 = 0o022;
/// Longest file accepted, bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

/// A file of identities that cannot be used. Each message is one line and says what to do; none holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("cannot read the identities {path}: {source}")]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{path} may be read or written by others than its owner (mode {mode:o}): `chmod 600` and `chown root` it")]
    Open { path: PathBuf, mode: u32 },
    #[error("{path}: {reason}")]
    Bad { path: PathBuf, reason: String },
}

/// What an identity is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// An ordinary user of S3.
    User,
    /// The tiering service of the cluster at the other end of a pair, which alone may make the attribute calls.
    Peer(PairName),
}

/// One who may use the gateway.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    access_key: String,
    secret_key: String,
    pub user: User,
    pub role: Role,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { access_key, user, role, .. } = self;
        f.debug_struct("Identity")
            .field("access_key", access_key)
            .field("user", user)
            .field("role", role)
            .finish_non_exhaustive()
    }
}

impl Identity {
    pub(super) fn secret_key(&self) -> &str {
        &self.secret_key
    }
}

/// All who may.
#[derive(Clone, Debug, Default)]
pub struct Identities(HashMap<String, Identity>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    identity: Vec<Entry>,
}

#[derive(Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RoleName {
    #[default]
    User,
    Peer,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    access_key: String,
    secret_key: String,
    #[serde(default)]
    role: RoleName,
    pair: Option<PairName>,
    user: Option<String>,
    uid: Option<u32>,
    gid: Option<u32>,
    groups: Option<Vec<u32>>,
    /// Octal, as umask(1) has it.
    umask: Option<String>,
}

impl Identities {
    /// Reads the file, which only its owner, root or whoever runs this, may be able to read.
    pub fn read(path: &Path) -> Result<Self, IdentityError> {
        let unreadable = |source| IdentityError::Unreadable { path: path.into(), source };
        // Without waiting: it may be a fifo.
        let options = std::fs::File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).clone();
        let file = options.open(path).map_err(unreadable)?;
        let meta = file.metadata().map_err(unreadable)?;
        let trusted = meta.uid() == 0 || meta.uid() == rustix::process::geteuid().as_raw();
        if !meta.is_file() || !trusted || meta.mode() & 0o077 != 0 {
            return Err(IdentityError::Open { path: path.into(), mode: meta.mode() & 0o7777 });
        }
        let mut text = String::new();
        file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(unreadable)?;
        let system = |name: &str| std::fs::read_to_string(name).unwrap_or_default();
        let parsed = Self::parse(&text, &system(PASSWD), &system(GROUP));
        parsed.map_err(|reason| IdentityError::Bad { path: path.into(), reason })
    }

    pub(super) fn get(&self, access_key: &str) -> Option<&Identity> {
        self.0.get(access_key)
    }

    fn parse(text: &str, passwd: &str, group: &str) -> Result<Self, String> {
        // The parser's own message shows the line, which may be that of a secret.
        let place = |span: Option<std::ops::Range<usize>>| {
            text[..span.map_or(0, |span| span.start.min(text.len()))].lines().count().max(1)
        };
        let file: File = toml::from_str(text)
            .map_err(|error| format!("about line {}: {}", place(error.span()), error.message().replace('\n', " ")))?;
        let mut all = HashMap::new();
        for entry in file.identity {
            let key = entry.access_key.clone();
            let bad = |reason: &str| format!("identity {key:?}: {reason}");
            let fits = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic());
            if !fits(&key) || key.contains('/') {
                return Err(bad("an access key is made of letters, digits and signs but /"));
            }
            if !fits(&entry.secret_key) {
                return Err(bad("its secret_key is empty, or has blanks or strange characters"));
            }
            let role = match (entry.role, &entry.pair) {
                (RoleName::User, None) => Role::User,
                (RoleName::Peer, Some(pair)) => Role::Peer(pair.clone()),
                (RoleName::User, Some(_)) => return Err(bad("only role = \"peer\" has a pair")),
                (RoleName::Peer, None) => return Err(bad("role = \"peer\" needs pair = \"NAME\"")),
            };
            let user = user_of(&entry, passwd, group).map_err(|reason| bad(&reason))?;
            let Entry { access_key, secret_key, .. } = entry;
            if all.insert(key.clone(), Identity { access_key, secret_key, user, role }).is_some() {
                return Err(bad("there are two of that access key"));
            }
        }
        if all.is_empty() {
            return Err("it has no [[identity]]: nobody could use the gateway".into());
        }
        Ok(Self(all))
    }
}

/// The user that an entry stands for. A peer is root unless it says otherwise.
fn user_of(entry: &Entry, passwd: &str, group: &str) -> Result<User, String> {
    let umask = match &entry.umask {
        None => UMASK,
        Some(text) => {
            u32::from_str_radix(text, 8).ok().filter(|umask| *umask <= 0o777).ok_or("umask is octal, like \"027\"")?
        }
    };
    let found = match &entry.user {
        Some(_) if entry.uid.is_some() => return Err("give user or uid, not both".into()),
        Some(name) => Some(account(name, passwd, group).ok_or_else(|| {
            format!("there is no user {name:?} in {PASSWD}: give uid and gid where users come from elsewhere")
        })?),
        None => None,
    };
    let (uid, gid, groups) = match (found, entry.uid, entry.gid) {
        (Some((uid, gid, groups)), ..) => (uid, entry.gid.unwrap_or(gid), groups),
        (None, Some(uid), Some(gid)) => (uid, gid, Vec::new()),
        (None, None, None) if entry.role == RoleName::Peer => (0, 0, Vec::new()),
        _ => return Err("say who it is: user = \"NAME\", or uid and gid".into()),
    };
    if [uid, gid].contains(&u32::MAX) {
        return Err("4294967295 is nobody's number".into());
    }
    Ok(User { uid, gid, groups: entry.groups.clone().unwrap_or(groups), umask })
}

/// Number, group and further groups of a local account.
fn account(name: &str, passwd: &str, group: &str) -> Option<(u32, u32, Vec<u32>)> {
    let fields = |line: &str| line.split(':').map(str::to_owned).collect::<Vec<_>>();
    let own = passwd.lines().map(fields).find(|fields| fields[0] == name)?;
    let (uid, gid) = (own.get(2)?.parse().ok()?, own.get(3)?.parse().ok()?);
    let member = |fields: &Vec<String>| fields.get(3).is_some_and(|members| members.split(',').any(|m| m == name));
    let groups = group.lines().map(fields).filter(member).filter_map(|fields| fields.get(2)?.parse().ok());
    Some((uid, gid, groups.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const USERS: &str = "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000:A:/:/bin/sh\n";
    const GROUPS: &str = "root:x:0:\nstaff:x:50:bob,alice\nalice:x:1000:\n";

    fn parse(text: &str) -> Result<Identities, String> {
        Identities::parse(text, USERS, GROUPS)
    }

    #[test]
    fn who_is_who() {
        let text = "[[identity]]\naccess_key = \"a\"\nsecret_key = \"s\"\nuser = \"alice\"\n\
                    [[identity]]\naccess_key = \"b\"\nsecret_key = \"t\"\nuid = 7\ngid = 8\ngroups = [9]\numask = \"077\"\n\
                    [[identity]]\naccess_key = \"p\"\nsecret_key = \"u\"\nrole = \"peer\"\npair = \"cold\"\n";
        let all = parse(text).unwrap();
        let alice = all.get("a").unwrap();
        assert_eq!(alice.user, User { uid: 1000, gid: 1000, groups: vec![50], umask: 0o022 });
        assert_eq!((alice.role.clone(), alice.secret_key()), (Role::User, "s"));
        assert_eq!(all.get("b").unwrap().user, User { uid: 7, gid: 8, groups: vec![9], umask: 0o077 });
        let peer = all.get("p").unwrap();
        assert_eq!((peer.user.uid, peer.role.clone()), (0, Role::Peer("cold".parse().unwrap())));
        assert!(all.get("c").is_none());
        assert!(!format!("{all:?}").contains("secret"));
    }

    #[test]
    fn mistakes_are_named_and_secrets_are_not() {
        let entry = |more: &str| format!("[[identity]]\naccess_key = \"a\"\nsecret_key = \"hush\"\n{more}");
        for (text, piece) in [
            (String::new(), "no [[identity]]"),
            (entry(""), "say who it is"),
            (entry("uid = 1"), "say who it is"),
            (entry("user = \"eve\""), "no user \"eve\""),
            (entry("user = \"alice\"\nuid = 1"), "not both"),
            (entry("uid = 1\ngid = 1\nrole = \"peer\""), "needs pair"),
            (entry("uid = 1\ngid = 1\npair = \"cold\""), "only role"),
            (entry("uid = 4294967295\ngid = 1"), "nobody's"),
            (entry("uid = 1\ngid = 1\numask = \"9\""), "octal"),
            (entry("uid = 1\ngid = 1\nfoo = 1"), "foo"),
            (format!("{}{}", entry("uid = 1\ngid = 1\n"), entry("uid = 1\ngid = 1\n")), "two of that"),
            ("[[identity]]\naccess_key = \"a b\"\nsecret_key = \"hush\"\nuid = 1\ngid = 1".into(), "letters"),
            ("[[identity]]\naccess_key = \"a\"\nsecret_key = hush".into(), "line 3"),
        ] {
            let message = parse(&text).unwrap_err();
            assert!(message.contains(piece) && !message.contains("hush") && !message.contains('\n'), "{message}");
        }
    }
}
