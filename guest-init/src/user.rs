//! Users and groups of the guest, by parsing `/etc/passwd` and `/etc/group`.
//!
//! Must not call the C library's lookups: in a static program they load plug-ins, and crash.

use std::path::Path;

/// Who a process runs as when the caller names nobody, if the guest has that user.
pub const DEFAULT_USER: &str = "user";
const GROUPS_MAX: usize = 64;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no user {0:?} in the guest")]
    UnknownUser(String),
    #[error("cannot read {path}")]
    Read { path: &'static str, source: std::io::Error },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    pub home: String,
    pub shell: String,
    /// Supplementary groups, the primary one included.
    pub groups: Vec<u32>,
}

impl User {
    fn root() -> Self {
        Self {
            name: "root".into(),
            uid: 0,
            gid: 0,
            home: "/root".into(),
            shell: "/bin/sh".into(),
            groups: vec![0],
        }
    }
}

/// The contents of both files, read afresh for each use: programs of the guest edit them.
#[derive(Debug, Default)]
pub struct Accounts {
    passwd: String,
    group: String,
}

impl Accounts {
    pub fn read() -> Result<Self, Error> {
        Ok(Self { passwd: read_or_empty("/etc/passwd")?, group: read_or_empty("/etc/group")? })
    }

    pub fn new(passwd: impl Into<String>, group: impl Into<String>) -> Self {
        Self { passwd: passwd.into(), group: group.into() }
    }

    /// A user by name or number; `""` is the default user, else root.
    /// A number without an entry is a user of that number without groups.
    pub fn get_user(&self, wanted: &str) -> Result<User, Error> {
        if wanted.is_empty() {
            return Ok(self
                .find_user(DEFAULT_USER)
                .or_else(|| self.find_user("root"))
                .unwrap_or_else(User::root));
        }
        if let Some(user) = self.find_user(wanted) {
            return Ok(user);
        }
        let uid: u32 = wanted.parse().map_err(|_| Error::UnknownUser(wanted.into()))?;
        Ok(self.find_user_by_id(uid).unwrap_or_else(|| User {
            name: uid.to_string(),
            uid,
            gid: uid,
            home: "/".into(),
            shell: "/bin/sh".into(),
            groups: vec![uid],
        }))
    }

    pub fn find_user_by_id(&self, uid: u32) -> Option<User> {
        self.users().find(|user| user.uid == uid).map(|user| self.with_groups(user))
    }

    fn find_user(&self, name: &str) -> Option<User> {
        self.users().find(|user| user.name == name).map(|user| self.with_groups(user))
    }

    /// The name of a user, or its number.
    pub fn user_name(&self, uid: u32) -> String {
        self.users().find(|user| user.uid == uid).map_or_else(|| uid.to_string(), |user| user.name)
    }

    /// The name of a group, or its number.
    pub fn group_name(&self, gid: u32) -> String {
        let found = self.groups().find(|(_, id, _)| *id == gid);
        found.map_or_else(|| gid.to_string(), |(name, ..)| name.to_owned())
    }

    fn users(&self) -> impl Iterator<Item = User> {
        self.passwd.lines().filter_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let [name, _, uid, gid, _, home, shell] = fields[..] else {
                return None;
            };
            let gid = gid.parse().ok()?;
            Some(User {
                name: name.to_owned(),
                uid: uid.parse().ok()?,
                gid,
                home: if home.is_empty() { "/" } else { home }.to_owned(),
                shell: if shell.is_empty() { "/bin/sh" } else { shell }.to_owned(),
                groups: vec![gid],
            })
        })
    }

    fn groups(&self) -> impl Iterator<Item = (&str, u32, &str)> {
        self.group.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let (name, _, gid) = (fields.next()?, fields.next()?, fields.next()?);
            Some((name, gid.parse().ok()?, fields.next().unwrap_or("")))
        })
    }

    fn with_groups(&self, mut user: User) -> User {
        for (_, gid, members) in self.groups() {
            let member = members.split(',').any(|member| member == user.name);
            if member && !user.groups.contains(&gid) && user.groups.len() < GROUPS_MAX {
                user.groups.push(gid);
            }
        }
        user
    }
}

fn read_or_empty(path: &'static str) -> Result<String, Error> {
    match std::fs::read(Path::new(path)) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(source) => Err(Error::Read { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n\
        broken line\n\
        bad:x:notanumber:1:::\n\
        user:x:1000:1000::/home/user:/bin/bash\n\
        nohome:x:7:7:::\n";
    const GROUP: &str =
        "root:x:0:\nsudo:x:27:other,user\nuser:x:1000:\ndocker:x:999:user\nuserlike:x:5:user2\n";

    fn accounts() -> Accounts {
        Accounts::new(PASSWD, GROUP)
    }

    #[test]
    fn a_user_has_its_supplementary_groups() {
        let user = accounts().get_user("user").expect("known");
        assert_eq!((user.uid, user.gid, user.home.as_str()), (1000, 1000, "/home/user"));
        assert_eq!(user.groups, [1000, 27, 999]);
    }

    #[test]
    fn nobody_named_is_the_default_user_else_root() {
        assert_eq!(accounts().get_user("").expect("default").name, "user");
        assert_eq!(Accounts::new("root:x:0:0::/root:/bin/sh", "").get_user("").expect("root").uid, 0);
        assert_eq!(Accounts::default().get_user("").expect("root without files"), User::root());
    }

    #[test]
    fn numbers_are_users_with_or_without_an_entry() {
        assert_eq!(accounts().get_user("1000").expect("by number").name, "user");
        let stranger = accounts().get_user("4242").expect("any number");
        assert_eq!((stranger.uid, stranger.gid, stranger.home.as_str()), (4242, 4242, "/"));
        assert!(matches!(accounts().get_user("nobody-here"), Err(Error::UnknownUser(_))));
    }

    #[test]
    fn broken_lines_are_skipped_and_empty_fields_have_defaults() {
        assert!(accounts().get_user("bad").is_err());
        let user = accounts().get_user("nohome").expect("known");
        assert_eq!((user.home.as_str(), user.shell.as_str()), ("/", "/bin/sh"));
        assert_eq!(accounts().user_name(1000), "user");
        assert_eq!(accounts().user_name(1001), "1001");
        assert_eq!(accounts().group_name(27), "sudo");
    }
}
