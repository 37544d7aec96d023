# The engine and its HTTP API, for a GPU or, with TORCH_INDEX at PyTorch's CPU builds, without one:
#   docker build -f deploy/server.Dockerfile -t tilewise-server .
#   docker build -f deploy/server.Dockerfile -t tilewise-server:cpu --build-arg TORCH_INDEX=URL .
# torch's own wheels bring the CUDA libraries; the host brings the driver and the container runtime.
FROM python:3.12-slim-bookworm AS build
ARG TORCH=torch==2.13.0
ARG TORCH_INDEX=
RUN python -m venv /opt/tilewise
ENV PATH=/opt/tilewise/bin:$PATH
# hadolint ignore=DL3013
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$TORCH"
COPY pyproject.toml README.md LICENSE /source/
COPY src /source/src
RUN pip install --no-cache-dir "/source[server]"

FROM python:3.12-slim-bookworm
# Triton compiles its launchers with the system's compiler when a kernel first runs.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 tilewise
COPY --from=build /opt/tilewise /opt/tilewise
ENV PATH=/opt/tilewise/bin:$PATH \
    HF_HOME=/models \
    PYTHONUNBUFFERED=1
RUN install --directory --owner tilewise --group tilewise /models
USER 10001
WORKDIR /home/tilewise
VOLUME /models
EXPOSE 23333
# Loading 26 billion parameters takes its time; /ready is the probe for sending traffic, /health for restarting.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10m --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:23333/health', timeout=2)"]
STOPSIGNAL SIGTERM
# Beyond loopback the server wants keys: TILEWISE_API_KEYS.
ENTRYPOINT ["tilewise", "serve", "api_server", "--server-name", "0.0.0.0"]
