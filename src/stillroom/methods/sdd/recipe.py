"""SDD's experiment: a diffusion model, the search for its time steps, a student for each prompt, the same with random steps, and SDEdit."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stillroom.engine import Lab, Report, Room, Trained, Training
from stillroom.engine.report.results import Section, StageResult
from stillroom.engine.specification import function_of
from stillroom.engine.task import Built
from stillroom.errors import InputError, at_least, at_least_zero, share
from stillroom.methods.sdd.distiller import SDD
from stillroom.methods.sdd.hqs import Indicator, Rule, chosen, hybrid_quality
from stillroom.methods.sdd.search import grid_of, search
from stillroom.tasks.editing import DENOISER, EDITOR, TASK, Denoising, EditingData, EditingNetworks, PipelineTeacher, PixelTeacher
from stillroom.tasks.editing.denoiser import STEPS
from stillroom.tasks.editing.diffusion import DiffusionTeacher, check_step
from stillroom.tasks.editing.judges import Classifying
from stillroom.tasks.editing.pages import curve_section
from stillroom.tasks.editing.sampling import DDIB, SDEdit, ddim_times
from stillroom.tasks.images.classifiers import build_classifier

_JUDGE, _JUDGED = "stillroom/convnet24", Training(epochs=30, optimizer="adam", lr=3e-3, weight_decay=1e-4, schedule="onecycle")
_SMALL_GUIDANCE, _LARGE_GUIDANCE = 5.0, 100.0  # of a denoiser in pixel space; the paper's
_SAMPLING = 7.5  # guidance of SDEdit with a pipeline: the usual one, for with the paper's nothing is left of a picture
_HARDLY = 700.0  # denoising error, in thousandths of the noise's own variance

Prompts = list[str] | str
Step = Literal["search", "random"] | int


def recipe(
    lab: Lab,
    data: EditingData,
    plan: Training = EDITOR,
    networks: EditingNetworks = TASK.networks,
    prompt: Prompts = "red",
    from_: str | None = None,
    timestep: Step = "search",
    indicator: Indicator = "hqs",
    rule: Rule | None = None,
    threshold: float | None = None,
    search_images: int = 64,
    search_steps: list[int] | None = None,
    guidance: float | None = None,
    l2_weight: float = 2000.0,
    top_k: int | None = None,
    identity: str | None = None,
    identity_weight: float = 1.0,
    through_teacher: bool = False,
    uniform: bool = True,
    strengths: list[float] | None = None,
    ddim_steps: int = 20,
) -> Report:
    """Train a network that edits pictures in one pass, by the gradient of a diffusion model that has seen many.

    Args:
        lab, data, plan, networks: where to run, on what, how to train, and which networks; see `Room`.
        prompt: what pictures are to become: a class of the data, or words for a pipeline; of several, ``[red, blue]``, each gets a student.
        from_: what is edited: a class of the data, by default every other one; or words for a pipeline. DDIB, which leads from one to the
            other, is then compared as well.
        timestep: of the teacher: chosen by the ``search``; ``random``, anew for each batch; or one of 0 to T - 1.
        indicator: what the search looks at: ``hqs``, the paper's; ``entropy``, the released code's; or ``l1``.
        rule: what it takes: the ``max`` or the ``min`` of the indicator, or every step ``above`` or ``below`` a threshold; by default the
            min of the entropy and the max of all else.
        threshold: xi, for above and below.
        search_images: pictures that the search asks about; the paper 200.
        search_steps: time steps that it asks about; by default a tenth to nine tenths of T by a twentieth, the paper's grid.
        guidance: of classifier-free guidance; by default the paper's 100 for a pipeline and 5 for a denoiser in pixel space.
        l2_weight: of the mean squared difference between the edited and the unedited picture.
        top_k: keep so many of a batch's largest gradients at the latents (the paper's example: 1024); by default all.
        identity: a frozen network whose answers to edited and unedited pictures are kept alike, ``file.py:function``; it is called without
            arguments and answers with a network that reads pictures in [-1, 1].
        identity_weight: of that.
        through_teacher: train on the whole objective, with the gradient through the teacher's network; for small ones.
        uniform: train a student at random time steps as well, to compare with.
        strengths: of SDEdit, which the students are compared with, from 0 to 1; by default 0.3, 0.5, 0.7 and 0.9, with a pipeline 0.5.
        ddim_steps: steps of SDEdit from pure noise to a picture.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    _check(lab, data, prompts, networks, search_images, identity_weight, strengths, ddim_steps, guidance)
    strengths = ([0.5] if networks.pipeline else [0.3, 0.5, 0.7, 0.9]) if strengths is None else strengths
    s = (_LARGE_GUIDANCE if networks.pipeline else _SMALL_GUIDANCE) if guidance is None else at_least_zero("guidance", guidance)
    piped: PipelineTeacher | None = None
    embedding = None if identity is None else function_of(identity, "identity", "file.py:function")()
    if networks.pipeline:
        piped = PipelineTeacher(networks.pipeline, precision=lab.options.torch_precision)
    else:
        for one in prompts:
            data.for_edit(one, from_)
            if one not in data.classes or not data.has_classes:
                raise InputError("prompt", one, f"a class of the data ({', '.join(data.classes)}); other words need --pipeline")
    asked: dict[str, Any] = {"guidance": s, "top_k": top_k, "through_teacher": through_teacher}
    total = STEPS if piped is None else len(piped.alphas_cumprod)
    ddim_times(ddim_steps, total)
    for name, steps in (("timestep", [timestep] if isinstance(timestep, int) else []), ("search_steps", search_steps or [])):
        for t in steps:
            check_step(t, total, name)
    _rehearse(lab, data, plan, networks, asked, l2_weight)
    teacher: DiffusionTeacher
    teacher, taught = denoiser(lab, data, networks) if piped is None else (piped, None)
    judge = judged(lab, data) if data.has_classes and not data.drawn else None
    size = _seen_size(teacher, data)

    arms: dict[str, Trained] = {}
    sections: list[Section] = []
    for one in prompts:
        edits, condition = data.for_edit(one, from_ if data.has_classes else None, judge), teacher.condition(one)
        taught_at: list[int] | None = [timestep] if isinstance(timestep, int) else None
        if timestep == "search":
            found = searched(lab, edits, teacher, condition, one, search_images, search_steps or grid_of(total), size, asked)
            kind = rule or ("min" if indicator == "entropy" else "max")
            taught_at = chosen(*found, indicator=indicator, rule=kind, threshold=threshold)
            lab.say("search", f"“{one}” is taught at t = {', '.join(map(str, taught_at))} of {total}")
            sections.append(_curves(one, *found, taught_at, kind, indicator))
        make = partial(
            SDD, teacher=teacher, condition=condition, teacher_size=size, l2_weight=l2_weight, embedding=embedding,
            identity_weight=identity_weight, **asked,
        )  # fmt: skip
        named, stage = (f"{one}: ", f"{_word(one)}-") if len(prompts) > 1 else ("", "")
        arms[f"{named}distilled"] = trained(lab, edits, plan, networks, f"{stage}distilled", partial(make, timesteps=taught_at))
        if uniform and timestep != "random":
            arms[f"{named}random steps"] = trained(lab, edits, plan, networks, f"{stage}random", partial(make, timesteps=None))
        for strength in strengths:
            name = f"{stage}sdedit-{strength:g}"
            sampling = SDEdit(
                teacher, condition, strength=strength, steps=ddim_steps, guidance=_SAMPLING if networks.pipeline else s, seed=lab.seed
            )
            arms[f"{named}SDEdit {strength:g}"] = sampled(lab, edits, networks, taught, sampling, name, f"strength {strength:g}")
        if from_ is not None:
            there_and_back = DDIB(teacher, teacher.condition(from_), condition, steps=ddim_steps)
            arms[f"{named}DDIB"] = sampled(lab, edits, networks, taught, there_and_back, f"{stage}ddib", f"from {from_}")
    first = data.for_edit(prompts[0], from_ if data.has_classes else None, judge)
    baseline = "random steps" if "random steps" in arms else None
    report = lab.report("sdd", first, arms, baseline=baseline or "", ship=next(iter(arms)))
    report.teacher = None
    report.method_sections = sections
    if taught is not None:
        report.notes = [
            *taught.notes,
            f"The teacher's denoising error: {taught.result.metrics['denoising']:.1f} thousandths.",
            *report.notes,
        ]
    return report


