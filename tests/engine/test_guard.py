from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from stillroom.engine.run.guard import FiniteGuard
from stillroom.errors import NonFiniteLoss, NonFiniteWeights

IDS = torch.tensor([4, 8, 15])
GOOD = {"ce": torch.tensor(1.5), "kd": torch.tensor([0.5])}


class FarTensor(torch.Tensor):
    """A tensor on the CPU that says it is on an accelerator: asking for its values there would cost a synchronisation."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda", 0)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = super().__torch_function__(function, types, args, kwargs or {})
        return answer.as_subclass(cls) if isinstance(answer, Tensor) else answer


def far(**terms: float) -> dict[str, Tensor]:
    return {name: torch.tensor(value).as_subclass(FarTensor) for name, value in terms.items()}


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_on_the_cpu_the_step_itself_is_refused(bad: float) -> None:
    guard = FiniteGuard()
    for step in range(50):
        guard.watch(GOOD, IDS, step)
    with pytest.raises(NonFiniteLoss) as caught:
        guard.watch({**GOOD, "crd": torch.tensor(bad)}, IDS, 50)
    assert caught.value.step == 50
    assert caught.value.terms == pytest.approx({"crd": bad}, nan_ok=True)
    assert caught.value.ids == [4, 8, 15]


def test_message_names_step_terms_values_and_samples() -> None:
    with pytest.raises(NonFiniteLoss) as caught:
        FiniteGuard().watch({"ce": torch.tensor(torch.inf), "kd": torch.tensor(1.0), "crd": torch.tensor(torch.nan)}, IDS, 7)
    assert str(caught.value) == "the loss is not finite at step 7: ce = inf, crd = nan; the batch's sample ids are [4, 8, 15]"
    assert caught.value.exit_code == 3


def test_the_error_survives_the_way_between_processes() -> None:
    error = NonFiniteLoss(3, {"ce": torch.inf}, [1, 2])
    again = pickle.loads(pickle.dumps(error))
    assert (again.step, again.terms, again.ids, str(again)) == (3, {"ce": torch.inf}, [1, 2], str(error))


def test_a_term_is_watched_without_its_graph() -> None:
    weight = torch.tensor(2.0, requires_grad=True)
    guard = FiniteGuard()
    guard.watch({"ce": weight * 3}, IDS, 0)
    assert all(not value.requires_grad for _, _, value, _ in guard._seen)


def test_large_reduced_precision_terms_are_finite() -> None:
    FiniteGuard().watch({"ce": torch.tensor(60000.0, dtype=torch.float16), "kd": torch.tensor(1e38, dtype=torch.bfloat16)}, IDS, 0)


def test_on_an_accelerator_steps_are_looked_at_together() -> None:
    guard = FiniteGuard(every=5)
    guard.watch(far(ce=1.0, kd=2.0), IDS, 0)
    guard.watch(far(ce=1.0, kd=torch.inf), IDS + 1, 1)
    guard.watch(far(ce=torch.nan, kd=torch.inf), IDS + 2, 2)
    guard.watch(far(ce=1.0, kd=2.0), IDS, 3)  # nothing has been asked of the device so far
    with pytest.raises(NonFiniteLoss) as caught:
        guard.watch(far(ce=1.0, kd=2.0), IDS, 4)
    assert caught.value.step == 1  # the first bad one
    assert caught.value.terms == {"kd": torch.inf}
    assert caught.value.ids == [5, 9, 16]


def test_a_checkpoint_has_its_own_look_and_nothing_is_seen_twice() -> None:
    guard = FiniteGuard(every=20)
    guard.watch(far(ce=torch.nan), IDS, 11)
    with pytest.raises(NonFiniteLoss, match="step 11: ce = nan"):
        guard.look()
    guard.look()
    guard.watch(far(ce=1.0), IDS, 12)
    guard.look()


def test_terms_may_come_and_go() -> None:
    guard = FiniteGuard(every=10)
    guard.watch(far(ce=1.0), IDS, 0)
    guard.watch(far(ce=1.0, kd=torch.inf, crd=1.0), IDS, 1)
    with pytest.raises(NonFiniteLoss, match="step 1: kd = inf;"):
        guard.look()


def test_weights_that_are_not_finite_are_named() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    FiniteGuard().look_at_weights(network, 5)
    FiniteGuard().look_at_weights(torch.nn.ReLU(), 5)
    with torch.no_grad():
        network[1].bias.fill_(torch.nan)
    with pytest.raises(NonFiniteWeights, match=r"not finite after step 5, though its loss is: 1\.bias$") as caught:
        FiniteGuard().look_at_weights(network, 5)
    assert caught.value.exit_code == 3
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.step, again.names, str(again)) == (5, ["1.bias"], str(caught.value))
