//! `bootstrap REPO`: fleeting's installer (`fleeting install`) starts it from the plugin's OCI image to put the plugin
//! into GitLab Runner's plugin folder. It contacts no registry: it copies the files beside this binary.

use crate::version;
use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The default of `FLEETING_PLUGIN_PATH`.
const DEFAULT_FOLDER: &str = "/plugins";
/// The registry of a REPO without a host name.
const REGISTRY: &str = "registry.gitlab.com";
/// The namespace of a REPO that is one word.
const NAMESPACE: &str = "gitlab-org/fleeting/plugins";
/// Maximum number of files in a plugin's folder. A folder with more has another purpose.
const MAX_FILES: usize = 64;

/// The environment variables and facts that `bootstrap` uses.
struct Build<'a> {
    version: &'a str,
    revision: &'a str,
    built: &'a str,
    /// `FLEETING_PLUGIN_PKG_VERSION`, empty if not set.
    package: &'a str,
}

/// The result, for the caller to print: the folder on stdout, the warning on stderr.
#[derive(Debug, PartialEq, Eq)]
pub struct Installed {
    /// The folder with the plugin.
    pub folder: PathBuf,
    /// The version of the package differs from that of the binary.
    pub warning: Option<String>,
}

/// Installs this binary, and the files beside it, as the plugin `repo`. Does nothing if it is installed already.
pub fn run(repo: &str) -> Result<Installed, String> {
    let package = env::var("FLEETING_PLUGIN_PKG_VERSION").unwrap_or_default();
    let build =
        Build { version: version::VERSION, revision: version::REVISION, built: version::BUILT, package: &package };
    let plugins = env::var_os("FLEETING_PLUGIN_PATH").filter(|path| !path.is_empty());
    let plugins = plugins.map_or_else(|| DEFAULT_FOLDER.into(), PathBuf::from);
    if !plugins.exists() {
        return Err(format!("plugin directory {} doesn't exist", plugins.display()));
    }
    let folder = plugins.join(escape_path(&normalize(repo)?)?).join(escape(&build.version())?);
    let binary = env::current_exe().map_err(|error| format!("find this program's file: {error}"))?;
    let from = binary.parent().ok_or("find this program's folder: its file has none")?;
    copy(from, &plugins, &folder)
        .map_err(|error| format!("copy {} to {}: {error}; nothing was installed", from.display(), folder.display()))?;
    Ok(Installed { folder, warning: build.warning() })
}

impl Build<'_> {
    /// The version in the folder's name: the binary's if it is `x.y.z`, otherwise the package's, otherwise a pseudo
    /// version like Go's.
    fn version(&self) -> String {
        let own = self.version.strip_prefix('v').unwrap_or(self.version);
        let version = match own.splitn(3, '.').count() {
            3 => own,
            _ if !self.package.is_empty() => self.package,
            _ => own,
        };
        match version {
            "" | "dev" => format!("0.0.0-{}-{}", stamp(self.built), self.revision),
            other => other.to_owned(),
        }
    }

    fn warning(&self) -> Option<String> {
        let same = self.package.is_empty() || self.version.starts_with(self.package);
        (!same).then(|| {
            format!(
                "warn: fleeting plugin package version and binary version differ: {:?} != {:?}",
                self.package, self.version
            )
        })
    }
}

/// The digits of a time such as `2026-01-02T15:04:05Z`, or Go's zero time if it is not a time.
fn stamp(built: &str) -> String {
    let digits: String =
        built.split(['.', 'Z', '+']).next().unwrap_or_default().chars().filter(char::is_ascii_digit).collect();
    if digits.len() == 14 { digits } else { "00010101000000".into() }
}

/// The full path of a plugin: with registry and namespace, without a version.
fn normalize(repo: &str) -> Result<String, String> {
    let repo = repo.trim_end_matches('/');
    if repo.is_empty() {
        return Err(format!("bootstrap needs the plugin's repository, such as {REGISTRY}/{NAMESPACE}/vcd"));
    }
    let whole = match repo.split_once('/') {
        None => format!("{REGISTRY}/{NAMESPACE}/{repo}"),
        Some((host, _)) if !host.contains('.') => format!("{REGISTRY}/{repo}"),
        Some(_) => repo.to_owned(),
    };
    let (folder, name) = whole.rsplit_once('/').unwrap_or(("", &whole));
    let name = name.split(':').next().unwrap_or_default();
    Ok(format!("{folder}/{name}"))
}

/// Escapes a path as Go escapes a module's path. Rejects paths that leave the plugin folder or contain characters that
/// a shell interprets.
fn escape_path(path: &str) -> Result<String, String> {
    for part in path.split('/') {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '~');
        if part.is_empty() || part.starts_with('.') || part.ends_with('.') || !part.chars().all(plain) {
            return Err(format!("escaping plugin path: {part:?} in {path:?} is not a valid repository name"));
        }
    }
    escape(path)
}

