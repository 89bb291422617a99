"""README and docs: every command in them runs, every table says what the code says."""
import importlib.util
import os
import pickle
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import threading

import cv2
import numpy as np
import pytest
from helpers import ROOT, image, text, voc_object

from ppgfl import cli, load_config
from ppgfl.data.shapes import make_shapes
from ppgfl.weights import download, zoo

PAGES = ["README.md", "CONTRIBUTING.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]
MODEL = "gfl_r18vd_1x_coco"
HERE = ["worker_num=0", "use_gpu=false"]
SMALL = [f"{reader}.sample_transforms.{i}.Resize.target_size=[64, 96]"
         for reader, i in (("EvalReader", 1), ("TestReader", 1), ("TrainReader", 2))]


def blocks(page, language):
    content = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", content, re.DOTALL | re.MULTILINE)


def commands(page):
    """The command lines of a page as lists of words."""
    lines = "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


# --- every command runs


@pytest.fixture
def place(tmp_path, small_coco, r18vd_weights, monkeypatch):
    """A checkout with photographs, weights in the cache, and data sets where the pages have /data."""
    monkeypatch.chdir(tmp_path)
    for name in ("configs", "tools", "deploy", "ppgfl"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "PaddleDetection").symlink_to(ROOT)
    shutil.copytree(small_coco / "val2017", tmp_path / "photos")
    shutil.copy(min((small_coco / "val2017").iterdir()), tmp_path / "photo.jpg")
    writer = cv2.VideoWriter("clip.mp4", cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"mp4v"), 25, (64, 48))
    for _ in range(6):
        writer.write(np.zeros((48, 64, 3), np.uint8))
    writer.release()
    (tmp_path / "dataset").mkdir()
    coco = shutil.copytree(small_coco, tmp_path / small_coco.name)
    (coco / "train2017").symlink_to(coco / "val2017")
    for link in (tmp_path / "coco", tmp_path / "dataset" / "coco"):
        link.symlink_to(coco)
    for split in ("train", "val"):
        for i, name in enumerate(("one", "two", "three")):
            image(tmp_path / "mine" / split / "JPEGImages" / f"{split}{i}.jpg")
            text(tmp_path / "mine" / split / "Annotations" / f"{split}{i}.xml",
                 f"<annotation>{voc_object(name, 10, 10, 60, 40)}</annotation>")
    monkeypatch.setenv("PPGFL_HOME", str(tmp_path / "home"))
    for model in (MODEL, "gfl_r50_fpn_1x_coco", "gfl_r101vd_fpn_mstrain_2x_coco", "gflv2_r50_fpn_1x_coco"):
        cache(zoo.address(model), lambda path: path.symlink_to(r18vd_weights))
    cache(f"https://mirror.example.org/models/{MODEL}.pdparams", lambda path: path.symlink_to(r18vd_weights))
    shutil.copy(r18vd_weights, tmp_path / "gfl_r50_fpn_1x_coco.pdparams")
    state = pickle.loads(r18vd_weights.read_bytes())
    state = {name[len("backbone."):]: value for name, value in state.items() if name.startswith("backbone.")}
    cache(zoo.address("ResNet18_vd_pretrained"), lambda path: path.write_bytes(pickle.dumps(state, protocol=2)))
    return tmp_path


def cache(address, write):
    path = download.cached_path(address)
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path)


def small(words, place):
    """The same command on small data: the R18vd model in place of larger ones, and images of 64 x 96 pixels."""
    words = [re.sub(r"^(.*=)?/data/", rf"\g<1>{place}/", word) for word in words]
    words = [word.replace("gfl_r50_fpn_1x_coco", MODEL).replace("gflv2_r50_fpn_1x_coco", MODEL) for word in words]
    if "--data" in words:
        return [*words, "--size", "64", "--epochs", "1", "--batch", "2", "-o", *HERE]
    takes_overrides = "-c" in words or "my_config.yml" in words or words[0] in ("zoo", "model_zoo")
    drawn = any(word.startswith(("shapes_", "output/run")) for word in words)  # images of 128 pixels, or 64
    overrides = [*HERE, *(() if drawn else SMALL), *(["epoch=1"] if "train" in words[0] else [])]
    slim = words[words.index("--slim_config") + 1] if "--slim_config" in words else ""
    if "slim/distill/" in slim:
        overrides += ["teacher.ResNet.depth=18"]
        if "cwd" in slim:  # its TrainReader is that of the teacher
            overrides[4] = "TrainReader.sample_transforms.1.RandomResize.target_size=[[64, 96]]"
    return [*words, "-o", *overrides] if takes_overrides else words


