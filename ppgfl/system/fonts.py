"""Which TrueType font of this machine has the letters of a text."""
from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from . import runtime
from .log import logger
from .text import cut, shown

CHART_WIDTH = 22  # letters of a name in a chart

note = logger.warning
font_setting = runtime.font_setting

# --- deploy/python/infer.py has a copy of these, which a test compares

FONT_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.fonts", "~/.local/share/fonts",
                "/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts",
                "C:/Windows/Fonts", "~/AppData/Local/Microsoft/Windows/Fonts")
# The second is that of `ppgfl[fonts]`.
FONT_PACKAGES = {"matplotlib": "mpl-data/fonts/ttf/DejaVuSans.ttf", "pylopdf_fonts_zh_cn": "NotoSansSC-Regular.otf"}
# Asked first; then the others by name, those of another style than upright and regular last.
FONTS = ("DejaVuSans", "NotoSans-Regular", "Arial", "segoeui", "Helvetica", "NotoSansCJK-Regular",
         "NotoSansCJKsc-Regular", "NotoSansSC-Regular", "SourceHanSansSC-Regular", "msyh", "PingFang", "wqy-microhei",
         "DroidSansFallbackFull", "simhei")
OTHER_STYLES = re.compile("bold|black|heavy|italic|oblique|thin|light|mono|serif|condensed|display|symbol|math", re.I)
FONT_HINT = "set PPGFL_FONT to a font file that has them, or pip install 'ppgfl[fonts]' for Chinese"


@functools.cache
def font_files() -> tuple[str, ...]:
    """The fonts of this machine in the order in which they are asked for a letter; none without Pillow."""
    if importlib.util.find_spec("PIL") is None:
        note("Pillow is not installed: names are drawn in ASCII; pip install pillow")
        return ()
    files = {os.path.join(folder, name) for start in FONT_FOLDERS
             for folder, _, names in os.walk(os.path.expanduser(start)) for name in names
             if name.lower().endswith((".ttf", ".otf", ".ttc")) and not name.startswith("LastResort")}
    for package, name in FONT_PACKAGES.items():
        spec = importlib.util.find_spec(package)
        paths = [os.path.join(folder, name) for folder in (spec and spec.submodule_search_locations) or ()]
        files.update(path for path in paths if os.path.isfile(path))

    def place(path: str) -> tuple[int, bool, str]:
        stem = Path(path).stem
        return FONTS.index(stem) if stem in FONTS else len(FONTS), bool(OTHER_STYLES.search(stem)), path

    own = font_setting()
    if own and open_font(own, 16) is None:
        note(f"PPGFL_FONT: {shown(own)}: not a font that can be opened; using the installed ones")
    found = ([own] if own and open_font(own, 16) else []) + sorted(files, key=place)
    if not found:
        note(f"no TrueType font is installed: names are drawn in ASCII; {FONT_HINT}")
    return tuple(found)


@functools.lru_cache(maxsize=256)
def open_font(path: str, size: int, layout: Any = None) -> Any:
    """Pillow's font of a file in pixels, or None if it has none. layout: 0 basic, 1 Raqm, None the best there is."""
    from PIL import ImageFont

    try:
        index = 2 if re.search(r"Noto\w+CJK[^/]*\.ttc$", path) else 0  # of the five in it that with Chinese forms
        return ImageFont.truetype(path, size, index, layout_engine=layout)
    except (OSError, ValueError):  # damaged, a bitmap font without this size, not of five
        return None


@functools.lru_cache(maxsize=1 << 16)
def has_letter(path: str, letter: str) -> bool:
    """Whether a font draws a letter, neither nothing nor the sign of what it has not."""
    font = open_font(path, 16, 0)  # Raqm puts a circle below a mark that stands alone
    if font is None:
        return False
    seen, unknown = (font.getmask(one) for one in (letter, "\U0010ffff"))
    return any(seen) and (seen.size, bytes(seen)) != (unknown.size, bytes(unknown))


@functools.lru_cache(maxsize=1 << 12)
def split_by_font(text: str) -> tuple[tuple[str, str], ...]:
    """(part, font file): one part if a font has all letters, else as few as there are; a letter of no font as its
    escape. Nothing where there is no font."""
    files = font_files()
    letters = [letter for letter in dict.fromkeys(text) if not letter.isspace() and letter not in "\u200c\u200d\ufe0f"]
    for path in files:
        if all(has_letter(path, letter) for letter in letters):
            return ((text, path),)
    parts: list[tuple[str, str]] = []
    for letter in text if files else "":
        path = parts[-1][1] if parts else files[0]  # of a space the font before it
        if letter in letters:
            path = next((path for path in files if has_letter(path, letter)), "")
        if not path:
            say_missing_letters()
            path, letter = files[0], letter.encode("unicode_escape").decode("ascii")
        if parts and parts[-1][1] == path:
            letter = parts.pop()[0] + letter
        parts.append((letter, path))
    return tuple(parts)


@functools.cache
def say_missing_letters() -> None:
    """Once in a process."""
    note(f"no font of this machine has some letters of the names, which are drawn like \\u732b; {FONT_HINT}")


# --- charts


def chart_text(name: str) -> str:
    """A name that matplotlib shows as it is: not as mathematics, not left out of a legend, in letters of some font."""
    text = "".join(part for part, _ in split_by_font(cut(shown(name), CHART_WIDTH))).replace("$", r"\$")
    return f" {text}" if text.startswith("_") or not text else text


@contextlib.contextmanager
def chart_fonts(names: Iterable[str]) -> Iterator[None]:
    """Inside, matplotlib makes and draws figures with the fonts that have the letters of these names."""
    import matplotlib

    used = dict.fromkeys(path for name in names for _, path in split_by_font(chart_text(name)))
    families = [*matplotlib.rcParams["font.family"], *map(_chart_family, used)]
    with matplotlib.rc_context({"font.family": list(dict.fromkeys(families))}):
        yield


@functools.cache
def _chart_family(path: str) -> str:
    from matplotlib import font_manager

    font_manager.fontManager.addfont(path)
    return str(font_manager.FontProperties(fname=path).get_name())
