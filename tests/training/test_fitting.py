"""Models that are fitted at once: they see every example once, in the order of a seed."""

import pytest
import torch
from tests.training.conftest import planted

from consilience.errors import DataError
from consilience.models.split import normalised
from consilience.models.svm import rbf_svm
from consilience.training.fitting import fit


def machine():
    return normalised(rbf_svm((1, 12, 12), 2), (0.4,), (0.3,))


def loaded(weights):
    model = machine()
    model.load_state_dict(weights)
    return model.eval()


def test_a_fitted_model_answers_as_the_machine_that_saw_normalised_pixels():
    examples = planted()
    batch, model = examples.batch(range(24)), machine()
    model.model.fit(model.normalise(batch.x), batch.label)
    torch.testing.assert_close(loaded(fit(machine, examples, 0))(batch.x), model(batch.x), atol=1e-3, rtol=0)
    assert (model(batch.x).argmax(1) == batch.label).all()


def test_the_same_order_gives_the_same_bits_and_another_one_the_same_function():
    examples = planted()
    one, again, other = (fit(machine, examples, seed) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["support"], other["support"])  # the vectors stand in another order
    x = examples.batch(range(24)).x
    torch.testing.assert_close(loaded(one)(x), loaded(other)(x), atol=1e-3, rtol=0)


def test_what_holds_no_pixels_is_refused():
    examples = planted()
    examples.images = examples.images.float()  # bytes that nobody divided
    with pytest.raises(DataError, match="expected pixels from 0 to 1"):
        fit(machine, examples, 0)
