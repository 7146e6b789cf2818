use std::io::Write;

use clap::Parser;

use super::*;

fn resolve(words: &[&str], variables: &[(&str, &str)]) -> Result<Config, Vec<String>> {
    let args = Args::try_parse_from(["gateway"].iter().chain(words)).expect("words that clap knows");
    let variables = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let environment = Environment { variables, descriptors_max: 20_000 };
    Config::resolve(&args, &environment).map_err(|errors| errors.iter().map(ToString::to_string).collect())
}

#[test]
fn defaults_are_the_seeds() {
    let config = resolve(&[], &[]).expect("defaults are valid");
    assert_eq!(config.listen.to_string(), "0.0.0.0:5000");
    assert_eq!(config.internal_listen.to_string(), "127.0.0.1:9464");
    assert_eq!(config.tick_interval, Duration::from_secs(5));
    assert_eq!(config.ping_interval, Duration::from_secs(30));
    assert_eq!(config.pong_timeout, Duration::from_secs(10));
    assert_eq!(config.max_connections_per_ip, 10);
    assert_eq!(config.client_messages_per_second, 1);
    assert_eq!(config.max_connections, 19_488);
    assert_eq!(config.allowed_origins, AllowedOrigins::Only(["http://localhost:3000".to_owned()].into()));
    assert!(config.redis_url.is_none() && config.ingest_tokens.is_empty());
    assert_eq!(config.otlp, Otlp::default());
}

#[test]
fn every_error_is_told_not_only_the_first() {
    let errors = resolve(
        &[
            "--listen",
            "5000",
            "--tick-interval",
            "5",
            "--outbox-bytes",
            "64 kB",
            "--trusted-proxies",
            "10.0.0.0/8,x",
            "--allowed-origins",
            "example.org",
            "--max-connections",
            "30000",
            "--log-format",
            "yaml",
            "--ping-interval",
            "5s",
            "--key-prefix",
            "a}b",
            "--proxy-protocol",
            "v2",
            "--ingest-token",
            "short",
        ],
        &[("GATEWAY_LISTENN", "x"), ("GATEWAY_WHATEVER", "x"), ("GATEWAY_SERVICE_HOST", "x"), ("GATEWAY_PORT_80", "x")],
    )
    .expect_err("nonsense");
    assert_eq!(
        errors,
        [
            "GATEWAY_LISTENN: unknown; did you mean GATEWAY_LISTEN?",
            "GATEWAY_WHATEVER: unknown",
            "GATEWAY_LISTEN: not an address like 0.0.0.0:5000 or [::]:5000",
            "GATEWAY_PROXY_PROTOCOL: not one of off, on",
            "GATEWAY_TRUSTED_PROXIES: not an address or CIDR: entry \"x\"",
            "GATEWAY_ALLOWED_ORIGINS: not an origin like https://example.org: entry \"example.org\"",
            "GATEWAY_KEY_PREFIX: a key prefix is 1 to 64 of the characters A-Z a-z 0-9 _ . -",
            "GATEWAY_INGEST_TOKEN: a token is at least 8 visible ASCII characters",
            "GATEWAY_MAX_CONNECTIONS: the descriptor limit of 20000 carries 19488; raise it (ulimit -n, LimitNOFILE=)",
            "GATEWAY_OUTBOX_BYTES: not a size like 65536, 64KiB or 64MiB",
            "GATEWAY_TICK_INTERVAL: not a duration like 250ms, 5s or 5m",
            "GATEWAY_LOG_FORMAT: not one of text, json",
            "GATEWAY_PONG_TIMEOUT: must be shorter than GATEWAY_PING_INTERVAL",
        ]
    );
}

#[test]
fn relations_between_options() {
    let check = |words: &[&str], want: &str| assert_eq!(resolve(words, &[]).expect_err("refused"), [want]);
    check(&["--visitor-window", "2s"], "GATEWAY_VISITOR_WINDOW: must not be shorter than GATEWAY_TICK_INTERVAL");
    check(
        &["--outbox-bytes", "1MiB", "--outbox-total-bytes", "64KiB"],
        "GATEWAY_OUTBOX_TOTAL_BYTES: must not be smaller than GATEWAY_OUTBOX_BYTES",
    );
    check(
        &["--proxy-protocol", "on"],
        "GATEWAY_PROXY_PROTOCOL: needs GATEWAY_TRUSTED_PROXIES: nobody else's header is believed",
    );
    check(&["--internal-listen", "0.0.0.0:5000"], "GATEWAY_INTERNAL_LISTEN: must differ from GATEWAY_LISTEN");
    check(&["--redis-ca-file", "ca.pem"], "REDIS_CA_FILE: needs REDIS_URL");
    check(
        &["--redis-url", "http://:hunter2@a"],
        "REDIS_URL: the Redis URL must begin with redis://, rediss://, redis-cluster://, redis-sentinel:// or \
         redis+unix://",
    );
    check(
        &["--redis-url", "rediss://10.0.0.5:6380", "--redis-ca-file", "no/such/file"],
        "REDIS_CA_FILE: cannot be read: entity not found",
    );
}

