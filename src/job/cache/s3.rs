//! Caches in S3 and compatible stores: object names, and requests that the agent signs, so that a job never sees a key.

use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use jiff::Timestamp;

use super::PresignedUrls;
use crate::config::cache::{CacheConfig, S3};
use crate::http::tls::TlsFiles;
use crate::http::{Method, Outgoing, Timeouts, Transfer, escape};
use crate::instance::aws::credentials::AwsCredentials;
use crate::instance::aws::sign::{CredentialScope, SignedRequest, presign};
use crate::instance::aws::source;
use crate::instance::aws::sts::{self, AssumedRole};
use crate::sync;
use crate::token::Token;
use crate::version::user_agent;

/// The longest lifetime of a signature in S3.
const MAX_EXPIRY: Duration = Duration::from_secs(7 * 24 * 3600);

/// The largest body that Amazon accepts in one request. A multipart upload would need keys in the process that handles
/// the job's files, because the request for a part can only be signed after the upload has started.
const MAX_PUT_SIZE: u64 = 5 << 30;

/// A bucket, shared by the jobs of one runner.
pub struct S3Store {
    settings: S3,
    prefix: String,
    /// The largest archive to upload, in bytes; 0 for no limit.
    pub max_upload: u64,
    credentials: Mutex<Option<AwsCredentials>>,
    /// The detected region of the bucket.
    region: OnceLock<String>,
}

impl S3Store {
    /// The store of a runner with this short token; `None` if none is configured. Fails for an unsupported type or
    /// without a bucket.
    pub fn new(config: &CacheConfig, short_token: &str) -> Result<Option<Self>, String> {
        match config.kind.as_str() {
            "" => return Ok(None),
            "s3" => {}
            other => {
                return Err(format!("[runners.cache] Type = \"{other}\": mayfly supports only s3; caches stay local"));
            }
        }
        if config.s3.bucket_name.is_empty() {
            return Err("[runners.cache.s3] has no BucketName; caches stay local".to_owned());
        }
        let mut prefix = config.path.trim_matches('/').to_owned();
        if !config.shared {
            prefix = format!("{prefix}/runner/{short_token}");
        }
        let prefix = prefix.trim_start_matches('/').to_owned();
        let max_upload = config.max_uploaded_archive_size;
        Ok(Some(Self {
            settings: config.s3.clone(),
            prefix,
            max_upload,
            credentials: Mutex::default(),
            region: OnceLock::new(),
        }))
    }

    /// The presigned requests for an object of a project. Fails without credentials.
    pub fn sign(&self, project: i64, object: &str, key: &str, expires: Duration) -> Result<PresignedUrls, String> {
        let region = self.region();
        let credentials = self.credentials(region)?;
        let (host, bucket) = self.address(region);
        let name = [self.prefix.as_str(), &format!("project/{project}/{object}")].join("/");
        let path = format!("/{bucket}{}", name.trim_start_matches('/'));
        let scheme = if self.settings.insecure { "http" } else { "https" };
        let scope = CredentialScope { region, service: "s3" };
        let (now, expires) = (Timestamp::now(), expires.min(MAX_EXPIRY));
        let signed = |method, headers: &[(String, String)]| {
            let headers = headers.to_vec();
            let target = SignedRequest { method, scheme, host: &host, path: &path, query: Vec::new(), headers };
            presign(&target, &credentials, scope, now, expires)
        };
        let put_headers = self.put_headers(key);
        Ok(PresignedUrls {
            get: signed("GET", &[]),
            head: signed("HEAD", &[]),
            put: signed("PUT", &put_headers),
            put_headers,
            max_size: self.is_amazon().then_some(MAX_PUT_SIZE),
        })
    }

    /// The host and, for path-style addresses, the bucket.
    fn address(&self, region: &str) -> (String, String) {
        let s3 = &self.settings;
        let host = match (self.is_amazon(), s3.accelerate, s3.dual_stack.unwrap_or(true)) {
            (false, ..) => s3.server_address.clone(),
            (true, true, true) => "s3-accelerate.dualstack.amazonaws.com".to_owned(),
            (true, true, false) => "s3-accelerate.amazonaws.com".to_owned(),
            (true, false, true) => format!("s3.dualstack.{region}.amazonaws.com"),
            (true, false, false) => format!("s3.{region}.amazonaws.com"),
        };
        // Amazon's certificates do not cover bucket names with a dot.
        let fits = s3.insecure || !s3.bucket_name.contains('.');
        let has_buckets_as_hosts = host.ends_with(".amazonaws.com") || host == "storage.googleapis.com";
        let path_style = s3.path_style.unwrap_or(!(has_buckets_as_hosts && fits));
        match path_style {
            true => (host, format!("{}/", s3.bucket_name)),
            false => (format!("{}.{host}", s3.bucket_name), String::new()),
        }
    }

