//! VCD's answers of every kind: to one call of the client, or to the start of a client.
#![no_main]

use fleeting_plugin_vcd::cloud::{MAX_TASKS_ASKED, Mark, Request};
use fleeting_plugin_vcd::vcd::inspect::Inspector;
use fleeting_plugin_vcd::vcd::{Client, IpMode};
use fleeting_plugin_vcd_fuzz::vcd::*;
use fleeting_plugin_vcd_fuzz::{BASE, assert_no_secret};
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: start(), |data: &[u8]| {
    let (operation, answers) = split(data);
    match operation {
        "open" | "open-windows" | "open-patterns" => open(operation, answers),
        "inspect" => inspect(answers),
        _ => {
            let vapp = format!("{BASE}/api/vApp/vapp-1").into();
            let vm = format!("{BASE}/api/vApp/vm-2").into();
            let task = format!("{BASE}/api/task/3").into();
            let (name, description) = ("ci-abc12345".into(), "fleeting-plugin-vcd/1 manager=m group=g id=ci-abc12345".into());
            let request = match operation {
                "create" => Request::Create { name, description, whole: true },
                "compose" => Request::Create { name, description, whole: false },
                "configure" => Request::Configure { vm },
                "tpm" => Request::AddTpm { vm },
                "power-on" => Request::PowerOn { vapp },
                "suspend" => Request::Suspend { vapp },
                "mark" => Request::Mark { vapp, mark: Mark::Suspended },
                "delete" => Request::Delete { vapp },
                "undeploy" => Request::Undeploy { vapp },
                "delete-stopped" => Request::DeleteStopped { vapp },
                "cancel" => Request::Cancel { task },
                "label" => Request::Label { vapp },
                "task" => Request::Tasks { tasks: vec![task] },
                _ => Request::Look { vapp, guest: true },
            };
            assert!(!matches!(&request, Request::Tasks { tasks } if tasks.len() > MAX_TASKS_ASKED));
            ask(&request, answers);
        }
    }
});

fn open(operation: &str, answers: Answers) {
    let mut settings = settings();
    match operation {
        "open-windows" => settings.template = "windows-2022".into(),
        "open-patterns" => {
            settings.template = "ubuntu-*".into();
            settings.catalog = "ci-*".into();
            settings.sizing_policy = Some("small".into());
            settings.placement_policy = Some("rack-1".into());
            settings.ip_mode = IpMode::Dhcp;
        }
        _ => {}
    }
    answer_all(answers);
    match Client::open(settings) {
        Ok((client, environment)) => {
            assert!(!environment.api_version.is_empty());
            // The next create uses the names that were found.
            let create = Request::Create { name: "ci-abc12345".into(), description: "d".into(), whole: true };
            check(&create, client.call(&create, Some(&guest())));
            client.close();
        }
        Err(errors) => {
            assert!(!errors.is_empty());
            errors.iter().for_each(check_error);
        }
    }
}

fn inspect(answers: Answers) {
    answer_all(answers);
    let (inspector, login) = match Inspector::log_in(settings()) {
        Ok(all) => all,
        Err(error) => return check_error(&error),
    };
    assert_no_secret("a login's Debug", &format!("{login:?}"));
    let _ = inspector.rights(&login);
    let _ = inspector.lease_rules(&login);
    let vdc = inspector.vdc().inspect_err(check_error).ok().map(|vdc| vdc.href);
    let _ = inspector.network(vdc.as_ref()).inspect_err(check_error);
    let _ = inspector.storage(vdc.as_ref()).inspect_err(check_error);
    let _ = inspector.template().inspect_err(check_error);
    inspector.close();
}
