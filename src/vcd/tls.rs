//! The layer below ureq: TLS by rustls with the public CAs, the system's and the user's, which ureq itself cannot
//! combine; lookups of host names without an extra thread; and the marker on errors of failed connections. It sends
//! nothing by itself.

// The fuzzer's wire has neither host names nor TLS.
#![cfg_attr(fuzzing, allow(dead_code))]

use crate::crypto;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme,
    StreamOwned,
};
use std::fs::File;
use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{fmt, io};
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, Either, LazyBuffers, NextTimeout, TcpConnector, Transport, TransportAdapter,
};
use ureq::{Error, Timeout};

/// Maximum size of a `ca_file`, in bytes: some 500 certificates. Of the system's file the rest is not read.
const MAX_CA_FILE: u64 = 1024 * 1024;
/// The system's CA files. The first existing one counts.
const BUNDLES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// The environment variable with another such file.
const BUNDLE_VARIABLE: &str = "SSL_CERT_FILE";
/// Maximum number of IP addresses of a host name that are tried.
const MAX_ADDRESSES: usize = 8;
/// An IP address is looked up again after this time.
const ADDRESS_LIFE: Duration = Duration::from_secs(30);

/// The TLS settings with the trusted CAs.
pub(super) fn config(ca_file: Option<&Path>, skip_verify: bool) -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(crypto::provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?;
    let trusted = if skip_verify { None } else { Some(trusted(ca_file)?) };
    let verifier = Arc::new(Verifier { provider, trusted });
    Ok(Arc::new(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()))
}

/// The public CAs, the system's, and the content of `ca_file`.
fn trusted(ca_file: Option<&Path>) -> Result<Trusted, String> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    add_systems(&mut roots, std::env::var_os(BUNDLE_VARIABLE).map(PathBuf::from));
    let named = match ca_file {
        Some(path) => add(&mut roots, path).map_err(|why| format!("ca_file {}: {why}", path.display()))?,
        None => Vec::new(),
    };
    Ok(Trusted { roots, named })
}

/// Adds the CAs that the system trusts in addition to the public ones, such as a company's own CA. If the file is
/// missing or unreadable, nothing is added.
fn add_systems(roots: &mut RootCertStore, named: Option<PathBuf>) {
    let known = || BUNDLES.iter().map(Path::new).find(|path| path.is_file()).map(Path::to_owned);
    let (level, path) = match named {
        Some(path) => (log::Level::Warn, path),
        None => match known() {
            Some(path) => (log::Level::Debug, path),
            None => return,
        },
    };
    let before = roots.len();
    let read = File::open(&path).and_then(|file| add_new(roots, &mut BufReader::new(file.take(MAX_CA_FILE))));
    let (place, added) = (path.display(), roots.len() - before);
    match read {
        Ok(passed_over) => {
            log::debug!(
                "{place}: {added} CAs are trusted in addition to the public ones, {passed_over} cannot be read"
            );
        }
        Err(e) => log::log!(level, "{place}: {e}: {added} CAs in it are trusted"),
    }
}

/// Adds the CAs that are missing, one by one: a system has some 150, and few are its own. Returns the number of
/// certificates that were skipped.
fn add_new(roots: &mut RootCertStore, pem: &mut dyn BufRead) -> io::Result<usize> {
    let mut passed_over = 0;
    for certificate in CertificateDer::pem_reader_iter(pem) {
        let added = match certificate {
            Ok(certificate) => roots.add(certificate).is_ok(),
            // The error would repeat without end.
            Err(pem::Error::Io(e)) => return Err(e),
            Err(_) => false,
        };
        let same = |a: &TrustAnchor<'_>, b: &TrustAnchor<'_>| {
            a.subject == b.subject && a.subject_public_key_info == b.subject_public_key_info
        };
        match roots.roots.split_last() {
            _ if !added => passed_over += 1,
            Some((new, known)) if known.iter().any(|anchor| same(anchor, new)) => _ = roots.roots.pop(),
            _ => {}
        }
    }
    Ok(passed_over)
}

