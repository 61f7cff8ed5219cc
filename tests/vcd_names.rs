//! What the client makes of names, and what it writes into a create: against the simulator, over HTTP.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

mod client;

use client::*;
use fleeting_plugin_vcd::cloud::*;
use fleeting_plugin_vcd::vcd::{Client, Lease, PATTERN_LIFE, Settings, TEMPLATE_LIFE};
use std::time::Duration;
use vcd_sim::Server;
use vcd_sim::model::{HardwareInCreate, IpMode, Model, Nic, TemplateId, Vm};

/// Adds a template with one VM, made `created` ms after the others; its guest OS is told by its name.
fn template(server: &Server, catalog: &str, name: &str, created: u64) -> TemplateId {
    server.with_model(|m| {
        let (vdc, catalog) = (*m.vdcs.keys().next().unwrap(), of_name(m, catalog));
        let id = m.add_template(catalog, vdc, name, &[("vm", name, "ubuntu64Guest")]);
        m.templates.get_mut(&id).unwrap().created = created;
        id
    })
}

fn of_name(m: &Model, catalog: &str) -> vcd_sim::model::CatalogId {
    *m.catalogs.iter().find(|(_, c)| &*c.name == catalog).unwrap().0
}

/// The VM of a vApp in the model.
fn vm(server: &Server, vapp: &str) -> Vm {
    server.with_model(|m| m.vms[&m.vapps[&m.vapps_named(vapp)[0]].vms[0]].clone())
}

/// Creates without hardware and power.
fn compose(client: &Client, name: &str) -> Result<Started, VcdError> {
    let request = Request::Create { name: name.into(), description: "group=ci".into(), whole: false };
    started(client, &request, Some(&guest()))
}

fn started(client: &Client, request: &Request, guest: Option<&Guest>) -> Result<Started, VcdError> {
    match client.call(request, guest)? {
        Reply::Started(started) => Ok(started),
        other => panic!("{other:?}"),
    }
}

fn made(client: &Client, vapp: &Href) -> Made {
    look(client, vapp).unwrap().pop().unwrap().made.unwrap()
}

#[test]
fn of_the_templates_that_a_pattern_fits_the_newest_is_taken() {
    let server = server();
    for (name, created) in [("golden-1", 1_000), ("golden-2", 9_000), ("golden-3", 5_000), ("GOLDEN-4", 99_000)] {
        template(&server, "ci-catalog", name, created);
    }
    let by = |template: &str, catalog: &str| Settings {
        template: template.into(),
        catalog: catalog.into(),
        ..settings(&server)
    };
    for settings in [by("golden-*", "ci-catalog"), by("*old*-*", "ci-*"), by("golden-2", "*")] {
        let (client, environment) = Client::open(settings).unwrap();
        assert_eq!(environment.guest_os, "golden-2");
        drop(client);
    }
    let e = errors_of(by("golden-9*", "ci-catalog")).remove(0);
    assert!(e.kind == ErrorKind::NotFound && e.what.contains("template \"golden-9*\""), "{e}");
    let e = errors_of(by("golden-*", "no-*")).remove(0);
    assert!(e.kind == ErrorKind::NotFound && e.what.contains("catalog"), "{e}");

    // Not looked up again while the last look is fresh; then a newer one is used without a restart.
    let fresh = Client::open(by("golden-*", "ci-catalog")).unwrap().0;
    let old = Client::open(Settings { template_life: Duration::ZERO, ..by("golden-*", "ci-catalog") }).unwrap().0;
    template(&server, "ci-catalog", "golden-5", 99_000);
    let looks = server.requests("query:vAppTemplate");
    create(&fresh, "ci-fresh").unwrap();
    assert_eq!(server.requests("query:vAppTemplate"), looks);
    assert_eq!(&*vm(&server, "ci-fresh").guest_os, "golden-2");
    create(&old, "ci-old").unwrap();
    assert_eq!(server.requests("query:vAppTemplate"), looks + 1);
    assert_eq!(&*vm(&server, "ci-old").guest_os, "golden-5");
    // What was found serves on while VCD does not answer the search.
    fault(&server, serde_json::json!({"op": "query:vAppTemplate", "answer_before": {"status": 503}}));
    create(&old, "ci-older").unwrap();
    assert_eq!(&*vm(&server, "ci-older").guest_os, "golden-5");
}

