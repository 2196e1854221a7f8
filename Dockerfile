# The same set-up as `make setup`, in an image. The CUDA libraries come with torch's wheels; the host brings the driver.
#   docker build -t clip-vip .
#   docker run --gpus all --shm-size 8g -v /data:/data clip-vip make demo
# Apptainer, for clusters:
#   docker save clip-vip -o clip-vip.tar && apptainer build clip-vip.sif docker-archive://clip-vip.tar
FROM python:3.11-slim-bookworm

RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends ffmpeg g++ git make \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/clip-vip
# The packages first: this layer is rebuilt only when the lock file changes.
COPY requirements.lock pyproject.toml README.md Makefile ./
COPY tools tools
COPY pipeline/__init__.py pipeline/
COPY preprocess/__init__.py preprocess/
COPY launch/__init__.py launch/
RUN bash tools/setup.sh && rm -rf /root/.cache

COPY . .
ENV PATH=/opt/clip-vip/.venv/bin:$PATH
CMD ["make", "help"]
