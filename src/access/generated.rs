//! Generated credentials: derived from a secret that survives restarts and from the instance's name. So they are not
//! stored, and an adopted instance still has its own.

use super::Key;
use crate::cloud::Secret;
use ring::hkdf::{HKDF_SHA256, Salt};

/// Separates these keys from others that may be derived from the same secret.
const SALT: &[u8] = b"fleeting-plugin-vcd/1";
/// Bytes of a fingerprint.
const FINGERPRINT: usize = 4;
/// The kinds of characters of a password, in turn. Two letters are never adjacent, so a part of the user's name, which
/// Windows rejects in a password, cannot occur. Three of Windows' four kinds of characters always occur.
const KINDS: [&[u8]; 4] = [b"ABCDEFGHIJKLMNOPQRSTUVWXYZ", b"0123456789", b"abcdefghijklmnopqrstuvwxyz", b"0123456789"];

/// The secret from which the credentials of all instances are derived.
#[derive(Clone, Debug)]
pub struct Seed(Secret);

impl Seed {
    /// Derives from `secret`, which must be hard to guess.
    pub fn new(secret: Secret) -> Seed {
        Seed(secret)
    }

    /// HKDF-SHA256 (RFC 5869). It never returns `None`: HKDF returns 32 bytes for any input.
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

    /// The password of the instance `name`: 32 letters and digits, about 130 bits.
    pub fn password(&self, name: &str) -> Option<Secret> {
        let bytes = self.derive("password", name)?;
        let chars = bytes
            .iter()
            .zip(KINDS.iter().cycle())
            .filter_map(|(byte, kind)| kind.get(usize::from(*byte) % kind.len()).map(|c| char::from(*c)));
        Some(Secret::new(chars.collect::<String>()))
    }

    /// Identifies this secret and user, and reveals nothing else about them: 8 hexadecimal digits.
    pub fn fingerprint(&self, user: &str) -> Option<String> {
        let bytes = self.derive("fingerprint", user)?;
        Some(bytes.iter().take(FINGERPRINT).map(|byte| format!("{byte:02x}")).collect())
    }
}
