"""The last job of a shard set: merge what the array tasks wrote and print the account.

    launch.merge.main(["data/shards/hdvila"])       # started by slurm_shards.py

Unlike `preprocess.merge` alone it fails when shards are missing, so that training does not start on a part of the data.
"""

from pathlib import Path

from pipeline.errors import RunError


def main(argv: list[str]) -> int:
    """Merge one set."""
    from preprocess.merge import account, merge

    stats = merge(Path(argv[0]))
    print(account(stats), flush=True)
    if stats["num_pending"]:
        raise RunError(
            f"{argv[0]} lacks shards ({stats['num_pending']} clips are pending); run the same slurm_shards.py command "
            "again, it submits only what is missing"
        )
    return 0
