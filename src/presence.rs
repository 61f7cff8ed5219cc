//! Shows other processes on this machine that a plugin serves a group: an abstract Unix socket with the group's name,
//! which leaves nothing behind and ends with the process. Nothing is sent over it. Linux only; on other systems nothing
//! is shown.

#[cfg(target_os = "linux")]
use ring::digest::{SHA256, digest};

/// Maximum number of plugins of one group on one machine that detect each other: one may end while the next one starts.
#[cfg(target_os = "linux")]
const PLACES: usize = 4;

/// Held while a plugin serves.
pub struct Presence {
    #[cfg(target_os = "linux")]
    _socket: std::os::unix::net::UnixListener,
    /// Another process was there before.
    pub is_second: bool,
}

impl Presence {
    /// Makes this process visible as a plugin of the group `identity`. `None` if that is not possible here.
    pub fn claim(identity: &[&str]) -> Option<Presence> {
        #[cfg(target_os = "linux")]
        return (0..PLACES).find_map(|place| {
            use std::os::unix::net::UnixListener;
            let _socket = UnixListener::bind_addr(&address(identity, place)?).ok()?;
            Some(Presence { _socket, is_second: place > 0 })
        });
        #[cfg(not(target_os = "linux"))]
        {
            let _ = identity;
            None
        }
    }

    /// True if a process on this machine (in the same network namespace) serves the group `identity`.
    pub fn is_held(identity: &[&str]) -> bool {
        #[cfg(target_os = "linux")]
        return (0..PLACES).filter_map(|place| address(identity, place)).any(|address| {
            let bound = std::os::unix::net::UnixListener::bind_addr(&address);
            bound.is_err_and(|error| error.kind() == std::io::ErrorKind::AddrInUse)
        });
        #[cfg(not(target_os = "linux"))]
        {
            let _ = identity;
            false
        }
    }
}

#[cfg(target_os = "linux")]
fn address(identity: &[&str], place: usize) -> Option<std::os::unix::net::SocketAddr> {
    use std::fmt::Write as _;
    use std::os::linux::net::SocketAddrExt as _;
    // A name has at most 107 bytes; the parts of an identity may be longer.
    let hash = digest(&SHA256, identity.join("\0").as_bytes());
    let mut name = String::from("fleeting-plugin-vcd/");
    for byte in hash.as_ref() {
        // Writing to a String never fails.
        let _ = write!(name, "{byte:02x}");
    }
    let _ = write!(name, "/{place}");
    std::os::unix::net::SocketAddr::from_abstract_name(name).ok()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn a_group_is_seen_while_it_is_served() {
        let process = std::process::id().to_string();
        let (ours, other) = ([process.as_str(), "a", "b"], [process.as_str(), "ab", ""]);
        assert!(!Presence::is_held(&ours));
        let first = Presence::claim(&ours).unwrap();
        let second = Presence::claim(&ours).unwrap();
        assert_eq!((first.is_second, second.is_second), (false, true));
        drop(first);
        assert!(Presence::is_held(&ours), "the second is still there");
        assert!(!Presence::is_held(&other));
        drop(second);
        // A process that another test starts has it until it executes its program.
        let until = Instant::now() + Duration::from_secs(10);
        while Presence::is_held(&ours) {
            assert!(Instant::now() < until);
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_fifth_plugin_of_a_group_is_not_detected() {
        let process = std::process::id().to_string();
        let held: Vec<_> = (0..PLACES).map(|_| Presence::claim(&[&process, "many"]).unwrap()).collect();
        assert!(Presence::claim(&[&process, "many"]).is_none());
        drop(held);
    }
}
