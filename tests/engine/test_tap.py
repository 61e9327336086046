import copy
import gc
import io
import weakref

import pytest
import timm
import torch
import torch.distributed as dist
import torchvision
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from stillroom.engine.tap import module_paths, plain_path, tap, unwrap
from stillroom.errors import InputError, StillroomError


class Net(nn.Module):
    def __init__(self, graph_break: bool = False) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 4)
        self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Dropout(0.0))
        self.head = nn.Linear(4, 2)
        self.unused = nn.ModuleList([nn.Linear(4, 4)])
        self.graph_break = graph_break

    def forward(self, x):
        x = self.stem(x)
        if self.graph_break:
            torch._dynamo.graph_break()
        return self.head(self.body(x))


def hooks(model):
    return [hook for module in model.modules() for hook in module._forward_hooks]


@pytest.fixture
def x():
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


def test_reads_outputs_by_path(x):
    net = Net()
    output, features = tap(net, "body.0", "stem")(x)
    assert list(features) == ["body.0", "stem"]
    assert torch.equal(features["stem"], net.stem(x))
    assert torch.equal(output, net(x))
    assert not hooks(net)


def test_a_later_inplace_operation_does_not_change_the_feature(x):
    net = Net()
    tapped = tap(net, "body.0")
    for _ in range(3):
        _, features = tapped(x)
        assert torch.equal(features["body.0"], net.body[0](net.stem(x)))
        assert features["body.0"].min() < 0


def test_an_output_that_nothing_rewrites_is_not_copied_after_the_first_call(x):
    net = Net()
    tapped, handed_on = tap(net, "stem"), []
    net.body.register_forward_pre_hook(lambda module, inputs: handed_on.append(inputs[0]))
    same = [tapped(x)[1]["stem"] is handed_on[-1] for _ in range(3)]
    assert same == [False, True, True]


def test_an_output_rewritten_only_sometimes_is_an_error_not_a_wrong_number(x):
    net = Net()
    net.body[1].inplace = False
    tapped = tap(net, "body.0")
    tapped(x)
    net.body[1].inplace = True
    with pytest.raises(StillroomError, match=r"body\.0.*changed in place"):
        tapped(x)


def test_inference_mode(x):
    net = Net()
    with torch.inference_mode():
        for _ in range(2):
            _, features = tap(net, "body.0")(x)
            assert features["body.0"].min() < 0


def test_gradient_flows_through_features_and_can_be_taken_with_respect_to_them(x):
    net = Net()
    tapped = tap(net, "stem", "body.0")
    for _ in range(2):
        net.zero_grad()
        output, features = tapped(x)
        assert torch.autograd.grad(output.sum(), features["stem"], retain_graph=True)[0].abs().sum() > 0
        features["body.0"].square().sum().backward()
        assert net.stem.weight.grad is not None
        assert net.head.weight.grad is None


@pytest.mark.parametrize("bad", ["layer", "bodi.0", ""])
def test_an_unknown_path_lists_near_ones(bad):
    with pytest.raises(InputError, match="paths: got"):
        tap(Net(), "stem", bad)
    with pytest.raises(InputError, match=r"body\.0"):
        tap(Net(), "bodi.0")


def test_a_list_of_paths_and_a_container_are_refused():
    with pytest.raises(InputError, match="separate strings"):
        tap(Net(), ["stem"])
    with pytest.raises(InputError, match=r"never called.*unused\.0"):
        tap(Net(), "unused")


def test_a_module_that_did_not_run_is_named_and_leaves_no_hook(x):
    net = Net()
    with pytest.raises(InputError, match=r"unused\.0.*did not run"):
        tap(net, "stem", "unused.0")(x)
    assert not hooks(net)


def test_a_module_that_runs_twice_is_ambiguous(x):
    layer = nn.Linear(3, 3)
    net = nn.Sequential(layer, layer)
    with pytest.raises(InputError, match="ran 2 times"):
        tap(net, "0")(x)


def test_two_names_of_one_module():
    net = nn.Module()
    net.a = net.b = nn.Linear(2, 2)
    net.forward = lambda x: net.a(x)
    _, features = tap(net, "b", "a", "a")(torch.ones(1, 2))
    assert list(features) == ["b", "a"]
    assert features["a"] is features["b"]


def test_a_failing_forward_leaves_no_hook():
    net = Net()
    with pytest.raises(RuntimeError):
        tap(net, "stem")(torch.ones(1, 7))
    assert not hooks(net)


def test_holds_nothing_after_the_step(x):
    net = Net()
    tapped = tap(net, "stem")
    output, features = tapped(x)
    alive = [weakref.ref(output), weakref.ref(features["stem"])]
    del output, features
    gc.collect()
    assert [ref() for ref in alive] == [None, None]


def test_copies_and_exports_are_clean(x):
    net = Net()
    tapped = tap(net, "stem")
    tapped(x)
    assert not hooks(copy.deepcopy(net))
    torch.save(net, io.BytesIO())
    assert torch.equal(torch.export.export(net, (x,)).module()(x), net(x))
    twin = copy.deepcopy(tapped)
    assert twin.model is not net
    assert torch.equal(twin(x)[1]["stem"], net.stem(x))


def test_structures_are_returned_as_they_are():
    class Pyramid(nn.Module):
        def forward(self, x):
            return {"fine": x * 2, "coarse": (x + 1, 7)}

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.neck = Pyramid()

        def forward(self, x):
            levels = self.neck(x)
            levels["fine"].add_(100)
            return levels["fine"].sum() + levels["coarse"][1]

    _, features = tap(Model(), "neck")(torch.ones(2))
    assert torch.equal(features["neck"]["fine"], torch.full((2,), 2.0))
    assert features["neck"]["coarse"][1] == 7


