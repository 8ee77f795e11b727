"""Laws of every method in the registry. A new method is tested by being there."""

import functools

import pytest
from tests.laws import laws

from consilience.component import attribution

FEWER = {  # of what is only repeated; a law does not need the defaults of the papers
    "extremal_perturbation": {"iterations": 12, "areas": (0.1, 0.2)},
    "rise": {"masks": 200},
}


@pytest.mark.parametrize("law", laws.ATTRIBUTION, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", attribution.names())
def test_every_attribution_keeps_the_laws(name, law):
    component = attribution.get(name)
    method = functools.partial(component.function, **FEWER.get(name, {}))
    if law.__name__ in component.breaks:
        laws.broken(law, method)
    else:
        law(method)
