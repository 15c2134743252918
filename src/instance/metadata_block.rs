//! Blocks the access of jobs to the cloud credentials of the machine: nftables rules reject packets to the addresses of
//! the metadata service.
//!
//! The rules match processes of the jobs' users and packets that the machine forwards for containers. The table belongs
//! to the agent and is replaced as a whole, so that a restart changes nothing, other tables are not touched, and jobs
//! that outlive the agent stay blocked.

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use nix::unistd::{Uid, setfsuid};

use crate::sync;

/// The addresses that hand out credentials: the metadata service and the container endpoints.
const ADDRESSES: [IpAddr; 5] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 23)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23)),
];

/// Names of the counters of rejected packets.
const PROCESS_COUNTER: &str = "processes";
const CONTAINER_COUNTER: &str = "containers";

/// Timeout of a probe, which must not get an answer.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// Where `nft` may be; the `PATH` of a service need not include it.
const PATH: &str = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin";

/// A user that runs jobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobUser {
    /// Login name.
    pub name: String,
    pub uid: u32,
}

/// The loaded rules.
pub struct MetadataBlock {
    rules: String,
    users: Vec<JobUser>,
    /// The table as `nft` lists it right after loading.
    listing: Mutex<String>,
}

impl MetadataBlock {
    /// Loads the rules and verifies that they reject processes of `users`. Errors: the rules cannot be loaded or do not
    /// work; what to do.
    pub fn install(users: &[JobUser]) -> Result<Self, String> {
        let subordinate = fs::read_to_string("/etc/subuid").unwrap_or_default();
        let rules = rules(&ranges(users, &subordinate));
        let block = Self { rules, users: users.to_vec(), listing: Mutex::default() };
        block.load_rules()?;
        Ok(block)
    }

    /// Checks that the rules are unchanged, and restores them if not. Called before each job. Errors: jobs could reach
    /// the metadata service.
    pub fn ensure(&self) -> Result<(), String> {
        let expected = sync::lock(&self.listing).clone();
        if list_table().is_ok_and(|found| found == expected) {
            return Ok(());
        }
        log::error!("the nftables table inet mayfly was removed or changed; restoring it");
        self.load_rules()
    }

    fn load_rules(&self) -> Result<(), String> {
        nft(&["-f", "-"], &self.rules)?;
        *sync::lock(&self.listing) = list_table()?;
        self.users.iter().try_for_each(verify)
    }

    /// Removes the rules, if there are any. Errors: `nft` failed.
    pub fn remove() -> Result<(), String> {
        // Deleting a table that does not exist is an error, so it is created first.
        nft(&["-f", "-"], "table inet mayfly\ndelete table inet mayfly\n").map(drop)
    }

    /// Checks whether rules are loaded, without changing anything. Errors: there are none, or `nft` failed.
    pub fn check() -> Result<(), String> {
        list_table().map(drop)
    }
}

/// The version of `nft`. Fails if `nft` is unusable.
pub fn check_tool() -> Result<String, String> {
    nft(&["--version"], "").map(|version| version.trim().to_owned())
}

/// The user ids, and the subordinate ids that these users may map in user namespaces.
fn ranges(users: &[JobUser], subordinate: &str) -> Vec<(u32, u32)> {
    let mut ranges: Vec<(u32, u32)> = users.iter().map(|user| (user.uid, user.uid)).collect();
    for line in subordinate.lines() {
        let mut fields = line.trim().split(':');
        let Some((owner, first, count)) =
            fields.next().zip(fields.next()).zip(fields.next()).map(|((a, b), c)| (a, b, c))
        else {
            continue;
        };
        let ours = users.iter().any(|user| owner == user.name || owner == user.uid.to_string());
        let (Ok(first), Ok(count)) = (first.parse::<u32>(), count.parse::<u32>()) else { continue };
        if ours && count > 0 {
            ranges.push((first, first.saturating_add(count - 1)));
        }
    }
    merged(ranges)
}

