"""open_clip, imported without wandb.

timm, which open_clip imports, would import wandb where it is installed: two seconds in the trainer and in the server of
its data workers, and folders in the temporary folder that stay behind after a SIGKILL.

open_clip = import_open_clip()
"""

import sys
from typing import Any


def import_open_clip() -> Any:
    """The module; `from open_clip...` is as good after it."""
    hides = "wandb" not in sys.modules
    if hides:
        sys.modules["wandb"] = None  # type: ignore[assignment]
    try:
        import open_clip

        return open_clip
    finally:
        if hides:
            del sys.modules["wandb"]
