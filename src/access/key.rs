//! Private keys from the host, in every format that Go's `ssh.ParsePrivateKey` accepts, and their public keys; and keys
//! that are generated from a seed. Reads OpenSSH's format, PKCS#1, PKCS#8 and SEC1, all without encryption.

use crate::cloud::Secret;
use pem_rfc7468::LineEnding;
use pkcs1::RsaPrivateKey;
use pkcs8::{ObjectIdentifier, PrivateKeyInfo};
use ring::signature::{Ed25519KeyPair, KeyPair};
use sec1::EcPrivateKey;
use sec1::der;
use sec1::der::asn1::OctetStringRef;
use ssh_encoding::Decode;
use ssh_key::private::{Ed25519Keypair, RsaKeypair};
use ssh_key::public::{EcdsaPublicKey, Ed25519PublicKey, KeyData, RsaPublicKey};
use ssh_key::{EcdsaCurve, Mpint, PublicKey};

/// Maximum size of a private key, in bytes: an RSA key of 16,384 bits is smaller.
pub const MAX_KEY: usize = 16 * 1024;
/// PEM is read only with lines of one length. This is the standard one.
const PEM_LINE: usize = 64;

/// Minimum size of an RSA key's modulus, in bytes: OpenSSH (RequiredRSASize) and Go's crypto/rsa reject smaller ones.
const MIN_RSA: usize = 1024 / 8;

/// The first bytes of OpenSSH's format.
const OPENSSH_MAGIC: &[u8] = b"openssh-key-v1\0";
/// rsaEncryption, id-ecPublicKey, id-Ed25519.
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
/// The curves of SSH.
const CURVES: [(ObjectIdentifier, EcdsaCurve); 3] = [
    (ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7"), EcdsaCurve::NistP256),
    (ObjectIdentifier::new_unwrap("1.3.132.0.34"), EcdsaCurve::NistP384),
    (ObjectIdentifier::new_unwrap("1.3.132.0.35"), EcdsaCurve::NistP521),
];

/// A private key and its public key.
#[derive(Clone, Debug)]
pub struct Key {
    /// PEM: the block of the private key from the host, without the text around it.
    pub private: Secret,
    /// `ssh-ed25519 AAAA…`, without a comment.
    pub public: String,
}

impl Key {
    /// Reads a private key that is not encrypted. The error quotes nothing of it.
    pub fn parse(pem: &[u8]) -> Result<Key, String> {
        if pem.len() > MAX_KEY {
            return Err(format!("the key has {} bytes, more than the {MAX_KEY} allowed", pem.len()));
        }
        let text = std::str::from_utf8(pem).map_err(|_| "the key is not text (expected PEM)")?;
        let (label, block) = block(text)?;
        let unreadable = |why: &str| format!("the key ({label}) cannot be read: {why}");
        let pem = rewrap(label, block);
        let (_, der) = pem_rfc7468::decode_vec(pem.as_bytes()).map_err(|_| unreadable("its Base64 text is damaged"))?;
        let public = match label {
            "OPENSSH PRIVATE KEY" => openssh(&der),
            "RSA PRIVATE KEY" => rsa(&der),
            "EC PRIVATE KEY" => ec(&der, None),
            _ => pkcs8(&der),
        };
        Ok(Key { private: Secret::new(format!("{block}\n")), public: public.and_then(line).map_err(unreadable)? })
    }

    /// The Ed25519 key for these bytes, in OpenSSH's format: of the formats that Go reads, the one that OpenSSH's own
    /// client reads, too. It never fails: any 32 bytes are a key.
    pub fn from_seed(seed: &[u8; 32]) -> Option<Key> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).ok()?;
        let (name, point) = (b"ssh-ed25519".as_slice(), pair.public_key().as_ref());
        let public = fields(&[name, point]);
        // It begins with two equal numbers, which show that it was decrypted correctly.
        let mut private = [0; 8].to_vec();
        private.extend(fields(&[name, point, &[seed, point].concat(), b""]));
        // Padded to blocks of 8 bytes, as without a cipher.
        let padding = private.len().next_multiple_of(8) - private.len();
        private.extend((1_u8..).take(padding));
        let count = 1_u32.to_be_bytes();
        let all = [OPENSSH_MAGIC, &fields(&[b"none", b"none", b""]), &count, &fields(&[&public, &private])].concat();
        let pem = pem_rfc7468::encode_string("OPENSSH PRIVATE KEY", LineEnding::LF, &all).ok()?;
        Some(Key { private: Secret::new(pem), public: ed25519(seed).and_then(line).ok()? })
    }
}

