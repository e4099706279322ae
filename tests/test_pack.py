"""Models that travel: a folder that is a config and weights everywhere, also by way of a hub."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import piip
from piip.config.load import config_dir, config_from_dict, load_config
from piip.data.sets.shapes.drawing import draw_image
from piip.pack import card
from piip.weights.files import write_weights
from tests.cli.chain import run, succeed
from tests.engine.tiny import environment

SHIPPED = config_dir() / "weights" / "mask_rcnn_piip_nano.safetensors"


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pack") / "photo.png"
    draw_image(256, np.random.default_rng(3))[0].save(path)
    return path


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack of the shipped network, made from a weight file that names a folder and a file of this machine."""
    folder = tmp_path_factory.mktemp("packed")
    config = load_config(
        "nano", ["data.val.root=/home/someone/secret/shapes", "model.backbone.branches.0.init=/a/b.pth"]
    )
    names = ["rectangle", "circle", "triangle", "star", "cross"]
    file = folder / "weights.safetensors"
    write_weights(file, load_file(SHIPPED), config=config.model_dump(mode="json"), class_names=names, step=7)
    succeed("pack", file, folder / "model")
    return folder / "model"


def test_a_pack_is_a_config_and_weights_everywhere(packed, photo, tmp_path):
    assert sorted(path.name for path in packed.iterdir()) == ["README.md", "config.yaml", "model.safetensors"]
    expected = piip.create_model("nano", "shipped").predict(photo, threshold=0.3)
    for model in (piip.create_model(packed), piip.create_model("nano", packed)):
        found = model.predict(photo, threshold=0.3)
        assert torch.equal(found["boxes"], expected["boxes"])
        assert found.class_names == expected.class_names
    done = succeed("predict", packed, photo, "--output", tmp_path / "shown", "--json")
    assert len(json.loads(done.stdout)["annotations"]) == len(expected["scores"])


def test_paths_of_this_machine_do_not_travel(packed):
    for file in packed.iterdir():
        assert b"someone" not in file.read_bytes()
        assert b"/a/b.pth" not in file.read_bytes()
    config = load_config(packed)
    assert config.model.backbone.branches[0].init == "b.pth"


def test_the_card_has_what_hubs_and_people_read(packed):
    config = load_config("mask_rcnn_piip_nano", ["model.backbone.branches.1.init=vit_small_patch16_dinov3.lvd1689m"])
    text = card(config, ["a", "b"], {"box_ap": 0.5, "mask_ap": 0.25})
    front, body = re.fullmatch(r"---\n(.*?)---\n\n(.*)", text, re.DOTALL).groups()
    about = yaml.safe_load(front)
    assert (about["library_name"], about["pipeline_tag"], about["license"]) == ("piip", "object-detection", "other")
    assert about["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.5
    assert "| box_ap | 0.5000 |" in body
    assert "vit_small_patch16_dinov3.lvd1689m: dinov3-license" in body
    front = yaml.safe_load((packed / "README.md").read_text().split("---")[1])
    assert front["library_name"] == "piip"


def test_what_cannot_be_packed_is_told_and_leaves_nothing(packed, tmp_path):
    done = run("pack", packed, packed)
    assert done.exit_code == 2
    assert "exists" in done.stderr
    save_file({"weight": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    done = run("pack", tmp_path / "foreign.safetensors", tmp_path / "out")
    assert done.exit_code == 1
    assert "does not say which config" in done.stderr
    assert not (tmp_path / "out").exists()
    assert run("pack", tmp_path / "nothing", tmp_path / "out").exit_code == 2


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's protocol that a model of small files takes: make, upload as one commit, list, download."""

    files: dict[str, bytes]  # of the server's only repository
    commit = "0123456789abcdef0123456789abcdef01234567"

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/repos/create":
            self._json({"url": f"http://{self.headers['Host']}/me/first", "id": "me/first"})
        elif self.path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif self.path.endswith("/preupload/main"):
            files = [
                {"path": item["path"], "uploadMode": "regular", "shouldIgnore": False}
                for item in json.loads(body)["files"]
            ]
            self._json({"files": files})
        elif self.path.startswith("/api/models/me/first/commit/main"):
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._json(
                {"commitUrl": f"http://{self.headers['Host']}/me/first/commit/{self.commit}", "commitOid": self.commit}
            )
        else:
            self._json({"error": f"no {self.path}"}, status=404)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == f"/me/first/resolve/{self.commit}/{(name := path.rpartition('/')[2])}" and name in self.files:
            self._send(self.files[name], "application/octet-stream")
        elif path.startswith("/api/models/me/first/tree/"):
            entries = [{"type": "file", "path": n, "size": len(d), "oid": "0"} for n, d in self.files.items()]
            self._json(entries)
        elif path.startswith("/api/models/me/first"):
            self._json({"id": "me/first", "sha": self.commit, "siblings": [{"rfilename": name} for name in self.files]})
        else:
            self._json({"error": "Repository not found"}, status=404)

    do_HEAD = do_GET

    def _json(self, document: object, status: int = 200) -> None:
        self._send(json.dumps(document).encode(), "application/json", status)

    def _send(self, data: bytes, kind: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Repo-Commit", self.commit)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.files = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_pack_travels_over_a_hub(packed, photo, hub, tmp_path):
    settings = {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path), "HF_TOKEN": "hf_test", "HF_HUB_DISABLE_XET": "1"}
    settings |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    script = Path(__file__).parent / "scripts" / "hub_round_trip.py"
    done = subprocess.run(
        [sys.executable, script, packed, "me/first", photo],
        env=environment() | settings,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    address, count = done.stdout.split()
    assert "me/first" in address
    assert sorted(Hub.files) == ["README.md", "config.yaml", "model.safetensors"]
    assert int(count) == len(piip.create_model("nano", "shipped").predict(photo, threshold=0.3)["scores"])

    command = "import sys; from piip.__main__ import main; sys.argv[0] = 'piip'; main()"
    done = subprocess.run(
        [sys.executable, "-c", command, "predict", "hub:me/none", photo],
        env=environment() | settings,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert "cannot fetch hub:me/none" in done.stderr


def test_a_config_in_a_pack_is_data(packed, tmp_path):
    document = yaml.safe_load((packed / "config.yaml").read_text())
    assert config_from_dict(document).name == "detection/mask_rcnn_piip_nano"
    (tmp_path / "config.yaml").write_text("model: !!python/object/apply:os.system ['true']\n")
    done = run("predict", tmp_path, "photo.jpg", "--weights", packed)
    assert done.exit_code == 2
