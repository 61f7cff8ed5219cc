//! The Unix socket, in a separate directory that only this user may enter, and the deletion of directories that dead
//! processes left behind. Accepts connections. Does not know their protocol.

use crate::transport;
use smol::Async;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// The network's name in the handshake.
pub const NETWORK: &str = "unix";

/// The name of the directory is `<PREFIX><process id>-<random>`.
const PREFIX: &str = "fleeting-plugin-vcd-";

/// The name of the socket in it.
pub(super) const SOCKET: &str = "socket";

/// The kernel's limit for a socket's path, in bytes.
const MAX_PATH: usize = 107;

/// Maximum number of directory entries that are searched for leftovers.
const MAX_ENTRIES: usize = 10_000;

/// Maximum number of leftovers that one start deletes.
const MAX_LEFTOVERS: usize = 100;

/// The file that names the groups.
pub(super) const GROUPS: &str = "/etc/group";

/// Maximum number of bytes of [`GROUPS`] that are read.
const MAX_GROUP_FILE: u64 = 4 * 1024 * 1024;

/// A listening socket. It is deleted on drop, with its directory.
pub struct Socket {
    listener: Async<UnixListener>,
    dir: PathBuf,
}

impl Socket {
    /// Listens in a new directory in `parent`, or in the system's folder for temporary files. `group`, a name or a
    /// number, may connect too.
    pub fn bind(parent: Option<&str>, group: Option<&str>) -> Result<Socket, String> {
        let group = group.map(|group| group_id(group, Path::new(GROUPS))).transpose()?;
        let dir = place(parent)?;
        let path = dir.join(SOCKET);
        // The directory is created with its mode: no other user can enter it at any time.
        let made = DirBuilder::new().mode(0o700).create(&dir);
        made.map_err(|error| {
            format!("cannot create the socket's directory {}: {error}; set TMPDIR to another directory", dir.display())
        })?;
        let socket = listen(&dir, group).map_err(|error| {
            let _ = fs::remove_file(&path);
            let _ = fs::remove_dir(&dir);
            format!("cannot listen on {}: {error}", path.display())
        })?;
        if let Some(place) = exposed(&dir) {
            let (place, path) = (place.display(), path.display());
            log::warn!(
                "other users may write to {place}, and so could replace {path} with a socket of their own: set TMPDIR"
            );
        }
        Ok(socket)
    }

    /// The socket's path, for the handshake.
    pub fn address(&self) -> String {
        self.dir.join(SOCKET).display().to_string()
    }

    /// Waits for the next connection.
    pub async fn accept(&self) -> io::Result<Async<UnixStream>> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }

    /// Deletes the directories that earlier processes of this user left behind beside this socket. A directory is
    /// deleted if its process has ended and nothing listens on its socket. The second condition distinguishes a process
    /// of another container from a dead one.
    pub async fn remove_leftovers(&self) {
        let Some(parent) = self.dir.parent() else { return };
        let Ok(own) = fs::symlink_metadata(&self.dir) else { return };
        let Ok(entries) = fs::read_dir(parent) else { return };
        let mut removed = 0;
        for entry in entries.take(MAX_ENTRIES).flatten() {
            let dir = entry.path();
            let name = entry.file_name();
            let Some(process) = name.to_str().and_then(process) else { continue };
            let ours = entry.metadata().is_ok_and(|found| found.is_dir() && found.uid() == own.uid());
            if ours && dir != self.dir && is_gone(process) && nobody_listens(&dir.join(SOCKET)).await {
                let _ = fs::remove_file(dir.join(SOCKET));
                if fs::remove_dir(&dir).is_ok() {
                    log::debug!("deleted {}: its process {process} has ended", dir.display());
                    removed += 1;
                }
            }
            if removed == MAX_LEFTOVERS {
                return;
            }
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.dir.join(SOCKET));
        let _ = fs::remove_dir(&self.dir);
    }
}

