//! From a URL to a client configuration: what may be asked for, and the values that an operator cannot get wrong.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fred::error::ErrorKind;
use fred::rustls::crypto::ring;
use fred::rustls::pki_types::CertificateDer;
use fred::rustls::pki_types::pem::PemObject;
use fred::rustls::{ClientConfig, RootCertStore};
use fred::rustls_native_certs::load_native_certs;
use fred::types::config::{
    Config, ConnectionConfig, PerformanceConfig, ReconnectError, ReconnectPolicy, TcpConfig, TlsConfig,
};
use fred::types::{Builder, RespVersion};
use shared::keys::Keys;

use super::connection::COMMAND_TIMEOUT;

/// Where Redis is, and the names to use there.
#[derive(Clone)]
pub struct RedisSettings {
    /// `redis://`, `rediss://`, `redis-cluster://`, `rediss-cluster://`, `redis-sentinel://`, `rediss-sentinel://`,
    /// `redis+unix://`; `valkey` may stand for `redis`.
    pub url: String,
    /// PEM file of the authorities that may have signed the server's certificate; absent: the system's.
    pub ca_file: Option<PathBuf>,
    /// The names.
    pub keys: Keys,
}

// Inv. PRIVATE: the URL may hold a password.
impl fmt::Debug for RedisSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.url.split_once("://").map_or("?", |(scheme, _)| scheme);
        f.debug_struct("RedisSettings")
            .field("url", &format_args!("{scheme}://(hidden)"))
            .field("ca_file", &self.ca_file)
            .field("keys", &self.keys)
            .finish()
    }
}

/// Why Redis cannot even be tried. Fixed texts: what the URL held is not repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// No known scheme.
    #[error("the Redis URL must begin with redis://, rediss://, redis-cluster://, redis-sentinel:// or redis+unix://")]
    Scheme,
    /// A known scheme, then something else than it asks for.
    #[error("the Redis URL is malformed: {0}")]
    Url(&'static str),
    /// A file of authorities for a connection without TLS.
    #[error("a CA file is of use with rediss:// only")]
    CaWithoutTls,
    /// The file of authorities cannot be read, or holds no certificate.
    #[error("the CA file holds no certificate in PEM, or cannot be read")]
    CaFile,
    /// The system has no authorities.
    #[error("this system has no certificate authorities; name a CA file")]
    NoRoots,
}

/// Commands that may wait in a client. Beyond: [`crate::backplane::BackplaneError::Backpressure`].
const COMMANDS_QUEUED_MAX: usize = 4096;
/// Longest time to connect, TLS included.
const CONNECT_TIMEOUT_MS: u64 = 3000;
/// Waits between tries to connect: the first, the longest, and the jitter on each, in ms.
const RECONNECT_MS: (u32, u32, u32) = (50, 1000, 100);
/// Tries of one command. The library tries again also what was sent and not answered, so once is right; but on a
/// cluster a slot that moves uses tries up, and scripts are safe to repeat.
const TRIES: u32 = 1;
const TRIES_ON_CLUSTER: u32 = 3;

const SCHEMES: [(&str, bool); 7] = [
    ("redis", false),
    ("rediss", true),
    ("redis-cluster", false),
    ("rediss-cluster", true),
    ("redis-sentinel", false),
    ("rediss-sentinel", true),
    ("redis+unix", false),
];

impl RedisSettings {
    /// Whether Redis can be tried with these.
    ///
    /// # Errors
    /// [`SettingsError`] says what an operator must change.
    pub fn check(&self) -> Result<(), SettingsError> {
        self.config().map(|_| ())
    }

    /// What builds clients.
    pub(super) fn builder(&self) -> Result<(Builder, u32), SettingsError> {
        let config = self.config()?;
        let tries = if config.server.is_clustered() { TRIES_ON_CLUSTER } else { TRIES };
        let mut builder = Builder::from_config(config);
        let (first, longest, jitter) = RECONNECT_MS;
        let mut policy = ReconnectPolicy::new_exponential(0, first, longest, 2);
        policy.set_jitter(jitter);
        builder.set_policy(policy);
        builder.set_performance_config(PerformanceConfig {
            default_command_timeout: COMMAND_TIMEOUT,
            ..PerformanceConfig::default()
        });
        builder.set_connection_config(ConnectionConfig {
            connection_timeout: std::time::Duration::from_millis(CONNECT_TIMEOUT_MS),
            internal_command_timeout: COMMAND_TIMEOUT,
            max_command_attempts: tries,
            max_command_buffer_len: COMMANDS_QUEUED_MAX,
            tcp: TcpConfig { nodelay: Some(true), ..TcpConfig::default() },
            // Answers of a server that is not (or no longer) the one that may be written to.
            reconnect_errors: vec![
                ReconnectError::ClusterDown,
                ReconnectError::Loading,
                ReconnectError::MasterDown,
                ReconnectError::ReadOnly,
            ],
            ..ConnectionConfig::default()
        });
        Ok((builder, tries))
    }

