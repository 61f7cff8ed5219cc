//! The build that a binary reports: what build.rs reads from git.

#[allow(dead_code)]
#[path = "../../build.rs"]
mod build;

use std::path::{Path, PathBuf};
use std::process::Command;

/// A folder that is deleted when this is dropped.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs git without this user's settings.
fn git(folder: &Path, words: &[&str]) -> String {
    let mut command = Command::new("git");
    command.arg("-C").arg(folder).args(["-c", "user.name=a", "-c", "user.email=a@example.com"]).args(words);
    command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_COMMITTER_DATE", "2026-01-02T16:04:05+01:00");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{words:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn a_build_in_a_clone_shows_its_commit_and_one_from_an_archive_does_not() {
    if Command::new("git").arg("--version").output().is_err() {
        eprintln!("a_build_in_a_clone_shows_its_commit_and_one_from_an_archive_does_not: skipped, there is no git");
        return;
    }
    let clone = Folder(std::env::temp_dir().join(format!("vcd-version-{}", std::process::id())));
    std::fs::create_dir(&clone.0).unwrap();
    git(&clone.0, &["init", "--quiet", "--initial-branch=trunk"]);
    git(&clone.0, &["commit", "--quiet", "--allow-empty", "--message=first"]);
    let revision = git(&clone.0, &["rev-parse", "HEAD"])[..12].to_owned();
    let facts = |name: &str| {
        let built = ("VCD_BUILT", "2026-01-02T15:04:05Z".to_owned());
        vec![("VCD_GIT_REVISION", revision.clone()), ("VCD_GIT_REF", name.to_owned()), built]
    };
    assert_eq!(build::git_facts(&clone.0), facts("trunk"));
    git(&clone.0, &["tag", "v1.2.3"]);
    assert_eq!(build::git_facts(&clone.0), facts("v1.2.3"));

    // An archive that is unpacked in another repository does not report that repository's commit.
    let archive = clone.0.join("vendor");
    std::fs::create_dir(&archive).unwrap();
    assert_eq!(build::git_facts(&archive), []);
}
