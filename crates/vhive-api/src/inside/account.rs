//! Who the function runs as: the image's `User`, looked up in the image's own files.
//!
//! # Source
//! OCI image-spec `config.md` (`user`, `uid`, `user:group`, `uid:gid`); `passwd(5)`, `group(5)`.

/// Credentials of the function's process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// User number.
    pub uid: u32,
    /// Group number.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: String,
}

impl Account {
    /// Most bytes of a passwd or group file that are looked at; what comes later is not seen.
    pub const MOST_BYTES: u64 = 4 << 20;

    /// The account that an image's `User` names, with the texts of its `/etc/passwd` and `/etc/group`;
    /// images without users have none.
    ///
    /// # Errors
    /// What is not there, by name.
    pub fn find(user: &str, passwd: &str, group: &str) -> Result<Self, String> {
        let (name, group_name) = match user.split_once(':') {
            Some((name, group)) => (name, Some(group)),
            None => (user, None),
        };
        let name = if name.is_empty() { "0" } else { name };
        let entries = || passwd.lines().filter_map(Entry::parse);
        let number = id(name);
        let entry = entries()
            .find(|entry| entry.name == name)
            .or_else(|| entries().find(|entry| Some(entry.uid) == number));
        let uid = match (&entry, number) {
            (Some(entry), _) => entry.uid,
            (None, Some(uid)) => uid,
            (None, None) => return Err(format!("the image's /etc/passwd has no user {name:?}")),
        };
        let groups = || group.lines().filter_map(Group::parse);
        let (gid, supplementary) = match (group_name, &entry) {
            (Some(wanted), _) => {
                let found = groups().find(|group| group.name == wanted).map(|group| group.gid);
                let gid = found.or_else(|| id(wanted));
                (
                    gid.ok_or_else(|| format!("the image's /etc/group has no group {wanted:?}"))?,
                    vec![],
                )
            }
            (None, Some(entry)) => {
                let mine = groups().filter(|g| g.members.split(',').any(|m| m == entry.name));
                (entry.gid, mine.map(|group| group.gid).collect())
            }
            (None, None) => (0, vec![]),
        };
        let home = entry.map(|entry| entry.home).filter(|home| !home.is_empty()).unwrap_or("/");
        Ok(Self { uid, gid, groups: supplementary, home: home.to_owned() })
    }
}

/// A user or group number; -1 means "unchanged" to the kernel, so it is none.
fn id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id != u32::MAX)
}

struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> Entry<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let (uid, gid) = (id(fields.nth(1)?)?, id(fields.next()?)?);
        Some(Self { name, uid, gid, home: fields.nth(1).unwrap_or_default() })
    }
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl<'a> Group<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let gid = id(fields.nth(1)?)?;
        Some(Self { name, gid, members: fields.next().unwrap_or_default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# comment\nbroken:x\n\
        app:x:1000:1001:App:/home/app:/bin/sh\n77:x:5:6::/odd:\nlast:x:9:9\n";
    const GROUP: &str = "root:x:0:\nvideo:x:44:app,other\nstaff:x:50:other\naudio:x:29:app\n";

    fn user(uid: u32, gid: u32, groups: &[u32], home: &str) -> Account {
        Account { uid, gid, groups: groups.to_vec(), home: home.to_owned() }
    }

    #[test]
    fn every_form_is_understood() {
        for (text, expected) in [
            ("", user(0, 0, &[], "/root")),
            ("root", user(0, 0, &[], "/root")),
            ("app", user(1000, 1001, &[44, 29], "/home/app")),
            ("1000", user(1000, 1001, &[44, 29], "/home/app")),
            ("app:video", user(1000, 44, &[], "/home/app")),
            ("app:7", user(1000, 7, &[], "/home/app")),
            ("65534", user(65534, 0, &[], "/")),
            ("65534:staff", user(65534, 50, &[], "/")),
            ("77", user(5, 6, &[], "/odd")),
            ("last", user(9, 9, &[], "/")),
            (":staff", user(0, 50, &[], "/root")),
        ] {
            assert_eq!(Account::find(text, PASSWD, GROUP), Ok(expected), "{text:?}");
        }
    }

    #[test]
    fn the_unknown_is_named() {
        let error = Account::find("nobody", PASSWD, GROUP).unwrap_err();
        assert!(error.contains("\"nobody\""), "{error}");
        let error = Account::find("app:wheel", PASSWD, GROUP).unwrap_err();
        assert!(error.contains("\"wheel\""), "{error}");
        for none in ["-1", "4294967295", "4294967296", "broken", "app:", "app:-1"] {
            assert!(Account::find(none, PASSWD, GROUP).is_err(), "{none}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_files_are_survived(user: String, passwd: String, group: String) {
            let _ = Account::find(&user, &passwd, &group);
        }
    }
}
