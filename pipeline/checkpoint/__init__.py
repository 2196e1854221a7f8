"""Checkpoints that are complete or ignored.

runs/<name>/
    latest                        text: checkpoints/step_00001000; replaced atomically, after the checkpoint is whole
    checkpoints/step_00001000/
        engine/                   DeepSpeed's own files (the only ones that are ever unpickled, and only our own)
        model.safetensors         whole weights, with model.json: enough for inference
        state.json                step, stream state, counters, versions
        rng.safetensors           random states of every rank
        config.yaml
        COMPLETE.json             size and SHA-256 of every other file; written last
    checkpoints/damaged_step_*    one that was passed over; nobody removes it; renamed_step_*: its name was another's
    checkpoints/.staging-*        an attempt that did not finish; removed by the next start

folder.py    what lies on the disk: names, hashes, intact or not, `latest`, the keep policy
save.py      every rank writes, all agree that it worked, rank 0 publishes
vote.py      how they agree, over the store through which they found each other
restore.py   choose the newest intact checkpoint, load it into the engine
rng.py       random states
"""
