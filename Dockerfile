# Builds and runs the server in a container. `.ci/run` checks what stands here without a container engine:
# the copied files are all that the build needs, and the built binary serves with these variables.
#
#   docker build -t opensecureconf .
#   docker run -p 127.0.0.1:9000:9000 -v osc-data:/data --security-opt seccomp=deploy/seccomp-io_uring.json \
#     opensecureconf
#
# The server needs io_uring. Docker 25 and later, containerd 2.0 and later, and Podman forbid it in their
# default seccomp profiles. Without a profile that allows it, the server does not start: docs/operations.md.

FROM rust:1.95-bookworm AS build
# The image brings what the build script of glommio runs: git, a C compiler and make.
WORKDIR /build
COPY Cargo.toml Cargo.lock ./
COPY benches benches
COPY src src
RUN cargo build --release --locked

FROM debian:bookworm-slim
RUN useradd --system --uid 10001 --no-create-home --home-dir /data opensecureconf \
    && install -d -o opensecureconf -g opensecureconf -m 0700 /data
COPY --from=build /build/target/release/opensecureconf /usr/local/bin/opensecureconf
USER 10001
WORKDIR /data
VOLUME /data
ENV OSC_HOST=0.0.0.0 \
    OSC_DATABASE_PATH=/data/configurations.db \
    OSC_SALT_FILE_PATH=/data/encryption.salt
EXPOSE 9000
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/opensecureconf"]