/// Adds the certificates of a file, and returns them.
fn add(roots: &mut RootCertStore, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    if path.is_dir() {
        return Err("is a folder".into());
    }
    let mut pem = Vec::new();
    let file = File::open(path).map_err(|e| e.to_string())?;
    file.take(MAX_CA_FILE + 1).read_to_end(&mut pem).map_err(|e| e.to_string())?;
    if pem.len() as u64 > MAX_CA_FILE {
        return Err(format!("has more than the {MAX_CA_FILE} bytes allowed"));
    }
    add_pem(roots, &pem)
}

fn add_pem(roots: &mut RootCertStore, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    if pem.trim_ascii().is_empty() {
        return Err("is empty".into());
    }
    // A certificate in DER is one sequence of more than 255 bytes.
    if pem.starts_with(&[0x30, 0x82]) {
        return Err("is DER, not PEM".into());
    }
    let mut all = Vec::new();
    for (n, certificate) in CertificateDer::pem_slice_iter(pem).enumerate() {
        let certificate = certificate.map_err(|e| format!("certificate {}: {}", n + 1, malformed(&e)))?;
        roots.add(certificate.clone()).map_err(|e| format!("certificate {}: {e}", n + 1))?;
        all.push(certificate);
    }
    if all.is_empty() { Err("contains no PEM certificate".into()) } else { Ok(all) }
}

/// The error text of the PEM reader quotes bytes of the file, which may be a private key.
fn malformed(error: &pem::Error) -> &'static str {
    match error {
        pem::Error::MissingSectionEnd { .. } => "the END line of a block is missing",
        pem::Error::IllegalSectionStart { .. } => "the BEGIN line of a block is damaged",
        pem::Error::Base64Decode(_) => "the Base64 text of a block is damaged",
        _ => "it is not PEM",
    }
}

/// For `fuzz/`: the content of a `ca_file`.
#[cfg(fuzzing)]
pub fn read_certificates(pem: &[u8]) -> Result<usize, String> {
    let mut roots = RootCertStore::empty();
    add_pem(&mut roots, pem).map(|_| roots.len())
}

/// Verifies a server's certificate by the functions that rustls's own verifier uses. That one would link the parser of
/// revocation lists too, which nobody can configure.
#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    /// Without it every certificate is accepted, but no wrong signature: `insecure_skip_tls_verify`.
    trusted: Option<Trusted>,
}

#[derive(Debug)]
struct Trusted {
    roots: RootCertStore,
    /// The certificates in `ca_file`. One that is itself the server's needs no other CA: private installations sign their
    /// own, as CA and server in one, and no chain of CAs leads to those.
    named: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(Trusted { roots, named }) = &self.trusted else { return Ok(ServerCertVerified::assertion()) };
        let parsed = ParsedCertificate::try_from(certificate)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        match verify_server_cert_signed_by_trust_anchor(&parsed, roots, others, now, algorithms) {
            // This error comes after the check of the dates.
            Err(rustls::Error::InvalidCertificate(CertificateError::Other(why)))
                if why.0.downcast_ref() == Some(&webpki::Error::CaUsedAsEndEntity) && named.contains(certificate) => {}
            other => other?,
        }
        verify_server_name(&parsed, name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Opens a TCP connection, with the buffers of another configuration if TLS follows.
pub(super) struct Tcp {
    connector: TcpConnector,
    below_tls: Config,
}

impl fmt::Debug for Tcp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tcp")
    }
}

impl Tcp {
    pub(super) fn new(below_tls: Config) -> Self {
        Self { connector: TcpConnector::default(), below_tls }
    }
}

impl<In: Transport> Connector<In> for Tcp {
    type Out = <TcpConnector as Connector<In>>::Out;

