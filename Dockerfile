# pinjax on the hosts of a TPU slice, for launch/gke.sh. Of the last commit alone:
#
#   git archive HEAD | docker build --tag=IMAGE -
FROM python:3.11-slim
# tini is process 1: where that one aborts, as JAX does, the kernel reports 139 instead of 134.
RUN apt-get update && apt-get install --yes --no-install-recommends tini && \
    rm -rf /var/lib/apt/lists/*
WORKDIR /pinjax
COPY requirements.txt requirements-gcp.txt ./
RUN pip install --no-cache-dir -r requirements.txt -r requirements-gcp.txt \
    "$(sed -n 's/^jax==/jax[tpu]==/p' requirements.txt)"
COPY configs configs
COPY pinjax pinjax
ENTRYPOINT ["tini", "--", "python", "-m"]
CMD ["pinjax.train", "--help"]
