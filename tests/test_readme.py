"""What a stranger reads first is true: sizes, wings, recipes, names of files, the site, the forms on GitHub."""
from __future__ import annotations

import ast
import re
import runpy
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
import yaml
from helpers import ROOT

from ppgfl import build, load_config

READMES = ["README.md", "README_cn.md"]
PAGES = [*READMES, "CONTRIBUTING.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def script(name: str) -> dict:
    """What a file of docs/ defines."""
    return runpy.run_path(str(ROOT / "docs" / name))


# --- sizes


def test_the_page_of_the_afternoon_is_written_from_the_files():
    made = script("make_afternoon.py")
    assert read("docs/afternoon.md") == made["page"](), "run python docs/make_afternoon.py"
    for part, files in made["parts"]().items():
        for name, lines in files.items():
            assert lines == (ROOT / "ppgfl" / name).read_bytes().count(b"\n"), (part, name)


@pytest.mark.parametrize("page", READMES)
def test_the_sizes_in_the_readmes_are_measured(page):
    made = script("make_afternoon.py")
    assert read(page) == made["with_sizes"](page, read(page)), "run python docs/make_afternoon.py"
    sentence = read(page).split("<!-- sizes")[1].split("<!-- /sizes")[0]
    named = [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", sentence)]
    network, losses, targets, loop, together, package = named
    assert network + losses + targets + loop == together
    counted = sum(path.read_bytes().count(b"\n") for path in (ROOT / "ppgfl").rglob("*.py"))
    assert abs(package - counted) <= 50


def test_a_file_that_is_gone_is_noticed():
    made = script("make_afternoon.py")
    made["PARTS"]["The losses"]["model/gone.py"] = "Nothing."
    with pytest.raises(FileNotFoundError, match="gone"):
        made["parts"]()


# --- names


@pytest.mark.parametrize("page", READMES)
def test_the_map_has_one_row_for_each_wing(page):
    rows = re.findall(r"^\| `ppgfl/(\w+)/` \|", read(page), re.MULTILINE)
    assert sorted(rows) == sorted(path.parent.name for path in (ROOT / "ppgfl").glob("*/__init__.py"))
    beside = {path.name for path in (ROOT / "ppgfl").glob("*.py")}
    assert beside <= set(re.findall(r"`(\w+\.py)`", read(page)))


@pytest.mark.parametrize("page", [*READMES, "CONTRIBUTING.md"])
def test_the_order_of_the_wings_is_the_one_that_is_tested(page):
    order = runpy.run_path(str(ROOT / "tests" / "test_architecture.py"))["ORDER"]
    order = [[wing for wing in wings if wing != "targets"] for wings in order]  # which is only another path to data
    written = re.search(r"`errors`\s+→\s+`kinds`\s+→.*?`cli`", read(page), re.DOTALL).group()
    assert [re.findall(r"`(\w+)`", wings) for wings in written.split("→")] == order


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_exist(page):
    named = re.findall(r"`((?:ppgfl|tests|deploy|tools|docs|benchmarks|configs)/[\w/]+\.(?:py|ya?ml|md))`", read(page))
    if page == "docs/migrating.md":  # which names PaddleDetection's tools
        named = [name for name in named if not name.startswith("tools/")]
    assert not [name for name in named if not (ROOT / name).is_file()]


def test_targets_of_make_that_pages_name_exist():
    named = {name for page in [*PAGES, "CHANGELOG.md"] for name in re.findall(r"`make ([\w-]+)`", read(page))}
    assert {"test", "test-all", "docs", "bench", "faults"} <= named
    for name in named:
        subprocess.run(["make", "-n", name], cwd=ROOT, capture_output=True, check=True)


def test_messages_that_troubleshooting_quotes_are_still_printed():
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "ppgfl").rglob("*.py")]
    texts = [node.value for tree in trees for node in ast.walk(tree)
             if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    first = [line.split("|")[1] for line in read("docs/troubleshooting.md").splitlines() if line.startswith("| ")]
    quoted = [part.strip(" :,") for cell in first for quote in re.findall("`([^`]+ [^`]+)`", cell)
              for part in re.split(r"\.\.\.|\d+", quote)]
    messages = [part for part in quoted if " " in part]
    assert len(messages) >= 4
    assert not [message for message in messages if not any(message in text for text in texts)]


def test_the_changelog_says_where_each_module_went():
    rows = re.findall(r"^ *\| `(ppgfl\.\w+)`[^|]*\| `(ppgfl\.[\w.]+)`", read("CHANGELOG.md"), re.MULTILINE)
    assert len(rows) > 40
    for before, now in rows:
        assert before != now
        assert (ROOT / now.replace(".", "/")).with_suffix(".py").is_file(), now


# --- recipes of CONTRIBUTING.md


def recipe(heading: str, language: str) -> list[str]:
    section = read("CONTRIBUTING.md").split(f"## {heading}\n")[1].split("\n## ")[0]
    return [textwrap.dedent(block) for block in re.findall(rf"^ *```{language}\n(.*?)^ *```$", section,
                                                           re.DOTALL | re.MULTILINE)]


def names_of(code: str, module: str) -> dict:
    """What a piece of code defines when it stands in a module."""
    names = {"__name__": module, "__package__": module.rpartition(".")[0]}
    exec(compile(code, module, "exec"), names)
    return names


def config_of(text: str, folder: Path) -> dict:
    path = folder / "config.yml"
    path.write_text(text, encoding="utf-8")
    return load_config(path)


def test_the_backbone_of_contributing_detects(tmp_path, monkeypatch):
    code, table = recipe("Add a backbone", "python")
    backbone = names_of(code, "ppgfl.model.tinynet")["TinyNet"]
    monkeypatch.setitem(sys.modules, "ppgfl.model.tinynet", SimpleNamespace(TinyNet=backbone))
    changed = {**build.BACKBONES, "__package__": "ppgfl"}
    exec(table, changed)
    assert set(changed["BACKBONES"]) == {*build.BACKBONES, "TinyNet"}
    monkeypatch.setitem(build.BACKBONES, "TinyNet", backbone)
    monkeypatch.setitem(build.CLASSES, "TinyNet", backbone)
    model = build.build_model(config_of(recipe("Add a backbone", "yaml")[0], tmp_path))
    assert model.backbone.channels == [16, 32, 64]
    maps = model.backbone(paddle.zeros([1, 3, 64, 96]))
    assert [x.shape for x in maps] == [[1, 16, 8, 12], [1, 32, 4, 6], [1, 64, 2, 3]]
    model.eval()
    found = model({"image": paddle.zeros([1, 3, 64, 96]), "scale_factor": paddle.ones([1, 2])})
    assert found["bbox"].shape[1] == 6
    summary, meanings = script("make_configs.py")["describe"](backbone)
    assert summary
    assert set(meanings) >= {"width", "norm_type"}


def test_the_transform_of_contributing_takes_the_colour_out(tmp_path, monkeypatch):
    from ppgfl.data import transforms

    code, = recipe("Add a transform", "python")
    names = {**vars(transforms)}
    exec(code, names)
    transform = names["RandomGray"]
    monkeypatch.setitem(build.SAMPLE_TRANSFORMS, "RandomGray", transform)
    monkeypatch.setitem(build.CLASSES, "RandomGray", transform)
    cfg = config_of(recipe("Add a transform", "yaml")[0], tmp_path)
    build.check(cfg)
    assert transform in [type(each) for each in build.build_reader(cfg, "TrainReader").sample_transforms]
    image = np.zeros((1, 2, 3), np.uint8)
    image[0, 0] = 255, 0, 0
    for prob, want in ((1.0, [[76, 76, 76], [0, 0, 0]]), (0.0, [[255, 0, 0], [0, 0, 0]])):
        sample = {"image": image.copy()}
        transform(prob)(sample, np.random.default_rng(0))
        assert sample["image"][0].tolist() == want
    with pytest.raises(names["ConfigError"], match="RandomGray.prob"):
        transform(2)


def test_the_parity_value_of_contributing_agrees(monkeypatch):
    _, code = recipe("Add a parity value", "python")
    names = names_of(code, "recipe")
    names["test_giou_is_that_of_paddledetection"]()
    monkeypatch.setitem(names, "recorded", lambda name: {"loss": np.ones(3, np.float32)})
    with pytest.raises(AssertionError):
        names["test_giou_is_that_of_paddledetection"]()


# --- the site


def site() -> dict:
    return yaml.safe_load(read("mkdocs.yml"))


def test_the_site_leads_to_every_page():
    places = script("site_pages.py")["PAGES"]
    menu = [place for section in site()["nav"] for entries in section.values() for entry in entries
            for place in entry.values()]
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")} | set(places.values())
    assert sorted(menu) == sorted(pages - {"golden.md"}), "a page is missing in the nav of mkdocs.yml, or is gone"
    assert all((ROOT / path).is_file() for path in places)


def test_the_reference_has_every_public_name():
    import ppgfl

    text = "".join(read(f"docs/reference/{path.name}") for path in (ROOT / "docs" / "reference").glob("*.md"))
    shown = re.findall(r"^::: ppgfl\.([\w.]+)$", text, re.MULTILINE)
    errors = {name for name in ppgfl.__all__ if name.endswith("Error")}  # with the module of errors
    assert set(ppgfl.__all__) - errors <= set(shown)
    assert {"errors", "build", "optim", "data", "data.targets", "model", "training"} <= set(shown)


def test_links_are_moved_with_their_pages():
    made = script("site_pages.py")

    def moved(place: str, text: str) -> str:
        return made["on_page_markdown"](text, SimpleNamespace(file=SimpleNamespace(src_uri=place)), {}, [])

    assert moved("index.md", "[a](docs/training.md#resume)") == "[a](training.md#resume)"
    assert moved("reference/network.md", "[a](../afternoon.md)") == "[a](../afternoon.md)"
    assert moved("training.md", "[a](../README.md)") == "[a](index.md)"
    assert moved("afternoon.md", "[a](../ppgfl/build.py)") == "[a](source/ppgfl/build.py.md)"
    assert moved("benchmarks/results.md", "![a](results.png)") == "![a](../source/benchmarks/results.png)"
    for same in ("[a](https://example.org/README.md)", "[a](#here)", "[a](gone.md)"):
        assert moved("index.md", same) == same
    assert "benchmarks/results.png" in made["linked"]("README.md")


def test_source_becomes_a_page_whatever_is_in_it(tmp_path, monkeypatch):
    made = script("site_pages.py")
    (tmp_path / "a.py").write_text('"""A fence:\n```\n"""\n', encoding="utf-8")
    made["text_page"].__globals__["ROOT"] = tmp_path
    assert '\n```` {.python linenums="1"}\n"""A fence:\n```\n"""\n````\n' in made["text_page"]("a.py")


@pytest.mark.parametrize(("html", "calls_out"), [
    ('<script src="https://a.example/x.js"></script>', True),
    ('<link rel="stylesheet" href="https://a.example/x.css">', True),
    ('<img alt="x" src="http://a.example/x.png">', True),
    ('<a href="https://a.example">x</a> <script src="assets/x.js"></script>', False),
    ('<link rel="canonical" href="https://a.example"><link rel="stylesheet" href="x.css">', False),
])
def test_a_page_that_calls_out_stops_the_site(html, calls_out, tmp_path):
    (tmp_path / "index.html").write_text(html, encoding="utf-8")
    check = script("site_pages.py")["on_post_build"]
    if calls_out:
        with pytest.raises(ValueError, match="index.html"):
            check({"site_dir": str(tmp_path)})
    else:
        check({"site_dir": str(tmp_path)})


def test_docstrings_become_paragraphs(monkeypatch):
    monkeypatch.setitem(sys.modules, "griffe", SimpleNamespace(Extension=object))
    as_markdown = script("docstrings.py")["as_markdown"]
    text = as_markdown("Do it.\n\nArgs:\n    a: one.\n\nReturns: two\n    lines.\nRaises: ConfigError.\n")
    assert [line for line in text.splitlines() if line] == [
        "Do it.", "Args:", "    a: one.", "**Returns:** two", "lines.", "**Raises:** ConfigError."]
    text = as_markdown("Do it.\n\nRaises:\n    ConfigError: one.\n    DataError: two,\n        and more.\n")
    assert "\n* `ConfigError`: one.\n\n* `DataError`: two,\n    and more." in text


# --- GitHub, and the checks before a commit


def test_workflows_call_what_exists():
    text = read(".github/workflows/ci.yml")
    jobs = yaml.safe_load(text)["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    for target in re.findall(r"^make (\S+)$", "\n".join(commands), re.MULTILINE):
        subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, check=True)
    assert "bash .ci/run" in commands
    assert (ROOT / ".ci" / "run").is_file()
    matrix = jobs["test"]["strategy"]["matrix"]
    oldest = re.search(r'python_requires=">=([\d.]+)"', read("setup.py")).group(1)
    assert matrix["python"][0] == oldest
    assert "2.6.2" in matrix["paddle"]
    assert "paddlepaddle==2.6.2" in read("Makefile")
    assert "touch .venv/ready" in text
    assert "VENV := .venv\n" in read("Makefile")
    assert "$(VENV)/ready:" in read("Makefile")


@pytest.mark.parametrize("name", ["bug_report", "values_differ"])
def test_reports_ask_for_what_the_doctor_says(name):
    form = yaml.safe_load(read(f".github/ISSUE_TEMPLATE/{name}.yml"))
    asked = {part["id"]: part for part in form["body"] if "id" in part}
    assert "ppgfl doctor" in asked["doctor"]["attributes"]["label"]
    assert asked["doctor"]["validations"]["required"]


def test_checks_before_a_commit_are_those_of_make_check():
    hooks = {hook["id"]: hook for repo in yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
             for hook in repo["hooks"]}
    assert hooks["ruff"]["entry"].startswith(".venv/bin/python -m ruff check")
    assert "-m ruff check ." in read("Makefile")
    assert {"mypy", "sizes", "end-of-file", "yaml"} <= set(hooks)
