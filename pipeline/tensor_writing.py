"""safetensors files with the rights that the user's umask leaves.

write_tensors({"weight": tensor}, Path("model.safetensors"), metadata={"format": "pt"})

The library writes a temporary file that only its owner may read and gives it the final name: colleagues could not read
a checkpoint, an export or a converted model.
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write contiguous CPU tensors; a file that is there already keeps its rights."""
    path.touch()  # os.umask() would tell the rights too, but only by changing them for all threads
    rights = path.stat().st_mode & 0o777
    save_file(dict(tensors), path, metadata=metadata)
    with contextlib.suppress(PermissionError):  # a file system that has no rights of its own
        path.chmod(rights)
