//! Whose vApp is this? Ownership is the name's pattern plus a description that names manager, group and id.

use super::limits::Rng;
use super::{Name, Policy};

/// Every description that this program writes begins so; the number is the format's version.
const MARK: &str = "fleeting-plugin-vcd/1";
/// Random characters at the end of a name.
const TAIL: usize = 8;
const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";

/// Between a tag and the fingerprint of the credentials that the instance was made with, which is no part of ownership.
const CREDENTIALS: &str = " credentials=";

/// What makes a vApp ours.
pub struct Owner {
    manager: String,
    group: String,
    prefix: String,
    credentials: String,
}

/// The verdict on a vApp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// Ours: named and described so.
    Ours,
    /// Named like ours; only its own document can tell.
    Unsure,
    /// Another's, never to be touched.
    Foreign,
}

impl Owner {
    /// The owner that a policy stands for.
    pub fn new(policy: &Policy) -> Owner {
        let Policy { manager, group, prefix, credentials, .. } = policy.clone();
        Owner { manager, group, prefix, credentials }
    }

    /// The description of the vApp `name` and of its VM: set by the request that makes it, so that it never exists without.
    pub fn description(&self, name: &str) -> String {
        let mark = if self.credentials.is_empty() { "" } else { CREDENTIALS };
        self.tag(name) + mark + &self.credentials
    }

    fn tag(&self, name: &str) -> String {
        format!("{MARK} manager={} group={} id={name}", self.manager, self.group)
    }

    /// True if a plugin of this program wrote the description, of whichever manager and group.
    pub(super) fn is_marked(description: Option<&str>) -> bool {
        description.is_some_and(|text| text.trim().starts_with(MARK))
    }

