//! The status of a manager: a page, the same data as JSON, and metrics for Prometheus.
//!
//! All pages are read-only. They cannot reveal a secret: the board contains no tokens, and only the number, project and
//! link of a job. All text from other sources is escaped.

mod board;
pub mod chart;
mod history;
mod html;
mod metrics;
pub mod view;

pub use board::StatusBoard;

use std::sync::Arc;

use crate::manager::workload::Workload;
use crate::monitor::listener::{PageResponse, Pages};
use crate::monitor::text::CONTENT_TYPE;

/// The pools that the pages show; a reload may change the list.
pub type Workloads = Vec<(String, Arc<dyn Workload>)>;

/// The pages of `listen_address`: `/`, `/status`, `/metrics`, `/healthz`. `workloads` returns the current pools.
pub fn pages(board: Arc<StatusBoard>, workloads: impl Fn() -> Workloads + Send + Sync + 'static) -> Pages {
    Arc::new(move |path| match path {
        "/" | "/index.html" => {
            let body = html::page(&board.view(&workloads()));
            Some(PageResponse { status: 200, content_type: "text/html; charset=utf-8", body })
        }
        "/status" => {
            let body = serde_json::to_string(&board.view(&workloads())).unwrap_or_default();
            Some(PageResponse { status: 200, content_type: "application/json", body })
        }
        "/metrics" => {
            Some(PageResponse { status: 200, content_type: CONTENT_TYPE, body: metrics::write(&board, &workloads()) })
        }
        "/healthz" => Some(board.health()),
        _ => None,
    })
}

#[cfg(test)]
mod tests;
