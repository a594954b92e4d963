# conntrack-textfile in a container, with the host's network namespace and
# CAP_NET_ADMIN:
#   docker build -t conntrack-textfile .
#   docker run --net=host --cap-drop=ALL --cap-add=NET_ADMIN --read-only conntrack-textfile

FROM debian:bookworm-slim AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        gcc libc6-dev libcap2-bin python3-dev python3-venv
WORKDIR /src
COPY container/launch.c container/
RUN gcc -Os -Wall -Wextra -Werror -s -o /launch container/launch.c \
    && setcap cap_dac_read_search,cap_net_admin=p /launch
COPY LICENSE README.md pyproject.toml setup.py ./
COPY conntrack_textfile conntrack_textfile
COPY man man
COPY completion completion
# The venv has no pip: the pip of another venv installs into it. The compiled engine is
# optional, and only a warning if its build fails: the last line makes that an error.
RUN python3 -m venv /pip \
    && python3 -m venv --without-pip /opt/conntrack-textfile \
    && CFLAGS=-g0 /pip/bin/pip --python /opt/conntrack-textfile/bin/python \
        install --no-cache-dir --disable-pip-version-check '.[web]' \
    && /opt/conntrack-textfile/bin/python -I -c 'import conntrack_textfile.kernel._speedups'

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/conntrack-textfile /opt/conntrack-textfile
COPY --from=build /launch /usr/local/bin/conntrack-textfile
# Numeric, as runAsNonRoot of Kubernetes requires.
USER 65532:65532
EXPOSE 9095
ENTRYPOINT ["conntrack-textfile"]
# Loopback: with --net=host, all addresses would be those of the host.
CMD ["serve", "--web.listen-address=127.0.0.1:9095"]
