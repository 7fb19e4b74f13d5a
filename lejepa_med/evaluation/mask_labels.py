"""What the values of a cache's masks mean: the foreground classes that a segmentation task scores."""

from __future__ import annotations

from lejepa_med.data.cache import Cache
from lejepa_med.errors import DataError


def foreground_classes(cache: Cache) -> dict[int, str]:
    """Value and name of every class that is scored, by rising value: all but the background, 0.

    Raises:
        DataError: `mask_labels.json` is damaged, or the cache has none, or it names no foreground.
    """
    names = {value: name for value, name in sorted(cache.mask_labels().items()) if value != 0}
    if not names:
        raise DataError(f"cache {cache.folder}: no mask_labels.json that names a class; prepare it again with masks")
    return names
