//! Keeps the machine's cloud credentials from jobs: what a job sends to the metadata addresses is refused by rules of
//! our own in the kernel's packet filter (nftables).
//!
//! Two ways lead there: a process of the job's user on the machine, and a packet of a container that the machine
//! forwards. The table is ours alone and replaced as a whole, so that a restart changes nothing, nobody else's rules
//! are touched, and jobs that outlive the agent stay shut out.

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use nix::unistd::{Uid, setfsuid};

/// Where credentials of the instance are handed out: the metadata service, and the endpoints for containers.
const ADDRESSES: [IpAddr; 5] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 23)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23)),
];

/// Packets of jobs that were refused are counted under these names.
const PROCESS_COUNTER: &str = "processes";
const CONTAINER_COUNTER: &str = "containers";

/// How long a probe waits for an answer that must not come.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// Where the tool may be; a service's own `PATH` need not hold it.
const PATH: &str = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin";

/// A user that jobs run as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobUser {
    /// Login name.
    pub name: String,
    /// Number.
    pub uid: u32,
}

/// The rules that are in force.
pub struct MetadataBlock {
    rules: String,
    users: Vec<JobUser>,
    /// The table as the kernel shows it when it is as we made it.
    listing: Mutex<String>,
}

impl MetadataBlock {
    /// Puts the rules in force and proves that they hold: for processes of `users`, and for all containers. Errors: they
    /// cannot be put in force, or do not hold; what to do.
    pub fn install(users: &[JobUser]) -> Result<Self, String> {
        let subordinate = fs::read_to_string("/etc/subuid").unwrap_or_default();
        let rules = rules(&ranges(users, &subordinate));
        let block = Self { rules, users: users.to_vec(), listing: Mutex::default() };
        block.load_rules()?;
        Ok(block)
    }

    /// Looks whether the rules are still in force, and puts them back where somebody took them away. To be called
    /// before each job. Errors: jobs would reach the metadata.
    pub fn ensure(&self) -> Result<(), String> {
        let expected = self.listing.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if list().is_ok_and(|found| found == expected) {
            return Ok(());
        }
        log::error!("the nftables table inet mayfly was removed or changed; restoring it");
        self.load_rules()
    }

    fn load_rules(&self) -> Result<(), String> {
        nft(&["-f", "-"], &self.rules)?;
        *self.listing.lock().unwrap_or_else(PoisonError::into_inner) = list()?;
        self.users.iter().try_for_each(verify)
    }

    /// Takes the rules away, where there are any. Errors: the tool's.
    pub fn remove() -> Result<(), String> {
        // Deleting what is not there is an error; making it first is none.
        nft(&["-f", "-"], "table inet mayfly\ndelete table inet mayfly\n").map(drop)
    }

    /// What is in force right now, without changing anything. Errors: nothing is, or nobody can tell.
    pub fn check() -> Result<(), String> {
        list().map(drop)
    }
}

/// Whether rules can be made here at all. Errors: what is missing.
pub fn check_tool() -> Result<String, String> {
    nft(&["--version"], "").map(|version| version.trim().to_owned())
}

/// The users' numbers, and those that may stand for them in user namespaces of their own making.
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

/// Sorted and without overlaps, which a set of the packet filter does not take.
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

/// The table, replaced as a whole. It looks at packets before addresses are translated (`mangle`).
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
        let there = format!("{family} daddr {{ {addresses} }} counter name");
        if !users.is_empty() {
            output += &format!("meta skuid {{ {users} }} {there} {PROCESS_COUNTER} {verdict}\n");
        }
        forward += &format!("{there} {CONTAINER_COUNTER} {verdict}\n");
    }
    format!(
        "table inet mayfly\ndelete table inet mayfly\ntable inet mayfly {{\n\
         counter {PROCESS_COUNTER} {{ }}\ncounter {CONTAINER_COUNTER} {{ }}\n\
         chain output {{\ntype filter hook output priority mangle; policy accept;\n{output}}}\n\
         chain forward {{\ntype filter hook forward priority mangle; policy accept;\n{forward}}}\n}}\n"
    )
}

/// Forms in which a packet of version 6 may carry an address of version 4. A socket for the first one sends packets of
/// version 4; a translator between the machine and the cloud may take either.
fn ipv6_forms(address: &IpAddr) -> Vec<IpAddr> {
    /// The prefix that translators use (RFC 6052).
    const NAT64: u128 = 0x64_ff9b << 96;
    let IpAddr::V4(address) = address else { return Vec::new() };
    let translated = Ipv6Addr::from_bits(NAT64 | u128::from(address.to_bits()));
    vec![address.to_ipv6_mapped().into(), translated.into()]
}

