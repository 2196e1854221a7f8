"""DeepSpeed's compiled CPU op, built once into a folder that the project owns: `{sys.prefix}/torch_extensions`.

torch's extension loader guards a build with a plain file named `lock` and waits for it for ever; a process killed in
the middle leaves the file behind, and every later run hangs. Here the load happens under `flock`, which the kernel
releases with the process, so a `lock` file found while we hold it is stale and is removed.

    python -m pipeline.ops        # build during set-up
    load_cpu_ops()                # at the start of every run, before deepspeed.init_distributed
"""

import fcntl
import os
import shutil
import sys
from pathlib import Path

from pipeline.errors import RunError, run_command


def ops_folder() -> Path:
    """The build folder; TORCH_EXTENSIONS_DIR overrides it."""
    return Path(os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions")))


def load_cpu_ops() -> bool:
    """Load (building if needed) the shared-memory communication op. False where there is no compiler: gloo serves then.

    Raises RunError when the build folder cannot be written.
    """
    folder = ops_folder()
    if shutil.which("g++") is None:
        return False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        guard = open(folder / "build.flock", "w")  # noqa: SIM115 - held below, over the whole load
    except OSError as error:
        raise RunError(
            f"cannot write DeepSpeed's op folder {folder}: {error.strerror}; set TORCH_EXTENSIONS_DIR"
        ) from None
    with guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        for stale in folder.glob("*/lock"):
            stale.unlink(missing_ok=True)
        from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

        ShareMemCommBuilder().load(verbose=False)
    return True


def main(_: list[str]) -> int:
    """Build the op; exit code 1 where that is not possible."""
    return 0 if load_cpu_ops() else 1


if __name__ == "__main__":
    run_command(main)