#[test]
fn a_template_that_is_given_anothers_name_is_taken_after_a_while() {
    let server = server();
    let id = template(&server, "ci-catalog", "golden", 1_000);
    let by = |template_life| Settings { template: "golden".into(), template_life, ..settings(&server) };
    let [fresh, old] = [TEMPLATE_LIFE, Duration::ZERO].map(|life| Client::open(by(life)).unwrap().0);
    server.with_model(|m| m.templates.get_mut(&id).unwrap().name = "golden-before".into());
    let new = template(&server, "ci-catalog", "golden-after", 2_000);
    server.with_model(|m| m.templates.get_mut(&new).unwrap().name = "golden".into());
    for (client, name, guest_os) in [(&fresh, "ci-fresh", "golden"), (&old, "ci-old", "golden-after")] {
        create(client, name).unwrap();
        assert_eq!(&*vm(&server, name).guest_os, guest_os);
    }
    let life = |catalog, template| fleeting_plugin_vcd::vcd::template_life(catalog, template);
    assert_eq!([life("c", "t"), life("c*", "t"), life("c", "*")], [TEMPLATE_LIFE, PATTERN_LIFE, PATTERN_LIFE]);
}

#[test]
fn a_template_may_be_named_by_its_catalog_item() {
    let server = server();
    let id = template(&server, "ci-catalog", "golden", 1_000);
    server.with_model(|m| m.templates.get_mut(&id).unwrap().item_name = Some("golden-item".into()));
    let by = |name: &str| Settings { template: name.into(), ..settings(&server) };
    for name in ["golden-item", "golden"] {
        let (client, environment) = Client::open(by(name)).unwrap();
        assert_eq!(environment.guest_os, "golden");
        create(&client, &format!("ci-{name}")).unwrap();
    }
    assert_eq!(server.requests("query:catalogItem"), 1, "asked only for what is not there otherwise");
    // Who may not search for items has none.
    let refusal =
        serde_json::json!({"status": 403, "body": "<Error majorErrorCode='403' minorErrorCode='X' message='m'/>"});
    fault(&server, serde_json::json!({"op": "query:catalogItem", "answer_before": refusal}));
    let e = errors_of(by("golden-item")).remove(0);
    assert!(e.kind == ErrorKind::NotFound && e.what.contains("template \"golden-item\""), "{e}");
}

#[test]
fn shared_catalogs_of_other_orgs_serve() {
    let server = server();
    server.with_model(|m| {
        let org = m.add_org("images-org");
        let vdc = m.add_vdc(org, "images-vdc");
        let (open, closed) = (m.add_catalog(org, "shared-images"), m.add_catalog(org, "own-images"));
        m.catalogs.get_mut(&open).unwrap().shared = true;
        m.add_template(open, vdc, "debian-13", &[("debian", "Debian GNU/Linux 13 (64-bit)", "debian13_64Guest")]);
        m.add_template(closed, vdc, "debian-13", &[("debian", "Debian GNU/Linux 13 (64-bit)", "debian13_64Guest")]);
    });
    let of = |catalog: &str| Settings { template: "debian-13".into(), catalog: catalog.into(), ..settings(&server) };
    // The VM records of other orgs may be hidden from a tenant: the template's own document tells of its VM, too.
    for hidden in [false, true] {
        if hidden {
            fault(&server, serde_json::json!({"op": "query:vm", "times": 2, "query": "empty"}));
            fault(&server, serde_json::json!({"op": "query:vm", "times": 0, "answer_before": {"status": 503}}));
        }
        let (client, environment) = Client::open(of("shared-images")).unwrap();
        assert_eq!(environment.guest_os, "Debian GNU/Linux 13 (64-bit)", "hidden: {hidden}");
        let name = format!("ci-{hidden}");
        let begun = create(&client, &name).unwrap();
        assert_eq!(ended(&client, &begun), TaskState::Success);
        assert_eq!(&*vm(&server, &name).guest_os, "Debian GNU/Linux 13 (64-bit)");
        server.clear_faults();
    }
    let e = errors_of(of("own-images")).remove(0);
    assert_eq!(e.kind, ErrorKind::NotFound, "{e}");
}

