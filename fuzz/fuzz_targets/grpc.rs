//! HTTP/2 on the gRPC socket of a plugin that has just been started. Its VCD is in memory, so that Init can succeed.
#![no_main]

use fleeting_plugin_vcd::driver::Plugin;
use fleeting_plugin_vcd::host;
use fleeting_plugin_vcd::vcd::wire;
use fleeting_plugin_vcd_fuzz::{Feed, init, simulator};
use libfuzzer_sys::fuzz_target;
use smol::LocalExecutor;
use std::rc::Rc;

/// So much may come back over a connection, for each byte that comes in, and in any case.
const MAX_ANSWER_PER_BYTE: usize = 256;
const MAX_ANSWER: usize = 64 * 1024;
/// Tasks that are left when a connection has ended have ended within so many turns.
const MAX_TURNS: usize = 10_000;

fuzz_target!(init: init(), |data: &[u8]| {
    wire::answer_with(simulator());
    let executor = Rc::new(LocalExecutor::new());
    let plugin = Plugin::new(executor.clone(), |_, _, _| {});
    let (feed, said) = Feed::new(data);
    smol::block_on(executor.run(host::serve_connection(executor.clone(), plugin.clone(), feed)));
    // The clock notices that all has ended when something happens.
    let _ = plugin.heartbeat("nobody");
    drop(plugin);
    let mut turns = 0;
    while executor.try_tick() {
        turns += 1;
        assert!(turns < MAX_TURNS, "tasks go on when all has ended");
    }
    let said = said.borrow();
    assert!(said.bytes <= MAX_ANSWER + MAX_ANSWER_PER_BYTE * data.len(), "{} bytes", said.bytes);
});
