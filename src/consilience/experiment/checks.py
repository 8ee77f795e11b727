"""What only shows when all parts of an experiment are known: measures in the wrong place, and twins that are none."""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from consilience.data.examples import Examples
from consilience.data.images import Known
from consilience.errors import ConsilienceError, DataError, ModelError, SpecError
from consilience.experiment.desk import Place, check_asked, load_examples, load_weights, untrained
from consilience.experiment.experiment import Experiment
from consilience.experiment.families import Ensembles, Folds, Retrain
from consilience.experiment.specs import Data, Prepared, Train
from consilience.measures.parts import refused
from consilience.measures.resampling import CHANCES, EVERYTHING
from consilience.models.edits import blocks_of
from consilience.models.ensemble import mean_of_models
from consilience.models.recording import record
from consilience.models.split import Normalised
from consilience.models.weights import start_from
from consilience.rng import Rng, keyed

ON_PARTS = ("on_part", "on_mask")
ASKS_NOTHING = "cross_entropy"  # the objective that every model of classes can be trained with


def check(experiment: Experiment, model: Normalised, place: Place) -> None:
    """Refuse what could not be run, or would compare a model with itself.

    Args:
        experiment: With a base to be trained.
        model: The untrained model of the base.
        place: Where its data lie.

    Raises:
        SpecError: A measure, a method or a family that cannot be what the file says.
        DataError: Fewer examples than folds.
        ModelError: An objective that the model cannot be trained with.
    """
    _check_measures(experiment)
    shape = examples_of(experiment.examples, place).shape
    for index, how in enumerate(experiment.compare):
        _check_prepared(how, shape, f"compare[{index}]")
    names = [family.name for family in experiment.families]
    if len(set(names)) < len(names):
        raise SpecError(f"family: expected different names, found {names}; give each family a name of its own")
    base = experiment.base
    if isinstance(base, Train) and base.objective.use != ASKS_NOTHING and not _fitted(model):
        _step(base, _stand_in(model, examples_of(base.data, place)), place)
    for family in experiment.families:
        experiment.members_of(family)
        first = family.members(base)[0].subject.source
        if isinstance(base, Train) and isinstance(family, Ensembles) and not family.search:
            _check_factor(EVERYTHING, base, model, place, f"family '{family.name}'")
        elif isinstance(base, Train) and isinstance(first, Train) and isinstance(family, Retrain):
            _check_varied(family, first, base, model, place)
        elif isinstance(base, Train) and isinstance(first, Train) and isinstance(family, Folds):
            _check_folds(family, first.data, base.data, place)


def examples_of(data: Data, place: Place) -> Examples:
    """The examples that a file names."""
    if data.choice is None:
        raise SpecError("data: expected a data set, found examples in memory; name one")
    return load_examples(data.choice, place)


def layers_to_record(named: Sequence[str], model: Normalised, shape: Sequence[int]) -> tuple[str, ...]:
    """The layers whose answers can be compared: those that are named, or of all that hold weights those called once.

    Raises:
        SpecError: One that is named cannot be recorded, or none is left.
    """
    if _fitted(model):
        raise SpecError(
            f"represent: expected a model with layers, found {type(model.model).__name__}, which is fitted at once and "
            "has none; leave 'measures' and 'layers' out"
        )
    image, model = torch.zeros(1, *shape), model.eval()
    if named:
        if reason := _refused(model, image, named):
            raise SpecError(f"represent.layers: {reason}")
        return tuple(named)
    known = dict(model.model.named_modules(remove_duplicate=False))
    blocks = [layer if isinstance(layer, str) else layer[0] for layer in blocks_of(model)]
    layers = [layer for layer in blocks if layer in known]
    if _refused(model, image, layers):
        layers = [layer for layer in layers if not _refused(model, image, [layer])]
    if not layers:
        raise SpecError(
            "represent.layers: expected layers that hold weights and are called once, found none in "
            f"{type(model.model).__name__}; name those to be compared"
        )
    return tuple(layers)


def _refused(model: nn.Module, image: torch.Tensor, layers: Sequence[str]) -> str | None:
    """Why some layer cannot be recorded; None where all can."""
    try:
        record(model, image, layers)
    except ModelError as error:
        return str(error).removeprefix("record: ")
    return None


def _check_measures(experiment: Experiment) -> None:
    """Refuse a measure where another kind stands, and a method that no run can give what it asks for."""
    compared = tuple(how.measure for how in experiment.compare)
    for where, measures, paired in (("compare", compared, True), ("judge", experiment.judge, False)):
        for index, choice in enumerate(measures):
            if ("other" in choice.component.roles) != paired:
                right = "judge" if paired else "compare"
                raise SpecError(
                    f"{where}[{index}].{choice.use}: expected a measure of {'two models' if paired else 'one model'}, "
                    f"found one of {'one' if paired else 'two'}; move it to '{right}'"
                )
    for where, chosen in (("explain", experiment.methods), ("controls", experiment.controls)):
        for index, method in enumerate(chosen):
            check_asked(method, f"{where}[{index}].{method.use}")
    for index, choice in enumerate((*experiment.represent.measures, *experiment.represent.weights)):
        wanted = "activations" if index < len(experiment.represent.measures) else "weights"
        if wanted not in choice.component.roles:
            raise SpecError(
                f"represent: expected a measure of {wanted}, found {choice.label}; move it or choose another"
            )


