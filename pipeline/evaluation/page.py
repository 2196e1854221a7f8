"""One self-contained HTML page of an evaluation: per query its top results as frame strips, the worst failures first.

    html = render_page(found, report, num_queries=60)      # rank 0 alone; reads only the clips that it shows

The true video is marked; where it is not among the top results, it follows them with its rank. Under every video stands
what it was described as, so that a wrong hit that fits the query too is seen for what it is.
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
from pipeline.evaluation.histogram import similarity_histogram
from pipeline.evaluation.report import HEADINGS, Report, headline, notes, table_rows
from pipeline.evaluation.rescoring import top_items
from pipeline.evaluation.retrieval import Retrieval

TOP = 5
STRIP_FRAMES, STRIP_PX, STRIP_GAP_PX = 6, 96, 3
HISTOGRAM_ITEMS = 2000

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1180px; padding: 0 1em; color: #1c2430 }
h1 { font-size: 24px; margin: 0 } h2 { font-size: 17px; margin: 0; display: inline } h3 { margin: 1.6em 0 .4em }
code, .id { color: #667080; font-size: 13px }
table { border-collapse: collapse; margin: 1em 0 .4em } th, td { padding: .25em .9em; text-align: right }
th:first-child, td:first-child { text-align: left; padding-left: 0 } thead th { border-bottom: 2px solid #c9d0da }
tr.chance { color: #8a93a1 } ul { margin: .4em 0; padding-left: 1.2em; color: #48515f; font-size: 14px }
svg { width: 100%; max-width: 760px }
section { border-top: 1px solid #d5dae1; padding: 1em 0 }
.rank { border-radius: 9px; padding: 1px 9px; margin-right: .5em; color: #fff; font-size: 13px; background: #b3261e }
.rank.hit { background: #1f8a4c }
.results { display: grid; grid-template-columns: repeat(auto-fill, minmax(350px, 1fr)); gap: 10px; align-items: start }
.results { margin-top: .6em }
figure { margin: 0; padding: 4px; border: 2px solid #e3e7ec; border-radius: 5px }
figure.true { border-color: #1f8a4c; background: #eef8f1 }
figure img { display: block; width: 100% }
figcaption { font-size: 13px; padding-top: 3px; max-height: 2.8em; overflow: hidden }
figcaption b { float: right; font-weight: 600 }
"""


def render_page(found: Retrieval, report: Report, *, num_queries: int, image_size_px: int) -> str:
    """The page as text. `num_queries` of the set are shown, in order of falling rank."""
    ranks = found.t2v.by_rule(found.config.ties)
    shown = np.argsort(-ranks, kind="stable")[:num_queries]
    top = top_items(found.queries_QD[torch.from_numpy(shown)], found.gallery_GD, TOP).reshape(len(shown), -1).numpy()
    true = found.questions.video_of_query[shown]
    strips = _strips(found, sorted({*top.ravel().tolist(), *true.tolist()}), image_size_px)
    captions = _captions(found)
    sections = [
        _section(found, int(query), ranks[query], row, int(video), strips, captions)
        for query, row, video in zip(shown, top, true, strict=True)
    ]
    title = html.escape(f"{report['set']}: text-video retrieval")
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style></head><body>',
            f"<h1>{title}</h1><code>{html.escape(report['checkpoint'])}</code>",
            _numbers(report),
            _histogram(found),
            f"<h3>{len(shown)} of {len(ranks):,} queries, the worst first</h3>",
            *sections,
            "</body></html>",
        ]
    )


def _numbers(report: Report) -> str:
    """What the other forms of the report say: table and notes."""
    head = "".join(f"<th>{heading}</th>" for heading in ("", *HEADINGS))
    rows = "".join(
        f"<tr{' class=chance' if label.strip() == 'chance' else ''}><td>{html.escape(label.strip())}</td>"
        + "".join(f"<td>{cell}</td>" for cell in cells)
        + "</tr>"
        for label, cells in table_rows(report)
    )
    listed = "".join(f"<li>{html.escape(note.strip())}</li>" for note in notes(report))
    return (
        f"<p>{html.escape(headline(report))}</p><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        f"<ul>{listed}</ul>"
    )