#[test]
fn ambiguous_names_are_told_with_their_candidates() {
    let server = server();
    let hrefs: Vec<String> = server.with_model(|m| {
        let org = m.add_org("images-org");
        let other = m.add_vdc(org, "images-vdc");
        let catalog = m.add_catalog(org, "ci-catalog");
        m.catalogs.get_mut(&catalog).unwrap().shared = true;
        m.add_template(catalog, other, "ubuntu-22.04", &[("ubuntu", "Ubuntu Linux (64-bit)", "ubuntu64Guest")]);
        let same = m.templates.iter().filter(|(_, t)| &*t.name == "ubuntu-22.04");
        same.map(|(id, _)| format!("/api/vAppTemplate/vappTemplate-{}", m.uuid(*id))).collect()
    });
    assert_eq!(hrefs.len(), 2);
    let e = errors_of(settings(&server)).remove(0);
    assert!(e.kind == ErrorKind::Invalid && e.what == "find template \"ubuntu-22.04\"", "{e}");
    for part in [&hrefs[0], &hrefs[1], "ci-vdc", "images-vdc"] {
        assert!(e.text.contains(part), "{part}: {e}");
    }

    // Networks of other VDCs count only where the own VDC has none of the name, as in a VDC group.
    let network = |name: &str| Settings { network: name.into(), template: "two-vms".into(), ..settings(&server) };
    server.with_model(|m| {
        let org = *m.orgs.keys().next().unwrap();
        let pool = |n| ([127, 0, n, 2].into(), [127, 0, n, 9].into());
        for (n, name) in [(31, "one-vdc"), (32, "another-vdc")] {
            let vdc = m.add_vdc(org, name);
            m.add_network(vdc, "group-net", pool(n), pool(n));
            m.add_network(vdc, "ci-net", pool(n), pool(n));
        }
    });
    let told: Vec<String> = errors_of(network("ci-net")).into_iter().map(|e| e.what).collect();
    assert_eq!(told, ["find template \"two-vms\""], "the own network is found");
    let e = errors_of(network("group-net")).remove(0);
    assert!(e.what.contains("network") && e.text.starts_with("2 of this name"), "{e}");
    assert!(e.text.contains("one-vdc") && e.text.contains("another-vdc"), "{e}");
    server.with_model(|m| {
        let another = *m.networks.iter().rev().find(|(_, n)| &*n.name == "group-net").unwrap().0;
        m.networks.remove(&another);
    });
    let told: Vec<String> = errors_of(network("group-net")).into_iter().map(|e| e.what).collect();
    assert_eq!(told, ["find template \"two-vms\""], "the only one is taken");
}

