//! The token: the content of its file, the lock on it, and the next token from VCD. A service account's token is valid
//! for one login, whose answer contains the next one. If that one is lost, a person has to create a new token for the
//! account. This module knows nothing about HTTP.

use super::http::USER_AGENT;
use crate::cloud::Secret;
use crate::timestamp::timestamp;
use serde_json::{Map, Value};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// Maximum size of the token file, in bytes.
const MAX_TOKEN_FILE: u64 = 16 * 1024;
/// Maximum time that a login waits for logins of other processes with a token in the same folder.
const LOCK_TIMEOUT: Duration = Duration::from_secs(20);
/// Pause between two attempts to get the lock.
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// The source of the token of a user or a service account.
#[derive(Clone, Debug)]
pub enum Token {
    /// The text itself.
    Text(Secret),
    /// A file, read again for each login. It contains the token alone, or JSON as VMware's SDK and Terraform provider
    /// write it.
    File(PathBuf),
}

impl Token {
    /// The current token. The error names the file and its mistake.
    pub fn read(&self) -> Result<Secret, String> {
        match self {
            Token::Text(token) => Ok(token.clone()),
            Token::File(path) => Ok(Content::read(path)?.token),
        }
    }
}

/// The content of a token file.
struct Content {
    token: Secret,
    /// The other fields, if it is JSON.
    json: Option<Map<String, Value>>,
}

impl Content {
    fn read(path: &Path) -> Result<Content, String> {
        let read = || -> Result<Content, String> {
            let mut bytes = Vec::new();
            let file = File::open(path).map_err(|e| e.to_string())?;
            file.take(MAX_TOKEN_FILE + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
            Content::parse(&bytes)
        };
        read().map_err(|why| format!("{}: {why}", path.display()))
    }

    /// The error quotes nothing.
    fn parse(bytes: &[u8]) -> Result<Content, String> {
        if bytes.len() as u64 > MAX_TOKEN_FILE {
            return Err(format!("has more than the {MAX_TOKEN_FILE} bytes allowed"));
        }
        if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) || bytes.contains(&0) {
            return Err("is UTF-16, not UTF-8".into());
        }
        let strange = || "contains more than one word, or characters that a token cannot have".to_owned();
        // Some editors write a byte order mark before the text.
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let text = std::str::from_utf8(bytes).map_err(|_| strange())?.trim();
        if text.is_empty() {
            return Err("is empty".into());
        }
        let json = match text.starts_with('{') {
            true => {
                Some(serde_json::from_str::<Map<String, Value>>(text).map_err(|e| format!("is not valid JSON: {e}"))?)
            }
            false => None,
        };
        let token = match &json {
            Some(json) => json.get("refresh_token").and_then(Value::as_str).unwrap_or_default(),
            None => text,
        };
        if json.is_some() && token.is_empty() {
            return Err("is JSON without refresh_token".into());
        }
        if token.starts_with(['"', '\'', '\u{201c}']) {
            return Err("contains quotes around the token".into());
        }
        if is_assignment(token) {
            return Err("contains NAME= before the token".into());
        }
        if !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(strange());
        }
        Ok(Content { token: Secret::new(token), json })
    }

    fn is_of_service_account(&self) -> bool {
        let kind = self.json.as_ref().and_then(|json| json.get("token_type")).and_then(Value::as_str);
        kind.is_some_and(|kind| kind.eq_ignore_ascii_case("service account"))
    }

    /// The same content with another token, for the file.
    fn with(&self, token: &Secret) -> String {
        let Some(mut json) = self.json.clone() else { return format!("{}\n", token.reveal()) };
        // That session belongs to the old token.
        for old in ["access_token", "expires_in"] {
            json.remove(old);
        }
        for (key, value) in [
            ("refresh_token", token.reveal().to_owned()),
            ("updated_by", USER_AGENT.to_owned()),
            ("updated_on", timestamp(SystemTime::now())),
        ] {
            json.insert(key.to_owned(), value.into());
        }
        format!("{}\n", Value::Object(json))
    }
}

/// True for `NAME=TOKEN` and `export NAME=TOKEN`, as in shell files. A token itself may end in `=`.
fn is_assignment(text: &str) -> bool {
    let Some((name, value)) = text.strip_prefix("export ").unwrap_or(text).split_once('=') else { return false };
    let name = name.trim();
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    !value.trim_matches('=').is_empty() && name.starts_with(|c: char| !c.is_ascii_digit()) && name.chars().all(is_name)
}

/// The token file during a login. No other login on this machine uses it at the same time. The next file is prepared
/// before the login, so that little can fail between VCD's answer and the write.
pub(super) struct Held {
    /// The file itself, after symbolic links.
    path: PathBuf,
    content: Content,
    /// A token that an earlier process got from VCD but did not put into the file.
    earlier: Option<Secret>,
    /// The file that replaces it, or why there is none.
    next: Result<File, String>,
    /// The folder. It stays the same when its files are replaced.
    _lock: Option<File>,
}

