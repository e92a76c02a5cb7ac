# The service as an image. Build: docker build -t genhook .   Run: docs/deploying.md
FROM python:3.11-slim AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE openapi.yaml ./
COPY service service
RUN python -m venv /opt/genhook
RUN /opt/genhook/bin/python -m pip install --no-cache-dir --disable-pip-version-check --constraint constraints.txt '.[postgres]'

FROM python:3.11-slim
RUN useradd --system --uid 10001 --home-dir /var/lib/genhook genhook && install --directory --owner genhook --group genhook --mode 0700 /var/lib/genhook
COPY --from=build /opt/genhook /opt/genhook
ENV PATH=/opt/genhook/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    GENHOOK_HOST=0.0.0.0 \
    PORT=8000 \
    GENHOOK_DATABASE_URL=sqlite:////var/lib/genhook/genhook.db
USER 10001
# The only place that is written to: the root file system may be read-only.
VOLUME /var/lib/genhook
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD ["python", "-c", "import http.client, os; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['PORT']), timeout=2); c.request('GET', '/healthz'); raise SystemExit(c.getresponse().status != 200)"]
CMD ["genhook", "serve"]