#[test]
fn policies_stand_for_cpus_and_memory() {
    let server = server();
    server.with_model(|m| m.policies.values_mut().filter(|p| p.sizing).for_each(|p| p.memory_mb = Some(2048)));
    let with = |sizing: Option<&str>, placement: Option<&str>| Settings {
        sizing_policy: sizing.map(str::to_owned),
        placement_policy: placement.map(str::to_owned),
        cpus: 0,
        cores_per_socket: 0,
        memory_mb: 0,
        disk_gb: 0,
        ..settings(&server)
    };
    for (sizing, placement, name) in
        [(Some("small"), None, "ci-s"), (None, Some("rack-1"), "ci-p"), (Some("small"), Some("rack-1"), "ci-b")]
    {
        let client = Client::open(with(sizing, placement)).unwrap().0;
        let begun = create(&client, name).unwrap();
        assert_eq!(ended(&client, &begun), TaskState::Success);
        let vm = vm(&server, name);
        assert_eq!((vm.policy.is_some(), vm.placement.is_some()), (sizing.is_some(), placement.is_some()), "{name}");
        // The policy's numbers, or the template's.
        assert_eq!((vm.cpus, vm.memory_mb), if sizing.is_some() { (2, 2048) } else { (2, 4096) }, "{name}");
        assert_eq!(made(&client, begun.vapp.as_ref().unwrap()).differs, None);
    }
    // Numbers that the policy fixes are neither sent nor missed; the others are.
    for (fixes_memory, memory_mb) in [(true, 2048), (false, 8192)] {
        server.with_model(|m| {
            m.settings.hardware_in_create = HardwareInCreate::Apply;
            let small = m.policies.values_mut().find(|p| p.sizing).unwrap();
            small.memory_mb = small.memory_mb.filter(|_| fixes_memory);
        });
        let numbers = Settings { sizing_policy: Some("small".into()), disk_gb: 0, ..settings(&server) };
        let client = Client::open(numbers).unwrap().0;
        let name = format!("ci-numbers-{fixes_memory}");
        let begun = create(&client, &name).unwrap();
        assert_eq!(ended(&client, &begun), TaskState::Success);
        assert_eq!((vm(&server, &name).cpus, vm(&server, &name).memory_mb), (2, memory_mb));
        assert_eq!(made(&client, begun.vapp.as_ref().unwrap()).differs, None);
        server.with_model(|m| m.settings.hardware_in_create = HardwareInCreate::Refuse);
        let outcome = create(&client, &format!("ci-more-{fixes_memory}")).map_err(|e| e.kind);
        assert_eq!(outcome.err(), (!fixes_memory).then_some(ErrorKind::TooMuch), "what is fixed is not sent");
    }
    for (settings, what) in [
        (with(Some("no-such"), None), "find sizing policy \"no-such\""),
        (with(None, Some("no-such")), "find placement policy \"no-such\""),
        (with(Some("rack-1"), None), "find sizing policy \"rack-1\""),
        (with(None, Some("small")), "find placement policy \"small\""),
    ] {
        let errors = errors_of(settings);
        assert_eq!((errors.len(), errors[0].kind, errors[0].what.as_str()), (1, ErrorKind::NotFound, what));
    }
    // cloudapi says its errors in JSON.
    let body = r#"{"minorErrorCode":"ACCESS_TO_RESOURCE_IS_FORBIDDEN","message":"[ 1-2 ] No.","stackTrace":null}"#;
    fault(&server, serde_json::json!({"op": "policies", "answer_before": {"status": 403, "body": body}}));
    let e = errors_of(with(Some("small"), None)).remove(0);
    assert_eq!((e.kind, e.status, e.code.as_str()), (ErrorKind::Forbidden, 403, "ACCESS_TO_RESOURCE_IS_FORBIDDEN"));
}

