"""Laws of every method in the registry. A new method is tested by being there."""

import pytest
from tests.laws import laws

from consilience.component import attribution


@pytest.mark.parametrize("law", laws.ATTRIBUTION, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", attribution.names())
def test_every_attribution_keeps_the_laws(name, law):
    component = attribution.get(name)
    if law.__name__ in component.breaks:
        laws.broken(law, component.function)
    else:
        law(component.function)
