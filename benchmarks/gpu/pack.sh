#!/usr/bin/env bash
# Collects into .gpu/ what this project needs on a machine that has torch, numpy, pyarrow and transformers but no package
# index: wheels for its Python, and DeepSpeed as pure Python. About 20 MB. From the project's root, after `make setup`:
#   benchmarks/gpu/pack.sh [3.12]          # the Python of that machine
# There, once the checkout and .gpu/ are copied:
#   . .gpu/unpack.sh && python3 -m benchmarks.gpu && python3 -m pytest -p no:cacheprovider tests/gpu
set -euo pipefail
python=${1:-3.12}
rm -rf .gpu && mkdir -p .gpu/wheels .gpu/site
version() { sed -nE "s/^$1==([^ ]+).*/\1/p" requirements.lock | head -n 1; }
platforms=()
for name in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux1; do
    platforms+=(--platform "${name}_x86_64")
done
for name in open-clip-torch simplejpeg ftfy wcwidth submitit cloudpickle pydantic pydantic-core annotated-types typing-inspection hjson; do
    python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version "$python" --implementation cp \
        "${platforms[@]}" -d .gpu/wheels "$name==$(version "$name")"
done
cp -r .venv/lib/python3*/site-packages/deepspeed .venv/lib/python3*/site-packages/deepspeed-*.dist-info .gpu/site/
find .gpu/site -name __pycache__ -prune -exec rm -rf {} +
cat >.gpu/unpack.sh <<'SH'
# Source this in the checkout's root.
export PYTHONUNBUFFERED=1 OMP_NUM_THREADS=4 WANDB_MODE=disabled TOKENIZERS_PARALLELISM=false
export SITE=${SITE:-$PWD/.gpu/installed}; mkdir -p "$SITE"
python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$SITE" .gpu/wheels/*.whl
cp -r .gpu/site/* "$SITE"/
export PYTHONPATH=$SITE:$PWD
SH
du -sh .gpu