def denoiser(lab: Lab, data: EditingData, networks: EditingNetworks) -> tuple[PixelTeacher, Trained]:
    """The teacher of whoever has no pipeline, one for all seeds: scored where it brings weights, else trained first.

    Raises:
        InputError: it brings weights and hardly denoises, and was not accepted all the same.
    """
    with lab.shared():
        built = _built(lab, data, networks, "teacher")
        pictures = data.for_denoiser(networks.teacher_batch_size)
        if built.weights is None:
            plan = networks.teacher_plan(DENOISER)
            taught = lab.fit(Denoising(built.network), pictures, plan, name="teacher", model=built.spec)
        else:
            taught = lab.evaluate(
                built.network,
                pictures,
                name="teacher",
                model=built.spec,
                around=Denoising,
                weights=built.weights,
                origin=f"the weights of {built.weights}, scored and used as they are",
                accept=lambda result: _accepted(networks, result),
            )
    assert taught.network is not None
    return PixelTeacher(taught.network, data.classes, data.image_size, lab.options.torch_precision), taught  # type: ignore[arg-type]


def _accepted(networks: EditingNetworks, result: StageResult) -> tuple[str, ...]:
    error = result.metrics["denoising"]
    if error < _HARDLY:
        return ()
    said = f"{networks.teacher}, whose error is {error:.0f} thousandths of the noise"
    if not networks.accept_teacher:
        raise InputError("teacher", said, "one that denoises, or --accept-teacher to go on with it")
    return (f"WARNING: the teacher hardly denoises: {said}.",)


