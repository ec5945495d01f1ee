"""Equal and nearly equal pictures: a 64-bit gradient hash to find candidates, a small thumbnail to confirm them.

Re-encoded, resized and recompressed copies are found; crops, mirrored or turned copies, and edits that saturate, are
not. The search compares all pairs of hashes: seconds for 100,000 images, minutes for a million.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

HASH_RADIUS = 6  # differing bits of 64; JPEG copies at quality 20 stay within it
THUMBNAIL = 32  # pixels a side
MAX_NOISE = 2.0  # grey levels by which thumbnails of copies may differ: root mean square, after a contrast fit
MIN_CORRELATION = 0.98  # of the thumbnails of copies
MIN_DETAIL = 4.0  # spread of a thumbnail in grey levels, below which a picture is too flat to be compared


def gradient_hash(grey: np.ndarray) -> int:
    """64 bits: is each of 8 x 9 cells brighter than its right neighbour? Independent of brightness and contrast."""
    fine = Image.fromarray(grey.astype(np.float32))  # rounded cells would make ties, which noise then decides
    cells = np.asarray(fine.resize((9, 8), Image.Resampling.BOX))
    return int.from_bytes(np.packbits(cells[:, :-1] > cells[:, 1:]).tobytes(), "little")


def thumbnail(grey: np.ndarray) -> np.ndarray:
    """uint8 (THUMBNAIL ** 2,), the whole picture squeezed into a square."""
    return np.asarray(Image.fromarray(grey).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)).reshape(-1)


def near_pairs(hashes: np.ndarray, thumbnails: np.ndarray) -> np.ndarray:
    """Pairs of nearly equal pictures.

    Args:
        hashes: uint64 (N,). thumbnails: uint8 (N, P).

    Returns:
        int64 (pairs, 2), first < second. Of k pictures with the same hash only neighbours in a chain are compared, so
        that a thousand copies give a thousand pairs, not half a million.
    """
    candidates = np.concatenate([_equal_hashes(hashes), _similar_hashes(hashes)])
    keep = _alike(thumbnails, candidates) if len(candidates) else np.zeros(0, bool)
    return np.unique(np.sort(candidates[keep], axis=1), axis=0)


def _equal_hashes(hashes: np.ndarray) -> np.ndarray:
    order = np.argsort(hashes, kind="stable")
    same = hashes[order[1:]] == hashes[order[:-1]]
    return np.stack([order[:-1][same], order[1:][same]], axis=1).astype(np.int64)


def _similar_hashes(hashes: np.ndarray, block: int = 512) -> np.ndarray:
    """One picture of each of two hashes that differ in 1 .. HASH_RADIUS bits."""
    import faiss

    unique, first = np.unique(hashes, return_index=True)
    codes = unique.astype("<u8").view(np.uint8).reshape(-1, 8)
    index = faiss.IndexBinaryFlat(64)
    index.add(codes)
    found = [np.zeros((0, 2), np.int64)]
    for start in range(0, len(codes), block):
        limits, _, neighbours = index.range_search(codes[start : start + block], HASH_RADIUS + 1)  # distance < radius
        counts = np.diff(limits.astype(np.int64)).astype(np.int64)
        queries = np.repeat(np.arange(start, start + len(counts)), counts)
        later = neighbours > queries
        found.append(np.stack([queries[later], neighbours[later]], axis=1))
    return first[np.concatenate(found)]


def _alike(thumbnails: np.ndarray, pairs: np.ndarray, block: int = 65536) -> np.ndarray:
    """Which pairs differ only by brightness, contrast and little noise. Flat pictures are never alike."""
    keep = []
    for start in range(0, len(pairs), block):
        a, b = (thumbnails[pairs[start : start + block, side]].astype(np.float32) for side in (0, 1))
        a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
        spread_a, spread_b = a.std(1), b.std(1)
        correlation = (a * b).mean(1) / np.maximum(spread_a * spread_b, 1e-6)
        spread = np.minimum(spread_a, spread_b)
        noise = spread * np.sqrt(
            np.maximum(1 - correlation**2, 0)
        )  # what a straight-line fit of one by the other leaves
        keep.append((correlation > MIN_CORRELATION) & (noise < MAX_NOISE) & (spread > MIN_DETAIL))
    return np.concatenate(keep)


def joined_groups(pairs: np.ndarray, number: int) -> list[np.ndarray]:
    """Sets of positions connected by pairs, largest first, each sorted."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    if not len(pairs):
        return []
    graph = coo_matrix((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(number, number))
    _, component = connected_components(graph, directed=False)
    members = np.unique(pairs)
    order = members[np.argsort(component[members], kind="stable")]
    groups = np.split(order, np.flatnonzero(np.diff(component[order])) + 1)
    return sorted((np.sort(g) for g in groups), key=lambda g: (-len(g), int(g[0])))
