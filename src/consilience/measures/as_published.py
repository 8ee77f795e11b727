"""Published arithmetic with its mistakes, for tables that are to be compared with published ones."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from consilience.component import measure, summary
from consilience.errors import SpecError
from consilience.measures.logistic import margins, problem_of, standardised
from consilience.measures.resampling import columns, only
from consilience.rng import Rng
from consilience.tensors import Row, Table

TESTED = 3, 10  # 3 tenths of the rows


@measure(
    version=1,
    paper="watson2022agree",
    better="lower",
    legacy=True,
)
def separability_row_split(
    maps: Float[Tensor, "..."], other: Float[Tensor, "..."], label: Int[Tensor, " n"], rng: Rng
) -> Float[Tensor, " classes"]:
    """``2 * |accuracy - 0.5|`` of telling two models' maps apart, for each class. NaN below two images of a class.

    As published: the maps of both models are stacked as rows, and 70 % of the *rows* are learnt from. So the
    twin of a tested row, the same image under the other label, mostly is among them. Where the two models
    explain alike, the classifier has learnt the wrong answer by heart; it is worse than chance, and the
    modulus turns that into a difference: identical maps do not get 0. Training and test rows are
    standardised each by their own mean and deviation. Use ``separability``.

    Images are left out where a map is not finite.
    """
    if maps.shape != other.shape or len(maps) != len(label):
        raise SpecError(
            f"separability_row_split: expected two sets of maps of one shape and a label for each, found "
            f"{list(maps.shape)}, {list(other.shape)} and {len(label)} labels; compare maps of the same examples"
        )
    finite = (maps.flatten(1).isfinite() & other.flatten(1).isfinite()).all(1)
    found = torch.full((int(label.max()) + 1 if len(label) else 0,), torch.nan, dtype=torch.float64, device=maps.device)
    for kind in range(len(found)):
        mine = ((label == kind) & finite).nonzero()[:, 0]
        if len(mine) >= 2:
            rows = torch.cat([maps[mine], other[mine]]).flatten(1).double()
            found[kind] = 2 * (_accuracy(rows, *split(rng.rows(mine.tolist()))) - 0.5).abs()
    return found


def split(rng: Rng) -> tuple[Tensor, Tensor]:
    """Training and test rows of twice as many rows as examples: of each model's alike many, or one more of one's."""
    n = len(rng.ids)
    draws = rng.at("rows").integers(2**62, 2)
    order = draws.argsort(0).T + torch.tensor([[0], [n]])
    tested = -(-2 * n * TESTED[0] // TESTED[1])
    more = int(rng.common("one more").integers(2))  # an odd number of test rows: a coin says whose are more
    counts = [(tested + (side == more)) // 2 for side in range(2)]
    train = torch.cat([rows[count:] for rows, count in zip(order, counts, strict=True)])
    return train, torch.cat([rows[:count] for rows, count in zip(order, counts, strict=True)])


def _accuracy(rows: Tensor, train: Tensor, test: Tensor) -> Tensor:
    """Share of the test rows that are given to the right model, by a ridge of strength 1."""
    train, test = train.to(rows.device), test.to(rows.device)
    learnt, asked = (standardised(rows[part], rows[part]) for part in (train, test))
    answer = (torch.cat([train, test]) >= len(rows) // 2).to(rows)
    index = torch.arange(len(train), device=rows.device)[None]
    used = torch.ones_like(index, dtype=torch.bool)
    f = margins(problem_of([torch.cat([learnt, asked])], index, used), answer[None, None, : len(train)], used, 1.0)
    return ((f[0, 0, len(train) :] > 0) == (answer[len(train) :] > 0)).double().mean()


@summary(version=2, paper="watson2022agree", legacy=True, of=("separability_row_split",))
def consistency_row_split(table: Table) -> list[Row]:
    """C as published: 1 minus the mean over pairs of the mean over classes. NaN where no class could be judged.

    It has no interval, and identical maps do not get 1: the split by rows and the modulus see to that. ``n`` counts
    classes. Rows are those of ``consistency``.
    """
    rows = []
    for name, chosen in columns(table):
        value = only(table, chosen).value
        undefined = int(value.isnan().sum())
        estimate = 1 - float(value.nanmean(1).nanmean())
        rows.append(Row(name, len(chosen), value.shape[1], undefined, estimate, float("nan"), float("nan")))
    return rows
