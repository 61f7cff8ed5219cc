//! The calls of the host, and what administrators and the infrastructure do to vApps.

use super::audit::is_marked_standby;
use super::plan::{Act, Admin, MINUTE, Stuck};
use super::{GROUP, Happening, PREFIX, World};
use fleeting_plugin_vcd::group::{Name, State};
use std::collections::{BTreeMap, BTreeSet};
use vcd_sim::model::{self, Power, VappId, VmId};

impl World {
    pub fn act(&mut self, n: usize, act: Act) {
        let time = self.time(n);
        match act {
            Act::Fault(fault, length, percent) => {
                self.faults.insert(fault, (self.now + length, percent));
            }
            Act::Outage(minutes) => {
                self.faults.insert(super::Fault::Unreachable, (self.now + minutes * MINUTE, 100));
            }
            Act::AbortAll => self.model.admin_abort_all(),
            Act::VmLimit(most) => self.limit_vms(most),
            Act::NewSource => self.source.0 += 1,
            Act::Admin(admin, which) => self.admin(n, admin, which),
            Act::Stuck(stuck, which) => self.stick(n, stuck, which),
            Act::Crash(down) => {
                if self.plugins[n].group.is_some() {
                    self.die(n);
                    self.at(self.now + down, Happening::Start(n));
                }
            }
            Act::Restart(down) => {
                let (keep, whom) = (self.plan.policy.keep, self.process(n));
                let plugin = &mut self.plugins[n];
                if let Some(group) = &mut plugin.group {
                    group.shutdown(time);
                    plugin.audit.shutdown(keep, group);
                    plugin.shutting_down = Some(down);
                    self.at(self.now + 30_000, Happening::Killed { whom, down });
                }
            }
            Act::Increase(_)
            | Act::Decrease(_)
            | Act::DecreaseAll
            | Act::Suspend(_)
            | Act::SuspendAll
            | Act::Resume(_)
            | Act::Heartbeat(_) => self.ask(n, act),
        }
    }

    /// The calls of the host. It sees nothing before Init has answered, and calls nothing after Shutdown.
    fn ask(&mut self, n: usize, act: Act) {
        let (time, may_suspend) = (self.time(n), self.may_suspend(n));
        let plugin = &mut self.plugins[n];
        if plugin.starting || plugin.shutting_down.is_some() {
            return;
        }
        let Some(group) = plugin.group.as_mut() else { return };
        let audit = &mut plugin.audit;
        let ids: Vec<Name> = group.update().map(|(name, _)| name.clone()).collect();
        let nth = |n: u64| ids.get((n % ids.len().max(1) as u64) as usize).cloned();
        if let Some(host) = &mut plugin.host {
            // The simulated host makes its own calls.
            match act {
                Act::Increase(count) => host.wished = (host.wished + count).min(self.plan.policy.max_size),
                Act::Decrease(which) => nth(which).iter().for_each(|name| host.remove(name)),
                Act::DecreaseAll => host.wished = 0,
                _ => {}
            }
            if matches!(act, Act::Increase(_) | Act::Decrease(_) | Act::DecreaseAll | Act::Heartbeat(_)) {
                return;
            }
        }
        match act {
            Act::Increase(count) => {
                let before: BTreeSet<Name> = ids.iter().cloned().collect();
                let accepted = group.increase(time, count);
                audit.increased(accepted, &before, group, &self.model);
                self.score.created += u64::from(accepted);
            }
            Act::Decrease(which) => {
                if let Some(id) = nth(which) {
                    audit.asked(&id);
                    let done = group.decrease(time, std::slice::from_ref(&id));
                    audit.decreased(&[id], &done);
                }
            }
            Act::DecreaseAll => {
                ids.iter().for_each(|id| audit.asked(id));
                let done = group.decrease(time, &ids);
                audit.decreased(&ids, &done);
            }
            Act::Suspend(_) | Act::SuspendAll if may_suspend => {
                let chosen: Vec<Name> = match act {
                    Act::Suspend(which) => nth(which).into_iter().collect(),
                    _ => ids,
                };
                let before: BTreeMap<Name, State> = group.update().map(|(name, s)| (name.clone(), s)).collect();
                let done = group.suspend(time, &chosen).succeeded;
                audit.suspended(&chosen, &done, &before);
            }
            Act::Resume(which) if may_suspend => {
                if let Some(id) = nth(which) {
                    let state = group.update().find(|(name, _)| **name == id).map(|(_, state)| state);
                    let done = group.resume(time, std::slice::from_ref(&id)).succeeded;
                    audit.resumed(&id, !done.is_empty(), state, self.now);
                }
            }
            Act::Heartbeat(which) => {
                if let Some(id) = nth(which) {
                    let healthy = group.heartbeat(time, &id).is_ok();
                    let state = group.update().find(|(name, _)| **name == id).map(|(_, state)| state);
                    audit.heartbeat(&id, healthy, state);
                }
            }
            _ => {}
        }
    }

