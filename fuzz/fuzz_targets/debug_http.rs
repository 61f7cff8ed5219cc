//! HTTP/1 on a connection to the debug server of a plugin that has a few instances.
#![no_main]

use fleeting_plugin_vcd::config::Connector;
use fleeting_plugin_vcd::debug;
use fleeting_plugin_vcd::driver::{Driver, Plugin};
use fleeting_plugin_vcd::vcd::wire;
use fleeting_plugin_vcd_fuzz::{Feed, MARK, init, plugin_config, simulator};
use libfuzzer_sys::fuzz_target;
use smol::LocalExecutor;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

/// Maximum length of an answer. There is at most one answer for each [`SHORTEST_REQUEST`] bytes of input.
const MAX_ANSWER: usize = 64 * 1024;
const SHORTEST_REQUEST: usize = 18;

thread_local! {
    static DRIVER: RefCell<Option<Rc<Driver>>> = const { RefCell::new(None) };
    static PLUGIN: RefCell<Option<(Rc<Plugin>, Rc<LocalExecutor<'static>>)>> = const { RefCell::new(None) };
}

/// A plugin shortly after a request for instances. Its time does not advance.
fn start() {
    init();
    wire::answer_with(simulator());
    let executor = Rc::new(LocalExecutor::new());
    let plugin = Plugin::new(executor.clone(), |_, driver, _| DRIVER.set(Some(driver)));
    let mut config = plugin_config();
    config["debug_server_addr"] = "127.0.0.1:27060".into();
    let connector = Connector {
        username: "ci".into(),
        password: MARK.into(),
        use_static_credentials: true,
        ..Connector::default()
    };
    smol::block_on(executor.run(async {
        plugin.init(config.to_string().as_bytes(), connector).await.expect("the plugin starts");
        assert_eq!(plugin.increase(5).ok(), Some(5));
        while !plugin.views().iter().any(|view| view.address.is_some()) {
            smol::Timer::after(Duration::from_millis(50)).await;
        }
    }));
    // The plugin lives as long as the process: its tasks own it.
    PLUGIN.set(Some((plugin, executor)));
}

fuzz_target!(init: start(), |data: &[u8]| {
    let driver = DRIVER.with_borrow(|driver| driver.clone()).expect("it has started");
    let (feed, said) = Feed::new(data);
    smol::block_on(debug::serve_connection(&driver, feed));
    let said = said.borrow();
    assert!(said.first.is_empty() || said.first.starts_with(b"HTTP/1."), "the answer is HTTP");
    assert!(said.bytes <= MAX_ANSWER * (data.len() / SHORTEST_REQUEST + 1), "{} bytes", said.bytes);
});
