//! `mayfly status`: prints the state of the agent or the manager on this machine.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::ConfigFile;
use super::output::{self, print_line};
use crate::agent::status::AgentStatus;
use crate::manager::status::view::{InstanceView, ManagerView, PoolView, duration};
use crate::monitor::address::split_address;

/// The timeout for the response.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum size of the response.
const MAX_RESPONSE_BYTES: usize = 16 << 20;
/// The maximum number of decisions to print for a pool.
const MAX_DECISIONS: usize = 10;

/// The options of `status`.
#[derive(Args)]
pub struct StatusArgs {
    #[command(flatten)]
    file: ConfigFile,
    /// The address to query [default: the listen_address of the configuration]
    #[arg(short, long, value_name = "HOST:PORT")]
    address: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Queries the process and prints its state.
pub fn main(options: &StatusArgs) -> Result<ExitCode, String> {
    let address = match &options.address {
        Some(address) => address.clone(),
        None => options.file.load()?.config.listen_address.ok_or_else(|| {
            format!(
                "{} has no `listen_address`, so nothing answers; write for example listen_address = \"127.0.0.1:9252\"",
                options.file.path().display()
            )
        })?,
    };
    let body = get(&address)?;
    let unreadable = |why: serde_json::Error| {
        format!("the response of {address} is not the status of mayfly ({why}); is another program at this address?")
    };
    let value: serde_json::Value = serde_json::from_str(&body).map_err(unreadable)?;
    if options.json {
        print_line!("{value:#}");
        return Ok(ExitCode::SUCCESS);
    }
    let text = match value.get("kind").and_then(serde_json::Value::as_str) {
        Some("manager") => manager_text(&serde_json::from_value(value).map_err(unreadable)?),
        _ => agent_text(&serde_json::from_value(value).map_err(unreadable)?),
    };
    output::write(format_args!("{}", printable(&text)));
    Ok(ExitCode::SUCCESS)
}

fn get(address: &str) -> Result<String, String> {
    let (host, port) = split_address(address)?;
    // An address that means all interfaces cannot be connected to; localhost reaches the same process.
    let host = if matches!(host, "" | "0.0.0.0" | "::") { "localhost" } else { host };
    let error = |what: &str, why: &dyn std::fmt::Display| {
        format!("cannot {what} {host}:{port}: {why}; is `mayfly run` or `mayfly manager` running here?")
    };
    let found: Vec<SocketAddr> = (host, port).to_socket_addrs().map_err(|why| error("find", &why))?.collect();
    let mut failure = error("reach", &"the name has no address");
    for address in found {
        match TcpStream::connect_timeout(&address, TIMEOUT) {
            Ok(stream) => return request(stream, host).map_err(|why| error("query", &why)),
            Err(why) => failure = error("reach", &why),
        }
    }
    Err(failure)
}

fn request(mut stream: TcpStream, host: &str) -> Result<String, String> {
    let io = |why: std::io::Error| why.to_string();
    stream.set_read_timeout(Some(TIMEOUT)).map_err(io)?;
    stream.set_write_timeout(Some(TIMEOUT)).map_err(io)?;
    stream
        .write_all(format!("GET /status HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes())
        .map_err(io)?;
    let mut response = Vec::new();
    let mut buffer = [0; 16 * 1024];
    // The loop does not wait for the end of the connection, because the server may keep it open.
    while !is_complete(&response) && response.len() < MAX_RESPONSE_BYTES {
        match stream.read(&mut buffer).map_err(io)? {
            0 => break,
            length => response.extend_from_slice(&buffer[..length]),
        }
    }
    let response = String::from_utf8_lossy(&response).into_owned();
    let (head, body) = response.split_once("\r\n\r\n").ok_or("the response is not HTTP")?;
    match head.split(' ').nth(1) {
        Some("200") => Ok(body.to_owned()),
        status => Err(format!("status {} for /status", status.unwrap_or("?"))),
    }
}

/// Whether a response contains all bytes of its `Content-Length`.
fn is_complete(response: &[u8]) -> bool {
    let Some(end) = response.windows(4).position(|window| window == b"\r\n\r\n") else { return false };
    let head = String::from_utf8_lossy(&response[..end]).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    length.is_some_and(|length| response.len() >= end + 4 + length)
}

/// Removes control characters, which could move the cursor or change colours: parts of the text come from jobs.
fn printable(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() && letter != '\n' { '\u{fffd}' } else { letter }).collect()
}

// Writing to a `String` cannot fail, here and below.
fn agent_text(agent: &AgentStatus) -> String {
    let mut text = format!("mayfly agent {}, system id {}\n", agent.version, agent.system_id);
    let reason = agent.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
    let _ = writeln!(text, "phase          {}{reason}", agent.phase);
    for unfit in &agent.unfit {
        let _ = writeln!(text, "unfit          {unfit}");
    }
    let _ = writeln!(text, "jobs           {} of {} at once", agent.jobs.len(), agent.concurrent);
    if let Some(left) = agent.builds_left {
        let _ = writeln!(text, "builds left    {left}");
    }
    if let Some(idle) = agent.idle_seconds {
        let _ = writeln!(text, "idle for       {}", duration(idle));
    }
    match (agent.idle_timeout_seconds, agent.idle_left_seconds) {
        (Some(timeout), Some(left)) => {
            let _ = writeln!(text, "idle time left {} of {}", duration(left), duration(timeout));
        }
        (Some(timeout), None) => {
            let _ = writeln!(text, "idle timeout   {}", duration(timeout));
        }
        (None, _) => text.push_str("idle timeout   none\n"),
    }
    for policy in &agent.policies {
        let _ = writeln!(text, "policy         {policy}");
    }
    if !agent.jobs.is_empty() {
        let rows = agent.jobs.iter().map(|job| {
            let stage = format!("{} ({})", job.stage, duration(job.stage_seconds));
            [job.id.clone(), job.runner.clone(), duration(job.seconds), stage]
        });
        text.push('\n');
        text.push_str(&table(["JOB", "RUNNER", "RUNNING FOR", "STAGE"], rows));
    }
    text
}

fn manager_text(manager: &ManagerView) -> String {
    let mut text = format!("mayfly manager {}, running since {}\n", manager.version, manager.started);
    for view in &manager.pools {
        text.push('\n');
        write_pool(&mut text, view);
    }
    if manager.pools.is_empty() {
        text.push_str("no pool\n");
    }
    text
}

fn write_pool(text: &mut String, pool: &PoolView) {
    let _ = writeln!(text, "pool {}", pool.name);
    let _ = writeln!(text, "  {}", pool.reason);
    if let Some(group) = &pool.group {
        let most = group.maximum.map_or_else(|| "no limit".to_owned(), |most| most.to_string());
        let _ = writeln!(text, "  group {}: desired {}, limits {} to {most}", group.name, group.desired, group.minimum);
    }
    let _ = writeln!(text, "  policy in force: {} ({})", pool.policy, pool.intake);
    let _ = writeln!(
        text,
        "  jobs: {} waiting, {} running; {} more may be held",
        pool.held, pool.running, pool.hold_budget
    );
    if let Some(why) = &pool.stopped {
        let _ = writeln!(text, "  growth is stopped: {why}");
    }
    if let Some(why) = &pool.engine_error {
        let _ = writeln!(text, "  an engine call fails: {why}");
    }
    if !pool.instances.is_empty() {
        let row = |instance: &InstanceView| {
            let jobs: Vec<String> =
                instance.jobs.iter().map(|job| format!("#{} {} ({})", job.id, job.project, job.phase)).collect();
            [
                instance.instance.clone(),
                instance.state.clone(),
                duration(instance.age_seconds),
                instance.idle_seconds.map(duration).unwrap_or_default(),
                instance.builds.to_string(),
                jobs.join(", "),
            ]
        };
        let table = table(["INSTANCE", "STATE", "AGE", "IDLE", "BUILDS", "JOBS"], pool.instances.iter().map(row));
        table.lines().for_each(|line| {
            let _ = writeln!(text, "  {line}");
        });
    }
    for decision in pool.decisions.iter().take(MAX_DECISIONS) {
        let _ = writeln!(text, "  {} {}", decision.time, decision.text);
    }
}

/// Formats a table; each column is as wide as its longest text.
fn table<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let rows: Vec<[String; N]> = std::iter::once(head.map(str::to_owned)).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let line = |row: &[String; N]| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::status::RunningJob;

    #[test]
    fn an_agent_shows_its_jobs_and_the_time_that_is_left() {
        let job = RunningJob {
            id: "42".to_owned(),
            runner: "fleet".to_owned(),
            seconds: 90,
            stage: "step_script".to_owned(),
            stage_seconds: 61,
        };
        let status = AgentStatus {
            version: "1".to_owned(),
            system_id: "s_1".to_owned(),
            phase: "draining".to_owned(),
            reason: Some("max_builds".to_owned()),
            concurrent: 2,
            builds_left: Some(3),
            idle_timeout_seconds: Some(600),
            jobs: vec![job],
            ..AgentStatus::default()
        };
        let expected = "mayfly agent 1, system id s_1\nphase          draining (max_builds)\njobs           1 of 2 at once\n\
                        builds left    3\nidle timeout   10m\n\nJOB  RUNNER  RUNNING FOR  STAGE\n\
                        42   fleet   1m           step_script (1m)\n";
        assert_eq!(agent_text(&status), expected);
        let idle = AgentStatus { jobs: Vec::new(), idle_seconds: Some(60), idle_left_seconds: Some(540), ..status };
        assert!(agent_text(&idle).contains("idle for       1m\nidle time left 9m of 10m\n"), "{}", agent_text(&idle));
    }

    #[test]
    fn a_terminal_is_not_controlled_by_the_text_of_others() {
        assert_eq!(printable("a\u{1b}[31mb\nc\r"), "a\u{fffd}[31mb\nc\u{fffd}");
    }
}