/// The path for a new directory in `parent`. The path of its socket fits into a socket address and into the handshake.
pub(super) fn place(parent: Option<&str>) -> Result<PathBuf, String> {
    let parent = parent.map_or_else(std::env::temp_dir, PathBuf::from);
    let parent = std::path::absolute(&parent).unwrap_or(parent);
    let random = getrandom::u32().map_err(|error| format!("no random number for the socket's name: {error}"))?;
    let dir = parent.join(format!("{PREFIX}{}-{random:08x}", std::process::id()));
    let path = dir.join(SOCKET);
    if path.as_os_str().len() > MAX_PATH {
        let (path, length) = (path.display(), path.as_os_str().len());
        let remedy = "set TMPDIR (or PLUGIN_UNIX_SOCKET_DIR) to a shorter path";
        return Err(format!("a socket's path has at most {MAX_PATH} bytes, but {path} has {length}: {remedy}"));
    }
    if path.to_str().is_none_or(|path| path.contains(['|', '\n', '\r'])) {
        return Err(format!(
            "the path {path:?} contains '|' or a line break, which the handshake does not allow: set TMPDIR to another directory"
        ));
    }
    Ok(dir)
}

/// Listens in `dir`, which nobody else may enter yet. If other users may write to its parent, they can replace it at
/// any time: so modes and groups are set on open files, or at creation.
fn listen(dir: &Path, group: Option<u32>) -> io::Result<Socket> {
    let opened = File::open(dir)?;
    let (is, named) = (opened.metadata()?, fs::symlink_metadata(dir)?);
    if (is.dev(), is.ino()) != (named.dev(), named.ino()) || is.mode() & 0o777 != 0o700 {
        return Err(io::Error::new(ErrorKind::PermissionDenied, "another user has replaced it"));
    }
    if group.is_some() {
        std::os::unix::fs::fchown(&opened, None, group)?;
        // The socket belongs to the group, too.
        opened.set_permissions(Permissions::from_mode(0o2700))?;
    }
    let listener = transport::listen(&dir.join(SOCKET), if group.is_some() { 0o660 } else { 0o600 })?;
    if group.is_some() {
        opened.set_permissions(Permissions::from_mode(0o710))?;
    }
    Ok(Socket { listener, dir: dir.to_owned() })
}

/// The directory above `dir` in which other users could replace files of this process: one that belongs to neither this
/// user nor root, or that everybody may write to without the sticky bit.
fn exposed(dir: &Path) -> Option<PathBuf> {
    let owner = fs::symlink_metadata(dir).ok()?.uid();
    let dir = dir.canonicalize().ok()?;
    let weak = |place: &&Path| {
        fs::metadata(place).is_ok_and(|is| (is.uid() != owner && is.uid() != 0) || is.mode() & 0o1002 == 0o002)
    };
    dir.ancestors().find(weak).map(Path::to_owned)
}

/// The process id in the name of a directory of this plugin.
fn process(name: &str) -> Option<u32> {
    let (process, random) = name.strip_prefix(PREFIX)?.split_once('-')?;
    if random.len() == 8 { process.parse().ok() } else { None }
}

/// True if no such process runs. A directory with this process's own id is old, too, because this process has just
/// created another one.
fn is_gone(process: u32) -> bool {
    let proc = Path::new("/proc");
    process == std::process::id() || (proc.join("self").exists() && !proc.join(process.to_string()).exists())
}

/// True if the socket does not exist or refuses connections.
async fn nobody_listens(path: &Path) -> bool {
    match Async::<UnixStream>::connect(path).await {
        Ok(_) => false,
        Err(error) => matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound),
    }
}

/// The id of a group, from its number or from its name in the file `groups`.
pub(super) fn group_id(group: &str, groups: &Path) -> Result<u32, String> {
    if let Ok(id) = group.parse() {
        return Ok(id);
    }
    let mut text = Vec::new();
    let read = File::open(groups).and_then(|file| file.take(MAX_GROUP_FILE).read_to_end(&mut text));
    read.map_err(|error| format!("cannot look up PLUGIN_UNIX_SOCKET_GROUP {group:?} in /etc/group: {error}"))?;
    find_group(&String::from_utf8_lossy(&text), group)
        .ok_or_else(|| format!("PLUGIN_UNIX_SOCKET_GROUP {group:?} is neither a number nor a name in /etc/group"))
}

