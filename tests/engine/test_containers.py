"""Containers that people have: what fits is loaded whatever is around it, nothing is executed, and every refusal is one line."""

from __future__ import annotations

import argparse
import collections
import contextlib
import datetime
import io
import json
import os
import pathlib
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm

from stillroom.engine import containers
from stillroom.engine.weights import Loaded, load_weights, read_weights
from stillroom.errors import InputError

State = dict[str, Tensor]


def network(seed: int = 1, classes: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))


def state(seed: int = 0) -> State:
    return dict(network(seed).state_dict())


def loaded(file: Path | str, expected: State, **options: Any) -> Loaded:
    """Loads a file into a fresh network and looks that it has the expected weights."""
    fresh = network()
    found = load_weights(fresh, file, **options)
    assert all(torch.equal(value, expected[key]) for key, value in fresh.state_dict().items())
    return found


def prefixed(weights: State, prefix: str) -> State:
    return {prefix + key: value for key, value in weights.items()}


def module_of(name: str, **members: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    for member in members.values():
        member.__module__ = name
    vars(module).update(members)
    return module


class Node:
    """As omegaconf's: everything in attributes."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


class Easy(dict[str, Any]):
    """As EasyDict: items that are attributes as well."""

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        self[name] = value


BESIDE: dict[str, Any] = {
    "arguments": argparse.Namespace(lr=0.1, out=pathlib.PurePosixPath("runs"), betas=(0.9, 0.99)),
    "numpy": {"best": np.float64(0.9), "epoch": np.int64(3), "seen": np.arange(3), "names": np.array(["a"]), "kind": np.dtype("f4")},
    "path": pathlib.Path("a/b"),
    "time": (datetime.datetime(2026, 1, 2), datetime.timedelta(3), datetime.datetime.now(datetime.timezone.utc)),
    "collections": (collections.defaultdict(list, a=[1]), collections.deque([1, 2]), collections.Counter("ab"), {1, 2}, frozenset({3})),
    "torch": (torch.Size([1, 2]), torch.float16, torch.device("cpu"), torch.__version__),
    "simple": types.SimpleNamespace(a=1),
    "types": (dict, int, list),
}


BAD, GOOD = state(7), state(0)
COUNTER = {"1.num_batches_tracked": torch.tensor(0)}


@pytest.mark.parametrize("name", BESIDE)
def test_inert_things_beside_the_weights_do_not_matter(tmp_path: Path, name: str) -> None:
    torch.save({"epoch": 3, "beside": BESIDE[name], "state_dict": state()}, tmp_path / "w.pth")
    assert loaded(tmp_path / "w.pth", state()).name == "state_dict"


@pytest.mark.parametrize("place", ["omegaconf.dictconfig.DictConfig", "easydict.EasyDict"])
def test_configurations_of_libraries_that_are_not_installed(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package, _, name = place.rpartition(".")
    kind = type(name, (Easy if name == "EasyDict" else Node,), {})
    with monkeypatch.context() as patched:
        for part in {package.partition(".")[0], package}:
            patched.setitem(sys.modules, part, module_of(part, **{name: kind}))
        kind.__module__ = package
        torch.save({"cfg": kind(lr=0.1, deep=kind(a=1)), "model": state()}, tmp_path / "w.pth")
    assert package not in sys.modules
    loaded(tmp_path / "w.pth", state())


def test_weights_as_arrays_and_among_attributes(tmp_path: Path) -> None:
    arrays = {key: value.numpy() for key, value in state().items()}
    arrays["0.weight"] = np.asfortranarray(arrays["0.weight"]).astype(">f4")
    torch.save({"params": arrays}, tmp_path / "arrays.pth")
    loaded(tmp_path / "arrays.pth", state())
    torch.save(argparse.Namespace(net=state()), tmp_path / "attributes.pth")
    assert loaded(tmp_path / "attributes.pth", state()).name == "net"


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_newer_pickle_protocols(tmp_path: Path, protocol: int) -> None:
    content = {"epoch": np.float64(3), "args": argparse.Namespace(a=[1]), "model": {"net": network(0).state_dict()}}
    torch.save(content, tmp_path / "w.pth", pickle_protocol=protocol)
    assert loaded(tmp_path / "w.pth", GOOD).name == "model.net"
    halves = {key: nn.Parameter(value.half(), requires_grad=False) for key, value in GOOD.items() if value.is_floating_point()}
    torch.save(halves, tmp_path / "half.pth", pickle_protocol=protocol)
    loaded(tmp_path / "half.pth", {key: value.half().float() for key, value in GOOD.items() if value.is_floating_point()} | COUNTER)
    arrays = {key: np.asfortranarray(value.numpy()) for key, value in GOOD.items()}
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"model": arrays, "name": "R50"}, protocol=protocol))
    loaded(tmp_path / "w.pkl", GOOD)


class Dangerous:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


class Called:
    """Calls something that is allowed with what is not."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return collections.defaultdict, (os.getcwd,)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", [Dangerous, Called])
