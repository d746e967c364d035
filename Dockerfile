# syntax=docker/dockerfile:1
# One image for bridge, workers, migrate and local models: the command says which. Only what requirements.lock names
# is installed, by hash. Extras: gateway (litellm), documents (text extraction), local (models on this machine).
ARG PYTHON=3.11.14-slim-bookworm

FROM python:${PYTHON} AS build
ARG EXTRAS=gateway,documents
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /opt/faas
COPY pyproject.toml requirements.lock ./
COPY deploy/locked.py deploy/locked.py
RUN python deploy/locked.py "${EXTRAS}" > /tmp/requirements.txt
RUN /opt/faas/bin/pip install --no-deps --require-hashes --only-binary=:all: -r /tmp/requirements.txt
COPY README.md LICENSE ./
COPY bridge bridge
COPY cli cli
COPY client client
COPY codec codec
COPY runtime runtime
COPY schemas schemas
COPY stack stack
COPY store store
COPY subjects subjects
COPY workers workers
RUN /opt/faas/bin/pip install --no-deps --no-build-isolation --no-index .

FROM python:${PYTHON}
RUN groupadd --gid 10001 faas && useradd --uid 10001 --gid faas --no-create-home --shell /usr/sbin/nologin faas
COPY --from=build /opt/faas /opt/faas
ENV PATH=/opt/faas/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 FAAS_HOME=/tmp/faas
USER 10001:10001
WORKDIR /tmp
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + (os.environ.get('PROBE_PORT') or os.environ.get('BRIDGE_PORT') or '8080') + '/readyz', timeout=4)"]
ENTRYPOINT ["faas"]
CMD ["--help"]
