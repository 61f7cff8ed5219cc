//! The control port, JSON over HTTP: tests and demos read and change the world there without VCD's API.

use crate::faults::Rule;
use crate::front::{Counts, World};
use crate::model::*;
use crate::routes::{Reply, Request};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// Answers one request.
pub fn answer(world: &mut World, request: &Request) -> Reply {
    let path = request.path.trim_end_matches('/');
    let result = match (request.method.as_str(), path) {
        ("GET", "/state") => Ok(state(&world.model)),
        ("GET", "/counts") => Ok(counts(world)),
        ("POST", "/counts/reset") => {
            world.counts = Counts::default();
            Ok(json!({}))
        }
        ("GET", _) if path.starts_with("/guest/") => guest(&world.model, path.trim_start_matches("/guest/")),
        ("POST", "/faults") => body(request).and_then(|b| faults(world, &b)),
        ("DELETE", "/faults") => {
            world.faults.clear();
            Ok(json!({}))
        }
        ("POST", "/admin") => body(request).and_then(|b| admin(&mut world.model, &b)),
        ("POST", "/versions") => body(request).and_then(|b| {
            world.api.versions =
                versions(&b).ok_or("expected a list of versions; \"!\" at the end marks a deprecated one")?;
            Ok(json!({}))
        }),
        ("POST", "/scale") => body(request).and_then(|b| {
            let scale = b.get("scale").and_then(Value::as_f64).filter(|s| (0.001..=1_000_000.0).contains(s));
            world.clock.set_scale(scale.ok_or("scale: expected a number above 0")?);
            Ok(json!({}))
        }),
        _ => return Reply::json(404, &json!({"error": "no such path"})),
    };
    match result {
        Ok(value) => Reply::json(200, &value),
        Err(error) => Reply::json(400, &json!({"error": error})),
    }
}

fn body(request: &Request) -> Result<Value, String> {
    serde_json::from_slice(&request.body).map_err(|e| format!("JSON: {e}"))
}

fn versions(body: &Value) -> Option<Vec<(String, bool)>> {
    let one = |text: &str| (text.trim_end_matches('!').to_owned(), text.ends_with('!'));
    body.as_array()?.iter().map(|version| version.as_str().map(one)).collect()
}

fn counts(world: &World) -> Value {
    let c = &world.counts;
    let mut tasks: BTreeMap<&str, u64> = BTreeMap::new();
    for task in world.model.tasks.values() {
        *tasks.entry(task.operation.name()).or_default() += 1;
    }
    json!({
        "requests": c.requests, "total": c.requests.values().sum::<u64>(), "changing": c.changing,
        "accepted": c.accepted, "refusals": c.refusals, "tasks": tasks, "faults": world.faults.hits,
        "connections": c.connections, "sent": c.sent,
    })
}

fn vm_json(model: &Model, id: VmId, vm: &Vm) -> Value {
    let text = |t: &Option<std::sync::Arc<str>>| t.as_deref().map(String::from);
    json!({
        "id": model.uuid(id), "name": &*vm.name, "description": &*vm.description, "status": vm.status().name(),
        "deployed": vm.deployed, "ip": vm.address().map(|a| a.to_string()), "ssh": vm.ssh, "guest_os": &*vm.guest_os,
        "cpus": vm.cpus, "cores_per_socket": vm.cores_per_socket, "memory_mb": vm.memory_mb,
        "disks": vm.disks.iter().map(|d| json!({"id": d.id, "mb": d.mb})).collect::<Vec<_>>(), "tpm": vm.tpm,
        "network": vm.nic().and_then(|n| text(&n.network)), "ip_mode": vm.nic().map(|n| n.mode.name()),
        "storage_profile": model.profiles.get(&vm.profile).map(|p| &*p.name),
        "gc_status": vm.gc.name(), "computer_name": text(&vm.guest.computer_name),
        "script": text(&vm.guest.script), "password": text(&vm.guest.admin_password),
        "customized": vm.applied.is_some(), "busy": model.is_busy(Target::Vm(id)),
    })
}

