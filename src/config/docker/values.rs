//! Values of `[runners.docker]` with their own syntax.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// A pull policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullPolicy {
    /// Always pull from the registry.
    Always,
    /// Pull if the machine does not have the image.
    IfNotPresent,
    /// Never pull.
    Never,
}

impl PullPolicy {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::IfNotPresent => "if-not-present",
            Self::Never => "never",
        }
    }
}

impl FromStr for PullPolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Always, Self::IfNotPresent, Self::Never];
        let found = all.into_iter().find(|policy| policy.as_str() == text);
        found.ok_or_else(|| format!("`{text}` is not a pull policy: always, if-not-present or never"))
    }
}

/// Parses a text; an empty one counts as not set.
pub fn optional<'de, D: Deserializer<'de>, T: FromStr<Err = String>>(deserializer: D) -> Result<Option<T>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(D::Error::custom) }
}

/// Parses a list of texts.
pub fn list<'de, D: Deserializer<'de>, T: FromStr<Err = String>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    texts.iter().map(|text| text.parse().map_err(D::Error::custom)).collect()
}

/// One policy, or a list.
pub fn policies<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PullPolicy>, D::Error> {
    struct OneOrMore;
    impl<'de> Visitor<'de> for OneOrMore {
        type Value = Vec<PullPolicy>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a pull policy (\"always\", \"if-not-present\", \"never\") or a list of them")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
            if text.is_empty() { Ok(Vec::new()) } else { text.parse().map(|one| vec![one]).map_err(E::custom) }
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut policies = Vec::new();
            while let Some(text) = list.next_element::<String>()? {
                policies.push(text.parse().map_err(A::Error::custom)?);
            }
            Ok(policies)
        }
    }
    deserializer.deserialize_any(OneOrMore)
}

/// A size in bytes, written as a number or as `512m`; at most the engine's limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub i64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(1 << 30, "g"), (1 << 20, "m"), (1 << 10, "k")];
        match units.into_iter().find(|(unit, _)| self.0 >= *unit && self.0 % unit == 0) {
            Some((unit, letter)) => write!(f, "{}{letter}", self.0 / unit),
            None => write!(f, "{}b", self.0),
        }
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a size; write for example \"512m\" or \"2g\"");
        let lower = text.trim().to_ascii_lowercase();
        let end = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
        let (number, unit) = lower.split_at(end);
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let factor = match unit.trim() {
            "" | "b" => 1_u64,
            "k" | "kb" | "kib" => 1 << 10,
            "m" | "mb" | "mib" => 1 << 20,
            "g" | "gb" | "gib" => 1 << 30,
            "t" | "tb" | "tib" => 1 << 40,
            _ => return Err(wrong()),
        };
        let bytes = number * factor as f64;
        // Up to this size, floats represent integers exactly.
        if bytes > 9e15 { Err(wrong()) } else { Ok(Self(bytes as i64)) }
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number;
        impl Visitor<'_> for Number {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"512m\", or a number of bytes")
            }

            fn visit_i64<E: Error>(self, bytes: i64) -> Result<Size, E> {
                if bytes < 0 { Err(E::custom(format!("{bytes} is not a size"))) } else { Ok(Size(bytes)) }
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Size, E> {
                if text.is_empty() { Ok(Size(0)) } else { text.parse().map_err(E::custom) }
            }
        }
        deserializer.deserialize_any(Number)
    }
}

/// The limit of memory and swap together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swap {
    /// No limit.
    Unlimited,
    UpTo(Size),
}

impl FromStr for Swap {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "-1" { Ok(Swap::Unlimited) } else { text.parse().map(Swap::UpTo) }
    }
}

/// CPU time in billionths of a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpus(pub i64);

impl FromStr for Cpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (part, whole) = text.split_once('/').unwrap_or((text, "1"));
        let number = |text: &str| text.trim().parse::<f64>().ok().filter(|number| number.is_finite() && *number > 0.0);
        let ratio = number(part).zip(number(whole)).map(|(part, whole)| part / whole * 1e9);
        let nanos = ratio.filter(|nanos| (1.0..1e15).contains(nanos));
        // Rounding corrects floating-point errors.
        nanos
            .map(|nanos| Cpus(nanos.round() as i64))
            .ok_or_else(|| format!("`{text}` is not a number of CPUs; write for example \"2\", \"0.5\" or \"1/3\""))
    }
}

/// A resource limit (`nofile`, `nproc`, …).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ulimit {
    pub name: String,
    /// The soft limit; -1 for none.
    pub soft: i64,
    /// The hard limit.
    pub hard: i64,
}