// Inv. PRIVATE
#[test]
fn secrets_come_from_files_and_are_never_printed() {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(b"token-number-one,token-number-two\n").expect("writes");
    let path = file.path().to_str().expect("a plain path");
    let config =
        resolve(&["--ingest-token-file", path, "--redis-url", "redis://:hunter2@127.0.0.1:1"], &[]).expect("valid");
    let tokens: Vec<&str> = config.ingest_tokens.iter().map(Secret::reveal).collect();
    assert_eq!(tokens, ["token-number-one", "token-number-two"]);
    let printed = format!("{config:#?}");
    assert!(!printed.contains("hunter2") && !printed.contains("token-number"), "{printed}");

    let twice = resolve(&["--ingest-token-file", path, "--ingest-token", "token-number-one"], &[]);
    assert_eq!(twice.expect_err("refused"), ["GATEWAY_INGEST_TOKEN: given twice: also as GATEWAY_INGEST_TOKEN_FILE"]);
    let missing = resolve(&["--redis-url-file", "/nonexistent/url"], &[]);
    assert_eq!(missing.expect_err("refused"), ["REDIS_URL_FILE: cannot be read: entity not found"]);
}

#[test]
fn otlp_follows_the_standard_variables() {
    let check = |variables: &[(&str, &str)], traces: bool, metrics: bool| {
        assert_eq!(resolve(&[], variables).expect("valid").otlp, Otlp { traces, metrics }, "{variables:?}");
    };
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318");
    check(&[endpoint], true, true);
    check(&[endpoint, ("OTEL_SDK_DISABLED", "true")], false, false);
    check(&[endpoint, ("OTEL_TRACES_EXPORTER", "none")], false, true);
    check(&[("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://127.0.0.1:4318")], false, true);
}

#[test]
fn help_names_every_variable() {
    use clap::CommandFactory;
    let mut command = Args::command();
    let names: Vec<String> =
        command.get_arguments().filter_map(|arg| Some(arg.get_env()?.to_str()?.to_owned())).collect();
    let help = command.render_long_help().to_string();
    assert_eq!(names.len(), 31);
    assert!(names.iter().all(|name| help.contains(name)), "{help}");
}

// Golden: operators diff this output between releases.
#[test]
fn effective_configuration_is_stable_and_hides_secrets() {
    let words = ["--redis-url", "redis://:hunter2@127.0.0.1:1", "--trusted-proxies", "10.0.0.0/8,::1"];
    let text = resolve(&words, &[]).expect("valid").effective();
    assert_eq!(
        text,
        "GATEWAY_LISTEN=0.0.0.0:5000\n\
         GATEWAY_INTERNAL_LISTEN=127.0.0.1:9464\n\
         GATEWAY_PROXY_PROTOCOL=off\n\
         GATEWAY_TRUSTED_PROXIES=10.0.0.0/8,::1/128\n\
         GATEWAY_ALLOWED_ORIGINS=http://localhost:3000\n\
         # REDIS_URL: hidden\n\
         REDIS_CA_FILE=\n\
         GATEWAY_KEY_PREFIX=analytics\n\
         # GATEWAY_INGEST_TOKEN: absent: ingest is off\n\
         GATEWAY_MAX_CONNECTIONS_PER_IP=10\n\
         GATEWAY_HANDSHAKES_PER_SECOND_PER_IP=5\n\
         GATEWAY_MAX_CONNECTIONS=19488\n\
         GATEWAY_CLIENT_MESSAGES_PER_SECOND=1\n\
         GATEWAY_CLIENT_MESSAGE_BURST=5\n\
         GATEWAY_OUTBOX_BYTES=65536\n\
         GATEWAY_OUTBOX_TOTAL_BYTES=67108864\n\
         GATEWAY_REPLAY_BYTES=4194304\n\
         GATEWAY_TICK_INTERVAL=5s\n\
         GATEWAY_PING_INTERVAL=30s\n\
         GATEWAY_PONG_TIMEOUT=10s\n\
         GATEWAY_VISITOR_WINDOW=5m\n\
         GATEWAY_FLUSH_INTERVAL=0\n\
         GATEWAY_CONNECTION_MAX_AGE=off\n\
         GATEWAY_DRAIN_DELAY=5s\n\
         GATEWAY_DRAIN_WINDOW=25s\n\
         GATEWAY_DRAIN_GRACE=10s\n\
         GATEWAY_RECONNECT_BUDGET=500\n\
         GATEWAY_LOG=info\n\
         GATEWAY_LOG_FORMAT=text\n"
    );
}

// Regression: absent options were shown as values (`REDIS_URL=# absent…`), so that what was printed could not run.
#[test]
fn effective_configuration_is_an_environment_file_that_gives_the_same() {
    let words =
        ["--connection-max-age", "90m", "--flush-interval", "50ms", "--allowed-origins", "*", "--listen", "[::]:0"];
    let text = resolve(&words, &[]).expect("valid").effective();
    let flags: Vec<String> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.trim_start_matches("GATEWAY_").to_lowercase().replace('_', "-"), value))
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| format!("--{name}={value}"))
        .collect();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    assert!(flags.len() > 20, "{flags:?}");
    assert_eq!(resolve(&flags, &[]).expect("valid again").effective(), text);
}
