"""Laws of every measure in the registry, and of measures written for families."""

import pytest
import torch
from tests.laws import laws

from consilience.component import measure
from consilience.pairs import over_family

NAMES = measure.names()
PAIRED = [
    name for name in NAMES if hasattr(measure.get(name).function, "over_pairs") and "maps" in measure.get(name).roles
]
OF_EXAMPLES = [name for name in NAMES if "n" in " ".join(measure.get(name).columns.values()).split()]


@pytest.mark.parametrize("law", laws.MEASURE, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", OF_EXAMPLES)
def test_every_measure_keeps_the_laws(name, law):
    component = measure.get(name)
    if law.__name__ in component.breaks:
        laws.broken(law, component.function, component.roles)
    else:
        law(component.function, component.roles)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in OF_EXAMPLES])
def test_a_measure_of_sets_changes_nothing(name):
    component = measure.get(name)
    laws.measuring_changes_nothing(component.function, component.roles)


@pytest.mark.parametrize("name", NAMES)
def test_a_measure_is_the_same_elsewhere(name):
    component = measure.get(name)
    laws.measured_alike_elsewhere(component.function, component.roles)


@pytest.mark.parametrize("name", PAIRED)
def test_a_family_is_measured_as_its_pairs_are(name):
    component, values = measure.get(name), laws.roles()
    shared = {role: values[role] for role in component.roles if role not in ("maps", "other")}
    family = [values["maps"], values["other"], values["maps"] * 2 + values["other"]]
    pairs = [(0, 1), (2, 0), (1, 1)]
    results = list(over_family(component.function, family, pairs, **shared))
    assert len(results) == len(pairs)
    for (a, b), result in zip(pairs, results, strict=True):
        torch.testing.assert_close(result, component.function(family[a], family[b], **shared), equal_nan=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_measure_says_what_is_better_and_what_a_number_belongs_to(name):
    component = measure.get(name)
    assert component.better in ("higher", "lower")
    assert all(belongs in ("n", "n steps", "classes", "") for belongs in component.columns.values())
