//! A CA and its server certificates, created at each start: a valid one for localhost, and invalid ones.

use futures_rustls::TlsAcceptor;
use futures_rustls::rustls::ServerConfig;
use futures_rustls::rustls::crypto::ring::default_provider;
use futures_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, date_time_ymd};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// The certificate for new connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Certificate {
    /// Signed by the CA, for localhost, valid for a long time.
    #[default]
    Good,
    /// It has expired.
    Expired,
    /// It is not valid yet.
    NotYetValid,
    /// It is for another host name.
    OtherHost,
    /// Another CA has signed it.
    OtherCa,
    /// Self-signed, as installations create it: a CA and a server certificate in one.
    SelfSigned,
    /// Self-signed and expired.
    SelfSignedExpired,
    /// Self-signed, for another host name.
    SelfSignedOtherHost,
}

/// A CA.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// The CA's certificate.
    pub(crate) pem: String,
}

impl Authority {
    /// A new CA of this name.
    pub(crate) fn new(name: &str) -> io::Result<Self> {
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.distinguished_name.push(DnType::CommonName, name);
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = ca.self_signed(&key).map_err(io::Error::other)?.pem();
        Ok(Self { issuer: Issuer::new(ca, key), pem })
    }

    /// An acceptor with a certificate of this CA, of another CA or self-signed, and the certificate.
    pub(crate) fn acceptor(&self, which: Certificate) -> io::Result<(TlsAcceptor, String)> {
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let names = match which {
            Certificate::OtherHost | Certificate::SelfSignedOtherHost => vec!["vcd.example.com".to_string()],
            _ => vec!["localhost".to_string(), "127.0.0.1".to_string()],
        };
        let mut server = CertificateParams::new(names).map_err(io::Error::other)?;
        server.distinguished_name.push(DnType::CommonName, "vcd-sim");
        match which {
            Certificate::Expired | Certificate::SelfSignedExpired => server.not_after = date_time_ymd(2020, 1, 1),
            Certificate::NotYetValid => server.not_before = date_time_ymd(4000, 1, 1),
            _ => {}
        }
        let other;
        let issuer = match which {
            Certificate::OtherCa => {
                other = Self::new("another CA")?;
                &other.issuer
            }
            _ => &self.issuer,
        };
        let alone = [Certificate::SelfSigned, Certificate::SelfSignedExpired, Certificate::SelfSignedOtherHost];
        let certificate = if alone.contains(&which) {
            server.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            server.self_signed(&key)
        } else {
            server.signed_by(&key, issuer)
        };
        let certificate = certificate.map_err(io::Error::other)?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .map_err(io::Error::other)?;
        Ok((TlsAcceptor::from(Arc::new(config)), certificate.pem()))
    }
}

/// The current acceptor. It can be replaced while the server runs.
#[derive(Clone)]
pub struct Acceptor(Arc<Mutex<TlsAcceptor>>);

impl Acceptor {
    pub(crate) fn new(acceptor: TlsAcceptor) -> Self {
        Self(Arc::new(Mutex::new(acceptor)))
    }

    pub(crate) fn set(&self, acceptor: TlsAcceptor) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = acceptor;
    }

    pub(crate) fn get(&self) -> TlsAcceptor {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
