"""The trajectory of a head's gradients, distilled over domains and over classes.

    L_dom(h) = mean( (P_mu mu_src - P_mu mu_mix)^2 ) + mean( (P_sig sig_src - P_sig sig_mix)^2 ),   heads nuclei and coarse types
    L_cls    = sum over new classes c of (m_R - m_c)^2 + (s_R - s_c)^2,
               m_R = stopgrad mean_D( P mean_{R} mu_c ),  m_c = mean_D( P mu_c ), likewise s of sigma;   the fine head on the mix

P are the subspaces of what teaches: the source's moments, the reliable classes' mean rows. All moments are moving averages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from stillroom.engine.distributed import whole_batch
from stillroom.methods.otd.bank import GradientBank
from stillroom.methods.otd.gradients import MovingAverage, flattened, head_gradients, moments

MakeBank = Callable[[int], GradientBank | None]  # (d) -> a bank of vectors of d entries; None: nothing is projected


class CrossDomain(nn.Module):
    """L_dom of one head that both domains share.

    Args:
        classes: C of the head.
        width: D, what it reads.
        momentum: of the averages.
        bank: makes the banks of the source's moments.
        detach: no gradient through the source's moments; the released code has it, so it stays by default.
    """

    def __init__(self, classes: int, width: int, *, momentum: float, bank: MakeBank, detach: bool = False) -> None:
        super().__init__()
        size = classes * (1 + width)
        self.detach = detach
        self.averages = nn.ModuleDict(
            {f"{domain}_{moment}": MovingAverage((size,), momentum) for domain in ("source", "mix") for moment in ("mean", "var")}
        )
        self.banks = nn.ModuleDict({name: made for name in ("mean", "var") if (made := bank(size)) is not None})

    def forward(self, features: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """L_dom, of the step's batch of all processes.

        Args:
            features: [2B, D, H, W], the source's images first, then the mixed ones.
            logits: [2B, C, H, W], the head's.
            labels: int64 [2B, H, W].
        """
        rows_Bd = flattened(*head_gradients(features, logits, labels))
        found = {domain: moments(whole_batch(half)) for domain, half in zip(("source", "mix"), rows_Bd.chunk(2), strict=True)}
        terms = []
        for number, moment in enumerate(("mean", "var")):
            source, mixed = (self.averages[f"{domain}_{moment}"](found[domain][number]) for domain in ("source", "mix"))
            source = source.detach() if self.detach else source
            terms.append(((self.projected(moment, source) - self.projected(moment, mixed, update=False)) ** 2).mean())
        return terms[0] + terms[1]

    def cosine(self) -> Tensor:
        """Of the averages of the source's and the mix's mean gradients."""
        source, mixed = (self.averages.get_buffer(f"{domain}_mean.value") for domain in ("source", "mix"))
        return cosine_similarity(source, mixed, dim=0)

    def projected(self, moment: str, vector: Tensor, *, update: bool = True) -> Tensor:
        """P x, `x` noted before where it teaches."""
        return _projected(self.banks, moment, vector, vector if update else None)


class CrossClass(nn.Module):
    """L_cls of the fine head's weights.

    Args:
        classes: C of the head.
        width: D, what it reads.
        reliable, new: R and N, numbers of classes.
        momentum: of the averages.
        bank: makes the banks of the reliable classes' rows.
        vectors: compare the projected rows entry by entry, not their means alone.
    """

    def __init__(
        self,
        classes: int,
        width: int,
        reliable: Sequence[int],
        new: Sequence[int],
        *,
        momentum: float,
        bank: MakeBank,
        vectors: bool = False,
    ) -> None:
        super().__init__()
        self.reliable, self.new, self.vectors = list(reliable), list(new), vectors
        self.averages = nn.ModuleDict({moment: MovingAverage((classes, width), momentum) for moment in ("mean", "var")})
        self.banks = nn.ModuleDict({name: made for name in ("mean", "var") if (made := bank(width)) is not None})

    def forward(self, features: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """L_cls, of the step's batch of all processes.

        Args:
            features: [B, D, H, W], of the mixed images.
            logits: [B, C, H, W], the fine head's.
            labels: int64 [B, H, W].
        """
        weight_BCD, _ = head_gradients(features, logits, labels)
        terms = []
        for moment, found_CD in zip(("mean", "var"), moments(whole_batch(weight_BCD)), strict=True):
            rows_CD = self.averages[moment](found_CD)
            taught_D = rows_CD[self.reliable].mean(0)
            teacher_D = _projected(self.banks, moment, taught_D, taught_D).detach()
            students_ND = _projected(self.banks, moment, rows_CD[self.new].T, None).T
            if self.vectors:
                terms.append(((teacher_D - students_ND) ** 2).mean(1).sum())
            else:
                terms.append(((teacher_D.mean() - students_ND.mean(1)) ** 2).sum())
        return terms[0] + terms[1]


def _projected(banks: nn.ModuleDict, moment: str, vectors: Tensor, noted: Tensor | None) -> Tensor:
    """P x of the moment's bank, which notes a vector before; the vectors themselves where there is no bank."""
    if moment not in banks:
        return vectors
    bank = banks[moment]
    assert isinstance(bank, GradientBank)
    if noted is not None:
        bank.update(noted)
    projected: Tensor = bank(vectors)
    return projected