#[test]
fn a_create_carries_properties_user_data_and_lease_and_a_label_the_metadata() {
    let server = server();
    let data = "#cloud-config\nü: <&>\"\n";
    let rich = Settings {
        guest_properties: vec![("proxy".into(), Secret::new("http://p & <q>"))],
        user_data: Some(Secret::new(data)),
        metadata: vec![("cost".into(), "42 & <more>".into())],
        lease: Some(Lease { runtime: Duration::from_secs(50 * 3600), storage: Some(Duration::from_secs(50 * 3600)) }),
        ..settings(&server)
    };
    let client = Client::open(rich).unwrap().0;
    let begun = create(&client, "ci-1").unwrap();
    assert_eq!(ended(&client, &begun), TaskState::Success);
    let properties: Vec<(String, String)> =
        vm(&server, "ci-1").properties.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    let encoded = "I2Nsb3VkLWNvbmZpZwrDvDogPCY+Igo=";
    let want = [("proxy", "http://p & <q>"), ("user-data", encoded)].map(|(k, v)| (k.to_owned(), v.to_owned()));
    assert_eq!(properties, want);
    let vapp = begun.vapp.unwrap();
    assert_eq!(client.call(&Request::Label { vapp: vapp.clone() }, None), Ok(Reply::Done));
    let lease = |name: &str| {
        server.with_model(|m| {
            let vapp = &m.vapps[&m.vapps_named(name)[0]];
            (vapp.lease.deployment_s, vapp.lease.storage_s)
        })
    };
    assert_eq!(lease("ci-1"), (180_000, 180_000));
    let labels = until("the labels", || {
        let labels = server.with_model(|m| m.vapps[&m.vapps_named("ci-1")[0]].metadata.clone());
        (labels.len() == 2).then_some(labels)
    });
    let labels: Vec<(&str, &str)> = labels.iter().map(|(key, (_, value))| (&**key, &**value)).collect();
    assert_eq!(labels, [("cost", "42 & <more>"), ("vcd-instance-group", "ci linux; (all)")]);
    // The dates by which VCD will act are in the poll, by its clock.
    let seen =
        until("the lease's date", || poll(&client, false).unwrap().vms.pop().filter(|vm| vm.undeploy_at.is_some()));
    let life = seen.undeploy_at.unwrap() - seen.created.unwrap();
    assert!((180_000_000..181_000_000).contains(&life), "{life}");

    // Above the org's maximum it is cut without a word; without a wish the org's default holds.
    server.with_model(|m| m.orgs.values_mut().for_each(|o| o.leases.deployment_s = (7200, 86_400)));
    create(&client, "ci-2").unwrap();
    assert_eq!(lease("ci-2").0, 86_400);
    create(&open(&server), "ci-3").unwrap();
    assert_eq!(lease("ci-3").0, 7200);
}

#[test]
fn hardware_that_a_create_cannot_carry_goes_three_ways() {
    let server = server();
    let client = open(&server);
    let set = |hardware| server.with_model(|m| m.settings.hardware_in_create = hardware);

    set(HardwareInCreate::Ignore);
    let begun = create(&client, "ci-ignored").unwrap();
    assert_eq!(ended(&client, &begun), TaskState::Success);
    let differs = made(&client, begun.vapp.as_ref().unwrap()).differs.unwrap();
    for part in ["2 CPUs instead of 4", "1 cores per socket instead of 2", "4096 MB of memory instead of 8192"] {
        assert!(differs.contains(part), "{differs}");
    }
    assert!(differs.contains("20480 MB of disk instead of 40960"), "{differs}");

    set(HardwareInCreate::Refuse);
    let e = create(&client, "ci-refused").unwrap_err();
    assert_eq!((e.kind, e.status), (ErrorKind::TooMuch, 400), "{e}");
    assert_eq!(vapps(&client, &Request::Find { name: "ci-refused".into() }), Ok(vec![]));

    let begun = compose(&client, "ci-three").unwrap();
    let vapp = begun.vapp.clone().unwrap();
    assert_eq!(ended(&client, &begun), TaskState::Success);
    let off = made(&client, &vapp);
    assert!(off.differs.is_some());
    let begun = started(&client, &Request::Configure { vm: off.vm.clone() }, None).unwrap();
    assert_eq!(ended(&client, &begun), TaskState::Success);
    assert_eq!(made(&client, &vapp).differs, None);
    let begun = started(&client, &Request::PowerOn { vapp: vapp.clone() }, None).unwrap();
    assert_eq!(ended(&client, &begun), TaskState::Success);
    let vm = vm(&server, "ci-three");
    assert_eq!((vm.cpus, vm.cores_per_socket, vm.memory_mb, vm.disks[0].mb), (4, 2, 8192, 40 * 1024));
    assert_eq!(&*vm.description, "group=ci", "a reconfigure leaves the mark as it is");
    until("a customized guest", || {
        let vms = poll(&client, false).unwrap().vms;
        vms.into_iter().find(|vm| &*vm.vapp_name == "ci-three" && vm.customization == Customization::Complete)
    });
    for operation in ["compose", "reconfigure", "power:on"] {
        assert_eq!(server.requests(operation), 1, "{operation}");
    }
}

