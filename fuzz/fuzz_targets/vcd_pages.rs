//! VCD's pages of records: the poll of a group, the search for a name, and the query for many tasks.
#![no_main]

use fleeting_plugin_vcd::cloud::Request;
use fleeting_plugin_vcd_fuzz::BASE;
use fleeting_plugin_vcd_fuzz::vcd::{ask, split, start};
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: start(), |data: &[u8]| {
    let (operation, answers) = split(data);
    let request = match operation {
        "find" => Request::Find { name: "ci-abc12345".into() },
        "tasks" => Request::Tasks { tasks: (1..=3).map(|n| format!("{BASE}/api/task/{n}").into()).collect() },
        "poll-some" => Request::PollSome { names: vec!["ci-abc12345".into(), "ci-def67890".into()] },
        "poll-vapps" => Request::Poll { vapps: true },
        _ => Request::Poll { vapps: false },
    };
    ask(&request, answers);
});
