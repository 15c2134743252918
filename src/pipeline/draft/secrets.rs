//! Reads the keywords `id_tokens` and `secrets`, whose values only a GitLab server can provide.

use std::sync::Arc;

use super::reader::KeywordReader;
use crate::pipeline::plan::SecretVariable;
use crate::pipeline::syntax::Node;

impl KeywordReader<'_, '_> {
    /// Reads the names of `id_tokens`.
    pub fn id_tokens(&mut self, node: &Node) -> Option<Vec<Arc<str>>> {
        let Some(mapping) = node.mapping() else { return self.bad_value(node, "id_tokens", "a mapping") };
        for (key, entry) in mapping.iter() {
            let keyword_path = format!("id_tokens:{key}");
            self.check_mapping(&entry.node, &keyword_path, &["aud"])?;
            match entry.node.get("aud") {
                Some(aud) => self.text_or_flat_texts(aud, &format!("{keyword_path}:aud"))?,
                None => return self.missing_key(&entry.node, &keyword_path, "`aud`"),
            };
        }
        let message = "`id_tokens`: only a GitLab server signs tokens; set variables of these names to local values";
        self.context.report.warn(node.at, self.job, message);
        Some(mapping.keys().cloned().collect())
    }

    /// Reads the names of `secrets`, and whether the job gets a file.
    pub fn secrets(&mut self, node: &Node) -> Option<Vec<SecretVariable>> {
        let Some(mapping) = node.mapping() else { return self.bad_value(node, "secrets", "a mapping") };
        let mut secrets = Vec::with_capacity(mapping.len());
        for (key, entry) in mapping.iter() {
            if entry.node.mapping().is_none() {
                return self.bad_value(&entry.node, &format!("secrets:{key}"), "a mapping that names a vault");
            }
            let file = match entry.node.get("file") {
                Some(file) => self.boolean(file, &format!("secrets:{key}:file"))?,
                None => true,
            };
            secrets.push(SecretVariable { key: Arc::clone(key), file });
        }
        let message = "`secrets`: secrets are not fetched from vaults; set variables of these names to local values";
        self.context.report.warn(node.at, self.job, message);
        Some(secrets)
    }
}