def test_what_would_run_code_is_refused_and_not_run(tmp_path: Path, kind: type[Any], protocol: int) -> None:
    mark = tmp_path / "mark"
    torch.save({"state_dict": state(), "args": kind(mark)}, tmp_path / "w.pth", pickle_protocol=protocol)
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"args": kind(mark)}, protocol=protocol))
    for name in ("w.pth", "plain.pth"):
        with pytest.raises(InputError, match=r"needs (posix|os)\.(mkdir|getcwd) to be unpickled.*--trust-code" if protocol > 2 else ""):
            load_weights(network(), tmp_path / name)
    assert not mark.exists()


def test_our_unpickler_gives_nothing_that_could_be_changed_or_called(tmp_path: Path) -> None:
    """A pickle can set the state of whatever it finds: of a class that would be to change it for everybody."""
    for found in (
        b"cargparse\nNamespace\n",
        b"ccollections\nOrderedDict\n",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ctorch\nFloatStorage\n",
    ):
        for state in (b"}X\x04\x00\x00\x00evilK\x01s", b"N}X\x04\x00\x00\x00evilK\x01s\x86"):
            (tmp_path / "w.pkl").write_bytes(b"\x80\x04" + found + state + b"b.")
            with pytest.raises(InputError):
                load_weights(network(), tmp_path / "w.pkl")
    assert not any(hasattr(kind, "evil") for kind in (collections.OrderedDict, *containers._INERT.values(), *containers._OWN.values()))


@pytest.mark.parametrize(
    "prefix", ["net.", "classifier_model.", "module._orig_mod.", "encoder.trunk.", "_fsdp_wrapped_module.", "a.b.c.d."]
)
def test_any_prefix_that_all_keys_share(tmp_path: Path, prefix: str) -> None:
    torch.save({"state_dict": {**prefixed(state(), prefix), "loss.weight": torch.ones(3)}, "epoch": 1}, tmp_path / "w.ckpt")
    loaded(tmp_path / "w.ckpt", state())


def test_wrappers_between_a_networks_own_names(tmp_path: Path) -> None:
    """As `model.features = DataParallel(model.features)` and FSDP leave them."""
    parts = {key.replace("0.", "0.module.", 1).replace("4.", "4._fsdp_wrapped_module.", 1): value for key, value in state().items()}
    torch.save(parts, tmp_path / "w.pth")
    loaded(tmp_path / "w.pth", state())


@pytest.mark.parametrize("names", [("model_state",), ("params_ema",), ("ema", "module"), ("checkpoint", "best", "net", "weights")])
def test_any_nesting(tmp_path: Path, names: tuple[str, ...]) -> None:
    content: Any = state()
    for name in reversed(names):
        content = {"epoch": 3, name: content, "optimizer": {"state": {0: {"exp_avg": torch.ones(4)}}}}
    torch.save(content, tmp_path / "w.pth")
    assert loaded(tmp_path / "w.pth", state()).name == ".".join(names).removesuffix(".module")


def test_a_networks_parts_in_dictionaries_of_their_own(tmp_path: Path) -> None:
    parts: dict[str, State] = {}
    for key, value in state().items():
        part, _, name = key.partition(".")
        parts.setdefault(part, {})[name] = value
    torch.save({"model": parts}, tmp_path / "w.pth")
    loaded(tmp_path / "w.pth", state())


