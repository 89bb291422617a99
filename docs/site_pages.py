"""A hook of mkdocs: the site also has pages that stand elsewhere in the repository, and its links reach them.

Pages link to files by their place in the repository, so that the links work in a checkout. On the site README.md is the
front page, source and configs that a page links to are pages with their text, and other linked files are copied.
"""
from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
# Page of the repository outside of docs/ -> its place on the site.
PAGES = {"README.md": "index.md", "README_cn.md": "index_cn.md", "CONTRIBUTING.md": "contributing.md",
         "CHANGELOG.md": "changelog.md", "benchmarks/RESULTS.md": "benchmarks/results.md",
         "benchmarks/NOTES.md": "benchmarks/notes.md", "tests/golden/README.md": "golden.md"}
SHOWN = {".py": "python", ".yml": "yaml"}  # files whose text becomes a page, and its language
LINK = re.compile(r"(?<=\]\()([^)\s#]*)(#[^)\s]*)?(?=\))")
# What a browser fetches by itself when it opens a page, from another server.
FETCHED = re.compile(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?https?:[^>]*>"
                     r"|<link\b(?=[^>]*\brel=[\"']?(?:stylesheet|preload|icon|preconnect))[^>]*\bhref=[\"']?https?:[^>]*>")


def on_config(config: MkDocsConfig) -> None:
    """Give Chinese headings the anchors that they have on GitHub; by default theirs are numbers."""
    from markdown.extensions.toc import slugify_unicode

    config.mdx_configs["toc"]["slugify"] = slugify_unicode


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages outside of docs/, and what any page links to."""
    from mkdocs.structure.files import File

    for path, place in PAGES.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
    pages = [*PAGES, *(f"docs/{file.src_uri}" for file in files.documentation_pages() if file.src_uri not in
                       PAGES.values())]
    for path in sorted({target for page in pages for target in linked(page)}):
        place = place_of(path)
        if files.get_file_from_path(place) is not None:
            continue
        if path.startswith("docs/"):
            raise FileNotFoundError(f"{path}: a page links to it, but it is no page of the site")
        if Path(path).suffix in SHOWN:
            files.append(File.generated(config, place, content=text_page(path)))
        else:
            files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links by the place in the repository -> links by the place on the site."""
    place = page.file.src_uri
    path = next((path for path, other in PAGES.items() if other == place), f"docs/{place}")

    def moved(match: re.Match[str]) -> str:
        target = repository_path(path, match.group(1))
        if target is None:
            return match.group()
        return posixpath.relpath(place_of(target), posixpath.dirname(place) or ".") + (match.group(2) or "")

    return LINK.sub(moved, markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Say of Chinese pages that they are: browsers choose fonts by it, and readers for the blind their voice."""
    chinese = page.file.src_uri == PAGES["README_cn.md"] or page.file.src_uri.startswith("zh/")
    return output.replace('<html lang="en"', '<html lang="zh-CN"', 1) if chinese else output


def on_post_build(config: MkDocsConfig) -> None:
    """Fail when a page would fetch something from another server."""
    wrong = [f"{path}: {found}" for path in sorted(Path(config["site_dir"]).rglob("*.html"))
             for found in FETCHED.findall(path.read_text(encoding="utf-8"))]
    if wrong:
        raise ValueError("pages of the site must not call out:\n" + "\n".join(wrong))


def linked(page: str) -> set[str]:
    """The files of the repository that a page of it links to."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return {path for target, _ in LINK.findall(text) if (path := repository_path(page, target))}


def repository_path(page: str, target: str) -> str | None:
    """The file that a link of a page means, by its place in the repository; None for anything else."""
    if not target or ":" in target:
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
    return path if (ROOT / path).is_file() else None


def place_of(path: str) -> str:
    """Where a file of the repository stands on the site."""
    if path in PAGES:
        return PAGES[path]
    if path.startswith("docs/"):
        return path[len("docs/"):]
    return f"source/{path}.md" if Path(path).suffix in SHOWN else f"source/{path}"


def text_page(path: str) -> str:
    """A page with the text of a source file or a config, which the search leaves out."""
    text = (ROOT / path).read_text(encoding="utf-8").rstrip("\n")
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return (f"---\nhide: [toc]\nsearch:\n  exclude: true\n---\n# {path}\n\n"
            f'{fence} {{.{SHOWN[Path(path).suffix]} linenums="1"}}\n{text}\n{fence}\n')
