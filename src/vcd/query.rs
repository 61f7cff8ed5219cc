//! Queries: filters, pages and the values of records. The result is all pages, or an error.

use super::errors::{self, Stage};
use super::http::{Digest, Received, encode};
use super::{Call, Client, xml};
use crate::cloud::{Customization, Href, Power, UnixMs, VcdError};
use roxmltree::Node;
use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use ureq::http::Method;

/// Records per page: VCD's maximum.
pub const PAGE_SIZE: usize = 128;
/// Maximum number of pages of one query. 1,000 instances fill 8 pages; the rest is for foreign VMs with a similar name,
/// and for servers with smaller pages.
pub const MAX_PAGES: usize = 64;

/// A value in a filter as some VCDs need it, against the documentation: without escapes, only encoded.
pub(super) fn bare_value(text: &str) -> String {
    encode(text)
}

/// A value in a filter: the filter's special characters are escaped, then everything is encoded.
pub(super) fn value(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '(' | ')' | ',' | ';' | '\\') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    encode(&escaped)
}

/// A filter for records whose attribute is one of these values.
pub(super) fn any_of(attribute: &str, texts: &[Arc<str>]) -> String {
    let each: Vec<String> = texts.iter().map(|text| format!("{attribute}=={}", value(text))).collect();
    match each.as_slice() {
        [one] => one.clone(),
        all => format!("({})", all.join(",")),
    }
}

/// True if `name` is `<prefix>-…`, in the same case: a filter with a wildcard ignores case.
pub(super) fn has_prefix(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|rest| rest.len() > 1 && rest.starts_with('-'))
}

/// True if `name` is a pattern: `*` matches any characters.
pub(super) fn is_pattern(name: &str) -> bool {
    name.contains('*')
}

/// True if `name` matches `pattern`, in the same case.
pub(super) fn fits(pattern: &str, name: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return name == pattern };
    let (middle, last) = rest.rsplit_once('*').unwrap_or(("", rest));
    let Some(mut name) = name.strip_prefix(first).and_then(|name| name.strip_suffix(last)) else { return false };
    middle.split('*').all(|part| match name.split_once(part) {
        Some((_, after)) => {
            name = after;
            true
        }
        None => false,
    })
}