CHOICES: dict[str, tuple[dict[str, Any], str]] = {
    "timm": ({"state_dict": BAD, "state_dict_ema": GOOD}, "state_dict_ema"),
    "torchvision": ({"model": BAD, "model_ema": {**prefixed(GOOD, "module."), "n_averaged": torch.tensor(5)}}, "model_ema"),
    "averages first": ({"best_model": BAD, "last": {"model": BAD, "swa_model": GOOD}}, "last.swa_model"),
    "best": ({"model": BAD, "best_model": GOOD}, "best_model"),
    "first": ({"first": GOOD, "second": BAD}, "first"),
    "student": ({"state_dict": {**prefixed(BAD, "teacher_ema."), **prefixed(GOOD, "student.")}}, "state_dict.student"),
    "no weights": ({"grads_ema": BAD, "model": GOOD}, "model"),
    "half an average": ({"ema": {"0.weight": BAD["0.weight"]}, "model": GOOD}, "model"),
    "names with ema in them": ({"schema": BAD, "model_ema": GOOD}, "model_ema"),
}


@pytest.mark.parametrize("case", CHOICES)
def test_which_of_several_sets_is_taken(tmp_path: Path, case: str) -> None:
    content, name = CHOICES[case]
    torch.save(content, tmp_path / "w.pth")
    found = loaded(tmp_path / "w.pth", GOOD)
    assert found.name == name
    assert name not in found.others


def test_another_set_is_asked_for_by_its_name(tmp_path: Path) -> None:
    torch.save({"state_dict": BAD, "state_dict_ema": GOOD, "old": {"last": BAD}}, tmp_path / "w.pth")
    assert loaded(f"{tmp_path / 'w.pth'}#state_dict", BAD).others == ()
    assert loaded(f"{tmp_path / 'w.pth'}#old.last", BAD).name == "old.last"
    assert loaded(tmp_path / "w.pth", GOOD).others == ("state_dict", "old.last")
    assert read_weights(f"{tmp_path / 'w.pth'}#state_dict")["0.bias"].equal(BAD["0.bias"])
    assert read_weights(tmp_path / "w.pth")["0.bias"].equal(GOOD["0.bias"])
    with pytest.raises(InputError, match=r"#nowhere', expected one of the sets in it: state_dict, state_dict_ema, old.last"):
        load_weights(network(), f"{tmp_path / 'w.pth'}#nowhere")
    torch.save({"state_dict": {**prefixed(BAD, "teacher."), **prefixed(GOOD, "student.")}}, tmp_path / "both.ckpt")
    loaded(f"{tmp_path / 'both.ckpt'}#state_dict.teacher", BAD)
    (tmp_path / "a#b.pth").write_bytes((tmp_path / "w.pth").read_bytes())
    loaded(tmp_path / "a#b.pth", GOOD)


def test_a_teacher_beside_another_student_is_taken(tmp_path: Path) -> None:
    other = nn.Sequential(nn.Conv2d(3, 9, 3), nn.Linear(9, 2)).state_dict()
    torch.save({"state_dict": {**prefixed(dict(other), "student."), **prefixed(GOOD, "teacher.")}}, tmp_path / "w.ckpt")
    loaded(tmp_path / "w.ckpt", GOOD)


def test_where_nothing_fits_the_names_in_the_file_are_said(tmp_path: Path) -> None:
    torch.save({"epoch": 1, "model": nn.Linear(2, 2).state_dict(), "ema": {"0.weight": GOOD["0.weight"]}}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"the file holds ema \(1 of 9 tensors fit\), model \(0 of 9 tensors fit\)") as error:
        load_weights(network(), tmp_path / "w.pth")
    assert "\n" not in str(error.value)
    torch.save({"epoch": 1, "history": [1.0]}, tmp_path / "none.pth")
    with pytest.raises(InputError, match="no state dict was found; it holds epoch, history"):
        load_weights(network(), tmp_path / "none.pth")


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_converted_and_said(tmp_path: Path, kind: torch.dtype) -> None:
    halves = {key: value.to(kind) if value.is_floating_point() else value for key, value in GOOD.items()}
    torch.save(halves, tmp_path / "w.pth")
    rounded = {key: value.float() if value.is_floating_point() else value for key, value in halves.items()}
    assert loaded(tmp_path / "w.pth", rounded).notes == (f"converted from {str(kind).removeprefix('torch.')}",)


def test_auxiliary_heads_are_left_out_and_said(tmp_path: Path) -> None:
    torch.save({**GOOD, "aux1.fc.weight": torch.ones(2, 2), "AuxLogits.fc.bias": torch.ones(2)}, tmp_path / "w.pth")
    assert loaded(tmp_path / "w.pth", GOOD).notes == ("auxiliary heads left out (AuxLogits, aux1)",)
    torch.save({**GOOD, "total_ops": torch.ones(1), "1.total_params": torch.ones(1)}, tmp_path / "profiled.pth")
    loaded(tmp_path / "profiled.pth", GOOD)


