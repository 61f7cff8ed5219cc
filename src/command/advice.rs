//! What to do about what VCD, the network or a file has said: by cause, where the words tell it, else by what follows from it.
//! What names a file in `docs/` is printed with the place of this version's documents before it.

use crate::cloud::{ErrorKind, VcdError};
use crate::vcd::inspect::is_about_names;

/// Parts of an error's words, which must all be there, and what to do. The first that fits counts.
pub const CAUSES: &[(&[&str], &str)] = &[
    (&["cannot keep; "], "keep it in a file that the plugin may replace, and name that in token_file alone"),
    (&["nobody has logged in"], "let the user that the runner runs as write the file and its folder"),
    (
        &["the next one could not be written"],
        "first save that token as it says; then let the user that the runner runs as write the file and its folder",
    ),
    (&["ca_file ~", "No such file"], "~ is not expanded: write the whole path"),
    (&["token_file ~", "No such file"], "~ is not expanded: write the whole path"),
    (&["ca_file ", "No such file"], "the file must be there where the runner runs; name it by its whole path"),
    (&["ca_file ", "ermission denied"], "let the user that the runner runs as read it"),
    (&["ca_file ", "is empty"], "put the certificate of the CA that signed VCD's into it, as PEM"),
    (&["ca_file ", "is a folder"], "name one PEM file in it; several certificates can stand in one file"),
    (&["is DER, not PEM"], "make PEM of it: openssl x509 -inform der -in FILE -out FILE.pem"),
    (&["holds no PEM certificate"], "it must hold a certificate (BEGIN CERTIFICATE), not a key or a request for one"),
    (&["is no valid proxy URL"], "write it as http://HOST:PORT or unset it; NO_PROXY names hosts that need no proxy"),
    (&["names a SOCKS proxy"], "name an HTTP proxy, or name VCD's host in NO_PROXY"),
    (&["token_file ", "No such file"], "the file must be there where the runner runs; name it by its whole path"),
    (&["token_file ", "ermission denied"], "let the user that the runner runs as read it"),
    (&["token_file ", "is empty"], "write the token into it, alone on one line"),
    (&["is UTF-16"], "save it as UTF-8: iconv -f utf-16 -t utf-8 FILE > NEW"),
    (&["holds quotes"], "remove the quotes: the token stands alone on one line"),
    (&["holds NAME="], "remove what stands before the token: it stands alone on one line"),
    (
        &["the API token was refused"],
        "make a new API token in VCD (user preferences, API Tokens) and look at org; one of a service account is good for one \
         login: if another program has used it, make it anew",
    ),
    (&["UnknownIssuer"], "name the file with the CA that signed VCD's certificate in ca_file; the provider has it"),
    (&["CaUsedAsEndEntity"], "VCD's certificate has signed itself: put that very certificate into ca_file"),
    (&["certificate not valid for name"], "write the host in url as the certificate names it"),
    (&["certificate expired"], "VCD's certificate is too old, or this machine's clock is wrong: look at both"),
    (&["certificate not valid yet"], "this machine's clock is wrong, or VCD's certificate too new: look at both"),
    (&["TLS handshake"], "look at the port in url, and at what stands before VCD: does it speak TLS?"),
    (
        &["knows no token endpoint"],
        "VCD has it under /oauth: does a proxy before VCD pass that on? Look at org as well",
    ),
    (&["refuses the session that it gave"], "a proxy may take the Authorization header away; else ask VCD's provider"),
    (&["over https alone"], "write https:// in url"),
    (&["a redirect to "], "if the address that it names is VCD's, put it into url"),
    (
        &["a web page came"],
        "is url that of VCD's API, https://HOST/api? A portal, a proxy or a login page has answered",
    ),
    (&["failed to lookup address"], "look at the host in url, and at this machine's DNS"),
    (&["in place of the name"], "copy one of them, with what is in its quotation marks, into the key"),
    (
        &["does not share it"],
        "name a network of this VDC, or have that one shared with it or put into a group of both VDCs",
    ),
    (&["onnection refused"], "nobody listens there: look at host and port in url"),
    (&["is the oldest that knows API tokens"], "this VCD is too old: ask the provider for its upgrade"),
];

/// What to do about an error by its words, if they tell its cause.
pub fn by_cause(words: &str) -> Option<&'static str> {
    let cause = CAUSES.iter().find(|(parts, _)| parts.iter().all(|part| words.contains(part)));
    cause.map(|(_, advice)| *advice)
}

/// What to do about a create that failed so.
pub fn of_create(words: &str, kind: Option<ErrorKind>) -> &'static str {
    match (by_cause(words), kind) {
        (Some(advice), _) => advice,
        (_, Some(ErrorKind::Quota)) => "have the quota raised, delete VMs that nobody needs, or lower max_instances",
        (_, Some(ErrorKind::Forbidden)) => "have the user's role extended; docs/guide.md#1-in-vcd lists all rights",
        (_, Some(ErrorKind::Invalid)) => {
            "VCD names what it does not take: change that key; docs/troubleshooting.md#creates lists what VCD may say"
        }
        _ => "docs/troubleshooting.md#creates lists what VCD may say",
    }
}

/// What to do about an error.
pub fn advice(error: &VcdError) -> &'static str {
    match (by_cause(&error.text), error.kind) {
        (Some(advice), _) => advice,
        (_, ErrorKind::Unavailable) => {
            "look at url, DNS, firewall and $HTTPS_PROXY; can this machine reach VCD at all?"
        }
        (_, ErrorKind::Auth) => "make a new API token in VCD (user preferences, API Tokens) and look at org",
        (_, ErrorKind::Forbidden) => "the user's role lacks rights: docs/guide.md#1-in-vcd lists them",
        (_, ErrorKind::Protocol) => "is url that of VCD's API? A portal or proxy may have answered instead",
        (_, ErrorKind::State) if error.what.contains("template") => {
            "wait until it is complete, or capture it again; in VCD a catalog shows the state of its templates"
        }
        (_, ErrorKind::NotFound) if is_about_names(error) => {
            "names are as VCD's pages show them, upper and lower case included"
        }
        _ => "docs/troubleshooting.md lists what VCD may say",
    }
}