def _section(
    found: Retrieval,
    query: int,
    rank: float,
    top: NDArray[np.int64],
    video: int,
    strips: dict[int, str],
    captions: list[str],
) -> str:
    text = found.questions.texts[found.questions.text_of_query[query]]
    results = [(int(item), f"{place}.") for place, item in enumerate(top, 1)]
    if video not in top:
        results.append((video, f"rank {rank:g}, true video."))
    figures = "".join(
        _figure(found, query, item, place, strips[item], captions[item], is_true=item == video)
        for item, place in results
    )
    return (
        f'<section><span class="rank {"hit" if rank <= 1 else "miss"}">rank {rank:g}</span>'
        f'<h2>{html.escape(text)}</h2> <span class="id">{html.escape(found.questions.query_ids[query])}</span>'
        f'<div class="results">{figures}</div></section>'
    )


def _figure(found: Retrieval, query: int, video: int, place: str, strip: str, caption: str, *, is_true: bool) -> str:
    score = float(on_grid(found.queries_QD[query]) @ on_grid(found.gallery_GD[video]))
    name = html.escape(found.questions.clip_ids[video])
    picture = f'<img alt="{name}" title="{name}" src="{strip}">' if strip else f"<code>{name}</code>"
    return (
        f"<figure{' class=true' if is_true else ''}>{picture}"
        f"<figcaption><b>{score:.3f}</b>{place} {html.escape(caption)}</figcaption></figure>"
    )


def _captions(found: Retrieval) -> list[str]:
    """Of every gallery video the first of its texts."""
    questions = found.questions
    _, first = np.unique(questions.video_of_query, return_index=True)
    return [questions.texts[number] for number in questions.text_of_query[first]]


def _strips(found: Retrieval, videos: Iterable[int], image_size_px: int) -> dict[int, str]:
    """A JPEG of a few frames side by side per video, as a data URL; none where the set's shards are not here."""
    numbers = list(videos)
    if not found.config.shards.exists():  # features that were given need no shards
        return dict.fromkeys(numbers, "")
    clip_ids = [found.questions.clip_ids[number] for number in numbers]
    reader = ClipReader(found.config.shards, num_frames=STRIP_FRAMES, image_size_px=image_size_px, clip_ids=clip_ids)
    urls: list[str] = []
    for _, video_BTCHW, _ in reader.batches(0, len(clip_ids), 16, found.config.num_workers):
        urls += [_strip(clip) for clip in video_BTCHW]
    return dict(zip(numbers, urls, strict=True))


def _strip(clip_TCHW: Tensor) -> str:
    step = STRIP_PX + STRIP_GAP_PX
    strip = Image.new("RGB", (step * len(clip_TCHW) - STRIP_GAP_PX, STRIP_PX), "white")
    for number, frame_CHW in enumerate(clip_TCHW):
        frame = Image.fromarray(frame_CHW.permute(1, 2, 0).contiguous().numpy())
        strip.paste(frame.resize((STRIP_PX, STRIP_PX), Image.Resampling.BICUBIC), (step * number, 0))
    buffer = io.BytesIO()
    strip.save(buffer, "JPEG", quality=75)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _histogram(found: Retrieval) -> str:
    """How similar true pairs are, and all other pairs, among the first queries and videos."""
    queries, gallery = found.queries_QD[:HISTOGRAM_ITEMS], found.gallery_GD[:HISTOGRAM_ITEMS]
    scores = (queries @ gallery.T).numpy()
    is_true = found.questions.video_of_query[: len(queries), None] == np.arange(len(gallery))[None, :]
    drawing = similarity_histogram(scores[is_true], scores[~is_true])
    cut = len(queries) < len(found.questions.query_ids) or len(gallery) < found.questions.num_gallery
    which = f" of the first {len(queries):,} queries and {len(gallery):,} videos" if cut else ""
    return f"<h3>Cosine similarity{which}, true pairs and others each scaled to their own height</h3>{drawing}"
