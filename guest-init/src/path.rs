//! Paths as callers give them: absolute, or relative to where the user's work is.
//!
//! Pure but for looking whether `/workspace` exists. Does not normalise: `..` means what the kernel says it means.

use std::path::Path;

use crate::user::User;

pub const WORKSPACE: &str = "/workspace";
const PATH_BYTES_MAX: usize = 4095;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("the path is empty")]
    Empty,
    #[error("the path contains a zero byte")]
    ZeroByte,
    #[error("the path is longer than {PATH_BYTES_MAX} bytes")]
    TooLong,
}

/// Where a process starts and relative paths begin when nothing else is said.
pub fn default_directory(user: &User) -> String {
    [WORKSPACE, user.home.as_str()]
        .into_iter()
        .find(|directory| Path::new(directory).is_dir())
        .unwrap_or("/")
        .to_owned()
}

/// An absolute path: `~` is the user's home, anything relative begins at the default directory.
pub fn resolve(path: &str, user: &User) -> Result<String, Error> {
    let absolute = if path.is_empty() {
        return Err(Error::Empty);
    } else if path.contains('\0') {
        return Err(Error::ZeroByte);
    } else if path == "~" {
        user.home.clone()
    } else if let Some(rest) = path.strip_prefix("~/") {
        format!("{}/{rest}", user.home.trim_end_matches('/'))
    } else if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("{}/{path}", default_directory(user).trim_end_matches('/'))
    };
    if absolute.len() > PATH_BYTES_MAX { Err(Error::TooLong) } else { Ok(absolute) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::user::Accounts;

    #[test]
    fn paths_are_absolute_or_begin_somewhere_known() {
        let user = Accounts::new("ada:x:7:7::/tmp:/bin/sh\n", "").get_user("ada").expect("known");
        let work = default_directory(&user);
        for (given, expected) in [
            ("/a/../b", "/a/../b".to_owned()),
            ("~", "/tmp".to_owned()),
            ("~/x", "/tmp/x".to_owned()),
            ("x/y", format!("{work}/x/y")),
            ("~x", format!("{work}/~x")),
        ] {
            assert_eq!(resolve(given, &user).as_deref(), Ok(expected.as_str()), "{given}");
        }
        assert_eq!(resolve("", &user), Err(Error::Empty));
        assert_eq!(resolve("/a\0", &user), Err(Error::ZeroByte));
        assert_eq!(resolve(&format!("/{}", "a".repeat(4095)), &user), Err(Error::TooLong));
    }
}
