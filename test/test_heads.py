"""Every head, through one tester: forward, backward, export, save and load."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file

from dinov3_seg_ros.errors import HeadError
from dinov3_seg_ros.heads import HEADS, build_head

NUM_CLASSES = 7
SINGLE = ([24], [16])
PYRAMID = ([8, 16, 24], [8, 16, 32])

# Every head and variant with every kind of input it takes; add a line for a new one.
CASES = {
    "aspp-atrous-single": ("aspp", "atrous", *SINGLE),
    "aspp-atrous-pyramid": ("aspp", "atrous", *PYRAMID),
    "aspp-plain-single": ("aspp", "plain", *SINGLE),
}


def make_maps(channels, strides, batch=2, height=64, width=96):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(batch, c, height // s, width // s, generator=generator)
        for c, s in zip(channels, strides, strict=True)
    ]


@pytest.fixture(params=CASES, ids=list(CASES))
def case(request):
    name, variant, channels, strides = CASES[request.param]
    torch.manual_seed(0)
    return build_head(name, channels, strides, NUM_CLASSES, variant=variant), make_maps(channels, strides), strides


def test_every_registered_variant_has_a_case():
    tested = {(name, variant) for name, variant, _, _ in CASES.values()}
    assert tested == {(name, variant) for name, variants in HEADS.items() for variant in variants}


def test_forward_gives_logits_at_the_finest_stride(case):
    head, maps, strides = case
    assert head(maps).shape == (2, NUM_CLASSES, 64 // min(strides), 96 // min(strides))


def test_every_parameter_takes_a_gradient(case):
    head, maps, _ = case
    head.train()(maps).square().mean().backward()
    untouched = [name for name, p in head.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert untouched == []


def test_a_frame_does_not_depend_on_the_others_of_its_batch(case):
    head, maps, _ = case
    head.eval()
    with torch.inference_mode():
        torch.testing.assert_close(head(maps)[1:], head([m[1:] for m in maps]), atol=1e-5, rtol=1e-5)


def test_export_to_onnx_keeps_the_logits_for_any_batch(case, tmp_path):
    head, maps, _ = case
    head.eval()
    path = tmp_path / "head.onnx"
    batch = torch.export.Dim("batch", min=1, max=16)
    torch.onnx.export(head, (maps,), path, dynamo=True, dynamic_shapes=([{0: batch}] * len(maps),), verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for size in (1, 3):
        inputs = [torch.cat([m, m])[:size] for m in maps]
        feed = {node.name: m.numpy() for node, m in zip(session.get_inputs(), inputs, strict=True)}
        with torch.inference_mode():
            expected = head(inputs).numpy()
        np.testing.assert_allclose(session.run(None, feed)[0], expected, atol=1e-4, rtol=1e-4)


def test_saved_and_loaded_weights_give_the_same_logits(case, tmp_path):
    head, maps, strides = case
    name = "plain" if "initial.0.weight" in head.state_dict() else "atrous"
    save_file(head.state_dict(), tmp_path / "head.safetensors")
    torch.manual_seed(1)
    other = build_head("aspp", head.in_channels, strides, NUM_CLASSES, variant=name)
    other.load_state_dict(load_file(tmp_path / "head.safetensors"))
    with torch.inference_mode():
        assert torch.equal(head.eval()(maps), other.eval()(maps))


def test_maps_of_other_channels_are_refused_with_both_named(case):
    head, maps, _ = case
    with pytest.raises(HeadError, match="was built for"):
        head([torch.zeros(1, 3, 4, 4) for _ in maps])


def test_the_default_aspp_is_small_and_sees_far():
    head = build_head("aspp", [384], [16], 134).eval()
    assert sum(p.numel() for p in head.parameters()) <= 700_000
    maps = [torch.zeros(1, 384, 40, 40, requires_grad=True)]
    head.pool = torch.nn.Conv2d(192, 192, 1).requires_grad_(False)
    torch.nn.init.zeros_(head.pool.weight)
    torch.nn.init.normal_(maps[0].data)
    head(maps)[0, :, 20, 20].sum().backward()
    reached = maps[0].grad[0].abs().sum(0).nonzero()
    # Without the global mean, a cell still sees 12 cells and more to each side: the branches really are atrous.
    assert (reached[:, 0].min() <= 8) and (reached[:, 0].max() >= 32)


def test_the_plain_aspp_is_the_predecessors():
    head = build_head("aspp", [384], [16], 134, variant="plain")
    assert round(sum(p.numel() for p in head.parameters()) / 1e6, 2) == 4.46
    shapes = {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}
    assert shapes["initial.0.weight"] == (576, 384, 1, 1)
    assert shapes["project.0.weight"] == (288, 576, 1, 1)
    assert shapes["branches.3.weight"] == (288, 288, 3, 3)
    assert shapes["branches_bn.3.running_var"] == (288,)
    assert shapes["fuse.0.weight"] == (576, 1152, 1, 1)
    assert shapes["ds.dw.weight"] == (576, 1, 3, 3)
    assert shapes["ds.pw.bias"] == (576,)
    assert shapes["ds.bn.weight"] == (576,)
    assert shapes["classifier.weight"] == (134, 576, 1, 1)
    assert {name.split(".")[0] for name in shapes} == {
        "initial", "project", "branches", "branches_bn", "fuse", "ds", "classifier",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("asp", [8], [16], 3), {}, "did you mean 'aspp'"),
        (("aspp", [8], [16], 3), {"widht": 4}, "did you mean 'width'"),
        (("aspp", [8], [16], 3), {"variant": "dense"}, "atrous, plain"),
        (("aspp", [8], [16], 3), {"variant": "plain", "width": 4}, "no option 'width'"),
        (("aspp", [8, 8], [16, 16], 3), {"variant": "plain"}, "takes one feature map"),
        (("aspp", [8], [16, 32], 3), {}, "one stride for each"),
        (("aspp", [8], [16], 0), {}, "at least one class"),
        (("aspp", [8], [16], 3), {"rates": (0,)}, "rates >= 1"),
    ],
)
def test_what_does_not_fit_is_named(arguments, options, message):
    with pytest.raises(HeadError, match=message):
        build_head(*arguments, **options)
