//! The model in virtual time: the effect of each operation, its duration, and its rejections.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests"
)]

use std::sync::Arc;
use vcd_sim::model::*;

struct World {
    m: Model,
    who: UserId,
    vdc: VdcId,
    network: NetworkId,
}

fn world() -> World {
    let m = Model::standard(7);
    let who = m.user("ci").unwrap();
    let (vdc, network) = (*m.vdcs.keys().next().unwrap(), *m.networks.keys().next().unwrap());
    World { m, who, vdc, network }
}

impl World {
    fn template(&self, name: &str) -> TemplateId {
        *self.m.templates.iter().find(|(_, t)| *t.name == *name).unwrap().0
    }

    fn request(&self, template: &str, name: &str) -> Create {
        let mut item = Item::new(self.m.templates[&self.template(template)].vms[0]);
        item.name = Some(name.into());
        item.needs_customization = true;
        item.nics = Some(vec![nic("ci-net", IpMode::Pool)]);
        item.guest = Some(GuestSection {
            enabled: true,
            script: Some("#!/bin/sh".into()),
            computer_name: Some(name.into()),
            ..GuestSection::default()
        });
        let parent = Some(self.network);
        Create {
            name: name.into(),
            networks: vec![VappNetwork { name: "ci-net".into(), parent, fence: Fence::Bridged }],
            items: vec![item],
            ..Create::default()
        }
    }

    fn try_create(&mut self, change: impl FnOnce(&mut Create)) -> Result<(VappId, TaskId), Refusal> {
        let mut create = self.request("ubuntu-22.04", "ci-one");
        change(&mut create);
        let template = self.template("ubuntu-22.04");
        self.m.instantiate(self.who, self.vdc, template, create)
    }

    /// A running vApp whose guest is ready.
    fn running(&mut self, name: &str) -> (VappId, VmId) {
        let (vapp, task) = self.try_create(|c| (c.name, c.items[0].name) = (name.into(), Some(name.into()))).unwrap();
        self.m.advance(self.m.now() + 60_000);
        assert_eq!(self.m.tasks[&task].status, TaskStatus::Success);
        (vapp, self.m.vapps[&vapp].vms[0])
    }

    fn wait(&mut self, task: Result<TaskId, Refusal>) -> TaskStatus {
        let task = task.unwrap();
        self.m.advance(self.m.now() + 60_000);
        self.m.tasks[&task].status
    }

    fn status(&self, vapp: VappId) -> Status {
        self.m.vapp_status(&self.m.vapps[&vapp])
    }

    fn fail(&mut self, step: u8) {
        let error = TaskError { major: 500, minor: "X".into(), message: "y".into() };
        self.m.inject.task = Some(TaskFault { step, kind: TaskFaultKind::Fail(error) });
    }
}

fn nic(network: &str, mode: IpMode) -> Nic {
    let network: Option<Arc<str>> = Some(network.into());
    Nic { index: 0, network, mode, address: None, connected: true, adapter: "VMXNET3".into() }
}

fn refused<T: std::fmt::Debug>(result: Result<T, Refusal>, status: u16, minor: &str, text: &str) {
    let refusal = result.expect_err(text);
    assert_eq!((refusal.status, &*refusal.minor), (status, minor), "{}", refusal.message);
    assert!(refusal.message.contains(text), "{}", refusal.message);
}

#[test]
fn each_step_of_a_create_has_its_duration() {
    let mut w = world();
    let (vapp, task) = w.try_create(|_| ()).unwrap();
    let vm = w.m.vapps[&vapp].vms[0];
    type Step = (u64, fn(&World) -> bool);
    let steps: [Step; 13] = [
        (1_999, |w| w.m.query_vms(w.who, None).is_empty() && w.m.query_vapps(w.who, None)[0].vms == 0),
        (2_000, |w| w.m.query_vms(w.who, None)[0].status == Status::Unresolved),
        (19_999, |w| w.m.query_vms(w.who, None)[0].address.is_none()),
        (20_000, |w| w.m.query_vms(w.who, None)[0].status == Status::PoweredOff),
        (20_000, |w| w.m.query_vms(w.who, None)[0].address.is_some()),
        (29_999, |w| w.m.is_busy(Target::Vapp(w.m.query_vapps(w.who, None)[0].id))),
        (29_999, |w| w.m.query_vapps(w.who, None)[0].status == Status::Unresolved),
        (30_000, |w| w.m.query_vms(w.who, None)[0].status == Status::PoweredOn),
        (30_000, |w| !w.m.query_vms(w.who, None)[0].busy),
        (54_999, |w| w.m.query_vms(w.who, None)[0].gc == GcStatus::Pending),
        (55_000, |w| w.m.query_vms(w.who, None)[0].gc == GcStatus::Complete),
        (57_999, |w| w.m.guests().next().is_none()),
        (58_000, |w| w.m.guests().count() == 1),
    ];
    for (i, (at, holds)) in steps.iter().enumerate() {
        w.m.advance(*at);
        assert!(holds(&w), "step {i} at {at}");
    }
    assert_eq!(w.m.tasks[&task].end, Some(30_000));
    assert_eq!(w.m.vm_at("127.0.10.2".parse().unwrap()), Some(vm));
    assert_eq!(w.m.next_due(), None);
}

#[test]
fn next_due_returns_every_time_on_the_agenda() {
    let mut w = world();
    w.try_create(|_| ()).unwrap();
    let mut times = Vec::new();
    while let Some(due) = w.m.next_due() {
        w.m.advance(due);
        times.push(due);
    }
    assert_eq!(times, [20_000, 30_000, 40_000, 55_000, 58_000]);
}