/// Parses a table of `name = "soft:hard"`.
pub fn ulimits<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Ulimit>, D::Error> {
    let table = BTreeMap::<String, String>::deserialize(deserializer)?;
    let limit = |(name, text): (String, String)| {
        let (soft, hard) = text.split_once(':').unwrap_or((&text, &text));
        let numbers = soft.trim().parse().ok().zip(hard.trim().parse().ok());
        match numbers.filter(|(soft, hard): &(i64, i64)| *soft >= -1 && *hard >= -1) {
            Some((soft, hard)) => Ok(Ulimit { name, soft, hard }),
            None => {
                Err(D::Error::custom(format!("`{text}` is not a limit for {name}; write \"SOFT:HARD\" or one number")))
            }
        }
    };
    table.into_iter().map(limit).collect()
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The path on the machine.
    pub host: String,
    /// The path in the container.
    pub container: String,
    /// A combination of `r`, `w` and `m`.
    pub permissions: String,
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let is_mode = |part: &str| !part.is_empty() && part.bytes().all(|byte| b"rwm".contains(&byte));
        let (host, container, permissions) = match parts[..] {
            [host] => (host, host, "rwm"),
            [host, mode] if is_mode(mode) => (host, host, mode),
            [host, container] => (host, container, "rwm"),
            [host, container, mode] if is_mode(mode) => (host, container, mode),
            _ => ("", "", ""),
        };
        if host.is_empty() || !container.starts_with('/') {
            return Err(format!(
                "`{text}` is not a device; write for example \"/dev/kvm\" or \"/dev/sda:/dev/xvda:r\""
            ));
        }
        let owned = str::to_owned;
        Ok(Device { host: owned(host), container: owned(container), permissions: owned(permissions) })
    }
}

/// GPUs, in the syntax of `docker run --gpus`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gpus {
    /// The number; -1 for all, 0 if devices are named.
    pub count: i64,
    /// The names of devices.
    pub devices: Vec<String>,
    /// The required driver; empty for any.
    pub driver: String,
    /// The required capabilities.
    pub capabilities: Vec<String>,
}

impl FromStr for Gpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let count = |text: &str| match text.trim() {
            "all" => Ok(-1),
            number => number.parse().ok().filter(|count| *count > 0).ok_or(()),
        };
        let wrong = || format!("`{text}` does not name GPUs; write for example \"all\", \"2\" or \"device=0,1\"");
        let mut gpus = Gpus { capabilities: vec!["gpu".to_owned()], ..Gpus::default() };
        let mut list: Option<&mut Vec<String>> = None;
        for word in text.replace(['"', '\''], "").split(',').map(str::trim) {
            match word.split_once('=') {
                Some(("device", value)) => {
                    gpus.devices.push(value.to_owned());
                    list = Some(&mut gpus.devices);
                }
                Some(("capabilities", value)) => {
                    gpus.capabilities.push(value.to_owned());
                    list = Some(&mut gpus.capabilities);
                }
                Some(("driver", value)) => (gpus.driver, list) = (value.to_owned(), None),
                Some(("count", value)) => (gpus.count, list) = (count(value).map_err(|()| wrong())?, None),
                Some(_) => return Err(wrong()),
                None => match &mut list {
                    Some(list) if !word.is_empty() => list.push(word.to_owned()),
                    _ => gpus.count = count(word).map_err(|()| wrong())?,
                },
            }
        }
        match (gpus.count, gpus.devices.is_empty()) {
            (0, true) => Ok(Gpus { count: -1, ..gpus }),
            (count, false) if count != 0 => {
                Err(format!("`{text}` has both a number of GPUs and their names; write only one"))
            }
            _ => Ok(gpus),
        }
    }
}

/// A name and its address for the container's hosts file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host(pub String);

impl FromStr for Host {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let pair = text.split_once(':').filter(|(name, address)| {
            !name.is_empty() && (*address == "host-gateway" || address.parse::<IpAddr>().is_ok())
        });
        let wrong =
            || format!("`{text}` is not NAME:ADDRESS; write for example \"db:10.0.0.2\" or \"me:host-gateway\"");
        pair.map(|_| Host(text.to_owned())).ok_or_else(wrong)
    }
}

/// A MAC address, in lower case and with colons.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MacAddress(pub String);

impl FromStr for MacAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split([':', '-']).collect();
        let good = parts.len() == 6 && parts.iter().all(|part| part.len() == 2 && u8::from_str_radix(part, 16).is_ok());
        let wrong = || format!("`{text}` is not a MAC address; write for example \"92:d0:c6:0a:29:33\"");
        good.then(|| MacAddress(parts.join(":").to_ascii_lowercase())).ok_or_else(wrong)
    }
}

/// Options of the engine's log of a container. The log driver is always json-file, so that the agent can read the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogOptions(pub BTreeMap<String, String>);

impl<'de> Deserialize<'de> for LogOptions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let options = BTreeMap::<String, String>::deserialize(deserializer)?;
        match options.keys().find(|name| !matches!(name.as_str(), "env" | "labels")) {
            Some(other) => Err(D::Error::custom(format!("`{other}` is not a supported log option; use env or labels"))),
            None => Ok(Self(options)),
        }
    }
}

/// Refuses values that only Windows supports.
pub fn isolation<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    match text.as_str() {
        "" | "default" => Ok(text),
        other => Err(D::Error::custom(format!("`{other}` exists on Windows only; leave `isolation` out"))),
    }
}