/// Each field after its length, as in SSH.
fn fields(fields: &[&[u8]]) -> Vec<u8> {
    let length = |field: &[u8]| u32::try_from(field.len()).unwrap_or_default().to_be_bytes();
    fields.iter().flat_map(|field| [length(field).as_slice(), field].concat()).collect()
}

/// The label and the block of the first private key, from BEGIN to END.
fn block(text: &str) -> Result<(&str, &str), String> {
    const BEGIN: &str = "-----BEGIN ";
    for (at, _) in text.match_indices(BEGIN) {
        let block = text.get(at..).unwrap_or_default();
        let label = block.get(BEGIN.len()..).and_then(|rest| rest.split_once("-----")).map_or("", |(label, _)| label);
        let known = ["OPENSSH PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY", "PRIVATE KEY"].contains(&label);
        if !known {
            continue;
        }
        let end = format!("-----END {label}-----");
        let end = block.find(&end).map(|at| at + end.len()).ok_or("the key is cut: its END line is missing")?;
        let block = block.get(..end).unwrap_or(block);
        if block.contains("Proc-Type: 4,ENCRYPTED") {
            return Err(ENCRYPTED.into());
        }
        return Ok((label, block));
    }
    Err(no_key(text).into())
}

/// Why an encrypted key cannot be used.
const ENCRYPTED: &str = "the key is encrypted with a passphrase, and nobody can enter it: remove the passphrase \
                         with ssh-keygen -p";

/// The PEM again, with lines of the length that can be read. Other tools write other lengths.
fn rewrap(label: &str, block: &str) -> String {
    let body = block.split("-----").nth(2).unwrap_or_default();
    let mut pem = format!("-----BEGIN {label}-----");
    for (at, c) in body.chars().filter(|c| !c.is_whitespace()).enumerate() {
        if at % PEM_LINE == 0 {
            pem.push('\n');
        }
        pem.push(c);
    }
    pem + &format!("\n-----END {label}-----\n")
}

/// Further details of the readers help nobody.
const DAMAGED: &str = "its content is damaged";
const OF_NO_USE: &str = "only Ed25519, RSA and ECDSA keys are supported";

/// OpenSSH's format: the public key, then the private part, which contains the public key again.
fn openssh(der: &[u8]) -> Result<KeyData, &'static str> {
    let rest = &mut der.strip_prefix(OPENSSH_MAGIC).ok_or("it does not begin like OpenSSH's format")?;
    let mut parts = || -> Result<_, ssh_key::Error> {
        let cipher = String::decode(rest)?;
        let (_kdf, _options, _keys) = (String::decode(rest)?, Vec::<u8>::decode(rest)?, u32::decode(rest)?);
        Ok((cipher, Vec::<u8>::decode(rest)?, Vec::<u8>::decode(rest)?))
    };
    let (cipher, public, private) = parts().map_err(|_| DAMAGED)?;
    if cipher != "none" {
        return Err(ENCRYPTED);
    }
    match halves(&public, &private).map_err(|_| DAMAGED)? {
        Some(public) => Ok(public),
        None => Err("its public and private parts do not match, or it is not an Ed25519, RSA or ECDSA key"),
    }
}

/// Reads both parts; `None` if they do not match, or are of an unsupported type.
fn halves(mut public: &[u8], mut private: &[u8]) -> Result<Option<KeyData>, ssh_key::Error> {
    let (public, private) = (&mut public, &mut private);
    let same = u32::decode(private)? == u32::decode(private)?;
    let algorithm = String::decode(public)?;
    let same = same && String::decode(private)? == algorithm;
    let (same, public) = match algorithm.as_str() {
        "ssh-ed25519" => {
            let public = Ed25519PublicKey::decode(public)?;
            let pair = Ed25519Keypair::decode(private)?;
            let derived = ed25519(&pair.private.to_bytes()).ok();
            let public = KeyData::Ed25519(public);
            (KeyData::Ed25519(pair.public) == public && derived.as_ref() == Some(&public) && same, public)
        }
        "ssh-rsa" => {
            let public = RsaPublicKey::decode(public)?;
            (RsaKeypair::decode(private)?.public == public && same, KeyData::Rsa(public))
        }
        "ecdsa-sha2-nistp256" | "ecdsa-sha2-nistp384" | "ecdsa-sha2-nistp521" => {
            let public = EcdsaPublicKey::decode(public)?;
            // ssh-key cannot read a private number that happens to be short.
            let (_curve, point, number) =
                (String::decode(private)?, Vec::<u8>::decode(private)?, Mpint::decode(private)?);
            let size = public.as_sec1_bytes().len() / 2;
            let fits = number.as_positive_bytes().is_some_and(|number| !number.is_empty() && number.len() <= size);
            (point == public.as_sec1_bytes() && fits && same, KeyData::Ecdsa(public))
        }
        _ => return Ok(None),
    };
    Ok(same.then_some(public))
}

