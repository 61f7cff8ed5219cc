//! HTTP/2 on the gRPC socket of a plugin that has just started. Its VCD is in memory, so that Init can succeed.
#![no_main]

use fleeting_plugin_vcd::driver::Plugin;
use fleeting_plugin_vcd::host;
use fleeting_plugin_vcd::vcd::wire;
use fleeting_plugin_vcd_fuzz::{Feed, init, simulator};
use libfuzzer_sys::fuzz_target;
use smol::LocalExecutor;
use std::rc::Rc;

/// Maximum number of bytes in the answers: this many for each byte of input, and [`MAX_ANSWER`] more.
const MAX_ANSWER_PER_BYTE: usize = 256;
const MAX_ANSWER: usize = 64 * 1024;
/// After the end of a connection, its remaining tasks end within this many turns.
const MAX_TURNS: usize = 10_000;

fuzz_target!(init: init(), |data: &[u8]| {
    wire::answer_with(simulator());
    let executor = Rc::new(LocalExecutor::new());
    let plugin = Plugin::new(executor.clone(), |_, _, _| {});
    let (feed, said) = Feed::new(data);
    smol::block_on(executor.run(host::serve_connection(executor.clone(), plugin.clone(), feed)));
    // The clock notices the end at the next event.
    let _ = plugin.heartbeat("nobody");
    drop(plugin);
    let mut turns = 0;
    while executor.try_tick() {
        turns += 1;
        assert!(turns < MAX_TURNS, "tasks continue after the end of the connection");
    }
    let said = said.borrow();
    assert!(said.bytes <= MAX_ANSWER + MAX_ANSWER_PER_BYTE * data.len(), "{} bytes", said.bytes);
});
