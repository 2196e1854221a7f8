"""What a step costs on this machine's GPU, case by case, by the interpreter that is there.

    make bench-gpu                                   # or: python3 -m benchmarks.gpu --out results/gpu.json
    python3 -m benchmarks.gpu --only b32_32_fast     # one case; --list names them all
    python3 -m benchmarks.gpu --render results/gpu.json

    cases     what is measured, in the order of what matters most
    engine    steps of `pipeline.engine` on a batch that lies on the device
    training  `pipeline.train` on shards that `shards` writes
    parts     the loss at a large batch, encoding
    tables    JSON to the Markdown of RESULTS.md, and the plot of two trainings

The JSON file is written anew after every case, so that a run that is cut short leaves what it has. A case that does not
fit into the rest of the time is named as left out. Nothing here needs ffmpeg, PyAV, wandb or a network.
"""
