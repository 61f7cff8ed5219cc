//! The meaning of VCD's errors: one table from (status, `minorErrorCode`, text) to [`ErrorKind`]. It does no I/O.

use super::http::{Lost, Received, take_out, tidy};
use super::xml;
use crate::cloud::{ErrorKind, MAX_ERROR_TEXT, VcdError};
use roxmltree::Node;

/// Maximum length of an error code that is shown.
const MAX_CODE: usize = 120;

/// Maximum length of a request id. A longer one is ignored.
const MAX_REQUEST_ID: usize = 64;

/// Number of bytes of a web page in which its title is searched.
const PAGE_HEAD: usize = 16 * 1024;

/// Text of the error at the org's limit of simultaneous operations: VCD rejects the request before it does anything,
/// whatever the status.
const OPERATION_LIMIT: &str = "maximum number of simultaneous operations";

/// What failed. It decides the meaning of an unclear answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// A request that only reads.
    Read,
    /// A request that changes something.
    Change,
    /// A task that VCD had started.
    Task,
}

/// An error as VCD describes it, in XML or JSON.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    /// `majorErrorCode` of a task's error.
    major: Option<u16>,
    code: String,
    text: String,
}

impl Said {
    /// Reads an `Error` element, without its stack trace.
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
            let field = |name| json.get(name).and_then(|value| value.as_str());
            // Gateways use other keys, or only the name of the error.
            let (code, text) = match (field("minorErrorCode"), field("error").zip(field("error_description"))) {
                (Some(code), _) => (code, field("message").unwrap_or_default()),
                (None, Some(of_login)) => of_login,
                (None, None) => return None,
            };
            return Some(Self { major: None, code: code.into(), text: tidy(text) });
        }
        let document = xml::read(body).ok()?;
        let root = document.root_element();
        (xml::local(root) == "Error").then(|| Self::of_element(root))
    }
}

/// One row of the table. All fields that are set must match.
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

/// The first row that matches counts.
const TABLE: &[Row] = &[
    text(&[OPERATION_LIMIT], ErrorKind::Limit),
    status(&[429], ErrorKind::Limit),
    status(&[401], ErrorKind::Auth),
    code("BUSY_ENTITY", ErrorKind::Busy),
    text(&["is busy completing an operation"], ErrorKind::Busy),
    text(&["is busy, cannot proceed with the operation"], ErrorKind::Busy),
    text(&["is currently busy"], ErrorKind::Busy),
    text(&["updated or deleted by another transaction"], ErrorKind::Busy),
    // The text names the task that blocks the object, but the code does not say so.
    text(&["unable to perform this action", "(com.vmware.vcloud.entity.task:"], ErrorKind::Busy),
    text(&["stop the vapp and try again"], ErrorKind::State),
    text(&["could not be executed since"], ErrorKind::State),
    text(&["is not supported since"], ErrorKind::State),
    text(&["in its current state"], ErrorKind::State),
    text(&["in the current state"], ErrorKind::State),
    code("DUPLICATE_NAME", ErrorKind::Duplicate),
    text(&["already exists"], ErrorKind::Duplicate),
    text(&["there is already a vm named"], ErrorKind::Duplicate),
    code("RESOURCE_NOT_FOUND", ErrorKind::NotFound),
    text(&["com.vmware.vcloud.entity.", "does not exist"], ErrorKind::NotFound),
    text(&["no access to entity"], ErrorKind::NotFound),
    text(&["could not be found"], ErrorKind::NotFound),
    text(&["cannot find the vdc storage policy"], ErrorKind::NotFound),
    // Usually a network of the template that the new vApp lacks. It says nothing about the vApp.
    text(&["the vcd entity network", "does not exist"], ErrorKind::Invalid),
    status(&[404], ErrorKind::NotFound),
    status(&[403], ErrorKind::Forbidden),
    text(&["quota"], ErrorKind::Quota),
    text(&["exceed", "limit"], ErrorKind::Quota),
    text(&["exceed", "the vdc"], ErrorKind::Quota),
    text(&["exceed", "available"], ErrorKind::Quota),
    text(&["no ", "ip address", "available"], ErrorKind::Quota),
    text(&["no free ip"], ErrorKind::Quota),
    text(&["insufficient ip addresses"], ErrorKind::Quota),
    text(&["insufficient", "resource"], ErrorKind::Quota),
    text(&["not enough"], ErrorKind::Quota),
    text(&["exhausted"], ErrorKind::Quota),
    text(&["computer name not valid"], ErrorKind::Invalid),
    text(&["guest customization is not supported"], ErrorKind::Invalid),
    status(&[409], ErrorKind::State),
    // VCD no longer supports the API version, and there is no other.
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
        // A restarting cell or a proxy may answer for a cell that has started the change.
        (Stage::Change, 502..=504, known) if known != Some(ErrorKind::Limit) => ErrorKind::Ambiguous,
        (_, _, Some(kind)) => kind,
        (Stage::Change, ..) => ErrorKind::Ambiguous,
        (_, 500.., None) => ErrorKind::Unavailable,
        (..) => ErrorKind::Protocol,
    }
}