/// Replaces each capital letter with `!` and the small letter, because some file systems ignore case.
fn escape(text: &str) -> Result<String, String> {
    if text.contains(['!', '\\', '\0']) || !text.is_ascii() || text.split('/').any(|part| part == "..") {
        return Err(format!("escaping {text:?}: it contains invalid characters"));
    }
    let escaped = text.chars().map(|c| match c.is_ascii_uppercase() {
        true => format!("!{}", c.to_ascii_lowercase()),
        false => c.to_string(),
    });
    Ok(escaped.collect())
}

/// Copies the files in `from` to `to`. The folder appears complete or not at all.
fn copy(from: &Path, plugins: &Path, to: &Path) -> io::Result<()> {
    if to.exists() {
        return Ok(());
    }
    let temporary = Temporary::new(plugins)?;
    let mut files = 0;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.path().is_dir() {
            continue;
        }
        files += 1;
        if files > MAX_FILES {
            return Err(io::Error::other(format!(
                "more than {MAX_FILES} files are there: it is not the plugin's own folder"
            )));
        }
        fs::copy(entry.path(), temporary.0.join(entry.file_name()))?;
    }
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    match fs::rename(&temporary.0, to) {
        // Another process was faster.
        Err(_) if to.exists() => Ok(()),
        other => other,
    }
}

/// A folder that is deleted on drop, unless it was renamed.
struct Temporary(PathBuf);

impl Temporary {
    fn new(place: &Path) -> io::Result<Temporary> {
        let random = getrandom::u64().map_err(io::Error::other)?;
        let folder = place.join(format!("plugin{random:016x}"));
        fs::create_dir(&folder)?;
        Ok(Temporary(folder))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_are_completed_and_lose_their_version() {
        for (repo, whole) in [
            ("index.docker.io/namespace/project", "index.docker.io/namespace/project"),
            ("registry.gitlab.com/namespace/project", "registry.gitlab.com/namespace/project"),
            ("namespace/no-registry", "registry.gitlab.com/namespace/no-registry"),
            ("long/namespace/no-registry", "registry.gitlab.com/long/namespace/no-registry"),
            ("no-registry", "registry.gitlab.com/gitlab-org/fleeting/plugins/no-registry"),
            ("drop-version:1.0.0", "registry.gitlab.com/gitlab-org/fleeting/plugins/drop-version"),
            ("registry.gitlab.com/drop-version/project:1.2.3", "registry.gitlab.com/drop-version/project"),
            ("registry.gitlab.com:8080/drop-version/project:1.2.3", "registry.gitlab.com:8080/drop-version/project"),
        ] {
            assert_eq!(normalize(repo).as_deref(), Ok(whole), "{repo}");
        }
        assert!(normalize("").is_err());
    }

    #[test]
    fn capitals_are_escaped_and_ways_out_refused() {
        assert_eq!(escape_path("registry.gitlab.com/Group/vCD").as_deref(), Ok("registry.gitlab.com/!group/v!c!d"));
        for bad in ["a/../../b", "a//b", "a/b!c", "a/b c", "/a", "a/.b", "a/b.", "h:80/a", "a/ü"] {
            assert!(escape_path(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_folders_version_is_the_binarys_the_packages_or_a_pseudo_version() {
        for (version, package, expected, differs) in [
            ("0.1.0", "", "0.1.0", false),
            ("v0.1.0", "", "0.1.0", false),
            ("0.1.0", "0.2.0", "0.1.0", true),
            ("0.1.0-4-gabc", "0.1.0", "0.1.0-4-gabc", false),
            ("main", "0.2.0", "0.2.0", true),
            ("dev", "", "0.0.0-20260102150405-abc", false),
            ("dev", "dev", "0.0.0-20260102150405-abc", false),
            ("", "", "0.0.0-20260102150405-abc", false),
        ] {
            let build = Build { version, revision: "abc", built: "2026-01-02T15:04:05Z", package };
            assert_eq!(build.version(), expected, "{version} {package}");
            assert_eq!(build.warning().is_some(), differs, "{version} {package}");
        }
        assert_eq!(stamp("unknown"), "00010101000000");
    }

    #[test]
    fn a_copy_is_whole_or_not_there() {
        let place = env::temp_dir().join(format!("vcd-bootstrap-{}", std::process::id()));
        let (from, plugins) = (place.join("from"), place.join("plugins"));
        fs::create_dir_all(from.join("folder")).unwrap();
        fs::create_dir_all(&plugins).unwrap();
        fs::write(from.join("plugin"), "binary").unwrap();
        let to = plugins.join("a.b/c/1.0.0");
        copy(&from, &plugins, &to).unwrap();
        assert_eq!(fs::read_to_string(to.join("plugin")).unwrap(), "binary");
        assert!(!to.join("folder").exists());

        fs::write(from.join("plugin"), "another").unwrap();
        copy(&from, &plugins, &to).unwrap();
        assert_eq!(fs::read_to_string(to.join("plugin")).unwrap(), "binary", "what is there stays");

        for n in 0..MAX_FILES {
            fs::write(from.join(format!("file{n}")), "").unwrap();
        }
        assert!(copy(&from, &plugins, &plugins.join("a.b/c/2.0.0")).is_err());
        let left: Vec<_> = fs::read_dir(&plugins).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["a.b"], "no temporary folder is left");
        fs::remove_dir_all(place).unwrap();
    }
}