#[test]
fn a_dhcp_address_comes_after_power_on() {
    let mut w = world();
    w.try_create(|c| c.items[0].nics = Some(vec![nic("ci-net", IpMode::Dhcp)])).unwrap();
    w.m.advance(39_999);
    assert_eq!(w.m.query_vms(w.who, None)[0].address, None);
    w.m.advance(40_000);
    assert_eq!(w.m.query_vms(w.who, None)[0].address, Some("127.0.20.2".parse().unwrap()));
}

/// A VM with a DHCP address, suspended for `ms`.
fn suspended_for(w: &mut World, name: &str, ms: u64) -> VmId {
    let create = |c: &mut Create| {
        (c.name, c.items[0].name) = (name.into(), Some(name.into()));
        c.items[0].nics = Some(vec![nic("ci-net", IpMode::Dhcp)]);
    };
    let (vapp, _) = w.try_create(create).unwrap();
    w.m.advance(w.m.now() + 60_000);
    w.m.power(w.who, Target::Vapp(vapp), PowerAction::Suspend).unwrap();
    w.m.advance(w.m.now() + 12_000 + ms);
    w.m.vapps[&vapp].vms[0]
}

#[test]
fn a_suspended_vm_keeps_its_dhcp_address_as_long_as_its_lease() {
    let mut w = world();
    w.m.settings.dhcp_lease = Some(100_000);
    let address = |w: &World, vm: VmId| w.m.vms[&vm].address().unwrap().to_string();
    let vm = suspended_for(&mut w, "ci-one", 90_000);
    w.m.power(w.who, Target::Vm(vm), PowerAction::On).unwrap();
    w.m.advance(w.m.now() + 10_000 + 3_000);
    assert_eq!((address(&w, vm).as_str(), w.m.vms[&vm].ssh), ("127.0.20.2", true));

    // After the lease, another VM may have the address. VCD shows the new address late.
    let two = suspended_for(&mut w, "ci-two", 100_001);
    let three = suspended_for(&mut w, "ci-three", 0);
    assert_eq!(address(&w, two), address(&w, three));
    w.m.power(w.who, Target::Vm(two), PowerAction::On).unwrap();
    w.m.advance(w.m.now() + 10_000 + 9_999);
    assert_eq!((address(&w, two), w.m.vms[&two].ssh), (address(&w, three), false));
    w.m.advance(w.m.now() + 1);
    assert_eq!((address(&w, two).as_str(), w.m.vms[&two].ssh), ("127.0.20.4", false));
    w.m.advance(w.m.now() + 3_000);
    assert!(w.m.vms[&two].ssh);
    assert_eq!(w.m.vm_at("127.0.20.3".parse().unwrap()), Some(three));
}

