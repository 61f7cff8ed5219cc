//! A simulated VMware Cloud Director (VCD): one model, an HTTP(S) front that speaks VCD's XML, guests that answer at
//! their own addresses, and a control port. It rejects what a real VCD rejects.
//!
//! There are two ways to use it:
//! - In process, in virtual time: [`model::Model`] alone. [`model::Model::standard`] creates a world, each operation
//!   is a method that is rejected or starts a task, [`model::Model::advance`] advances the time, and [`faults::Faults`]
//!   can say what goes wrong. No sockets, no threads. The same seed gives the same run.
//! - Over HTTP: [`Server::start`], or the binary `vcd-sim`. Time runs `scale` times as fast as real time.
//!
//! Not simulated: uploads, edge gateways, independent disks, snapshots, media, the actions of system administrators,
//! `createVm` and `instantiateVmFromTemplate`. Users of an org with the name `System` see all orgs, through the
//! administrators' records.
//!
//! # The control port
//!
//! | request | does |
//! | --- | --- |
//! | `GET /state` | vApps with their VMs (address, hardware, customization with script and password), and tasks |
//! | `GET /counts` | `requests`, `accepted`, `refusals` by operation, `tasks` by operationName, `changing`, `total`, `faults` |
//! | `POST /counts/reset` | sets the counts to 0 (tasks are counted while VCD keeps them) |
//! | `GET /guest/IP` | what customization wrote to the guest with this address: `script`, `password`, `computer_name`, `os`, `vm`, `ssh` |
//! | `POST /faults` | a rule (see [`faults`]), or `{"random": {"seed": 1, "rate": 0.1}}` |
//! | `DELETE /faults` | ends all faults |
//! | `POST /versions` | offers these API versions from now on: `["38.1", "37.3!"]`; the latter is deprecated |
//! | `POST /scale` | `{"scale": 10.0}` |
//! | `POST /admin` | one of the actions below |
//!
//! Actions, as `{"action": NAME, …}`:
//!
//! | action | more keys |
//! | --- | --- |
//! | `delete_vapp`, `power_off`, `suspend`, `abort_tasks` | `vapp`: its name |
//! | `rename_vapp` | `vapp`, `name` |
//! | `foreign_vapp` | `name`, `description`; with `template` it gets a running VM |
//! | `revoke_token`, `restore_token` | `token` |
//! | `service_token` | none; answers `token`: one of a service account, valid for one login |
//! | `expire_bearers` | |
//! | `set_quota` | `vms`, `cpus`, `memory_mb`, `operations` (null: none), `storage_mb` (0: none) |
//! | `set_lag` | `ms`: queries show the state of this many milliseconds ago |
//! | `set_rights` | `rights`: the names of all rights that users have from now on |
//! | `set_setting` | `name`, `value`: `allow_duplicate_names`, `gone_is_404`, `storage_quota_in_task`, `force_needs_right`, `no_suspend`, `stop_is_409`, `busy_names_a_task`, `duplicate_is_a_vm`, `bearer_s`, `hardware_in_create` and `properties_in_create` (`apply`, `ignore`, `refuse`), `own_network_in_create` (`refuse`, `ignore`), `create_fails_at_power_on`, `running_task_has_error`, `utc_offset_minutes`, `filter_escapes` (`backslash`, `nothing`), `bracketed_filter_finds_nothing`, `unknown_fields` |
//!
//! Errors are `400` or `404` with `{"error": TEXT}`.

pub mod faults;
pub mod model;
pub mod query;
pub mod routes;
pub mod xml;

mod body;
mod control;
mod front;
mod guests;
mod io;
mod server;
mod tls;
mod view;

pub use front::REQUEST_MS;
pub use guests::GuestKind;
pub use server::{Options, Server};
pub use tls::Certificate;
