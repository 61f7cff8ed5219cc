//! Files with keys: a private key, certificates of a `ca_file`, an API token.
#![no_main]

use fleeting_plugin_vcd::access::Key;
use fleeting_plugin_vcd::vcd::read_certificates;
use fleeting_plugin_vcd_fuzz::init;
use libfuzzer_sys::fuzz_target;
use ssh_key::PublicKey;

/// Maximum length of an error, which says what is wrong and what to do, and contains no part of the file.
const MAX_ERROR: usize = 300;

fuzz_target!(init: init(), |data: &[u8]| {
    match Key::parse(data) {
        Ok(key) => {
            let public = PublicKey::from_openssh(&key.public).expect("SSH can read the public key");
            assert!(!key.public.contains(['\n', '\r', '\0', '\'', '"']), "one line: {:?}", key.public);
            assert!(public.comment().is_empty());
            assert!(["ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521"]
                .contains(&public.algorithm().as_str()));
            let again = Key::parse(key.private.reveal().as_bytes()).expect("the reported key can be read");
            assert_eq!(again.public, key.public);
            assert!(!format!("{key:?}").contains(key.private.reveal().trim()));
        }
        Err(error) => {
            assert!(!error.is_empty() && error.len() <= MAX_ERROR, "{error}");
            let error = error.as_bytes();
            let words = data.split(|byte| !byte.is_ascii_graphic()).filter(|word| word.len() >= 24);
            for word in words {
                assert!(!error.windows(word.len()).any(|window| window == word), "the error contains a part of the key");
            }
        }
    }
    match read_certificates(data) {
        Ok(count) => assert!(count > 0 && count <= data.len() / 50),
        Err(error) => assert!(!error.is_empty() && error.len() <= MAX_ERROR, "{error}"),
    }
});
