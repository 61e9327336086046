"""A stand-in for the vision-language model: two small towers that learn made-up streets by captions, since no CLIP can be assumed at hand.

It learns from pictures of other streets, painted in other colours, and from words for what a few of their pixels show. It never sees a
lidar point, a box or a track, and it knows no other word than those of `CAPTIONS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from stillroom.errors import InputError
from stillroom.methods.upvl.lifting import lift
from stillroom.methods.upvl.vision import BACKGROUND, THINGS
from stillroom.tasks.points.frames import Frame
from stillroom.tasks.points.worlds import CAR, CYCLIST, PEDESTRIAN, DrivingWorld, WorldSpec

OWN = "own"  # what options call it
SOURCE = "a small stand-in that learned made-up streets by captions"
FEATURES = 24  # C
COLOURS = {"red": 0.0, "yellow": 0.15, "cyan": 0.48, "violet": 0.75}  # hues that the streets' own objects hardly have
CAPTIONS = {  # of which the first three may also be called THINGS
    "car": ("car", "vehicle"),
    "pedestrian": ("pedestrian", "person", "walker"),
    "cyclist": ("cyclist", "rider"),
    "wall": ("wall", "building", "house", "skyscraper"),
    "low wall": ("low wall", "wall"),
    "fence": ("fence",),
    "pole": ("pole", "tree"),
    "crown": ("tree", "vegetation"),
    "ground": ("road", "street", "sidewalk"),
    "sky": ("sky",),
}
WORDS = tuple(sorted({word for names in (*CAPTIONS.values(), THINGS, COLOURS) for name in names for word in name.split()}))
_STRIDE = 2
_WORLDS, _STEPS, _PICTURES, _PIXELS, _TEMPERATURE = 30, 200, 12, 48, 0.1


def image_tower() -> nn.Sequential:
    """Pictures [B, 3, H, W] in [0, 1] -> features [B, C, H/2, W/2], each of a field of 32 pixels."""
    layers: list[nn.Module] = [nn.Conv2d(3, 24, 4, _STRIDE, 1), nn.ReLU()]
    for width, dilation in ((24, 1), (32, 2), (32, 4)):
        layers += [nn.Conv2d(width, 32, 3, padding=dilation, dilation=dilation), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(32, FEATURES, 1))


def bag_of_words(text: str, argument: str = "query") -> Tensor:
    """How often each of `WORDS` stands in a text, [W]; other words count for nothing.

    Raises:
        InputError: none of them does.
    """
    said = ["".join(letter for letter in word if letter.isalpha()) for word in text.lower().split()]
    counts = torch.tensor([said.count(word) for word in WORDS], dtype=torch.float32)
    if not counts.any():
        raise InputError(argument, text, f"a text with one of the words that the stand-in knows ({', '.join(WORDS)}); a CLIP knows others")
    return counts


def embedded(texts: Sequence[str], table_WC: Tensor, argument: str = "query") -> Tensor:
    """Texts as the sums of their words' rows, [Q, C], unit."""
    return normalize(torch.stack([bag_of_words(text, argument) for text in texts]).to(table_WC) @ table_WC, dim=1)


def learn(seed: int) -> dict[str, Tensor]:
    """The weights of both towers, by a symmetric InfoNCE of pixels and captions; equal captions of a batch are each other's positives.

    Args:
        seed: of streets, captions and weights.
    """
    random = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        tower, words = image_tower(), nn.Parameter(torch.randn(len(WORDS), FEATURES) * 0.3)
        optimiser = torch.optim.Adam([*tower.parameters(), words], lr=3e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, _STEPS)
        pictures_NHW3, kinds_NHW, names = _pictures(seed)
        for _ in range(_STEPS):
            chosen = random.integers(len(pictures_NHW3), size=_PICTURES)
            at, captions = _captioned(kinds_NHW[chosen], names, random)
            shown = torch.from_numpy(pictures_NHW3[chosen]).permute(0, 3, 1, 2).float() / 255
            gain = torch.from_numpy(random.uniform(0.8, 1.2, (_PICTURES, 3, 1, 1))).float()
            pixels_PC = tower(shown * gain).permute(0, 2, 3, 1)[at]
            bags_PW = torch.stack([bag_of_words(caption) for caption in captions])
            logits = normalize(pixels_PC, dim=1) @ normalize(bags_PW @ words, dim=1).T / _TEMPERATURE
            same = (bags_PW[:, None] == bags_PW[None]).all(2).float()
            wanted = same / same.sum(1, keepdim=True)
            loss = -(wanted * (logits.log_softmax(1) + logits.T.log_softmax(1))).sum(1).mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
    return {**{f"image.{name}": value.detach() for name, value in tower.state_dict().items()}, "words": words.detach()}


