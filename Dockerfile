# Builds the server and an image of it on plain Debian. `.ci/check-image` builds and runs this file without a container
# runtime.
#
#   docker build -t opensecureconf .
#   docker run -p 127.0.0.1:9000:9000 -v osc-data:/data --read-only --cap-drop ALL \
#     --security-opt no-new-privileges --security-opt seccomp=deploy/seccomp-io_uring.json opensecureconf
#
# Default seccomp profiles forbid io_uring: see docs/operations.md.
# The tags name versions, not contents. To pin the contents by digest without changing this file:
#   docker buildx imagetools inspect debian:12.15-slim
#   docker build --build-arg DEBIAN_IMAGE=debian@sha256:... --build-arg RUST_IMAGE=rust@sha256:... .
ARG RUST_IMAGE=rust:1.95.0-bookworm
ARG DEBIAN_IMAGE=debian:12.15-slim

FROM ${RUST_IMAGE} AS build
# The image includes the tools that the build scripts of the dependencies need: git, a C compiler and make.
WORKDIR /build
COPY Cargo.toml Cargo.lock ./
# Compiles the dependencies with empty sources for all targets in the manifest, so that this layer stays cached until
# the dependencies change.
RUN mkdir src benches \
    && touch src/lib.rs \
    && for target in src/main $(sed -n 's/^name = "\(.*\)"/benches\/\1/p' Cargo.toml); do \
         echo 'fn main() {}' >"$target.rs"; \
       done \
    && cargo build --release --locked
COPY src src
# cargo compares modification times, and the copied files are older than the build of the empty sources.
RUN touch src/lib.rs src/main.rs \
    && cargo build --release --locked \
    && objcopy --strip-debug target/release/opensecureconf opensecureconf

FROM ${DEBIAN_IMAGE}
LABEL org.opencontainers.image.title="OpenSecureConf" \
      org.opencontainers.image.description="Encrypted configuration server" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="0.1.0"
RUN groupadd --gid 10001 opensecureconf \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin opensecureconf \
    && install -d -o opensecureconf -g opensecureconf -m 0700 /data
COPY --from=build /build/opensecureconf /usr/local/bin/opensecureconf
# Numeric, so that Kubernetes can verify that the user is not root.
USER 10001:10001
WORKDIR /data
VOLUME /data
ENV OSC_HOST=0.0.0.0 \
    OSC_DATABASE_PATH=/data/configurations.db \
    OSC_SALT_FILE_PATH=/data/encryption.salt
EXPOSE 9000
STOPSIGNAL SIGTERM
# A database of up to 64 MiB, or one that needs a migration, is checked completely before the server listens.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["/usr/local/bin/opensecureconf", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/opensecureconf"]
