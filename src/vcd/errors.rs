//! What VCD's refusals mean: one table from (status, `minorErrorCode`, text) to [`ErrorKind`]. It does no I/O.

use super::http::{Lost, Received, take_out, tidy};
use super::xml;
use crate::cloud::{ErrorKind, MAX_ERROR_TEXT, VcdError};
use roxmltree::Node;

/// So much of an error's code is shown.
const MAX_CODE: usize = 120;

/// A longer request id is none.
const MAX_REQUEST_ID: usize = 64;

/// Words of the org's limit of simultaneous operations: refused before anything is done, whatever the status.
const OPERATION_LIMIT: &str = "maximum number of simultaneous operations";

/// What failed: it decides what an unclear answer means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// A request that only reads.
    Read,
    /// A request that changes something.
    Change,
    /// A task that VCD had begun.
    Task,
}

/// An error as VCD tells it, in XML or JSON.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    /// `majorErrorCode` of a task's error.
    major: Option<u16>,
    code: String,
    text: String,
}

impl Said {
    /// Reads an `Error` element. The stack trace in it is left where it is.
    pub(super) fn of_element(error: Node) -> Self {
        let tenant = xml::child(error, "TenantError").and_then(|t| xml::attribute(t, "message"));
        Self {
            major: xml::attribute(error, "majorErrorCode").and_then(|c| c.parse().ok()),
            code: xml::attribute(error, "minorErrorCode").unwrap_or_default().to_owned(),
            text: tidy(tenant.or(xml::attribute(error, "message")).unwrap_or_default()),
        }
    }

    /// Reads a body; `None` if it is not VCD's.
    pub(super) fn of_body(body: &str) -> Option<Self> {
        if body.trim_start().starts_with('{') {
            let json: serde_json::Value = serde_json::from_str(body).ok()?;
            let field = |names: [&str; 2]| names.iter().find_map(|n| json.get(n)?.as_str());
            let code = field(["minorErrorCode", "error"]);
            let text = field(["message", "error_description"]);
            code.or(text)?;
            return Some(Self {
                major: None,
                code: code.unwrap_or_default().into(),
                text: tidy(text.unwrap_or_default()),
            });
        }
        let document = xml::read(body).ok()?;
        let root = document.root_element();
        (xml::local(root) == "Error").then(|| Self::of_element(root))
    }
}

/// One row of the table: all that is given must fit.
struct Row {
    /// Empty: any.
    status: &'static [u16],
    /// Empty: any.
    code: &'static str,
    /// Parts of the text in lower case; all must be there.
    text: &'static [&'static str],
    kind: ErrorKind,
}

const fn status(status: &'static [u16], kind: ErrorKind) -> Row {
    Row { status, code: "", text: &[], kind }
}

const fn code(code: &'static str, kind: ErrorKind) -> Row {
    Row { status: &[], code, text: &[], kind }
}

const fn text(text: &'static [&'static str], kind: ErrorKind) -> Row {
    Row { status: &[], code: "", text, kind }
}

/// The first row that fits counts.
const TABLE: &[Row] = &[
    text(&[OPERATION_LIMIT], ErrorKind::Limit),
    status(&[429], ErrorKind::Limit),
    status(&[401], ErrorKind::Auth),
    code("BUSY_ENTITY", ErrorKind::Busy),
    text(&["is busy completing an operation"], ErrorKind::Busy),
    text(&["is currently busy"], ErrorKind::Busy),
    text(&["stop the vapp and try again"], ErrorKind::State),
    code("DUPLICATE_NAME", ErrorKind::Duplicate),
    text(&["already exists"], ErrorKind::Duplicate),
    code("RESOURCE_NOT_FOUND", ErrorKind::NotFound),
    text(&["com.vmware.vcloud.entity.", "does not exist"], ErrorKind::NotFound),
    text(&["no access to entity"], ErrorKind::NotFound),
    text(&["could not be found"], ErrorKind::NotFound),
    text(&["[enf]"], ErrorKind::NotFound),
    status(&[404], ErrorKind::NotFound),
    status(&[403], ErrorKind::Forbidden),
    text(&["quota"], ErrorKind::Quota),
    text(&["exceed", "limit"], ErrorKind::Quota),
    text(&["exceed", "the vdc"], ErrorKind::Quota),
    text(&["exceed", "available"], ErrorKind::Quota),
    text(&["no ", "ip address", "available"], ErrorKind::Quota),
    text(&["no free ip"], ErrorKind::Quota),
    text(&["insufficient", "resource"], ErrorKind::Quota),
    text(&["not enough"], ErrorKind::Quota),
    text(&["exhausted"], ErrorKind::Quota),
    text(&["computer name not valid"], ErrorKind::Invalid),
    status(&[409], ErrorKind::State),
    // The version that was agreed on is gone; the client agrees on another one.
    status(&[406], ErrorKind::Unavailable),
    status(&[400, 405, 413, 414, 415, 422], ErrorKind::Invalid),
];