impl Held {
    /// Waits for the lock until `deadline`, then reads the file: another process may have replaced it.
    pub(super) fn take(path: &Path, deadline: Instant) -> Result<Held, Refused> {
        let wrong = |why: String| Refused::File(format!("{}: {why}", path.display()));
        let real = fs::canonicalize(path).map_err(|e| wrong(e.to_string()))?;
        let folder = real.parent().unwrap_or(Path::new("/"));
        let lock = lock(folder, deadline).ok_or(Refused::Busy)?;
        let content = Content::read(&real).map_err(Refused::File)?;
        let beside = beside(&real);
        let earlier = Content::read(&beside).ok().map(|left| left.token).filter(|token| *token != content.token);
        let next = reserve(&real, &beside, earlier.is_none());
        if let Err(why) = &next
            && content.is_of_service_account()
        {
            return Err(wrong(format!(
                "VCD replaces a service account's token at each login, and the next one could not be written: {}: {why}; the \
                 plugin did not log in",
                beside.display()
            )));
        }
        Ok(Held { path: real, content, earlier, next, _lock: lock })
    }

    /// The token in the file.
    pub(super) fn token(&self) -> &Secret {
        &self.content.token
    }

    /// A newer token that was never put into the file, for the case that VCD rejects the one in the file.
    pub(super) fn earlier(&self) -> Option<&Secret> {
        self.earlier.as_ref()
    }

    /// Keeps the token as it is.
    pub(super) fn keep(self) {
        if self.next.is_ok() {
            let _ = fs::remove_file(beside(&self.path));
        }
    }

    /// Replaces the file with one that contains `token`, atomically. If that fails, writes into the existing file. The
    /// error says why both failed.
    pub(super) fn replace(self, token: &Secret) -> Result<(), String> {
        let text = self.content.with(token);
        let put = |file: &mut File| -> io::Result<()> {
            file.rewind()?;
            file.write_all(text.as_bytes())?;
            file.set_len(text.len() as u64)?;
            file.sync_all()
        };
        let beside = beside(&self.path);
        let by_rename = self.next.and_then(|mut file| {
            put(&mut file).and_then(|()| fs::rename(&beside, &self.path)).map_err(|e| e.to_string())
        });
        let Err(why) = by_rename else {
            // Otherwise a power loss could undo it.
            let folder = self.path.parent().map(File::open);
            let synced = folder.map(|folder| folder.and_then(|folder| folder.sync_all()));
            if let Some(Err(e)) = synced {
                log::debug!("{}: its folder could not be synced: {e}", self.path.display());
            }
            return Ok(());
        };
        // A file with a mount of its own can be written, but not replaced.
        match OpenOptions::new().write(true).open(&self.path).and_then(|mut file| put(&mut file)) {
            Ok(()) => {
                let _ = fs::remove_file(&beside);
                Ok(())
            }
            Err(e) => Err(format!("{}: {why}; {}: {e}", beside.display(), self.path.display())),
        }
    }
}

/// Why there is no token.
pub(super) enum Refused {
    /// The mistake in the file. It names the file.
    File(String),
    /// Another process logs in with it.
    Busy,
}

/// The path of the next content of `path` before it replaces the file.
fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.next"))
}

/// Creates the file that will replace `path`: readable for its owner only, with space for the content. Existing content
/// stays unless it is `fresh`.
fn reserve(path: &Path, beside: &Path, fresh: bool) -> Result<File, String> {
    let make = || -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(beside)?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown};
            let (old, new) = (fs::metadata(path)?, file.metadata()?);
            if (old.uid(), old.gid()) != (new.uid(), new.gid()) {
                fchown(&file, Some(old.uid()), Some(old.gid()))?;
            }
            file.set_permissions(fs::Permissions::from_mode(0o600))?;
        }
        if fresh {
            let mut old = File::open(path)?.take(MAX_TOKEN_FILE);
            let length = io::copy(&mut old, &mut file)?;
            file.set_len(length)?;
            file.sync_all()?;
        }
        Ok(file)
    };
    make().map_err(|e| e.to_string())
}

/// Locks a folder against other processes that use this lock. `None` if one holds it the whole time. Does nothing where
/// locks do not exist.
fn lock(folder: &Path, deadline: Instant) -> Option<Option<File>> {
    #[cfg(target_os = "linux")]
    if let Ok(file) = File::open(folder) {
        use rustix::fs::{FlockOperation, flock};
        use rustix::io::Errno;
        let deadline = deadline.min(Instant::now() + LOCK_TIMEOUT);
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Some(Some(file)),
                Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() >= deadline => return None,
                Err(Errno::WOULDBLOCK | Errno::INTR) => std::thread::sleep(LOCK_PAUSE),
                Err(e) => {
                    log::debug!("{}: no lock can be had here: {e}", folder.display());
                    return Some(None);
                }
            }
        }
    }
    let _ = (folder, deadline, LOCK_TIMEOUT, LOCK_PAUSE);
    Some(None)
}

