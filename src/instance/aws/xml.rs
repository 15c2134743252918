//! Reads elements of XML responses by name, at any depth or of the first item of a list.

use roxmltree::{Document, Node};

/// The text of the first element with this name.
pub fn element(xml: &str, name: &str) -> Option<String> {
    let document = Document::parse(xml).ok()?;
    text_of(document.root(), name)
}

/// The text of a child of the first `member` of the element `list`. Elements with the same name further inside, such as
/// `MinSize` of a warm pool, do not count.
pub fn field(xml: &str, list: &str, name: &str) -> Option<String> {
    let document = Document::parse(xml).ok()?;
    text(first_member(&document, list)?.children().find(|node| node.tag_name().name() == name)?)
}

/// The text of the first element with this name, at any depth inside one of the elements `parts` of that member.
pub fn field_within(xml: &str, list: &str, parts: &[&str], name: &str) -> Option<String> {
    let document = Document::parse(xml).ok()?;
    let part = first_member(&document, list)?.children().find(|node| parts.contains(&node.tag_name().name()))?;
    text_of(part, name)
}

fn first_member<'a, 'input>(document: &'a Document<'input>, list: &str) -> Option<Node<'a, 'input>> {
    let list = document.descendants().find(|node| node.tag_name().name() == list)?;
    list.children().find(|node| node.tag_name().name() == "member")
}

/// For each `member` of the element `list`, the texts of the elements with these names. Errors: the text is not XML.
pub fn members<const N: usize>(xml: &str, list: &str, names: [&str; N]) -> Result<Vec<[Option<String>; N]>, String> {
    let document = Document::parse(xml).map_err(|why| format!("the response is not XML: {why}"))?;
    let lists = document.descendants().filter(|node| node.tag_name().name() == list);
    let items = lists.flat_map(|list| list.children()).filter(|node| node.tag_name().name() == "member");
    Ok(items.map(|item| names.map(|name| text_of(item, name))).collect())
}

fn text_of(node: Node<'_, '_>, name: &str) -> Option<String> {
    text(node.descendants().find(|node| node.tag_name().name() == name)?)
}

fn text(node: Node<'_, '_>) -> Option<String> {
    node.text().map(|text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_elements_and_lists() {
        let xml = "<R xmlns=\"http://a/\"><Hooks><member><Name>a</Name><Time>30</Time></member><member><Name>b&amp;</Name>\
                   </member></Hooks><Other><member><Name>c</Name></member></Other></R>";
        assert_eq!(element(xml, "Name").as_deref(), Some("a"));
        assert_eq!(element("<html>", "Name"), None);
        let some = |text: &str| Some(text.to_owned());
        let hooks = members(xml, "Hooks", ["Name", "Time"]);
        assert_eq!(hooks.expect("the text is XML"), [[some("a"), some("30")], [some("b&"), None]]);
        assert!(members("nonsense", "Hooks", ["Name"]).is_err());
    }

    #[test]
    fn a_field_of_an_item_is_not_that_of_its_parts() {
        let xml = "<R><Groups><member><Warm><MinSize>2</MinSize></Warm><Instances><member><Template><Version>1</Version></Template>\
                   </member></Instances><MinSize>0</MinSize><Template><Version>3</Version></Template></member></Groups></R>";
        assert_eq!(field(xml, "Groups", "MinSize").as_deref(), Some("0"));
        assert_eq!(field(xml, "Groups", "Version"), None);
        assert_eq!(field_within(xml, "Groups", &["Policy", "Template"], "Version").as_deref(), Some("3"));
        assert_eq!(field_within(xml, "Groups", &["Policy"], "Version"), None);
        assert_eq!(field("nonsense", "Groups", "MinSize"), None);
    }
}