impl Row {
    fn fits(&self, status: u16, code: &str, lower_text: &str) -> bool {
        (self.status.is_empty() || self.status.contains(&status))
            && (self.code.is_empty() || self.code == code)
            && self.text.iter().all(|part| lower_text.contains(part))
    }
}

fn look_up(status: u16, said: &Said) -> Option<ErrorKind> {
    let text = said.text.to_lowercase();
    TABLE.iter().find(|row| row.fits(status, &said.code, &text)).map(|row| row.kind)
}

fn judge(stage: Stage, status: u16, said: &Said) -> ErrorKind {
    let known = look_up(status, said);
    match (stage, status, known) {
        (Stage::Task, _, None | Some(ErrorKind::Unavailable)) => ErrorKind::Failed,
        // A cell that restarts or a proxy may speak for a cell that has begun.
        (Stage::Change, 502..=504, known) if known != Some(ErrorKind::Limit) => ErrorKind::Ambiguous,
        (_, _, Some(kind)) => kind,
        (Stage::Change, ..) => ErrorKind::Ambiguous,
        (_, 500.., None) => ErrorKind::Unavailable,
        (..) => ErrorKind::Protocol,
    }
}

/// An answer that is not VCD's own: empty, cut, a proxy's page, a redirect.
fn judge_foreign(stage: Stage, status: u16, body: &str) -> ErrorKind {
    match status {
        401 => ErrorKind::Auth,
        429 => ErrorKind::Limit,
        _ if body.to_lowercase().contains(OPERATION_LIMIT) => ErrorKind::Limit,
        _ if stage == Stage::Change => ErrorKind::Ambiguous,
        500.. => ErrorKind::Unavailable,
        _ => ErrorKind::Protocol,
    }
}

/// The error of an answer whose status is not a good one. Its text is neither free of secrets nor cut yet, but holds the
/// request's id, which VCD's own messages begin with.
pub(super) fn refused(what: &str, stage: Stage, got: &Received) -> VcdError {
    let mut error = judged(what, stage, got);
    if let Some(id) = got.request_id.as_deref().filter(|id| id.len() <= MAX_REQUEST_ID && !error.text.contains(*id)) {
        error.text = format!("[ {id} ] {}", error.text);
    }
    error
}

/// True if VCD refuses a request for what it carries: its words name the hardware section, or what its schema does not
/// know.
pub(super) fn is_about_content(error: &VcdError) -> bool {
    let text = error.text.to_lowercase();
    let parts = ["cvc-", "jaxb", "hardwaresection", "hardware section", "instantiationparams"];
    error.kind == ErrorKind::Invalid && error.status == 400 && parts.iter().any(|part| text.contains(part))
}

fn judged(what: &str, stage: Stage, got: &Received) -> VcdError {
    let what = what.to_owned();
    let (status, retry_after) = (got.status, got.retry_after);
    if let Some(said) = Said::of_body(&got.body) {
        return VcdError {
            kind: judge(stage, status, &said),
            what,
            status,
            code: said.code,
            text: said.text,
            retry_after,
        };
    }
    let text = match (&got.location, tidy(&got.body)) {
        (Some(place), _) if (300..400).contains(&status) => format!("a redirect to {place}, which is not followed"),
        (_, body) if body.is_empty() => "an answer without a reason".into(),
        (_, body) => format!("not VCD's own words: {body}"),
    };
    VcdError { kind: judge_foreign(stage, status, &got.body), what, status, code: String::new(), text, retry_after }
}

