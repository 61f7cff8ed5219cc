//! The states of tasks: one query for many, and one `GET` for each task that the query does not show in full.

use super::errors::{self, Said, Stage};
use super::query::{self, has_prefix};
use super::{Call, Client, last_part, xml};
use crate::cloud::{ErrorKind, Href, MAX_TASKS_ASKED, Task, TaskState, VcdError};
use std::collections::HashMap;
use ureq::http::Method;

/// True for a final status. An unknown status counts as running.
pub(super) fn is_over(status: &str) -> bool {
    matches!(status, "success" | "error" | "aborted" | "canceled")
}

impl Client {
    /// The state of each task, in the given order. An error if none could be read.
    pub(super) fn tasks(&self, call: &Call, asked: &[Href]) -> Result<Vec<Task>, VcdError> {
        if asked.len() > MAX_TASKS_ASKED {
            let why = format!("{} tasks, but at most {MAX_TASKS_ASKED} are allowed in one request", asked.len());
            return Err(VcdError::own(ErrorKind::Invalid, call.what.clone(), why));
        }
        // A single task costs one request either way, and its own document shows more.
        let told = if asked.len() > 1 { self.task_records(call)? } else { HashMap::new() };
        let mut all = Vec::with_capacity(asked.len());
        let mut unread = Vec::new();
        for href in asked {
            let state = match told.get(last_part(href)).map(String::as_str) {
                Some("success") => TaskState::Success,
                Some(status) if !is_over(status) => TaskState::Running,
                // It is missing or has failed: its document shows why.
                _ => match self.task(call, href) {
                    Ok(state) => state,
                    // One document that VCD does not return must not hide the results of the others.
                    Err(e) if e.kind == ErrorKind::Protocol || e.status >= 500 => {
                        // Without the error text: texts must not leave the client before the secrets are taken out.
                        log::debug!("{}: one cannot be read ({}): it counts as running", call.what, e.status);
                        unread.push(e);
                        TaskState::Running
                    }
                    Err(e) => return Err(e),
                },
            };
            all.push(Task { href: href.clone(), state });
        }
        if unread.len() == asked.len()
            && let Some(e) = unread.pop()
        {
            return Err(e);
        }
        Ok(all)
    }

    /// Status by task id: the latest tasks of the group's vApps. Empty if VCD rejects the query.
    fn task_records(&self, call: &Call) -> Result<HashMap<String, String>, VcdError> {
        let mut told = HashMap::new();
        if self.is_off(&self.no_task_query) {
            return Ok(told);
        }
        let prefix = &self.settings.vapp_prefix;
        let filter = format!("objectName=={}-*", query::value(prefix));
        let result = self.first_page(call, "task", &filter, "sortDesc=startDate", &mut |record| {
            let attribute = |name| xml::attribute(record, name);
            if has_prefix(attribute("objectName").unwrap_or_default(), prefix)
                && let (Some(href), Some(status)) = (attribute("href"), attribute("status"))
            {
                told.insert(last_part(href).to_owned(), status.to_owned());
            }
            Ok(())
        });
        if let Err(e) = result {
            self.turn_off(call, &self.no_task_query, e)?;
        }
        Ok(told)
    }

    fn task(&self, call: &Call, href: &Href) -> Result<TaskState, VcdError> {
        let got = match self.send(call, Method::GET, href, None) {
            // VCD forgets old tasks, and may then answer as if they belonged to another user.
            Err(e) if matches!(e.kind, ErrorKind::NotFound | ErrorKind::Forbidden) => return Ok(TaskState::Unknown),
            other => other?,
        };
        let unusable = |why: String| errors::unusable(&call.what, Stage::Read, got.status, why);
        let document = xml::read(&got.body).map_err(unusable)?;
        let root = document.root_element();
        if xml::local(root) != "Task" {
            return Err(unusable(format!("not a task but {}", xml::local(root))));
        }
        let status = xml::attribute(root, "status").unwrap_or_default();
        if !is_over(status) {
            return Ok(TaskState::Running);
        }
        if status == "success" {
            return Ok(TaskState::Success);
        }
        let operation = xml::attribute(root, "operationName").unwrap_or("task");
        let owner = xml::child(root, "Owner").and_then(|o| xml::attribute(o, "name")).unwrap_or("an unnamed vApp");
        let what = format!("{operation} of {owner}");
        let mut error = match xml::child(root, "Error") {
            Some(error) => errors::failed_task(what, Said::of_element(error)),
            None => VcdError::own(ErrorKind::Failed, what, xml::text(root, "Details").unwrap_or_default()),
        };
        if status == "aborted" && error.kind == ErrorKind::Failed {
            error.kind = ErrorKind::Aborted;
        }
        if error.text.is_empty() {
            error.text = format!("the task ended as {status}");
        }
        Ok(TaskState::Failed(error))
    }
}
