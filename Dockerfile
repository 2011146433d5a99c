# `tsugiki serve` on a processor, as an ordinary user:
#   docker build --tag tsugiki .
#   docker run --rm --publish 127.0.0.1:8000:8000 --env TSUGIKI_API_KEY=… --volume tsugiki:/home/tsugiki tsugiki
# The adapters of the library, models of the Hub and runs are kept in the volume. Arguments after the image's name
# replace those of `CMD`, such as: serve --model Qwen/Qwen3-0.6B --host 0.0.0.0
FROM python:3.13-slim-trixie AS build
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.13-slim-trixie
COPY constraints.txt /tmp/
RUN pip install --no-cache-dir --constraint /tmp/constraints.txt \
        --index-url https://download.pytorch.org/whl/cpu torch
COPY --from=build /wheels /wheels
RUN wheel=$(echo /wheels/*.whl) \
    && pip install --no-cache-dir --constraint /tmp/constraints.txt "${wheel}[serve,sentencepiece]" \
    && tsugiki --version \
    && useradd --create-home --uid 1000 tsugiki
USER 1000
WORKDIR /home/tsugiki
VOLUME /home/tsugiki
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health')"]
ENTRYPOINT ["tsugiki"]
CMD ["serve", "--model", "embedded", "--host", "0.0.0.0"]