    fn is_amazon(&self) -> bool {
        matches!(self.settings.server_address.as_str(), "" | "s3.amazonaws.com")
    }

    /// The configured region, otherwise the detected one for Amazon. Other stores ignore the region.
    fn region(&self) -> &str {
        const DEFAULT_REGION: &str = "us-east-1";
        if !self.settings.bucket_location.is_empty() {
            return &self.settings.bucket_location;
        }
        if let Some(region) = self.region.get().filter(|_| self.is_amazon()) {
            return region;
        }
        let bucket = &self.settings.bucket_name;
        match self.is_amazon().then(|| region_of(&format!("https://s3.amazonaws.com/{bucket}"))) {
            Some(Some(region)) => self.region.get_or_init(|| region),
            Some(None) => {
                log::warn!("cannot find the region of the cache's bucket; set BucketLocation bucket={bucket}");
                DEFAULT_REGION
            }
            None => DEFAULT_REGION,
        }
    }

    fn put_headers(&self, key: &str) -> Vec<(String, String)> {
        let s3 = &self.settings;
        let mut headers = vec![("x-amz-meta-cachekey".to_owned(), escape(key, b"/ :@+=,$"))];
        let algorithm = match s3.server_side_encryption.to_ascii_uppercase().as_str() {
            "S3" | "AES256" => "AES256",
            "KMS" | "AWS:KMS" => "aws:kms",
            "DSSE-KMS" | "AWS:KMS:DSSE" => "aws:kms:dsse",
            _ => return headers,
        };
        headers.push(("x-amz-server-side-encryption".to_owned(), algorithm.to_owned()));
        if algorithm != "AES256" && !s3.server_side_encryption_key_id.is_empty() {
            let id = s3.server_side_encryption_key_id.clone();
            headers.push(("x-amz-server-side-encryption-aws-kms-key-id".to_owned(), id));
        }
        headers
    }

    /// The signing keys; temporary ones are cached until shortly before they expire.
    fn credentials(&self, region: &str) -> Result<AwsCredentials, String> {
        let mut kept = sync::lock(&self.credentials);
        if let Some(credentials) = kept.as_ref().filter(|credentials| credentials.are_fresh(Timestamp::now())) {
            return Ok(credentials.clone());
        }
        let s3 = &self.settings;
        let has_keys = !s3.access_key.is_empty() && !s3.secret_key.is_empty();
        let mut credentials = match s3.authentication_type.as_str() {
            "iam" => source::current()?,
            _ if has_keys => {
                let session_token = Some(&s3.session_token).filter(|token| !token.is_empty());
                let session_token = session_token.map(|token| Token::new(token.as_str()));
                AwsCredentials { session_token, ..AwsCredentials::fixed(&s3.access_key, &s3.secret_key) }
            }
            "access-key" => return Err("AuthenticationType is access-key, and a key is missing".to_owned()),
            _ => source::current()?,
        };
        let role = [&s3.role_arn, &s3.upload_role_arn].into_iter().find(|role| !role.is_empty());
        if let Some(role) = role {
            let region = Some(region.to_owned());
            let role = AssumedRole { policy: Some(self.policy()), region, ..AssumedRole::new(role) };
            credentials = sts::assume_role(&role, &credentials)?;
        }
        *kept = Some(credentials.clone());
        Ok(credentials)
    }

    /// The session policy of a role: read and write objects of this bucket below the prefix.
    fn policy(&self) -> String {
        let (bucket, prefix) = (&self.settings.bucket_name, self.prefix.trim_end_matches('/'));
        let resource = format!("arn:aws:s3:::{bucket}/{prefix}{}*", if prefix.is_empty() { "" } else { "/" });
        let actions = ["s3:GetObject", "s3:PutObject"];
        serde_json::json!({
            "Version": "2012-10-17",
            "Statement": [{ "Effect": "Allow", "Action": actions, "Resource": resource }],
        })
        .to_string()
    }
}