impl Client {
    /// The query type for this user: those for System users have a prefix.
    pub(super) fn query_type(&self, tenant: &'static str) -> &'static str {
        match tenant {
            "vm" if self.settings.is_provider() => "adminVM",
            "vApp" if self.settings.is_provider() => "adminVApp",
            "orgVdc" if self.settings.is_provider() => "adminOrgVdc",
            "catalog" if self.settings.is_provider() => "adminCatalog",
            "vAppTemplate" if self.settings.is_provider() => "adminVAppTemplate",
            "orgVdcStorageProfile" if self.settings.is_provider() => "adminOrgVdcStorageProfile",
            "catalogItem" if self.settings.is_provider() => "adminCatalogItem",
            "task" if self.settings.is_provider() => "adminTask",
            other => other,
        }
    }

    /// Passes every record of every page to `take`, and returns VCD's clock. `filter` is encoded already.
    pub(super) fn records(
        &self,
        call: &Call,
        kind: &'static str,
        filter: &str,
        take: &mut dyn FnMut(Node) -> Result<(), VcdError>,
    ) -> Result<Option<UnixMs>, VcdError> {
        self.records_with(call, kind, filter, "", take)
    }

    /// The same with additional parameters, each after an `&`.
    pub(super) fn records_with(
        &self,
        call: &Call,
        kind: &'static str,
        filter: &str,
        parameters: &str,
        take: &mut dyn FnMut(Node) -> Result<(), VcdError>,
    ) -> Result<Option<UnixMs>, VcdError> {
        self.pages(call, kind, filter, parameters, &[], &mut |got, page| read_page(call, got, page, take))
    }

    /// Passes every page and its number to `read`, which returns true if more follow, and returns VCD's clock. `known`: the
    /// numbers and digests of earlier pages, whose bodies are not needed.
    pub(super) fn pages(
        &self,
        call: &Call,
        kind: &'static str,
        filter: &str,
        parameters: &str,
        known: &[(usize, Digest)],
        read: &mut dyn FnMut(&Received, usize) -> Result<bool, VcdError>,
    ) -> Result<Option<UnixMs>, VcdError> {
        let mut now = None;
        let parameters = format!("sortAsc=name{parameters}");
        for page in 1..=MAX_PAGES {
            let known = known.iter().find(|(number, _)| *number == page).map(|(_, digest)| digest);
            let got = self.fetch_page(call, kind, filter, &parameters, page, known)?;
            let more = read(&got, page)?;
            now = now.or(got.now);
            if !more {
                return Ok(now);
            }
        }
        let why = format!("more than {MAX_PAGES} pages of {kind} records");
        Err(errors::unusable(&call.what, Stage::Read, 200, why))
    }

    /// The first page of a query. True if more follow.
    pub(super) fn first_page(
        &self,
        call: &Call,
        kind: &'static str,
        filter: &str,
        parameters: &str,
        take: &mut dyn FnMut(Node) -> Result<(), VcdError>,
    ) -> Result<bool, VcdError> {
        read_page(call, &self.fetch_page(call, kind, filter, parameters, 1, None)?, 1, take)
    }

    fn fetch_page(
        &self,
        call: &Call,
        kind: &'static str,
        filter: &str,
        parameters: &str,
        page: usize,
        known: Option<&Digest>,
    ) -> Result<Received, VcdError> {
        let url = format!(
            "{}/api/query?type={}&format=records&page={page}&pageSize={PAGE_SIZE}&{parameters}&filter={filter}",
            self.site.root,
            self.query_type(kind)
        );
        self.send_for("application/*+xml", call, Method::GET, &url, None, known)
    }

    /// A link from VCD, on the configured origin.
    pub(super) fn link(&self, call: &Call, href: Option<&str>) -> Result<Href, VcdError> {
        let unusable = |why| errors::unusable(&call.what, call.stage(), 200, why);
        let href = href.ok_or_else(|| unusable("VCD's answer lacks a link".into()))?;
        let root = &self.site.root;
        match self.site.place(href) {
            Some(Cow::Borrowed(href)) => Ok(href.into()),
            Some(Cow::Owned(place)) => {
                // Without the link: it may contain anything.
                if !self.told_alias.swap(true, Ordering::Relaxed) {
                    log::warn!("VCD's links lead to another address; the plugin follows them at {root}, as in url");
                }
                Ok(place.into())
            }
            None => Err(unusable(format!("VCD links to {href}, which is not at {root}"))),
        }
    }
}

/// Passes every record of a page to `take`. True if more pages follow.
pub(super) fn read_page(
    call: &Call,
    got: &Received,
    page: usize,
    take: &mut dyn FnMut(Node) -> Result<(), VcdError>,
) -> Result<bool, VcdError> {
    let unusable = |why: String| errors::unusable(&call.what, Stage::Read, got.status, why);
    let document = xml::read(&got.body).map_err(unusable)?;
    let root = document.root_element();
    if xml::local(root) != "QueryResultRecords" {
        return Err(unusable(format!("not an answer to a query but {}", xml::local(root))));
    }
    let mut records = 0_usize;
    for record in root.children().filter(|n| n.is_element() && xml::local(*n).ends_with("Record")) {
        records += 1;
        take(record)?;
    }
    let number = |name| xml::attribute(root, name).and_then(|n| n.parse::<usize>().ok());
    let more = match (number("total"), number("pageSize")) {
        (Some(total), Some(size)) if size > 0 => page.saturating_mul(size) < total,
        _ => xml::children(root, "Link").any(|link| xml::attribute(link, "rel") == Some("nextPage")),
    };
    if more && records == 0 {
        return Err(unusable(format!("page {page} is empty, although more pages should follow")));
    }
    Ok(more)
}

/// The meaning of a `status` in words.
pub(super) fn power(text: &str) -> Power {
    match text {
        "POWERED_ON" => Power::On,
        "POWERED_OFF" | "PARTIALLY_POWERED_OFF" => Power::Off,
        "SUSPENDED" | "PARTIALLY_SUSPENDED" => Power::Suspended,
        "FAILED_CREATION" | "INCONSISTENT_STATE" | "UNRECOGNIZED" => Power::Failed,
        _ => Power::Other,
    }
}

/// The meaning of a `status` number in an entity.
pub(super) fn power_of_number(number: &str) -> Power {
    match number {
        "4" => Power::On,
        "8" | "20" => Power::Off,
        "3" | "21" => Power::Suspended,
        "-1" | "9" | "7" => Power::Failed,
        _ => Power::Other,
    }
}

/// A `gcStatus`.
pub(super) fn customization(text: Option<&str>) -> Customization {
    match text {
        Some("GC_PENDING") => Customization::Pending,
        Some("POST_GC_PENDING" | "REBOOT_PENDING") => Customization::Working,
        Some("GC_COMPLETE") => Customization::Complete,
        Some("GC_FAILED") => Customization::Failed,
        _ => Customization::Unknown,
    }
}

/// Reads `2026-01-01T10:00:00.000Z`, with or without fractions, with `Z`, `+02:00`, `+0200` or no offset.
pub(super) fn unix_ms(text: &str) -> Option<UnixMs> {
    // By position: a poll has thousands of times.
    let (time, rest) = text.trim().as_bytes().split_at_checked("2026-01-01T10:00:00".len())?;
    let is = |at: usize, sign: u8| time.get(at) == Some(&sign);
    if !(is(4, b'-') && is(7, b'-') && is(10, b'T') && is(13, b':') && is(16, b':')) {
        return None;
    }
    let (year, month, day) = (number(time.get(..4)?)?, number(time.get(5..7)?)?, number(time.get(8..10)?)?);
    let (hour, minute, second) = (number(time.get(11..13)?)?, number(time.get(14..16)?)?, number(time.get(17..)?)?);
    let (fraction, offset) = match rest.strip_prefix(b".") {
        Some(rest) => rest.split_at(rest.iter().take_while(|byte| byte.is_ascii_digit()).count()),
        None => rest.split_at(0),
    };
    let ms = fraction.iter().chain(std::iter::repeat(&b'0')).take(3).fold(0, |ms, c| ms * 10 + i64::from(c - b'0'));
    let known = (1970..=9999).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    if !known || !(0..24).contains(&hour) || !(0..60).contains(&minute) || !(0..=60).contains(&second) {
        return None;
    }
    let offset = match offset {
        [] | [b'Z'] => 0,
        [sign @ (b'+' | b'-'), h, hh, minutes @ ..] => {
            let minutes = minutes.strip_prefix(b":").unwrap_or(minutes);
            (number(&[*h, *hh])? * 60 + number(minutes)?) * if *sign == b'-' { -1 } else { 1 }
        }
        _ => return None,
    };
    // Days since 1970-01-01, counting years from March so that the leap day comes last.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = y * 365 + y / 4 - y / 100 + y / 400 + (m * 153 + 2) / 5 + day - 1 - 719_468;
    let total = (days * 86_400 + hour * 3_600 + minute * 60 + second - offset * 60) * 1_000 + ms;
    UnixMs::try_from(total).ok()
}

/// A number of two or four digits; none at all are 0.
fn number(digits: &[u8]) -> Option<i64> {
    let digit = |n, c: &u8| c.is_ascii_digit().then(|| n * 10 + i64::from(c - b'0'));
    if digits.len() > 4 { None } else { digits.iter().try_fold(0, digit) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_escaped_then_encoded() {
        assert_eq!(value("ci-linux_1.2~x"), "ci-linux_1.2~x");
        assert_eq!(value("a b;c(d),e\\f*ü"), "a%20b%5C%3Bc%5C%28d%5C%29%5C%2Ce%5C%5Cf%2A%C3%BC");
        assert_eq!(value("https://h/api/vdc/1"), "https%3A%2F%2Fh%2Fapi%2Fvdc%2F1");
    }

    #[test]
    fn one_of_several_may_match() {
        assert_eq!(any_of("name", &["a".into()]), "name==a");
        assert_eq!(any_of("name", &["a".into(), "b,c".into()]), "(name==a,name==b%5C%2Cc)");
    }

    #[test]
    fn prefixes_are_compared_exactly() {
        assert!(has_prefix("ci-abc", "ci"));
        for name in ["ci-", "ci", "CI-abc", "cix-abc", "xci-abc", ""] {
            assert!(!has_prefix(name, "ci"), "{name}");
        }
    }

    #[test]
    fn patterns_fit_whole_names() {
        for (pattern, name, does) in [
            ("ubuntu", "ubuntu", true),
            ("ubuntu", "ubuntu-22", false),
            ("ubuntu-22.04-*", "ubuntu-22.04-20260101", true),
            ("ubuntu-22.04-*", "Ubuntu-22.04-1", false),
            ("ubuntu-22.04-*", "ubuntu-22x04-1", false),
            ("*", "", true),
            ("a*a", "a", false),
            ("a*b*c*d", "a-b-c-d", true),
            ("a*b*c*d", "a-c-b-d", false),
            ("*-golden", "debian-golden", true),
            ("**x", "yx", true),
        ] {
            assert_eq!(fits(pattern, name), does, "{pattern} {name}");
        }
    }

    #[test]
    fn times_are_read_in_all_their_forms() {
        assert_eq!(unix_ms("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(unix_ms("2000-02-29T12:34:56.789Z"), Some(951_827_696_789));
        for same in [
            "2026-01-01T10:00:02.000Z",
            "2026-01-01T12:00:02+02:00",
            "2026-01-01T05:30:02.0-0430",
            "2026-01-01T10:00:02",
        ] {
            assert_eq!(unix_ms(same), Some(1_767_261_602_000), "{same}");
        }
        assert_eq!(unix_ms("2026-01-01T10:00:02.5Z"), Some(1_767_261_602_500));
        for bad in [
            "",
            "now",
            "2026-13-01T10:00:00Z",
            "2026-01-01",
            "2026-01-01T10:00Z",
            "2026-01-01T25:00:00Z",
            "-1-1-1T1:1:1Z",
            "2026-01-01T10:00:00é",
            "2026-01-01T10:00:00.1é",
            "2026-01-01T10:00:00+x2:00",
            "2026-01-01T10:00:00+02:000000",
            "2026-1-01T10:00:000",
        ] {
            assert_eq!(unix_ms(bad), None, "{bad}");
        }
    }

    #[test]
    fn states_in_words_and_numbers_agree() {
        for (number, text) in [
            ("-1", "FAILED_CREATION"),
            ("0", "UNRESOLVED"),
            ("3", "SUSPENDED"),
            ("4", "POWERED_ON"),
            ("7", "UNRECOGNIZED"),
            ("8", "POWERED_OFF"),
            ("9", "INCONSISTENT_STATE"),
            ("10", "MIXED"),
            ("20", "PARTIALLY_POWERED_OFF"),
            ("21", "PARTIALLY_SUSPENDED"),
            ("99", "SOMETHING_NEW"),
        ] {
            assert_eq!(power(text), power_of_number(number), "{text}");
        }
        assert_eq!(power("POWERED_ON"), Power::On);
        assert_eq!(power("PARTIALLY_POWERED_OFF"), Power::Off);
        assert_eq!(customization(Some("REBOOT_PENDING")), Customization::Working);
        assert_eq!(customization(Some("NEW")), Customization::Unknown);
    }
}
