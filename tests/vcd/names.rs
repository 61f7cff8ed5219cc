//! How the client finds names, and what it writes into a create, with the simulator over HTTP.

use crate::client::*;
use fleeting_plugin_vcd::cloud::*;
use fleeting_plugin_vcd::vcd::{Client, Lease, PATTERN_LIFE, Settings, TEMPLATE_LIFE};
use std::time::Duration;
use vcd_sim::Server;
use vcd_sim::model::{
    Disk, FilterEscapes, HardwareInCreate, HardwareShown, IpMode, Model, Nic, OwnNetworkInCreate, Reach, TemplateId,
    TemplateState, TemplateVm, Vm,
};

/// Adds a template with one VM, created `created` ms after the others. Its name is also the name of the guest OS.
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

/// The VM of a vApp, from the model.
fn vm(server: &Server, vapp: &str) -> Vm {
    server.with_model(|m| m.vms[&m.vapps[&m.vapps_named(vapp)[0]].vms[0]].clone())
}

/// A create without hardware and power-on.
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
fn a_pattern_selects_the_newest_matching_template() {
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

    // Within a limited time, names are not looked up again. Later, a newer template is used without a restart.
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
    // If VCD does not answer the search, the known template is used.
    fault(&server, serde_json::json!({"op": "query:vAppTemplate", "answer_before": {"status": 503}}));
    create(&old, "ci-older").unwrap();
    assert_eq!(&*vm(&server, "ci-older").guest_os, "golden-5");
}

