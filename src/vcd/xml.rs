//! XML output and input: a writer that escapes, and a reader with limits. It knows nothing about VCD's documents.

use roxmltree::{Document, Node, ParsingOptions};

/// Maximum number of XML nodes in an answer.
pub(super) const MAX_XML_NODES: u32 = 100_000;

/// Maximum number of namespace declarations in an answer: with nesting, the reader's work grows with their square.
pub(super) const MAX_XML_NAMESPACES: usize = 4_096;

/// Maximum nesting of elements in an answer. VCD's own have about ten levels.
pub(super) const MAX_XML_DEPTH: usize = 64;

/// Maximum number of attributes of an element: the reader's work grows with their square. VCD's own have about 60.
pub(super) const MAX_XML_ATTRIBUTES: usize = 512;

/// Maximum length of an attribute, in bytes.
pub(super) const MAX_XML_ATTRIBUTE: usize = 256 * 1024;

/// Writes one document. The caller writes elements in the order of the schema.
pub(super) struct Writer {
    out: String,
    open: Vec<&'static str>,
    bad: Option<&'static str>,
}

impl Writer {
    /// Starts a document.
    pub(super) fn new() -> Self {
        Self { out: String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>"), open: Vec::new(), bad: None }
    }

    /// Opens an element; [`Writer::close`] ends it.
    pub(super) fn open(&mut self, name: &'static str, attributes: &[(&str, &str)]) {
        self.start(name, attributes);
        self.out.push('>');
        self.open.push(name);
    }

    /// Ends the element that was opened last.
    pub(super) fn close(&mut self) {
        if let Some(name) = self.open.pop() {
            self.end(name);
        }
    }

    /// An element with text only.
    pub(super) fn leaf(&mut self, name: &'static str, text: &str) {
        self.leaf_with(name, &[], text);
    }

    /// An element with text and attributes.
    pub(super) fn leaf_with(&mut self, name: &'static str, attributes: &[(&str, &str)], text: &str) {
        self.start(name, attributes);
        self.out.push('>');
        self.escape(name, text);
        self.end(name);
    }

    /// An element with attributes only.
    pub(super) fn empty(&mut self, name: &'static str, attributes: &[(&str, &str)]) {
        self.start(name, attributes);
        self.out.push_str("/>");
    }

    /// The document, or the name of an element with a character that XML does not allow.
    pub(super) fn finish(mut self) -> Result<String, &'static str> {
        while !self.open.is_empty() {
            self.close();
        }
        match self.bad {
            None => Ok(self.out),
            Some(name) => Err(name),
        }
    }

    fn start(&mut self, name: &'static str, attributes: &[(&str, &str)]) {
        self.out.push('<');
        self.out.push_str(name);
        for (key, value) in attributes {
            self.out.push(' ');
            self.out.push_str(key);
            self.out.push_str("=\"");
            self.escape(name, value);
            self.out.push('"');
        }
    }

    fn end(&mut self, name: &str) {
        self.out.push_str("</");
        self.out.push_str(name);
        self.out.push('>');
    }

    fn escape(&mut self, name: &'static str, text: &str) {
        for c in text.chars() {
            match c {
                '&' => self.out.push_str("&amp;"),
                '<' => self.out.push_str("&lt;"),
                '>' => self.out.push_str("&gt;"),
                '"' => self.out.push_str("&quot;"),
                // A reader may fold raw ones.
                '\t' => self.out.push_str("&#9;"),
                '\n' => self.out.push_str("&#10;"),
                '\r' => self.out.push_str("&#13;"),
                '\u{0}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => self.bad = Some(name),
                _ => self.out.push(c),
            }
        }
    }
}

/// Parses a document, without DTD and within the limits above. The error describes the mistake. (The reader itself does
/// not recurse, and entities cannot be declared.)
pub(super) fn read(text: &str) -> Result<Document<'_>, String> {
    if text.matches("xmlns").nth(MAX_XML_NAMESPACES).is_some() {
        return Err(format!("more than {MAX_XML_NAMESPACES} namespaces"));
    }
    // A tag contains no `<`, and an attribute has at least the length of `a=""`: usually no tag is long enough to be
    // counted, which would take long.
    let longest = text.split('<').map(str::len).max().unwrap_or_default();
    let may_have_many = longest / "a=''".len() > MAX_XML_ATTRIBUTES;
    if may_have_many && text.split('<').any(|tag| attributes(tag) > MAX_XML_ATTRIBUTES) {
        return Err(format!("an element with more than {MAX_XML_ATTRIBUTES} attributes"));
    }
    let options = ParsingOptions { allow_dtd: false, nodes_limit: MAX_XML_NODES, ..ParsingOptions::default() };
    let document = Document::parse_with_options(text, options).map_err(|e| e.to_string())?;
    // The open elements, from the root.
    let mut open: Vec<Node> = Vec::new();
    for node in document.root().descendants().filter(Node::is_element) {
        while open.last().is_some_and(|last| Some(*last) != node.parent()) {
            open.pop();
        }
        open.push(node);
        if open.len() > MAX_XML_DEPTH {
            return Err(format!("nested deeper than {MAX_XML_DEPTH} elements"));
        }
        if longest > MAX_XML_ATTRIBUTE && node.attributes().any(|a| a.value().len() > MAX_XML_ATTRIBUTE) {
            return Err(format!("an attribute longer than {MAX_XML_ATTRIBUTE} bytes"));
        }
    }
    Ok(document)
}

