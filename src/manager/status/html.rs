//! The status page: one document without external assets. It is complete without JavaScript, and JavaScript updates it.

use std::fmt::Write;
use std::sync::OnceLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use ring::digest::{SHA256, digest};

use super::chart::{Series, draw};
use super::view::{HistoryView, InstanceView, JobView, ManagerView, PoolView, duration};
use crate::markup::escape;

const STYLE: &str = include_str!("page.css");
/// Fetches the page again and replaces the changed parts. The script never converts text to HTML.
const SCRIPT: &str = include_str!("page.js");
/// The minimum number of points of the chart.
const MIN_POINTS: usize = 120;

/// The whole document.
pub fn page(manager: &ManagerView) -> String {
    let mut body = String::new();
    // Writing to a string cannot fail, here and below.
    let _ = write!(
        body,
        "<header><h1>mayfly manager</h1><p>version {} · running since {} · now <time id=\"now\">{}</time> \
         <span id=\"live\"></span></p></header><main>",
        escape(&manager.version),
        escape(&readable_time(&manager.started)),
        escape(&readable_time(&manager.time))
    );
    if manager.pools.is_empty() {
        body.push_str("<p class=\"empty\">No pool is configured.</p>");
    }
    for pool in &manager.pools {
        write_pool(&mut body, pool);
    }
    body.push_str("</main>");
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>mayfly manager</title>\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><meta name=\"referrer\" content=\"no-referrer\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{}\"><noscript><meta http-equiv=\"refresh\" content=\"30\"></noscript>\
         <style>{STYLE}</style></head><body>{body}<script>{SCRIPT}</script></body></html>\n",
        content_security_policy()
    )
}

/// Only the script of the page may run, and it may connect only to this server.
fn content_security_policy() -> &'static str {
    static POLICY: OnceLock<String> = OnceLock::new();
    POLICY.get_or_init(|| {
        let hash = STANDARD.encode(digest(&SHA256, SCRIPT.as_bytes()).as_ref());
        format!(
            "default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{hash}'; connect-src 'self'; base-uri 'none'; \
             form-action 'none'"
        )
    })
}

fn write_pool(body: &mut String, pool: &PoolView) {
    let _ = write!(body, "<section><h2>{}</h2>", escape(&pool.name));
    if let Some(why) = &pool.stopped {
        let _ = write!(body, "<p class=\"alarm\"><strong>Growth is stopped:</strong> {}</p>", escape(why));
    }
    if let Some(why) = &pool.engine_error {
        let _ = write!(body, "<p class=\"alarm\"><strong>An engine call fails:</strong> {}</p>", escape(why));
    }
    write_numbers(body, pool);
    let _ = write!(
        body,
        "<p class=\"reason\">{}</p><p>Policy in force: <strong>{}</strong> ({})</p>",
        escape(&pool.reason),
        escape(&pool.policy),
        escape(&pool.intake)
    );
    write_chart(body, &pool.history);
    // The decisions are above the instances, because there may be hundreds of instances.
    write_decisions(body, pool);
    write_instances(body, &pool.instances);
    body.push_str("</section>");
}

/// Formats a time: `2026-07-06 12:00:00 UTC`.
fn readable_time(time: &str) -> String {
    time.replacen('T', " ", 1).replacen('Z', " UTC", 1)
}

fn write_numbers(body: &mut String, pool: &PoolView) {
    let count =
        |wanted: &[&str]| pool.instances.iter().filter(|instance| wanted.contains(&instance.state.as_str())).count();
    let mut numbers = vec![
        ("jobs waiting", pool.held.to_string(), "waiting"),
        ("jobs running", pool.running.to_string(), "running"),
        ("instances busy", count(&["busy"]).to_string(), "busy"),
        ("instances idle", count(&["idle"]).to_string(), "idle"),
        ("starting", count(&["creating", "starting"]).to_string(), ""),
        ("wanted", pool.wanted.to_string(), ""),
    ];
    if let Some(group) = &pool.group {
        let maximum = group.maximum.map_or_else(|| "no limit".to_owned(), |most| most.to_string());
        numbers.push(("desired", group.desired.to_string(), ""));
        numbers.push(("group limits", format!("{} – {maximum}", group.minimum), ""));
    }
    body.push_str("<dl>");
    for (name, value, class) in numbers {
        let _ = write!(body, "<div class=\"{class}\"><dt>{name}</dt><dd>{value}</dd></div>");
    }
    body.push_str("</dl>");
}