fn state(model: &Model) -> Value {
    let vapps: Vec<Value> = model
        .vapps
        .iter()
        .map(|(id, v)| {
            let vms = v.vms.iter().filter_map(|id| model.vms.get(id).map(|vm| vm_json(model, *id, vm)));
            let metadata: BTreeMap<&str, &str> = v.metadata.iter().map(|(k, (_, t))| (&**k, &**t)).collect();
            json!({
                "id": model.uuid(*id), "name": &*v.name, "description": &*v.description,
                "status": model.vapp_status(v).name(), "deployed": v.deployed, "busy": model.is_busy(Target::Vapp(*id)),
                "metadata": metadata, "networks": v.networks.iter().map(|n| &*n.name).collect::<Vec<_>>(),
                "lease": {"deployment_s": v.lease.deployment_s, "storage_s": v.lease.storage_s},
                "created_ms": v.created, "vms": vms.collect::<Vec<_>>(),
            })
        })
        .collect();
    let tasks: Vec<Value> = model
        .tasks
        .iter()
        .map(|(id, t)| {
            let error = t.error.as_ref().map(|e| json!({"major": e.major, "minor": e.minor, "message": e.message}));
            json!({
                "id": model.uuid(*id), "operation": t.operation.name(), "status": t.status.name(),
                "target": &*t.target_name, "start_ms": t.start, "end_ms": t.end, "error": error,
            })
        })
        .collect();
    json!({"now_ms": model.now(), "vapps": vapps, "tasks": tasks})
}

fn guest(model: &Model, address: &str) -> Result<Value, String> {
    let address: Ipv4Addr = address.parse().map_err(|_| "not an IPv4 address".to_string())?;
    let id = model.vm_at(address).ok_or("no VM has this address")?;
    let vm = model.vms.get(&id).ok_or("no VM has this address")?;
    let text = |get: fn(&Applied) -> &Option<std::sync::Arc<str>>| {
        vm.applied.as_ref().and_then(|a| get(a).as_deref()).map(String::from)
    };
    Ok(json!({
        "vm": &*vm.name, "os": &*vm.guest_os, "ssh": vm.ssh, "customized": vm.applied.is_some(),
        "script": text(|a| &a.script), "password": text(|a| &a.password), "computer_name": text(|a| &a.computer_name),
    }))
}

fn faults(world: &mut World, body: &Value) -> Result<Value, String> {
    if let Some(random) = body.get("random") {
        let seed = random.get("seed").and_then(Value::as_u64).unwrap_or(0);
        let rate = random.get("rate").and_then(Value::as_f64).filter(|r| (0.0..=1.0).contains(r));
        world.faults.random(seed, rate.ok_or("random.rate: 0 to 1")?);
        return Ok(json!({}));
    }
    if !world.faults.add(Rule::from_json(body)?) {
        return Err("too many rules".into());
    }
    let history = world.faults.history();
    if history > 0 {
        world.model.keep_history(history);
    }
    Ok(json!({}))
}

