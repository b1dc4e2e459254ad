"""Every head, through one tester: forward, backward, export, save and load."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from dinov3_seg_ros.export.graphs import HeadGraph, export_head
from dinov3_seg_ros.model.heads import HEADS, blocks, build_head, head_options
from dinov3_seg_ros.model.heads.blocks import adaptive_mean, resize
from dinov3_seg_ros.model.normalise import Normalise
from dinov3_seg_ros.support.errors import HeadError

pytestmark = pytest.mark.usefixtures("operators_listed_once")

NUM_CLASSES = 7
SINGLE = ([24], [16])
PYRAMID = ([8, 16, 24], [8, 16, 32])
STAGES = ([8, 12, 16, 24], [4, 8, 16, 32])
BLOCKS = ([12] * 3, [16] * 3)
PATCH_14 = ([12], [14])


@dataclass(frozen=True)
class Case:
    """A head and the maps it is given.

    Attributes:
        stride: of its logits; None: that of the finest map.
        logits: mean and standard deviation, for weights, maps and images that are `waves`.
    """

    name: str
    variant: str
    channels: list[int]
    strides: list[int]
    options: dict = field(default_factory=dict)
    stride: int | None = None
    size: tuple[int, int] = (64, 96)
    logits: tuple[float, float] | None = None

    def build(self):
        return build_head(
            self.name, self.channels, self.strides, NUM_CLASSES, variant=self.variant, **self.options
        ).eval()

    def maps(self, batch=2):
        return make_maps(self.channels, self.strides, batch, *self.size)

    def inputs(self, batch=2):
        """The maps, and the images where the head reads them."""
        maps = self.maps(batch)
        if not self.options.get("detail"):
            return (maps,)
        return maps, torch.randn(batch, 3, *self.size, generator=torch.Generator().manual_seed(1))


THIN = {"width": 16, "hidden": 16}
NARROW = {"widths": (16, 12, 8, 6)}

# What every runtime computes at static sizes; no control flow and no pooling over uneven bins.
PLAIN_OPERATORS = {
    "Add", "BatchNormalization", "Concat", "Conv", "Identity", "MatMul", "ReduceMean", "Relu", "Resize", "Shape",
}  # fmt: skip
NORMALISING_OPERATORS = {"Cast", "Div", "Mul", "Sub", "Transpose"}
NORMALISATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Every head and variant with every kind of input it takes; add a line for a new one, whose logits a test tells.
CASES = {
    "aspp-atrous-single": Case("aspp", "atrous", *SINGLE, logits=(-473.95, 727.52)),
    "aspp-atrous-pyramid": Case("aspp", "atrous", *PYRAMID, logits=(-534.33, 728.30)),
    "aspp-detail-single": Case("aspp", "atrous", *SINGLE, {"detail": True}, stride=4, logits=(-72210, 87137)),
    "aspp-detail-pyramid": Case("aspp", "atrous", *PYRAMID, {"detail": True}, stride=4, logits=(-115243, 86862)),
    "aspp-detail-fine-map": Case(
        "aspp", "atrous", *STAGES, {"width": 16, "detail": True}, stride=4, logits=(-522.78, 446.91)
    ),
    "aspp-plain-single": Case("aspp", "plain", *SINGLE, logits=(-260118, 2608674)),
    "linear-pyramid": Case("linear", "default", *PYRAMID, logits=(29.236, 2.9713)),
    "linear-factors": Case(
        "linear", "default", *BLOCKS, {"dropout": 0, "resize_factors": [0.4, 2, 1]}, stride=8, logits=(-0.33160, 16.054)
    ),
    "linear-detail": Case("linear", "default", *SINGLE, {"detail": True}, stride=4, logits=(-438.82, 381.13)),
    "pyramid-fpn-ppm": Case("pyramid", "default", *STAGES, THIN, stride=8, logits=(0.24692, 2.9637)),
    "pyramid-fpn": Case("pyramid", "default", *PYRAMID, {**THIN, "ppm": False}, logits=(0.40128, 5.0156)),
    "pyramid-ppm": Case("pyramid", "default", *PYRAMID, {**THIN, "fpn": False}, stride=32, logits=(0.22822, 2.7022)),
    "pyramid-neither": Case(
        "pyramid", "default", *SINGLE, {**THIN, "fpn": False, "ppm": False}, logits=(-0.39640, 14.382)
    ),
    "pyramid-detail": Case(
        "pyramid", "default", *PYRAMID, {**THIN, "detail": True}, stride=4, logits=(-454.52, 386.33)
    ),
    "unet-patch-14": Case("unet", "default", *PATCH_14, NARROW, stride=1, size=(56, 84), logits=(1.0347, 6.3348)),
    "unet-skips": Case("unet", "default", *STAGES, NARROW, stride=1, logits=(0.031076, 2.4878)),
    "unet-without-skips": Case(
        "unet", "default", *PYRAMID, {**NARROW, "skips": False}, stride=1, logits=(0.38014, 2.4015)
    ),
}


def make_maps(channels, strides, batch=2, height=64, width=96):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(batch, c, height // s, width // s, generator=generator)
        for c, s in zip(channels, strides, strict=True)
    ]


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request):
    torch.manual_seed(0)
    return request.param


def test_every_registered_variant_has_a_case():
    tested = {(case.name, case.variant) for case in CASES.values()}
    assert tested == {(name, variant) for name, variants in HEADS.items() for variant in variants}


def test_forward_gives_logits_at_the_announced_stride(case):
    stride = case.stride or min(case.strides)
    assert case.build()(*case.inputs()).shape == (2, NUM_CLASSES, case.size[0] // stride, case.size[1] // stride)


def test_every_parameter_takes_a_gradient(case):
    head = case.build()
    head.train()(*case.inputs()).square().mean().backward()
    untouched = [name for name, p in head.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert untouched == []


def test_a_frame_does_not_depend_on_the_others_of_its_batch(case):
    head, (maps, *images) = case.build(), case.inputs()
    with torch.inference_mode():
        alone = head([m[1:] for m in maps], *(i[1:] for i in images))
        torch.testing.assert_close(head(maps, *images)[1:], alone, atol=1e-5, rtol=1e-5)


@dataclass(frozen=True)
class Exported:
    """A head, its graph in float32, and what it was exported for."""

    head: nn.Module
    path: Path
    maps: list[torch.Tensor]
    canvases: torch.Tensor

    @property
    def reads_images(self) -> bool:
        return self.head.reads_images


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES)
def exported(request, tmp_path_factory):
    torch.manual_seed(0)
    case = request.param
    head, maps = case.build(), case.maps()
    for norm in [module for module in head.modules() if isinstance(module, nn.BatchNorm2d)]:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
    path = tmp_path_factory.mktemp("head") / "head.onnx"
    export_head(HeadGraph(head, *NORMALISATION), maps, range(len(maps)), case.size, path, {})
    return Exported(head, path, maps, torch.randint(0, 256, (2, *case.size, 3), dtype=torch.uint8))


def test_its_graph_gives_the_same_logits_for_any_batch(exported):
    operators = {node.op_type for node in onnx.load(exported.path).graph.node}
    assert operators <= PLAIN_OPERATORS | (NORMALISING_OPERATORS if exported.reads_images else set())
    session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    for size in (1, 3):
        *some, canvases = [torch.cat([part, part])[:size] for part in (*exported.maps, exported.canvases)]
        inputs = [*some, canvases] if exported.reads_images else some
        feed = {node.name: part.numpy() for node, part in zip(session.get_inputs(), inputs, strict=True)}
        with torch.inference_mode():
            images = [Normalise(*NORMALISATION)(canvases)] if exported.reads_images else []
            expected = exported.head(some, *images).numpy()
        np.testing.assert_allclose(session.run(None, feed)[0], expected, atol=1e-4, rtol=1e-4)


def test_tensorrt_builds_an_engine_of_its_graph(exported, engine_builder):
    built = engine_builder.build(exported.path, max_batch=3)
    assert built.get("bytes"), built


def test_saved_and_loaded_weights_give_the_same_logits(case, tmp_path):
    head = case.build()
    save_file(head.state_dict(), tmp_path / "head.safetensors")
    torch.manual_seed(1)
    other = case.build()
    other.load_state_dict(load_file(tmp_path / "head.safetensors"))
    with torch.inference_mode():
        assert torch.equal(head(*case.inputs()), other(*case.inputs()))


def waves(*shape):
    """Numbers that no random generator makes, and that hardly repeat: the same with every release of PyTorch."""
    return torch.sin(torch.arange(math.prod(shape), dtype=torch.float64) * 1.7).reshape(shape).float()


def test_the_same_weights_give_the_logits_of_earlier_releases(case):
    """Else the bundles that users have would give other labels from one release to the next."""
    head = case.build()
    head.load_weights({key: waves(*tensor.shape) + ("var" in key) * 1.5 for key, tensor in head.state_dict().items()})
    maps = [waves(2, *m.shape[1:]) for m in case.maps()]
    with torch.inference_mode():
        logits = head(maps, waves(2, 3, *case.size))
    found = logits.mean().item(), logits.std().item()
    assert found == pytest.approx(case.logits, rel=1e-3), f"for a new head, add logits={found} to its case"


def test_maps_of_other_channels_are_refused_with_both_named(case):
    with pytest.raises(HeadError, match="was built for"):
        case.build()([torch.zeros(1, 3, 4, 4) for _ in case.channels])


def test_scaling_the_logits_scales_every_branch_and_keeps_the_labels(case):
    head = case.build()
    with torch.inference_mode():
        before = head(*case.inputs())
        head.scale_logits(0.37)
        after = head(*case.inputs())
    torch.testing.assert_close(after, 0.37 * before, atol=1e-5, rtol=1e-5)
    best, second = before.topk(2, dim=1).values.unbind(1)
    decided = best - second > 1e-5 * best.abs().clamp(min=1)
    assert decided.float().mean() > 0.9
    assert torch.equal(before.argmax(1)[decided], after.argmax(1)[decided])


class TestDetail:
    def test_it_is_small_and_off_by_default(self):
        plain, guided = (build_head("aspp", [256], [16], 11, detail=detail) for detail in (False, True))
        assert not build_head("aspp", [256], [16], 11).reads_images and guided.reads_images
        assert 30_000 <= parameters(guided) - parameters(plain) <= 40_000

    def test_a_change_of_the_image_reaches_the_logits_near_it_only(self):
        torch.manual_seed(0)
        head = build_head("aspp", [8], [16], 3, width=8, detail=True).eval()
        maps, images = [torch.randn(1, 8, 8, 8)], torch.randn(1, 3, 128, 128)
        changed = images.clone()
        changed[..., 62:66] += 1.0
        with torch.inference_mode():
            difference = (head(maps, changed) - head(maps, images)).abs().amax(dim=(0, 1, 2))
        reached = (difference > 1e-6).nonzero()
        assert difference.shape == (32,)
        assert len(reached) and reached.min() >= 10 and reached.max() <= 21

    def test_patches_of_14_pixels_give_logits_of_about_stride_4(self):
        head = build_head("aspp", [12], [14], 3, width=8, detail=True).eval()
        assert head([torch.zeros(1, 12, 4, 6)], torch.zeros(1, 3, 56, 84)).shape == (1, 3, 14, 21)

    def test_without_images_it_is_refused(self):
        head = build_head("aspp", [8], [16], 3, detail=True).eval()
        with pytest.raises(HeadError, match="image-guided"):
            head([torch.zeros(1, 8, 4, 4)])


@pytest.mark.parametrize(("name", "options"), [("aspp", {"width": 16}), ("linear", {}), ("pyramid", THIN)])
def test_the_classifier_gets_no_channel_that_was_dropped_and_on_the_robot_all(name, options):
    head, maps = build_head(name, *PYRAMID, 3, dropout=1.0, **options), make_maps(*PYRAMID)
    logits = head.train()(maps)
    bias = head.classifier.bias[:, None, None].expand_as(logits)
    torch.testing.assert_close(logits, bias)
    assert not torch.isclose(head.eval()(maps), bias).all()


def test_the_default_aspp_is_small_and_sees_far():
    head = build_head("aspp", [384], [16], 134).eval()
    assert parameters(head) <= 700_000
    maps = [torch.zeros(1, 384, 40, 40, requires_grad=True)]
    head.pool = torch.nn.Conv2d(192, 192, 1).requires_grad_(False)
    torch.nn.init.zeros_(head.pool.weight)
    torch.nn.init.normal_(maps[0].data)
    head(maps)[0, :, 20, 20].sum().backward()
    reached = maps[0].grad[0].abs().sum(0).nonzero()
    # Without the global mean, a cell still sees 12 cells and more to each side: the branches really are atrous.
    assert (reached[:, 0].min() <= 8) and (reached[:, 0].max() >= 32)


def test_the_plain_aspp_has_the_tensors_of_dinov3_ros():
    head = build_head("aspp", [384], [16], 134, variant="plain")
    assert round(parameters(head) / 1e6, 2) == 4.46
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


def parameters(head):
    return sum(parameter.numel() for parameter in head.parameters())


def gradient(head, maps, row, column):
    """Where each map moves the logits of one cell: (h, w) of sums over channels."""
    maps = [m.requires_grad_() for m in maps]
    head(maps)[0, :, row, column].sum().backward()
    return [m.grad[0].abs().sum(0) for m in maps]


class TestAdaptiveMean:
    @pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 3), (6, 6), (5, 3), (30, 41)])
    def test_it_equals_torchs_adaptive_pooling_for_any_bins(self, size):
        feature_map = torch.randn(2, 3, 28, 37, dtype=torch.float64)
        expected = torch.nn.functional.adaptive_avg_pool2d(feature_map, size)
        torch.testing.assert_close(adaptive_mean(feature_map, size), expected, atol=1e-14, rtol=0)

    def test_resizing_averages_to_shrink_and_interpolates_to_grow(self):
        feature_map = torch.randn(1, 2, 4, 6)
        blocks = feature_map.reshape(1, 2, 2, 2, 3, 2).mean(dim=(3, 5))
        torch.testing.assert_close(resize(feature_map, (2, 3)), blocks)
        assert resize(feature_map, (4, 6)) is feature_map
        for size in ((7, 9), (8, 18), (8, 13), (4, 12)):
            grown = torch.nn.functional.interpolate(feature_map, size=size, mode="bilinear", align_corners=False)
            assert torch.equal(resize(feature_map, size), grown), size


class TestLinear:
    @pytest.mark.parametrize(("num_classes", "count"), [(21, 35_349), (2, 6_146)])
    def test_without_dropout_on_four_blocks_it_is_the_dinov2_articles(self, num_classes, count):
        head = build_head("linear", [384] * 4, [14] * 4, num_classes, dropout=0)
        assert parameters(head) == count

    def test_it_starts_as_metas_probe_does(self):
        torch.manual_seed(0)
        head = build_head("linear", [384], [16], 150)
        assert [type(module) for module in head.children()] == [nn.Dropout2d, nn.BatchNorm2d, nn.Conv2d]
        assert head.dropout.p == 0.1
        assert head.classifier.weight.std().item() == pytest.approx(0.01, rel=0.02)
        assert not head.classifier.bias.any()

    def test_the_norm_sees_what_dropout_left(self):
        head = build_head("linear", [8], [16], 3, dropout=0.5).train()
        torch.manual_seed(0)
        expected = nn.functional.dropout2d(torch.ones(4, 8, 2, 2), 0.5).mean(dim=(0, 2, 3))
        torch.manual_seed(0)
        head([torch.ones(4, 8, 2, 2)])
        torch.testing.assert_close(head.norm.running_mean, 0.1 * expected)

    def test_a_cell_reads_itself_alone(self):
        head = build_head("linear", *BLOCKS, 3).eval()
        for reached in gradient(head, make_maps(*BLOCKS, batch=1), 2, 3):
            assert reached.nonzero().tolist() == [[2, 3]]


class TestPyramid:
    @pytest.mark.parametrize(
        ("channels", "strides"),
        [([8], [4]), ([8, 8], [4, 8]), ([8, 8], [16, 32]), ([8, 8, 8], [8, 8, 8]), ([8], [16])],
    )
    def test_whatever_it_is_given_fpn_ends_at_stride_8(self, channels, strides):
        head = build_head("pyramid", channels, strides, 3, **THIN).eval()
        assert head(make_maps(channels, strides)).shape == (2, 3, 8, 12)

    def test_on_the_patches_of_14_pixels_stride_8_is_met_to_rounding(self):
        head = build_head("pyramid", [8], [14], 3, **THIN).eval()
        assert head([torch.zeros(1, 8, 37, 37)]).shape == (1, 3, 65, 65)

    @pytest.mark.parametrize("width", [512, 768, 1024, 2048])
    def test_its_tensors_follow_the_width(self, width):
        with torch.device("meta"):
            head = build_head("pyramid", [192, 384, 768], [8, 16, 32], 21, width=width)
        shapes = {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}
        assert shapes["fpn.lateral.2.weight"] == (width, 768, 1, 1)
        assert shapes["ppm.branches.3.0.weight"] == (width // 4, width, 1, 1)
        assert shapes["hidden.0.weight"] == (512, 2 * width, 3, 3)
        assert shapes["classifier.weight"] == (21, 512, 1, 1)

    def test_every_map_reaches_near_logits_and_pooling_reaches_all(self):
        maps = [m[:1] for m in make_maps(*STAGES)]
        near = gradient(build_head("pyramid", *STAGES, 3, **THIN, ppm=False).eval(), maps, 0, 0)
        assert all(reached[0, 0] > 0 and reached[-1, -1] == 0 for reached in near[:3])
        everywhere = gradient(build_head("pyramid", *STAGES, 3, **THIN).eval(), maps, 0, 0)
        assert all((reached > 0).all() for reached in everywhere)

    def test_without_fpn_only_the_last_map_counts(self):
        head = build_head("pyramid", *PYRAMID, 3, fpn=False, hidden=16).eval()
        *others, last = make_maps(*PYRAMID)
        torch.testing.assert_close(head([*others, last]), head([*(m + 1 for m in others), last]), atol=0, rtol=0)

    def test_training_on_one_image_is_refused_where_a_bin_holds_one_value(self):
        maps = [m[:1] for m in make_maps(*PYRAMID)]
        head = build_head("pyramid", *PYRAMID, 3, **THIN).train()
        with pytest.raises(HeadError, match="batch_size to 2 or more for each process"):
            head(maps)
        build_head("pyramid", *PYRAMID, 3, **THIN, bins=(2, 3)).train()(maps)
        for norm in filter(lambda module: isinstance(module, nn.BatchNorm2d), head.modules()):
            norm.eval()  # as a frozen one is
        head(maps).sum().backward()


class TestUNet:
    def test_at_patch_14_it_climbs_in_four_steps_to_518_pixels(self):
        with torch.device("meta"):
            head = build_head("unet", [768], [14], 21)
            sizes = []
            for step in head.steps:
                step.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[1:])))
            logits = head([torch.zeros(2, 768, 37, 37)])
        assert sizes == [(512, 74, 74), (256, 148, 148), (128, 296, 296), (64, 518, 518)]
        assert logits.shape == (2, 21, 518, 518)

    @pytest.mark.parametrize("stride", [1, 4, 8, 14, 16, 32])
    @pytest.mark.parametrize("steps", [1, 2, 4])
    def test_from_any_stride_in_any_number_of_steps_it_ends_at_image_size(self, stride, steps):
        head = build_head("unet", [8], [stride], 3, widths=[8] * steps).eval()
        heights = []
        for step in head.steps:
            step.register_forward_hook(lambda module, inputs, output: heights.append(output.shape[-2]))
        assert head([torch.zeros(1, 8, 2, 3)]).shape == (1, 3, 2 * stride, 3 * stride)
        assert heights == sorted(heights) and heights[-1] == 2 * stride

    def test_shallower_maps_join_deepest_first(self):
        head = build_head("unet", *STAGES, 3, **NARROW)
        assert [step.skip[0].in_channels if step.skip else None for step in head.steps] == [16, 12, 8, None]

    @pytest.mark.parametrize("skips", [True, False])
    def test_skips_count_when_they_are_asked_for(self, skips):
        head = build_head("unet", *STAGES, 3, **NARROW, skips=skips).eval()
        maps = [m[:1].requires_grad_() for m in make_maps(*STAGES)]
        head(maps).square().sum().backward()
        assert [m.grad is not None for m in maps] == [skips, skips, skips, True]


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
        (("aspp", [8], [16], 3), {"dropout": 2}, "cannot be built with the options .* between 0 and 1"),
        (("aspp", [8], [16], 3), {"width": "wide"}, "cannot be built with the options"),
        (("linear", [8, 8], [16, 16], 3), {"resize_factors": [1]}, "one resize factor above 0 for each of its 2 maps"),
        (("linear", [8], [16], 3), {"resize_factors": [0]}, "one resize factor above 0"),
        (("pyramid", [8], [16], 3), {"bins": (0, 2)}, "bins of at least 1"),
        (("aspp", [8], [16], 3), {"detail": "auto"}, "detail is true or false"),
        (("unet", [8], [16], 3), {"detail": True}, "no option 'detail'"),
        (("pyramid", [8], [16], 3), {"width": 0}, "width, hidden and bins"),
        (("unet", [8], [16], 3), {"widths": ()}, "at least one width"),
        (("unet", [8] * 3, [16] * 3, 3), {"widths": (8,)}, "with 1 steps takes up to 1 skip connections; got 3 maps"),
    ],
)
def test_what_does_not_fit_is_named(arguments, options, message):
    with pytest.raises(HeadError, match=message):
        build_head(*arguments, **options)


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Install a package that brings a head ``mine``, which an entry point names."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(named):
        (tmp_path / "own-1.dist-info").mkdir()
        (tmp_path / "own-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: own\nVersion: 1\n")
        (tmp_path / "own-1.dist-info/entry_points.txt").write_text(f"[dinov3_seg_ros.model.heads]\nmine = {named}\n")

    yield install
    sys.modules.pop("own_heads", None)


def test_a_head_of_another_package_is_built_by_its_name(packages, tmp_path):
    packages("own_heads:Mine")
    (tmp_path / "own_heads.py").write_text(
        "from dinov3_seg_ros.model.heads.linear import LinearHead\n"
        "class Mine(LinearHead):\n"
        "    def __init__(self, in_channels, strides, num_classes, factor=2):\n"
        "        super().__init__(in_channels, strides, num_classes, 0, [factor])\n"
    )
    assert head_options("mine") == ["factor"]
    assert build_head("mine", *SINGLE, NUM_CLASSES, factor=4).eval()(make_maps(*SINGLE)).shape[2:] == (16, 24)
    with pytest.raises(HeadError, match=r"'mine' \(default\) has no option 'width'"):
        build_head("mine", *SINGLE, NUM_CLASSES, width=4)
    with pytest.raises(HeadError, match="aspp, linear, mine, pyramid, unet; for another, install"):
        build_head("other", *SINGLE, NUM_CLASSES)


@pytest.mark.parametrize(("named", "why"), [("no_such_module:Mine", "No module named"), ("math:pi", "is no subclass")])
def test_a_head_of_another_package_that_cannot_be_used_is_named_with_it(packages, named, why):
    packages(named)
    with pytest.raises(HeadError, match=f"head 'mine' of the package own, {named}, cannot be used: .*{why}"):
        build_head("mine", *SINGLE, NUM_CLASSES)


def test_the_matrices_of_means_are_made_once_and_serve_training_too(monkeypatch):
    features, made = torch.rand(1, 2, 7, 9, requires_grad=True), []
    blocks._averaging_matrix.cache_clear()
    make = torch.tensor
    monkeypatch.setattr(torch, "tensor", lambda *given, **options: made.append(given) or make(*given, **options))
    with torch.inference_mode():
        blocks.adaptive_mean(features, (3, 2))
    blocks.adaptive_mean(features, (3, 2)).sum().backward()
    assert len(made) == 2
    torch.testing.assert_close(
        blocks.adaptive_mean(features, (3, 2)), torch.nn.functional.adaptive_avg_pool2d(features, (3, 2))
    )