/// Sorts and merges the ranges, because an nftables set rejects overlaps.
fn merged(mut ranges: Vec<(u32, u32)>) -> Vec<(u32, u32)> {
    ranges.sort_unstable();
    let mut merged: Vec<(u32, u32)> = Vec::new();
    for (first, last) in ranges {
        match merged.last_mut() {
            Some((_, end)) if first <= end.saturating_add(1) => *end = (*end).max(last),
            _ => merged.push((first, last)),
        }
    }
    merged
}

/// The table with its rules. They run at priority `mangle`, before addresses are translated.
fn rules(users: &[(u32, u32)]) -> String {
    let list = |addresses: &[IpAddr]| addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ");
    let (four, mut six): (Vec<IpAddr>, Vec<IpAddr>) = ADDRESSES.iter().partition(|address| address.is_ipv4());
    six.extend(four.iter().flat_map(ipv6_forms));
    let families = [("ip", list(&four)), ("ip6", list(&six))];
    let users =
        users.iter().map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") });
    let users = users.collect::<Vec<_>>().join(", ");
    let verdict = "reject with icmpx type admin-prohibited";
    let mut output = String::new();
    let mut forward = String::new();
    for (family, addresses) in families {
        let destination = format!("{family} daddr {{ {addresses} }} counter name");
        if !users.is_empty() {
            output += &format!("meta skuid {{ {users} }} {destination} {PROCESS_COUNTER} {verdict}\n");
        }
        forward += &format!("{destination} {CONTAINER_COUNTER} {verdict}\n");
    }
    format!(
        "table inet mayfly\ndelete table inet mayfly\ntable inet mayfly {{\n\
         counter {PROCESS_COUNTER} {{ }}\ncounter {CONTAINER_COUNTER} {{ }}\n\
         chain output {{\ntype filter hook output priority mangle; policy accept;\n{output}}}\n\
         chain forward {{\ntype filter hook forward priority mangle; policy accept;\n{forward}}}\n}}\n"
    )
}

/// The IPv6 forms of an IPv4 address. A socket for the IPv4-mapped form sends IPv4 packets; a NAT64 gateway accepts the
/// translated form.
fn ipv6_forms(address: &IpAddr) -> Vec<IpAddr> {
    /// The NAT64 prefix (RFC 6052).
    const NAT64: u128 = 0x64_ff9b << 96;
    let IpAddr::V4(address) = address else { return Vec::new() };
    let translated = Ipv6Addr::from_bits(NAT64 | u128::from(address.to_bits()));
    vec![address.to_ipv6_mapped().into(), translated.into()]
}

fn list_table() -> Result<String, String> {
    nft(&["--stateless", "list", "table", "inet", "mayfly"], "")
}

/// The number of rejected packets of processes.
fn refused_packets() -> Result<u64, String> {
    let text = nft(&["list", "counter", "inet", "mayfly", PROCESS_COUNTER], "")?;
    let mut words = text.split_ascii_whitespace().skip_while(|word| *word != "packets").skip(1);
    words.next().and_then(|number| number.parse().ok()).ok_or_else(|| format!("nft shows no counter: {text}"))
}

fn nft(arguments: &[&str], input: &str) -> Result<String, String> {
    let run = || -> io::Result<std::process::Output> {
        let mut child = Command::new("nft")
            .args(arguments)
            .env_clear()
            .env("PATH", PATH)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut pipe) = child.stdin.take() {
            pipe.write_all(input.as_bytes())?;
        }
        child.wait_with_output()
    };
    match run() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Err("the program `nft` is missing; install nftables".to_owned())
        }
        Err(error) => Err(format!("nft: {error}")),
        Ok(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(output) => {
            let stderr = String::from_utf8_lossy(&output.stderr);
            Err(format!("nft: {}", stderr.lines().next().unwrap_or("failed without a message")))
        }
    }
}