def _pictures(seed: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Pictures uint8 [N, H, W, 3] of streets in other colours, what each pixel shows int64 [N, H, W], and the names of that."""
    kinds = {"car": CAR, "pedestrian": PEDESTRIAN, "cyclist": CYCLIST}
    painted = {f"{colour} {name}": replace(kind, hue=hue) for colour, hue in COLOURS.items() for name, kind in kinds.items()}
    spec = WorldSpec(classes=painted, cameras=4, objects=(8, 14), beams=1, azimuths=1)
    names = [*painted, *(name for name in CAPTIONS if name not in kinds)]
    pictures, shows = [], []
    for number in range(_WORLDS):
        world = DrivingWorld((seed, 7919, number), spec)
        of_object = np.array([names.index(kind) for kind in world.kinds] + [names.index("ground"), names.index("sky")])
        for view in world.frame().views:
            assert view.ids is not None
            assert view.depth is not None
            pictures.append(view.image)
            shows.append(of_object[np.where(view.ids >= 0, view.ids, np.where(view.depth > 0, -2, -1))])
    return np.array(pictures), np.array(shows), names


def _captioned(kinds_BHW: np.ndarray, names: Sequence[str], random: np.random.Generator) -> tuple[tuple[Tensor, ...], list[str]]:
    """Cells of the maps (picture, row, column), of every kind in a picture alike, and a caption for each."""
    places, captions = [], []
    for picture, kinds in enumerate(kinds_BHW[:, ::_STRIDE, ::_STRIDE]):
        for kind in random.choice(np.unique(kinds), _PIXELS // 2):
            rows, columns = np.nonzero(kinds == kind)
            for place in random.integers(len(rows), size=2):
                places.append((picture, rows[place], columns[place]))
                captions.append(_caption(names[kind], random))
    return tuple(torch.from_numpy(np.array(column)) for column in zip(*places, strict=True)), captions


def _caption(name: str, random: np.random.Generator) -> str:
    """Something that may be said of a kind: another noun, without its colour, "a red thing"."""
    colour, _, noun = name.rpartition(" ") if name not in CAPTIONS else ("", "", name)
    said = str(random.choice(THINGS if colour and random.random() < 0.2 else CAPTIONS[noun]))
    return f"{colour} {said}" if colour and random.random() < 0.5 else said


class StandIn:
    """The stand-in as what labels ask of a vision-language model; see `vision.VisionLanguage`.

    Args:
        weights: of `learn`.
        words: that objects may be called.
    """

    source = SOURCE

    def __init__(self, weights: Mapping[str, Tensor], words: Sequence[str]) -> None:
        self.words, self.table = tuple(words), weights["words"]
        self.tower = image_tower()
        self.tower.load_state_dict({name.removeprefix("image."): value for name, value in weights.items() if name != "words"})
        self.texts = embedded([*words, *BACKGROUND], self.table, "data")
        self.background = tuple(range(len(words), len(self.texts)))
        self.things = embedded(THINGS, self.table)

    @torch.no_grad()
    def of_points(self, frame: Frame) -> Callable[[np.ndarray], np.ndarray]:
        """What gives points [N, 3] of a frame their features, float32 [N, C]; zero rows where no camera sees."""
        if not frame.views:
            return lambda points: np.zeros((len(points), FEATURES), np.float32)
        pictures = torch.from_numpy(np.array([view.image for view in frame.views])).permute(0, 3, 1, 2).float() / 255
        maps = self.tower(pictures)
        lidar2cam = torch.from_numpy(np.array([np.linalg.inv(view.cam2ego) for view in frame.views])).float()
        intrinsics = torch.from_numpy(np.array([view.intrinsics for view in frame.views])).float()
        size = pictures.shape[3], pictures.shape[2]
        return lambda points: lift(torch.from_numpy(points).float(), lidar2cam, intrinsics, maps, size, _STRIDE)[0].numpy()
