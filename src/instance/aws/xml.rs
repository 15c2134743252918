//! Reads elements of XML answers by name, at any depth.

use roxmltree::{Document, Node};

/// The text of the first element with this name.
pub fn element(xml: &str, name: &str) -> Option<String> {
    let document = Document::parse(xml).ok()?;
    text_of(document.root(), name)
}

/// For each `member` of the element `list`, the texts of the elements with these names. Errors: the answer is not XML.
pub fn members<const N: usize>(xml: &str, list: &str, names: [&str; N]) -> Result<Vec<[Option<String>; N]>, String> {
    let document = Document::parse(xml).map_err(|why| format!("the answer is not XML: {why}"))?;
    let lists = document.descendants().filter(|node| node.tag_name().name() == list);
    let items = lists.flat_map(|list| list.children()).filter(|node| node.tag_name().name() == "member");
    Ok(items.map(|item| names.map(|name| text_of(item, name))).collect())
}

fn text_of(node: Node<'_, '_>, name: &str) -> Option<String> {
    let found = node.descendants().find(|node| node.tag_name().name() == name)?;
    found.text().map(|text| text.trim().to_owned())
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
        assert_eq!(hooks.unwrap(), [[some("a"), some("30")], [some("b&"), None]]);
        assert!(members("nonsense", "Hooks", ["Name"]).is_err());
    }
}
