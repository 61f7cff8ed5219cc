//! The query service's language: filters, sorting, paging, over records of named attributes.

use crate::model::FilterEscapes;
use std::cmp::Ordering;

/// The default page size.
pub const DEFAULT_PAGE_SIZE: usize = 25;
/// The largest page size. VCD rejects larger ones.
pub const MAX_PAGE_SIZE: usize = 128;
/// Maximum depth of a filter, and maximum number of its conditions.
const MAX_DEPTH: u32 = 16;
const MAX_CONDITIONS: usize = 256;

/// A record: its attributes with a value, and its metadata.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// Attributes with a value.
    pub attributes: Vec<(&'static str, String)>,
    /// Metadata: key, type, value.
    pub metadata: Vec<(String, String, String)>,
}

impl Record {
    /// Adds an attribute.
    pub fn put(&mut self, name: &'static str, value: impl Into<String>) -> &mut Self {
        self.attributes.push((name, value.into()));
        self
    }

    /// Adds an attribute if there is a value.
    pub fn put_some(&mut self, name: &'static str, value: Option<impl Into<String>>) -> &mut Self {
        if let Some(value) = value {
            self.put(name, value);
        }
        self
    }

    /// The value of an attribute.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(n, _)| *n == name).map(|(_, v)| v.as_str())
    }
}

/// A filter.
#[derive(Clone, Debug)]
pub enum Filter {
    /// All must hold.
    And(Vec<Filter>),
    /// One must hold.
    Or(Vec<Filter>),
    /// Attribute, operator, value.
    Is(String, Operator, String),
}

/// Operators of a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "named for what they are")]
pub enum Operator {
    Eq,
    Ne,
    Gt,
    Ge,
    Lt,
    Le,
}

const OPERATORS: [(&str, Operator); 6] = [
    ("==", Operator::Eq),
    ("!=", Operator::Ne),
    ("=gt=", Operator::Gt),
    ("=ge=", Operator::Ge),
    ("=lt=", Operator::Lt),
    ("=le=", Operator::Le),
];

/// Reads a filter. `known`: the attributes that exist.
pub fn parse(text: &str, known: &[&str], escapes: FilterEscapes) -> Result<Filter, String> {
    let mut parser = Parser { rest: text, known, escapes, conditions: 0 };
    let filter = parser.any_of(0)?;
    if !parser.rest.is_empty() {
        return Err(format!("The filter is not valid near \"{}\".", parser.rest));
    }
    Ok(filter)
}

struct Parser<'a> {
    rest: &'a str,
    known: &'a [&'a str],
    escapes: FilterEscapes,
    conditions: usize,
}

/// True if one pair of brackets encloses the whole filter.
pub fn is_bracketed(text: &str) -> bool {
    let mut depth = 0;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' => _ = chars.next(),
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return text.starts_with('(') && chars.peek().is_none();
        }
    }
    false
}