    /// The n-th existing owned vApp.
    fn one_of_ours(&self, n: usize, which: u64) -> Option<VappId> {
        let there = |id: &VappId| self.model.vapps.contains_key(id);
        let ours: Vec<VappId> = self.plugins[n].audit.ours.keys().copied().filter(there).collect();
        ours.get((which % ours.len().max(1) as u64) as usize).copied()
    }

    pub fn limit_vms(&mut self, most: u32) {
        if let Some(vdc) = self.model.vdcs.get_mut(&self.vdc) {
            vdc.vm_limit = (most > 0).then_some(most);
        }
    }

    fn stick(&mut self, n: usize, stuck: Stuck, which: u64) {
        let Some(id) = self.one_of_ours(n, which) else { return };
        let mut faults = self.model.vapps[&id].faults;
        match stuck {
            Stuck::DeleteFails => faults.delete_fails = true,
            Stuck::ForceFails => faults.force_fails = true,
            Stuck::Locked => faults.locked = true,
            Stuck::Hangs => faults.hangs = true,
            Stuck::Breaks => faults.breaks = true,
            Stuck::Unfound => faults.unfound = true,
            Stuck::Unread => faults.unread = true,
            Stuck::Unlisted => faults.unlisted = true,
            Stuck::KeepsTasks => (faults.hangs, faults.keeps_tasks) = (true, true),
            Stuck::HidesTasks => {
                self.occupy_vapp(id, which);
                faults.hides_tasks = true;
                // The plugin cannot know that a task still runs.
                self.plugins.iter_mut().for_each(|plugin| plugin.audit.came_late(id));
            }
        }
        self.say(|| format!("== {stuck:?} {}", super::vcd::href(id)));
        self.model.admin_faults(id, faults);
    }

    /// A person's task works on a vApp for up to 20 minutes.
    fn occupy_vapp(&mut self, id: VappId, which: u64) {
        let seconds = 30 + which * 20;
        self.model.inject.slow = Some((seconds * 1000) as f64 / self.model.durations.metadata as f64);
        let note = vec![("note".into(), Some(("MetadataStringValue".into(), "by a person".into())))];
        self.model.set_metadata(self.who, model::Target::Vapp(id), note).ok();
        self.model.inject = model::Inject::default();
    }

    /// A foreign vApp: no plugin may change it.
    fn foreign(&mut self, made: Option<VappId>) {
        for plugin in &mut self.plugins {
            plugin.audit.foreign.extend(made);
        }
    }

    fn admin(&mut self, n: usize, admin: Admin, which: u64) {
        let name = format!("{PREFIX}-{which:08}");
        let text = match admin {
            Admin::Foreign => "somebody's".to_string(),
            Admin::OtherManager => tag_of_another(&name),
            _ => {
                if let Some(id) = self.target_of(n, admin, which) {
                    self.admin_of(n, admin, id, which);
                }
                return;
            }
        };
        let made = self.model.admin_foreign_vm(self.vdc, &name, &text, self.template, self.network);
        self.foreign(made);
    }

    /// The n-th owned vApp. An action that undoes another one gets the first vApp that the other was done to.
    fn target_of(&self, n: usize, admin: Admin, which: u64) -> Option<VappId> {
        let undoes = |vm: &model::Vm| match admin {
            Admin::HostUp => vm.host_down,
            Admin::PowerOn => matches!(vm.power, Power::Off | Power::Suspended),
            _ => false,
        };
        let ours = self.plugins[n].audit.ours.keys();
        let undone = |id: &&VappId| {
            let vms = self.model.vapps.get(id).map(|vapp| &*vapp.vms).unwrap_or_default();
            vms.iter().filter_map(|vm| self.model.vms.get(vm)).any(undoes)
        };
        match admin {
            Admin::HostUp | Admin::PowerOn => ours.into_iter().find(undone).copied(),
            _ => self.one_of_ours(n, which),
        }
    }

