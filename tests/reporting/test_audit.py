"""The audit of models in memory: the same page, nothing left on the models, one clear error each."""

import copy
import json

import pytest
import torch
from tests.elsewhere import elsewhere
from torch import nn

from consilience import audit
from consilience.data.mnist10k import mnist10k
from consilience.data.views import subset
from consilience.errors import DataError, ModelError, SpecError

BATCH = mnist10k(split="test").batch(range(20))


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 3, 5, stride=3), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(192, 10))


def twin_of(models, tmp_path, examples=(BATCH.x, BATCH.label), **options):
    """The JSON twin of an audit's page."""
    chosen = {"methods": ["gradient"], "compare": ["cosine"], "controls": ["input_map"], **options}
    page = audit(models, examples, out=tmp_path / "audit.html", **chosen)
    return json.loads(page.with_suffix(".json").read_bytes())


def overall(page, kind, method="gradient"):
    (row,) = [
        line for line in page["lines"] if (line["kind"], line["method"], line["column"]) == (kind, method, "overall")
    ]
    return row


def test_equal_models_explain_alike_and_forgetting_all_changes_the_maps(tmp_path):
    page = twin_of({"a": network(0), "b": network(0)}, tmp_path)
    assert page["missing"] == 0
    assert overall(page, "models")["estimate"] == pytest.approx(1)
    stages = [line for line in page["lines"] if line["kind"] == "cascade" and line["method"] == "gradient"]
    assert [line["column"] for line in stages] == ["down to 4", "all layers"]
    assert stages[-1]["estimate"] < 0.5
    assert page["answer"]["methods"][0]["grade"] == "alike"


def test_unrelated_models_explain_no_better_than_maps_of_other_images(tmp_path):
    page = twin_of({"a": network(0), "b": network(1)}, tmp_path)
    assert overall(page, "models")["estimate"] < 0.3
    assert overall(page, "models", "input_map")["estimate"] == pytest.approx(1), "the control looks at no model"


def test_methods_that_ask_for_a_background_have_one(tmp_path):
    models = {"a": network(0), "b": network(1)}
    own = twin_of(models, tmp_path, methods=["expected_gradients"])
    other = twin_of(models, tmp_path, methods=["expected_gradients"], background=subset(count=5))
    assert own["chosen"]["Background"] == other["chosen"]["Background"] == "examples in memory"
    assert own["lines"] != other["lines"]


def test_nothing_is_left_on_the_models(tmp_path):
    models = {"a": network(0).train(), "b": network(1)}
    models["b"][3].eval()
    before = copy.deepcopy(models["a"].state_dict())
    audit(models, (BATCH.x, BATCH.label), methods=["gradient"], compare=["cosine"], out=tmp_path / "audit.html")
    assert all(torch.equal(before[name], value) for name, value in models["a"].state_dict().items())
    assert all(module.training for module in models["a"].modules())
    assert [module.training for module in models["b"]] == [True, True, True, False, True]
    assert all(parameter.requires_grad and parameter.grad is None for parameter in models["a"].parameters())


def test_a_store_that_is_named_keeps_what_was_made(tmp_path):
    models = {"a": network(0), "b": network(1)}
    twin_of(models, tmp_path, store=tmp_path / "store")
    made = sorted((tmp_path / "store").glob("explain/*"))
    twin_of(models, tmp_path, store=tmp_path / "store")
    assert sorted((tmp_path / "store").glob("explain/*")) == made


def test_examples_are_taken_as_they_are(tmp_path):
    page = twin_of({"a": network(0), "b": network(1)}, tmp_path, examples=subset(count=12))
    assert overall(page, "models")["examples"] == 12


def test_examples_and_models_may_lie_on_the_device_where_they_are_explained(tmp_path):
    models, background = {"a": network(0), "b": network(1)}, (BATCH.x[:5], BATCH.label[:5])
    options = {"methods": ["expected_gradients"], "store": tmp_path / "here"}
    here = twin_of(models, tmp_path, background=background, **options)
    with elsewhere() as device:
        x, label, *behind = (part.to(device) for part in (BATCH.x, BATCH.label, *background))
        options |= {"store": tmp_path / "there", "background": tuple(behind), "device": device}
        there = twin_of({"a": models["a"].to(device), "b": models["b"]}, tmp_path, examples=(x, label), **options)
    assert (here["made"]["device"], there["made"]["device"]) == ("cpu", device)
    one, other = (overall(page, "models", "expected_gradients")["estimate"] for page in (here, there))
    assert one == pytest.approx(other, abs=1e-5)


def test_an_audit_on_a_device_that_is_not_there_is_one_clear_error(tmp_path):
    with pytest.raises(SpecError, match="--device cuda:99: expected a device that torch"):
        twin_of({"a": network(0), "b": network(1)}, tmp_path, device="cuda:99")


@pytest.mark.parametrize(
    ("models", "examples", "error", "words"),
    [
        ({"a": network(0)}, (BATCH.x, BATCH.label), SpecError, "expected two or more models to compare, found 1"),
        (
            {"a": network(0), "b": nn.Flatten(0)}, (BATCH.x, BATCH.label), ModelError,
            r"audit, b: expected logits \[16, classes\], found \[12544\]",
        ),
        ({"a": network(0), "b": network(1)}, (BATCH.x * 2, BATCH.label), DataError, "expected pixels from 0 to 1"),
        ({"a": network(0), "b": network(1)}, (BATCH.x, BATCH.label + 5), DataError, "expected a label from 0 to 9"),
    ],
)  # fmt: skip
def test_what_cannot_be_audited_is_one_clear_error(models, examples, error, words, tmp_path):
    with pytest.raises(error, match=words):
        twin_of(models, tmp_path, examples)


def test_a_method_that_fails_on_every_model_is_an_error_and_not_an_empty_page(tmp_path):
    class Undefined(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :10] * torch.nan

    with pytest.raises(ModelError, match="expected explanations, found none"):
        twin_of({"a": Undefined(), "b": Undefined()}, tmp_path, controls=[], judge=[])


def test_a_method_that_fails_on_one_model_is_said_and_the_rest_is_shown(tmp_path):
    class Undefined(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :10] * torch.nan

    with pytest.warns(UserWarning, match="explain was not made: explanation: expected maps of finite numbers"):
        page = twin_of({"a": network(0), "b": Undefined()}, tmp_path)
    assert page["missing"] > 0
    assert overall(page, "models", "input_map")["estimate"] == pytest.approx(1)
