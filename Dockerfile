# syntax=docker/dockerfile:1

# The version of rust-toolchain.toml (`make docs-check` compares the two). Not the slim image: jemalloc builds with make.
FROM rust:1.95.0-bookworm AS build
WORKDIR /src
# rust-toolchain.toml stays out: it would make rustup fetch rustfmt and clippy, which nothing here needs.
COPY Cargo.toml Cargo.lock ./
COPY shared shared
COPY gateway gateway
COPY loadtest loadtest
# The caches hold the registry and the compiled dependencies between builds: a change of our code compiles our code only.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target,sharing=locked \
    cargo build --release --locked -p gateway \
    && install -D target/release/gateway /out/gateway

# The same Debian, so the same glibc, as the image that builds. No shell, no package manager.
FROM gcr.io/distroless/cc-debian12:nonroot
LABEL org.opencontainers.image.title="Pulsegate" \
      org.opencontainers.image.description="Redis-centric, horizontally scaled WebSocket gateway for live web analytics" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /out/gateway /usr/local/bin/gateway
# Numeric, so that Kubernetes can see that it is not root.
USER 65532:65532
# 5000: clients. 9464: metrics and health, on loopback unless GATEWAY_INTERNAL_LISTEN says otherwise.
EXPOSE 5000 9464
# Drains; give it more than the drain takes: docker run --stop-timeout 45.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["/usr/local/bin/gateway", "--healthcheck"]
ENTRYPOINT ["/usr/local/bin/gateway"]