/// PKCS#8: a wrapper around the other formats.
fn pkcs8(der: &[u8]) -> Result<KeyData, &'static str> {
    let info = PrivateKeyInfo::try_from(der).map_err(|_| DAMAGED)?;
    match info.algorithm.oid {
        RSA => rsa(info.private_key),
        EC => ec(info.private_key, info.algorithm.parameters_oid().ok()),
        ED25519 => {
            let seed = <OctetStringRef as der::Decode>::from_der(info.private_key).map_err(|_| DAMAGED)?;
            ed25519(seed.as_bytes().try_into().map_err(|_| "it is not an Ed25519 key of 32 bytes")?)
        }
        _ => Err(OF_NO_USE),
    }
}

/// PKCS#1.
fn rsa(der: &[u8]) -> Result<KeyData, &'static str> {
    let key = RsaPrivateKey::try_from(der).map_err(|_| "its content is damaged, or it has more than two primes")?;
    let number = |bytes: &[u8]| Mpint::from_positive_bytes(bytes).map_err(|_| DAMAGED);
    Ok(KeyData::Rsa(RsaPublicKey { e: number(key.public_exponent.as_bytes())?, n: number(key.modulus.as_bytes())? }))
}

/// SEC1, with the curve named outside or inside.
fn ec(der: &[u8], curve: Option<ObjectIdentifier>) -> Result<KeyData, &'static str> {
    let key = EcPrivateKey::try_from(der).map_err(|_| DAMAGED)?;
    let curve = curve.or(key.parameters.and_then(|parameters| parameters.named_curve()));
    let curve = CURVES.iter().find(|(oid, _)| Some(*oid) == curve).map(|(_, curve)| *curve);
    let curve = curve.ok_or("its curve is not P-256, P-384 or P-521")?;
    let point = key.public_key.ok_or("it lacks its public key: convert it with openssl ec")?;
    let public = EcdsaPublicKey::from_sec1_bytes(point).map_err(|_| DAMAGED)?;
    if public.curve() != curve || point.first() != Some(&4) {
        return Err(
            "its public key is not on its curve, or compressed: convert it with openssl ec -conv_form uncompressed",
        );
    }
    Ok(KeyData::Ecdsa(public))
}

fn ed25519(seed: &[u8; 32]) -> Result<KeyData, &'static str> {
    let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| DAMAGED)?;
    let public = pair.public_key().as_ref().try_into().map_err(|_| "it has no public key")?;
    Ok(KeyData::Ed25519(Ed25519PublicKey(public)))
}

/// As a line for authorized_keys.
fn line(public: KeyData) -> Result<String, &'static str> {
    let modulus = public.rsa().and_then(|key| key.n.as_positive_bytes());
    if modulus.is_some_and(|modulus| modulus.len() < MIN_RSA) {
        return Err("SSH servers and GitLab Runner reject RSA keys of fewer than 1024 bits");
    }
    let line = PublicKey::new(public, "").to_openssh();
    Ok(line.map_err(|_| DAMAGED)?.trim_end().into())
}

/// What a text without a private key is instead.
fn no_key(text: &str) -> &'static str {
    let has = |label: &str| text.contains(label);
    if has("-----BEGIN ENCRYPTED PRIVATE KEY-----") {
        ENCRYPTED
    } else if has("-----BEGIN DSA PRIVATE KEY-----") {
        "current SSH servers reject DSA keys: use an Ed25519 key"
    } else if has("PuTTY-User-Key-File") {
        "the key is in PuTTY's format: export it as OpenSSH key with puttygen"
    } else if has("PUBLIC KEY") || text.starts_with("ssh-") || text.starts_with("ecdsa-") {
        "this is a public key: use the private key"
    } else if has("-----BEGIN ") {
        "this PEM file contains no private key that SSH can use"
    } else {
        "this is not a private key (expected PEM)"
    }
}
