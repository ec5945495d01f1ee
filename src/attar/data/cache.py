"""Where decoded images are kept between runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """ATTAR_CACHE, or `attar` in the platform's cache folder of the user."""
    if "ATTAR_CACHE" in os.environ:
        return Path(os.environ["ATTAR_CACHE"]).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "attar" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "attar"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "attar"
