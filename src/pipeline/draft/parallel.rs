//! Reads the keyword `parallel`: a number or a matrix.

use std::sync::Arc;

use super::reader::KeywordReader;
use crate::pipeline::problem::Class;
use crate::pipeline::syntax::Node;

/// The number of jobs that one `parallel` may create.
const MAX_JOBS: usize = 200;

/// A list of rows. Each row gives all combinations of its values; the first key varies slowest.
pub type Matrix = Vec<MatrixRow>;

/// The keys of a row, each with its values.
pub type MatrixRow = Vec<(Arc<str>, Vec<Arc<str>>)>;

/// One combination of matrix values: each key with one of its values.
pub type Combination = Vec<(Arc<str>, Arc<str>)>;

/// Keyword `parallel`.
#[derive(Clone, Debug)]
pub enum Parallel {
    /// This many equal jobs.
    Count(usize),
    /// One job for each combination.
    Matrix(Matrix),
}

impl KeywordReader<'_, '_> {
    /// Reads `parallel`, a number or a mapping with `matrix`.
    pub fn parallel(&mut self, node: &Node) -> Option<Parallel> {
        if let Some(count) = node.integer() {
            return match usize::try_from(count) {
                Ok(count @ 1..=MAX_JOBS) => Some(Parallel::Count(count)),
                Ok(1..) => self.too_many_jobs(node, "parallel", count),
                _ => self.bad_value(node, "parallel", &format!("a number from 1 to {MAX_JOBS}")),
            };
        }
        if node.mapping().is_none() {
            return self.bad_value(
                node,
                "parallel",
                &format!("a number from 1 to {MAX_JOBS} or a mapping with `matrix`"),
            );
        }
        self.check_mapping(node, "parallel", &["matrix"])?;
        match node.get("matrix") {
            Some(matrix) => self.matrix(matrix, "parallel:matrix").map(Parallel::Matrix),
            None => self.missing_key(node, "parallel", "`matrix`"),
        }
    }

    fn too_many_jobs<T>(&mut self, node: &Node, keyword: &str, count: impl std::fmt::Display) -> Option<T> {
        let message = format!("`{keyword}` makes {count} jobs; up to {MAX_JOBS} are allowed");
        self.error(Class::MatrixTooBig, node.at, message)
    }

    /// Reads a matrix and checks its size.
    pub fn matrix(&mut self, node: &Node, keyword: &str) -> Option<Matrix> {
        let Some(items) = node.list().filter(|items| !items.is_empty()) else {
            return self.bad_value(node, keyword, "a list of mappings");
        };
        let mut matrix = Matrix::new();
        let mut total = 0_usize;
        for item in items {
            let row = self.row(item, keyword)?;
            let size = row.iter().fold(1_usize, |size, (_, values)| size.saturating_mul(values.len()));
            total = total.saturating_add(size);
            matrix.push(row);
        }
        match total {
            0..=MAX_JOBS => Some(matrix),
            _ => self.too_many_jobs(node, keyword, total),
        }
    }

    fn row(&mut self, item: &Node, keyword: &str) -> Option<MatrixRow> {
        let Some(mapping) = item.mapping().filter(|mapping| !mapping.is_empty()) else {
            return self.bad_value(item, keyword, "a list of mappings of names and values");
        };
        mapping
            .iter()
            .map(|(key, entry)| Some((Arc::clone(key), self.row_values(&entry.node, keyword, key)?)))
            .collect()
    }

    /// The values of a key: one, or a list without lists inside.
    fn row_values(&mut self, node: &Node, keyword: &str, key: &str) -> Option<Vec<Arc<str>>> {
        let keyword_path = format!("{keyword}:{key}");
        let single = std::slice::from_ref(node);
        let items = node.list().unwrap_or(single);
        if items.is_empty() {
            return self.bad_value(node, &keyword_path, "at least one value");
        }
        if items.len() > MAX_JOBS {
            return self.too_many_jobs(node, keyword, items.len());
        }
        // GitLab refuses values such as `3.10`, which YAML reads as 3.1, and `true`.
        if let Some(item) = items.iter().find(|item| item.text().is_none() && item.integer().is_none()) {
            return self.bad_value(item, &keyword_path, "text and whole numbers; put other values into quotes");
        }
        items.iter().map(|item| self.printed(item, &keyword_path)).collect()
    }
}

/// All combinations of a matrix, row by row.
pub fn combinations(matrix: &Matrix) -> Vec<Combination> {
    let mut out = Vec::new();
    for row in matrix {
        let mut partial: Vec<Combination> = vec![Vec::with_capacity(row.len())];
        for (key, values) in row {
            let longer = |combination: &Combination| {
                let combination = combination.clone();
                values.iter().map(move |value| {
                    let mut longer = combination.clone();
                    longer.push((Arc::clone(key), Arc::clone(value)));
                    longer
                })
            };
            partial = partial.iter().flat_map(longer).collect();
        }
        out.append(&mut partial);
    }
    out
}

/// `name: [a, b]`
pub fn combination_name(name: &str, combination: &[(Arc<str>, Arc<str>)]) -> String {
    let values: Vec<&str> = combination.iter().map(|(_, value)| &**value).collect();
    format!("{name}: [{}]", values.join(", "))
}