def test_autocast_keeps_the_dtype_that_the_module_gave(x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, features = tap(Net(), "stem")(x)
    assert features["stem"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "path", "shape"), [("resnet18", "layer3.1", (1, 256, 2, 2)), ("vit_tiny_patch16_224", "blocks.5", (1, 5, 192))]
)
def test_timm(name, path, shape):
    options = {"img_size": 32} if name.startswith("vit") else {}
    model = timm.create_model(name, **options).eval()
    with torch.no_grad():
        output, features = tap(model, path)(torch.randn(1, 3, 32, 32))
    assert features[path].shape == shape
    assert output.shape == (1, 1000)


def test_torchvision_detector():
    model = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=3, min_size=64, max_size=64
    )
    targets = [{"boxes": torch.tensor([[4.0, 4.0, 30.0, 30.0]]), "labels": torch.tensor([1])}]
    losses, features = tap(model, "backbone.fpn")([torch.rand(3, 64, 64)], targets)
    assert "loss_classifier" in losses
    assert {level.shape[1] for level in features["backbone.fpn"].values()} == {256}
    features["backbone.fpn"]["0"].sum().backward()
    assert model.backbone.fpn.inner_blocks[0][0].weight.grad is not None


def test_paths_with_and_without_the_prefixes_of_wrappers(x):
    net = Net()
    compiled = torch.compile(net, backend="eager")
    for model in (net, compiled, nn.DataParallel(net)):
        assert unwrap(model) is net
        assert list(module_paths(model)) == list(module_paths(net))
        for path in ("body.0", "module.body.0", "_orig_mod.body.0", "module._orig_mod.body.0"):
            assert list(tap(model, path)(x)[1]) == [path]
    assert plain_path("module.module.a._orig_mod.b") == "a.b"


def test_a_child_that_is_really_called_module(x):
    net = nn.Module()
    net.module = nn.Linear(3, 3)
    net.forward = lambda x: net.module(x)
    assert unwrap(net) is net
    assert list(tap(net, "module")(x)[1]) == ["module"]


@pytest.mark.parametrize("graph_break", [False, True])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_in_any_order_of_calls_without_recompiling(x, backend, graph_break):
    torch._dynamo.reset()
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    net = Net(graph_break)
    compiled = torch.compile(net, backend=counting)
    expected, inner = net(x), net.body[0](net.stem(x))
    compiled(x)  # the untapped graph exists first, and must not be reused
    one, other = tap(compiled, "body.0"), tap(compiled, "stem")
    for _ in range(10):
        output, features = one(x)
        assert torch.allclose(output, expected)
        assert torch.allclose(features["body.0"], inner)
        assert torch.allclose(other(x)[1]["stem"], net.stem(x))
        assert torch.allclose(compiled(x), expected)
    assert len(graphs) == (6 if graph_break else 3)
    features["body.0"].sum().backward()
    assert net.stem.weight.grad is not None
    assert not hooks(net)


def test_compiled_inside_another_module_in_place_and_around_the_tap(x):
    torch._dynamo.reset()
    outer = nn.Sequential(torch.compile(Net(), backend="eager"))
    outer(x)
    assert tap(outer, "0.body.0")(x)[1]["0.body.0"].shape == (5, 4)

    in_place = Net()
    in_place.compile(backend="eager")
    in_place(x)
    assert tap(in_place, "stem")(x)[1]["stem"].shape == (5, 4)

    net = Net()
    tapped = tap(net, "stem")

    @torch.compile(backend="eager")
    def step(x):
        output, features = tapped(x)
        return output.sum() + features["stem"].sum()

    assert torch.allclose(step(x), net(x).sum() + net.stem(x).sum())


def _gradients_on_a_rank():
    dist.init_process_group("gloo")
    rank = dist.get_rank()

    def fresh():
        torch.manual_seed(0)
        net = Net()
        del net.unused
        return net

    net = fresh()
    model = DistributedDataParallel(net)
    grads = []
    x = torch.full((2, 3), 1.0 + rank)
    for path in ("body.0", "module.body.0"):
        model.zero_grad()
        output, features = tap(model, path)(x)
        (output.sum() + features[path].square().sum()).backward()
        grads.append(net.stem.weight.grad.clone())

    class Step(nn.Module):
        """Reads the raw student inside the wrapped module's forward, as a training step does."""

        def __init__(self):
            super().__init__()
            self.student = fresh()
            self.tapped = tap(self.student, "body.0")

        def forward(self, x):
            output, features = self.tapped(x)
            return output.sum() + features["body.0"].square().sum()

    step = Step()
    wrapped = DistributedDataParallel(step)  # which reduces gradients only while it lives
    wrapped(x).backward()
    grads.append(step.student.stem.weight.grad)
    dist.destroy_process_group()
    return torch.stack(grads)


def test_ddp(processes):
    ranks = processes.on_two_ranks(_gradients_on_a_rank)
    assert torch.equal(ranks[0], ranks[1])  # reduced over ranks
    assert torch.allclose(ranks[0], ranks[0][:1].expand_as(ranks[0]))
    torch.manual_seed(0)
    net, expected = Net(), 0
    for value in (1.0, 2.0):
        net.zero_grad()
        output, features = tap(net, "body.0")(torch.full((2, 3), value))
        (output.sum() + features["body.0"].square().sum()).backward()
        expected = expected + net.stem.weight.grad / 2
    assert torch.allclose(ranks[0][0], expected, atol=1e-6)
