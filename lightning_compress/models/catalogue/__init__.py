"""Table of timm's compact networks with their costs.

``listing.py`` has :func:`backbones`, which selects networks; ``table.py`` its result, the :class:`Catalogue`.
``counting.py`` counts parameters, multiply-accumulates and bytes, ``latency.py`` measures latency. ``counts.json``
holds the counts for one version of timm.
"""