    fn connect(&self, details: &ConnectionDetails, chained: Option<In>) -> Result<Option<Self::Out>, Error> {
        let config = if details.needs_tls() { &self.below_tls } else { details.config };
        let details = ConnectionDetails {
            uri: details.uri,
            addrs: details.addrs.clone(),
            config,
            request_level: details.request_level,
            resolver: details.resolver,
            now: details.now,
            timeout: details.timeout,
            current_time: details.current_time.clone(),
            run_connector: details.run_connector.clone(),
            register_shutdown: details.register_shutdown.clone(),
        };
        self.connector.connect(&details, chained)
    }
}

/// Adds TLS to a connection for `https`, also inside a proxy's tunnel.
#[derive(Debug)]
pub(super) struct TlsConnector(pub(super) Arc<ClientConfig>);

impl<In: Transport> Connector<In> for TlsConnector {
    type Out = Either<In, Tls>;

    fn connect(&self, details: &ConnectionDetails, chained: Option<In>) -> Result<Option<Self::Out>, Error> {
        let Some(below) = chained else { return Ok(None) };
        if !details.needs_tls() {
            return Ok(Some(Either::A(below)));
        }
        let host = details.uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let name = ServerName::try_from(host).map_err(|_| Error::Tls("the host name is not valid"))?.to_owned();
        let mut session = ClientConnection::new(self.0.clone(), name).map_err(io::Error::other)?;
        let mut below = TransportAdapter::new(below.boxed(), details.current_time.clone());
        below.set_timeout(details.timeout);
        session.complete_io(&mut below).map_err(|e| io::Error::new(e.kind(), format!("TLS handshake: {e}")))?;
        let config = details.config;
        let buffers = LazyBuffers::new(config.input_buffer_size(), config.output_buffer_size());
        Ok(Some(Either::B(Tls { buffers, stream: StreamOwned::new(session, below) })))
    }
}

/// An error of a failed connection: nothing was sent on it.
#[derive(Debug)]
pub(super) struct NotConnected(Error);

impl NotConnected {
    fn mark(error: Error) -> Error {
        Error::Other(Box::new(NotConnected(error)))
    }
}

impl fmt::Display for NotConnected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for NotConnected {}

/// Marks each error of a connector: later errors, such as a reset, look the same, but the request may have been sent
/// then.
#[derive(Debug)]
pub(super) struct Marking<C>(pub(super) C);

impl<C: Connector> Connector for Marking<C> {
    type Out = C::Out;

    fn connect(&self, details: &ConnectionDetails, chained: Option<()>) -> Result<Option<Self::Out>, Error> {
        self.0.connect(details, chained).map_err(NotConnected::mark)
    }
}

/// A connection with TLS.
pub(super) struct Tls {
    buffers: LazyBuffers,
    stream: StreamOwned<ClientConnection, TransportAdapter>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

impl Transport for Tls {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.stream.sock.set_timeout(timeout);
        let output = self.buffers.output().get(..amount).unwrap_or_default();
        self.stream.write_all(output)?;
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.stream.sock.set_timeout(timeout);
        let amount = self.stream.read(self.buffers.input_append_buf())?;
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    fn is_open(&mut self) -> bool {
        self.stream.sock.get_mut().is_open()
    }

    fn is_tls(&self) -> bool {
        true
    }
}

/// Looks up a host name on the calling thread. ureq's own resolver starts a thread for each request. The system limits
/// the duration; a lookup that takes longer than the request's timeout fails the request.
#[derive(Default)]
pub(super) struct Lookup(Mutex<Option<Found>>);

/// The last result for a host name.
struct Found {
    place: String,
    at: Instant,
    addresses: Vec<SocketAddr>,
}

impl fmt::Debug for Lookup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lookup")
    }
}

impl Resolver for Lookup {
    fn resolve(&self, uri: &Uri, _: &ureq::config::Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        self.look_up(uri, timeout).map_err(NotConnected::mark)
    }
}