FORMS = {"plain": lambda layer: layer, "old": weight_norm, "new": parametrizations.weight_norm}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("theirs", FORMS)
@pytest.mark.parametrize("ours", FORMS)
def test_weight_normalisation_in_every_form(tmp_path: Path, theirs: str, ours: str) -> None:
    def built(form: str, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(FORMS[form](nn.Conv2d(3, 4, 3, bias=False)), nn.Flatten(), FORMS[form](nn.Linear(16, 2)))

    source, fresh = built(theirs, 0), built(ours, 1)
    torch.save({"state_dict": prefixed(dict(source.state_dict()), "net.")}, tmp_path / "w.pth")
    found = load_weights(fresh, tmp_path / "w.pth")
    images = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(fresh(images), source(images), rtol=1e-5, atol=1e-6)
    assert found.notes == (() if theirs == ours else ("weight normalisation in another form",))


def last_layer() -> tuple[str, ...]:
    return "4.weight", "4.bias"


def test_a_head_for_other_classes_is_left_out_where_that_is_asked_for(tmp_path: Path) -> None:
    source = network(0, classes=10)
    torch.save({"ema": source.state_dict()}, tmp_path / "w.pth")
    fresh, head = network(), network().state_dict()["4.weight"]
    found = load_weights(fresh, tmp_path / "w.pth", other_head=last_layer)
    assert (found.name, found.classes) == ("ema", 10)
    assert torch.equal(fresh.state_dict()["0.weight"], source.state_dict()["0.weight"])
    assert torch.equal(fresh.state_dict()["4.weight"], head)
    assert load_weights(network(classes=10), tmp_path / "w.pth", other_head=last_layer).classes is None
    del (narrow := dict(source.state_dict()))["0.bias"]
    torch.save(narrow, tmp_path / "narrow.pth")
    with pytest.raises(InputError, match="1 missing"):
        load_weights(network(), tmp_path / "narrow.pth", other_head=last_layer)


# Folders --------------------------------------------------------------------------------------------------------------------------------


def sharded(folder: Path, weights: State, ending: str) -> Path:
    folder.mkdir(exist_ok=True)
    names = list(weights)
    places: dict[str, str] = {}
    for number, keys in enumerate((names[::2], names[1::2])):
        file = f"shard-{number}.{ending}"
        places |= dict.fromkeys(keys, file)
        shard = {key: weights[key] for key in keys}
        save_file(shard, folder / file) if ending == "safetensors" else torch.save(shard, folder / file)
    index = folder / ("model.safetensors.index.json" if ending == "safetensors" else "pytorch_model.bin.index.json")
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_shards_with_an_index(tmp_path: Path, ending: str) -> None:
    index = sharded(tmp_path / "model", GOOD, ending)
    loaded(index, GOOD)
    loaded(index.parent, GOOD)
    (index.parent / f"shard-1.{ending}").unlink()
    with pytest.raises(InputError, match=rf"without shard-1.{ending}, expected all 2 shards"):
        load_weights(network(), index)


def test_an_index_reads_nothing_elsewhere_and_nothing_that_is_not_there(tmp_path: Path) -> None:
    index = sharded(tmp_path / "model", GOOD, "safetensors")
    index.write_text(json.dumps({"weight_map": {"0.weight": "../secret"}}))
    with pytest.raises(InputError, match=r"whose shards lie elsewhere \(\.\./secret\)"):
        load_weights(network(), index)
    index.write_text(json.dumps({"weight_map": {"5.weight": "shard-0.safetensors"}}))
    with pytest.raises(InputError, match=r"shard-0.safetensors' without 5.weight"):
        load_weights(network(), index)
    index.write_text("{}")
    with pytest.raises(InputError, match="JSON and no index of weights"):
        load_weights(network(), index)


def test_folders(tmp_path: Path) -> None:
    torch.save(GOOD, tmp_path / "pytorch_model.bin")
    loaded(tmp_path, GOOD)
    (tmp_path / "pytorch_model.bin").rename(tmp_path / "teacher.pth")
    loaded(tmp_path, GOOD)
    torch.save(BAD, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"but with other.pth, teacher.pth, expected"):
        load_weights(network(), tmp_path)
    distributed = tmp_path / "distributed"
    distributed.mkdir()
    (distributed / ".metadata").touch()
    with pytest.raises(InputError, match=r"in the shards of several processes, expected one file: .*dcp_to_torch"):
        load_weights(network(), distributed)


def test_other_files_are_named_for_what_they_are(tmp_path: Path) -> None:
    torch.jit.trace(network(), torch.ones(1, 3, 8, 8)).save(str(tmp_path / "program.pt"))
    (tmp_path / "pointer.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n")
    (tmp_path / "page.pth").write_text("<!DOCTYPE html><html>Not found</html>")
    for name, said in (("program.pt", "a TorchScript program"), ("pointer.pth", "Git LFS"), ("page.pth", "a web page")):
        with pytest.raises(InputError, match=said):
            load_weights(network(), tmp_path / name)


# Any container --------------------------------------------------------------------------------------------------------------------------

NAMES = st.sampled_from(["state_dict", "model", "net", "ema", "module", "x", "a_b", "epoch", "weights", "0", "student"])
JUNK = st.sampled_from([*BESIDE.values(), None, 3, "text", b"bytes", [torch.ones(2)], {"lr": 0.1}, np.ones((2, 2)), float("nan")])


@st.composite
def contents(draw: st.DrawFn) -> Any:
    """Weights under any names and prefixes, with anything beside them at every depth."""
    prefix = "".join(f"{name}." for name in draw(st.lists(NAMES, max_size=3)))
    content: Any = {**prefixed(GOOD, prefix), **draw(st.dictionaries(st.sampled_from(["extra", "y"]), JUNK, max_size=1))}
    for name in draw(st.lists(NAMES, max_size=4)):
        beside = draw(st.dictionaries(st.sampled_from(["beside", "more", "optimizer"]), JUNK, max_size=2))
        content = draw(st.sampled_from([{**beside, name: content}, [beside, content], argparse.Namespace(**beside, inner=content)]))
    return content


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(contents(), st.booleans(), st.sampled_from([2, 4]))
def test_any_container_whose_tensors_fit_is_loaded(tmp_path: Path, content: Any, zipped: bool, protocol: int) -> None:
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped, pickle_protocol=protocol if zipped else 2)
    loaded(tmp_path / "w.pth", GOOD)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(contents(), st.data())