impl Parser<'_> {
    fn any_of(&mut self, depth: u32) -> Result<Filter, String> {
        let mut all = vec![self.all_of(depth)?];
        while self.eat(',') {
            all.push(self.all_of(depth)?);
        }
        Ok(Filter::Or(all))
    }

    fn all_of(&mut self, depth: u32) -> Result<Filter, String> {
        let mut all = vec![self.term(depth)?];
        while self.eat(';') {
            all.push(self.term(depth)?);
        }
        Ok(Filter::And(all))
    }

    fn eat(&mut self, c: char) -> bool {
        match self.rest.strip_prefix(c) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn term(&mut self, depth: u32) -> Result<Filter, String> {
        if depth > MAX_DEPTH {
            return Err("The filter is nested too deep.".into());
        }
        if self.eat('(') {
            let inner = self.any_of(depth + 1)?;
            return if self.eat(')') { Ok(inner) } else { Err("The filter has an open group.".into()) };
        }
        self.conditions += 1;
        if self.conditions > MAX_CONDITIONS {
            return Err("The filter has too many conditions.".into());
        }
        let found = OPERATORS.iter().filter_map(|(s, op)| self.rest.find(s).map(|at| (at, *s, *op)));
        let Some((at, sign, operator)) = found.min_by_key(|(at, s, _)| (*at, usize::MAX - s.len())) else {
            return Err(format!("The filter has no operator near \"{}\".", self.rest));
        };
        let (name, rest) = self.rest.split_at(at);
        let name = name.to_string();
        let plain = name.split_once(':').map_or(name.as_str(), |(kind, _)| kind);
        if !self.known.contains(&plain) && plain != "metadata" && plain != "metadata@SYSTEM" {
            return Err(format!("Unknown property name {name} in the filter."));
        }
        let mut value = String::new();
        let mut chars = rest.get(sign.len()..).unwrap_or("").char_indices().peekable();
        let mut end = rest.len() - sign.len();
        while let Some((i, c)) = chars.next() {
            match c {
                c if self.escapes == FilterEscapes::Nothing && (c == '(' || c == '\\' || (c == ')' && depth == 0)) => {
                    value.push(c);
                }
                '\\' => value.extend(chars.next().map(|(_, c)| c)),
                '(' | ')' | ',' | ';' => {
                    end = i;
                    break;
                }
                c => value.push(c),
            }
        }
        self.rest = rest.get(sign.len() + end..).unwrap_or("");
        Ok(Filter::Is(name, operator, value))
    }
}

impl Filter {
    /// True if the record passes.
    pub fn matches(&self, record: &Record) -> bool {
        match self {
            Filter::And(all) => all.iter().all(|f| f.matches(record)),
            Filter::Or(all) => all.iter().any(|f| f.matches(record)),
            Filter::Is(name, operator, value) => {
                if let Some(key) = name.strip_prefix("metadata:") {
                    return metadata_matches(record, key, *operator, value);
                }
                let have = record.get(name);
                match operator {
                    Operator::Eq => have.is_some_and(|h| equal(h, value)),
                    Operator::Ne => !have.is_some_and(|h| equal(h, value)),
                    _ => have.is_some_and(|h| ordered(h, value, *operator)),
                }
            }
        }
    }
}

fn metadata_matches(record: &Record, key: &str, operator: Operator, value: &str) -> bool {
    // The value follows its type: STRING:ci-linux.
    let value = value.split_once(':').map_or(value, |(_, v)| v);
    let have = record.metadata.iter().find(|(k, _, _)| k == key).map(|(_, _, v)| v.as_str());
    match operator {
        Operator::Eq => have.is_some_and(|h| equal(h, value)),
        Operator::Ne => !have.is_some_and(|h| equal(h, value)),
        _ => have.is_some_and(|h| ordered(h, value, operator)),
    }
}

/// `*` makes a value a pattern that ignores case. Links are equal if they end in the same UUID.
fn equal(have: &str, wanted: &str) -> bool {
    if wanted.contains('*') {
        return wildcard(&wanted.to_lowercase(), &have.to_lowercase());
    }
    have == wanted || (have.starts_with("http") && uuid_of(wanted).is_some_and(|u| uuid_of(have) == Some(u)))
}

fn uuid_of(text: &str) -> Option<&str> {
    let tail = text.get(text.len().checked_sub(36)?..)?;
    let good = tail.bytes().enumerate().all(|(i, b)| match i {
        8 | 13 | 18 | 23 => b == b'-',
        _ => b.is_ascii_hexdigit(),
    });
    good.then_some(tail)
}

fn wildcard(pattern: &str, text: &str) -> bool {
    let parts: Vec<&str> = pattern.split('*').collect();
    let (Some(first), Some(last)) = (parts.first(), parts.last()) else { return false };
    let Some(rest) = text.strip_prefix(first) else { return false };
    let Some(mut rest) = rest.strip_suffix(last) else { return false };
    for part in parts.get(1..parts.len() - 1).unwrap_or(&[]) {
        let Some(at) = rest.find(part) else { return false };
        rest = rest.get(at + part.len()..).unwrap_or("");
    }
    true
}

