# The chat page, which is only a client of the API: no torch, and apart from whatever decodes strangers' pictures.
#   docker build -f deploy/page.Dockerfile -t tilewise-page .
FROM python:3.12-slim-bookworm
RUN useradd --create-home --uid 10001 tilewise && python -m venv /opt/tilewise
ENV PATH=/opt/tilewise/bin:$PATH \
    GRADIO_ANALYTICS_ENABLED=False \
    HF_HUB_OFFLINE=1 \
    PYTHONUNBUFFERED=1
# What the page imports of the package's dependencies; the package itself comes without the others.
RUN pip install --no-cache-dir "gradio>=6.31" "httpx>=0.28" "numpy>=2" "pillow>=12" "rich>=14"
COPY pyproject.toml README.md LICENSE /source/
COPY src /source/src
RUN pip install --no-cache-dir --no-deps /source
USER 10001
WORKDIR /home/tilewise
EXPOSE 6006
HEALTHCHECK --interval=10s --timeout=3s --start-period=1m --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:6006/', timeout=2)"]
ENTRYPOINT ["tilewise", "serve", "gradio", "--server-name", "0.0.0.0"]