#[test]
fn creates_with_invalid_values_are_rejected() {
    type Case = (&'static str, fn(&mut Create));
    let cases: [Case; 11] = [
        ("multiple of the number of cores", |c| c.items[0].hardware.cores_per_socket = Some(3)),
        ("multiple of 4", |c| c.items[0].hardware.memory_mb = Some(4098)),
        ("cannot be reduced", |c| c.items[0].hardware.disks = DiskChange::Resize(vec![Disk { id: 2000, mb: 1 }])),
        ("unknown network", |c| c.items[0].nics = Some(vec![nic("nowhere", IpMode::Pool)])),
        ("parent network", |c| c.networks[0].name = "other".into()),
        ("no parent", |c| c.networks[0].parent = None),
        ("exclude", |c| {
            let guest = c.items[0].guest.as_mut().unwrap();
            (guest.admin_password_auto, guest.admin_password) = (true, Some("x".into()));
        }),
        ("AutoLogon", |c| c.items[0].guest.as_mut().unwrap().admin_auto_logon_enabled = true),
        ("49000", |c| c.items[0].guest.as_mut().unwrap().script = Some("x".repeat(49_001).into())),
        ("shorter", |c| c.lease = Some(Lease { deployment_s: 10, storage_s: 0 })),
        ("128 characters", |c| c.name = "".into()),
    ];
    for (text, change) in cases {
        let mut w = world();
        refused(w.try_create(change), 400, "BAD_REQUEST", text);
        assert!(w.m.vapps.is_empty() && w.m.vms.is_empty() && w.m.tasks.is_empty(), "{text}");
    }
}

#[test]
fn a_name_in_use_is_rejected() {
    let mut w = world();
    w.try_create(|_| ()).unwrap();
    refused(w.try_create(|_| ()), 400, "DUPLICATE_NAME", "already exists");
    w.m.settings.allow_duplicate_names = true;
    w.try_create(|_| ()).unwrap();
    assert_eq!(w.m.vapps_named("ci-one").len(), 2);
}

#[test]
fn a_busy_vapp_rejects_other_tasks() {
    let mut w = world();
    let (vapp, task) = w.try_create(|_| ()).unwrap();
    let text = format!("VDC_INSTANTIATE_VAPP(com.vmware.vcloud.entity.task:{})", w.m.uuid(task));
    w.m.advance(25_000);
    let (target, vm) = (Target::Vapp(vapp), Target::Vm(w.m.vapps[&vapp].vms[0]));
    refused(w.m.delete_vapp(w.who, vapp, true), 400, "BUSY_ENTITY", &text);
    refused(w.m.power(w.who, vm, PowerAction::Off), 400, "BUSY_ENTITY", &text);
    refused(w.m.set_metadata(w.who, target, vec![("k".into(), None)]), 400, "BUSY_ENTITY", &text);
    w.m.advance(30_000);
    w.m.set_metadata(w.who, vm, vec![("k".into(), None)]).unwrap();
    refused(w.m.delete_vapp(w.who, vapp, true), 400, "BUSY_ENTITY", "METADATA_UPDATE");
}

#[test]
fn power_actions_depend_on_the_state() {
    let mut w = world();
    let (vapp, vm) = w.running("ci-power");
    let all = Target::Vapp(vapp);
    let no = |r: Result<TaskId, Refusal>| refused(r, 400, "BAD_REQUEST", "could not be executed");
    no(w.m.power(w.who, all, PowerAction::On));
    no(w.m.discard_suspended_state(w.who, all));
    no(w.m.deploy(w.who, all, true, false));
    let steps: [(PowerAction, u64, Status); 5] = [
        (PowerAction::Reset, 5_000, Status::PoweredOn),
        (PowerAction::Suspend, 12_000, Status::Suspended),
        (PowerAction::On, 10_000, Status::PoweredOn),
        (PowerAction::Shutdown, 5_000, Status::PartiallyPoweredOff),
        (PowerAction::On, 10_000, Status::PoweredOn),
    ];
    for (action, time, status) in steps {
        let task = w.m.power(w.who, all, action).unwrap();
        w.m.advance(w.m.now() + 100_000);
        let done = &w.m.tasks[&task];
        assert_eq!((done.end.unwrap() - done.start, w.status(vapp)), (time, status), "{action:?}");
    }
    let task = w.m.power(w.who, Target::Vm(vm), PowerAction::Suspend);
    w.wait(task);
    assert!(w.m.guests().next().is_none());
    no(w.m.power(w.who, all, PowerAction::Suspend));
    let task = w.m.discard_suspended_state(w.who, all);
    w.wait(task);
    assert_eq!(w.status(vapp), Status::PoweredOff);
    no(w.m.undeploy(w.who, all, UndeployAction::PowerOff));
    for action in [PowerAction::Off, PowerAction::Shutdown, PowerAction::Reset, PowerAction::Reboot] {
        no(w.m.power(w.who, all, action));
    }
}

#[test]
fn only_a_stopped_vapp_is_deleted_without_force() {
    let mut w = world();
    let (vapp, vm) = w.running("ci-stop");
    let stop = "could not be executed on vApp \"ci-stop\". Stop the vApp and try again.";
    refused(w.m.delete_vapp(w.who, vapp, false), 400, "BAD_REQUEST", stop);
    let off = w.m.power(w.who, Target::Vapp(vapp), PowerAction::Off);
    w.wait(off);
    refused(w.m.delete_vapp(w.who, vapp, false), 400, "BAD_REQUEST", stop);
    let undeploy = w.m.undeploy(w.who, Target::Vapp(vapp), UndeployAction::PowerOff);
    w.wait(undeploy);
    let delete = w.m.delete_vapp(w.who, vapp, false).unwrap();
    w.m.advance(w.m.now() + 4_000);
    assert_eq!(w.m.tasks[&delete].status, TaskStatus::Success);
    let text = format!("entity com.vmware.vcloud.entity.vapp:{} does not exist.", w.m.uuid(vapp));
    refused(w.m.get_vapp(w.who, vapp), 403, "ACCESS_TO_RESOURCE_IS_FORBIDDEN", &text);
    w.m.settings.gone_is_404 = true;
    refused(w.m.get_vm(w.who, vm), 404, "RESOURCE_NOT_FOUND", "No access to entity");
    assert_eq!(w.m.vm_at("127.0.10.2".parse().unwrap()), None);

    let (vapp, _) = w.running("ci-force");
    let delete = w.m.delete_vapp(w.who, vapp, true).unwrap();
    let start = w.m.now();
    w.m.advance(start + 60_000);
    assert_eq!(w.m.tasks[&delete].end, Some(start + 9_000));
    assert!(w.m.vapps.is_empty() && w.m.vms.is_empty());
}

#[test]
fn operations_need_their_rights() {
    for right in Right::ALL {
        let mut w = world();
        let (vapp, vm) = w.running("ci-rights");
        w.m.settings.force_needs_right = true;
        w.m.users.get_mut(&w.who).unwrap().rights.retain(|r| *r != right);
        let result = match right {
            Right::Create => w.try_create(|_| ()).map(|(_, t)| t),
            Right::Delete => w.m.delete_vapp(w.who, vapp, true),
            Right::Power => w.m.power(w.who, Target::Vapp(vapp), PowerAction::Off),
            Right::Edit => w.m.update_vm(w.who, vm, VmChange::default()),
            Right::Force => w.m.delete_vapp(w.who, vapp, true),
            // No operation of the model needs it: the front checks it.
            Right::ViewOrg => continue,
        };
        refused(result, 403, "ACCESS_TO_RESOURCE_IS_FORBIDDEN", right.name());
    }
}

#[test]
fn another_org_sees_nothing() {
    let mut w = world();
    let (vapp, _) = w.running("ci-mine");
    let org = w.m.add_org("other");
    let other = w.m.add_user(org, "other", "x", &Right::ALL);
    assert!(w.m.query_vms(other, None).is_empty() && w.m.query_tasks(other).next().is_none());
    refused(w.m.delete_vapp(other, vapp, true), 403, "ACCESS_TO_RESOURCE_IS_FORBIDDEN", "does not exist");
    assert!(w.m.login_token("other", "sim-api-token").is_err());
}

#[test]
fn quotas_hold_at_the_request_or_in_the_task() {
    let storage = "exceed the VDC's storage quota";
    let mut w = world();
    let profile = *w.m.profiles.keys().next().unwrap();
    w.m.profiles.get_mut(&profile).unwrap().limit_mb = 30_000;
    w.running("ci-fits");
    refused(w.try_create(|_| ()), 400, "BAD_REQUEST", storage);
    w.m.settings.storage_quota_in_task = true;
    let (vapp, task) = w.try_create(|_| ()).unwrap();
    w.m.advance(w.m.now() + 60_000);
    assert!(w.m.tasks[&task].error.as_ref().unwrap().message.contains(storage));
    assert_eq!((w.status(vapp), w.m.vapps[&vapp].vms.len()), (Status::FailedCreation, 0));

    let mut w = world();
    w.m.vdcs.get_mut(&w.vdc).unwrap().vm_limit = Some(1);
    w.running("ci-fits");
    refused(w.try_create(|_| ()), 400, "BAD_REQUEST", "VM quota");

    let limits: [fn(&mut World); 3] = [
        |w| w.m.vdcs.get_mut(&w.vdc).unwrap().cpu_limit = Some(3),
        |w| w.m.vdcs.get_mut(&w.vdc).unwrap().memory_limit_mb = Some(5000),
        |w| {
            let pool = &mut w.m.networks.get_mut(&w.network).unwrap().pool;
            pool.1 = pool.0;
        },
    ];
    for (limit, text) in limits.iter().zip(["CPU quota", "memory quota", "insufficient IP addresses"]) {
        let mut w = world();
        limit(&mut w);
        w.running("ci-fits");
        let (vapp, task) = w.try_create(|_| ()).unwrap();
        w.m.advance(w.m.now() + 60_000);
        assert!(w.m.tasks[&task].error.as_ref().unwrap().message.contains(text), "{text}");
        assert_eq!((w.status(vapp), w.m.vapps[&vapp].vms.len()), (Status::PoweredOff, 1), "{text}");
    }
}

#[test]
fn the_org_limits_operations() {
    let mut w = world();
    w.m.orgs.values_mut().next().unwrap().max_running = Some(1);
    w.try_create(|_| ()).unwrap();
    let limit = "The maximum number of simultaneous operations for organization \"ci-org\" has been reached.";
    refused(w.try_create(|c| c.name = "ci-two".into()), 503, "OPERATION_LIMIT_EXCEEDED", limit);
    w.m.advance(30_000);
    w.try_create(|c| c.name = "ci-two".into()).unwrap();
}

#[test]
fn a_failed_or_cancelled_create_leaves_its_vapp_and_vms() {
    for cancelled in [false, true] {
        for (step, status, vms) in [(0, Status::FailedCreation, 0), (1, Status::PoweredOff, 1)] {
            let mut w = world();
            if !cancelled {
                w.fail(step);
            }
            let (vapp, task) = w.try_create(|_| ()).unwrap();
            assert!(w.m.inject == Inject::default());
            w.m.advance(if step == 0 { 5_000 } else { 22_000 });
            if cancelled {
                w.m.cancel_task(w.who, task).unwrap();
            }
            w.m.advance(60_000);
            let ended = if cancelled { TaskStatus::Canceled } else { TaskStatus::Error };
            assert_eq!((w.m.tasks[&task].status, w.status(vapp)), (ended, status));
            assert_eq!(w.m.vapps[&vapp].vms.len(), vms);
            assert!(!w.m.is_busy(Target::Vapp(vapp)));
            refused(w.m.cancel_task(w.who, task), 400, "BAD_REQUEST", "ended already");
            let delete = w.m.delete_vapp(w.who, vapp, false);
            assert_eq!(w.wait(delete), TaskStatus::Success);
        }
    }
}

#[test]
fn a_task_that_hangs_ends_only_by_cancel() {
    let mut w = world();
    w.m.inject.task = Some(TaskFault { step: 1, kind: TaskFaultKind::Hang });
    let (vapp, task) = w.try_create(|_| ()).unwrap();
    w.m.advance(10_000_000);
    assert_eq!(w.m.tasks[&task].status, TaskStatus::Running);
    w.m.cancel_task(w.who, task).unwrap();
    w.m.advance(10_002_000);
    assert_eq!((w.m.tasks[&task].status, w.status(vapp)), (TaskStatus::Canceled, Status::PoweredOff));
}

#[test]
fn guests_have_the_injected_faults() {
    let cases = [
        (GuestFault::CustomizationFails, GcStatus::Failed, 1, Status::PoweredOn),
        (GuestFault::NeverCustomizes, GcStatus::Pending, 0, Status::PoweredOn),
        (GuestFault::NeverReports, GcStatus::Pending, 1, Status::PoweredOn),
        (GuestFault::NoSsh, GcStatus::Complete, 0, Status::PoweredOn),
        (GuestFault::ShutsDown, GcStatus::Complete, 0, Status::PartiallyPoweredOff),
    ];
    for (fault, gc, guests, status) in cases {
        let mut w = world();
        w.m.inject.guest = Some(fault);
        w.try_create(|_| ()).unwrap();
        w.m.advance(100_000);
        let vm = w.m.query_vms(w.who, None).pop().unwrap();
        assert_eq!((vm.gc, w.m.guests().count(), vm.status), (gc, guests, status), "{fault:?}");
    }
}

#[test]
fn customization_runs_once_and_only_if_enabled() {
    let mut w = world();
    w.try_create(|c| c.items[0].needs_customization = false).unwrap();
    w.m.advance(100_000);
    let vm = *w.m.vms.keys().next().unwrap();
    assert_eq!((w.m.vms[&vm].applied.as_ref(), w.m.guests().count()), (None, 0));

    let mut w = world();
    let (vapp, vm) = w.running("ci-once");
    let guest = GuestSection { enabled: true, script: Some("later".into()), ..GuestSection::default() };
    let change = VmChange { guest: Some(guest), ..VmChange::default() };
    let task = w.m.update_vm(w.who, vm, change);
    w.wait(task);
    let target = Target::Vapp(vapp);
    let script = |w: &World| w.m.vms[&vm].applied.as_ref().and_then(|a| a.script.clone());
    for (customize, expected) in [(false, "#!/bin/sh"), (true, "later")] {
        let task = w.m.undeploy(w.who, target, UndeployAction::PowerOff);
        w.wait(task);
        let task = w.m.deploy(w.who, target, true, customize);
        w.wait(task);
        assert_eq!(script(&w).as_deref(), Some(expected));
    }
}

#[test]
fn a_bad_computer_name_fails_the_task() {
    for (template, name, good) in [
        ("windows-2022", "ci-123456789012", true),
        ("windows-2022", "ci-1234567890123", false),
        ("ubuntu-22.04", "ci-1234567890123", true),
        ("ubuntu-22.04", "12345", false),
        ("ubuntu-22.04", "a_b", false),
    ] {
        let mut w = world();
        let (create, id) = (w.request(template, name), w.template(template));
        let (_, task) = w.m.instantiate(w.who, w.vdc, id, create).unwrap();
        w.m.advance(60_000);
        let error = w.m.tasks[&task].error.as_ref().map(|e| e.message.as_str());
        let expected = "VM name or computer name not valid or they do not match.";
        assert_eq!(error, (!good).then_some(expected), "{template} {name}");
    }
}

#[test]
fn hardware_in_a_create_is_applied_ignored_or_refused() {
    let wish = |c: &mut Create| {
        c.items[0].hardware = Hardware {
            cpus: Some(8),
            cores_per_socket: Some(4),
            memory_mb: Some(16_384),
            disks: DiskChange::Resize(vec![Disk { id: 2000, mb: 40_960 }]),
        }
    };
    let outcome = |w: &World| {
        let vm = w.m.vms.values().next().unwrap();
        (vm.cpus, vm.cores_per_socket, vm.memory_mb, vm.disks[0].mb)
    };
    let mut w = world();
    w.try_create(wish).unwrap();
    assert_eq!(outcome(&w), (8, 4, 16_384, 40_960));
    let mut w = world();
    w.m.settings.hardware_in_create = HardwareInCreate::Ignore;
    w.try_create(wish).unwrap();
    assert_eq!(outcome(&w), (2, 1, 4096, 20_480));
    let mut w = world();
    w.m.settings.hardware_in_create = HardwareInCreate::Refuse;
    refused(w.try_create(wish), 400, "BAD_REQUEST", "VirtualHardwareSection");
    let mut w = world();
    let policy = *w.m.policies.keys().next().unwrap();
    w.try_create(|c| {
        wish(c);
        c.items[0].policy = Some(policy);
    })
    .unwrap();
    assert_eq!(outcome(&w), (2, 1, 4096, 40_960));
}

#[test]
fn properties_in_a_create_are_applied_ignored_or_refused() {
    for (setting, expected) in
        [(HardwareInCreate::Apply, Some(1)), (HardwareInCreate::Ignore, Some(0)), (HardwareInCreate::Refuse, None)]
    {
        let mut w = world();
        w.m.settings.properties_in_create = setting;
        let made = w.try_create(|c| c.items[0].properties = vec![("user-data".into(), "x".into())]);
        match expected {
            Some(count) => {
                let (vapp, _) = made.unwrap();
                let vm = w.m.vapps[&vapp].vms[0];
                assert_eq!(w.m.vms[&vm].properties.len(), count);
                let properties = Some(vec![("user-data".into(), "y".into())]);
                w.m.advance(60_000);
                let change = VmChange { properties, ..VmChange::default() };
                let task = w.m.update_vm(w.who, vm, change);
                assert_eq!(w.wait(task), TaskStatus::Success);
                assert_eq!(&*w.m.vms[&vm].properties[0].1, "y");
            }
            None => refused(made, 400, "BAD_REQUEST", "ProductSection"),
        }
    }
}

#[test]
fn what_a_create_leaves_out_stays_as_in_the_template() {
    let mut w = world();
    let guest = |w: &World| w.m.vms.values().next_back().unwrap().guest.clone();
    w.try_create(|c| c.items[0].guest = None).unwrap();
    assert!(guest(&w).enabled);
    w.try_create(|c| {
        c.name = "ci-two".into();
        c.items[0].guest.as_mut().unwrap().admin_password_enabled = true;
    })
    .unwrap();
    assert!(!guest(&w).admin_password_enabled, "without a password it is turned off without an error");
}

#[test]
fn a_templates_own_network_must_be_assigned() {
    let own = |setting| {
        let mut w = world();
        w.m.settings.own_network_in_create = setting;
        for vm in w.m.template_vms.values_mut() {
            vm.nics[0].network = Some("Internal Network".into());
        }
        w
    };
    let assigned = |inner: &'static str, to: &'static str| {
        move |c: &mut Create| c.items[0].assignments = vec![(inner.into(), to.into())]
    };
    let end = |w: &mut World, made: Result<(VappId, TaskId), Refusal>| {
        let (vapp, task) = made.unwrap();
        w.m.advance(60_000);
        let network = w.m.vapps[&vapp].vms.first().and_then(|v| w.m.vms[v].nics[0].network.clone());
        (w.m.tasks[&task].error.as_ref().map(|e| e.message.clone()), network)
    };
    let missing = Some("The VCD entity network \"Internal Network\" does not exist.".to_owned());
    let ours = Some(Arc::<str>::from("ci-net"));

    let mut w = own(OwnNetworkInCreate::Refuse);
    let made = w.try_create(|_| ());
    assert_eq!(end(&mut w, made), (missing, None));
    assert_eq!(w.status(w.m.vapps_named("ci-one")[0]), Status::FailedCreation);
    for setting in [OwnNetworkInCreate::Refuse, OwnNetworkInCreate::Ignore] {
        let mut w = own(setting);
        let made = w.try_create(assigned("Internal Network", "ci-net"));
        assert_eq!(end(&mut w, made), (None, ours.clone()));
    }
    let mut w = own(OwnNetworkInCreate::Ignore);
    let made = w.try_create(|_| ());
    assert_eq!(end(&mut w, made), (None, Some("Internal Network".into())));
    assert!(w.m.guests().next().is_none(), "it has no address");

    let mut w = world();
    refused(w.try_create(assigned("none", "ci-net")), 400, "BAD_REQUEST", "network \"none\" does not exist");
    refused(w.try_create(assigned("x", "other")), 400, "BAD_REQUEST", "network \"other\" does not exist");
    // VMware's own client composes like this.
    w.try_create(assigned("ci-net", "ci-net")).unwrap();
}

#[test]
fn a_create_can_fail_at_its_power_on() {
    let mut w = world();
    w.m.settings.create_fails_at_power_on = true;
    let (vapp, task) = w.try_create(|_| ()).unwrap();
    w.m.advance(60_000);
    assert_eq!((w.m.tasks[&task].status, w.status(vapp)), (TaskStatus::Error, Status::PoweredOff));
    let task = w.m.power(w.who, Target::Vapp(vapp), PowerAction::On);
    assert_eq!(w.wait(task), TaskStatus::Success);
    assert_eq!(w.status(vapp), Status::PoweredOn);
}

#[test]
fn nothing_is_created_from_a_template_that_is_not_ready() {
    for (state, expired, minor, text) in [
        (TemplateState::Copying, false, "BUSY_ENTITY", "is busy"),
        (TemplateState::Unresolved, false, "BAD_REQUEST", "not resolved"),
        (TemplateState::Ready, true, "BAD_REQUEST", "expired"),
    ] {
        let mut w = world();
        w.m.templates.values_mut().for_each(|t| (t.state, t.expired) = (state, expired));
        refused(w.try_create(|_| ()), 400, minor, text);
    }
}

#[test]
fn networks_of_other_vdcs_can_be_used_if_shared() {
    for (reach, serves) in [
        (Reach::Vdc, false),
        (Reach::Shared, true),
        (Reach::Listed, true),
        (Reach::Group, true),
        (Reach::GroupAlone, true),
        (Reach::GroupByVdc, true),
    ] {
        let mut w = world();
        let org = *w.m.orgs.keys().next().unwrap();
        let other = w.m.add_vdc(org, "other-vdc");
        let network = w.m.networks.get_mut(&w.network).unwrap();
        (network.vdc, network.reach) = (other, reach);
        match serves {
            true => _ = w.try_create(|_| ()).unwrap(),
            false => refused(w.try_create(|_| ()), 403, "ACCESS_TO_RESOURCE_IS_FORBIDDEN", "does not exist"),
        }
    }
}

#[test]
fn scripts_run_only_where_tools_allow_them() {
    for (scripts, gc, runs) in [
        (Scripts::Run, GcStatus::Complete, true),
        (Scripts::Skip, GcStatus::Complete, false),
        (Scripts::Fail, GcStatus::Failed, false),
    ] {
        let mut w = world();
        w.m.template_vms.values_mut().for_each(|vm| vm.scripts = scripts);
        let (_, vm) = w.running("ci-1");
        let vm = &w.m.vms[&vm];
        let applied = vm.applied.as_ref().unwrap();
        assert_eq!((vm.gc, applied.script.is_some(), vm.ssh), (gc, runs, true), "{scripts:?}");
        assert!(applied.computer_name.is_some());
    }
}

#[test]
fn item_ids_move_with_adapters_and_controllers() {
    let disks = |ids: &[u32]| ids.iter().map(|id| Disk { id: *id, mb: 1 }).collect::<Vec<_>>();
    for (adapters, all, scsi, sata, ide, cpu) in [
        (1, disks(&[2000]), vec![2], vec![], 3, 4),
        (2, disks(&[2000, 2001]), vec![3], vec![], 4, 5),
        (0, disks(&[2000, 2016]), vec![1, 2], vec![], 3, 4),
        (1, disks(&[16_000]), vec![], vec![2], 3, 4),
        (1, disks(&[16_030, 2000]), vec![2], vec![3, 4], 5, 6),
    ] {
        let ids = ItemIds::of(adapters, &all);
        assert_eq!((&ids.scsi, &ids.sata, ids.ide, ids.cpu, ids.memory), (&scsi, &sata, ide, cpu, cpu + 1));
        assert_eq!((ids.kind(cpu, &all), ids.kind(all[0].id, &all), ids.kind(999, &all)), (Some(3), Some(17), None));
    }
    assert_eq!([2000, 2001, 2016, 16_031].map(|id| Disk { id, mb: 1 }.place()), [(0, 0), (0, 1), (1, 0), (1, 1)]);
}

#[test]
fn a_vm_is_reconfigured_within_its_rules() {
    let mut w = world();
    let (vapp, vm) = w.running("ci-change");
    let hardware = |cpus| VmChange {
        hardware: Hardware { cpus: Some(cpus), cores_per_socket: Some(1), ..Hardware::default() },
        ..VmChange::default()
    };
    refused(w.m.update_vm(w.who, vm, hardware(4)), 400, "BAD_REQUEST", "hot add");
    w.m.vms.get_mut(&vm).unwrap().cpu_hot_add = true;
    refused(w.m.update_vm(w.who, vm, hardware(1)), 400, "BAD_REQUEST", "hot add");
    let task = w.m.update_vm(w.who, vm, hardware(4));
    assert_eq!((w.wait(task), w.m.vms[&vm].cpus), (TaskStatus::Success, 4));
    let tpm = || VmChange { tpm: Some(true), ..VmChange::default() };
    refused(w.m.update_vm(w.who, vm, tpm()), 400, "BAD_REQUEST", "Power it off");
    let task = w.m.undeploy(w.who, Target::Vapp(vapp), UndeployAction::PowerOff);
    w.wait(task);
    let task = w.m.update_vm(w.who, vm, tpm());
    assert_eq!((w.wait(task), w.m.vms[&vm].tpm), (TaskStatus::Success, true));

    // A disk section lists all disks.
    let disks = |disks| VmChange {
        hardware: Hardware { disks: DiskChange::Replace(disks), ..Hardware::default() },
        ..VmChange::default()
    };
    let task = w.m.update_vm(w.who, vm, disks(vec![Disk { id: 2001, mb: 100 }]));
    w.wait(task);
    assert_eq!(w.m.vms[&vm].disks, [Disk { id: 2001, mb: 100 }]);
    refused(w.m.update_vm(w.who, vm, disks(vec![Disk { id: 2001, mb: 99 }])), 400, "BAD_REQUEST", "reduced");

    // Linked clones can be enlarged only after a consolidation.
    w.m.vms.get_mut(&vm).unwrap().linked = true;
    let grow = || disks(vec![Disk { id: 2001, mb: 200 }]);
    let task = w.m.update_vm(w.who, vm, grow());
    assert_eq!(w.wait(task), TaskStatus::Error);
    let task = w.m.consolidate(w.who, vm);
    w.wait(task);
    let task = w.m.update_vm(w.who, vm, grow());
    assert_eq!(w.wait(task), TaskStatus::Success);
}

#[test]
fn a_vm_can_be_created_step_by_step() {
    let mut w = world();
    let mut create = w.request("ubuntu-22.04", "ci-steps");
    let items = std::mem::take(&mut create.items);
    let (vapp, task) = w.m.compose(w.who, w.vdc, create).unwrap();
    w.m.advance(2_000);
    assert_eq!((w.m.tasks[&task].status, w.status(vapp)), (TaskStatus::Success, Status::Resolved));
    let add = |name: &str| {
        let mut item = items[0].clone();
        item.name = Some(name.into());
        Recompose { add: vec![item], ..Recompose::default() }
    };
    let task = w.m.recompose(w.who, vapp, add("first"));
    assert_eq!((w.wait(task), w.status(vapp)), (TaskStatus::Success, Status::PoweredOff));
    refused(w.m.recompose(w.who, vapp, add("first")), 400, "DUPLICATE_NAME", "already a VM");
    w.fail(0);
    let task = w.m.recompose(w.who, vapp, add("second"));
    assert_eq!((w.wait(task), w.m.vapps[&vapp].vms.len()), (TaskStatus::Error, 1));
    let task = w.m.power(w.who, Target::Vapp(vapp), PowerAction::On);
    assert_eq!((w.wait(task), w.m.guests().count()), (TaskStatus::Success, 1));
    let remove = Recompose { remove: w.m.vapps[&vapp].vms.clone(), ..Recompose::default() };
    refused(w.m.recompose(w.who, vapp, remove), 400, "BAD_REQUEST", "Stop the VM");
}

#[test]
fn a_template_with_two_vms_creates_both() {
    let mut w = world();
    let (create, template) = (w.request("two-vms", "ci-two"), w.template("two-vms"));
    let (vapp, _) = w.m.instantiate(w.who, w.vdc, template, create).unwrap();
    w.m.advance(60_000);
    assert_eq!((w.m.vapps[&vapp].vms.len(), w.m.query_vapps(w.who, None)[0].vms), (2, 2));
    let vm = w.m.vapps[&vapp].vms[0];
    let task = w.m.power(w.who, Target::Vm(vm), PowerAction::Off);
    w.wait(task);
    assert_eq!(w.status(vapp), Status::Mixed);
}

#[test]
fn leases_end() {
    for (power_off, keep) in [(false, false), (true, true)] {
        let mut w = world();
        let leases = &mut w.m.orgs.values_mut().next().unwrap().leases;
        (leases.power_off, leases.keep_expired) = (power_off, keep);
        (leases.deployment_s, leases.storage_s) = ((0, 7200), (0, 0));
        let lease = Lease { deployment_s: 90_000, storage_s: 3600 };
        let (vapp, _) = w.try_create(|c| c.lease = Some(lease)).unwrap();
        w.m.advance(30_000 + 7_199_000);
        assert_eq!(w.status(vapp), Status::PoweredOn);
        w.m.advance(30_000 + 7_300_000);
        assert_eq!(w.status(vapp), if power_off { Status::PoweredOff } else { Status::Suspended });
        w.m.advance(30_000 + 7_300_000 + 3_700_000);
        assert_eq!(w.m.vapps.get(&vapp).map(|v| v.expired), keep.then_some(true));
    }
}

#[test]
fn queries_can_lag_or_omit_records() {
    let mut w = world();
    w.m.set_lag(4_000);
    w.m.advance(10_000);
    w.try_create(|_| ()).unwrap();
    w.m.advance(12_900);
    assert!(w.m.query_vapps(w.who, None).is_empty());
    w.m.advance(16_000);
    assert_eq!(w.m.query_vapps(w.who, None).len(), 1);
    w.m.set_lag(0);
    w.try_create(|c| c.name = "ci-two".into()).unwrap();
    assert_eq!(w.m.query_vapps(w.who, None).len(), 2);
    assert_eq!(w.m.query_vapps(w.who, Some(QueryFault::Partial)).len(), 1);
    assert_eq!(w.m.query_vapps(w.who, Some(QueryFault::Empty)).len(), 0);
}

#[test]
fn an_admin_changes_entities_without_the_client() {
    let mut w = world();
    let (vapp, task) = w.try_create(|_| ()).unwrap();
    w.m.advance(25_000);
    w.m.admin_delete_vapp(vapp);
    assert_eq!((w.m.tasks[&task].status, w.m.vms.len(), w.m.running_tasks()), (TaskStatus::Error, 0, 0));
    let grant = w.m.login_token("ci-org", "sim-api-token").unwrap();
    assert_eq!((w.m.authenticate(&grant.bearer), grant.life_s, grant.next), (Some(w.who), 86_400, None));
    w.m.advance(w.m.now() + 86_400_000);
    assert_eq!(w.m.authenticate(&grant.bearer), None);
    w.m.admin_revoke_token("sim-api-token");
    refused(w.m.login_token("ci-org", "sim-api-token"), 400, "invalid_grant", "Invalid refresh token");
    refused(w.m.login_password("ci-org", "ci", "wrong"), 401, "UNAUTHORIZED", "");
}

#[test]
fn a_service_accounts_token_is_valid_once_and_returns_the_next() {
    let mut w = world();
    let mut token = w.m.new_service_token(w.who);
    for _ in 0..3 {
        let grant = w.m.login_token("ci-org", &token).unwrap();
        assert_eq!(w.m.authenticate(&grant.bearer), Some(w.who));
        refused(w.m.login_token("ci-org", &token), 400, "invalid_grant", "Invalid refresh token");
        token = grant.next.unwrap();
    }
    assert_eq!(w.m.service_tokens.len(), 1);
    assert!(w.m.login_token("ci-org", "sim-api-token").unwrap().next.is_none(), "a user's token does not change");
}

#[test]
fn rejections_have_the_wording_of_the_release() {
    let mut w = world();
    let (vapp, _) = w.running("ci-one");
    w.m.settings.wording = Wording { stop_is_409: true, busy_names_a_task: true, duplicate_is_a_vm: true };
    refused(w.m.delete_vapp(w.who, vapp, false), 409, "CONFLICT", "Stop the vApp and try again.");
    let taken = w.try_create(|create| create.name = "ci-one".into());
    refused(taken, 400, "BAD_REQUEST", "There is already a VM named \"ci-one\".");
    w.m.undeploy(w.who, Target::Vapp(vapp), UndeployAction::PowerOff).unwrap();
    let busy = w.m.delete_vapp(w.who, vapp, false).unwrap_err();
    let said = |part: &str| busy.message.contains(part);
    assert_eq!((busy.status, &*busy.minor), (400, "BAD_REQUEST"));
    assert!(said("Contact your cloud administrator. ") && said("(com.vmware.vcloud.entity.task:"), "{busy:?}");
}

#[test]
fn the_same_seed_gives_the_same_world() {
    let play = |seed| {
        let mut w = world();
        w.m = Model::standard(seed);
        w.m.settings.jitter_percent = 30;
        for i in 0..20 {
            let name = format!("ci-{i}");
            w.try_create(|c| (c.name, c.items[0].name) = (name.as_str().into(), Some(name.as_str().into()))).unwrap();
        }
        let mut log = Vec::new();
        while let Some(due) = w.m.next_due() {
            w.m.advance(due);
            log.push((due, w.m.guest_changes));
        }
        let last = *w.m.vapps.keys().next_back().unwrap();
        (log, w.m.uuid(last))
    };
    assert_eq!(play(3), play(3));
    assert_ne!(play(3), play(4));
}

#[test]
fn deleted_vapps_leave_nothing_in_the_model() {
    let mut w = world();
    w.m.settings.task_kept = 3_600_000;
    for i in 0..2_000 {
        let (vapp, _) = w.running(&format!("ci-{i}"));
        let task = w.m.delete_vapp(w.who, vapp, true);
        assert_eq!(w.wait(task), TaskStatus::Success);
    }
    assert!(w.m.vapps.is_empty() && w.m.vms.is_empty() && w.m.networks[&w.network].used.is_empty());
    assert!(w.m.tasks.len() < 100, "{} tasks are kept", w.m.tasks.len());
}
