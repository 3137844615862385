# Debian's nginx, Prometheus and Redis in the place of images that cannot be pulled. For checks only: never push it.
FROM python:3.11-slim-bookworm
# hadolint ignore=DL3008
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends nginx-light prometheus redis-server wget \
    && rm -rf /var/lib/apt/lists/* \
    && install -d -o 101 -g 101 /var/cache/nginx \
    && install -d -o 65534 -g 65534 /prometheus