impl Lookup {
    fn look_up(&self, uri: &Uri, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let place = uri.scheme().zip(uri.authority());
        let place = place.and_then(|(scheme, authority)| DefaultResolver::host_and_port(scheme, authority));
        let place = place.ok_or(Error::HostNotFound)?;
        let began = Instant::now();
        let known = {
            let found = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let fresh = found.as_ref().filter(|found| found.place == place && found.at.elapsed() < ADDRESS_LIFE);
            fresh.map(|found| found.addresses.clone())
        };
        let addresses = match known {
            Some(addresses) => addresses,
            None => {
                let addresses: Vec<SocketAddr> = place.to_socket_addrs()?.collect();
                if !timeout.after.is_not_happening() && began.elapsed() >= *timeout.after {
                    return Err(Error::Timeout(Timeout::Resolve));
                }
                let found = Found { place, at: Instant::now(), addresses: addresses.clone() };
                *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
                addresses
            }
        };
        let mut result = self.empty();
        for address in addresses.into_iter().take(MAX_ADDRESSES) {
            result.push(address);
        }
        if result.is_empty() { Err(Error::HostNotFound) } else { Ok(result) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ca_file_must_hold_certificates() {
        let place = std::env::temp_dir().join(format!("vcd-ca-{}", std::process::id()));
        std::fs::create_dir_all(&place).unwrap();
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        let large = " ".repeat(MAX_CA_FILE as usize + 1);
        for (name, text, wrong) in [
            ("empty.pem", " \n", "is empty"),
            ("key.pem", key, "contains no PEM certificate"),
            ("broken.pem", broken, "certificate 1: "),
            ("cut.pem", "-----BEGIN EC PRIVATE KEY-----\nQUJD\n", "certificate 1: the END line of a block is missing"),
            ("start.pem", "-----BEGIN PRIVATE", "certificate 1: the BEGIN line of a block is damaged"),
            ("base64.pem", &broken.replace("AAAA", "A*AA"), "certificate 1: the Base64 text of a block is damaged"),
            ("large.pem", large.as_str(), "more than the 1048576 bytes"),
        ] {
            let path = place.join(name);
            std::fs::write(&path, text).unwrap();
            let error = config(Some(&path), false).unwrap_err();
            assert!(error.starts_with("ca_file /") && error.contains(name) && error.contains(wrong), "{error}");
        }
        assert!(config(Some(&place.join("none.pem")), false).unwrap_err().contains("No such file"));
        assert!(config(Some(&place), false).unwrap_err().contains("is a folder"));
        std::fs::write(place.join("ca.der"), [0x30, 0x82, 1, 2]).unwrap();
        assert!(config(Some(&place.join("ca.der")), false).unwrap_err().contains("is DER, not PEM"));
        std::fs::remove_dir_all(place).unwrap();
    }

    #[test]
    fn what_the_system_trusts_may_be_missing_broken_or_a_folder() {
        let mut roots = RootCertStore::empty();
        let place = std::env::temp_dir();
        for path in [place.clone(), place.join("no-such-bundle.pem"), "/dev/null".into()] {
            add_systems(&mut roots, Some(path));
        }
        assert!(roots.is_empty());
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let text = format!("{broken}# a comment\n{broken}-----BEGIN CERTIFICATE-----\nAA");
        assert_eq!(add_new(&mut roots, &mut text.as_bytes()).unwrap(), 3);
    }

    #[test]
    fn few_addresses_are_tried_and_they_are_looked_up_again_after_a_while() {
        let found = |age: Duration| {
            let addresses = (1..=20).map(|n| SocketAddr::from(([127, 0, 0, n], 443))).collect();
            let at = Instant::now().checked_sub(age).unwrap();
            let lookup = Lookup(Mutex::new(Some(Found { place: "127.0.0.1:443".into(), at, addresses })));
            let after = ureq::unversioned::transport::time::Duration::NotHappening;
            let timeout = NextTimeout { after, reason: Timeout::Resolve, per_read: None, per_write: None };
            let uri = Uri::from_static("https://127.0.0.1/api");
            lookup.resolve(&uri, &ureq::config::Config::default(), timeout).unwrap().len()
        };
        assert_eq!(found(Duration::ZERO), MAX_ADDRESSES, "of twenty");
        assert_eq!(found(ADDRESS_LIFE), 1, "the address itself");
    }
}
