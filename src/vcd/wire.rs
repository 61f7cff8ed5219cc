//! For `fuzz/`: a connection to VCD in memory. A function answers each request; no name is looked up and nothing leaves
//! this process.

use rustls::ClientConfig;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport};
use ureq::{Agent, Error};

/// VCD's answer to the bytes of a request so far. Empty: more bytes are needed, or the connection closes at their end.
pub type Answerer = Box<dyn FnMut(&[u8]) -> Vec<u8> + Send>;

static ANSWERER: Mutex<Option<Answerer>> = Mutex::new(None);

/// From now on `answerer` is VCD, for all clients.
pub fn answer_with(answerer: impl FnMut(&[u8]) -> Vec<u8> + Send + 'static) {
    *ANSWERER.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(answerer));
}

pub(super) fn agent(config: Config, _: Arc<ClientConfig>) -> Agent {
    Agent::with_parts(config, Plug, Nowhere)
}

#[derive(Debug)]
struct Nowhere;

impl Resolver for Nowhere {
    fn resolve(&self, _: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let mut addresses = self.empty();
        addresses.push(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)));
        Ok(addresses)
    }
}

#[derive(Debug)]
struct Plug;

impl Connector for Plug {
    type Out = Wire;

    fn connect(&self, details: &ConnectionDetails, _: Option<()>) -> Result<Option<Wire>, Error> {
        let buffers = LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size());
        Ok(Some(Wire { buffers, sent: Vec::new(), answer: Vec::new() }))
    }
}

/// One connection.
struct Wire {
    buffers: LazyBuffers,
    /// The request so far.
    sent: Vec<u8>,
    /// The part of the answer that is not read yet.
    answer: Vec<u8>,
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wire")
    }
}

impl Transport for Wire {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, _: NextTimeout) -> Result<(), Error> {
        self.sent.extend_from_slice(self.buffers.output().get(..amount).unwrap_or_default());
        Ok(())
    }

    fn await_input(&mut self, _: NextTimeout) -> Result<bool, Error> {
        if !self.sent.is_empty() {
            let request = std::mem::take(&mut self.sent);
            let mut answerer = ANSWERER.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(answerer) = answerer.as_mut() {
                self.answer.extend(answerer(&request));
            }
        }
        let room = self.buffers.input_append_buf();
        let amount = room.len().min(self.answer.len());
        for (to, from) in room.iter_mut().zip(self.answer.drain(..amount)) {
            *to = from;
        }
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    fn is_open(&mut self) -> bool {
        self.sent.is_empty() && self.answer.is_empty()
    }
}
