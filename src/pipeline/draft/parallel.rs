//! Reads the keyword `parallel`: a number or a matrix.

use std::sync::Arc;

use super::reader::KeywordReader;
use crate::pipeline::problem::Class;
use crate::pipeline::syntax::Node;

/// The number of jobs that one `parallel` may create.
const JOBS_LIMIT: usize = 200;

/// A list of rows. Each row gives all combinations of its values; the first key varies slowest.
pub type Matrix = Vec<Vec<(Arc<str>, Vec<Arc<str>>)>>;

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
    pub fn parallel(&mut self, node: &Node) -> Option<Parallel> {
        if let Some(count) = node.integer() {
            return match usize::try_from(count) {
                Ok(count @ 1..=JOBS_LIMIT) => Some(Parallel::Count(count)),
                Ok(1..) => self.too_big(node, "parallel", count),
                _ => self.bad(node, "parallel", &format!("a number from 1 to {JOBS_LIMIT}")),
            };
        }
        if node.mapping().is_none() {
            return self.bad(node, "parallel", &format!("a number from 1 to {JOBS_LIMIT} or a mapping with `matrix`"));
        }
        self.mapping(node, "parallel", &["matrix"])?;
        match node.get("matrix") {
            Some(matrix) => self.matrix(matrix, "parallel:matrix").map(Parallel::Matrix),
            None => self.bad(node, "parallel", "a number or a mapping with `matrix`"),
        }
    }

    fn too_big<T>(&mut self, node: &Node, keyword: &str, count: impl std::fmt::Display) -> Option<T> {
        let message = format!("`{keyword}` makes {count} jobs; up to {JOBS_LIMIT} are allowed");
        self.error(Class::MatrixTooBig, node.at, message)
    }

    /// Reads a matrix and checks its size.
    pub fn matrix(&mut self, node: &Node, keyword: &str) -> Option<Matrix> {
        if node.list().is_none() {
            return self.bad(node, keyword, "a list of mappings");
        }
        let items = self.context.flatten(node, keyword, self.job)?;
        let mut matrix = Matrix::with_capacity(items.len());
        let mut total = 0_usize;
        for item in &items {
            let Some(mapping) = item.mapping().filter(|mapping| !mapping.is_empty()) else {
                return self.bad(item, keyword, "a list of mappings of names and values");
            };
            let mut row = Vec::with_capacity(mapping.len());
            let mut size = 1_usize;
            for (key, entry) in mapping.iter() {
                let place = format!("{keyword}:{key}");
                let items = self.context.flatten(&entry.node, &place, self.job)?;
                let mut values = Vec::with_capacity(items.len());
                for item in &items {
                    // GitLab refuses `3.10` and `true`, whose text would differ from what is written.
                    if item.text().is_none() && item.integer().is_none() {
                        return self.bad(item, &place, "text and whole numbers; put other values into quotes");
                    }
                    values.push(self.printed(item, &place)?);
                }
                if values.is_empty() {
                    return self.bad(&entry.node, &place, "one value at least");
                }
                size = size.saturating_mul(values.len());
                row.push((Arc::clone(key), values));
            }
            total = total.saturating_add(size);
            matrix.push(row);
        }
        if matrix.is_empty() {
            return self.bad(node, keyword, "a list of mappings");
        }
        if total > JOBS_LIMIT {
            return self.too_big(node, keyword, total);
        }
        Some(matrix)
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