#[test]
fn a_windows_11_gets_a_tpm_before_its_first_boot() {
    let server = server();
    server.with_model(|m| {
        let (catalog, vdc) = (*m.catalogs.keys().next().unwrap(), *m.vdcs.keys().next().unwrap());
        m.add_template(catalog, vdc, "by-type", &[("w", "Microsoft Windows (64-bit)", "windows11_64Guest")]);
        m.add_template(catalog, vdc, "by-name", &[("w", "Microsoft Windows 11 (64-bit)", "windows9_64Guest")]);
        let with =
            m.add_template(catalog, vdc, "with-tpm", &[("w", "Microsoft Windows 11 (64-bit)", "windows11_64Guest")]);
        m.template_vms.values_mut().filter(|vm| vm.template == with).for_each(|vm| vm.tpm = true);
    });
    let of = |template: &str| Client::open(Settings { template: template.into(), ..settings(&server) }).unwrap().0;
    for template in ["by-type", "by-name"] {
        let client = of(template);
        let e = create(&client, template).unwrap_err();
        assert!(e.kind == ErrorKind::TooMuch && e.text.contains("TPM"), "{e}");
        let begun = compose(&client, template).unwrap();
        let vapp = begun.vapp.clone().unwrap();
        assert_eq!(ended(&client, &begun), TaskState::Success);
        let off = made(&client, &vapp);
        assert!(off.lacks_tpm);
        let begun = started(&client, &Request::AddTpm { vm: off.vm }, None).unwrap();
        assert_eq!(ended(&client, &begun), TaskState::Success);
        assert!(!made(&client, &vapp).lacks_tpm && vm(&server, template).tpm);
    }
    assert_eq!(server.requests("instantiate"), 0);
    let client = of("with-tpm");
    let begun = create(&client, "ci-1").unwrap();
    assert_eq!(ended(&client, &begun), TaskState::Success);
    assert!(!made(&client, &begun.vapp.unwrap()).lacks_tpm && vm(&server, "ci-1").tpm);
}

#[test]
fn of_several_nics_the_primary_ones_address_counts() {
    let server = server();
    let client = open(&server);
    let begun = create(&client, "ci-1").unwrap();
    assert_eq!(ended(&client, &begun), TaskState::Success);
    let first = until("an address", || poll(&client, false).unwrap().vms[0].address);
    server.with_model(|m| {
        let vm = m.vms.values_mut().next().unwrap();
        let other = Nic { index: 1, mode: IpMode::Manual, address: Some([127, 0, 30, 7].into()), ..vm.nics[0].clone() };
        vm.nics.push(other);
    });
    assert_eq!(poll(&client, false).unwrap().vms[0].address, Some(first));
    server.with_model(|m| m.vms.values_mut().next().unwrap().primary_nic = 1);
    assert_eq!(poll(&client, false).unwrap().vms[0].address, Some([127, 0, 30, 7].into()));
}

#[test]
fn one_page_of_policies_is_asked_for() {
    let server = server();
    let page = "computePolicies?page=1&pageSize=25&";
    fault(&server, serde_json::json!({"op": "policies", "path": page, "answer_before": {"status": 503}}));
    let e = errors_of(Settings { sizing_policy: Some("small".into()), ..settings(&server) }).remove(0);
    assert_eq!((e.kind, e.status), (ErrorKind::Unavailable, 503), "{e}");
}
