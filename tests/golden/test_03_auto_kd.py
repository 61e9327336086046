"""Auto-KD's search space, tree search, reward and accelerations against the reference vectors of ``03-auto-kd``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from stillroom.engine.study.median_pruner import gives_up
from stillroom.engine.study.tree import Tree
from stillroom.losses.composed import GLOBAL, INTER, INTRA, NONE, Composition, over, rows_of, within
from stillroom.losses.similarity import linear_cka
from stillroom.methods.auto_kd.reward import reward_of, score_of
from stillroom.methods.auto_kd.sparse import prune_and_regrow, random_mask
from stillroom.methods.auto_kd.weighting import layer_and_teacher_weights, similarities, weights_of
from tests.golden.check import HERE, Case, load_cases, run_case, with_gradients


def transforms(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    feature = inputs["feature"]
    found = {name: over(feature, name, inputs.get("keep_mask")) for name in GLOBAL if name != NONE}
    found |= {name: within(feature, name) for name in INTRA if name != NONE}
    return found | {name: rows_of(feature, name) for name in INTER}


def distiller(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    student = inputs["student"].requires_grad_()
    made = Composition(**params)
    read = Composition.read(str(made))
    assert read == made
    return with_gradients(read(student, inputs["teacher"], keep_N1HW=inputs.get("mask")), student=student)


def _layers(inputs: dict[str, Tensor], name: str) -> list[Tensor]:
    return [inputs[key] for i in range(len(inputs)) if (key := f"{name}{i}") in inputs]


def reward(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    pairs = zip(_layers(inputs, "student"), _layers(inputs, "teacher"), strict=True)
    cka = torch.stack([linear_cka(student, teacher) for student, teacher in pairs])
    ce = torch.nn.functional.cross_entropy(inputs["logits"], inputs["target"]).item()
    score = score_of(ce, cka.tolist(), params["omega"])
    found = reward_of(score, params["baseline_score"], params["tau"])
    return {"cka": cka, "score": torch.tensor(score), "reward": torch.tensor(found)}


def uct(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    tree, rollout, table = Tree(params["levels"], params["c"]), inputs["rollout"], inputs["reward"]
    leaves: list[tuple[int, ...]] = []
    workers = params.get("workers", 1)
    for start in range(0, len(rollout), workers):
        sent = [tree.dispatch(lambda level, options, row=row: int(row[level]) % options) for row in rollout[start : start + workers]]
        for leaf, depth in sent:
            tree.reward(leaf, depth, table[leaf].item())
            leaves.append(leaf)
    children = [tree.root.children.get(option) for option in range(params["levels"][0])]
    rewards = torch.stack([table[leaf] for leaf in leaves])
    return {
        "leaf": torch.tensor(leaves),
        "leaf_reward": rewards,
        "root_child_visits": torch.tensor([child.visits if child else 0 for child in children]),
        "root_child_value": torch.tensor([child.value / child.visits if child else 0.0 for child in children]),
        "best_leaf": torch.tensor(leaves[int(rewards.argmax())]),
    }


def sparse(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    mask = random_mask(inputs["key_init"], params["density"])
    after, weight = prune_and_regrow(inputs["weight"] * mask, mask, inputs["key_grow"], params["death_rate"])
    return {"mask": mask, "mask_after": after, "weight_after": weight}


def weights(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    found = similarities([_layers(inputs, "student")], [_layers(inputs, "teacher")])[0]
    return {"similarity": found, "weights": weights_of(found, params["tau"])}


def weights_multi(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    students = [_layers(inputs, f"student{i}_") for i in range(params["initialisations"])]
    teachers = [_layers(inputs, f"teacher{i}_") for i in range(params["teachers"])]
    found = similarities(students, teachers)
    layers, of_teachers = layer_and_teacher_weights(found, params["tau"])
    return {"similarity": found, "layer_weights": layers, "teacher_weights": of_teachers, "product": layers * of_teachers[:, None]}


def early_stop(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    reached: list[list[float]] = [[] for _ in inputs["scores"][0]]
    last, used = [], []
    for scores in inputs["scores"].tolist():
        for checkpoint, score in enumerate(scores):
            stopped = checkpoint < len(scores) - 1 and gives_up(score, reached[checkpoint])
            reached[checkpoint].append(score)
            if stopped:
                break
        last.append(checkpoint)
        used.append(score)
    ended = [int(checkpoint < len(reached) - 1) for checkpoint in last]
    return {"last_checkpoint": torch.tensor(last), "stopped": torch.tensor(ended), "score_used": torch.tensor(used)}


ADAPTERS = {
    "transforms": transforms,
    "distiller": distiller,
    "reward": reward,
    "uct": uct,
    "uct_parallel": uct,
    "sparse": sparse,
    "weights": weights,
    "weights_multi": weights_multi,
    "early_stop": early_stop,
}


@pytest.mark.parametrize("case", load_cases(HERE / "03-auto-kd.npz"), ids=str)
def test_reference(case: Case) -> None:
    outcome = run_case(case, ADAPTERS)
    assert outcome.passed, str(outcome)