fn admin(model: &mut Model, body: &Value) -> Result<Value, String> {
    let text = |key: &str| body.get(key).and_then(Value::as_str);
    let number = |key: &str| body.get(key).and_then(Value::as_u64);
    let need = |key: &str| text(key).ok_or_else(|| format!("{key}: expected a string"));
    let vapp = || -> Result<VappId, String> {
        let name = need("vapp")?;
        model.vapps_named(name).first().copied().ok_or_else(|| format!("no vApp {name}"))
    };
    let first_vdc = model.vdcs.keys().next().copied().ok_or("no VDC")?;
    match need("action")? {
        "delete_vapp" => {
            let id = vapp()?;
            model.admin_delete_vapp(id);
        }
        "rename_vapp" => {
            let id = vapp()?;
            model.admin_rename_vapp(id, need("name")?);
        }
        "power_off" => {
            let id = vapp()?;
            model.admin_power(id, Power::Off);
        }
        "suspend" => {
            let id = vapp()?;
            model.admin_power(id, Power::Suspended);
        }
        "abort_tasks" => {
            let id = vapp()?;
            model.admin_end_tasks(id, TaskStatus::Aborted);
        }
        "delete_vms" => {
            let id = vapp()?;
            let vms = model.vapps.get(&id).map(|vapp| vapp.vms.clone()).unwrap_or_default();
            vms.into_iter().for_each(|vm| model.admin_delete_vm(vm));
        }
        "set_faults" => {
            let id = vapp()?;
            let mut faults = Faults::default();
            for name in body.get("faults").and_then(Value::as_array).ok_or("faults: expected a list of names")? {
                match name.as_str() {
                    Some("delete_fails") => faults.delete_fails = true,
                    Some("force_fails") => faults.force_fails = true,
                    Some("locked") => faults.locked = true,
                    Some("hangs") => faults.hangs = true,
                    Some("breaks") => faults.breaks = true,
                    Some("unfound") => faults.unfound = true,
                    Some("keeps_tasks") => faults.keeps_tasks = true,
                    Some("hides_tasks") => faults.hides_tasks = true,
                    Some("unread") => faults.unread = true,
                    Some("unlisted") => faults.unlisted = true,
                    _ => return Err(format!("unknown fault {name}")),
                }
            }
            model.admin_faults(id, faults);
        }
        "foreign_vapp" => {
            let (name, description) = (need("name")?, text("description").unwrap_or(""));
            let made = match (text("template"), model.networks.keys().next().copied()) {
                (Some(wanted), Some(network)) => {
                    let found = model.templates.iter().find(|(_, t)| *t.name == *wanted).map(|(id, _)| *id);
                    let template = found.ok_or_else(|| format!("there is no template {wanted}"))?;
                    model.admin_foreign_vm(first_vdc, name, description, template, network).ok_or("refused")?
                }
                _ => model.admin_foreign_vapp(first_vdc, name, description),
            };
            return Ok(json!({"id": model.uuid(made)}));
        }
        "revoke_token" => model.admin_revoke_token(need("token")?),
        "restore_token" => {
            let user = model.users.keys().next().copied().ok_or("no user")?;
            model.tokens.insert(need("token")?.into(), user);
        }
        "service_token" => {
            let user = model.users.keys().next().copied().ok_or("no user")?;
            return Ok(json!({"token": &*model.new_service_token(user)}));
        }
        "expire_bearers" => model.admin_expire_bearers(),
        "set_quota" => {
            if let Some(vdc) = model.vdcs.get_mut(&first_vdc) {
                let limit = |old: Option<u64>, key: &str| match body.get(key) {
                    None => old,
                    Some(value) => value.as_u64(),
                };
                let small = |n: Option<u64>| n.map(|n| u32::try_from(n).unwrap_or(u32::MAX));
                vdc.vm_limit = small(limit(vdc.vm_limit.map(u64::from), "vms"));
                vdc.cpu_limit = small(limit(vdc.cpu_limit.map(u64::from), "cpus"));
                vdc.memory_limit_mb = limit(vdc.memory_limit_mb, "memory_mb");
            }
            if let (Some(mb), Some(profile)) = (number("storage_mb"), model.profiles.values_mut().next()) {
                profile.limit_mb = mb;
            }
            if let (Some(value), Some(org)) = (body.get("operations"), model.orgs.values_mut().next()) {
                org.max_running = value.as_u64().map(|n| u32::try_from(n).unwrap_or(u32::MAX));
            }
        }
        "set_lag" => model.set_lag(number("ms").ok_or("ms: expected a number")?),
        "set_rights" => {
            let wanted = body.get("rights").and_then(Value::as_array).ok_or("rights: expected a list of names")?;
            let named = |r: &&Right| wanted.iter().any(|w| w.as_str() == Some(r.name()));
            let rights: Vec<Right> = Right::ALL.iter().filter(named).copied().collect();
            model.users.values_mut().for_each(|u| u.rights.clone_from(&rights));
        }
        "set_setting" => {
            let value = body.get("value").ok_or("value is missing")?;
            let flag = || value.as_bool().ok_or("value: expected true or false");
            let s = &mut model.settings;
            match need("name")? {
                "allow_duplicate_names" => s.allow_duplicate_names = flag()?,
                "gone_is_404" => s.gone_is_404 = flag()?,
                "stop_is_409" => s.wording.stop_is_409 = flag()?,
                "busy_names_a_task" => s.wording.busy_names_a_task = flag()?,
                "duplicate_is_a_vm" => s.wording.duplicate_is_a_vm = flag()?,
                "storage_quota_in_task" => s.storage_quota_in_task = flag()?,
                "force_needs_right" => s.force_needs_right = flag()?,
                "no_suspend" => s.no_suspend = flag()?,
                "bearer_s" => s.bearer_s = value.as_u64().ok_or("value: expected a number")?,
                "create_fails_at_power_on" => s.create_fails_at_power_on = flag()?,
                "running_task_has_error" => s.running_task_has_error = flag()?,
                "bracketed_filter_finds_nothing" => s.bracketed_filter_finds_nothing = flag()?,
                "utc_offset_minutes" => {
                    let minutes = value
                        .as_i64()
                        .filter(|m| m.unsigned_abs() <= 14 * 60)
                        .ok_or("value: expected a number of minutes")?;
                    s.utc_offset_minutes = minutes.try_into().unwrap_or(0);
                }
                "unknown_fields" => {
                    let all = value.as_array().ok_or("value: expected a list of names")?.iter();
                    s.unknown_fields = all.filter_map(Value::as_str).map(String::from).collect();
                }
                "hardware_in_create" => s.hardware_in_create = value.as_str().unwrap_or_default().parse()?,
                "properties_in_create" => s.properties_in_create = value.as_str().unwrap_or_default().parse()?,
                "own_network_in_create" => s.own_network_in_create = value.as_str().unwrap_or_default().parse()?,
                "filter_escapes" => s.filter_escapes = value.as_str().unwrap_or_default().parse()?,
                other => return Err(format!("unknown setting {other}")),
            }
        }
        other => return Err(format!("unknown action {other}")),
    }
    Ok(json!({}))
}