/// Two charts, jobs and instances, over the same hours.
fn write_chart(body: &mut String, history: &HistoryView) {
    let seconds = i64::try_from(history.interval_seconds).unwrap_or(30).max(1);
    let padded = |values: &[u32]| {
        let mut padded = vec![0; MIN_POINTS.saturating_sub(values.len())];
        padded.extend_from_slice(values);
        padded
    };
    let (waiting, running) = (padded(&history.waiting), padded(&history.running));
    let (idle, busy) = (padded(&history.idle), padded(&history.busy));
    let count = i64::try_from(running.len()).unwrap_or(i64::MAX);
    let from = history.end.saturating_sub(count.saturating_mul(seconds));
    let ticks: Vec<(f64, String)> =
        (0..=4).map(|part| (f64::from(part) / 4.0, clock(from + (history.end - from) * i64::from(part) / 4))).collect();
    let jobs = [Series::running_jobs(&running), Series::waiting_jobs(&waiting)];
    let instances = [Series::busy_instances(&busy), Series::idle_instances(&idle)];
    let _ = write!(
        body,
        "<div class=\"charts\">{}{}</div>",
        draw("Waiting and running jobs over the last hours", &jobs, &ticks),
        draw("Idle and busy instances over the last hours", &instances, &ticks)
    );
}

fn clock(second: i64) -> String {
    Timestamp::from_second(second)
        .map(|time| TimeZone::system().to_datetime(time).strftime("%a %H:%M").to_string())
        .unwrap_or_default()
}

fn write_instances(body: &mut String, instances: &[InstanceView]) {
    let _ = write!(body, "<h3>Instances</h3>");
    if instances.is_empty() {
        body.push_str("<p class=\"empty\">No instance.</p>");
        return;
    }
    body.push_str(
        "<div class=\"scroll\"><table><thead><tr><th>instance</th><th>state</th><th>age</th><th>idle</th><th>builds</th><th>agent</th>\
         <th>jobs</th></tr></thead><tbody>",
    );
    for instance in instances {
        let idle = instance.idle_seconds.map(duration).unwrap_or_default();
        let silent = match instance.silent_seconds {
            Some(silent) if silent > 90 => format!(" <em>silent for {}</em>", duration(silent)),
            _ => String::new(),
        };
        let _ = write!(
            body,
            "<tr><td><code>{}</code></td><td class=\"state {2}\">{2}{silent}</td><td>{1}</td><td>{idle}</td><td>{3}</td>\
             <td>{4}</td><td>",
            escape(&instance.instance),
            duration(instance.age_seconds),
            escape(&instance.state),
            instance.builds,
            escape(&instance.version)
        );
        instance.jobs.iter().for_each(|job| write_job(body, job));
        body.push_str("</td></tr>");
    }
    body.push_str("</tbody></table></div>");
}

fn write_job(body: &mut String, job: &JobView) {
    let text = format!("#{} {}", job.id, job.project);
    // Only http and https links are shown, because the link comes from GitLab.
    let is_page = job.link.starts_with("https://") || job.link.starts_with("http://");
    let name = match is_page {
        true => format!("<a href=\"{}\" rel=\"noreferrer\">{}</a>", escape(&job.link), escape(&text)),
        false => escape(&text),
    };
    let _ = write!(
        body,
        "<div>{name} <span class=\"phase\">{}, {}</span></div>",
        escape(&job.phase),
        duration(job.seconds)
    );
}

fn write_decisions(body: &mut String, pool: &PoolView) {
    if pool.decisions.is_empty() {
        return;
    }
    body.push_str("<h3>Recent decisions</h3><ol class=\"decisions\">");
    for decision in &pool.decisions {
        let _ =
            write!(body, "<li><time>{}</time> {}</li>", escape(&readable_time(&decision.time)), escape(&decision.text));
    }
    body.push_str("</ol>");
}