def tool(words, place):
    """`ppgfl WORD ...` or `python tools/NAME.py ...`, in this process."""
    name, *arguments = small(words, place)
    if name in ("zoo", "model_zoo"):
        first_flag = next((i for i, word in enumerate(arguments) if word.startswith("-")), len(arguments))
        arguments = [MODEL, *arguments[first_flag:], "--fps_images", "1"]  # the one whose weights are in the cache
    if name == "benchmark":
        arguments += ["--rounds", "1"]
    if "--gpu" in arguments:
        arguments += ["--dry", "--parts", "0"]
    code = cli.main({"export": "export_model", "zoo": "model_zoo"}.get(name, name), arguments)
    # Weights from a seed miss the AP, a machine may lack something, and small data sets have something to complain of.
    assert code in ((0, 1) if name in ("zoo", "model_zoo", "doctor") or arguments[:1] == ["check"] else (0,))


def a_short_demo(distill):
    """The demo's commands on twelve pictures for one epoch: its AP is too low, which it says."""
    from ppgfl.cli import demo

    make_shapes("output/shapes", train=8, val=4)  # and the demo keeps them

    def main(command, arguments, prog):
        return cli.main(command, [*arguments, "-o", "epoch=1", "worker_num=0"] if command == "train" else arguments)

    assert (demo.run_distillation(main, seeds=(0,)) if distill else demo.run(main)) in (0, 1)


def script(words, place, monkeypatch):
    """`python deploy/.../X.py ...`, in this process."""
    if "/ray/" in words[0] and not importlib.util.find_spec("ray"):
        words = [words[0], "--help"]  # its worker is run in test_ray.py
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as done:
        runpy.run_path(words[0], run_name="__main__")
        raise SystemExit(0)
    assert done.value.code in (None, 0)


def service(words, then):
    """`python deploy/serving/server.py ...`, and a `curl` that asks it."""
    words = [word for word in words if word not in ("--port", "8866")]
    process = subprocess.Popen([sys.executable, *words, "--port", "0"], stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True)
    try:
        for line in process.stdout:
            address = re.search(r"serving on (http://\S+)", line)
            if address:
                threading.Thread(target=process.stdout.read, daemon=True).start()
                break
        assert address
        if then and shutil.which("curl"):
            asked = [word.replace("http://127.0.0.1:8866", address.group(1)) for word in then]
            answer = subprocess.run([*asked, "--silent", "--show-error"], capture_output=True, text=True, check=True,
                                    timeout=60)
            assert '"results"' in answer.stdout or '"images"' in answer.stdout, answer.stdout
    finally:
        process.kill()
        process.wait()


def launched(words, place):
    """`python -m paddle.distributed.launch ... tools/X.py ...`: two processes on the CPU run it; lines for several GPUs
    or machines are checked for their flags only."""
    at = next(i for i, word in enumerate(words) if word.startswith("tools/"))
    if "--gpus" in words[:at]:
        parses(words[at], words[at + 1:])
        return
    arguments = small([words[at], *words[at + 1:]], place)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *words[1:at], *arguments], env=environment, capture_output=True, text=True,
                          check=False, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def parses(name, arguments):
    import argparse

    run, add_arguments = cli.commands.COMMANDS[name.split("/")[-1][:-len(".py")]]
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    parser.parse_args(arguments)


def prepares(words):
    """The lines that set up an environment: what they name must exist. .ci/run sets up the same way."""
    if words[0] == "make":
        return subprocess.run(["make", "-n", words[1]], cwd=ROOT, capture_output=True, check=True)
    if words[:2] == ["pip", "install"]:
        known = re.findall(r'^        "(\w+)": ', (ROOT / "setup.py").read_text(encoding="utf-8"), re.MULTILINE)
        extras = re.search(r"\[(.+)\]", words[-1])
        assert words[-1].startswith("ray") or set(extras.group(1).split(",") if extras else ()) <= set(known)
        return None
    return words[:3] == ["python3", "-m", "venv"] or pytest.fail(f"no way to run {shlex.join(words)}")