#[test]
fn a_template_that_gets_the_name_of_another_is_used_after_a_while() {
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
fn a_template_can_be_named_by_its_catalog_item() {
    let server = server();
    let id = template(&server, "ci-catalog", "golden", 1_000);
    server.with_model(|m| m.templates.get_mut(&id).unwrap().item_name = Some("golden-item".into()));
    let by = |name: &str| Settings { template: name.into(), ..settings(&server) };
    for name in ["golden-item", "golden"] {
        let (client, environment) = Client::open(by(name)).unwrap();
        assert_eq!(environment.guest_os, "golden");
        create(&client, &format!("ci-{name}")).unwrap();
    }
    assert_eq!(server.requests("query:catalogItem"), 1, "only queried if no template has the name");
    // A user without the right to search for catalog items finds none.
    let refusal =
        serde_json::json!({"status": 403, "body": "<Error majorErrorCode='403' minorErrorCode='X' message='m'/>"});
    fault(&server, serde_json::json!({"op": "query:catalogItem", "answer_before": refusal}));
    let e = errors_of(by("golden-item")).remove(0);
    assert!(e.kind == ErrorKind::NotFound && e.what.contains("template \"golden-item\""), "{e}");
}

#[test]
fn shared_catalogs_of_other_orgs_can_be_used() {
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
    // VCD may hide the VM records of other orgs from a tenant. The template's document also shows its VM.
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

/// The texts in quotation marks in an error: the values to copy.
fn quoted(e: &VcdError) -> Vec<String> {
    let text = e.text.split_once(": ").unwrap().1;
    text.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn the_error_for_two_templates_with_one_name_gives_values_that_work() {
    let server = server();
    let twin = template(&server, "ci-catalog", "ubuntu-22.04", 1_000);
    let by = |template: String| Settings { template, ..settings(&server) };
    let e = errors_of(by("ubuntu-22.04".into())).remove(0);
    assert!(e.kind == ErrorKind::Invalid && e.what == "find template \"ubuntu-22.04\"", "{e}");
    assert!(e.text.starts_with("2 with this name in catalog \"ci-catalog\"") && e.text.contains("(ci-vdc)"), "{e}");
    let found: Vec<String> = quoted(&e).into_iter().map(|id| Client::open(by(id)).unwrap().1.guest_os).collect();
    assert!(found.contains(&"Ubuntu Linux (64-bit)".into()) && found.contains(&"ubuntu-22.04".into()), "{found:?}");
    // A link also works, with any host name.
    let link = server.with_model(|m| format!("https://elsewhere/api/vAppTemplate/vappTemplate-{}", m.uuid(twin)));
    let (client, environment) = Client::open(by(link)).unwrap();
    assert_eq!(environment.guest_os, "ubuntu-22.04");
    create(&client, "ci-1").unwrap();
    assert_eq!(&*vm(&server, "ci-1").guest_os, "ubuntu-22.04");
}

#[test]
fn the_error_for_two_catalogs_with_one_name_gives_values_that_work() {
    let server = server();
    let shared = server.with_model(|m| {
        let org = m.add_org("images-org");
        let other = m.add_vdc(org, "images-vdc");
        let catalog = m.add_catalog(org, "ci-catalog");
        m.catalogs.get_mut(&catalog).unwrap().shared = true;
        let new = m.add_template(catalog, other, "ubuntu-22.04", &[("ubuntu", "Theirs", "ubuntu64Guest")]);
        m.templates.get_mut(&new).unwrap().created = 99_000;
        m.add_template(catalog, other, "theirs-alone", &[("ubuntu", "Theirs", "ubuntu64Guest")]);
        format!("urn:vcloud:catalog:{}", m.uuid(catalog))
    });
    let by = |catalog: &str, template: &str| Settings {
        catalog: catalog.into(),
        template: template.into(),
        ..settings(&server)
    };
    for template in ["ubuntu-22.04", "ubuntu-*"] {
        // The newest template of both catalogs is not chosen: somebody else's catalog must not decide.
        let e = errors_of(by("ci-catalog", template)).remove(0);
        assert!(e.kind == ErrorKind::Invalid && e.what == "find catalog \"ci-catalog\"", "{e}");
        assert_eq!(quoted(&e), ["ci-org/ci-catalog", "images-org/ci-catalog"], "{e}");
        let found: Vec<String> =
            quoted(&e).iter().map(|catalog| Client::open(by(catalog, template)).unwrap().1.guest_os).collect();
        assert_eq!(found, ["Ubuntu Linux (64-bit)", "Theirs"], "{template}");
        assert_eq!(Client::open(by(&shared, template)).unwrap().1.guest_os, "Theirs", "{template}");
    }
    // A template that only one of them contains is found. Older records show the org, not the catalog.
    assert_eq!(Client::open(by("ci-catalog", "theirs-alone")).unwrap().1.guest_os, "Theirs");
    server.with_model(|m| m.settings.unknown_fields = vec!["catalog".into()]);
    assert_eq!(Client::open(by("images-org/ci-*", "ubuntu-22.04")).unwrap().1.guest_os, "Theirs");
    let e = errors_of(by("images-org/no-such", "ubuntu-22.04")).remove(0);
    assert_eq!((e.kind, e.what.as_str()), (ErrorKind::NotFound, "find catalog with templates \"images-org/no-such\""));
    // A query that VCD fails does not mean that there is none. Without the right to use it, only the names count.
    for (catalog, template, path) in [
        ("ci-catalog", "no-such", "type=catalogItem"),
        ("images-org/ci-catalog", "ubuntu-22.04", "type=catalog&"),
        ("no-such", "ubuntu-22.04", "filter=catalogName=="),
    ] {
        for (status, kind) in [(500, ErrorKind::Unavailable), (403, ErrorKind::NotFound)] {
            refuse(&server, path, status);
            let e = errors_of(by(catalog, template)).remove(0);
            assert_eq!((e.kind, e.status == 500), (kind, status == 500), "{path}: {e}");
            server.clear_faults();
        }
    }
    // A name can contain a slash.
    server.with_model(|m| m.catalogs.values_mut().for_each(|c| c.name = format!("{}/v2", c.name).into()));
    assert_eq!(errors_of(by("ci-catalog/v2", "ubuntu-22.04")).remove(0).what, "find catalog \"ci-catalog/v2\"");
    assert_eq!(Client::open(by("ci-catalog/v2", "theirs-alone")).unwrap().1.guest_os, "Theirs");
}

#[test]
fn networks_of_other_vdcs_are_used_if_shared() {
    let server = server();
    let network = |name: &str| Settings { network: name.into(), ..settings(&server) };
    server.with_model(|m| {
        let org = *m.orgs.keys().next().unwrap();
        let pool = |n| ([127, 0, n, 2].into(), [127, 0, n, 9].into());
        for (n, name) in [(31, "one-vdc"), (32, "another-vdc")] {
            let vdc = m.add_vdc(org, name);
            m.add_network(vdc, "group-net", pool(n), pool(n));
            m.add_network(vdc, "ci-net", pool(n), pool(n));
        }
    });
    let reach = |vdc: &str, reach: Reach| {
        server.with_model(|m| {
            let vdc = *m.vdcs.iter().find(|(_, v)| &*v.name == vdc).unwrap().0;
            m.networks.values_mut().filter(|n| n.vdc == vdc).for_each(|n| n.reach = reach);
        });
    };
    Client::open(network("ci-net")).expect("the own network is found");
    let e = errors_of(network("group-net")).remove(0);
    assert_eq!((e.kind, e.what.as_str()), (ErrorKind::NotFound, "find network \"group-net\""));
    assert!(e.text.contains("but in VDC \"one-vdc\" and VDC \"another-vdc\", which does not share it"), "{e}");

    for (n, how) in
        [Reach::Shared, Reach::Listed, Reach::Group, Reach::GroupAlone, Reach::GroupByVdc].into_iter().enumerate()
    {
        reach("one-vdc", how);
        let client = Client::open(network("group-net")).unwrap_or_else(|e| panic!("{how:?}: {e:?}")).0;
        let name = format!("ci-{n}");
        let begun = create(&client, &name).unwrap();
        assert_eq!(ended(&client, &begun), TaskState::Success, "{how:?}");
        assert_eq!(vm(&server, &name).nics[0].network.as_deref(), Some("group-net"));
    }
    reach("another-vdc", Reach::Shared);
    let e = errors_of(network("group-net")).remove(0);
    assert!(e.kind == ErrorKind::Invalid && e.text.starts_with("2 with this name in VDC \"ci-vdc\""), "{e}");
    let ids = quoted(&e);
    assert_eq!(ids.len(), 2, "{e}");
    let mut octets: Vec<u8> = Vec::new();
    for (n, id) in ids.iter().enumerate() {
        let client = Client::open(network(id)).unwrap().0;
        let name = format!("ci-by-id-{n}");
        let begun = create(&client, &name).unwrap();
        assert_eq!(ended(&client, &begun), TaskState::Success);
        let nic = vm(&server, &name).nics[0].clone();
        assert_eq!(nic.network.as_deref(), Some("group-net"), "with its name, as VCD requires");
        octets.push(nic.address.unwrap().octets()[2]);
        assert_eq!(made(&client, begun.vapp.as_ref().unwrap()).differs, None);
    }
    octets.sort_unstable();
    assert_eq!(octets, [31, 32], "each id is a different network");
}

#[test]
fn ids_and_links_can_replace_names() {
    let server = server();
    let (vdc, network, catalog, template, profile) = server.with_model(|m| {
        let template = *m.templates.iter().find(|(_, t)| &*t.name == "ubuntu-22.04").unwrap().0;
        (
            m.uuid(*m.vdcs.keys().next().unwrap()),
            m.uuid(*m.networks.keys().next().unwrap()),
            m.uuid(*m.catalogs.keys().next().unwrap()),
            m.uuid(template),
            m.uuid(*m.profiles.keys().next().unwrap()),
        )
    });
    let by = |v: String, n: String, c: String, t: String, p: String| Settings {
        vdc: v,
        network: n,
        catalog: c,
        template: t,
        storage_profile: p,
        ..settings(&server)
    };
    let ids = by(
        format!("urn:vcloud:vdc:{vdc}"),
        format!("urn:vcloud:network:{network}"),
        format!("urn:vcloud:catalog:{catalog}"),
        "ubuntu-22.04".into(),
        format!("urn:vcloud:vdcstorageProfile:{profile}"),
    );
    let links = by(
        format!("https://h/api/vdc/{vdc}"),
        format!("https://h/api/admin/network/{network}"),
        format!("https://h/api/catalog/{catalog}"),
        format!("https://h/api/vAppTemplate/vappTemplate-{template}"),
        format!("https://h/api/vdcStorageProfile/{profile}"),
    );
    for (n, settings) in [ids.clone(), links].into_iter().enumerate() {
        let client = Client::open(settings).unwrap().0;
        let begun = create(&client, &format!("ci-{n}")).unwrap();
        assert_eq!(ended(&client, &begun), TaskState::Success);
        assert_eq!(poll(&client, true).unwrap().vms.len(), n + 1, "polls read the VDC");
    }
    // All missing objects are reported together, each with its kind.
    let gone = vdc.replace('0', "1");
    let all = by(
        format!("urn:vcloud:vdc:{gone}"),
        format!("urn:vcloud:network:{gone}"),
        format!("urn:vcloud:catalog:{gone}"),
        "ubuntu-22.04".into(),
        format!("urn:vcloud:vdcstorageProfile:{gone}"),
    );
    let errors = errors_of(all);
    let told: Vec<&str> = errors.iter().map(|e| e.what.split('"').next().unwrap()).collect();
    assert_eq!(told, ["find VDC ", "find network ", "find storage profile ", "find catalog "]);
    assert!(errors.iter().all(|e| e.kind == ErrorKind::NotFound && e.text.contains("with this id")), "{errors:?}");
    // A disabled object is also disabled by its id.
    server.with_model(|m| m.profiles.values_mut().for_each(|p| p.enabled = false));
    assert!(errors_of(ids.clone())[0].text.contains("the storage profile is disabled"));
    server.with_model(|m| m.vdcs.values_mut().for_each(|v| v.enabled = false));
    assert!(errors_of(ids)[0].text.contains("the VDC is disabled"));
}

#[test]
fn a_plain_name_checks_its_templates_state_like_a_pattern() {
    let server = server();
    let id = template(&server, "ci-catalog", "golden", 5_000);
    let seed = |state, expired| {
        server.with_model(|m| {
            let template = m.templates.get_mut(&id).unwrap();
            (template.state, template.expired) = (state, expired);
        });
    };
    let by = |name: &str| Settings { template: name.into(), ..settings(&server) };
    let uuid = server.with_model(|m| m.uuid(id));
    for (state, expired, text) in [
        (TemplateState::Unresolved, false, "in state UNRESOLVED"),
        (TemplateState::Copying, false, "usually VCD is copying it"),
        (TemplateState::Ready, true, "has expired"),
    ] {
        seed(state, expired);
        for name in ["golden", "gold*"] {
            let e = errors_of(by(name)).remove(0);
            assert_eq!((e.kind, e.what), (ErrorKind::State, format!("find template {name:?}")));
            assert!(e.text.contains(text), "{name}: {}", e.text);
        }
        if !expired {
            // Its own document shows the state too.
            let e = errors_of(by(&format!("urn:vcloud:vapptemplate:{uuid}"))).remove(0);
            assert!(e.kind == ErrorKind::State && e.text.contains(text), "{e}");
        }
    }
    // Another template with the name that is ready is used.
    template(&server, "ci-catalog", "golden", 1_000);
    seed(TemplateState::Copying, false);
    for name in ["golden", "gold*"] {
        Client::open(by(name)).unwrap();
    }
}

#[test]
fn a_sizing_policy_replaces_cpus_and_memory() {
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
        // The policy's values, or the template's.
        assert_eq!((vm.cpus, vm.memory_mb), if sizing.is_some() { (2, 2048) } else { (2, 4096) }, "{name}");
        assert_eq!(made(&client, begun.vapp.as_ref().unwrap()).differs, None);
    }
    // Values that the policy sets are neither sent nor missed. The others are sent.
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
        assert_eq!(outcome.err(), (!fixes_memory).then_some(ErrorKind::TooMuch), "values of the policy are not sent");
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
    // cloudapi returns errors as JSON.
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
    // The poll has the dates of the leases, by VCD's clock.
    let seen =
        until("the lease's date", || poll(&client, false).unwrap().vms.pop().filter(|vm| vm.undeploy_at.is_some()));
    let life = seen.undeploy_at.unwrap() - seen.created.unwrap();
    assert!((180_000_000..181_000_000).contains(&life), "{life}");

    // VCD silently cuts a lease to the org's maximum. Without a requested lease, the org's default is used.
    server.with_model(|m| m.orgs.values_mut().for_each(|o| o.leases.deployment_s = (7200, 86_400)));
    create(&client, "ci-2").unwrap();
    assert_eq!(lease("ci-2").0, 86_400);
    create(&open(&server), "ci-3").unwrap();
    assert_eq!(lease("ci-3").0, 7200);
}

#[test]
fn hardware_that_a_create_ignores_or_rejects_is_set_by_a_reconfigure() {
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
    assert_eq!(&*vm.description, "group=ci", "a reconfigure does not change the owner tag");
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
fn the_address_is_that_of_the_primary_nic() {
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
fn one_page_of_policies_is_requested() {
    let server = server();
    let page = "computePolicies?page=1&pageSize=25&";
    fault(&server, serde_json::json!({"op": "policies", "path": page, "answer_before": {"status": 503}}));
    let e = errors_of(Settings { sizing_policy: Some("small".into()), ..settings(&server) }).remove(0);
    assert_eq!((e.kind, e.status), (ErrorKind::Unavailable, 503), "{e}");
}

/// Changes the template's VM in the model.
fn seed_template(server: &Server, change: impl Fn(&mut TemplateVm)) {
    server.with_model(|m| {
        let id = *m.templates.iter().find(|(_, t)| &*t.name == "ubuntu-22.04").unwrap().0;
        m.template_vms.values_mut().filter(|vm| vm.template == id).for_each(change);
    });
}

fn ends_well(client: &Client, begun: &Started) -> Href {
    assert_eq!(ended(client, begun), TaskState::Success);
    begun.vapp.clone().unwrap()
}

#[test]
fn a_templates_own_network_is_replaced() {
    for setting in [OwnNetworkInCreate::Refuse, OwnNetworkInCreate::Ignore] {
        let server = server();
        server.with_model(|m| m.settings.own_network_in_create = setting);
        seed_template(&server, |vm| {
            vm.nics[0] = Nic { network: Some("VM & Network".into()), ..Nic::unconnected(0) };
            vm.nics.push(Nic { network: Some("Internal".into()), ..Nic::unconnected(1) });
        });
        let client = open(&server);
        let requests = || client.counts().iter().map(|count| count.requests).sum::<u64>();
        let before = requests();
        let begun = create(&client, "ci-whole").unwrap();
        assert_eq!(requests() - before, 1, "{setting:?}");
        let vapp = ends_well(&client, &begun);
        let of = |name: &str| vm(&server, name).nics[0].network.clone().unwrap().to_string();
        assert_eq!((of("ci-whole").as_str(), made(&client, &vapp).differs), ("ci-net", None));
        let begun = compose(&client, "ci-steps").unwrap();
        ends_well(&client, &begun);
        assert_eq!(of("ci-steps"), "ci-net");
        until("an address", || poll(&client, false).unwrap().vms[0].address);
        // An adapter that is already on the configured network needs no change.
        seed_template(&server, |vm| vm.nics.iter_mut().for_each(|nic| nic.network = Some("ci-net".into())));
        let client = open(&server);
        let begun = create(&client, "ci-same").unwrap();
        ends_well(&client, &begun);
    }
}

#[test]
fn a_vms_adapter_is_compared_and_corrected_like_its_hardware() {
    let server = server();
    let client = open(&server);
    let vapp = ends_well(&client, &compose(&client, "ci-1").unwrap());
    let off = made(&client, &vapp);
    ends_well(
        &client,
        &Started {
            vapp: Some(vapp.clone()),
            ..started(&client, &Request::Configure { vm: off.vm.clone() }, None).unwrap()
        },
    );
    assert_eq!(made(&client, &vapp).differs, None);
    type Wrong = (&'static str, fn(&mut Nic));
    let wrong: [Wrong; 3] = [
        ("network \"VM Network\" instead of \"ci-net\"", |nic| nic.network = Some("VM Network".into())),
        ("address by DHCP instead of POOL", |nic| nic.mode = IpMode::Dhcp),
        ("an adapter that is not connected", |nic| nic.connected = false),
    ];
    for (text, change) in wrong {
        server.with_model(|m| change(&mut m.vms.values_mut().next().unwrap().nics[0]));
        assert_eq!(made(&client, &vapp).differs.as_deref(), Some(text));
        let begun = started(&client, &Request::Configure { vm: off.vm.clone() }, None).unwrap();
        assert_eq!(ended(&client, &begun), TaskState::Success, "{text}");
        assert_eq!(made(&client, &vapp).differs, None, "{text}");
        let nic = vm(&server, "ci-1").nics[0].clone();
        assert_eq!((nic.network.as_deref(), nic.mode, nic.connected), (Some("ci-net"), IpMode::Pool, true), "{text}");
    }
}

#[test]
fn items_have_the_ids_of_the_template_and_the_boot_disk_grows() {
    type Case = (&'static str, usize, &'static [u32], u32);
    let cases: [Case; 4] = [
        ("one-disk", 1, &[2000], 2000),
        ("two-adapters", 2, &[2001, 2000], 2000),
        ("many-controllers", 3, &[2016, 2001, 2000, 2032], 2000),
        ("sata", 1, &[16_001, 16_000], 16_000),
    ];
    for (name, adapters, disks, boot) in cases {
        for shows in [HardwareShown::Section, HardwareShown::Nil, HardwareShown::Spec, HardwareShown::Apart] {
            let server = server();
            seed_template(&server, |vm| {
                vm.nics =
                    (0..adapters as u32).map(|n| Nic { adapter: "E1000E".into(), ..Nic::unconnected(n) }).collect();
                vm.disks = disks.iter().map(|id| Disk { id: *id, mb: 20_480 }).collect();
                vm.shows = shows;
            });
            let client = open(&server);
            let begun = create(&client, name).unwrap_or_else(|e| panic!("{name} {shows:?}: {e}"));
            let vapp = ends_well(&client, &begun);
            let vm = vm(&server, name);
            assert_eq!((vm.cpus, vm.cores_per_socket, vm.memory_mb), (4, 2, 8192), "{name} {shows:?}");
            let grown: Vec<u32> = vm.disks.iter().filter(|d| d.mb == 40 * 1024).map(|d| d.id).collect();
            assert_eq!((grown, vm.disks.len()), (vec![boot], disks.len()), "{name} {shows:?}");
            assert_eq!(&*vm.nics[0].adapter, "E1000E", "the template's own type");
            assert_eq!(made(&client, &vapp).differs, None, "{name} {shows:?}");
        }
    }
}

#[test]
fn hardware_missing_in_a_template_is_read_from_its_vms_document() {
    let server = server();
    seed_template(&server, |vm| {
        vm.shows = HardwareShown::Apart;
        vm.disks = vec![Disk { id: 2000, mb: 99 * 1024 }];
        vm.os_type = "windows11_64Guest".into();
    });
    // Only this document shows that its disk is too large, and that it needs a TPM.
    let e = errors_of(settings(&server)).remove(0);
    assert!(e.kind == ErrorKind::Invalid && e.text.contains("disk has 101376 MB, and disks cannot shrink"), "{e}");
    let (client, environment) = Client::open(Settings { disk_gb: 100, ..settings(&server) }).unwrap();
    assert_eq!(environment.guest_os, "Ubuntu Linux (64-bit)");
    assert_eq!(server.requests("query:vm"), 0, "its record is not needed");
    let e = create(&client, "ci-1").unwrap_err();
    assert!(e.kind == ErrorKind::TooMuch && e.text.contains("TPM"), "{e}");
    seed_template(&server, |vm| vm.tpm = true);
    // One request is enough: the disk is known before the VM exists.
    let client = Client::open(Settings { disk_gb: 100, ..settings(&server) }).unwrap().0;
    let vapp = ends_well(&client, &create(&client, "ci-2").unwrap());
    assert_eq!((vm(&server, "ci-2").disks[0].mb, made(&client, &vapp).differs), (100 * 1024, None));
    // If VCD refuses that document, only the template's is used.
    let refusal =
        serde_json::json!({"status": 403, "body": "<Error majorErrorCode='403' minorErrorCode='X' message='m'/>"});
    fault(&server, serde_json::json!({"path": "/api/vAppTemplate/vm-", "times": 0, "answer_before": refusal}));
    let client = Client::open(settings(&server)).unwrap().0;
    let e = create(&client, "ci-3").unwrap_err();
    assert!(e.kind == ErrorKind::TooMuch && e.text.contains("does not show its disk"), "{e}");
}

/// Else VMs would be created in steps, and the standby pool would replace its VMs.
#[test]
fn the_hardware_of_a_template_stays_known_if_it_cannot_be_read_again() {
    let server = server();
    seed_template(&server, |vm| (vm.shows, vm.tpm) = (HardwareShown::Apart, true));
    let by = Settings { template_life: Duration::ZERO, standby: true, ..settings(&server) };
    let client = Client::open(by.clone()).unwrap().0;
    let source = poll(&client, true).unwrap().source;
    for status in [500, 403] {
        refuse(&server, "/api/vAppTemplate/vm-", status);
        assert_eq!(poll(&client, true).unwrap().source, source, "{status}");
        ends_well(&client, &create(&client, &format!("ci-{status}")).unwrap());
        server.clear_faults();
    }
    // The guest OS, which only its record shows, says that it needs a TPM.
    seed_template(&server, |vm| (vm.shows, vm.tpm, vm.guest_os) = (HardwareShown::Nothing, false, "Windows 11".into()));
    let client = Client::open(Settings { disk_gb: 0, ..by }).unwrap().0;
    for status in [200, 500] {
        if status == 500 {
            refuse(&server, "type=vm&", status);
        }
        let e = create(&client, "ci-1").unwrap_err();
        assert!(e.kind == ErrorKind::TooMuch && e.text.contains("TPM"), "{status}: {e}");
    }
    // What another template has is read once it can be read.
    server.clear_faults();
    refuse(&server, "/api/vAppTemplate/vm-", 500);
    let by = Settings { template: "golden-*".into(), template_life: Duration::ZERO, ..settings(&server) };
    template(&server, "ci-catalog", "golden-1", 1_000);
    let client = Client::open(by).unwrap().0;
    template(&server, "ci-catalog", "golden-2", 2_000);
    server.with_model(|m| m.template_vms.values_mut().for_each(|vm| vm.shows = HardwareShown::Apart));
    let e = create(&client, "ci-2").unwrap_err();
    assert!(e.kind == ErrorKind::TooMuch && e.text.contains("does not show its disk"), "{e}");
    server.clear_faults();
    ends_well(&client, &create(&client, "ci-2").unwrap());
    assert_eq!(&*vm(&server, "ci-2").guest_os, "golden-2");
}

/// VCD answers each request for such a path with this status.
fn refuse(server: &Server, path: &str, status: u16) {
    let body = format!("<Error majorErrorCode='{status}' minorErrorCode='X' message='m'/>");
    let answer = serde_json::json!({"status": status, "body": body});
    fault(server, serde_json::json!({"path": path, "times": 0, "answer_before": answer}));
}

#[test]
fn a_template_without_hardware_does_not_fail_the_start() {
    let server = server();
    seed_template(&server, |vm| vm.shows = HardwareShown::Nothing);
    let (client, environment) = Client::open(settings(&server)).unwrap();
    assert_eq!(environment.guest_os, "Ubuntu Linux (64-bit)", "from the VM's record");
    // Its disk is known once the VM shows it.
    let requests = server.requests("instantiate");
    let e = create(&client, "ci-1").unwrap_err();
    assert!(e.kind == ErrorKind::TooMuch && e.text.contains("does not show its disk"), "{e}");
    assert_eq!(server.requests("instantiate"), requests);
    let vapp = ends_well(&client, &compose(&client, "ci-1").unwrap());
    let off = made(&client, &vapp);
    assert!(off.differs.as_ref().unwrap().contains("20480 MB of disk instead of 40960"), "{:?}", off.differs);
    let begun = started(&client, &Request::Configure { vm: off.vm }, None).unwrap();
    assert_eq!(ended(&client, &begun), TaskState::Success);
    assert_eq!((made(&client, &vapp).differs, vm(&server, "ci-1").disks[0].mb), (None, 40 * 1024));
    // A disk that is larger than requested is found then.
    seed_template(&server, |vm| vm.disks = vec![Disk { id: 2000, mb: 99 * 1024 }, Disk { id: 2001, mb: 1024 }]);
    let vapp = ends_well(&client, &compose(&client, "ci-2").unwrap());
    let e = client.call(&Request::Configure { vm: made(&client, &vapp).vm }, None).unwrap_err();
    assert!(e.kind == ErrorKind::Invalid && e.text.contains("boot disk has 101376 MB, and disks cannot shrink"), "{e}");
    // Without a requested size, one request is enough.
    let client = Client::open(Settings { disk_gb: 0, ..settings(&server) }).unwrap().0;
    ends_well(&client, &create(&client, "ci-3").unwrap());
}

#[test]
fn guest_properties_that_a_create_ignored_are_set_before_the_first_boot() {
    let server = server();
    let rich = Settings {
        guest_properties: vec![("proxy".into(), Secret::new("http://p & <q>"))],
        user_data: Some(Secret::new("#cloud-config")),
        ..settings(&server)
    };
    let client_settings = rich.clone();
    let client = Client::open(rich).unwrap().0;
    let vapp = ends_well(&client, &create(&client, "ci-taken").unwrap());
    assert_eq!(made(&client, &vapp).differs, None);

    server.with_model(|m| m.settings.properties_in_create = HardwareInCreate::Ignore);
    let vapp = ends_well(&client, &create(&client, "ci-ignored").unwrap());
    let differs = made(&client, &vapp).differs.unwrap();
    assert_eq!(
        differs,
        "guest property \"proxy\" is missing or wrong, guest property \"user-data\" is missing or wrong"
    );

    let vapp = ends_well(&client, &compose(&client, "ci-steps").unwrap());
    let off = made(&client, &vapp);
    assert!(off.differs.as_ref().unwrap().contains("CPUs") && off.differs.as_ref().unwrap().contains("proxy"));
    for operation in ["reconfigure", "update:properties"] {
        assert!(made(&client, &vapp).differs.is_some());
        let before = server.requests(operation);
        let begun = started(&client, &Request::Configure { vm: off.vm.clone() }, None).unwrap();
        assert_eq!(ended(&client, &begun), TaskState::Success);
        assert_eq!(server.requests(operation), before + 1, "one request each");
    }
    assert_eq!(made(&client, &vapp).differs, None);
    let set: Vec<String> = vm(&server, "ci-steps").properties.iter().map(|(key, _)| key.to_string()).collect();
    assert_eq!(set, ["proxy", "user-data"]);

    // While they cannot be read, they are not known to be right. A user without the right to read them goes on.
    let vapp = ends_well(&client, &compose(&client, "ci-unread").unwrap());
    let vm = made(&client, &vapp).vm;
    let begun = started(&client, &Request::Configure { vm: vm.clone() }, None).unwrap();
    assert_eq!(ended(&client, &begun), TaskState::Success);
    refuse(&server, "/productSections", 500);
    assert_eq!(look(&client, &vapp).unwrap_err().kind, ErrorKind::Unavailable);
    let e = client.call(&Request::Configure { vm }, None).unwrap_err();
    assert_eq!((e.kind, e.status), (ErrorKind::Unavailable, 500), "{e}");
    server.clear_faults();
    for status in [400, 403, 404] {
        refuse(&server, "/productSections", status);
        assert_eq!(made(&client, &vapp).differs, None, "{status}");
        server.clear_faults();
    }
    assert!(made(&client, &vapp).differs.unwrap().contains("proxy"));

    server.with_model(|m| m.settings.properties_in_create = HardwareInCreate::Refuse);
    let e = create(&client, "ci-refused").unwrap_err();
    assert!(e.kind == ErrorKind::TooMuch && e.text.contains("sets the guest properties later"), "{e}");
    let vapp = ends_well(&client, &compose(&client, "ci-refused").unwrap());
    assert!(made(&client, &vapp).differs.unwrap().contains("proxy"), "they are left out, and reported as missing");
    // A VCD that rejects them only in steps.
    let client = Client::open(client_settings).unwrap().0;
    let e = compose(&client, "ci-again").unwrap_err();
    assert_eq!(e.kind, ErrorKind::Unavailable, "{e}");
    compose(&client, "ci-again").unwrap();

    // Without configured properties, none are queried.
    let plain = open(&server);
    let asked = server.requests("section:properties");
    let vapp = ends_well(&plain, &create(&plain, "ci-plain").unwrap());
    made(&plain, &vapp);
    assert_eq!(server.requests("section:properties"), asked);
}

#[test]
fn names_with_special_characters_are_found_with_either_escaping() {
    for escapes in [FilterEscapes::Backslash, FilterEscapes::Nothing] {
        let server = server();
        let odd = "a (b), c; d\\e * ü";
        // Without escapes, a comma or semicolon always ends a value.
        let odd = if escapes == FilterEscapes::Nothing { "a (b) d\\e * ü" } else { odd };
        server.with_model(|m| {
            m.settings.filter_escapes = escapes;
            m.vdcs.values_mut().for_each(|v| v.name = odd.into());
            m.networks.values_mut().for_each(|n| n.name = odd.into());
            // Many installations have such names: it is a name, not a pattern.
            let vdc = *m.vdcs.keys().next().unwrap();
            m.add_profile(vdc, "*", 0);
            m.catalogs.values_mut().for_each(|c| c.name = "images (golden)".into());
            m.policies.values_mut().for_each(|p| p.name = odd.into());
        });
        template(&server, "images (golden)", "base (1)", 1_000);
        let by = Settings {
            vdc: odd.into(),
            network: odd.into(),
            catalog: "images (golden)".into(),
            template: "base (1)".into(),
            storage_profile: "*".into(),
            sizing_policy: Some(odd.into()),
            ..settings(&server)
        };
        let client = Client::open(by.clone()).unwrap_or_else(|e| panic!("{escapes:?}: {e:?}")).0;
        let begun = create(&client, "ci-1").unwrap();
        assert_eq!(ended(&client, &begun), TaskState::Success);
        let profile = server.with_model(|m| m.profiles[&m.vms.values().next().unwrap().profile].name.clone());
        assert_eq!(&*profile, "*");
        let e = errors_of(Settings { network: "no (such)".into(), ..by }).remove(0);
        assert_eq!((e.kind, e.what.as_str()), (ErrorKind::NotFound, "find network \"no (such)\""));
    }
    // Names without special characters need one query.
    let server = server();
    let looks = server.requests("query:orgVdcNetwork");
    errors_of(Settings { network: "no-such".into(), ..settings(&server) });
    assert_eq!(server.requests("query:orgVdcNetwork"), looks + 2, "in the VDC, and in all VDCs");
}

#[test]
fn records_without_some_fields_and_with_local_times_are_read() {
    let server = server();
    let client = open(&server);
    let vapp = ends_well(&client, &create(&client, "ci-1").unwrap());
    server.with_model(|m| {
        let vdc = *m.vdcs.keys().next().unwrap();
        m.admin_foreign_vapp(vdc, "ci-empty", "");
    });
    let told = |client: &Client| {
        let queries = server.requests("query:vApp");
        let mut vapps = poll(client, true).unwrap().vapps.unwrap();
        vapps.sort_by(|a, b| a.name.cmp(&b.name));
        let told: Vec<(String, usize)> = vapps.iter().map(|v| (v.name.to_string(), v.vms.len())).collect();
        assert_eq!(told, [("ci-1".into(), 1), ("ci-empty".into(), 0)]);
        server.requests("query:vApp") - queries
    };
    assert_eq!(told(&client), 1, "VCD accepts all fields");
    server.with_model(|m| m.settings.unknown_fields = ["creationDate", "isBusy"].map(String::from).to_vec());
    assert_eq!(told(&client), 3, "one rejection, one query without fields, one for the labels");
    assert_eq!(told(&client), 2, "a rejected query is not repeated");
    server.with_model(|m| m.settings.unknown_fields.clear());

    // Dates are the same moments, wherever VCD is.
    let of = |minutes| {
        server.with_model(|m| m.settings.utc_offset_minutes = minutes);
        let poll = poll(&client, true).unwrap();
        let vm = poll.vms[0].clone();
        let looked = look(&client, &vapp).unwrap().pop().unwrap();
        (
            vm.created.unwrap(),
            looked.created.unwrap(),
            poll.vapps.unwrap().iter().find(|v| v.vms.len() == 1).unwrap().created,
        )
    };
    let utc = of(0);
    assert_eq!((of(120), of(-570)), (utc, utc));
}

#[test]
fn a_provider_user_reads_the_administrators_records() {
    let server = server_with(|o| o.scale = 1.0);
    server.with_model(|m| {
        let org = m.add_org("System");
        let user = m.add_user(org, "administrator", "p", &vcd_sim::model::Right::ALL);
        m.tokens.insert("provider-token".into(), user);
    });
    let by = Settings {
        org: "System".into(),
        token: fleeting_plugin_vcd::vcd::Token::Text(Secret::new("provider-token")),
        ..settings(&server)
    };
    let client = Client::open(by.clone()).unwrap().0;
    create(&client, "ci-1").unwrap();
    // The VM's record does not show that a task locks the VM.
    let shown = until("the VM", || poll(&client, false).unwrap().vms.pop());
    assert!(shown.busy, "its vApp's record shows it");
    assert_eq!((shown.undeploy_at, shown.delete_at), (None, None));
    assert!(poll(&client, true).unwrap().vapps.unwrap()[0].busy);
    server.with_model(|m| m.advance(m.now() + 120_000));
    assert!(!poll(&client, false).unwrap().vms[0].busy);
    let qualified = Settings { catalog: "ci-org/ci-catalog".into(), ..by };
    Client::open(qualified).unwrap();
    // A tenant's polls need no additional queries for this.
    let tenant = open(&server);
    let queries = server.requests("query:vApp");
    poll(&tenant, false).unwrap();
    assert_eq!(server.requests("query:vApp"), queries);
}