/// Compares numbers by value, and all else (dates) as text.
fn compare(a: &str, b: &str) -> Ordering {
    match (a.parse::<i64>(), b.parse::<i64>()) {
        (Ok(a), Ok(b)) => a.cmp(&b),
        _ => a.cmp(b),
    }
}

fn ordered(have: &str, value: &str, operator: Operator) -> bool {
    let order = compare(have, value);
    match operator {
        Operator::Gt => order.is_gt(),
        Operator::Ge => order.is_ge(),
        Operator::Lt => order.is_lt(),
        Operator::Le => order.is_le(),
        Operator::Eq | Operator::Ne => false,
    }
}

/// Sorts by an attribute. Records without it come first. Equal records keep their order.
pub fn sort(records: &mut [Record], attribute: &str, descending: bool) {
    records.sort_by(|a, b| {
        let order = compare(a.get(attribute).unwrap_or(""), b.get(attribute).unwrap_or(""));
        if descending { order.reverse() } else { order }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passes(filter: &str, attributes: &[(&'static str, &str)]) -> bool {
        let mut record = Record::default();
        for (n, v) in attributes {
            record.put(n, *v);
        }
        parse(filter, &["name", "status", "vdc", "memoryMB"], FilterEscapes::Backslash).unwrap().matches(&record)
    }

    #[test]
    fn brackets_around_the_whole_filter_are_recognized() {
        for (text, is) in [
            ("(a==1)", true),
            ("(a==1;b==2)", true),
            ("((a==1),b==2)", true),
            ("(a==1);(b==2)", false),
            ("a==1", false),
            ("(a==\\))", true),
            ("(a==1", false),
            ("", false),
        ] {
            assert_eq!(is_bracketed(text), is, "{text}");
        }
    }

    #[test]
    fn without_escapes_a_backslash_is_an_ordinary_character() {
        let mut record = Record::default();
        record.put("name", "a (b)").put("status", "c\\d");
        for (filter, expected) in [("name==a (b)", true), ("name==a \\(b\\)", false), ("status==c\\d;name==a*", true)] {
            let filter = parse(filter, &["name", "status"], FilterEscapes::Nothing).unwrap();
            assert_eq!(filter.matches(&record), expected, "{filter:?}");
        }
    }

    #[test]
    fn filters_follow_the_grammar() {
        let r = [("name", "ci-Ab;1"), ("status", "POWERED_ON"), ("memoryMB", "8192")];
        for (filter, expected) in [
            ("name==ci-Ab\\;1", true),
            ("name==CI-AB\\;1", false),
            ("name==CI-*", true),
            ("name==*ab*", true),
            ("name==*b", false),
            ("(status==X,status==POWERED_ON);name!=other", true),
            ("status==X;name==ci-*,memoryMB=gt=900", true),
            ("memoryMB=lt=9000;memoryMB=ge=8192", true),
            ("vdc==x", false),
            ("vdc!=x", true),
        ] {
            assert_eq!(passes(filter, &r), expected, "{filter}");
        }
        for bad in ["foo==1", "(name==a", "name", "name==a)", ""] {
            assert!(parse(bad, &["name"], FilterEscapes::Backslash).is_err(), "{bad}");
        }
    }

    #[test]
    fn links_are_compared_by_uuid() {
        let uuid = "01234567-89ab-cdef-0123-456789abcdef";
        let href = format!("http://h/api/vdc/{uuid}");
        assert!(passes(&format!("vdc=={uuid}"), &[("vdc", &href)]));
        assert!(passes(&format!("vdc==urn:vcloud:vdc:{uuid}"), &[("vdc", &href)]));
        assert!(!passes("vdc==01234567-89ab-cdef-0123-456789abcdee", &[("vdc", &href)]));
    }
}