    fn config(&self) -> Result<Config, SettingsError> {
        let (scheme, rest) = self.url.split_once("://").ok_or(SettingsError::Scheme)?;
        let known = scheme.replacen("valkey", "redis", 1);
        let (_, tls) = SCHEMES.into_iter().find(|(name, _)| *name == known).ok_or(SettingsError::Scheme)?;
        if self.ca_file.is_some() && !tls {
            return Err(SettingsError::CaWithoutTls);
        }
        // The library would load the system's authorities by itself, and fail if a single one is malformed; so it
        // sees the URL without TLS, and gets its connector from us.
        let plain = known.replacen("rediss", "redis", 1);
        let mut config = Config::from_url(&format!("{plain}://{rest}")).map_err(|error| match error.kind() {
            ErrorKind::Config if plain == "redis-sentinel" => {
                SettingsError::Url("host, node=host:port or sentinelServiceName is missing")
            }
            ErrorKind::Config => SettingsError::Url("host, port or database number"),
            _ => SettingsError::Url("not host:port, with user:password@ before and /database after it"),
        })?;
        // One connection per subscription then takes commands too, so that it can be asked whether it is there.
        config.version = RespVersion::RESP3;
        // Redis may come later than we do.
        config.fail_fast = false;
        if tls {
            config.tls = Some(self.tls()?);
        }
        Ok(config)
    }

    fn tls(&self) -> Result<TlsConfig, SettingsError> {
        let mut roots = RootCertStore::empty();
        match &self.ca_file {
            Some(path) => {
                roots.add_parsable_certificates(certificates(path)?);
                if roots.is_empty() {
                    return Err(SettingsError::CaFile);
                }
            }
            None => {
                roots.add_parsable_certificates(load_native_certs().certs);
                if roots.is_empty() {
                    return Err(SettingsError::NoRoots);
                }
            }
        }
        // Named, so that it does not depend on which providers other parts of the process brought along.
        let client = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|_| SettingsError::CaFile)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(TlsConfig::from(client))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, SettingsError> {
    let certificates = CertificateDer::pem_file_iter(path).map_err(|_| SettingsError::CaFile)?;
    certificates.collect::<Result<_, _>>().map_err(|_| SettingsError::CaFile)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(url: &str) -> RedisSettings {
        RedisSettings { url: url.to_owned(), ca_file: None, keys: Keys::new("analytics").expect("a plain word") }
    }

    #[test]
    fn urls_that_may_be_tried() {
        for url in [
            "redis://127.0.0.1",
            "redis://user:p%40ss@127.0.0.1:6380/3",
            "valkey://[::1]:6379",
            "redis-cluster://a:7000?node=b:7001&node=c:7002",
            "valkey-cluster://a:7000",
            "redis-sentinel://a:26379?sentinelServiceName=main&node=b:26379",
            "redis+unix:///run/redis.sock",
        ] {
            assert_eq!(settings(url).check(), Ok(()), "{url}");
        }
    }

    // Inv. PRIVATE
    #[test]
    fn a_refused_url_is_named_without_its_secrets() {
        for url in [
            "",
            "127.0.0.1:6379",
            "http://user:hunter2@a",
            "redis-cluster-x://hunter2@a",
            "redis://",
            "redis://a/hunter2",
            "redis://:hunter2@a:99999",
            "redis-sentinel://:hunter2@a:26379",
            "redis-cluster://:hunter2@a?node=hunter2",
        ] {
            let error = settings(url).check().expect_err(url);
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
        assert!(!format!("{:?}", settings("redis://:hunter2@a")).contains("hunter2"));
        assert_eq!(settings("http://a").check(), Err(SettingsError::Scheme));
    }

    #[test]
    fn a_ca_file_needs_tls_and_certificates() {
        let with_ca = |url: &str, path: &str| RedisSettings { ca_file: Some(path.into()), ..settings(url) }.check();
        assert_eq!(with_ca("redis://a", "ca.pem"), Err(SettingsError::CaWithoutTls));
        assert_eq!(with_ca("rediss://a", "/nonexistent/ca.pem"), Err(SettingsError::CaFile));
        let empty = tempfile::NamedTempFile::new().expect("a temporary file");
        assert_eq!(with_ca("rediss://a", empty.path().to_str().expect("UTF-8")), Err(SettingsError::CaFile));
    }
}