    /// An action on an owned vApp. If a person changes the vApp, its instance may be lost. If only its records change, it
    /// may not.
    fn admin_of(&mut self, n: usize, admin: Admin, id: VappId, which: u64) {
        let name = &format!("{PREFIX}-{which:08}");
        self.say(|| format!("== {admin:?} {}", super::vcd::href(id)));
        let ours = |vm: &VmId| !self.plugins[n].audit.foreign_vms.contains_key(vm);
        let vm = self.model.vapps[&id].vms.iter().copied().find(ours);
        // This may be the one create that an open breaker allows.
        let pace = &mut self.plugins[n].audit.pace;
        pace.excused = pace.excused.max(self.now + super::READY + 5 * MINUTE);
        let audit = &mut self.plugins[n].audit;
        match admin {
            Admin::Foreign | Admin::OtherManager => {}
            Admin::Copy => {
                let text = self.model.vapps[&id].description.clone();
                let made = self.model.admin_foreign_vm(self.vdc, name, &text, self.template, self.network);
                self.foreign(made);
            }
            Admin::Delete => {
                audit.touched(id);
                self.model.admin_delete_vapp(id);
            }
            Admin::PowerOff | Admin::Suspend | Admin::PowerOn => {
                audit.touched(id);
                let power = match admin {
                    Admin::PowerOff => Power::Off,
                    Admin::PowerOn => Power::On,
                    _ => Power::Suspended,
                };
                let is_suspended = vm.is_some_and(|vm| self.model.vms[&vm].power == Power::Suspended);
                if power == Power::On && is_suspended && is_marked_standby(&self.model.vapps[&id]) {
                    audit.by_hand.insert(id);
                }
                self.model.admin_power(id, power);
            }
            Admin::Rename => {
                audit.touched(id);
                audit.taken.insert(id);
                audit.renamed.insert(id, self.now);
                self.model.admin_rename_vapp(id, &format!("kept-{name}"));
            }
            Admin::RenameBack => {
                if let Some((id, _)) = audit.renamed.pop_first()
                    && let Some((name, _)) = audit.ours.get(&id)
                {
                    self.model.admin_rename_vapp(id, name);
                }
            }
            Admin::DescribeVapp => {
                audit.touched(id);
                audit.taken.insert(id);
                self.model.admin_describe_vapp(id, "kept for an inspection");
            }
            Admin::Task => {
                audit.pace.disturbed(self.now);
                self.occupy_vapp(id, which);
            }
            Admin::AddVm | Admin::AddOtherVm => {
                let text = match admin {
                    Admin::AddVm => "somebody's".to_string(),
                    _ => tag_of_another(name),
                };
                if let Some(vm) = self.model.admin_add_vm(id, "somebodys", &text) {
                    audit.foreign_vms.insert(vm, audit.pace.seen_clearly);
                }
            }
            Admin::DeleteVm | Admin::MoveVm | Admin::HostDown | Admin::HostUp => {
                let Some(vm) = vm else { return };
                audit.touched(id);
                match admin {
                    Admin::DeleteVm => self.model.admin_delete_vm(vm),
                    Admin::MoveVm => {
                        audit.foreign_vms.insert(vm, audit.pace.seen_clearly);
                        let to = self.model.admin_move_vm(vm, name);
                        self.foreign(to);
                    }
                    _ => self.model.admin_host_down(vm, admin == Admin::HostDown),
                }
            }
            Admin::DescribeVm | Admin::NoteVm | Admin::NewAddress | Admin::HideAddress | Admin::CustomizationFails => {
                let Some(vm) = vm else { return };
                match admin {
                    Admin::DescribeVm => self.model.admin_describe_vm(vm, "number 5, be careful"),
                    Admin::NoteVm => {
                        let text = format!("{}, be careful", self.model.vms[&vm].description);
                        self.model.admin_describe_vm(vm, &text);
                    }
                    Admin::NewAddress => self.model.admin_new_address(vm),
                    Admin::HideAddress => self.model.admin_hide_address(vm, true),
                    _ if self.model.vms[&vm].gc == model::GcStatus::Complete => {
                        self.model.admin_customization_failed(vm);
                    }
                    _ => {}
                }
            }
        }
    }
}

/// The owner tag of another manager of the same group.
fn tag_of_another(name: &str) -> String {
    format!("fleeting-plugin-vcd/1 manager=runner-9 group={GROUP} id={name}")
}
