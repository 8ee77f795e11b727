"""The audit: the questions of an experiment, asked of models that a user already has in memory."""

import copy
import hashlib
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from consilience import component
from consilience.component import Choice
from consilience.data.examples import Arrays, Examples, checked
from consilience.errors import ModelError, SpecError
from consilience.experiment.desk import Place
from consilience.experiment.experiment import Experiment
from consilience.experiment.families import Randomised, Redraw, SideBySide
from consilience.experiment.run import run
from consilience.experiment.specs import Data, Explain, Given, Prepared, plan
from consilience.experiment.store import Store
from consilience.models.edits import blocks_of
from consilience.reporting.html import report
from consilience.training.checkpoint import digest

PROBES = 16  # examples whose answers are part of a model's identity


def audit(
    models: Mapping[str, nn.Module],
    examples: Examples | tuple[Float[Tensor, "n c h w"], Int[Tensor, " n"]],
    *,
    methods: Sequence[Any],
    controls: Sequence[Any] = ("random_map", "input_map", "edge_map"),
    compare: Sequence[Any] = ("cosine", "spearman", "ssim", "separability"),
    judge: Sequence[Any] = ("accuracy",),
    background: Examples | tuple[Tensor, Tensor] | None = None,
    out: Path | str = "audit.html",
    store: Path | str | None = None,
    device: str = "cpu",
) -> Path:
    """Explain the same examples with each model, and write how alike the explanations are as one page.

    Models are compared side by side; the first is also explained twice, and explained with its layers
    drawn anew from the top. They give logits ``[n, k]`` for pixels in [0, 1]; wrap those that expect
    normalised images with ``consilience.models.split.normalised``. Nothing is changed in them.

    Args:
        models: Name to model, two or more.
        examples: What is explained: examples, or pixels ``[n, c, h, w]`` in [0, 1] with their classes ``[n]``,
            wherever they lie.
        methods: Names of methods, tables ``{"use": ..., option: ...}``, or the functions themselves.
        controls: Methods that must look bad.
        compare: Measures of two models' maps.
        judge: Measures of one model.
        background: Examples for the methods that ask for them; the explained examples where none are given.
        out: The page's file.
        store: Where artifacts are kept; a temporary folder where none is given.
        device: Where torch computes; copies of the models go there.

    Returns:
        The page's path.

    Raises:
        SpecError: Fewer than two models, an unknown method or measure, or no such device here.
        DataError: Pixels outside [0, 1], or labels that do not fit.
        ModelError: A model that does not give logits, or a method that failed on it.
    """
    if len(models) < 2:
        raise SpecError(f"audit: expected two or more models to compare, found {len(models)}; give others beside it")
    known = _examples(examples, models)
    behind = known if background is None else _examples(background, models)
    given = {name: _given(name, model, known) for name, model in models.items()}
    first = next(iter(models.values()))
    experiment = Experiment(
        name=f"Audit of {', '.join(models)}",
        base=next(iter(given.values())),
        examples=Data(fingerprint=known.fingerprint),
        methods=_chosen(component.attribution, methods, "methods"),
        controls=_chosen(component.attribution, controls, "controls"),
        compare=tuple(Prepared(measure=choice) for choice in _chosen(component.measure, compare, "compare")),
        judge=_chosen(component.measure, judge, "judge"),
        summarise=_chosen(component.summary, ("calibrated_similarity", "consistency"), "summarise"),
        channels="sum",
        families=(SideBySide(models=tuple(given.items())), Redraw(), *_cascade(first)),
        background=Data(fingerprint=behind.fingerprint),
    )
    place = Place(
        models={spec.digest: models[name] for name, spec in given.items()},
        handed={one.fingerprint: one for one in (known, behind)},
        device=device,
    )
    with tempfile.TemporaryDirectory() as folder:
        return _made(experiment, folder if store is None else store, place, out)


def _cascade(model: nn.Module) -> tuple[Randomised, ...]:
    """The cascade over a model's layers; none where nothing holds weights."""
    layers = tuple(blocks_of(model))
    return (Randomised(layers=layers),) if layers else ()


def _made(experiment: Experiment, root: Path | str, place: Place, out: Path | str) -> Path:
    outcome, store = run(experiment, root, data=place), Store(root)
    if outcome.failures and not any(isinstance(spec, Explain) and spec in store for spec in plan(experiment.specs())):
        raise ModelError(f"audit: expected explanations, found none: {outcome.failures[0].reason}")
    for failure in outcome.failures:
        warnings.warn(f"audit, {failure.group[0].stage} was not made: {failure.reason}", stacklevel=3)
    return report(experiment, store, out, data=place)


def _chosen(kind: component.Kind, given: Sequence[Any], where: str) -> tuple[Choice, ...]:
    return tuple(kind.choose(one, f"{where}[{index}]") for index, one in enumerate(given))


def _examples(given: Examples | tuple[Tensor, Tensor], models: Mapping[str, nn.Module]) -> Examples:
    """Examples as they are, or made of pixels and classes, on the processor."""
    if not isinstance(given, tuple):
        return given
    x, label = (part.cpu() for part in given)
    if x.ndim != 4 or not x.is_floating_point() or label.ndim != 1:
        raise SpecError(
            f"audit: expected float pixels [n, c, h, w] and classes [n], found {x.dtype} {list(x.shape)} and "
            f"{list(label.shape)}; add the missing axes or convert them"
        )
    model = next(iter(models.values()))
    with torch.no_grad():
        classes = _logits("the first model", model, x[:1]).shape[1]
    pixels = x.detach().float().transpose(0, 1).flatten(1)
    mean, sd = (tuple(one.tolist()) for one in (pixels.mean(1), pixels.std(1)))
    examples = Arrays(x.detach().float(), label, tuple(map(str, range(classes))), mean, sd)
    checked(examples.batch(range(len(x))))
    return examples


def _given(name: str, model: nn.Module, examples: Examples) -> Given:
    """A model's identity: its weights, its text, and what it answers on the first examples."""
    x = examples.batch(range(min(PROBES, len(examples)))).x
    with torch.no_grad():
        answers = _logits(name, model, x)
    weights = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    return Given(
        weights=digest(weights),
        module=hashlib.blake2b(repr(model).encode(), digest_size=16).hexdigest(),
        answers=digest({"logits": answers.cpu().contiguous()}),
    )


def _logits(name: str, model: nn.Module, x: Tensor) -> Tensor:
    """What a copy of a model answers on the processor, in evaluation mode.

    Raises:
        ModelError: It did not give one row of logits an image.
    """
    logits = copy.deepcopy(model).cpu().eval()(x)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
        found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(
            f"audit, {name}: expected logits [{len(x)}, classes], found {found}; wrap the model so that it returns them"
        )
    return logits