def judged(lab: Lab, data: EditingData) -> nn.Module:
    """A classifier of the data's classes, which judges edits and is trained on none; one for all seeds."""
    with lab.shared():
        network = build_classifier(_JUDGE, num_classes=data.num_classes, image_size=data.image_size).network
        judge = lab.fit(Classifying(network), data.for_judge(), _JUDGED, name="judge").network
    assert judge is not None
    return judge


def searched(
    lab: Lab,
    data: EditingData,
    teacher: DiffusionTeacher,
    condition: Tensor,
    prompt: str,
    count: int,
    grid: Sequence[int],
    size: int | None,
    asked: dict[str, Any],
) -> tuple[Tensor, Tensor, Tensor]:
    """Entropy and L1 norm [N, T] of the first `count` training pictures, and the grid [T]; one search for all seeds, kept in the run."""

    def compute() -> dict[str, Tensor]:
        batches, held = [], 0
        for batch in data.train_eval_loader():
            batches.append(batch.images)
            held += len(batch.images)
            if held >= count:
                break
        images = torch.cat(batches)[:count]
        return search(teacher, images, condition, grid, teacher_size=size, seed=lab.seed, device=lab.device, **asked)

    with lab.shared():
        key = repr((teacher.fingerprint(), data.fingerprint, prompt, count, list(grid), size, sorted(asked.items()), lab.seed))
        found = lab.remember(f"search/{_word(prompt)}", key, compute)
    return found["entropy"], found["l1"], found["timesteps"]


def trained(lab: Lab, data: EditingData, plan: Training, networks: EditingNetworks, name: str, make: Any) -> Trained:
    """A fresh editor under SDD."""
    built = _built(lab, data, networks, "student")
    return lab.fit(make(built.network), data, plan, name=name, model=built.spec)


def sampled(
    lab: Lab, data: EditingData, networks: EditingNetworks, taught: Trained | None, sampling: SDEdit | DDIB, name: str, said: str
) -> Trained:
    """Sampling on the validation pictures, scored like a student; no copy of the teacher's weights is kept."""
    weights = str(taught.folder / "student.safetensors") if taught is not None else str(networks.pipeline)
    steps = f"{len(sampling.times)} steps{' each way' if isinstance(sampling, DDIB) else ''}"
    return lab.evaluate(sampling, data, name=name, model=f"{type(sampling).__name__} ({said}, {steps})", weights=weights)


