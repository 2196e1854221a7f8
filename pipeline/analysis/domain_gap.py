"""How far apart sources of texts or videos lie: `python -m pipeline.analysis.domain_gap sources.NAME=PLACE ...`.

    python -m pipeline.analysis.domain_gap model=runs/b32 output=runs/gap \\
        sources.subtitles=data/shards/hdvila:subtitle sources.captions=data/shards/hdvila:caption \\
        sources.msrvtt=data/shards/msrvtt_1ka/queries.jsonl:text

The paper's measure (section 3 of CLIP-ViP): features of a pre-training and a downstream source are clustered by
k-means, and the normalised mutual information (NMI) between cluster and source tells the gap: 0 where the clusters know
nothing of the source, 1 where they are the sources. Every pair of sources is clustered with k = 2, all sources together
with each of `clusters`. What the paper leaves open is an option: normalisation, the average in NMI, sample size.

Each seed draws its own sample of equal size from every source, and its own starts of k-means; figures are means over
the seeds with 95% intervals (Student's t). `shuffled` is the same with the sources exchanged at random: what is chance.
"""

import importlib.util
import itertools
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.analysis.pools import Features, Place, read_pool
from pipeline.config import Section, parse_command_line
from pipeline.encode import CLIPViP
from pipeline.errors import InputError, run_command

PROGRAM = "python -m pipeline.analysis.domain_gap"
POOL_FACTOR = 2
"""Items encoded of every source, for each that one seed draws."""
STARTS = 10
"""Of k-means, the best of which counts; scikit-learn's old default."""


class DomainGapConfig(Section):
    """What is compared, and how."""

    sources: dict[str, str] = Field(min_length=2)
    """Name -> place: a shard set with :subtitle, :caption or :video, a .jsonl, .csv, .tsv or .parquet file with :field,
    a .txt file, or a .parquet table of features."""
    model: Path | None = None
    """What encodes: a run, a checkpoint, an export. Not needed where all sources are features."""
    sample_size: int = Field(default=2000, ge=10)
    """Items that a seed draws of each source; fewer where the smallest source has fewer."""
    seeds: int = Field(default=5, ge=1)
    """How often it is done."""
    clusters: tuple[int, ...] = (2, 3, 4, 6, 8)
    """Numbers of clusters for all sources together."""
    normalize: bool = True
    """Cluster unit vectors. The features of models are unit vectors anyway; given tables may not be."""
    nmi_average: Literal["arithmetic", "geometric", "min", "max"] = "arithmetic"
    """Mean of the two entropies that mutual information is divided by."""
    output: Path = Path("runs/domain_gap")
    """Folder for domain_gap.json, .md and .png."""


@dataclass(frozen=True)
class Estimate:
    """One figure over the seeds."""

    mean: float
    low: float
    high: float
    shuffled: float
    """The mean with sources exchanged at random."""


def main(argv: list[str]) -> int:
    """Measure, print the table, write it and the picture."""
    config = parse_command_line(DomainGapConfig, argv, program=PROGRAM, about=__doc__ or "")
    if importlib.util.find_spec("sklearn") is None:
        raise InputError("the analysis needs scikit-learn: pip install 'clip-vip-pipeline[analysis]'")
    places = {name: Place.parse(place) for name, place in config.sources.items()}
    if config.model is None and (lacking := [name for name, place in places.items() if place.needs_model]):
        raise InputError(f"sources.{lacking[0]} has to be encoded: name a model, as model=runs/b32")
    model = None if config.model is None else CLIPViP.load(config.model)
    rng = np.random.default_rng(0)
    pools = {
        name: read_pool(place, POOL_FACTOR * config.sample_size, model, rng) for name, place in config.sources.items()
    }
    check_pools(pools)
    found = measure(pools, config)
    write(found, pools, config)
    print(table(found))
    print(f"written: {', '.join(str(config.output / f'domain_gap.{end}') for end in ('json', 'md', 'png'))}")
    return 0


def check_pools(pools: Mapping[str, Features]) -> None:
    """Refuse what cannot be compared."""
    widths = {name: features.shape[1] for name, features in pools.items()}
    if len(set(widths.values())) > 1:
        shown = ", ".join(f"{name} {width}" for name, width in widths.items())
        raise InputError(f"the sources have vectors of different lengths ({shown}); compare features of one model")
    few = {name: len(features) for name, features in pools.items() if len(features) < 10}
    if few:
        name, size = next(iter(few.items()))
        raise InputError(f"source {name} has {size} items; at least 10 are needed")


def measure(pools: Mapping[str, Features], config: DomainGapConfig) -> dict[str, Any]:
    """The gaps of all pairs at k = 2, and of all sources together for every number of clusters."""
    size = min(config.sample_size, *(len(features) for features in pools.values()))
    pairs = {
        f"{one} / {other}": estimate([pools[one], pools[other]], 2, size, config)
        for one, other in itertools.combinations(pools, 2)
    }
    together = {str(k): estimate(list(pools.values()), k, size, config) for k in config.clusters}
    return {"sample_size": size, "pairs": pairs, "together": together}