/// An answer that is not VCD's own: empty, cut, a proxy's page, or a redirect.
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

/// The error of an answer with a bad status. Its text may still contain secrets and is not cut, but it contains the
/// request's id, with which VCD's own messages begin.
pub(super) fn refused(what: &str, stage: Stage, got: &Received) -> VcdError {
    let mut error = judged(what, stage, got);
    if let Some(id) = got.request_id.as_deref().filter(|id| id.len() <= MAX_REQUEST_ID && !error.text.contains(*id)) {
        error.text = format!("[ {id} ] {}", error.text);
    }
    error
}

/// True if VCD rejects a request because of its content: the text names the hardware section, or an element that VCD's
/// schema does not know.
pub(super) fn is_about_content(error: &VcdError) -> bool {
    let text = error.text.to_lowercase();
    let parts = ["cvc-", "jaxb", "hardwaresection", "hardware section", "instantiationparams"];
    error.kind == ErrorKind::Invalid && error.status == 400 && parts.iter().any(|part| text.contains(part))
}

/// True if VCD itself rejects the API version of a request. VCD checks it before anything else.
pub(super) fn is_about_version(got: &Received) -> bool {
    got.status == 406 && Said::of_body(&got.body).is_some_and(|said| said.code == "NOT_ACCEPTABLE")
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
        (Some(place), _) if got.is_for_https => {
            format!("VCD accepts https only, at {place}: write https:// in url")
        }
        (Some(place), _) if (300..400).contains(&status) => {
            format!("a redirect to {place}, which the plugin does not follow")
        }
        (_, body) if body.is_empty() => "an answer without a reason".into(),
        (_, body) => web_page(&got.body).unwrap_or_else(|| format!("not an answer of VCD's API: {body}")),
    };
    VcdError { kind: judge_foreign(stage, status, &got.body), what, status, code: String::new(), text, retry_after }
}

/// The description of a body that is a web page of a proxy or of VCD's portal.
pub(super) fn web_page(body: &str) -> Option<String> {
    let head = cut(body.trim_start_matches('\u{feff}').trim_start(), PAGE_HEAD);
    // It has the same length as the text.
    let lower = head.to_ascii_lowercase();
    if !lower.starts_with("<!doctype html") && !lower.starts_with("<html") {
        return None;
    }
    let title = || {
        let (before, rest) = lower.split_once("<title")?;
        let from = before.len() + "<title".len() + rest.find('>')? + 1;
        let to = from + lower.get(from..)?.find("</title")?;
        head.get(from..to).map(tidy).filter(|title| !title.is_empty())
    };
    Some(match title() {
        Some(title) => format!("the answer is a web page, {title:?}, not from VCD's API"),
        None => format!("the answer is a web page, not from VCD's API: {}", tidy(head)),
    })
}

/// The error of a good status with a document that cannot be used.
pub(super) fn unusable(what: &str, stage: Stage, status: u16, why: impl Into<String>) -> VcdError {
    let kind = if stage == Stage::Change { ErrorKind::Ambiguous } else { ErrorKind::Protocol };
    VcdError { kind, what: what.to_owned(), status, code: String::new(), text: why.into(), retry_after: None }
}

/// The error of a request without an answer.
pub(super) fn lost(what: &str, stage: Stage, lost: Lost) -> VcdError {
    let kind = if stage == Stage::Change && lost.sent { ErrorKind::Ambiguous } else { ErrorKind::Unavailable };
    VcdError { kind, what: what.to_owned(), status: 0, code: String::new(), text: lost.text, retry_after: None }
}