fn list() -> Result<String, String> {
    nft(&["--stateless", "list", "table", "inet", "mayfly"], "")
}

/// How many packets of processes were refused so far.
fn refused_packets() -> Result<u64, String> {
    let text = nft(&["list", "counter", "inet", "mayfly", PROCESS_COUNTER], "")?;
    let mut words = text.split_ascii_whitespace().skip_while(|word| *word != "packets").skip(1);
    words.next().and_then(|number| number.parse().ok()).ok_or_else(|| format!("nft shows no counter: {text}"))
}

fn nft(arguments: &[&str], input: &str) -> Result<String, String> {
    let told = || -> io::Result<std::process::Output> {
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
    match told() {
        Err(error) if error.kind() == ErrorKind::NotFound => Err("there is no `nft`; install nftables".to_owned()),
        Err(error) => Err(format!("nft: {error}")),
        Ok(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(format!("nft: {}", said.lines().next().unwrap_or("failed without a word")))
        }
    }
}

/// Tries to reach the metadata as a job would. Errors: it can be reached, or nothing shows that it was refused.
fn verify(user: &JobUser) -> Result<(), String> {
    for address in ADDRESSES.iter().filter(|address| is_main(address)) {
        let before = refused_packets()?;
        let tried = connect_as(user.uid, SocketAddr::new(*address, 80))?;
        if tried.is_ok() {
            return Err(format!("user {} reaches {address} in spite of the rules", user.name));
        }
        // Without a way there, no packet sets out that could be refused.
        let no_way = tried.is_err_and(|error| has_no_route(&error));
        if !no_way && refused_packets()? == before {
            return Err(format!("nothing shows that user {} is kept from {address}", user.name));
        }
    }
    Ok(())
}

/// One of each family is enough: the others stand in the same rules.
fn is_main(address: &IpAddr) -> bool {
    *address == ADDRESSES[0] || *address == ADDRESSES[3]
}

fn has_no_route(error: &io::Error) -> bool {
    use nix::libc::{EADDRNOTAVAIL, EAFNOSUPPORT, ENETUNREACH};
    matches!(error.raw_os_error(), Some(ENETUNREACH | EADDRNOTAVAIL | EAFNOSUPPORT))
}

/// Connects as another user would: the packet filter goes by the user of the thread for files, which is a thread's own.
/// Errors: the thread cannot become that user.
fn connect_as(uid: u32, address: SocketAddr) -> Result<io::Result<()>, String> {
    let user = Uid::from_raw(uid);
    let probe = move || {
        setfsuid(user);
        // The call tells who it was before, and no more.
        (setfsuid(user) == user).then(|| TcpStream::connect_timeout(&address, PROBE_TIMEOUT).map(drop))
    };
    let thread = thread::Builder::new().name("probe".to_owned()).stack_size(64 * 1024).spawn(probe);
    let tried = thread.map_err(|error| format!("no thread for a probe: {error}"))?.join().ok().flatten();
    tried.ok_or_else(|| format!("the agent cannot try as user number {uid}; run it as root"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str, uid: u32) -> JobUser {
        JobUser { name: name.to_owned(), uid }
    }

    #[test]
    fn users_that_stand_for_a_user_are_shut_out_with_it() {
        let subordinate = "ci:100000:65536\nother:200000:65536\n1001:165536:10\nci:x:1\nci:5\n\nci:300000:0\n";
        let found = ranges(&[user("ci", 1001), user("other2", 1002)], subordinate);
        assert_eq!(found, [(1001, 1002), (100_000, 165_545)]);
        assert_eq!(ranges(&[user("a", 7)], "a:4294967290:100"), [(7, 7), (4_294_967_290, u32::MAX)]);
    }

    #[test]
    fn the_table_is_replaced_as_a_whole_and_holds_every_address() {
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
    fn a_thread_tries_as_somebody_else_only_as_root() {
        let closed = SocketAddr::from(([127, 0, 0, 1], 1));
        let tried = connect_as(65_534, closed);
        assert_eq!(tried.is_ok(), Uid::effective().is_root() || Uid::effective().as_raw() == 65_534);
    }
}
