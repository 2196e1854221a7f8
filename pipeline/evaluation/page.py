"""One self-contained HTML page of an evaluation: per query its top results as frame strips, the worst failures first.

    html = render_page(found, report, num_queries=60)      # rank 0 alone; reads only the clips that it shows

The true video is marked; where it is not among the top results, it follows them with its rank. A histogram shows the
similarities of true pairs against those of other pairs.
"""

import base64
import html
import io
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.data.clips import ClipReader
from pipeline.evaluation.counting import on_grid
from pipeline.evaluation.report import Report, console_table
from pipeline.evaluation.rescoring import top_items
from pipeline.evaluation.retrieval import Retrieval

TOP = 5
STRIP_FRAMES = 6
STRIP_PX = 80
HISTOGRAM_ITEMS = 2000
NUM_BINS = 60

STYLE = """
body { font: 14px/1.4 sans-serif; margin: 2em auto; max-width: 1100px; color: #222 }
pre { background: #f4f4f4; padding: 1em; overflow-x: auto }
section { border-top: 1px solid #ccc; padding: .8em 0 }
.result { display: inline-block; margin: .2em .4em .2em 0; padding: 3px; border: 3px solid #ddd; font-size: 11px }
.true { border-color: #2a8a3e }
.result img { display: block }
h2 { font-size: 15px; margin: 0 0 .3em }
.hit { color: #2a8a3e } .miss { color: #b3261e }
"""


def render_page(found: Retrieval, report: Report, *, num_queries: int, image_size_px: int) -> str:
    """The page as text. `num_queries` of the set are shown, in order of falling rank."""
    ranks = found.t2v.by_rule(found.config.ties)
    shown = np.argsort(-ranks, kind="stable")[:num_queries]
    top = top_items(found.queries_QD[torch.from_numpy(shown)], found.gallery_GD, TOP).reshape(len(shown), -1).numpy()
    true = found.questions.video_of_query[shown]
    needed = sorted({*top.ravel().tolist(), *true.tolist()})
    strips = _strips(found, needed, image_size_px)
    sections = [
        _section(found, int(query), ranks[query], row, int(video), strips)
        for query, row, video in zip(shown, top, true, strict=True)
    ]
    title = html.escape(f"{report['set']} - {report['checkpoint']}")
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style></head><body>',
            f"<h1>{title}</h1>",
            f"<pre>{html.escape(console_table(report))}</pre>",
            _histogram(found),
            f"<p>{len(shown)} of {len(ranks):,} queries, the worst ranks first.</p>",
            *sections,
            "</body></html>",
        ]
    )


def _section(
    found: Retrieval, query: int, rank: float, top: NDArray[np.int64], video: int, strips: dict[int, str]
) -> str:
    text = found.questions.texts[found.questions.text_of_query[query]]
    results = [_result(found, query, int(item), int(item) == video, f"#{n}", strips) for n, item in enumerate(top, 1)]
    if video not in top:
        results.append(_result(found, query, video, True, f"true, rank {rank:g}", strips))
    verdict = "hit" if rank <= 1 else "miss"
    name = html.escape(found.questions.query_ids[query])
    return (
        f'<section><h2>{html.escape(text)}</h2><div>{name}: <span class="{verdict}">rank {rank:g}</span></div>'
        f"{''.join(results)}</section>"
    )


def _result(found: Retrieval, query: int, video: int, is_true: bool, place: str, strips: dict[int, str]) -> str:
    score = float(on_grid(found.queries_QD[query]) @ on_grid(found.gallery_GD[video]))
    name = html.escape(found.questions.clip_ids[video])
    return (
        f'<div class="result{" true" if is_true else ""}"><img alt="{name}" src="{strips[video]}">'
        f"{html.escape(place)} {name} ({score:.3f})</div>"
    )


def _strips(found: Retrieval, videos: Iterable[int], image_size_px: int) -> dict[int, str]:
    """A JPEG of a few frames side by side per video, as a data URL."""
    numbers = list(videos)
    clip_ids = [found.questions.clip_ids[number] for number in numbers]
    reader = ClipReader(found.config.shards, num_frames=STRIP_FRAMES, image_size_px=image_size_px, clip_ids=clip_ids)
    urls: list[str] = []
    for _, video_BTCHW, _ in reader.batches(0, len(clip_ids), 16, found.config.num_workers):
        urls += [_strip(clip) for clip in video_BTCHW]
    return dict(zip(numbers, urls, strict=True))


def _strip(clip_TCHW: Tensor) -> str:
    frames = torch.cat(list(clip_TCHW), dim=-1).permute(1, 2, 0).contiguous().numpy()
    image = Image.fromarray(frames).resize((STRIP_PX * len(clip_TCHW), STRIP_PX), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=70)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _histogram(found: Retrieval) -> str:
    """An SVG: how similar true pairs are (green), and all other pairs (grey), each with its own height."""
    queries = found.queries_QD[:HISTOGRAM_ITEMS]
    gallery = found.gallery_GD[:HISTOGRAM_ITEMS]
    scores = (queries @ gallery.T).numpy()
    owner = found.questions.video_of_query[: len(queries)]
    is_true = owner[:, None] == np.arange(len(gallery))[None, :]
    low, high = float(scores.min()), float(scores.max()) + 1e-6
    bars = [
        _bars(np.histogram(scores[mask], bins=NUM_BINS, range=(low, high))[0], colour)
        for mask, colour in ((~is_true, "#999"), (is_true, "#2a8a3e"))
    ]
    return (
        f'<svg width="600" height="150" viewBox="0 0 600 150" role="img" aria-label="similarities">{"".join(bars)}'
        f'<text x="0" y="148" font-size="11">{low:.2f}</text>'
        f'<text x="560" y="148" font-size="11">{high:.2f}</text></svg>'
        "<p>Cosine similarity: true pairs green, other pairs grey; each scaled to its own maximum.</p>"
    )


def _bars(counts: NDArray[np.int64], colour: str) -> str:
    width, top = 600 / NUM_BINS, max(int(counts.max()), 1)
    return "".join(
        f'<rect x="{n * width:.1f}" y="{130 - 125 * count / top:.1f}" width="{width - 1:.1f}" '
        f'height="{125 * count / top:.1f}" fill="{colour}" fill-opacity="0.6"/>'
        for n, count in enumerate(counts.tolist())
    )
