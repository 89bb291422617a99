"""The Chinese pages hold what the English ones hold: headings, commands, code, numbers, flags and links, in Chinese.

A sentence that changes without any of these is not noticed. What is missing is named with its lines on both pages.
"""
from __future__ import annotations

import posixpath
import re
import runpy
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from helpers import ROOT

NAMES = ["getting_started.md", "custom_data.md", "training.md", "deployment.md", "troubleshooting.md"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"`((?:[^`\n]|\n(?!\n))+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
CJK = "\u4e00-\u9fff"

Places = dict[str, list[int]]  # what stands on a page -> its lines


def read(page: str) -> str:
    """A page, with its head line, which leads to the other language, left empty."""
    head = "English · [中文](zh/{})" if not page.startswith("zh/") else "[English](../{}) · 中文"
    lines = (ROOT / "docs" / page).read_text(encoding="utf-8").splitlines()
    assert lines[2] == head.format(posixpath.basename(page)), f"docs/{page}:3 leads to the page in the other language"
    return "\n".join([*lines[:2], "", *lines[3:]]) + "\n"


def prose(text: str) -> str:
    """A page without its blocks of code; lines keep their numbers."""
    return FENCE.sub(newlines, text)


def newlines(match: re.Match[str]) -> str:
    return "\n" * match.group().count("\n")


def plain(text: str) -> str:
    """Prose as it is read: `code` becomes ``, and a link its text."""
    return re.sub(r"\]\([^)\s]+\)", "]", CODE.sub(lambda code: f"`{newlines(code)}`", prose(text)))


def places(pattern: re.Pattern[str], text: str, named: Callable[[str], str] = str) -> Places:
    """What a pattern finds, by its name, with its lines."""
    found: Places = {}
    for match in pattern.finditer(text):
        what = named(" ".join(match.group(match.lastindex or 0).split()))
        found.setdefault(what, []).append(text.count("\n", 0, match.start()) + 1)
    return found


def missing(name: str, english: Places, chinese: Places, more_is_right: bool = False) -> list[str]:
    """A line for each thing that the pages don't hold equally often."""
    lines = []
    for what in {**english, **chinese}:
        here, there = english.get(what, []), chinese.get(what, [])
        if len(here) > len(there) or (len(here) < len(there) and not more_is_right):
            lines.append(f"{what}: docs/{name} lines {here}, docs/zh/{name} lines {there}")
    return lines


# --- what is compared: each takes the name and both texts, and returns a line for each difference


def headings(name: str, english: str, chinese: str) -> list[str]:
    """Levels in order; below each heading the same paragraphs, list entries, blocks, and rows with as many cells."""
    (levels, here), (other_levels, there) = sections(english), sections(chinese)
    if levels != other_levels:
        return [f"headings of docs/{name}: {list(here)}", f"headings of docs/zh/{name}: {list(there)}"]
    return [f"docs/{name}: {title} has {parts}; docs/zh/{name}: {other} has {others}"
            for (title, parts), (other, others) in zip(here.items(), there.items()) if parts != others]


def sections(text: str) -> tuple[list[int], dict[str, list[str]]]:
    """Levels of the headings, and the kinds of what stands below each of them."""
    text = FENCE.sub(lambda block: f"\n<{block.group(1) or 'text'}>\n", text)
    levels, below = [], {}
    kinds: list[str] = []
    before = ""
    for line in [*text.splitlines(), ""]:
        if heading := re.match(r"(#+) ", line):
            levels.append(len(heading.group(1)))
            kinds = below.setdefault(line, [])
        elif line.startswith("|"):
            kinds.append(f"row of {len(cells(line))}")
        elif line.startswith("* "):
            kinds.append("entry")
        elif line.startswith("<"):
            kinds.append(f"code {line}")
        elif line.startswith("!["):
            kinds.append("picture")
        elif line and not before:
            kinds.append("paragraph")
        before = line
    return levels, below


def cells(row: str) -> list[str]:
    return re.split(r"(?<!\\)\|", row)[1:-1]


def code(name: str, english: str, chinese: str) -> list[str]:
    """Lines of code but for their comments, in order."""
    here, there = ([line for _, block in FENCE.findall(text) for line in uncommented(block)]
                   for text in (english, chinese))
    lines = [f"docs/zh/{name} lacks the line: {line}" for line in here if line not in there]
    lines += [f"docs/{name} has no more the line: {line}" for line in there if line not in here]
    return lines or (["the lines of code come in another order, or not equally often"] if here != there else [])


def uncommented(block: str) -> list[str]:
    lines = [re.sub(r"(^|\s+)#.*$", "", line) for line in block.splitlines()]
    return [line for line in lines if line]


def names_in_code(name: str, english: str, chinese: str) -> list[str]:
    """Inline code, each as often as on the English page."""
    return missing(name, places(CODE, prose(english)), places(CODE, prose(chinese)))


def flags(name: str, english: str, chinese: str) -> list[str]:
    """Flags wherever they stand, as in comments of a command."""
    pattern = re.compile(r"(?<![\w-])--\w+")
    return missing(name, places(pattern, english), places(pattern, chinese))


def numbers(name: str, english: str, chinese: str) -> list[str]:
    """Numbers of the text, names as float32 apart; Chinese may write with digits what English writes as a word."""
    pattern = re.compile(r"(?<![\w.])\d+(?:[.,]\d+)*(?:e-?\d+)?")
    return missing(name, places(pattern, plain(english)), places(pattern, plain(chinese)), more_is_right=True)


def links(name: str, english: str, chinese: str) -> list[str]:
    """The same targets as seen from docs/zh/, where the five pages stay among themselves and have other anchors."""
    def seen_from_zh(target: str, folder: str) -> str:
        page, hash_, anchor = target.partition("#")
        if ":" in page:
            return target
        if not page or page in NAMES:
            return page + hash_
        return posixpath.relpath(posixpath.join(folder, page), "docs/zh") + hash_ + anchor

    return missing(name, places(LINK, english, lambda target: seen_from_zh(target, "docs")),
                   places(LINK, chinese, lambda target: seen_from_zh(target, "docs/zh")))


COMPARED: list[Callable[[str, str, str], list[str]]] = [headings, code, names_in_code, flags, numbers, links]


@pytest.mark.parametrize("compared", COMPARED, ids=lambda compared: compared.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_both_pages_hold_the_same(name, compared):
    differences = compared(name, read(name), read(f"zh/{name}"))
    assert not differences, "bring the Chinese page up to date:\n" + "\n".join(differences)


# --- what the Chinese pages are by themselves


def anchors(text: str) -> set[str]:
    """Of the headings, as GitHub and the site (docs/site_pages.py) make them."""
    titles = re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


@pytest.mark.parametrize("name", NAMES)
def test_links_with_an_anchor_lead_to_a_heading(name):
    for target in places(LINK, read(f"zh/{name}")):
        page, _, anchor = target.partition("#")
        if ":" not in target and anchor:
            path = ROOT / "docs" / "zh" / (page or name)
            assert anchor in anchors(path.read_text(encoding="utf-8")), f"docs/zh/{name}: {target}"


def test_the_site_says_that_a_page_is_chinese():
    mark = runpy.run_path(str(ROOT / "docs" / "site_pages.py"))["on_post_page"]
    html = '<html lang="en" class="no-js">'
    for place, marked in (("zh/training.md", True), ("index_cn.md", True), ("training.md", False)):
        page = SimpleNamespace(file=SimpleNamespace(src_uri=place))
        assert (mark(html, page, {}) == '<html lang="zh-CN" class="no-js">') == marked


def english_left(text: str) -> list[str]:
    """Lines and cells of two English words without a Chinese character, and three English words in a row anywhere."""
    pieces = [(i, piece) for i, line in enumerate(plain(text).splitlines(), 1)
              for piece in (cells(line) if line.startswith("|") else [line])]
    pieces += [(text.count("\n", 0, block.start()) + 1, comment) for block in FENCE.finditer(text)
               for comment in re.findall(r"(?:^|\s)#(\s.*)$", block.group(2), re.MULTILINE)]
    return [f"line {i}: {piece}" for i, piece in pieces
            if re.search(r"\b[a-z]+ [a-z]+ [A-Za-z]+\b", piece)
            or (re.search(r"\b[A-Za-z]+ [a-z]+\b", piece) and not re.search(f"[{CJK}]", piece))]


def badly_set(text: str) -> list[str]:
    """Chinese and Latin text without a space between them, and half-width punctuation beside Chinese."""
    pattern = re.compile(f"[{CJK}][A-Za-z0-9`]|[A-Za-z0-9`%][{CJK}]|[{CJK}][,;:!?()]|[,;:!?()] ?[{CJK}]|[{CJK}]\\. ?")
    return [f"line {lines}: {what}" for what, lines in places(pattern, re.sub(r"!?\[|\]", "", plain(text))).items()]


@pytest.mark.parametrize("name", NAMES)
def test_the_chinese_page_is_chinese_and_well_set(name):
    assert not english_left(read(f"zh/{name}"))
    assert not badly_set(read(f"zh/{name}"))


# --- and each of these checks can fail


PAGE = """# Title

Take `a.b` of 16 images, see [training](training.md#resume) and [zoo](model_zoo.md).

```sh
ppgfl infer -c x   # or --from yolo
```

| a | b |
| --- | --- |

## Next

* one
"""


@pytest.mark.parametrize(("compared", "old", "new", "named"), [
    (headings, "## Next", "### Next", "### Next"),
    (headings, "* one\n", "* one\n* two\n", "['entry', 'entry']"),
    (headings, "| a | b |", "| a | b | c |", "row of 3"),
    (headings, "```sh", "```python", "code <python>"),
    (code, "infer -c x", "infer -c x --resume", "zh/a.md lacks the line: ppgfl infer -c x --resume"),
    (code, "ppgfl infer -c x   # or --from yolo\n", "", "has no more the line: ppgfl infer -c x"),
    (names_in_code, "`a.b`", "`a.b` or `c`", "c: docs/a.md lines [3], docs/zh/a.md lines []"),
    (names_in_code, "`a.b`", "it", "a.b: docs/a.md lines [], docs/zh/a.md lines [3]"),
    (flags, "--from", "--split", "--split: docs/a.md lines [6], docs/zh/a.md lines []"),
    (numbers, "16", "32", "32: docs/a.md lines [3], docs/zh/a.md lines []"),
    (links, "model_zoo", "detection", "../detection.md: docs/a.md lines [3]"),
    (links, "[training](training.md#resume)", "training", "training.md#: docs/a.md lines [], docs/zh/a.md lines [3]"),
])
def test_a_change_of_the_english_page_is_named(compared, old, new, named):
    chinese = PAGE.replace("model_zoo", "../model_zoo").replace("#resume", "#恢复")
    assert compared("a.md", PAGE, chinese) == []
    assert old in PAGE
    assert named in "\n".join(compared("a.md", PAGE.replace(old, new), chinese))


def test_comments_of_code_are_free():
    assert code("a.md", PAGE, PAGE.replace("# or", "# 或")) == []


@pytest.mark.parametrize(("text", "wrong"), [
    ("权重 `weights` 可用 3.3，见[训练](training.md)。", (False, False)),
    ("Left as it is.", (True, False)),
    ("这里 left in English 了。", (True, False)),
    ("| 中文 | not tried |", (True, False)),
    ("```sh\nls  # a comment left\n```", (True, False)),
    ("用GPU训练。", (False, True)),
    ("用 `-o`修改。", (False, True)),
    ("权重,学习率。", (False, True)),
    ("权重 (见下)。", (False, True)),
])
def test_english_and_bad_setting_are_noticed(text, wrong):
    assert (bool(english_left(text)), bool(badly_set(text))) == wrong
