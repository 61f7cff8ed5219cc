//! `vcd-sim`: a simulated VMware Cloud Director.

use argh::FromArgs;
use async_signal::{Signal, Signals};
use smol::stream::StreamExt as _;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use vcd_sim::GuestKind;
use vcd_sim::model::{HardwareInCreate, Model};

/// A simulated VMware Cloud Director. Prints its URLs and what serves its guests, one per line, and runs until SIGINT
/// or SIGTERM.
#[derive(FromArgs)]
struct Flags {
    /// address for HTTP (127.0.0.1:8080)
    #[argh(option, default = "SocketAddr::from((Ipv4Addr::LOCALHOST, 8080))")]
    listen: SocketAddr,
    /// address for HTTPS (none)
    #[argh(option)]
    https_listen: Option<SocketAddr>,
    /// address of the control port (127.0.0.1:8081)
    #[argh(option, default = "SocketAddr::from((Ipv4Addr::LOCALHOST, 8081))")]
    control: SocketAddr,
    /// how many times faster than real time the simulated time runs (1)
    #[argh(option, default = "1.0")]
    scale: f64,
    /// seed for everything random (1)
    #[argh(option, default = "1")]
    seed: u64,
    /// port of the guests at their own addresses (2222)
    #[argh(option, default = "2222")]
    guest_port: u16,
    /// address of a real SSH server that serves all guests (none)
    #[argh(option)]
    guest_forward: Option<SocketAddr>,
    /// what serves the guests: openssh accepts the user of this process with the keys that guests were given; banner
    /// accepts nobody; auto is openssh if that works, else banner (auto)
    #[argh(option, default = "GuestKind::Auto")]
    guests: GuestKind,
    /// what VCD does with hardware in a create request: apply, ignore or refuse (apply)
    #[argh(option, default = "HardwareInCreate::Apply")]
    hardware_in_create: HardwareInCreate,
    /// file to which the CA's certificate is written, with HTTPS (none)
    #[argh(option)]
    ca_out: Option<std::path::PathBuf>,
}

fn main() -> ExitCode {
    match run(argh::from_env()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vcd-sim: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(flags: Flags) -> std::io::Result<()> {
    let mut model = Model::standard(flags.seed);
    model.settings.hardware_in_create = flags.hardware_in_create;
    let server = vcd_sim::Server::start(vcd_sim::Options {
        listen: flags.listen,
        https_listen: flags.https_listen,
        control: flags.control,
        scale: flags.scale,
        seed: flags.seed,
        guest_port: flags.guest_port,
        guest_forward: flags.guest_forward,
        guests: flags.guests,
        model: Some(model),
        ..Default::default()
    })?;
    if let (Some(path), Some(pem)) = (flags.ca_out, server.ca_pem()) {
        std::fs::write(path, pem)?;
    }
    let ended = Signals::new([Signal::Term, Signal::Int])?;
    let mut out = std::io::stdout();
    writeln!(out, "vcd {}", server.url())?;
    if let Some(url) = server.https_url() {
        writeln!(out, "https {url}")?;
    }
    writeln!(out, "guests: {}", server.guests())?;
    writeln!(out, "control {}", server.control_url())?;
    out.flush()?;
    // Deletes the server's files.
    smol::block_on({ ended }.next());
    Ok(())
}
