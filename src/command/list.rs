//! `list`: the vApps in VCD whose names begin with the group's prefix, and their owners. Changes nothing.

use super::output::{Paper, print, short};
use super::runner::RunnerFile;
use crate::cloud::{Href, Mark, Poll, Power, Reply, Request, UnixMs, VcdError};
use crate::config::Config;
use crate::group::{Owner, Ownership, Policy};
use crate::vcd::Client;
use serde_json::json;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

/// Maximum length of a foreign vApp's description that is shown.
const MAX_DESCRIPTION: usize = 60;

/// A vApp and its owner.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// The vApp.
    pub href: Href,
    /// Its name.
    pub name: String,
    /// Its VM's power state, or its own if it has none.
    pub power: Power,
    /// It is suspended, and in standby.
    pub standby: bool,
    /// A task works on it.
    pub busy: bool,
    /// Its VM's address.
    pub address: Option<IpAddr>,
    /// Time since its creation.
    pub age: Option<Duration>,
    /// Time until VCD suspends it or powers it off, because its lease ends.
    pub lease: Option<Duration>,
    /// It belongs to the group.
    pub is_ours: bool,
    /// Its owner, in words.
    pub owner: String,
}

/// Logs in with `config` and lists all vApps with its prefix.
pub fn gather(config: &Config) -> Result<Vec<Item>, String> {
    let all = |errors: Vec<VcdError>| errors.iter().map(VcdError::to_string).collect::<Vec<_>>().join("; ");
    let (client, _) = Client::open(config.vcd.clone()).map_err(all)?;
    let items = look(&client, &config.policy);
    client.close();
    items.map_err(|error| error.to_string())
}

fn look(client: &Client, policy: &Policy) -> Result<Vec<Item>, VcdError> {
    let Reply::Poll(poll) = client.call(&Request::Poll { vapps: true }, None)? else { return Ok(Vec::new()) };
    let owner = Owner::new(policy);
    let mut items = items(&poll, &owner);
    for (item, verdict) in &mut items {
        let is_unsure = *verdict == Ownership::Unsure;
        let may_stand_by = item.is_ours && item.power == Power::Suspended;
        if !is_unsure && !may_stand_by {
            continue;
        }
        // Only its own document, and its suspend mark, show this.
        let Reply::Vapps(found) = client.call(&Request::Look { vapp: item.href.clone(), guest: false }, None)? else {
            continue;
        };
        // It may be gone since, or renamed.
        let Some(seen) = found.first().filter(|seen| *seen.name == *item.name) else {
            (item.is_ours, item.owner) = (false, foreign(None));
            continue;
        };
        item.standby = matches!(seen.mark, Mark::Standby { .. });
        if !is_unsure {
            continue;
        }
        item.is_ours = owner.owns(seen, item.is_ours);
        item.owner = match item.is_ours {
            true if seen.description.as_deref().unwrap_or_default().is_empty() => "this group, by metadata".into(),
            true => "this group".into(),
            false => foreign(seen.description.as_deref()),
        };
    }
    Ok(items.into_iter().map(|(item, _)| item).collect())
}

