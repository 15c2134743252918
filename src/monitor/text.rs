//! Prometheus' text format (exposition format 0.0.4).

use std::fmt::Write;

use crate::version::{REVISION, VERSION, architecture};

/// The content type of a response.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The kind of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// Only increases while the process runs.
    Counter,
    /// The current value.
    Gauge,
    /// The number of observations up to each bound.
    Histogram,
}

impl MetricKind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// Labels of one sample.
pub type Labels<'a> = [(&'a str, &'a str)];

/// A histogram of durations in seconds.
#[derive(Clone, Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    /// One element more than bounds: the last one counts observations above all bounds.
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    /// An empty histogram; bounds must increase.
    pub fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: vec![0; bounds.len() + 1], sum: 0.0 }
    }

    /// Counts an observation.
    pub fn observe(&mut self, seconds: f64) {
        let at = self.bounds.iter().position(|bound| seconds <= *bound).unwrap_or(self.bounds.len());
        self.counts[at] += 1;
        self.sum += seconds;
    }
}

/// The text under construction. All samples of a metric follow its head.
#[derive(Default)]
pub struct Page(String);

impl Page {
    /// Starts a metric.
    pub fn metric(&mut self, name: &'static str, kind: MetricKind, help: &str) -> Metric<'_> {
        // Writing to a string cannot fail, here and below.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {}", kind.as_str());
        Metric { page: self, name }
    }

    /// The version of this program.
    pub fn version(&mut self) {
        let help = "A constant 1, with the version as labels.";
        let labels = [
            ("name", "mayfly"),
            ("version", VERSION),
            ("revision", REVISION),
            ("os", "linux"),
            ("architecture", architecture()),
        ];
        self.metric("gitlab_runner_version_info", MetricKind::Gauge, help).sample(&labels, 1.0);
    }

    /// A metric with one sample and no labels.
    pub fn single(&mut self, name: &'static str, kind: MetricKind, help: &str, value: f64) {
        self.metric(name, kind, help).sample(&[], value);
    }

    pub fn finish(self) -> String {
        self.0
    }
}

/// A metric whose samples are being written.
pub struct Metric<'a> {
    page: &'a mut Page,
    name: &'static str,
}

impl Metric<'_> {
    pub fn sample(&mut self, labels: &Labels<'_>, value: f64) {
        self.line("", labels, None, value);
    }

    pub fn histogram(&mut self, labels: &Labels<'_>, histogram: &Histogram) {
        let mut total = 0;
        for (at, count) in histogram.counts.iter().enumerate() {
            total += count;
            let bound = histogram.bounds.get(at).map_or_else(|| "+Inf".to_owned(), f64::to_string);
            self.line("_bucket", labels, Some(&bound), total as f64);
        }
        self.line("_sum", labels, None, histogram.sum);
        self.line("_count", labels, None, total as f64);
    }

    fn line(&mut self, suffix: &str, labels: &Labels<'_>, bound: Option<&str>, value: f64) {
        let text = &mut self.page.0;
        let _ = write!(text, "{}{suffix}", self.name);
        let bound = bound.map(|bound| ("le", bound));
        for (at, (name, value)) in labels.iter().copied().chain(bound).enumerate() {
            let _ = write!(text, "{}{name}=\"", if at == 0 { '{' } else { ',' });
            escape(text, value);
            text.push('"');
        }
        if !labels.is_empty() || bound.is_some() {
            text.push('}');
        }
        let _ = writeln!(text, " {value}");
    }
}

fn escape(text: &mut String, value: &str) {
    for character in value.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            other => text.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_help_type_labels_and_values() {
        let mut page = Page::default();
        let mut metric = page.metric("jobs", MetricKind::Gauge, "Jobs now.");
        metric.sample(&[("runner", "a\"b\\c\nd"), ("state", "running")], 2.0);
        metric.sample(&[], 0.5);
        let expected = "# HELP jobs Jobs now.\n# TYPE jobs gauge\n\
                        jobs{runner=\"a\\\"b\\\\c\\nd\",state=\"running\"} 2\njobs 0.5\n";
        assert_eq!(page.finish(), expected);
    }

    #[test]
    fn a_histogram_counts_cumulatively() {
        let mut histogram = Histogram::new(&[0.5, 10.0]);
        [0.1, 0.5, 3.0, 60.0].into_iter().for_each(|seconds| histogram.observe(seconds));
        let mut page = Page::default();
        page.metric("took", MetricKind::Histogram, "x").histogram(&[("stage", "s")], &histogram);
        let text = page.finish();
        let lines: Vec<&str> = text.lines().skip(2).collect();
        let expected = [
            "took_bucket{stage=\"s\",le=\"0.5\"} 2",
            "took_bucket{stage=\"s\",le=\"10\"} 3",
            "took_bucket{stage=\"s\",le=\"+Inf\"} 4",
            "took_sum{stage=\"s\"} 63.6",
            "took_count{stage=\"s\"} 4",
        ];
        assert_eq!(lines, expected);
    }
}