/// Writes a token that has no other place into a separate file, readable for its owner only.
pub(super) fn rescue(token: &Secret) -> Result<PathBuf, String> {
    if cfg!(fuzzing) {
        return Err("not while fuzzing".into());
    }
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
    let number = getrandom::u64().map_err(|e| e.to_string())?;
    let write = |folder: PathBuf| -> Result<PathBuf, String> {
        let path = folder.join(format!("vcd-token-{number:016x}"));
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let written = options.open(&path).and_then(|mut file| {
            file.write_all(format!("{}\n", token.reveal()).as_bytes())?;
            file.sync_all()
        });
        written.map(|()| path.clone()).map_err(|e| format!("{}: {e}", path.display()))
    };
    let mut failures = Vec::new();
    for folder in home.into_iter().chain([std::env::temp_dir()]) {
        match write(folder) {
            Ok(path) => return Ok(path),
            Err(why) => failures.push(why),
        }
    }
    Err(failures.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token_of(bytes: &[u8]) -> Result<String, String> {
        Content::parse(bytes).map(|content| content.token.reveal().to_owned())
    }

    #[test]
    fn a_file_holds_a_token_by_itself_or_in_json() {
        let json = br#"{"token_type": "Service Account", "refresh_token": "abc", "updated_by": "x"}"#;
        for (bytes, token) in [
            (&b"abc"[..], "abc"),
            (b" abc\r\n", "abc"),
            (b"\xef\xbb\xbfabc\n", "abc"),
            (b"YWJj==\n", "YWJj=="),
            (json, "abc"),
            (br#"{"refresh_token":"abc"}"#, "abc"),
        ] {
            assert_eq!(token_of(bytes).as_deref(), Ok(token), "{bytes:?}");
        }
        for (bytes, why) in [
            (&b""[..], "is empty"),
            (b"\xef\xbb\xbf \n", "is empty"),
            (b"\xff\xfea\0b\0", "is UTF-16"),
            (b"\xfe\xff\0a\0b", "is UTF-16"),
            (b"a\0b\0", "is UTF-16"),
            (b"\"s3cret\"", "contains quotes"),
            (b"'s3cret'", "contains quotes"),
            ("\u{201c}s3cret\u{201d}".as_bytes(), "contains quotes"),
            (b"VCD_TOKEN=s3cret", "contains NAME="),
            (b"export token = s3cret", "contains NAME="),
            (b"two words", "more than one word"),
            (b"\x01", "characters that a token cannot have"),
            (b"\xe4", "characters that a token cannot have"),
            (b"{\"refresh_token\": s3cret", "is not valid JSON"),
            (b"{\"access_token\": \"s3cret\"}", "without refresh_token"),
            (b"{\"refresh_token\": 7}", "without refresh_token"),
            (b"{\"refresh_token\": \"s3cret s3cret\"}", "more than one word"),
        ] {
            let error = token_of(bytes).unwrap_err();
            assert!(error.contains(why) && !error.contains("s3cret"), "{bytes:?}: {error}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_lock_that_others_hold_is_waited_for_and_given_up() {
        let folder = std::env::temp_dir().join(format!("vcd-token-lock-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let soon = || Instant::now() + Duration::from_millis(200);
        let held = lock(&folder, soon()).unwrap();
        assert!(held.is_some() && lock(&folder, soon()).is_none());
        let waiting = std::thread::spawn({
            let folder = folder.clone();
            move || lock(&folder, Instant::now() + LOCK_TIMEOUT).is_some()
        });
        drop(held);
        assert!(waiting.join().unwrap());
        // Where the folder cannot be opened, there is none.
        assert!(lock(&folder.join("none"), soon()).unwrap().is_none());
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_is_written_is_read_again() {
        let plain = Content::parse(b"abc").unwrap();
        assert_eq!(plain.with(&Secret::new("next")), "next\n");
        let json =
            br#"{"token_type":"Service Account","refresh_token":"abc","access_token":"old","expires_in":5,"more":1}"#;
        let content = Content::parse(json).unwrap();
        assert!(content.is_of_service_account() && !plain.is_of_service_account());
        let text = content.with(&Secret::new("next"));
        let written: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&written["refresh_token"], &written["more"]), (&"next".into(), &1.into()));
        assert_eq!((&written["access_token"], &written["expires_in"]), (&Value::Null, &Value::Null));
        assert!(written["updated_by"].as_str().unwrap().starts_with("fleeting-plugin-vcd/"));
        assert!(Content::parse(text.as_bytes()).unwrap().token == Secret::new("next"));
    }
}
