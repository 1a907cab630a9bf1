"""deploy/gcp.yaml's provider on a simulated Compute Engine: what it asks for, and what a refusal becomes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from ray.autoscaler.tags import NODE_KIND_HEAD, NODE_KIND_WORKER, TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

from gpm_tune.study.cluster.machines.refusals import Refusal

discovery = pytest.importorskip("googleapiclient.discovery", reason="needs google-api-python-client")
httplib2 = pytest.importorskip("httplib2")

FILE = Path(__file__).parents[2] / "deploy" / "gcp.yaml"
CONFIG = yaml.safe_load(FILE.read_text().replace("CHANGE-project", "my-project"))
STOCKOUT = "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS"


class ComputeEngine:
    """Answers as its REST interface does, and keeps the machines that it was asked for."""

    def __init__(self):
        self.asked, self.error = [], None

    def request(self, uri, method="GET", body=None, **_):
        answer = {"name": "operation", "status": "RUNNING"}
        if "/operations/" in uri:
            answer["status"] = "DONE"
            if self.error:
                answer["error"] = {"errors": [{"code": self.error, "message": "Not now."}]}
        elif method == "POST":
            self.asked.append(json.loads(body))
        return httplib2.Response({"status": "200"}), json.dumps(answer).encode()


@pytest.fixture
def engine():
    return ComputeEngine()


@pytest.fixture
def provider(engine, monkeypatch):
    from ray.autoscaler._private.gcp import node, node_provider

    from gpm_tune.study.cluster.machines.gcp import Provider

    compute = discovery.build("compute", "v1", http=engine, static_discovery=True)
    monkeypatch.setattr(
        node_provider, "construct_clients_from_provider_config", lambda _: (None, None, compute, None)
    )
    monkeypatch.setattr(node.GCPCompute, "get_new_authorized_http", lambda *_: engine)
    monkeypatch.setattr(node, "POLL_INTERVAL", 0)
    return Provider(CONFIG["provider"], "gpm-tune")


def launch(provider, kind, count=1):
    tags = {
        TAG_RAY_NODE_KIND: NODE_KIND_HEAD if kind == "head" else NODE_KIND_WORKER,
        TAG_RAY_USER_NODE_TYPE: kind,
        "ray-node-name": "ray-gpm-tune",
    }
    return provider.create_node(CONFIG["available_node_types"][kind]["node_config"], tags, count)


def test_the_file_names_this_provider():
    assert CONFIG["provider"]["type"] == "external"
    assert CONFIG["provider"]["module"] == "gpm_tune.study.cluster.machines.gcp.Provider"


def test_workers_end_themselves(provider, engine):
    assert len(launch(provider, "l4_spot", 2)) == len(engine.asked) == 2
    for machine in engine.asked:
        (item,) = machine["metadata"]["items"]
        assert item["key"] == "startup-script"
        assert item["value"].endswith(" watch 30 -x raylet\n")
        assert machine["disks"][0]["initializeParams"]["diskType"].endswith("/pd-balanced")
    launch(provider, "head")
    assert "metadata" not in engine.asked[-1]


def test_a_stockout_and_a_quota_are_refusals_that_say_what_to_do(provider, engine):
    engine.error = STOCKOUT
    with pytest.raises(Refusal, match=rf"refused 1 g2-standard-8 in us-central1-a: {STOCKOUT}.* help: wait"):
        launch(provider, "l4_spot")
    engine.error = "QUOTA_EXCEEDED"
    with pytest.raises(Refusal, match="help: ask for more of this quota"):
        launch(provider, "l4_spot")


def test_other_errors_are_said_and_are_no_refusal(provider, engine):
    engine.error = "INVALID_FIELD"
    with pytest.raises(RuntimeError, match="INVALID_FIELD: Not now"):
        launch(provider, "l4_spot")