/// Tries to connect to the metadata service as a job would. Errors: the connection succeeds, or no rejected packet was
/// counted.
fn verify(user: &JobUser) -> Result<(), String> {
    for address in ADDRESSES.iter().filter(|address| is_main(address)) {
        let before = refused_packets()?;
        let tried = connect_as(user.uid, SocketAddr::new(*address, 80))?;
        if tried.is_ok() {
            return Err(format!("user {} reaches {address} although the rules are loaded", user.name));
        }
        // Without a route, no packet is sent that could be rejected.
        let has_no_route = tried.is_err_and(|error| is_no_route(&error));
        if !has_no_route && refused_packets()? == before {
            return Err(format!("no rejected packet was counted when user {} connected to {address}", user.name));
        }
    }
    Ok(())
}

/// One address of each family is enough, because one rule has all addresses of a family.
fn is_main(address: &IpAddr) -> bool {
    *address == ADDRESSES[0] || *address == ADDRESSES[3]
}

fn is_no_route(error: &io::Error) -> bool {
    use nix::libc::{EADDRNOTAVAIL, EAFNOSUPPORT, ENETUNREACH};
    matches!(error.raw_os_error(), Some(ENETUNREACH | EADDRNOTAVAIL | EAFNOSUPPORT))
}

/// Connects as another user. nftables matches the file system user id of the thread, which a thread can change for
/// itself. Errors: the thread cannot change it.
fn connect_as(uid: u32, address: SocketAddr) -> Result<io::Result<()>, String> {
    let user = Uid::from_raw(uid);
    let probe = move || {
        setfsuid(user);
        // `setfsuid` returns the previous id and no error.
        (setfsuid(user) == user).then(|| TcpStream::connect_timeout(&address, PROBE_TIMEOUT).map(drop))
    };
    let thread = sync::spawn("probe", 64 * 1024, probe);
    let tried = thread.map_err(|error| format!("cannot create a thread for the probe: {error}"))?.join().ok().flatten();
    tried.ok_or_else(|| format!("the agent cannot connect as uid {uid}; run it as root"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str, uid: u32) -> JobUser {
        JobUser { name: name.to_owned(), uid }
    }

    #[test]
    fn subordinate_ids_are_blocked_with_their_user() {
        let subordinate = "ci:100000:65536\nother:200000:65536\n1001:165536:10\nci:x:1\nci:5\n\nci:300000:0\n";
        let found = ranges(&[user("ci", 1001), user("other2", 1002)], subordinate);
        assert_eq!(found, [(1001, 1002), (100_000, 165_545)]);
        assert_eq!(ranges(&[user("a", 7)], "a:4294967290:100"), [(7, 7), (4_294_967_290, u32::MAX)]);
    }

    #[test]
    fn the_table_is_replaced_as_a_whole_and_has_every_address() {
        let rules = rules(&[(1001, 1001), (100_000, 165_535)]);
        assert!(rules.starts_with("table inet mayfly\ndelete table inet mayfly\ntable inet mayfly {"));
        for address in ADDRESSES.into_iter().chain(ADDRESSES.iter().flat_map(ipv6_forms)) {
            let words = rules.split([' ', ',']).filter(|word| *word == address.to_string());
            assert_eq!(words.count(), 2, "{address} in {rules}");
        }
        assert_eq!(rules.matches("meta skuid { 1001, 100000-165535 } ip").count(), 2, "{rules}");
        assert!(rules.contains("::ffff:169.254.169.254") && rules.contains("64:ff9b::a9fe:a9fe"), "{rules}");
        assert!(!super::rules(&[]).contains("skuid"), "no user, no rule for processes");
    }

    #[test]
    fn only_root_can_connect_as_another_user() {
        let closed = SocketAddr::from(([127, 0, 0, 1], 1));
        let tried = connect_as(65_534, closed);
        assert_eq!(tried.is_ok(), Uid::effective().is_root() || Uid::effective().as_raw() == 65_534);
    }
}