/// The error of a good status with a document that cannot be used.
pub(super) fn unusable(what: &str, stage: Stage, status: u16, why: impl Into<String>) -> VcdError {
    let kind = if stage == Stage::Change { ErrorKind::Ambiguous } else { ErrorKind::Protocol };
    VcdError { kind, what: what.to_owned(), status, code: String::new(), text: why.into(), retry_after: None }
}

/// The error of a request that brought no answer.
pub(super) fn lost(what: &str, stage: Stage, lost: Lost) -> VcdError {
    let kind = if stage == Stage::Change && lost.sent { ErrorKind::Ambiguous } else { ErrorKind::Unavailable };
    VcdError { kind, what: what.to_owned(), status: 0, code: String::new(), text: lost.text, retry_after: None }
}

/// The error of a task that ended badly.
pub(super) fn failed_task(what: String, said: Said) -> VcdError {
    let status = said.major.unwrap_or_default();
    let kind = judge(Stage::Task, status, &said);
    VcdError { kind, what, status, code: said.code, text: said.text, retry_after: None }
}

/// An error that the client itself found; nothing was sent.
pub(super) fn own(kind: ErrorKind, what: impl Into<String>, text: impl Into<String>) -> VcdError {
    VcdError { kind, what: what.into(), status: 0, code: String::new(), text: text.into(), retry_after: None }
}

/// Takes the secrets out of an error's text, then cuts it: the last step before an error leaves the client.
pub(super) fn finish(mut error: VcdError, secrets: &[&str]) -> VcdError {
    for secret in secrets {
        take_out(secret, &mut [&mut error.text, &mut error.code, &mut error.what]);
    }
    error.text = cut(&error.text, MAX_ERROR_TEXT).to_owned();
    error.code = cut(&error.code, MAX_CODE).to_owned();
    // Of a task, it is in VCD's words as well.
    error.what = cut(&error.what, MAX_ERROR_TEXT).to_owned();
    error
}

