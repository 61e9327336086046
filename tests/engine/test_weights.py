import pickle

import lightning
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from stillroom.engine.weights import load_weights, read_weights, save_weights
from stillroom.errors import InputError


def network(classes=3, seed=1):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))


def states_equal(one, other):
    return all(torch.equal(value, other.state_dict()[key]) for key, value in one.state_dict().items())


class Stub:
    """An object that only a full unpickling can make."""


@pytest.fixture
def source():
    return network(seed=0)


def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"state": {0: {"step": torch.ones(1)}}}},
        lambda state: {"model": state},
        lambda state: {"model_state_dict": prefixed(state, "module.")},
        lambda state: {"net": prefixed(state, "backbone.")},
        lambda state: {"checkpoint": 1, "student": {"state_dict": state}},
        lambda state: {"ema": state},
        lambda state: {"model": {key: value + 1 for key, value in state.items() if value.is_floating_point()}, "ema": state},
        lambda state: prefixed(state, "module.model."),
        lambda state: prefixed(state, "student._orig_mod."),
        lambda state: {"state_dict": {**prefixed(state, "student."), **prefixed(state, "teacher."), "projector.weight": torch.ones(2)}},
        lambda state: {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")},
        lambda state: {key: value.half() if value.is_floating_point() else value for key, value in state.items()},
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".tar", ".ckpt"])
def test_torch_files(tmp_path, source, wrap, suffix):
    file, loaded = tmp_path / f"weights{suffix}", network()
    torch.save(wrap(source.state_dict()), file)
    load_weights(loaded, file)
    half = wrap(source.state_dict()).get("0.weight", torch.ones(1)).dtype == torch.float16
    assert states_equal(source.half().float() if half else source, loaded)


def test_legacy_format_and_data_parallel(tmp_path, source):
    torch.save(nn.DataParallel(source).state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    loaded = network()
    load_weights(loaded, tmp_path / "old.pth")
    assert states_equal(source, loaded)


def test_a_lightning_checkpoint(tmp_path, source):
    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.student, self.teacher = source, network(seed=5)

    trainer = lightning.Trainer(
        logger=False, enable_checkpointing=False, accelerator="cpu", enable_model_summary=False, enable_progress_bar=False
    )
    trainer.strategy.connect(Module())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = network()
    load_weights(loaded, tmp_path / "last.ckpt")
    assert states_equal(source, loaded)


@pytest.mark.parametrize("prefix", ["student.", "model.", "network.", "net."])
def test_safetensors_and_prefixes(tmp_path, source, prefix):
    save_file(prefixed(source.state_dict(), prefix), tmp_path / "any.name")
    loaded = network()
    load_weights(loaded, tmp_path / "any.name")
    assert states_equal(source, loaded)


def test_a_networks_own_prefix_is_not_taken_off(tmp_path):
    class Wrapper(nn.Module):
        def __init__(self, seed):
            super().__init__()
            self.backbone, self.head = network(seed=seed), nn.Linear(3, 2)

    source, loaded = Wrapper(0), Wrapper(1)
    torch.save(source.state_dict(), tmp_path / "w.pt")
    load_weights(loaded, tmp_path / "w.pt")
    assert states_equal(source, loaded)
    backbone = network()
    load_weights(backbone, tmp_path / "w.pt")  # the backbone alone, out of the whole
    assert states_equal(source.backbone, backbone)


def test_wrapped_networks_load_and_save_plain_keys(tmp_path, source):
    save_weights(torch.compile(source, backend="eager"), tmp_path / "w.safetensors")
    assert set(load_file(tmp_path / "w.safetensors")) == set(source.state_dict())
    loaded = network()
    load_weights(nn.DataParallel(loaded), tmp_path / "w.safetensors")
    assert states_equal(source, loaded)


def test_a_network_compiled_in_the_middle(tmp_path):
    source, loaded = nn.Sequential(torch.compile(network(seed=0), backend="eager")), nn.Sequential(network())
    save_weights(source, tmp_path / "w.safetensors")
    load_weights(loaded, tmp_path / "w.safetensors")
    assert torch.equal(source.state_dict()["0._orig_mod.0.weight"], loaded.state_dict()["0.0.weight"])
    load_weights(source, tmp_path / "w.safetensors")


def test_a_run_folder(tmp_path, source):
    save_weights(source, tmp_path / "student.safetensors")
    assert read_weights(tmp_path).keys() == source.state_dict().keys()
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"teacher: got the folder .*without student\.safetensors"):
        read_weights(tmp_path / "empty", argument="teacher")


def mismatch(tmp_path, state, target):
    before = {key: value.clone() for key, value in target.state_dict().items()}
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(InputError) as error:
        load_weights(target, tmp_path / "w.pt")
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())
    assert "\n" not in str(error.value)
    return str(error.value)