def estimate(pools: Sequence[Features], num_clusters: int, size: int, config: DomainGapConfig) -> Estimate:
    """NMI between clusters and sources, over the seeds."""
    values, shuffled = [], []
    for seed in range(config.seeds):
        rng = np.random.default_rng(seed)
        features = np.concatenate([pool[rng.permutation(len(pool))[:size]] for pool in pools])
        if config.normalize:
            features = features / np.linalg.norm(features, axis=1, keepdims=True)
        sources = np.repeat(np.arange(len(pools)), size)
        clusters = cluster(features, num_clusters, seed)
        values.append(nmi(sources, clusters, config.nmi_average))
        shuffled.append(nmi(rng.permutation(sources), clusters, config.nmi_average))
    low, high = interval(values)
    return Estimate(statistics.fmean(values), low, high, statistics.fmean(shuffled))


def cluster(features: Features, num_clusters: int, seed: int) -> NDArray[np.int32]:
    """The cluster of each row."""
    from sklearn.cluster import KMeans

    labels: NDArray[np.int32] = KMeans(num_clusters, n_init=STARTS, random_state=seed).fit_predict(features)
    return labels


def nmi(sources: NDArray[np.int64], clusters: NDArray[np.int32], average: str) -> float:
    """Normalised mutual information, 0 to 1."""
    from sklearn.metrics import normalized_mutual_info_score

    return float(normalized_mutual_info_score(sources, clusters, average_method=average))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95% of the mean by Student's t, within [0, 1]; the value itself where there is one.

    >>> interval([0.5])
    (0.5, 0.5)
    """
    if len(values) < 2:
        return values[0], values[0]
    from scipy.stats import t

    mean = statistics.fmean(values)
    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return max(0.0, mean - half), min(1.0, mean + half)


def table(found: Mapping[str, Any]) -> str:
    """As Markdown: the widest gap first."""
    lines = ["| sources (k = 2) | NMI | 95% interval | shuffled |", "|---|---:|---:|---:|"]
    ranked = sorted(found["pairs"].items(), key=lambda item: -item[1].mean)
    lines += [f"| {name} | {_cells(value)} |" for name, value in ranked]
    lines += ["", "| all sources, clusters | NMI | 95% interval | shuffled |", "|---|---:|---:|---:|"]
    lines += [f"| {k} | {_cells(value)} |" for k, value in found["together"].items()]
    return "\n".join([*lines, "", f"{found['sample_size']:,} items of each source and seed."])


def _cells(value: Estimate) -> str:
    return f"{value.mean:.3f} | {value.low:.3f} to {value.high:.3f} | {value.shuffled:.3f}"


def write(found: Mapping[str, Any], pools: Mapping[str, Features], config: DomainGapConfig) -> None:
    """domain_gap.json, .md and .png."""
    content = {
        "config": config.model_dump(mode="json"),
        "sample_size": found["sample_size"],
        **{part: {name: vars(value) for name, value in found[part].items()} for part in ("pairs", "together")},
    }
    try:
        config.output.mkdir(parents=True, exist_ok=True)
        (config.output / "domain_gap.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        (config.output / "domain_gap.md").write_text(table(found) + "\n", encoding="utf-8")
        draw(found, pools, config.output / "domain_gap.png")
    except OSError as error:
        raise InputError(
            f"cannot write into {config.output}: {error.strerror}; set output= to another folder"
        ) from None


def draw(found: Mapping[str, Any], pools: Mapping[str, Features], path: Path) -> None:
    """All sources on their two widest directions (principal components), and NMI over the number of clusters."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 5), layout="constrained")
    for name, points in project(pools, found["sample_size"]).items():
        left.scatter(*points.T, s=4, alpha=0.4, label=name)
    left.set(title="features on their first two principal components", xticks=[], yticks=[])
    left.legend(markerscale=3, fontsize=8)
    ks = [int(k) for k in found["together"]]
    values = list(found["together"].values())
    bounds = [[value.mean - value.low for value in values], [value.high - value.mean for value in values]]
    right.errorbar(ks, [value.mean for value in values], yerr=bounds, marker="o", label="clusters against sources")
    right.plot(ks, [value.shuffled for value in values], color="0.6", linestyle=":", label="sources shuffled")
    right.set(title="all sources together", xlabel="clusters", ylabel="NMI", ylim=(0, 1), xticks=ks)
    right.legend(fontsize=8)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def project(pools: Mapping[str, Features], size: int) -> dict[str, Features]:
    """Of every source at most `size` points [n, 2]."""
    shown = {name: features[:size] for name, features in pools.items()}
    everything = np.concatenate(list(shown.values())).astype(np.float64)
    mean = everything.mean(0)
    _, _, directions = np.linalg.svd(everything - mean, full_matrices=False)
    return {name: ((features - mean) @ directions[:2].T).astype(np.float32) for name, features in shown.items()}


if __name__ == "__main__":
    run_command(main)