/// At most `most` bytes, cut between characters.
fn cut(text: &str, most: usize) -> &str {
    let mut end = most.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ErrorKind::*;

    fn answer(status: u16, body: &str) -> Received {
        Received { status, now: None, retry_after: None, location: None, request_id: None, body: body.into() }
    }

    fn error_xml(status: u16, code: &str, message: &str) -> String {
        let message = message.replace('"', "&quot;");
        format!(
            "<Error xmlns=\"http://www.vmware.com/vcloud/v1.5\" majorErrorCode=\"{status}\" minorErrorCode=\"{code}\" \
             stackTrace=\"com.vmware.Trace\" message=\"[ 1-2-3 ] {message}\"/>"
        )
    }

    /// Status, code, message, then the kind for a read, a change, and a task that fails so.
    const CATALOGUE: &[(u16, &str, &str, ErrorKind, ErrorKind, ErrorKind)] = &[
        (
            400,
            "BUSY_ENTITY",
            "The entity Ref: com.vmware.vcloud.entity.vapp:1 is busy completing an operation VDC_COMPOSE_VAPP.",
            Busy,
            Busy,
            Busy,
        ),
        (400, "BAD_REQUEST", "The entity is busy completing an operation X", Busy, Busy, Busy),
        (400, "BAD_REQUEST", "could not be executed on vApp \"a\". Stop the vApp and try again.", State, State, State),
        (409, "CONFLICT", "could not be executed on vApp \"a\". Stop the vApp and try again.", State, State, State),
        (400, "DUPLICATE_NAME", "The VCD entity ci-1 already exists.", Duplicate, Duplicate, Duplicate),
        (400, "BAD_REQUEST", "The name ci-1 already exists.", Duplicate, Duplicate, Duplicate),
        (400, "BAD_REQUEST", "cvc-complex-type.2.4.a: Invalid content was found", Invalid, Invalid, Invalid),
        (400, "BAD_REQUEST", "Unexpected JAXB Exception", Invalid, Invalid, Invalid),
        (400, "BAD_REQUEST", "The requested operation will exceed the VDC's storage quota", Quota, Quota, Quota),
        (400, "BAD_REQUEST", "The VM quota of the user is used up", Quota, Quota, Quota),
        (400, "BAD_REQUEST", "The operation would exceed the memory limit of the VDC", Quota, Quota, Quota),
        (400, "BAD_REQUEST", "No more IP addresses are available on network ci-net", Quota, Quota, Quota),
        (400, "BAD_REQUEST", "There is no free IP in the pool", Quota, Quota, Quota),
        (400, "BAD_REQUEST", "The operation exceeds what is set in the VDC", Quota, Quota, Quota),
        (400, "BAD_REQUEST", "The request exceeds the available memory", Quota, Quota, Quota),
        (500, "INTERNAL_SERVER_ERROR", "Insufficient memory resources on the host", Quota, Quota, Quota),
        (500, "INTERNAL_SERVER_ERROR", "Not enough space in the datastore", Quota, Quota, Quota),
        (500, "INTERNAL_SERVER_ERROR", "The pool of MAC addresses is exhausted", Quota, Quota, Quota),
        (405, "METHOD_NOT_ALLOWED", "not here", Invalid, Invalid, Invalid),
        (409, "CONFLICT", "it is in the way", State, State, State),
        (422, "X", "cannot be processed", Invalid, Invalid, Invalid),
        (401, "", "", Auth, Auth, Auth),
        (
            403,
            "ACCESS_TO_RESOURCE_IS_FORBIDDEN",
            "Either you need some or all of the following rights [vApp: Delete]",
            Forbidden,
            Forbidden,
            Forbidden,
        ),
        (
            403,
            "ACCESS_TO_RESOURCE_IS_FORBIDDEN",
            "No access to entity \"com.vmware.vcloud.entity.vapp:1\".",
            NotFound,
            NotFound,
            NotFound,
        ),
        (
            403,
            "ACCESS_TO_RESOURCE_IS_FORBIDDEN",
            "The VMware Cloud Director entity com.vmware.vcloud.entity.vapp:1 does not exist.",
            NotFound,
            NotFound,
            NotFound,
        ),
        (
            404,
            "RESOURCE_NOT_FOUND",
            "No access to entity \"com.vmware.vcloud.entity.vapp:1\".",
            NotFound,
            NotFound,
            NotFound,
        ),
        (404, "NOT_FOUND", "The vApp could not be found", NotFound, NotFound, NotFound),
        (404, "", "[ENF] entity not found", NotFound, NotFound, NotFound),
        (404, "X", "nothing here", NotFound, NotFound, NotFound),
        (406, "NOT_ACCEPTABLE", "The requested version is not supported", Unavailable, Unavailable, Failed),
        (415, "UNSUPPORTED_MEDIA_TYPE", "wrong content type", Invalid, Invalid, Invalid),
        (429, "", "Too many requests", Limit, Limit, Limit),
        (
            500,
            "INTERNAL_SERVER_ERROR",
            "Unable to perform this action. Contact your cloud administrator.",
            Unavailable,
            Ambiguous,
            Failed,
        ),
        (
            500,
            "INTERNAL_SERVER_ERROR",
            "VM name or computer name not valid or they do not match.",
            Invalid,
            Invalid,
            Invalid,
        ),
        (500, "INTERNAL_SERVER_ERROR", "The object you selected is currently busy.", Busy, Busy, Busy),
        (
            503,
            "",
            "The maximum number of simultaneous operations for organization \"o\" has been reached.",
            Limit,
            Limit,
            Limit,
        ),
        (
            400,
            "BAD_REQUEST",
            "The maximum number of simultaneous operations for organization \"o\" has been reached.",
            Limit,
            Limit,
            Limit,
        ),
        (502, "X", "Bad gateway", Unavailable, Ambiguous, Failed),
        (503, "BUSY_ENTITY", "The cell restarts", Busy, Ambiguous, Busy),
        (504, "X", "", Unavailable, Ambiguous, Failed),
        (418, "X", "A kind that nobody knows", Protocol, Ambiguous, Failed),
    ];

    #[test]
    fn every_row_of_the_catalogue_has_its_kind() {
        for (status, code, message, read, change, task) in CATALOGUE {
            let body = error_xml(*status, code, message);
            let got = answer(*status, &body);
            let of = |stage| refused("x", stage, &got);
            assert_eq!(of(Stage::Read).kind, *read, "read: {body}");
            assert_eq!(of(Stage::Change).kind, *change, "change: {body}");
            let said = Said::of_body(&body).unwrap();
            assert_eq!(failed_task("x".into(), said).kind, *task, "task: {body}");
            let json = serde_json::json!({"minorErrorCode": code, "message": message, "stackTrace": null}).to_string();
            assert_eq!(refused("x", Stage::Change, &answer(*status, &json)).kind, *change, "change: {json}");
            assert!(of(Stage::Read).text.contains(message) && !of(Stage::Read).text.contains("Trace"));
            assert_eq!((of(Stage::Read).code.as_str(), of(Stage::Read).status), (*code, *status));
        }
    }

    #[test]
    fn every_row_of_the_table_decides_a_row_of_the_catalogue() {
        let decides = |(status, code, text, ..): &(u16, &str, &str, _, _, _)| {
            let text = text.to_lowercase();
            TABLE.iter().position(|row| row.fits(*status, code, &text))
        };
        let decided: Vec<usize> = CATALOGUE.iter().filter_map(decides).collect();
        for (at, row) in TABLE.iter().enumerate() {
            assert!(
                decided.contains(&at),
                "no row of the catalogue tests {:?} {:?} {:?}",
                row.status,
                row.code,
                row.text
            );
        }
    }

    #[test]
    fn answers_that_are_not_vcds_own_prove_nothing() {
        let cut = error_xml(404, "RESOURCE_NOT_FOUND", "No access to entity").replace("/>", "");
        let foreign =
            ["", "<html><body>Not <b>found</body>", "gateway", cut.as_str(), "{\"a\":", "{\"a\":1}", "<Other/>"];
        for body in foreign {
            for (status, read, change) in [
                (302, Protocol, Ambiguous),
                (400, Protocol, Ambiguous),
                (401, Auth, Auth),
                (403, Protocol, Ambiguous),
                (404, Protocol, Ambiguous),
                (429, Limit, Limit),
                (500, Unavailable, Ambiguous),
                (502, Unavailable, Ambiguous),
                (503, Unavailable, Ambiguous),
                (504, Unavailable, Ambiguous),
            ] {
                assert_eq!(refused("x", Stage::Read, &answer(status, body)).kind, read, "{status} {body}");
                assert_eq!(refused("x", Stage::Change, &answer(status, body)).kind, change, "{status} {body}");
            }
        }
        let limit = "<html>The Maximum number of simultaneous operations has been reached</html>";
        assert_eq!(refused("x", Stage::Change, &answer(503, limit)).kind, Limit);
    }

    #[test]
    fn the_requests_id_is_told_once() {
        let with = |body: &str| {
            let got = Received { request_id: Some("1-2-3".into()), ..answer(503, body) };
            refused("x", Stage::Read, &got).text
        };
        assert_eq!(with(""), "[ 1-2-3 ] an answer without a reason");
        assert_eq!(with(&error_xml(503, "X", "down")), "[ 1-2-3 ] down");
        let long = Received { request_id: Some("x".repeat(65)), ..answer(503, "") };
        assert_eq!(refused("x", Stage::Read, &long).text, "an answer without a reason");
    }

    #[test]
    fn a_refusal_of_what_a_request_carries_is_told_from_others() {
        let about = |status, text: &str| {
            is_about_content(&refused("x", Stage::Change, &answer(status, &error_xml(status, "BAD_REQUEST", text))))
        };
        for text in [
            "cvc-complex-type.2.4.a: Invalid content was found starting with element 'ovf:Item'",
            "Unexpected JAXB Exception",
            "Unexpected section VirtualHardwareSection in InstantiationParams.",
        ] {
            assert!(about(400, text), "{text}");
            assert!(!about(403, text), "{text}");
        }
        for text in ["The VM quota is used up", "The VDC is not enabled.", "VirtualHardwareSection exceeds the limit"] {
            assert!(!about(400, text), "{text}");
        }
    }

    #[test]
    fn the_tenants_message_is_preferred() {
        let body = "<v:Error xmlns:v='u' majorErrorCode='500' minorErrorCode='X' message='inner' stackTrace='s'>\
                    <v:TenantError message='for\n tenants'/></v:Error>";
        assert_eq!(refused("x", Stage::Read, &answer(500, body)).text, "for tenants");
    }

    #[test]
    fn errors_leave_cut_and_without_secrets() {
        let text = format!("{}S3cret{}", "ä".repeat(196), "ö".repeat(300));
        let error = finish(own(Failed, "x", text), &["", "S3cret"]);
        assert!(error.text.len() <= MAX_ERROR_TEXT && error.text.len() > MAX_ERROR_TEXT - 4, "{}", error.text.len());
        assert!(!error.text.contains("S3c"), "{}", error.text);
        let long = "x".repeat(1000);
        let page = finish(refused("x", Stage::Read, &answer(502, &format!("{long}S3cret"))), &["xS3cret"]);
        assert_eq!(page.text, cut(&format!("not VCD's own words: {long}"), MAX_ERROR_TEXT));
        // Cut only when no secret is left that a cut could halve.
        for at in 0..MAX_ERROR_TEXT {
            let page = format!("{}S3cret", "x".repeat(at));
            let error = finish(refused("x", Stage::Read, &answer(502, &page)), &["S3cret"]);
            assert!(!error.text.contains('S'), "{at}: {}", error.text);
        }
        let coded = refused("x", Stage::Read, &answer(400, &error_xml(400, &long, "no")));
        assert_eq!(finish(coded, &[]).code, long[..MAX_CODE]);

        // A page that is not VCD's own is quoted as it is.
        let secret = "a<&\">'b %ä";
        for shown in [
            "a<&\">'b %ä",
            "a&lt;&amp;&quot;&gt;&apos;b %ä",
            "a&lt;&amp;&quot;&gt;&#39;b %ä",
            "a&lt;&amp;\"&gt;'b %ä",
            "a%3C%26%22%3E%27b%20%25%C3%A4",
            "a%3C%26%22%3E%27b+%25%C3%A4",
            "a<&\\\">'b %ä",
        ] {
            let error = finish(refused("x", Stage::Read, &answer(502, &format!("<p>({shown})</p>"))), &[secret]);
            assert_eq!(error.text, "not VCD's own words: <p>(…)</p>", "{shown}");
        }

        // What a task was about is VCD's to say, and texts are tidied when they come.
        let said = Said { major: None, code: "S3cret word".into(), text: tidy("a S3cret \t word") };
        let what = format!("S3cret  word {}", "ä".repeat(MAX_ERROR_TEXT));
        let error = finish(failed_task(what, said), &["S3cret \t word", "S3cret  word"]);
        assert!(error.what.len() <= MAX_ERROR_TEXT, "{}", error.what.len());
        assert!(!format!("{error} {error:?}").contains("S3c"), "{error:?}");
    }

    #[test]
    fn without_an_answer_it_matters_whether_it_was_sent() {
        let gone = |sent| Lost { sent, text: "reset".into() };
        assert_eq!(lost("x", Stage::Change, gone(true)).kind, Ambiguous);
        assert_eq!(lost("x", Stage::Change, gone(false)).kind, Unavailable);
        assert_eq!(lost("x", Stage::Read, gone(true)).kind, Unavailable);
        assert_eq!(unusable("x", Stage::Change, 201, "cut").kind, Ambiguous);
        assert_eq!(unusable("x", Stage::Read, 200, "cut").kind, Protocol);
    }
}
