"""What the fork server imports once for all ranks."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["DS_ACCELERATOR"] = "cpu"

from pipeline.log import quiet

with quiet():
    import deepspeed  # noqa: F401
    import torch._dynamo  # noqa: F401 - the first optimizer step would import it

    import pipeline.train  # noqa: F401
    import tests.pipeline.cases  # noqa: F401
    from pipeline.model.library import import_open_clip

    import_open_clip()
