# A compute node: compute_ctl as the entrypoint, PostgreSQL beside it.
FROM docker.io/library/rust:1-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --profile dist --locked && install -D target/dist/compute_ctl /out/compute_ctl

FROM docker.io/library/debian:bookworm-slim
# No cluster is created: compute_ctl makes its own data directory.
RUN mkdir -p /etc/postgresql-common/createcluster.d \
    && echo "create_main_cluster = false" > /etc/postgresql-common/createcluster.d/compute_ctl.conf \
    && apt-get update \
    && apt-get install -y --no-install-recommends postgresql postgresql-contrib ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && install -d -o postgres -g postgres /var/db/postgres
COPY --from=build /out/compute_ctl /usr/local/bin/compute_ctl
USER postgres
WORKDIR /var/db/postgres
EXPOSE 5432 3080
ENTRYPOINT ["compute_ctl"]