/// The error of a task that failed.
pub(super) fn failed_task(what: String, said: Said) -> VcdError {
    let status = said.major.unwrap_or_default();
    let kind = judge(Stage::Task, status, &said);
    VcdError { kind, what, status, code: said.code, text: said.text, retry_after: None }
}

/// Takes the secrets out of an error's text, then cuts it: the last step before an error leaves the client.
pub(super) fn finish(mut error: VcdError, secrets: &[&str]) -> VcdError {
    for secret in secrets {
        take_out(secret, &mut [&mut error.text, &mut error.code, &mut error.what]);
    }
    error.text = cut(&error.text, MAX_ERROR_TEXT).to_owned();
    error.code = cut(&error.code, MAX_CODE).to_owned();
    // The error of a task contains VCD's own text here as well.
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
        Received {
            status,
            now: None,
            retry_after: None,
            location: None,
            is_for_https: false,
            request_id: None,
            digest: None,
            body: body.into(),
        }
    }

    fn error_xml(status: u16, code: &str, message: &str) -> String {
        let message = message.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;");
        format!(
            "<Error xmlns=\"http://www.vmware.com/vcloud/v1.5\" majorErrorCode=\"{status}\" minorErrorCode=\"{code}\" \
             stackTrace=\"com.vmware.Trace\" message=\"[ 1-2-3 ] {message}\"/>"
        )
    }

    /// What real VCDs have said, by where it can be read: a thread of GitHub's (REPOSITORY#NUMBER), or a file of a
    /// repository with a recording of it or with what its authors saw. Then the stage, status (0: not told there), code
    /// (empty: not told) and words, without the request's id, and what they mean.
    const QUOTED: &[(&str, Stage, u16, &str, &str, ErrorKind)] = &[
        (
            "vmware/terraform-provider-vcd#49",
            Stage::Task,
            0,
            "",
            "Following errors occurred while updating network connections:\nThere are insufficient IP addresses to complete \
             operation. You need to add IP addresses to the network that is associated with the object being created or \
             deployed.",
            Quota,
        ),
        (
            "vmware/terraform-provider-vcd#216",
            Stage::Task,
            400,
            "BAD_REQUEST",
            "Following errors occurred while updating network connections: \n There are insufficient IP addresses to complete \
             operation. You need to add IP addresses to the network that is associated with the object being created or \
             deployed.",
            Quota,
        ),
        (
            "astratto/vcloud-rest, vapps/create_vapp_from_template_space.yml",
            Stage::Change,
            400,
            "BAD_REQUEST",
            "The requested operation will exceed the VDC's storage quota.",
            Quota,
        ),
        (
            "cloudfoundry-attic/bosh-vcloud-cpi-release, indy_disk_create_error.xml",
            Stage::Change,
            400,
            "BAD_REQUEST",
            "The requested operation will exceed the vDC's storage quota.",
            Quota,
        ),
        (
            "vmware/cloud-director-named-disk-csi-driver, tests/utils/disk_util.go",
            Stage::Change,
            0,
            "",
            "The requested operation will exceed the VDC's storage quota: storage policy",
            Quota,
        ),
        (
            "vmware/go-vcloud-director#616",
            Stage::Change,
            400,
            "BUSY_ENTITY",
            "The entity Ref: com.vmware.vcloud.entity.vm:740ea4a2-6904-4bdd-b97d-9a0ecc8e79d9 is busy completing an operation \
             VAPP_UPDATE_VM. VAPP_UPDATE_VM(com.vmware.vcloud.entity.task:4eefa495-c6ed-4f0f-8ff0-fd98d8ac05a1)",
            Busy,
        ),
        (
            "vmware/terraform-provider-vcd#976",
            Stage::Change,
            400,
            "",
            "The entity Ref: com.vmware.vcloud.entity.network:72bd0740-12bd-48e7-9381-e73cfb6a8737 is busy completing an \
             operation VAPP_DEPLOY.",
            Busy,
        ),
        ("fog/fog#3620", Stage::Change, 400, "", "The entity CloudLinux is busy completing an operation.", Busy),
        (
            "a fork of vmware/cluster-api-provider-cloud-director, seen in its operation",
            Stage::Change,
            400,
            "",
            "Unable to perform this action. Contact your cloud administrator. \
             VDC_RECOMPOSE_VAPP(com.vmware.vcloud.entity.task:02726804)",
            Busy,
        ),
        (
            "the same fork, an answer in its tests",
            Stage::Change,
            400,
            "BUSY_ENTITY",
            "Unable to perform this action. Contact your cloud administrator. \
             VAPP_DEPLOY(com.vmware.vcloud.entity.task:0e9f39f2-1065-4651-b3fd-f6d949b502c1)",
            Busy,
        ),
        (
            "vmware/go-vcloud-director, govcd/vsphere_vcenter.go",
            Stage::Task,
            500,
            "INTERNAL_SERVER_ERROR",
            "The object you selected is currently busy. Try again in a few minutes.",
            Busy,
        ),
        (
            "vmware/go-vcloud-director, govcd/orgvdcnetwork.go",
            Stage::Change,
            0,
            "",
            "is busy, cannot proceed with the operation.",
            Busy,
        ),
        (
            "vmware/terraform-provider-vcd, vcd/resource_vcd_subscribed_catalog.go",
            Stage::Task,
            0,
            "",
            "updated or deleted by another transaction",
            Busy,
        ),
        (
            "vmware/terraform-provider-vcd#706",
            Stage::Change,
            400,
            "",
            "The requested operation could not be executed on vApp \"thisvm-fe9596d3-187f-49a6-8a2e-e76b6cfdce58\". Stop the \
             vApp and try again.",
            State,
        ),
        (
            "vmware/terraform-provider-vcd#989",
            Stage::Change,
            409,
            "",
            "The requested operation could not be executed on vApp \"76c147c5-bb73-4a1a-a5d2-92d639537820\". Stop the vApp and \
             try again.",
            State,
        ),
        (
            "astratto/vcloud-rest, vapps/delete_vapp_running.yml",
            Stage::Change,
            400,
            "BAD_REQUEST",
            "The requested operation could not be executed on vApp \"Test_vapp\". Stop the vApp and try again.",
            State,
        ),
        (
            "astratto/vcloud-rest, vapps/reset_vapp_not_running.yml",
            Stage::Change,
            400,
            "BAD_REQUEST",
            "The requested operation could not be executed since vApp \"Test_vapp1\" does not have any powered on VMs.",
            State,
        ),
        (
            "vmware-archive/ansible-module-vcloud-director#31",
            Stage::Change,
            400,
            "BAD_REQUEST",
            "The requested operation could not be executed since VM \"test_vm\" is not powered on.",
            State,
        ),
        (
            "vmware/terraform-provider-vcd, vcd/resource_vcd_vapp.go",
            Stage::Change,
            0,
            "",
            "The requested operation could not be executed since vApp vApp_name is not running",
            State,
        ),
        (
            "vmware/terraform-provider-vcd#68",
            Stage::Change,
            0,
            "",
            "The requested operation on vApp is not supported in its current state",
            State,
        ),
        (
            "vmware/terraform-provider-vcd, vcd/resource_vcd_vapp_vm_internal_disk_test.go",
            Stage::Task,
            0,
            "",
            "The attempted operation cannot be performed in the current state (Powered on)",
            State,
        ),
        (
            "a vApp recorded in 2014 by cedadev, the tests of cloudhands-burst",
            Stage::Task,
            400,
            "BAD_REQUEST",
            "The requested operation on VM \"vm-172\" is not supported since the VM is disconnected.",
            State,
        ),
        (
            "astratto/vcloud-rest, vapps/create_vapp_from_template_existing.yml",
            Stage::Change,
            400,
            "DUPLICATE_NAME",
            "The VCD entity Test_vapp_temp already exists.",
            Duplicate,
        ),
        (
            "cloudfoundry-attic/bosh-vcloud-cpi-release, spec/unit/vcloud/vcd_client_spec.rb",
            Stage::Change,
            400,
            "BAD_REQUEST",
            "There is already a VM named \"18369d52-151a-4fa3-87ee-c5dad9288f9f\".",
            Duplicate,
        ),
        (
            "vmware/terraform-provider-vcd#39",
            Stage::Change,
            400,
            "",
            "Cannot find the VDC storage policy \"545fb858-3a90-4801-86d4-00d275ae1b6d\".",
            NotFound,
        ),
        (
            "vmware-archive/pyvcloud#796",
            Stage::Read,
            403,
            "ACCESS_TO_RESOURCE_IS_FORBIDDEN",
            "The VMware Cloud Director entity com.vmware.vcloud.entity.org:<uuid> does not exist.",
            NotFound,
        ),
        (
            "jclouds/legacy-jclouds, MediaClientExpectTest",
            Stage::Read,
            403,
            "ACCESS_TO_RESOURCE_IS_FORBIDDEN",
            "No access to entity \"(com.vmware.vcloud.entity.media:e9cd3387-ac57-4d27-a481-9bee75e0690f)\".",
            NotFound,
        ),
        (
            "jclouds/legacy-jclouds, NetworkClientExpectTest",
            Stage::Read,
            400,
            "BAD_REQUEST",
            "validation error : EntityRef has incorrect type, expected type is com.vmware.vcloud.entity.network.",
            Invalid,
        ),
        (
            "jclouds/legacy-jclouds, NetworkClientExpectTest",
            Stage::Read,
            403,
            "ACCESS_TO_RESOURCE_IS_FORBIDDEN",
            "This operation is denied.",
            Forbidden,
        ),
        (
            "vmware-archive/container-service-extension#1360",
            Stage::Change,
            403,
            "ACCESS_TO_RESOURCE_IS_FORBIDDEN",
            "Either you need some or all of the following rights [Base] to perform operations [VAPP_VIEW] for \
             75b5b162-35a4-444b-bdab-faab5d71cd6b or the target entity is invalid.",
            Forbidden,
        ),
        (
            "vmware-archive/pyvcloud#672",
            Stage::Change,
            403,
            "ACCESS_TO_RESOURCE_IS_FORBIDDEN",
            "Either you need some or all of the following rights [TEMPLATE_MEDIA_VIEW] to perform operations [MEDIA_VIEW] for \
             a8f929c3-0e8d-4ab1-b509-a773dd16b1e3 or the target entity is invalid.",
            Forbidden,
        ),
        (
            "gds-operations/vcloud-core#181",
            Stage::Read,
            403,
            "",
            "DISALLOWED_OPERATIONS [ com.vmware.vcloud.entity.vdc:12345678-1234-1234-1234-123456789012 ]",
            Forbidden,
        ),
        (
            "astratto/vcloud-rest, tasks/get_tasks_list.yml",
            Stage::Task,
            400,
            "BAD_REQUEST",
            "The VCD entity network \"Test_network1\" does not exist.",
            Invalid,
        ),
        (
            "vmware-archive/vcd-cli#534",
            Stage::Task,
            0,
            "",
            "The VCD entity network \"Internal Network\" does not exist.",
            Invalid,
        ),
        (
            "vmware-archive/pyvcloud#6",
            Stage::Task,
            0,
            "BAD_REQUEST",
            "The VCD entity network \"VM Network\" does not exist",
            Invalid,
        ),
        (
            "vmware-archive/pyvcloud#207",
            Stage::Change,
            400,
            "BAD_REQUEST",
            "Bad request  - Unexpected JAXB Exception  - cvc-complex-type.2.4.a: Invalid content was found starting with \
             element 'VmGeneralParams'",
            Invalid,
        ),
        (
            "vmware-archive/vcd-cli#29",
            Stage::Change,
            0,
            "",
            "Guest customization is not supported by the selected OS. Please disable guest customization to proceed.",
            Invalid,
        ),
        (
            "vmware/terraform-provider-vcd#1087",
            Stage::Task,
            500,
            "INTERNAL_SERVER_ERROR",
            "VM name or computer name not valid or they do not match.",
            Invalid,
        ),
        (
            "vmware/terraform-provider-vcd#715",
            Stage::Change,
            400,
            "",
            "Invalid network parameter: Unknown IP Addressing Mode",
            Invalid,
        ),
        (
            "vmware/terraform-provider-vcd#605",
            Stage::Change,
            0,
            "",
            "Requested disk iops 0 for virtual machine \"vm\" exceeds maximum allowed iops 3,501",
            Invalid,
        ),
        (
            "vmware-archive/pyvcloud#484",
            Stage::Change,
            400,
            "BAD_REQUEST",
            "The following IP addresses are already being used: 2.2.3.2.",
            Invalid,
        ),
        (
            "vmware-archive/vcd-cli#400",
            Stage::Change,
            400,
            "BAD_REQUEST",
            "The value for allocated memory must be above zero. You provided 0.",
            Invalid,
        ),
        (
            "astratto/vcloud-rest, vapps/networks/add_parent_to_isolated_vapp_network.yml",
            Stage::Change,
            400,
            "BAD_REQUEST",
            "Network with fenced mode \"isolated\" cannot have a parent network.",
            Invalid,
        ),
        (
            "vmware/terraform-provider-vcd#80",
            Stage::Read,
            406,
            "",
            "The request has invalid accept header. Supported API versions are: [1.5, 5.1, 5.10, 5.11, 5.12, 5.5, 5.6, 5.7, 5.8, \
             5.9, 6.0, 7.0, 9.0]",
            Unavailable,
        ),
        (
            "vmware/terraform-provider-vcd#832",
            Stage::Read,
            406,
            "NOT_ACCEPTABLE",
            "The request has invalid accept header: Invalid API version requested. Supported API versions are: [37.0.0-alpha, \
             36.2, 36.1, 36.0, 35.2, 35.0, 34.0, 33.0 [D], 32.0 [D], 31.0 [D]] ([D] indicates deprecated versions)",
            Unavailable,
        ),
        (
            "vmware-archive/container-service-extension#541",
            Stage::Change,
            500,
            "INTERNAL_SERVER_ERROR",
            "Unable to perform this action. Contact your cloud administrator.",
            Ambiguous,
        ),
        (
            "vmware/terraform-provider-vcd#1205",
            Stage::Change,
            500,
            "",
            "Unable to perform this action. Contact your cloud administrator.",
            Ambiguous,
        ),
        (
            "vmware-archive/vcd-cli#14",
            Stage::Task,
            500,
            "INTERNAL_SERVER_ERROR",
            "Unable to perform this action. Contact your cloud administrator.",
            Failed,
        ),
        (
            "vmware/terraform-provider-vcd#463",
            Stage::Task,
            500,
            "INTERNAL_SERVER_ERROR",
            "Internal Server Error\n - Couldn't find NIC with given index 0",
            Failed,
        ),
        (
            "astratto/vcloud-rest, vms/rename_vm.yml",
            Stage::Task,
            500,
            "INTERNAL_SERVER_ERROR",
            "Internal Server Error",
            Failed,
        ),
    ];

    /// What no public words are known of: statuses and codes by themselves, and what may be said of quotas. Status, code,
    /// words, then the kind for a read, a change, and a task that fails so.
    const UNQUOTED: &[(u16, &str, &str, ErrorKind, ErrorKind, ErrorKind)] = &[
        (400, "BUSY_ENTITY", "in other words", Busy, Busy, Busy),
        (400, "DUPLICATE_NAME", "in other words", Duplicate, Duplicate, Duplicate),
        (400, "BAD_REQUEST", "The name ci-1 already exists.", Duplicate, Duplicate, Duplicate),
        (404, "RESOURCE_NOT_FOUND", "in other words", NotFound, NotFound, NotFound),
        (404, "NOT_FOUND", "The vApp could not be found", NotFound, NotFound, NotFound),
        (404, "X", "nothing here", NotFound, NotFound, NotFound),
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
        (415, "UNSUPPORTED_MEDIA_TYPE", "wrong content type", Invalid, Invalid, Invalid),
        (422, "X", "cannot be processed", Invalid, Invalid, Invalid),
        (401, "", "", Auth, Auth, Auth),
        (403, "X", "no right", Forbidden, Forbidden, Forbidden),
        (406, "X", "no version", Unavailable, Unavailable, Failed),
        (429, "", "Too many requests", Limit, Limit, Limit),
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
        (500, "X", "broken", Unavailable, Ambiguous, Failed),
        (502, "X", "Bad gateway", Unavailable, Ambiguous, Failed),
        (503, "BUSY_ENTITY", "The cell restarts", Busy, Ambiguous, Busy),
        (504, "X", "", Unavailable, Ambiguous, Failed),
        (418, "X", "A kind that nobody knows", Protocol, Ambiguous, Failed),
    ];

    /// The kind of these words, in XML and in JSON.
    fn kind(stage: Stage, status: u16, code: &str, words: &str) -> ErrorKind {
        let body = error_xml(status, code, words);
        let said = Said::of_body(&body).unwrap();
        if stage == Stage::Task {
            return failed_task("x".into(), said).kind;
        }
        let json = serde_json::json!({"minorErrorCode": code, "message": words, "stackTrace": null}).to_string();
        let of = |body: &str| refused("x", stage, &answer(status, body));
        let error = of(&body);
        assert!(error.text.contains(&tidy(words)) && !error.text.contains("Trace"), "{error}");
        assert_eq!((error.code.as_str(), error.status), (code, status));
        assert_eq!(of(&json).kind, error.kind, "{json}");
        error.kind
    }

    #[test]
    fn what_real_vcds_have_said_is_understood() {
        assert!(QUOTED.len() >= 40);
        for (source, stage, status, code, words, expected) in QUOTED {
            // A request is refused with a status; where it is not told, 400 is what such refusals have.
            let status = if *stage != Stage::Task && *status == 0 { 400 } else { *status };
            assert_eq!(kind(*stage, status, code, words), *expected, "{source}: {words}");
        }
    }

    #[test]
    fn statuses_and_codes_have_their_kinds() {
        for (status, code, words, read, change, task) in UNQUOTED {
            for (stage, expected) in [(Stage::Read, read), (Stage::Change, change), (Stage::Task, task)] {
                assert_eq!(kind(stage, *status, code, words), *expected, "{stage:?}: {status} {code} {words}");
            }
        }
    }

    #[test]
    fn every_row_of_the_table_decides_words_that_are_tested() {
        let decides = |(status, code, words): (u16, &str, &str)| {
            let words = tidy(words).to_lowercase();
            TABLE.iter().position(|row| row.fits(status, code, &words))
        };
        let quoted = QUOTED.iter().map(|(_, _, status, code, words, _)| (*status, *code, *words));
        let all = quoted.chain(UNQUOTED.iter().map(|(status, code, words, ..)| (*status, *code, *words)));
        let decided: Vec<usize> = all.filter_map(decides).collect();
        for (at, row) in TABLE.iter().enumerate() {
            assert!(decided.contains(&at), "nothing tests {:?} {:?} {:?}", row.status, row.code, row.text);
        }
    }

    #[test]
    fn a_web_page_is_reported_with_its_title() {
        let said = |page: &str| refused("x", Stage::Read, &answer(503, page)).text;
        let end = "not from VCD's API";
        for page in [
            "<html><head><title>Bad\n Gateway</title></head><body>long text</body></html>",
            "\u{feff} <!DOCTYPE HTML><HTML><TITLE lang='x'>Bad Gateway</TITLE>",
        ] {
            assert_eq!(said(page), format!("the answer is a web page, \"Bad Gateway\", {end}"), "{page}");
        }
        for page in ["<html><body>down</body></html>", "<html><title></title>down", "<html><title>down"] {
            assert_eq!(said(page), format!("the answer is a web page, {end}: {page}"));
        }
        let late = format!("<html>{}<title>x</title>", "ä".repeat(PAGE_HEAD));
        assert!(said(&late).starts_with(&format!("the answer is a web page, {end}: <html>ää")));
        assert_eq!((web_page("<Error/>"), web_page("{}"), web_page("")), (None, None, None));
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
    fn the_requests_id_is_shown_once() {
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
    fn a_rejection_of_the_content_of_a_request_is_recognised() {
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
        let error = finish(VcdError::own(Failed, "x", text), &["", "S3cret"]);
        assert!(error.text.len() <= MAX_ERROR_TEXT && error.text.len() > MAX_ERROR_TEXT - 4, "{}", error.text.len());
        assert!(!error.text.contains("S3c"), "{}", error.text);
        let long = "x".repeat(1000);
        let page = finish(refused("x", Stage::Read, &answer(502, &format!("{long}S3cret"))), &["xS3cret"]);
        assert_eq!(page.text, cut(&format!("not an answer of VCD's API: {long}"), MAX_ERROR_TEXT));
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
            assert_eq!(error.text, "not an answer of VCD's API: <p>(…)</p>", "{shown}");
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
