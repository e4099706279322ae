"""`piip export`: files that other runtimes run, and that are refused where they compute something else."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

import piip
from piip.export import onnx as writer
from tests.cli.chain import run, succeed
from tests.engine.tiny import run_python
from tests.export.small import NAMES, Small, small

ROOT = Path(__file__).parents[2]
OUTPUTS = {
    ("mask_rcnn", False): ["boxes", "scores"],
    ("mask_rcnn", True): ["boxes", "scores", "labels", "masks"],
    ("dino", False): ["boxes", "scores"],
    ("dino", True): ["boxes", "scores", "labels"],
    ("upernet", False): ["logits"],
    ("upernet", True): ["labels", "scores"],
    ("classifier", False): ["logits"],
    ("classifier", True): ["labels", "scores"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def detector(folder: Path) -> Small:
    return small("mask_rcnn", folder)


def export(network: Small, output: Path, *options: str) -> dict:
    words = [*network.words, "--weights", network.weights, "--output", output, "--json", *options]
    return json.loads(succeed("export", *words).stdout)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("mask_rcnn", ["--final", "--size", "96x128"]),
        ("dino", ["--dynamic", "batch", "--deform", "gather"]),
        ("upernet", ["--final", "--opset", "20", "--size", "64x128"]),
        ("classifier", ["--dynamic", "batch", "--normalised"]),
    ],
)
def test_every_task_runs_in_onnxruntime_and_openvino_as_in_torch(folder, kind, options):
    network, output = small(kind, folder), folder / f"{kind}.onnx"
    report = export(network, output, *options)
    final = "--final" in options
    assert report["passed"]
    assert [one["name"] for one in report["differences"]] == OUTPUTS[kind, final]
    assert all(one["error"] < 1e-4 and one["alone"] == 0 for one in report["differences"])
    assert report["bytes"] - report["weight_bytes"] < 1.5e6  # the graph, and nothing of training

    session = onnxruntime.InferenceSession(output)
    (images,) = session.get_inputs()
    assert images.name == "images"
    assert images.type == ("tensor(float)" if "--normalised" in options else "tensor(uint8)")
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["class_names"])[0] == piip.create_model(NAMES[kind]).names[0]

    openvino = pytest.importorskip("openvino")
    shape = [3 if isinstance(side, str) else side for side in images.shape]
    pixels = torch.nn.functional.interpolate(
        torch.rand(*shape[:2], 6, 6, generator=torch.Generator().manual_seed(0)) * 255, size=shape[2:], mode="bicubic"
    )
    pixels = pixels.clamp(0, 255).numpy().astype(np.float32 if "--normalised" in options else np.uint8)
    compiled = openvino.Core().compile_model(str(output), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled(pixels)
    for index, expected in enumerate(session.run(None, {"images": pixels})):
        assert found[index].shape == expected.shape
        if kind != "mask_rcnn":  # near ties of untrained proposals come in another order there
            np.testing.assert_allclose(found[index], expected, atol=2e-3 * max(1, np.abs(expected).max()))


@pytest.mark.slow
def test_the_plugin_is_a_node_with_the_inputs_that_tensorrt_reads(folder):
    output = folder / "plugin.onnx"
    report = export(small("classifier", folder), output, "--deform", "trt-plugin", "--half")
    assert report["passed"]
    model = onnx.load(output)
    nodes = [node for node in model.graph.node if node.op_type == "MultiscaleDeformableAttnPlugin_TRT"]
    assert len(nodes) == 4  # two pairs of branches, both ways
    assert not any(node.op_type == "GridSample" for node in model.graph.node)
    types = {item.name: item.data_type for item in model.graph.initializer}
    for node in nodes:
        assert (len(node.input), node.domain) == (5, "trt.plugins")
        assert {types[name] for name in node.input[1:3]} == {onnx.TensorProto.INT32}


@pytest.mark.slow
def test_a_file_that_computes_something_else_is_told_and_stays(folder, monkeypatch):
    def wrong(value, shapes, locations, weights):  # as an engine that takes the nearest cell
        sizes = torch.tensor([[w, h] for h, w in shapes])[:, None]
        nearest = ((locations * sizes).floor() + 0.5) / sizes
        return writer.reference.ms_deform_attn(value, shapes, nearest, weights)

    monkeypatch.setitem(writer.SAMPLING, "gridsample", wrong)
    network, output = small("classifier", folder), folder / "wrong.onnx"
    done = run("export", *network.words, "--weights", network.weights, "--output", output, "--tolerance", "1e-4")
    assert done.exit_code == 3
    assert "does not compute what the network computes" in done.stderr
    assert output.exists()


@pytest.mark.slow
def test_a_program_of_torch_needs_the_ops_alone(detector, folder):
    output = folder / "model.pt2"
    report = export(detector, output, "--format", "torch", "--dynamic", "batch", "--size", "64")
    assert report["passed"]
    script = folder / "load.py"
    script.write_text(
        "import sys, torch, torchvision, piip.ops\n"
        f"program = torch.export.load({str(output)!r}).module()\n"
        "boxes, scores = program(torch.zeros(3, 3, 64, 64, dtype=torch.uint8))\n"
        "print(tuple(boxes.shape), 'piip.model' in sys.modules, 'piip.heads' in sys.modules)\n"
    )
    assert run_python([script]).split() == ["(3,", "200,", "5,", "4)", "False", "False"]


@pytest.mark.slow
def test_the_example_finds_what_predict_finds(folder):
    """The shipped network on an image of exactly its size, so that nothing is resized in between."""
    from piip.data.sets.shapes.drawing import draw_image

    photo, output = folder / "photo.png", folder / "nano.onnx"
    draw_image(256, np.random.default_rng(3))[0].save(photo)
    succeed("export", "nano", "--final", "--size", "256", "--output", output, "--image", photo)
    printed = run_python([ROOT / "examples" / "onnx_predict.py", output, photo, folder / "shown.png"])
    result = piip.create_model("nano", "shipped").predict(photo, threshold=0.3)
    lines = [line.split() for line in printed.splitlines()]
    assert [line[0] for line in lines] == result.class_names
    assert len(lines) > 1
    boxes = np.array([[float(side) for side in line[2:]] for line in lines])
    np.testing.assert_allclose(boxes, result["boxes"].numpy(), atol=0.3)
    assert Image.open(folder / "shown.png").size == (256, 256)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "100x64"], "multiples of 32"),
        (["--size", "large"], "give height and width"),
        (["--final", "--batch", "2"], "one image at a time"),
        (["--final", "--dynamic", "batch"], "one image at a time"),
        (["--opset", "12", "--size", "64"], "opsets 18 to 23"),
        (["--deform", "nearest"], "nearest"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is(detector, tmp_path, options, message):
    output = tmp_path / "no.onnx"
    done = run("export", *detector.words, "--weights", detector.weights, "--output", output, *options)
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.split())
    assert list(tmp_path.iterdir()) == []


def test_images_too_small_for_the_network_are_refused_with_their_size(folder, tmp_path):
    network = small("classifier", folder)
    words = [*network.words, "--weights", network.weights, "--output", tmp_path / "no.onnx", "--size", "8"]
    done = run("export", *words)
    assert done.exit_code == 2
    assert "cannot see images of --size 8x8" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named_with_the_extra(detector, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "find_spec", lambda name: None)
    done = run("export", *detector.words, "--weights", detector.weights, "--output", tmp_path / "no.onnx")
    assert done.exit_code == 2
    assert "piip[export]" in done.stderr
    assert sys.modules["onnx"] is onnx


def test_weights_of_another_network_and_a_folder_that_is_a_file_leave_nothing(detector, tmp_path):
    done = run("export", "nano", "--weights", detector.weights, "--output", tmp_path / "no.onnx")
    assert done.exit_code == 1
    (tmp_path / "file").write_text("")
    words = [*detector.words, "--weights", detector.weights, "--output", tmp_path / "file" / "no.onnx"]
    done = run("export", *words)
    assert done.exit_code == 1
    assert "cannot write" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
