//! Paths of nodes, and the keys that they have in etcd.

use crate::CoordinatorError;

/// The most bytes in a path.
pub(crate) const PATH_BYTES_MAX: usize = 1024;

/// Under it stand the marks by which lost answers are resolved; no node may.
pub(crate) const MARKS: &str = "/.sessions";

/// The path whose children are the topmost nodes; no node itself.
pub(crate) const ROOT: &str = "/";

/// Refuses what is no path of a node: `/a/b`, without empty parts or control characters.
pub(crate) fn check(path: &str) -> Result<(), CoordinatorError> {
    let invalid = |reason| Err(CoordinatorError::InvalidRequest { path: path.to_owned(), reason });
    if path.len() > PATH_BYTES_MAX {
        return invalid("the path is too long");
    }
    let Some(relative) = path.strip_prefix('/') else {
        return invalid("a path starts with /");
    };
    if relative.split('/').any(str::is_empty) {
        return invalid("a path has no empty parts");
    }
    if path.chars().any(char::is_control) {
        return invalid("a path has no control characters");
    }
    if path == MARKS || path.starts_with("/.sessions/") {
        return invalid("this path belongs to the coordinator itself");
    }
    Ok(())
}

/// Refuses what can have no children.
pub(crate) fn check_parent(path: &str) -> Result<(), CoordinatorError> {
    if path == ROOT { Ok(()) } else { check(path) }
}

/// Returns what the paths of everything below `path` begin with.
pub(crate) fn below(path: &str) -> String {
    if path == ROOT { ROOT.to_owned() } else { format!("{path}/") }
}

/// Says whether `path` lies directly under the parent whose [`below`] is `prefix`.
pub(crate) fn is_child(prefix: &str, path: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|name| !name.is_empty() && !name.contains('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_path_is_refused() {
        for path in ["", "a", "/", "//", "/a/", "/a//b", "/a\n", "/a\0", "/.sessions/1"] {
            assert!(check(path).is_err(), "{path:?} was taken for a path");
        }
        for path in ["/a", "/a/b c", "/größe", "/.sessionsx"] {
            assert_eq!(check(path), Ok(()), "{path:?} was refused");
        }
    }

    #[test]
    fn children_are_one_step_below() {
        assert!(is_child(&below("/a"), "/a/b"));
        assert!(!is_child(&below("/a"), "/a/b/c"));
        assert!(!is_child(&below("/a"), "/ab"));
        assert!(is_child(&below("/"), "/a"));
    }
}
