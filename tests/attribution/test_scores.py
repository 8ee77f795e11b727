"""Scores against torch's own losses, finite differences and logits beyond all measure."""

import functools

import pytest
import torch
from tests import models
from torch.nn import functional as F

from consilience.attribution.gradient import gradient
from consilience.attribution.scores import log_probability, logit, probability, value
from consilience.component import attribution, score
from consilience.errors import ModelError, SpecError

LOGITS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
T = torch.tensor([0, 3, 1, 2, 2, 0])
ONE, BINARY = LOGITS[:, :1], torch.tensor([0, 1, 1, 0, 1, 0])

P_OF_ONE = functools.partial(probability, head="binary")
LOG_P_OF_ONE = functools.partial(log_probability, head="binary")
SCORES = {
    "logit": (logit, logit),
    "probability": (probability, P_OF_ONE),
    "sigmoid": (functools.partial(probability, head="sigmoid"), P_OF_ONE),
    "log probability": (log_probability, LOG_P_OF_ONE),
    "log sigmoid": (functools.partial(log_probability, head="sigmoid"), LOG_P_OF_ONE),
    "value": (value, value),
    "value of probability": (functools.partial(value, of=probability), functools.partial(value, of=P_OF_ONE)),
}
MANY_OR_ONE = pytest.mark.parametrize(("many", "one"), SCORES.values(), ids=SCORES)


def test_the_probability_of_one_class_of_several_is_the_softmax():
    expected = torch.stack([row.exp()[t] / row.exp().sum() for row, t in zip(LOGITS, T, strict=True)])
    torch.testing.assert_close(probability(LOGITS, T), expected)
    torch.testing.assert_close(log_probability(LOGITS, T), -F.cross_entropy(LOGITS, T, reduction="none"))


def test_the_probability_of_each_class_by_itself_is_the_sigmoid():
    chosen = LOGITS[range(6), T]
    torch.testing.assert_close(probability(LOGITS, T, head="sigmoid"), 1 / (1 + (-chosen).exp()))
    loss = F.binary_cross_entropy_with_logits(chosen, torch.ones(6).double(), reduction="none")
    torch.testing.assert_close(log_probability(LOGITS, T, head="sigmoid"), -loss)


def test_a_single_logit_speaks_for_class_one_and_against_class_zero():
    sign = torch.tensor([-1, 1, 1, -1, 1, -1])
    assert torch.equal(logit(ONE, BINARY), ONE[:, 0] * sign)
    found = probability(ONE, BINARY, head="binary")
    torch.testing.assert_close(found, torch.where(BINARY == 1, ONE[:, 0].sigmoid(), 1 - ONE[:, 0].sigmoid()))
    loss = F.binary_cross_entropy_with_logits(ONE[:, 0], BINARY.double(), reduction="none")
    torch.testing.assert_close(log_probability(ONE, BINARY, head="binary"), -loss)


def test_a_single_logit_is_the_softmax_of_itself_and_zero():
    two = torch.cat([torch.zeros_like(ONE), ONE], 1)
    torch.testing.assert_close(probability(ONE, BINARY, head="binary"), probability(two, BINARY))
    torch.testing.assert_close(log_probability(ONE, BINARY, head="binary"), log_probability(two, BINARY))
    model, (x, _) = models.single_logit().double(), models.batch()
    for target in (0, 1):
        given = torch.full((3,), target)
        maps = gradient(model, x, given, score=P_OF_ONE)
        pair = torch.nn.Sequential(model, torch.nn.ConstantPad1d((1, 0), 0.0)).eval()
        torch.testing.assert_close(maps, gradient(pair, x, given, score=probability))
        assert maps.abs().max() > 1e-4


def test_the_value_of_a_score_seeds_the_backward_pass_with_it():
    (x, target), model = models.batch(), models.plain().double()
    slope, found = gradient(model, x, target), logit(model(x), target)
    torch.testing.assert_close(gradient(model, x, target, score=value), slope * found[:, None, None, None])
    slope = gradient(model, x, target, score=probability)
    found = probability(model(x), target)[:, None, None, None]
    maps = gradient(model, x, target, score=functools.partial(value, of=probability))
    torch.testing.assert_close(maps, slope * found)


@MANY_OR_ONE
def test_slopes_are_differences(many, one):
    for logits, target, of in ((LOGITS, T, many), (ONE, BINARY, one)):
        logits = logits.clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda z, t=target, of=of: of(z, t), logits)
        maps = gradient(models.plain(1, logits.shape[1]).double(), *models.batch(2, 1, 2), score=of)
        assert maps.abs().sum() > 0


@MANY_OR_ONE
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_beyond_all_measure_give_numbers(many, one, dtype):
    huge = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 3.0]], dtype=dtype)
    for logits, of in ((huge, many), (huge[:, :1], one)):
        for target in (torch.tensor([0, 0]), torch.tensor([1, 1])):
            logits = logits.clone().requires_grad_()
            answer = of(logits, target)
            assert answer.dtype == dtype
            assert answer.isfinite().all()
            (slope,) = torch.autograd.grad(answer.sum(), logits)
            assert slope.isfinite().all()


def test_logarithms_of_small_probabilities_are_exact():
    z = torch.tensor([[500.0], [-500.0]])
    assert log_probability(z, torch.tensor([0, 1]), head="binary").tolist() == [-500.0, -500.0]
    tiny = probability(torch.tensor([[40.0]]), torch.tensor([0]), head="binary")
    torch.testing.assert_close(tiny, torch.tensor([-40.0]).exp())  # 1 - sigmoid(40) would be 0


@MANY_OR_ONE
def test_undefined_stays_with_its_own_example(many, one):
    for logits, target, of in ((LOGITS, T, many), (ONE, BINARY, one)):
        spoilt = logits.clone()
        spoilt[2] = torch.nan
        found = of(spoilt, target)
        assert found.isnan().tolist() == [False, False, True, False, False, False]
        assert of(logits[:0], target[:0]).shape == (0,)


@pytest.mark.parametrize("method", [probability, log_probability])
def test_a_head_that_the_logits_cannot_have_is_refused(method):
    with pytest.raises(
        SpecError, match=f"^{method.__name__}: expected several logits .*'softmax', found 1; .*'binary'"
    ):
        method(ONE, BINARY)
    with pytest.raises(SpecError, match="expected several logits an image for head 'sigmoid', found 1"):
        method(ONE, BINARY, head="sigmoid")
    with pytest.raises(SpecError, match=r"expected one logit .*'binary', found 4; choose head = 'softmax' or"):
        method(LOGITS, T, head="binary")


def test_a_third_class_of_a_single_logit_is_refused():
    with pytest.raises(ModelError, match="expected classes from 0 to 1, found 0 to 2"):
        gradient(models.single_logit().double(), models.batch()[0], torch.arange(3))
    with pytest.raises(RuntimeError, match="out of bounds"):
        logit(ONE, torch.full((6,), 2))


def test_files_may_choose_heads_and_nest_scores():
    nested = {"use": "gradient", "score": {"use": "value", "of": {"use": "probability", "head": "sigmoid"}}}
    assert attribution.choose(nested).label == "gradient(score=value(of=probability(head=sigmoid)))"
    with pytest.raises(SpecError, match=r"^probability: Invalid enum value 'soft'"):
        score.choose({"use": "probability", "head": "soft"})
