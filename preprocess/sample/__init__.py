"""A generated, seeded corpus in the shape of HD-VILA-100M, small enough for a laptop and hard enough to need time.

    scenes    what a clip shows: a textured shape, a background, a motion
    draw      Scene -> frames
    texts     Scene -> subtitle, caption, query, minimal pairs
    plan      SampleConfig -> videos, clips, spans, ids: a pure function of the config
    corpus    plan -> files

Usage: `python -m preprocess.sample [FILE.yaml ...] [key=value ...]`.
"""