/// Detects the region of a bucket: Amazon sends it in every response, even in errors.
fn region_of(url: &str) -> Option<String> {
    const REGION_TIMEOUT: Duration = Duration::from_secs(5);
    let timeouts = Timeouts { total: REGION_TIMEOUT, response: REGION_TIMEOUT };
    let transfer = Transfer::new(url, &TlsFiles::default(), &user_agent(), timeouts).ok()?;
    let response = transfer.send(Method::Head, url, &[], Outgoing::Nothing).ok()?;
    let is_region = |name: &&str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    response.header("x-amz-bucket-region").filter(is_region).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::testing::{PreparedResponse, Server, response};

    fn store(change: impl FnOnce(&mut CacheConfig)) -> S3Store {
        let mut config = CacheConfig { kind: "s3".to_owned(), ..CacheConfig::default() };
        config.s3.bucket_name = "caches".to_owned();
        config.s3.access_key = "A".to_owned();
        config.s3.secret_key = "S".to_owned();
        config.s3.bucket_location = "us-east-1".to_owned();
        change(&mut config);
        S3Store::new(&config, "short").unwrap().unwrap()
    }

    fn url(store: &S3Store) -> String {
        let signed = store.sign(9, "deps main", "deps main", Duration::from_secs(60)).unwrap();
        signed.get.split('?').next().unwrap().to_owned()
    }

    #[test]
    fn objects_have_the_same_names_as_in_gitlab_runner() {
        assert_eq!(
            url(&store(|c| c.s3.bucket_location = "eu-west-1".to_owned())),
            "https://caches.s3.dualstack.eu-west-1.amazonaws.com/runner/short/project/9/deps%20main"
        );
        assert_eq!(
            url(&store(|c| {
                c.shared = true;
                c.path = "/some/path/".to_owned();
                c.s3.server_address = "minio.test:9000".to_owned();
                c.s3.insecure = true;
            })),
            "http://minio.test:9000/caches/some/path/project/9/deps%20main"
        );
        assert_eq!(
            url(&store(|c| c.s3.path_style = Some(true))),
            "https://s3.dualstack.us-east-1.amazonaws.com/caches/runner/short/project/9/deps%20main"
        );
        assert_eq!(
            url(&store(|c| (c.s3.accelerate, c.s3.dual_stack) = (true, Some(false)))),
            "https://caches.s3-accelerate.amazonaws.com/runner/short/project/9/deps%20main"
        );
    }

    #[test]
    fn signs_the_headers_of_an_upload() {
        let store = store(|c| {
            c.s3.server_side_encryption = "KMS".to_owned();
            c.s3.server_side_encryption_key_id = "key-1".to_owned();
        });
        let signed = store.sign(9, "k", "ключ", Duration::from_secs(60)).unwrap();
        let names: Vec<_> = signed.put_headers.iter().map(|(name, _)| name.as_str()).collect();
        let expected =
            ["x-amz-meta-cachekey", "x-amz-server-side-encryption", "x-amz-server-side-encryption-aws-kms-key-id"];
        assert_eq!(names, expected);
        assert!(signed.put.contains(&format!("X-Amz-SignedHeaders=host%3B{}", expected.join("%3B"))));
        assert!(signed.put_headers[0].1.is_ascii());
    }

    #[test]
    fn limits_uploads_to_amazon_only() {
        let most = |store: &S3Store| store.sign(9, "k", "k", Duration::from_secs(60)).unwrap().max_size;
        assert_eq!(most(&store(|_| {})), Some(5 * 1024 * 1024 * 1024));
        assert_eq!(most(&store(|c| c.s3.server_address = "minio.test:9000".to_owned())), None);
    }

    #[test]
    fn detects_the_region_from_an_error_response() {
        let checked = |region: &str| {
            let headers = vec![("x-amz-bucket-region", region.to_owned())];
            let server = Server::start(vec![PreparedResponse { headers, ..response("301 Moved Permanently", b"") }]);
            let found = region_of(&format!("{}/caches", server.url));
            assert_eq!(server.requests()[0].line, "HEAD /caches HTTP/1.1");
            found
        };
        assert_eq!(checked("eu-west-1").as_deref(), Some("eu-west-1"));
        assert_eq!(checked("evil.test/"), None);
    }

    #[test]
    fn reports_unusable_settings() {
        let of = |kind: &str| {
            S3Store::new(&CacheConfig { kind: kind.to_owned(), ..CacheConfig::default() }, "s").map(|s| s.is_some())
        };
        assert_eq!(of(""), Ok(false));
        assert!(of("gcs").unwrap_err().contains("caches stay local"));
        assert!(of("s3").unwrap_err().contains("BucketName"));
    }
}