/// Upper limit for the attributes of a tag: each has a value in quotation marks. `text` is what follows its `<`.
fn attributes(text: &str) -> usize {
    let (mut count, mut quote) = (0, None);
    for byte in text.bytes() {
        match (byte, quote) {
            (_, Some(end)) if byte == end => quote = None,
            (b'"' | b'\'', None) => (count, quote) = (count + 1, Some(byte)),
            (b'>', None) => break,
            _ => {}
        }
    }
    count
}

/// The element's name without its prefix.
pub(super) fn local<'a>(node: Node<'a, '_>) -> &'a str {
    node.tag_name().name()
}

/// The first child element of this name, whatever its prefix.
pub(super) fn child<'a, 'i>(node: Node<'a, 'i>, name: &str) -> Option<Node<'a, 'i>> {
    children(node, name).next()
}

/// The child elements of this name, whatever their prefix.
pub(super) fn children<'a, 'i, 'n>(
    node: Node<'a, 'i>,
    name: &'n str,
) -> impl Iterator<Item = Node<'a, 'i>> + use<'a, 'i, 'n> {
    node.children().filter(move |n| n.is_element() && local(*n) == name)
}

/// The text of a child element, trimmed, if there is any.
pub(super) fn text<'a>(node: Node<'a, '_>, name: &str) -> Option<&'a str> {
    child(node, name)?.text().map(str::trim).filter(|t| !t.is_empty())
}

/// An attribute's value, whatever its prefix, if it is there and not empty.
pub(super) fn attribute<'a>(node: Node<'a, '_>, name: &str) -> Option<&'a str> {
    node.attributes().find(|a| a.name() == name).map(|a| a.value()).filter(|v| !v.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let nasty = "a<b>&\"c\"\td]]>\r\ne\u{e9}\u{1f600}";
        let mut w = Writer::new();
        w.open("Root", &[("name", nasty)]);
        w.leaf("Script", nasty);
        w.empty("Empty", &[]);
        let text = w.finish().unwrap();
        assert!(text.contains("&#13;&#10;"), "{text}");
        assert!(!text.contains('\n') && !text.contains("]]>"), "{text}");
        let document = read(&text).unwrap();
        let root = document.root_element();
        assert_eq!(attribute(root, "name"), Some(nasty));
        assert_eq!(child(root, "Script").unwrap().text(), Some(nasty));
    }

    #[test]
    fn attributes_are_counted_by_element_and_bounded() {
        for (text, count) in [
            ("", 0),
            ("a/>", 0),
            ("a b='1' c=\"2\">it's \"text\" = 'x'", 2),
            ("a b='>' c='\"' d = '/>'/>", 3),
            ("a b='", 1),
        ] {
            assert_eq!(attributes(text), count, "{text}");
        }
        let with = |count: usize| format!("<a {}/>", (0..count).map(|n| format!("a{n}='>' ")).collect::<String>());
        assert_eq!(read(&with(MAX_XML_ATTRIBUTES)).unwrap().root_element().attributes().len(), MAX_XML_ATTRIBUTES);
        assert!(read(&with(MAX_XML_ATTRIBUTES + 1)).unwrap_err().contains("attributes"));
        let script = "echo \"a=b\" 'c' ".repeat(MAX_XML_ATTRIBUTES);
        assert!(read(&format!("<a>{script}</a>")).is_ok());
    }

    #[test]
    fn characters_that_xml_cannot_carry_are_refused_by_element() {
        for bad in ["\u{0}", "\u{b}", "\u{1b}[0m", "\u{ffff}"] {
            let mut w = Writer::new();
            w.open("Root", &[]);
            w.leaf("AdminPassword", bad);
            assert_eq!(w.finish(), Err("AdminPassword"));
        }
    }

    #[test]
    fn names_match_whatever_the_prefix() {
        let text = r#"<a:Root xmlns:a="u"><a:B a:k="1"> x </a:B></a:Root>"#;
        let document = read(text).unwrap();
        let root = document.root_element();
        assert_eq!((local(root), super::text(root, "B")), ("Root", Some("x")));
        assert_eq!(attribute(child(root, "B").unwrap(), "k"), Some("1"));
    }

    #[test]
    fn hostile_documents_are_refused() {
        assert!(read("<!DOCTYPE a [<!ENTITY b \"c\">]><a>&b;</a>").unwrap_err().contains("DTD"));
        let wide = format!("<a>{}</a>", "<b/>".repeat(MAX_XML_NODES as usize));
        assert!(read(&wide).unwrap_err().contains("nodes limit"));
        let namespaces = format!("<a>{}</a>", "<b xmlns='u'/>".repeat(MAX_XML_NAMESPACES + 1));
        assert!(read(&namespaces).unwrap_err().contains("namespaces"));
        let deep = |n| format!("{}{}", "<a>".repeat(n), "</a>".repeat(n));
        assert!(read(&deep(MAX_XML_DEPTH)).is_ok());
        assert!(read(&deep(MAX_XML_DEPTH + 1)).unwrap_err().contains("nested deeper"));
        assert!(read(&deep(90_000)).unwrap_err().contains("nested deeper"));
        let long = |n| format!("<a b='{}'/>", "x".repeat(n));
        assert!(read(&long(MAX_XML_ATTRIBUTE)).is_ok());
        assert!(read(&long(MAX_XML_ATTRIBUTE + 1)).unwrap_err().contains("attribute longer"));
        assert!(read("<a><b>").is_err());
    }
}