def _check_prepared(how: Prepared, shape: Sequence[int], where: str) -> None:
    """Refuse a grid finer than the images, and a part of each map that the measure cannot be taken on."""
    if how.pool is not None and how.pool > min(shape[-2:]):
        raise SpecError(
            f"{where}.pool: expected a grid no finer than the images, {shape[-2]} x {shape[-1]}, found {how.pool} x "
            f"{how.pool}; take at most {min(shape[-2:])}"
        )
    for one in how.measure.nest:
        if one.use in ON_PARTS and (reason := refused(one.options["of"])):
            raise SpecError(f"{where}.{one.use}.of: {reason}")
        if one.use.endswith(ON_PARTS) and how.pool is not None:
            raise SpecError(
                f"{where}.{one.use}: expected maps that are as large as the images, found some on a grid of "
                f"{how.pool} x {how.pool}; leave 'pool' out"
            )


def _check_folds(family: Folds, part: Data, whole: Data, place: Place) -> None:
    """Refuse more folds than there are examples, or groups of them where that is known without reading images."""
    examples = examples_of(whole, place)
    where = f"family '{family.name}'.count"
    if family.count > len(examples):
        raise DataError(
            f"{where}: expected at most as many folds as training examples, {len(examples)}, found {family.count}; "
            "choose fewer"
        )
    if isinstance(examples, Known):
        try:
            examples_of(part, place)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None


def _check_varied(family: Retrain, first: Train, base: Train, model: Normalised, place: Place) -> None:
    """Refuse a factor of which other values make no other model."""
    where = f"family '{family.name}'"
    if first.model != base.model:
        with torch.random.fork_rng(devices=[]):
            model = untrained(first.model, examples_of(base.data, place))
    for factor in family.values:
        _check_factor(factor, first, model, place, where)
    examples = len(examples_of(base.data, place))
    if "subset" in family.values and round(family.share * examples) == examples:
        raise SpecError(
            f"{where}: expected a 'share' that leaves examples out, found {family.share}, of which each 'subset' is "
            f"all {examples}, so that these twins would be one model; lower it, or vary another factor"
        )


def _check_factor(factor: str, train: Train, model: Normalised, place: Place, where: str) -> None:
    reasons = []
    for chance in CHANCES if factor == EVERYTHING else (factor,):
        if not (reason := _idle(chance, train, model, place)):
            return
        reasons.append(reason)
    raise SpecError(
        f"{where}: expected what makes another model, found '{factor}', which changes nothing here, since "
        f"{' and '.join(dict.fromkeys(reasons))}, so that these twins would be one model; vary another factor"
    )


def _idle(factor: str, train: Train, model: Normalised, place: Place) -> str | None:
    """Why another value of a factor leaves the training as it is, if it does."""
    if _fitted(model):
        return "the model is fitted at once" if factor in ("init", "noise", "augment", "shuffle") else None
    if factor == "augment" and train.augmentation is None:
        return "there is no augmentation"
    if factor == "order" and not train.shuffle:
        return "'shuffle' is false"
    if factor == "init" and train.start is not None:
        tensors, _ = load_weights(train.start.file, place)
        return None if start_from(model, tensors, train.start.file).fresh else f"{train.start.file} holds every tensor"
    if factor == "noise" and not _draws(train, model, place):
        return "neither the model nor the objective draws anything in training"
    return None


def _fitted(model: Normalised) -> bool:
    return bool(getattr(model.model, "fitted", False))


def _draws(train: Train, model: Normalised, place: Place) -> bool:
    """Whether a training step draws from ``noise``: where neither dropout nor the objective say so, it is tried."""
    if train.objective.draws or any(isinstance(one, _DropoutNd) and one.p > 0 for one in model.modules()):
        return True
    return _step(train, model, place)


def _step(train: Train, model: nn.Module, place: Place) -> bool:
    """Whether the loss of two examples draws from torch's generator; True where it cannot be tried.

    Raises:
        SpecError, DataError, ModelError: The objective refuses the model or the examples.
    """
    examples = examples_of(train.data, place)
    batch = examples.batch(range(min(2, len(examples))))
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        before = torch.get_rng_state()
        try:
            keyed(train.objective.build(), Rng(0, batch.ids.tolist()))(model.train(), batch)
        except ConsilienceError as error:
            raise type(error)(f"train.objective: {error}") from None
        except Exception:  # so small a batch may be beyond it; what is truly wrong the training will say
            return True
        return not torch.equal(before, torch.get_rng_state())


def _stand_in(model: nn.Module, examples: Examples) -> nn.Module:
    """The model; of an ensemble another one with as many members, which are small: an objective may count them."""
    members = getattr(model, "members", None)
    if not isinstance(members, nn.ModuleList):
        return model
    pixels, classes = math.prod(examples.shape), len(examples.classes)
    with torch.random.fork_rng(devices=[]):
        return mean_of_models([nn.Sequential(nn.Flatten(), nn.Linear(pixels, classes)) for _ in members])
