//! Advice about errors from VCD, the network or a file: by cause if the text shows it, otherwise by the kind of error. A name
//! of a file in `docs/` is printed with the address of this version's documents before it.

use crate::cloud::{ErrorKind, VcdError};
use crate::vcd::inspect::is_about_names;

/// Parts of an error's text, which must all be there, and what to do. The first match counts.
pub const CAUSES: &[(&[&str], &str)] = &[
    (&["cannot save the next one; "], "use only token_file, with a file that the plugin may replace"),
    (&["the plugin did not log in"], "give GitLab Runner's user write access to the file and its folder"),
    (
        &["the next one could not be written"],
        "first save that token as the message says; then give GitLab Runner's user write access to the file and its folder",
    ),
    (&["ca_file ~", "No such file"], "~ is not expanded: write the full path"),
    (&["token_file ~", "No such file"], "~ is not expanded: write the full path"),
    (&["ca_file ", "No such file"], "the file must exist on the machine of GitLab Runner; write its full path"),
    (&["ca_file ", "ermission denied"], "give GitLab Runner's user read access"),
    (&["ca_file ", "is empty"], "put the certificate of the CA that signed VCD's certificate into it, as PEM"),
    (&["ca_file ", "is a folder"], "set one PEM file; it can contain several certificates"),
    (&["is DER, not PEM"], "convert it to PEM: openssl x509 -inform der -in FILE -out FILE.pem"),
    (
        &["contains no PEM certificate"],
        "it must contain a certificate (BEGIN CERTIFICATE), not a key or a certificate request",
    ),
    (
        &["is not a valid proxy URL"],
        "write it as http://HOST:PORT or unset it; NO_PROXY lists host names that need no proxy",
    ),
    (&["names a SOCKS proxy"], "use an HTTP proxy, or add VCD's host name to NO_PROXY"),
    (&["token_file ", "No such file"], "the file must exist on the machine of GitLab Runner; write its full path"),
    (&["token_file ", "ermission denied"], "give GitLab Runner's user read access"),
    (&["token_file ", "is empty"], "write the token into it, alone on one line"),
    (&["is UTF-16"], "save it as UTF-8: iconv -f utf-16 -t utf-8 FILE > NEW"),
    (&["contains quotes"], "remove the quotes: the file contains only the token, on one line"),
    (&["contains NAME="], "remove the text before the token: the file contains only the token, on one line"),
    (
        &["VCD rejected the API token"],
        "create a new API token in VCD (user preferences, API Tokens) and check org; a service account's token is valid for \
         one login: if another program has used it, create a new one",
    ),
    (&["UnknownIssuer"], "set ca_file to a file with the CA that signed VCD's certificate; the provider has it"),
    (&["CaUsedAsEndEntity"], "VCD's certificate is self-signed: put this certificate into ca_file"),
    (&["certificate not valid for name"], "use the host name of the certificate in url"),
    (&["certificate expired"], "VCD's certificate has expired, or this machine's clock is wrong: check both"),
    (&["certificate not valid yet"], "this machine's clock is wrong, or VCD's certificate is too new: check both"),
    (&["TLS handshake"], "check the port in url, and whether VCD and a proxy in front of it speak TLS"),
    (
        &["has no token endpoint"],
        "check that a proxy in front of VCD forwards /oauth, where VCD has the token endpoint; check org too",
    ),
    (
        &["rejects the session that it started"],
        "a proxy may remove the Authorization header; otherwise ask VCD's provider",
    ),
    (&["accepts https only"], "write https:// in url"),
    (&["a redirect to "], "if that is VCD's address, set url to it"),
    (
        &["the answer is a web page"],
        "check that url is the address of VCD's API, https://HOST/api: a portal, a proxy or a login page answered",
    ),
    (&["failed to lookup address"], "check the host name in url, and this machine's DNS"),
    (&["in place of the name"], "copy one of them, without the quotation marks, into the key"),
    (
        &["does not share it"],
        "use a network of this VDC, or have that one shared with it or added to a group of both VDCs",
    ),
    (&["onnection refused"], "nothing listens there: check host and port in url"),
    (&["API tokens need 36.1"], "this VCD is too old: ask the provider for an upgrade"),
];

/// What to do about an error, if its text shows the cause.
pub fn by_cause(words: &str) -> Option<&'static str> {
    let cause = CAUSES.iter().find(|(parts, _)| parts.iter().all(|part| words.contains(part)));
    cause.map(|(_, advice)| *advice)
}

/// What to do about a create that failed with this text.
pub fn of_create(words: &str, kind: Option<ErrorKind>) -> &'static str {
    match (by_cause(words), kind) {
        (Some(advice), _) => advice,
        (_, Some(ErrorKind::Quota)) => "ask for a larger quota, delete unused VMs, or lower max_instances",
        (_, Some(ErrorKind::Forbidden)) => "ask for more rights for the user's role; docs/guide.md#1-in-vcd lists all",
        (_, Some(ErrorKind::Invalid)) => {
            "VCD names the value that it rejects: change that key; docs/troubleshooting.md#creates explains VCD's messages"
        }
        _ => "docs/troubleshooting.md#creates explains VCD's messages",
    }
}

/// What to do about an error.
pub fn advice(error: &VcdError) -> &'static str {
    match (by_cause(&error.text), error.kind) {
        (Some(advice), _) => advice,
        (_, ErrorKind::Unavailable) => {
            "check url, DNS, firewall and $HTTPS_PROXY, and whether this machine can reach VCD"
        }
        (_, ErrorKind::Auth) => "create a new API token in VCD (user preferences, API Tokens) and check org",
        (_, ErrorKind::Forbidden) => "the user's role lacks rights: docs/guide.md#1-in-vcd lists them",
        (_, ErrorKind::Protocol) => "check that url is the address of VCD's API: a portal or a proxy may have answered",
        (_, ErrorKind::State) if error.what.contains("template") => {
            "wait until it is ready, or capture it again; VCD shows the state of templates in the catalog"
        }
        (_, ErrorKind::NotFound) if is_about_names(error) => "write names as VCD shows them, in the same case",
        _ => "docs/troubleshooting.md explains VCD's messages",
    }
}