/// The id of the group `name` in `text`, which has lines of `name:password:id:members`.
fn find_group(text: &str, name: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next() == Some(name) { fields.nth(1)?.parse().ok() } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Mutex, MutexGuard, PoisonError};

    /// Listening changes the umask of the process for a moment. A directory that another test creates then gets another
    /// mode.
    fn alone() -> MutexGuard<'static, ()> {
        static UMASK: Mutex<()> = Mutex::new(());
        UMASK.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[test]
    fn groups_are_found_by_name() {
        let text = "root:x:0:\nbroken\nrunner:x:998:a,b\nrunners:x:999:\n";
        assert_eq!(find_group(text, "runner"), Some(998));
        assert_eq!(find_group(text, "broken"), None);
        assert_eq!(find_group(text, "run"), None);
    }

    #[test]
    fn a_replaced_directory_is_not_changed() {
        let _alone = alone();
        let parent = std::env::temp_dir().join(format!("vcd-socket-{}", std::process::id()));
        let (own, link, open) = (parent.join("own"), parent.join("link"), parent.join("open"));
        fs::create_dir_all(&parent).unwrap();
        for (dir, mode) in [(&own, 0o700), (&open, 0o755)] {
            DirBuilder::new().mode(mode).create(dir).unwrap();
            fs::set_permissions(dir, Permissions::from_mode(mode)).unwrap();
        }
        std::os::unix::fs::symlink(&own, &link).unwrap();
        let group = Some(fs::metadata(&own).unwrap().gid());
        for (dir, leads_to, mode) in [(&link, &own, 0o700), (&open, &open, 0o755)] {
            let error = listen(dir, group).err().unwrap();
            assert!(error.to_string().contains("has replaced it"), "{error}");
            assert_eq!(fs::metadata(leads_to).unwrap().mode() & 0o7777, mode);
            assert_eq!(fs::read_dir(leads_to).unwrap().count(), 0);
        }
        drop(listen(&own, group).unwrap());
        fs::remove_dir_all(&parent).unwrap();
    }

    #[test]
    fn only_our_own_names_carry_a_process() {
        assert_eq!(process("fleeting-plugin-vcd-17-0123abcd"), Some(17));
        assert_eq!(process("fleeting-plugin-vcd-17-0123abcd.bak"), None);
        assert_eq!(process("fleeting-plugin-vcd-x-0123abcd"), None);
        assert_eq!(process("other-17-0123abcd"), None);
    }

    #[test]
    fn no_more_of_the_groups_than_allowed_is_read() {
        let path = std::env::temp_dir().join(format!("vcd-groups-{}", std::process::id()));
        let filler = "#".repeat(usize::try_from(MAX_GROUP_FILE).unwrap());
        fs::write(&path, format!("early:x:6:\n{filler}\nlate:x:7:\n")).unwrap();
        assert_eq!((group_id("early", &path), group_id("9", &path)), (Ok(6), Ok(9)));
        assert!(group_id("late", &path).unwrap_err().contains("neither a number nor a name"));
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn leftovers_are_removed_in_moderation() {
        let _alone = alone();
        let parent = std::env::temp_dir().join(format!("vcd-left-{}", std::process::id()));
        fs::create_dir(&parent).unwrap();
        let socket = Socket::bind(parent.to_str(), None).unwrap();
        // No process has this id.
        let dead = |n: usize| fs::create_dir(parent.join(format!("{PREFIX}{}-{n:08x}", u32::MAX))).unwrap();
        let left = || fs::read_dir(&parent).unwrap().flatten().filter(|entry| entry.path().is_dir()).count() - 1;
        (0..MAX_LEFTOVERS + 5).for_each(dead);
        smol::block_on(socket.remove_leftovers());
        assert_eq!(left(), 5, "so many at a start");
        smol::block_on(socket.remove_leftovers());
        assert_eq!(left(), 0);
        // Wherever in the folder they lie, some are beyond what is looked at.
        for n in 0..2 * MAX_ENTRIES {
            File::create(parent.join(format!("other-{n}"))).unwrap();
            if n % (MAX_ENTRIES / 25) == 0 {
                dead(n);
            }
        }
        let before = left();
        smol::block_on(socket.remove_leftovers());
        assert!((1..before).contains(&left()), "{} of {before} are left", left());
        drop(socket);
        fs::remove_dir_all(parent).unwrap();
    }
}