/// In VCD's order, by name. While a verdict is unsure, `is_ours` shows whether the vApp has the group's metadata entry.
fn items(poll: &Poll, owner: &Owner) -> Vec<(Item, Ownership)> {
    let mut all: Vec<(Item, Ownership)> = Vec::new();
    let since = |at: Option<UnixMs>| Some(Duration::from_millis(poll.now?.saturating_sub(at?)));
    let until = |at: Option<UnixMs>| Some(Duration::from_millis(at?.saturating_sub(poll.now?)));
    let labelled = |href: &Href| poll.vapps.iter().flatten().any(|vapp| vapp.href == *href && vapp.labelled);
    for vm in &poll.vms {
        let verdict = owner.judge_record(&vm.vapp_name, Some(&vm.description));
        let item = Item {
            href: vm.vapp.clone(),
            name: vm.vapp_name.to_string(),
            power: vm.power,
            standby: false,
            busy: vm.busy,
            address: vm.address,
            age: since(vm.created),
            lease: until(vm.undeploy_at),
            is_ours: verdict == Ownership::Ours || (verdict == Ownership::Unsure && labelled(&vm.vapp)),
            owner: if verdict == Ownership::Ours { "this group".into() } else { foreign(Some(&vm.description)) },
        };
        all.push((item, verdict));
    }
    for vapp in poll.vapps.iter().flatten() {
        if let Some((known, _)) = all.iter_mut().find(|(item, _)| item.href == vapp.href) {
            known.busy |= vapp.busy;
            continue;
        }
        let verdict = owner.judge_record(&vapp.name, vapp.description.as_deref());
        let item = Item {
            href: vapp.href.clone(),
            name: vapp.name.to_string(),
            power: vapp.power,
            standby: false,
            busy: vapp.busy,
            address: None,
            age: since(vapp.created),
            lease: None,
            is_ours: verdict == Ownership::Unsure && vapp.labelled,
            owner: foreign(None),
        };
        all.push((item, verdict));
    }
    all
}

fn foreign(description: Option<&str>) -> String {
    match description.unwrap_or_default().trim() {
        "" => "foreign".into(),
        text => {
            let cut: String = text.chars().take(MAX_DESCRIPTION).collect();
            format!("foreign: {}", cut.escape_debug())
        }
    }
}

/// Prints the list of one runner's group.
pub fn run(path: &Path, name: Option<&str>, as_json: bool) -> Result<(), String> {
    let file = RunnerFile::read(path)?;
    let config = file.only(name)?.config(false)?;
    let items = gather(&config)?;
    match as_json {
        true => print(&format!("{}\n", json(&items))),
        false if items.is_empty() => print(&format!("VCD has no vApp named {}-*\n", config.policy.prefix)),
        false => print(&table(&items)),
    }
    Ok(())
}

/// A fixed-width table.
pub fn table(items: &[Item]) -> String {
    let width = items.iter().map(|item| item.name.chars().count()).max().unwrap_or(0).max(4);
    let head = format!("{:width$}  {:10}  {:15}  {:>5}  {:>5}  OWNER", "NAME", "STATE", "ADDRESS", "AGE", "LEASE");
    let mut text = Paper::new().paint("1", &head) + "\n";
    for item in items {
        let address = item.address.map_or("-".into(), |address| address.to_string());
        let time = |time: Option<Duration>| time.map_or("-".into(), short);
        text += &format!(
            "{:width$}  {:10}  {address:15}  {:>5}  {:>5}  {}\n",
            item.name,
            state(item),
            time(item.age),
            time(item.lease),
            item.owner
        );
    }
    text
}

fn json(items: &[Item]) -> serde_json::Value {
    let item = |item: &Item| {
        json!({
            "name": item.name,
            "href": &*item.href,
            "state": state(item),
            "busy": item.busy,
            "address": item.address.map(|address| address.to_string()),
            "age_seconds": item.age.map(|age| age.as_secs()),
            "lease_seconds": item.lease.map(|lease| lease.as_secs()),
            "own": item.is_ours,
            "owner": item.owner,
        })
    };
    items.iter().map(item).collect()
}

fn state(item: &Item) -> &'static str {
    match item.power {
        _ if item.busy => "busy",
        Power::On => "on",
        Power::Off => "off",
        Power::Suspended if item.standby => "standby",
        Power::Suspended => "suspended",
        Power::Failed => "failed",
        Power::Other => "unclear",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_foreign_description_the_beginning_is_shown() {
        assert_eq!(foreign(Some(&"ä".repeat(1000))), format!("foreign: {}", "ä".repeat(MAX_DESCRIPTION)));
        assert_eq!(foreign(Some(" \n")), "foreign");
    }
}
