//! Credentials that are made for each instance: derived from a secret that survives restarts and from the instance's name,
//! so that they are stored nowhere and an adopted instance still has its own.

use super::Key;
use crate::cloud::Secret;
use ring::hkdf::{HKDF_SHA256, Salt};

/// Keeps what is derived here apart from all else that may be derived from the same secret.
const SALT: &[u8] = b"fleeting-plugin-vcd/1";
/// Bytes of a fingerprint.
const FINGERPRINT: usize = 4;
/// The kinds of characters of a password, in turn: two letters never meet, so that no part of a user's name, which Windows
/// refuses in a password, can come up; and three of its four kinds of characters are always there.
const KINDS: [&[u8]; 4] = [b"ABCDEFGHIJKLMNOPQRSTUVWXYZ", b"0123456789", b"abcdefghijklmnopqrstuvwxyz", b"0123456789"];

/// What the credentials of all instances are derived from.
#[derive(Clone, Debug)]
pub struct Seed(Secret);

impl Seed {
    /// Derives from `secret`, which must be hard to guess.
    pub fn new(secret: Secret) -> Seed {
        Seed(secret)
    }

    /// HKDF-SHA256 (RFC 5869). `None` never comes: HKDF gives 32 bytes of anything.
    fn derive(&self, purpose: &str, name: &str) -> Option<[u8; 32]> {
        let pseudo_random = Salt::new(HKDF_SHA256, SALT).extract(self.0.reveal().as_bytes());
        let info = [purpose.as_bytes(), b"\0", name.as_bytes()];
        let mut bytes = [0; 32];
        pseudo_random.expand(&info, HKDF_SHA256).ok()?.fill(&mut bytes).ok()?;
        Some(bytes)
    }

    /// The key of the instance `name`.
    pub fn key(&self, name: &str) -> Option<Key> {
        Key::from_seed(&self.derive("ed25519", name)?)
    }

    /// The password of the instance `name`: 32 letters and digits, of some 130 bits.
    pub fn password(&self, name: &str) -> Option<Secret> {
        let bytes = self.derive("password", name)?;
        let chars = bytes
            .iter()
            .zip(KINDS.iter().cycle())
            .filter_map(|(byte, kind)| kind.get(usize::from(*byte) % kind.len()).map(|c| char::from(*c)));
        Some(Secret::new(chars.collect::<String>()))
    }

    /// Tells this secret and user from others, and nothing else of them: 8 hexadecimal digits.
    pub fn fingerprint(&self, user: &str) -> Option<String> {
        let bytes = self.derive("fingerprint", user)?;
        Some(bytes.iter().take(FINGERPRINT).map(|byte| format!("{byte:02x}")).collect())
    }
}