@pytest.mark.drill
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page) and "/zh/" not in page])  # see test_zh.py
def test_every_command_runs(page, place, monkeypatch):
    for block in blocks(page, "yaml"):
        config = re.sub("/data/", f"{place}/", block)
        (place / re.search(r"# (\S+\.yml)", block).group(1)).write_text(config, encoding="utf-8")
    lines = commands(page)
    for words, after in zip(lines, [*lines[1:], []]):
        if words[:2] == ["ppgfl", "demo"]:
            a_short_demo(distill="--distill" in words)
        elif words[0] == "ppgfl":
            tool(words[1:], place)
        elif words[0] == "python" and words[1].startswith("tools/"):
            tool([words[1][len("tools/"):-len(".py")], *words[2:]], place)
        elif words[:2] == ["python", "-m"]:
            launched(words, place)
        elif words[:2] == ["python", "deploy/serving/server.py"]:
            service(words[1:], after if after[:1] == ["curl"] else None)
        elif words[0] == "python":
            script(words[1:], place, monkeypatch)
        elif words[0] != "curl":  # which `service` has run
            prepares(words)


def test_the_program_in_the_readme_runs(place):
    code = "\n".join(blocks("README.md", "python")).replace("gfl_r50_fpn_1x_coco", MODEL)
    code = code.replace(f'weights="{MODEL}"', f'weights="{MODEL}", overrides={[*HERE, *SMALL]!r}')
    names = {}
    exec(code, names)
    assert names["picture"].ndim == 3
    assert names["text"].startswith("{")


# --- every table is true


def test_the_page_of_configs_is_written_from_the_code():
    made = runpy.run_path(str(ROOT / "docs" / "make_configs.py"))
    page = (ROOT / "docs" / "configs.md").read_text(encoding="utf-8")
    assert page == made["page"](), "run python docs/make_configs.py"
    for shipped in (ROOT / "configs" / "gfl").glob("*.yml"):
        for key in load_config(shipped):
            assert f"`{key}`" in page or f"### {key}\n" in page, key


@pytest.mark.parametrize("page", ["README.md", "README_cn.md", "docs/model_zoo.md"])
def test_models_and_their_ap(page):
    content = (ROOT / page).read_text(encoding="utf-8")
    made = runpy.run_path(str(ROOT / "docs" / "make_zoo.py"))
    assert content == made["with_tables"](page, content), "run python docs/make_zoo.py"
    for model in zoo.MODELS.values():
        assert sum(f"({model.weights})" in line and str(model.ap) in line for line in content.splitlines()) == 1
        assert page.startswith("README") or not model.log or f"({model.log})" in content


def test_the_two_readmes_have_the_same_commands_and_pictures():
    assert commands("README_cn.md") == commands("README.md")
    pictures = [re.findall(r"!\[.*?\]\((.*?)\)", (ROOT / page).read_text(encoding="utf-8"))
                for page in ("README.md", "README_cn.md")]
    assert pictures[0] == pictures[1]


@pytest.mark.parametrize("page", [*PAGES, "README_cn.md", "CHANGELOG.md"])
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", (ROOT / page).read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (ROOT / page).parent.joinpath(target.split("#")[0]).exists(), target


def test_the_flags_of_the_migration_table_exist(capsys):
    content = (ROOT / "docs" / "migrating.md").read_text(encoding="utf-8")
    checked = 0
    for name, section in re.findall(r"^## ((?:tools|deploy)/\S+)\n(.*?)(?=^## )", content, re.DOTALL | re.MULTILINE):
        if name.startswith("tools/"):
            with pytest.raises(SystemExit):
                cli.main(name[len("tools/"):-len(".py")], ["--help"])
            known = capsys.readouterr().out
        else:
            known = (ROOT / name).read_text(encoding="utf-8")
        ours = [re.split(r"(?<!\\)\|", line)[2] for line in section.splitlines() if line.startswith("| `")]
        ours += re.findall(r"^Here only: (.*)", section, re.MULTILINE)
        for flag in re.findall(r"`(-{1,2}\w+)", " ".join(ours)):
            assert re.search(rf"{flag}\b", known), f"{name} {flag}"
            checked += 1
    assert checked > 50
