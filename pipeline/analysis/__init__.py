"""Questions of the paper as commands: named sources of texts, videos or features -> tables and pictures.

pools.py        a source by name: shard sets, lists, tables -> a random pool of features
domain_gap.py   how far apart sources lie: clusters against where each feature came from
"""