def _check(
    lab: Lab,
    data: EditingData,
    prompts: list[str],
    networks: EditingNetworks,
    search_images: int,
    identity_weight: float,
    strengths: list[float] | None,
    ddim_steps: int,
    guidance: float | None,
) -> None:
    """Raises InputError for what cannot be used, before anything is trained."""
    if not prompts or any(not one.strip() for one in prompts) or len(set(prompts)) < len(prompts):
        raise InputError("prompt", prompts, "one or several prompts, each once")
    at_least("search_images", search_images, 1)
    at_least("ddim_steps", ddim_steps, 1)
    at_least("teacher_batch_size", networks.teacher_batch_size, 1)
    at_least_zero("identity_weight", identity_weight)
    for strength in strengths or ():
        share("strengths", strength)
    if not networks.pipeline and not data.has_classes:
        raise InputError("data", data.data, "pictures of classes, of which a denoiser can learn; plain photos need --pipeline")


def _rehearse(lab: Lab, data: EditingData, plan: Training, networks: EditingNetworks, asked: dict[str, Any], l2_weight: float) -> None:
    """Builds everything once and looks at a step of an editor, under a teacher that has learnt nothing."""
    with lab.shared():
        built = _built(lab, data, networks, "student")
        if networks.pipeline:
            return  # which is slow; its own step is the first
        unlearnt = _built(lab, data, networks, "teacher").network
        networks.teacher_plan(DENOISER)
        teacher = PixelTeacher(unlearnt, data.classes, data.image_size, "fp32")
        tried = SDD(built.network, teacher, teacher.null_condition, l2_weight=l2_weight, **asked)
        tried.plan = plan
        tried.configure_optimizers()
        tried.rehearse(data.train_loader(seed=lab.seed).first(2))


def _built(lab: Lab, data: EditingData, networks: EditingNetworks, argument: str) -> Built:
    spec = networks.teacher if argument == "teacher" else networks.student
    return TASK.build(spec, data, networks, trust_pickle=lab.options.trust_pickle, argument=argument)


def _seen_size(teacher: DiffusionTeacher, data: EditingData) -> int | None:
    """What pictures are resized to for the teacher."""
    size = int(getattr(teacher, "image_size", data.image_size))
    return None if size == data.image_size else size


def _word(prompt: str) -> str:
    """A prompt as a folder's name: its letters and digits, and a hash where there are others."""
    plain = re.sub(r"[^A-Za-z0-9]+", "-", prompt).strip("-")[:40]
    return plain if plain == prompt else f"{plain}-{hashlib.sha256(prompt.encode()).hexdigest()[:6]}"


def _curves(prompt: str, entropy: Tensor, l1: Tensor, grid: Tensor, steps: list[int], rule: str, indicator: str) -> Section:
    """HQS and what it is made of."""
    values = {"HQS": hybrid_quality(entropy, l1), "entropy (nats)": entropy.mean(0), "L1 norm of the gradient": l1.mean(0)}
    taken = f"t = {', '.join(map(str, steps))}"
    told = [f"Of {len(entropy)} training pictures.", f"Trained at {taken}: {rule} of {indicator}."]
    return curve_section(f"Time steps for “{prompt}”", grid.tolist(), values, steps, told)


PAPER = {
    "data": "photos:data/celeba-hq",
    "pipeline": "data/stable-diffusion-v1-4",
    "prompt": "white hair",
    "image_size": 512,
    "batch_size": 2,
    "subset": 8000,  # so that an epoch has the paper's 4 000 iterations
    "epochs": 1,
    "optimizer": "adamw",
    "lr": 5e-3,
    "weight_decay": 2e-3,
    "schedule": "constant",
    "guidance": 100.0,
    "top_k": 1024,
    "search_images": 200,
}

ROOM = Room(
    recipe,
    tasks=("editing",),
    presets={"paper": PAPER},
    expect="Where 90 % of the shapes are edited, the error elsewhere is far below SDEdit's (-88.9 +- 10.4 thousandths, 3 seeds); that the "
    "chosen step is better than random ones, as the paper sees, is not shown here.",
    reason="trains an editor of pictures by a diffusion model, where there is neither a student alone nor a teacher's answer to match",
)
