"""What the shipped code never calls, and where it may."""
import ast

import pytest
from helpers import ROOT

FORBIDDEN = {"eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads", "pickle.Unpickler",
             "marshal.loads", "shelve.open", "joblib.load", "torch.load", "paddle.load", "yaml.load",
             "yaml.unsafe_load", "yaml.full_load", "tempfile.mktemp", "xml.etree.ElementTree.parse"}
ALLOWED = {("ppgfl/config/load.py", "yaml.load"),  # with a SafeLoader of our own: see test_yaml_runs_nothing
           ("ppgfl/data/yolo.py", "yaml.load")}  # with BaseLoader, which makes text, lists and mappings only


def shipped():
    return sorted(path for folder in ("ppgfl", "tools", "deploy") for path in (ROOT / folder).rglob("*.py"))


def calls_of(path):
    """(what is called as it is written, its keywords) of a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}


def offences(path):
    for name, keywords in calls_of(path):
        if name in FORBIDDEN or keywords.get("shell") == "True" or keywords.get("allow_pickle") == "True":
            yield name


def test_nothing_that_runs_code_from_files():
    found = {(path.relative_to(ROOT).as_posix(), name) for path in shipped() for name in offences(path)}
    assert found == ALLOWED
    assert len(shipped()) > 40


@pytest.mark.parametrize("line", ["eval(x)", "yaml.load(x)", "subprocess.run(x, shell=True)", "pickle.load(f)",
                                  "np.load(f, allow_pickle=True)"])
def test_the_search_finds_them(tmp_path, line):
    (tmp_path / "a.py").write_text(line, encoding="utf-8")
    assert list(offences(tmp_path / "a.py"))
