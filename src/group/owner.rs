//! The owner of a vApp: a name that matches the pattern, and a description that contains manager, group and id.

use super::limits::Rng;
use super::{Name, Policy};
use crate::cloud;

/// Every description that this program writes starts with this text. The number is the version of the format.
const MARK: &str = "fleeting-plugin-vcd/1";
/// Random characters at the end of a name.
const TAIL: usize = 8;
const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";

/// Separates the tag from the fingerprint of the credentials that the instance was created with. The fingerprint does not
/// identify the owner.
const CREDENTIALS: &str = " credentials=";

/// The owner of a vApp.
pub struct Owner {
    /// The tag up to the id.
    tag: String,
    prefix: String,
    credentials: String,
}

/// Who owns a vApp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ownership {
    /// Foreign: never touched.
    Foreign,
    /// The name matches. Only the vApp's own document shows the owner.
    Unsure,
    /// This group: name and description match.
    Ours,
}

impl Owner {
    /// The owner that a policy describes.
    pub fn new(policy: &Policy) -> Owner {
        let Policy { manager, group, prefix, credentials, .. } = policy.clone();
        Owner { tag: format!("{MARK} manager={manager} group={group} id="), prefix, credentials }
    }

    /// The description of the vApp `name` and of its VM. The create request sets it, so that the vApp never exists without
    /// it.
    pub fn description(&self, name: &str) -> String {
        let mark = if self.credentials.is_empty() { "" } else { CREDENTIALS };
        format!("{}{name}{mark}{}", self.tag, self.credentials)
    }

    /// What follows the tag of `name`.
    fn after_tag<'a>(&self, name: &str, description: &'a str) -> Option<&'a str> {
        description.strip_prefix(self.tag.as_str())?.strip_prefix(name)
    }

    /// True if this program wrote the description, for any manager and group.
    pub(super) fn is_marked(description: Option<&str>) -> bool {
        description.is_some_and(|text| text.trim().starts_with(MARK))
    }

    /// True if this program wrote the description of the vApp or of a VM in it, by the vApp's document.
    pub(super) fn has_tag(seen: &cloud::Vapp) -> bool {
        seen.vm_descriptions.iter().chain(&seen.description).any(|text| Owner::is_marked(Some(text)))
    }

    /// True if this program wrote it for the vApp `name`, for any manager and group.
    fn tells_of(name: &str, text: &str) -> bool {
        text.starts_with(MARK) && text.split(' ').any(|word| word.strip_prefix("id=") == Some(name))
    }

    /// The credentials' fingerprint, if the description carries the tag of `name`.
    fn credentials<'a>(&self, name: &str, description: &'a str) -> Option<&'a str> {
        match self.after_tag(name, description.trim())? {
            "" => Some(""),
            more => more.strip_prefix(CREDENTIALS).filter(|word| !word.contains(char::is_whitespace)),
        }
    }

    /// True if the instance was created with other credentials than the current ones.
    pub fn locks_out(&self, name: &str, description: Option<&str>) -> bool {
        self.credentials(name, description.unwrap_or_default()).unwrap_or_default() != self.credentials
    }

    /// `<prefix>-<8 of a-z0-9>`.
    pub(super) fn name(&self, rng: &mut Rng) -> Name {
        let mut name = format!("{}-", self.prefix);
        name.extend((0..TAIL).filter_map(|_| ALPHABET.get(rng.below(36) as usize)).map(|&c| c as char));
        name.into()
    }

    /// True if this owner could have created the name.
    pub fn could_name(&self, name: &str) -> bool {
        let tail = name.strip_prefix(self.prefix.as_str()).and_then(|rest| rest.strip_prefix('-'));
        tail.is_some_and(|tail| tail.len() == TAIL && tail.bytes().all(|c| ALPHABET.contains(&c)))
    }

    /// Judges by a query record, which may lack the description, or show the VM's description instead of the vApp's.
    pub fn judge_record(&self, name: &str, description: Option<&str>) -> Ownership {
        match description.map(str::trim) {
            _ if !self.could_name(name) => Ownership::Foreign,
            Some(text) if self.credentials(name, text).is_some() => Ownership::Ours,
            Some(text) if Owner::tells_of(name, text) && self.after_tag(name, text).is_none() => Ownership::Foreign,
            // Somebody may have edited the VM's text, or moved the VM: its vApp's document shows the owner.
            None | Some(_) => Ownership::Unsure,
        }
    }

    /// True if the vApp's own document shows that this group owns it: by its description or, for a vApp of the Go plugin,
    /// by its metadata entry. The description of a copied or renamed vApp contains another id: whoever did that owns it.
    pub fn owns(&self, seen: &cloud::Vapp, labelled: bool) -> bool {
        let description = seen.description.as_deref().unwrap_or_default();
        self.could_name(&seen.name)
            && (self.credentials(&seen.name, description).is_some() || (labelled && !Owner::has_tag(seen)))
    }
}

#[cfg(test)]
mod tests;
