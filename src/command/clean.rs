//! `clean`: deletes all vApps of a group in VCD, after confirmation. It refuses if it detects a running plugin of the same group
//! and name.

use super::life::{self, DELETE_TIMEOUT, Life};
use super::list::{Item, gather, table};
use super::output::{confirm, log_for_people, print};
use super::runner::RunnerFile;
use crate::config::Config;
use crate::presence::Presence;
use smol::LocalExecutor;
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

/// Maximum time for a connection to the debug server's address.
const DEBUG_TIMEOUT: Duration = Duration::from_secs(2);

/// Deletes all vApps of one runner's group. `yes`: without confirmation.
pub fn run(path: &Path, name: Option<&str>, yes: bool) -> Result<(), String> {
    let file = RunnerFile::read(path)?;
    let runner = file.only(name)?;
    let config = runner.config(false)?;
    nobody_serves(&config)?;
    log_for_people(log::LevelFilter::Info);
    let ours = mine(gather(&config)?);
    let (group, manager) = (&config.policy.group, &config.policy.manager);
    if ours.is_empty() {
        print(&format!("group {group:?} of {manager:?} has nothing in VCD\n"));
        return Ok(());
    }
    print(&table(&ours));
    if let Some(busy) = ours.iter().find(|item| item.busy) {
        return Err(format!(
            "VCD works on {}: a plugin on another machine may have started that; nothing was deleted. Try again when VCD has finished",
            busy.name
        ));
    }
    let count = ours.len();
    let question = format!(
        "This command cannot detect a plugin of this group on another machine. Delete {} permanently?",
        if count == 1 { "this vApp".into() } else { format!("these {count} vApps") }
    );
    if !yes && !confirm(&question)? {
        return Err("nothing was deleted".into());
    }
    // The person may have taken long to answer.
    nobody_serves(&config)?;
    let names = |items: &[Item]| items.iter().map(|item| item.href.clone()).collect::<Vec<_>>();
    if names(&mine(gather(&config)?)) != names(&ours) {
        return Err(
            "the group's vApps have changed in the meantime: a plugin may be running; nothing was deleted".into()
        );
    }
    let executor = Rc::new(LocalExecutor::new());
    let mut result = Err("interrupted: VCD continues what it has started; run clean again for the rest".to_owned());
    life::run(&executor.clone(), async {
        match Life::begin(&executor, runner, &[]).await {
            Ok(life) => {
                if let Some(gone) = life::interruptible(life.end(DELETE_TIMEOUT)).await {
                    result = Ok(gone);
                }
            }
            Err(why) => result = Err(why),
        }
        ExitCode::SUCCESS
    });
    if !result? {
        return Err("some vApps still exist: see VCD's answers in the lines above, and run clean again".into());
    }
    print(&format!("deleted: {count} of {count}\n"));
    Ok(())
}

fn mine(items: Vec<Item>) -> Vec<Item> {
    items.into_iter().filter(|item| item.is_ours).collect()
}

/// An error if a plugin of this group is detected.
fn nobody_serves(config: &Config) -> Result<(), String> {
    if Presence::is_held(&config.identity()) {
        return Err(
            "a plugin of this group and name runs on this machine; nothing was deleted. Stop GitLab Runner first"
                .into(),
        );
    }
    if let Some(address) = &config.debug_server_addr
        && answers(address)
    {
        return Err(format!(
            "something listens at debug_server_addr {address}, probably a plugin of this runner; nothing was deleted. Stop \
             GitLab Runner first"
        ));
    }
    Ok(())
}

/// Whether something listens at `HOST:PORT` or `unix:PATH`.
fn answers(address: &str) -> bool {
    #[cfg(unix)]
    if let Some(path) = address.strip_prefix("unix:") {
        return std::os::unix::net::UnixStream::connect(path).is_ok();
    }
    let mut places = address.to_socket_addrs().into_iter().flatten();
    places.any(|place| TcpStream::connect_timeout(&place, DEBUG_TIMEOUT).is_ok())
}
