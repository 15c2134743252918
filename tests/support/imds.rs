//! The EC2 instance metadata service for a booting machine: all versions, directories, user data. Clients other than
//! cloud-init need a token. cloud-init in a container cannot detect EC2 and uses version 1.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use super::http::{Answer, Request, read_request, write_answer};

/// The service at 169.254.169.254, in the network namespace of the thread.
#[derive(Clone)]
pub struct Imds {
    items: Arc<BTreeMap<String, String>>,
}

impl Imds {
    /// Starts to serve an instance with this id and user data.
    pub fn start(instance: &str, user_data: &str) -> Self {
        let identity = format!(
            r#"{{"accountId":"123456789012","architecture":"x86_64","availabilityZone":"eu-west-1a",
            "imageId":"ami-0test","instanceId":"{instance}","instanceType":"c6i.large","region":"eu-west-1",
            "privateIp":"10.9.0.2","version":"2017-09-30"}}"#
        );
        let mut items = BTreeMap::from(
            [
                ("meta-data/ami-id", "ami-0test"),
                ("meta-data/instance-id", instance),
                ("meta-data/instance-type", "c6i.large"),
                ("meta-data/instance-life-cycle", "spot"),
                ("meta-data/local-ipv4", "10.9.0.2"),
                ("meta-data/local-hostname", "ip-10-9-0-2.ec2.internal"),
                ("meta-data/hostname", "ip-10-9-0-2.ec2.internal"),
                ("meta-data/mac", "02:00:00:00:00:01"),
                ("meta-data/placement/availability-zone", "eu-west-1a"),
                ("meta-data/placement/region", "eu-west-1"),
                ("meta-data/services/domain", "amazonaws.com"),
                ("meta-data/services/partition", "aws"),
                ("meta-data/iam/security-credentials/fleet", CREDENTIALS),
                ("dynamic/instance-identity/document", &identity),
                ("user-data", user_data),
            ]
            .map(|(path, value)| (path.to_owned(), value.to_owned())),
        );
        items.retain(|_, value| !value.is_empty());
        let imds = Self { items: Arc::new(items) };
        let listener = TcpListener::bind("169.254.169.254:80").expect("the metadata address");
        let serving = imds.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let imds = serving.clone();
                thread::spawn(move || imds.serve(stream));
            }
        });
        imds
    }

    fn serve(&self, mut stream: TcpStream) {
        let Ok(reader) = stream.try_clone() else { return };
        let mut reader = std::io::BufReader::new(reader);
        while let Some(request) = read_request(&mut reader) {
            if write_answer(&mut stream, &self.answer(&request)).is_err() {
                return;
            }
        }
    }

    fn answer(&self, request: &Request) -> Answer {
        const TOKEN: &str = "token-of-the-metadata-service";
        if request.method == "PUT" {
            let seconds = request.header("X-aws-ec2-metadata-token-ttl-seconds").parse();
            return match (request.path.as_str(), seconds) {
                ("/latest/api/token", Ok(1..=21600u32)) => {
                    let seconds = request.header("X-aws-ec2-metadata-token-ttl-seconds");
                    Answer::new(200).with("X-aws-ec2-metadata-token-ttl-seconds", seconds).body(TOKEN)
                }
                ("/latest/api/token", _) => Answer::new(400).body(""),
                _ => Answer::new(404).body(""),
            };
        }
        let old_way =
            ["Cloud-Init/", "python-requests/"].iter().any(|name| request.header("User-Agent").starts_with(name));
        if !old_way && request.header("X-aws-ec2-metadata-token") != TOKEN {
            return Answer::new(401).body("");
        }
        // All versions of the service are treated as `latest`.
        let (_, path) = request.path.trim_start_matches('/').split_once('/').unwrap_or_default();
        self.item(path).map_or_else(|| Answer::new(404).body(""), |text| Answer::new(200).body(text))
    }

    /// An item, or the names in a directory.
    fn item(&self, path: &str) -> Option<String> {
        if let Some(text) = self.items.get(path) {
            return Some(text.clone());
        }
        let directory = format!("{}/", path.trim_end_matches('/'));
        let below = self.items.keys().filter_map(|item| item.strip_prefix(&directory));
        let names = below.map(|item| match item.split_once('/') {
            Some((name, _)) => format!("{name}/"),
            None => item.to_owned(),
        });
        let names: Vec<String> = names.collect::<BTreeSet<_>>().into_iter().collect();
        (!names.is_empty()).then(|| names.join("\n"))
    }
}

const CREDENTIALS: &str = r#"{"Code":"Success","Type":"AWS-HMAC","LastUpdated":"2026-01-01T00:00:00Z",
"Expiration":"2099-01-01T00:00:00Z","AccessKeyId":"ASIATEST","SecretAccessKey":"secret","Token":"token"}"#;
