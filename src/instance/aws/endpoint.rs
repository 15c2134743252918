//! The endpoints of AWS services in a region: the default, or the one that the operator configures.

use super::profile::Profiles;

/// The names of a service.
#[derive(Clone, Copy, Debug)]
pub struct AwsService {
    /// In signatures and IAM permissions: `autoscaling`.
    pub name: &'static str,
    /// In host names: `api.ecr`.
    pub host: &'static str,
    /// In host names of dual-stack endpoints.
    pub dual_host: &'static str,
    /// In variables (`AWS_ENDPOINT_URL_AUTO_SCALING`) and, in lower case, in the `services` sections of the shared
    /// files.
    pub variable: &'static str,
    /// Use the FIPS endpoint, even if the environment does not ask for it.
    pub fips: bool,
    /// Use the dual-stack endpoint, even if the environment does not ask for it.
    pub dual_stack: bool,
}

impl AwsService {
    /// A service with the same name in signatures and host names.
    const fn new(name: &'static str, variable: &'static str) -> Self {
        Self { name, host: name, dual_host: name, variable, fips: false, dual_stack: false }
    }
}

/// `autoscaling`
pub const AUTO_SCALING: AwsService = AwsService::new("autoscaling", "AUTO_SCALING");
/// `ec2`
pub const EC2: AwsService = AwsService::new("ec2", "EC2");
/// `sts`
pub const STS: AwsService = AwsService::new("sts", "STS");
/// `ssm`
pub const SSM: AwsService = AwsService::new("ssm", "SSM");
/// `secretsmanager`
pub const SECRETS_MANAGER: AwsService = AwsService::new("secretsmanager", "SECRETS_MANAGER");
/// `ecr`
pub const ECR: AwsService = AwsService { host: "api.ecr", ..AwsService::new("ecr", "ECR") };

/// Region prefix, domain, and dual-stack domain of each partition.
const PARTITIONS: [(&str, &str, &str); 7] = [
    ("cn-", "amazonaws.com.cn", "api.amazonwebservices.com.cn"),
    ("us-iso-", "c2s.ic.gov", "api.aws.ic.gov"),
    ("us-isob-", "sc2s.sgov.gov", "api.aws.scloud"),
    ("eu-isoe-", "cloud.adc-e.uk", "api.cloud-aws.adc-e.uk"),
    ("us-isof-", "csp.hci.ic.gov", "api.aws.hci.ic.gov"),
    ("eusc-", "amazonaws.eu", "api.amazonwebservices.eu"),
    ("", "amazonaws.com", "api.aws"),
];

/// The endpoint URL of a service, without a trailing slash. `variable` reads the environment.
pub fn url(
    service: AwsService,
    region: &str,
    profiles: &Profiles,
    variable: &dyn Fn(&str) -> Option<String>,
) -> String {
    let is_set = |name: &str| variable(name).is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let configured = || {
        variable(&format!("AWS_ENDPOINT_URL_{}", service.variable))
            .or_else(|| variable("AWS_ENDPOINT_URL"))
            .or_else(|| profiles.endpoint(&service.variable.to_ascii_lowercase()))
    };
    let configured = (!is_set("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS")).then(configured).flatten();
    configured.map(|url| url.trim_end_matches('/').to_owned()).unwrap_or_else(|| {
        let partition = PARTITIONS.iter().find(|(prefix, ..)| region.starts_with(prefix));
        let (_, domain, dual) = partition.unwrap_or(&PARTITIONS[PARTITIONS.len() - 1]);
        let fips = if service.fips || is_set("AWS_USE_FIPS_ENDPOINT") { "-fips" } else { "" };
        let (host, domain) = match service.dual_stack || is_set("AWS_USE_DUALSTACK_ENDPOINT") {
            true => (service.dual_host, dual),
            false => (service.host, domain),
        };
        format!("https://{host}{fips}.{region}.{domain}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(set: &[(&str, &str)], files: &str, service: AwsService, region: &str) -> String {
        let variable = |name: &str| set.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        url(service, region, &Profiles::of_text(files, "", "default"), &variable)
    }

    #[test]
    fn the_region_selects_the_partition() {
        for (region, expected) in [
            ("eu-central-1", "https://ssm.eu-central-1.amazonaws.com"),
            ("us-gov-west-1", "https://ssm.us-gov-west-1.amazonaws.com"),
            ("cn-north-1", "https://ssm.cn-north-1.amazonaws.com.cn"),
            ("us-iso-east-1", "https://ssm.us-iso-east-1.c2s.ic.gov"),
            ("eusc-de-east-1", "https://ssm.eusc-de-east-1.amazonaws.eu"),
        ] {
            assert_eq!(with(&[], "", SSM, region), expected);
        }
        let dual = [("AWS_USE_DUALSTACK_ENDPOINT", "true"), ("AWS_USE_FIPS_ENDPOINT", "true")];
        assert_eq!(with(&dual, "", STS, "us-east-1"), "https://sts-fips.us-east-1.api.aws");
        assert_eq!(with(&[], "", ECR, "eu-west-1"), "https://api.ecr.eu-west-1.amazonaws.com");
        let fips = AwsService { fips: true, ..ECR };
        assert_eq!(with(&[], "", fips, "us-east-1"), "https://api.ecr-fips.us-east-1.amazonaws.com");
        let both = AwsService { dual_stack: true, ..fips };
        assert_eq!(with(&[], "", both, "us-east-1"), "https://ecr-fips.us-east-1.api.aws");
    }

    #[test]
    fn the_most_specific_endpoint_applies() {
        let files = "[default]\nendpoint_url = http://profile\nservices = here\n[services here]\nauto_scaling =\n  \
                     endpoint_url = http://service\n";
        let all = [("AWS_ENDPOINT_URL_AUTO_SCALING", "http://one/"), ("AWS_ENDPOINT_URL", "http://all")];
        assert_eq!(with(&all, files, AUTO_SCALING, "r"), "http://one");
        assert_eq!(with(&all, files, EC2, "r"), "http://all");
        assert_eq!(with(&[], files, AUTO_SCALING, "r"), "http://service");
        assert_eq!(with(&[], files, EC2, "r"), "http://profile");
        let ignored = [all[0], ("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")];
        assert_eq!(with(&ignored, files, EC2, "r"), "https://ec2.r.amazonaws.com");
    }
}