def test_a_broken_file_is_one_line_and_never_a_wrong_network(tmp_path: Path, content: Any, data: st.DataObject) -> None:
    kind, stream = data.draw(st.sampled_from(["zip", "legacy", "safetensors", "pickle", "index"])), io.BytesIO()
    if kind == "safetensors":
        save_file(GOOD, tmp_path / "whole")
        stream = io.BytesIO((tmp_path / "whole").read_bytes())
    elif kind == "pickle":
        pickle.dump({"state_dict": {key: value.numpy() for key, value in GOOD.items()}}, stream)
    elif kind == "index":
        stream.write(sharded(tmp_path / "shards", GOOD, "safetensors").read_bytes())
    else:
        torch.save(content, stream, _use_new_zipfile_serialization=kind == "zip", pickle_protocol=data.draw(st.sampled_from([2, 4])))
    whole = bytearray(stream.getvalue())
    if data.draw(st.booleans()):
        del whole[data.draw(st.integers(0, len(whole))) :]
    for place, byte in data.draw(st.lists(st.tuples(st.integers(0, max(len(whole) - 1, 0)), st.integers(0, 255)), max_size=8)):
        if whole:
            whole[place] = byte
    (tmp_path / "w.pth").write_bytes(whole)
    fresh = network()
    before = {key: value.clone() for key, value in fresh.state_dict().items()}
    with contextlib.suppress(InputError):
        load_weights(fresh, tmp_path / "w.pth")
        return
    assert all(torch.equal(value, before[key]) for key, value in fresh.state_dict().items())


# Arrays of NumPy ------------------------------------------------------------------------------------------------------------------------


def test_arrays_of_numpy(tmp_path: Path) -> None:
    weights = state()
    np.savez(tmp_path / "w.npz", note=np.array("of a colleague"), **{name: value.numpy() for name, value in weights.items()})
    loaded(tmp_path / "w.npz", weights)


def test_objects_among_arrays_are_not_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", thing=np.array([object()], dtype=object))
    with pytest.raises(InputError, match=r"w.npz', which cannot be read \(Object arrays cannot be loaded"):
        read_weights(tmp_path / "w.npz")