    /// The credentials' fingerprint, if the description carries the tag of `name`.
    fn credentials<'a>(&self, name: &str, description: &'a str) -> Option<&'a str> {
        match description.trim().strip_prefix(&self.tag(name))? {
            "" => Some(""),
            more => more.strip_prefix(CREDENTIALS).filter(|word| !word.contains(char::is_whitespace)),
        }
    }

    /// True if an instance of ours was made with other credentials than those of today.
    pub fn locks_out(&self, name: &str, description: Option<&str>) -> bool {
        self.credentials(name, description.unwrap_or_default()).unwrap_or_default() != self.credentials
    }

    /// `<prefix>-<8 of a-z0-9>`.
    pub(super) fn name(&self, rng: &mut Rng) -> Name {
        let mut name = String::with_capacity(self.prefix.len() + 1 + TAIL);
        name.push_str(&self.prefix);
        name.push('-');
        name.extend((0..TAIL).filter_map(|_| ALPHABET.get(rng.below(36) as usize)).map(|&c| c as char));
        name.into()
    }

    /// True if this owner could have given the name.
    pub fn could_name(&self, name: &str) -> bool {
        let tail = name.strip_prefix(self.prefix.as_str()).and_then(|rest| rest.strip_prefix('-'));
        tail.is_some_and(|tail| tail.len() == TAIL && tail.bytes().all(|c| ALPHABET.contains(&c)))
    }

    /// Judges by a query record, which may not show the description, and shows the VM's, not the vApp's. `labelled`:
    /// it carries the metadata label of our group.
    pub fn judge_record(&self, name: &str, description: Option<&str>, labelled: bool) -> Ownership {
        match description.map(str::trim) {
            _ if !self.could_name(name) => Ownership::Foreign,
            Some(text) if self.credentials(name, text).is_some() => Ownership::Ours,
            marked if Owner::is_marked(marked) => Ownership::Foreign,
            None | Some("") => Ownership::Unsure,
            Some(_) if labelled => Ownership::Unsure,
            Some(_) => Ownership::Foreign,
        }
    }

    /// True if the vApp's own document shows it to be ours: by its description or, for one that the Go plugin made, by
    /// its label. The description of a copy, or of a vApp that was renamed, names another id: whoever did that has
    /// taken it over.
    pub fn owns(&self, name: &str, description: Option<&str>, labelled: bool) -> bool {
        let description = description.unwrap_or_default().trim();
        self.could_name(name)
            && (self.credentials(name, description).is_some() || (labelled && !Owner::is_marked(Some(description))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(manager: &str, group: &str, prefix: &str, credentials: &str) -> Owner {
        Owner::new(&Policy {
            manager: manager.into(),
            group: group.into(),
            prefix: prefix.into(),
            credentials: credentials.into(),
            ..Policy::default()
        })
    }

    #[test]
    fn a_name_is_the_prefix_and_eight_characters() {
        let owner = owner("runner-1", "ci", "ci-linux", "");
        let name = owner.name(&mut Rng::new(7));
        assert!(owner.could_name(&name), "{name}");
        for other in
            ["ci-linux", "ci-linux-", "ci-linux-abc1234", "ci-linux-abc12345x", "ci-linux-ABC12345", "ci-abc12345"]
        {
            assert!(!owner.could_name(other), "{other}");
        }
    }

    #[test]
    fn ownership_needs_the_name_and_the_tag() {
        let other_manager = owner("runner-2", "ci", "ci", "").description("ci-abc12345");
        let owner = owner("runner-1", "ci", "ci", "");
        let tag = owner.description("ci-abc12345");
        let copy = owner.description("ci-zzz12345");
        let judge = |name, description, labelled| owner.judge_record(name, description, labelled);
        assert_eq!(judge("ci-abc12345", Some(&tag), false), Ownership::Ours);
        assert_eq!(judge("ci-abc12345-old", Some(&tag), false), Ownership::Foreign);
        assert_eq!(judge("ci-abc12345", Some(&other_manager), true), Ownership::Foreign);
        assert_eq!(judge("ci-abc12345", Some(&copy), true), Ownership::Foreign);
        assert_eq!(judge("ci-abc12345", Some("a template's text"), false), Ownership::Foreign);
        assert_eq!(judge("ci-abc12345", Some("a template's text"), true), Ownership::Unsure);
        assert_eq!(judge("ci-abc12345", None, true), Ownership::Unsure);
        assert!(owner.owns("ci-abc12345", Some(&tag), false));
        assert!(owner.owns("ci-abc12345", None, true), "the Go plugin's");
        assert!(!owner.owns("ci-abc12345", None, false));
        assert!(!owner.owns("ci-abc12345", Some(&other_manager), true));
        assert!(!owner.owns("renamed", Some(&tag), true));
    }

    #[test]
    fn other_credentials_lock_out_and_are_no_part_of_ownership() {
        let of = |credentials| owner("runner-1", "ci", "ci", credentials);
        let name = "ci-abc12345";
        for made in ["", "0123abcd", "ffff0000"] {
            let description = of(made).description(name);
            for now in ["", "0123abcd", "ffff0000"] {
                let owner = of(now);
                assert_eq!(owner.judge_record(name, Some(&description), false), Ownership::Ours, "{description}");
                assert!(owner.owns(name, Some(&description), false), "{description}");
                assert_eq!(owner.locks_out(name, Some(&description)), made != now, "{description}");
            }
        }
        let description = of("0123abcd").description(name);
        for other in
            [format!("{description} x"), format!("{description}{description}"), description.replace("cred", "x")]
        {
            assert_eq!(of("").judge_record(name, Some(&other), true), Ownership::Foreign, "{other}");
        }
        assert!(of("0123abcd").locks_out(name, None), "the Go plugin's");
        assert!(!of("").locks_out(name, None), "the Go plugin's");
    }

    #[test]
    fn descriptions_and_names_are_spelt_so() {
        let plain = owner("runner-1", "ci", "vm", "");
        let tag = "fleeting-plugin-vcd/1 manager=runner-1 group=ci id=vm-abc12345";
        assert_eq!(plain.description("vm-abc12345"), tag);
        let derived = owner("runner-1", "ci", "vm", "0123abcd");
        assert_eq!(derived.description("vm-abc12345"), format!("{tag} credentials=0123abcd"));
        let mut rng = Rng::new(7);
        let names: std::collections::BTreeSet<Name> = (0..20).map(|_| plain.name(&mut rng)).collect();
        assert_eq!(names.len(), 20, "{names:?}");
    }

    #[test]
    fn a_record_without_a_description_needs_a_look() {
        let owner = owner("runner-1", "ci", "ci", "");
        let tag = owner.description("ci-abc12345");
        for labelled in [false, true] {
            for description in [None, Some(""), Some("  ")] {
                assert_eq!(owner.judge_record("ci-abc12345", description, labelled), Ownership::Unsure);
                assert_eq!(owner.owns("ci-abc12345", description, labelled), labelled);
                assert_eq!(owner.judge_record("other", description, labelled), Ownership::Foreign);
                assert!(!owner.owns("other", description, labelled));
            }
            let padded = format!(" {tag}\n");
            assert_eq!(owner.judge_record("ci-abc12345", Some(&padded), labelled), Ownership::Ours);
            assert!(owner.owns("ci-abc12345", Some(&padded), labelled));
            assert_eq!(owner.owns("ci-abc12345", Some("a template's text"), labelled), labelled);
        }
    }
}