def test_mismatches_are_listed_and_nothing_is_loaded(tmp_path, source):
    state = source.state_dict()
    del state["0.bias"]
    state["extra"] = torch.ones(1)
    message = mismatch(tmp_path, state, network())
    assert "1 missing (0.bias)" in message
    assert "1 unexpected (extra)" in message

    message = mismatch(tmp_path, nn.Sequential(*[nn.Linear(2, 2) for _ in range(9)]).state_dict(), network())
    assert "12 unexpected" in message
    assert message.count("unexpected") == 1
    assert ", ..." in message


def test_another_number_of_classes_is_said(tmp_path):
    message = mismatch(tmp_path, network(classes=10).state_dict(), network(classes=3))
    assert "2 of another shape (4.weight [10, 4] instead of [3, 4], 4.bias [10] instead of [3])" in message
    assert "the file's classifier has 10 classes, the network's 3" in message


def test_whole_numbers_and_no_numbers_are_no_weights(tmp_path, source):
    state = source.state_dict()
    state["4.weight"] = state["4.weight"].to(torch.int8)
    state["0.bias"] = state["0.bias"] * torch.nan
    message = mismatch(tmp_path, state, network())
    assert "1 of another type (4.weight int8 instead of float32)" in message
    assert "1 not a number (0.bias)" in message
    halves = {name: value.half() if value.is_floating_point() else value for name, value in source.state_dict().items()}
    torch.save(halves, tmp_path / "half.pt")
    load_weights(network(), tmp_path / "half.pt")


def test_a_teacher_beside_a_student_is_said(tmp_path, source):
    save = {"student": source.state_dict(), "teacher": network(seed=5).state_dict()}
    torch.save(save, tmp_path / "w.pth")
    loaded = network()
    found = load_weights(loaded, tmp_path / "w.pth")
    assert (found.name, found.others) == ("student", ("teacher",))
    assert states_equal(source, loaded)


def test_an_incomplete_student_is_not_completed_from_elsewhere(tmp_path, source):
    state = {**prefixed(source.state_dict(), "student."), **prefixed(source.state_dict(), "teacher.")}
    del state["student.4.bias"]
    assert "1 missing (4.bias)" in mismatch(tmp_path, state, network())


def test_pickled_objects_are_refused_by_name_unless_trusted(tmp_path, source):
    for content in ({"state_dict": source.state_dict(), "args": Stub()}, source):
        torch.save(content, tmp_path / "w.pt")
        with pytest.raises(InputError, match=r"needs .*(Stub|torch\.nn\.modules.*) to be unpickled.*--trust-code") as error:
            read_weights(tmp_path / "w.pt")
        assert "\n" not in str(error.value)
        loaded = network()
        load_weights(loaded, tmp_path / "w.pt", trust_pickle=True)
        assert states_equal(source, loaded)


def test_unusable_files(tmp_path, source):
    torch.save(source.state_dict(), tmp_path / "whole.pt")
    save_weights(source, tmp_path / "whole.safetensors")
    for name in ("whole.pt", "whole.safetensors"):
        whole = (tmp_path / name).read_bytes()
        for length in (20, len(whole) // 2, len(whole) - 5):
            (tmp_path / "cut").write_bytes(whole[:length])
            with pytest.raises(InputError, match="cannot be read"):
                read_weights(tmp_path / "cut")
    torch.save(source.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "cut").write_bytes((tmp_path / "old.pt").read_bytes()[:900])
    with pytest.raises(InputError, match="cannot be read"):
        read_weights(tmp_path / "cut")
    with pytest.raises(InputError, match="does not exist"):
        read_weights(tmp_path / "none.pt")
    (tmp_path / "empty.pt").touch()
    with pytest.raises(InputError, match="empty file"):
        read_weights(tmp_path / "empty.pt")
    (tmp_path / "text.pt").write_text("no weights at all")
    with pytest.raises(InputError, match="neither safetensors nor"):
        read_weights(tmp_path / "text.pt")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps([1, 2], protocol=2))
    with pytest.raises(InputError):
        read_weights(tmp_path / "pickle.pt")
    for content in ({"epoch": 3}, [1, 2], torch.ones(3)):
        torch.save(content, tmp_path / "other.pt")
        with pytest.raises(InputError, match="no state dict was found"):
            read_weights(tmp_path / "other.pt")


def test_saving_ties_views_and_layouts(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
            self.head.weight = self.embed.weight
            self.register_buffer("view", torch.arange(10.0)[::2])
            self.conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)

    source, loaded = Tied(), Tied()
    save_weights(source, tmp_path / "new" / "w.safetensors")
    load_weights(loaded, tmp_path / "new" / "w.safetensors")
    assert states_equal(source, loaded)
    assert loaded.head.weight is loaded.embed.weight


def test_saving_replaces_at_once_or_not_at_all(tmp_path, source, monkeypatch):
    file = tmp_path / "w.safetensors"
    save_weights(source, file)
    before = file.read_bytes()
    save_weights(network(), file)
    assert file.read_bytes() != before
    save_weights(source, file)

    def full(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr("stillroom.engine.weights.os.replace", full)
    with pytest.raises(OSError, match="no space"):
        save_weights(network(), file)
    assert file.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["w.safetensors"]
