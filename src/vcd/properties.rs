//! The guest's OVF environment: guest properties and user data for cloud-init. A create carries them, although VCD's
//! documentation does not mention it. So the VM is looked up, and missing properties are set with a separate request.
//! Their values are secret: errors and logs show only the keys.

use super::errors::{self, Stage};
use super::watch::is_dispensable;
use super::xml::{self, Writer};
use super::{Call, Client, NAMESPACE, OVF, Settings};
use crate::cloud::{Secret, VcdError};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use roxmltree::Node;
use ureq::http::Method;

/// The OVF property from which cloud-init reads its user data, in base64.
pub const USER_DATA: &str = "user-data";
/// The media type of all sections of a VM.
pub(super) const SECTIONS: &str = "application/vnd.vmware.vcloud.productSections+xml";

/// User data as VCD gets it.
pub(super) fn encoded(user_data: &Secret) -> String {
    BASE64_STANDARD.encode(user_data.reveal())
}

pub(super) fn are_wished(settings: &Settings) -> bool {
    settings.user_data.is_some() || !settings.guest_properties.is_empty()
}

/// Keys and values of all properties in the settings.
fn wished(settings: &Settings) -> Vec<(&str, String)> {
    let user_data = settings.user_data.as_ref().map(|data| (USER_DATA, encoded(data)));
    let own = settings.guest_properties.iter().map(|(key, value)| (key.as_str(), value.reveal().to_owned()));
    own.chain(user_data).collect()
}

/// One `ovf:ProductSection`, as far as it matters to a guest.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Section {
    class: String,
    instance: String,
    properties: Vec<Property>,
}

#[derive(Clone, Debug, PartialEq)]
struct Property {
    key: String,
    kind: String,
    value: String,
}

fn read(root: Node) -> Vec<Section> {
    let of = |node: Node, name: &str| xml::attribute(node, name).unwrap_or_default().to_owned();
    let property = |node: Node| {
        let value = xml::child(node, "Value").and_then(|value| xml::attribute(value, "value"));
        let value = value.or(xml::attribute(node, "value")).unwrap_or_default().to_owned();
        Property { key: of(node, "key"), kind: of(node, "type"), value }
    };
    let section = |node: Node| Section {
        class: of(node, "class"),
        instance: of(node, "instance"),
        properties: xml::children(node, "Property").map(property).collect(),
    };
    xml::children(root, "ProductSection").map(section).collect()
}

/// The keys of the settings that are missing, or have another value.
pub(super) fn missing(settings: &Settings, sections: &[Section]) -> Vec<String> {
    let there = |key: &str, value: &str| {
        sections.iter().flat_map(|s| &s.properties).any(|property| property.key == key && property.value == value)
    };
    wished(settings).into_iter().filter(|(key, value)| !there(key, value)).map(|(key, _)| key.to_owned()).collect()
}

fn write_property(w: &mut Writer, key: &str, kind: &str, value: &str) {
    let kind = if kind.is_empty() { "string" } else { kind };
    let property = [("ovf:key", key), ("ovf:type", kind), ("ovf:userConfigurable", "true"), ("ovf:value", value)];
    w.empty("ovf:Property", &property);
}

/// The properties in the settings, as a section of a create.
pub(super) fn write(w: &mut Writer, settings: &Settings) {
    w.open("ovf:ProductSection", &[]);
    w.leaf("ovf:Info", "The guest's properties");
    for (key, value) in wished(settings) {
        write_property(w, key, "string", &value);
    }
    w.close();
}

/// The body that adds the properties in the settings to those of a VM; or the element with a character that XML does
/// not allow.
pub(super) fn body(settings: &Settings, mut sections: Vec<Section>) -> Result<String, &'static str> {
    let ours = wished(settings);
    for section in &mut sections {
        section.properties.retain(|property| ours.iter().all(|(key, _)| *key != property.key));
    }
    if !sections.iter().any(|section| section.class.is_empty() && section.instance.is_empty()) {
        sections.push(Section::default());
    }
    let mut w = Writer::new();
    w.open("ProductSectionList", &[("xmlns", NAMESPACE), ("xmlns:ovf", OVF)]);
    let mut ours = Some(ours);
    for section in &sections {
        let (class, instance) = (section.class.as_str(), section.instance.as_str());
        let named = [("ovf:class", class), ("ovf:instance", instance)];
        let named: Vec<(&str, &str)> = named.into_iter().filter(|(_, name)| !name.is_empty()).collect();
        w.open("ovf:ProductSection", &named);
        w.leaf("ovf:Info", "The guest's properties");
        for property in &section.properties {
            write_property(&mut w, &property.key, &property.kind, &property.value);
        }
        if named.is_empty() {
            for (key, value) in ours.take().unwrap_or_default() {
                write_property(&mut w, key, "string", &value);
            }
        }
        w.close();
    }
    w.finish()
}

impl Client {
    /// A VM's sections, from its own document or a separate request; `None` if no property is set, or VCD does not show
    /// them to this user. After a 500 they are read again: the VM may lack its user data.
    pub(super) fn product_sections(&self, call: &Call, href: &str, vm: Node) -> Result<Option<Vec<Section>>, VcdError> {
        if !are_wished(&self.settings) {
            return Ok(None);
        }
        let shown = read(vm);
        if !shown.is_empty() {
            return Ok(Some(shown));
        }
        let reading = Call { changes: false, what: call.what.clone(), ..*call };
        match self.send(&reading, Method::GET, &format!("{href}/productSections/"), None) {
            Ok(got) => {
                let document =
                    xml::read(&got.body).map_err(|why| errors::unusable(&call.what, Stage::Read, got.status, why))?;
                Ok(Some(read(document.root_element())))
            }
            Err(e) if e.status < 500 && is_dispensable(call, &e) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_template_brought_stays() {
        let settings = Settings {
            guest_properties: vec![("mine".into(), Secret::new("new & <b>"))],
            user_data: Some(Secret::new("#cloud-config")),
            ..super::super::create::tests::example()
        };
        let text = r#"<ProductSectionList xmlns:o="ovf"><o:ProductSection o:class="c" o:instance="1"><o:Info>i</o:Info>
            <o:Property o:key="theirs" o:type="boolean" o:value="True"/>
            <o:Property o:key="mine" o:type="string"><o:Value o:value="old"/></o:Property></o:ProductSection>
            </ProductSectionList>"#;
        let sections = read(xml::read(text).unwrap().root_element());
        assert_eq!(missing(&settings, &sections), ["mine", "user-data"]);
        let body = body(&settings, sections).unwrap();
        let document = xml::read(&body).unwrap();
        let sections = read(document.root_element());
        assert_eq!(missing(&settings, &sections), [""; 0]);
        let property =
            |key: &str, kind: &str, value: &str| Property { key: key.into(), kind: kind.into(), value: value.into() };
        let theirs = Section {
            class: "c".into(),
            instance: "1".into(),
            properties: vec![property("theirs", "boolean", "True")],
        };
        let ours = [property("mine", "string", "new & <b>"), property("user-data", "string", "I2Nsb3VkLWNvbmZpZw==")];
        assert_eq!(sections, [theirs, Section { properties: ours.to_vec(), ..Section::default() }]);
    }
}
