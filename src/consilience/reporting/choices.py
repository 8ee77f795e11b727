"""What was chosen: all that a reader has to know of an experiment before the numbers."""

from collections.abc import Iterator

from consilience.experiment.experiment import Experiment
from consilience.experiment.families import AnyFamily, Ensembles, Epochs, Folds, Randomised, Retrain, SideBySide
from consilience.experiment.specs import Prepared, Train
from consilience.reporting.tables import MEETS


def chosen(experiment: Experiment) -> dict[str, str]:
    """The choices behind the numbers, by a name for each; of several families of one sort, with the family's name."""
    said = dict(_of_training(experiment))
    for family in experiment.families:
        for name, words in _of_family(family):
            said[f"{name} ({family.name})" if name in said else name] = words
    said |= {
        "Explained": f"{experiment.examples.label}, the true class of each example",
        "Channels of maps": experiment.channels,
        "Floor": f"the base explained with the draws {', '.join(map(str, experiment.floor.seeds))}",
        "Baseline": "each map against another image's of the same class",
        "Intervals": "bootstrap over examples and models",
    }
    said |= dict(_of_comparing(experiment))
    asked = any(method.asks("background") for method in (*experiment.methods, *experiment.controls))
    if asked and experiment.background is not None:
        said["Background"] = experiment.background.label
    return said


def _of_training(experiment: Experiment) -> Iterator[tuple[str, str]]:
    base = experiment.base
    if not isinstance(base, Train):
        return
    yield "Model", base.model.label
    yield "Trained on", f"{base.data.label}, {base.epochs} epochs, batches of {base.batch_size}"
    if base.start is not None:
        yield "Starts from", f"{base.start.file} (content {base.start.fingerprint[:12]})"
    yield "Objective and optimiser", f"{base.objective.label}, {base.optimizer.label}"
    if base.augmentation is not None:
        yield "Augmentation", base.augmentation.label
    if base.average_from is not None:
        yield "Weights", f"their mean after epoch {base.average_from} and every later one (SWA)"
    if experiment.select is not None and base.keep:
        measure, data = experiment.select
        kept = ", ".join(map(str, (*base.keep, base.epochs)))
        yield "Epoch", f"of each training the one of {kept} whose {measure.label} on {data.label} is best"


def _of_family(family: AnyFamily) -> Iterator[tuple[str, str]]:
    if isinstance(family, Retrain):
        varied = "; ".join(f"{factor} {', '.join(map(str, values))}" for factor, values in family.values.items())
        share = f"; a subset is {100 * family.share:g} % of the training examples" if "subset" in family.values else ""
        yield "Twins", f"one factor varied at a time: {varied}{share}"
    elif isinstance(family, Folds):
        yield "Folds", f"{family.count} trainings, each on all examples but one fold of {family.count}"
    elif isinstance(family, Epochs):
        yield "Epochs", "the finished base against itself after each kept epoch"
    elif isinstance(family, Ensembles):
        size = f"{family.count} ensembles, each the mean probability of {family.size} models"
        if family.candidates is not None:
            size += f", chosen one by one from {family.candidates * family.seeds} candidates"
        drawn = "; ".join(f"{option} of {', '.join(map(str, values))}" for option, values in family.search.items())
        yield "Ensembles", f"{size}; each model with {drawn} and seeds of its own" if drawn else size
    elif isinstance(family, SideBySide):
        yield "Models", ", ".join(f"{name} (weights {given.weights[:12]})" for name, given in family.models)
    elif isinstance(family, Randomised):
        layers = [layer if isinstance(layer, str) else layer[0] for layer in family.layers]
        yield (
            "Cascade",
            f"{family.order.replace('_', ' ')}: {', '.join(layers)}; initialiser {family.initializer}, "
            f"batch norm {family.batch_norm}, seeds {', '.join(map(str, family.seeds))}",
        )


def _of_comparing(experiment: Experiment) -> Iterator[tuple[str, str]]:
    """By what maps and models are compared, and of which images; what is as ever is not said."""
    if any(_prepared(how, experiment) != how.measure.label for how in experiment.compare):
        yield "Maps compared by", "; ".join(_prepared(how, experiment) for how in experiment.compare)
    if experiment.conditions != ("all",):
        yield "Summaries of", "; ".join(MEETS[condition] for condition in experiment.conditions)
    how = experiment.represent
    if how.measures:
        places = "all places" if how.places is None else f"{how.places} places of each plane"
        measures = ", ".join(measure.label for measure in how.measures)
        yield "Layers compared by", f"{measures}, of {', '.join(how.layers)}, at {places}"
    if how.weights:
        yield "Weights compared by", f"{', '.join(one.label for one in how.weights)}, of {', '.join(how.tensors)}"
    if experiment.learnt is not None:
        yield (
            "Explanation accuracy",
            f"a fresh network learns from the maps of {experiment.learnt.data.label} for {experiment.learnt.epochs} "
            "epochs and is asked about those of the explained examples",
        )


def _prepared(how: Prepared, experiment: Experiment) -> str:
    """A measure with all that is done to maps before it, but for how channels are joined where that is as ever."""
    return how.label if how.channels == experiment.channels else f"{how.label} (channels: {how.channels})"
