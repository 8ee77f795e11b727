"""What only shows when all parts of a file are known: twins that would be one model, and what could not be measured."""

import pytest
import torch

from consilience.component import dataset, objective
from consilience.data.examples import Dataset, Examples
from consilience.data.mnist10k import mnist10k
from consilience.data.views import First
from consilience.errors import ConsilienceError, DataError, ModelError, SpecError
from consilience.experiment.checks import layers_to_record
from consilience.experiment.config import load
from consilience.experiment.desk import Desk, Place
from consilience.experiment.store import Store
from consilience.models.split import normalised
from consilience.models.svm import rbf_svm
from consilience.training.loop import Chances, train

SELECT = 'train.select={data="mnist10k"}'
SVM = "train.model=rbf_svm"


def twins(values, *more):
    return [f'family=[{{type="retrain", values={{{values}}}}}]', *more]


IDLE = {  # what is varied, and the factor that the message must name
    "noise without dropout": (twins("noise=[0,1]", "train.model.dropout=0.0"), "noise"),
    "noise without dropout of maps": (twins("noise=[0,1]", "train.model={use='small_cnn', dropout=0.0}"), "noise"),
    "noise of a linear model": (twins("init=[0,1], noise=[0,1]", "train.model={use='linear'}"), "noise"),
    "noise where the base is without": (twins("noise=[0,1], dropout_rate=[0.0,0.5]"), "noise"),
    "noise of members without dropout": (
        twins("noise=[0,1]", "train.model={use='mean_of', of='linear'}", "train.objective=explanation_agreement"),
        "noise",
    ),
    "augment without augmentation": (twins("augment=[0,1]"), "augment"),
    "order without shuffling": (twins("order=[0,1]", "train.shuffle=false"), "order"),
    "order where the base is without": (twins("order=[0,1], shuffle=[0,1]"), "order"),
    "init of a kernel machine": (twins("init=[0,1]", SVM), "init"),
    "noise of a kernel machine": (twins("noise=[0,1]", SVM), "noise"),
    "augment of a kernel machine": (twins("augment=[0,1]", SVM, "train.augmentation=shift"), "augment"),
    "shuffle of a kernel machine": (twins("shuffle=[0,1]", SVM), "shuffle"),
    "subset that is all": (['family=[{type="retrain", values={subset=[0,1]}, share=0.999}]'], "subset"),
}  # fmt: skip


@pytest.mark.parametrize("case", IDLE)
def test_a_factor_that_changes_nothing_is_refused(tiny_file, case):
    changes, factor = IDLE[case]
    with pytest.raises(SpecError, match=f"family 'twins': expected .*'{factor}'.* would be one model; ") as caught:
        load(tiny_file, changes=changes)
    assert "vary another factor" in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        twins("noise=[0,1]"),
        twins("noise=[0,1], dropout_rate=[0.5,0.0]", "train.model.dropout=0.0"),
        twins("noise=[0,1]", "train.model={use='mean_of', of='small_cnn'}"),
        twins("noise=[0,1]", "train.model={use='hyper_batch_ensemble'}"),  # it draws without a layer of dropout
        twins("augment=[0,1]", "train.augmentation=shift"),
        twins("order=[0,1], shuffle=[1,0]"),
        twins("order=[0,1]", SVM),
        twins("everything=[0,1]", SVM),
        twins("everything=[0,1]", "train.shuffle=false", "train.model.dropout=0.0"),
        ['family=[{type="retrain", values={subset=[0,1]}, share=0.98}]'],
    ],
    ids=str,
)
def test_a_factor_that_changes_something_is_not(tiny_file, changes):
    assert load(tiny_file, changes=changes).goals()


def test_an_objective_that_draws_makes_noise_a_factor(tiny_file, trials):
    @objective(version=1)
    def drawing(model, batch, rng):
        """The mean answer, each image weighted by chance."""
        return (model(batch.x).mean(1) * rng.uniform()).mean()

    @objective(version=1)
    def drawing_itself(model, batch):
        """The mean answer, each image weighted by torch's own chance."""
        return (model(batch.x).mean(1) * torch.rand(len(batch.x))).mean()

    for name in ("drawing", "drawing_itself"):
        load(tiny_file, changes=twins("noise=[0,1]", "train.model.dropout=0.0", f"train.objective={name}"))


def test_what_cannot_be_tried_is_not_refused(tiny_file, trials):
    @objective(version=1)
    def of_many(model, batch):
        """The mean answer, of three images or more."""
        return model(batch.x)[[0, 1, 2]].mean()

    load(tiny_file, changes=twins("noise=[0,1]", "train.model.dropout=0.0", "train.objective=of_many"))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_what_is_refused_is_what_trains_the_very_same_model(tiny_file, tmp_path, dropout):
    """The definition: weights of two trainings that differ in the noise alone."""
    base = load(tiny_file, changes=[f"train.model.dropout={dropout}", "family=[]"]).base
    desk, found = Desk(Store(tmp_path / "store"), Place()), []
    for noise in (0, 1):
        recipe = {
            "objective": base.objective.build(),
            "optimizer": base.optimizer.build(),
            "chances": Chances(noise=noise),
        }
        found.append(train(lambda: desk.fresh(base), desk.examples(base.data), epochs=1, batch_size=20, **recipe))
    alike = all(torch.equal(found[0].weights[name], found[1].weights[name]) for name in found[0].weights)
    try:
        load(tiny_file, changes=twins("noise=[0,1]", f"train.model.dropout={dropout}"))
    except SpecError:
        assert alike
    else:
        assert not alike


@pytest.fixture
def weights(tiny_file, tmp_path):
    """A data folder with all weights of the tiny network."""
    desk = Desk(Store(tmp_path / "store"), Place())
    (tmp_path / "data" / "weights").mkdir(parents=True)
    torch.save(desk.fresh(load(tiny_file).base).state_dict(), tmp_path / "data" / "weights" / "all.pth")
    return tmp_path / "data"


@pytest.mark.parametrize("family", ['{type="retrain", values={everything=[0,1]}}', '{type="ensembles"}'])
def test_everything_is_refused_where_none_of_its_chances_does_anything(tiny_file, weights, family):
    still = ["train.weights=all.pth", "train.shuffle=false", "train.model.dropout=0.0", f"family=[{family}]"]
    reasons = (
        "'everything', which changes nothing here, since all.pth holds every tensor and 'shuffle' is false and "
        "neither the model nor the objective draws anything in training and there is no augmentation, so that"
    )
    with pytest.raises(SpecError, match=reasons):
        load(tiny_file, data=weights, changes=still)
    for moving in ("train.shuffle=true", "train.model.dropout=0.5", "train.augmentation=shift"):
        load(tiny_file, data=weights, changes=[*still, moving])
    load(tiny_file, data=weights, changes=[still[1], still[2], still[3]])


FAULTS = {  # what is changed, which error it is, what the message must say
    "grid finer than the images": (
        ['compare=[{use="separability", pool=29}]'], SpecError,
        ["compare[0].pool", "28 x 28, found 29 x 29", "take at most 28"],
    ),
    "part that needs other images": (
        ['compare=["cosine", {use="on_part", of="separability"}]'], SpecError,
        ["compare[1].on_part.of: expected", "separability"],
    ),
    "part of a wrong image that needs other images": (
        ['compare=[{use="wrong_image", of={use="on_mask", of="wasserstein"}}]'], SpecError,
        ["compare[0].on_mask.of: expected", "wasserstein"],
    ),
    "part of a grid": (
        ['compare=[{use="on_part", of="cosine", pool=7}]'], SpecError,
        ["compare[0].on_part", "7 x 7", "leave 'pool' out"],
    ),
    "layers of a kernel machine": (
        ['represent={measures=["cka"]}', *twins("order=[0,1]", SVM)], SpecError,
        ["represent: expected a model with layers, found KernelMachine", "leave 'measures' and 'layers' out"],
    ),
    "layer that there is not": (
        ['represent={measures=["cka"], layers=["fc3"]}'], SpecError, ["represent.layers", "did you mean 'fc2'?"],
    ),
    "layer that is called several times": (
        ['represent={measures=["cka"], layers=["shared.0.weight"]}', "train.model={use='hyper_batch_ensemble'}"],
        SpecError, ["represent.layers", "say which, from 'shared.0.weight#1' to 'shared.0.weight#4'"],
    ),
    "more folds than examples": (
        ['family=[{type="folds", count=61}]'], DataError, ["family 'folds'.count", "training examples, 60, found 61"],
    ),
    "more members than wrong classes": (
        ["train.model={use='mean_of', of='mlp', members=10}", "train.objective=adaptive_diversity"], SpecError,
        ["train.objective: adaptive_diversity: expected at most 9 members for 10 classes, found 10"],
    ),
    "objective of an ensemble": (["train.objective=adaptive_diversity"], ModelError, ["train.objective", "ensemble"]),
    "objective of one logit": (["train.objective=binary_cross_entropy"], ModelError, ["one logit, found 10"]),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_would_fail_later_is_refused_when_the_file_is_read(tiny_file, fault):
    changes, kind, words = FAULTS[fault]
    with pytest.raises(ConsilienceError) as caught:
        load(tiny_file, changes=changes)
    assert type(caught.value) is kind
    for word in words:
        assert word in str(caught.value)


def test_more_folds_than_groups_are_refused_where_groups_are_known(tiny_file, trials):
    @dataset(version=1)
    def of_patients(*, of: Dataset = mnist10k) -> Examples:
        """Twenty images of four patients."""
        few = First(of(), 20)
        few.groups = torch.arange(20) % 4
        return few

    whole = "train.data={use='of_patients'}"
    with pytest.raises(DataError, match=r"family 'folds'.count: folds: expected at least 5 groups .* found 4; choose"):
        load(tiny_file, changes=['family=[{type="folds", count=5}]', whole])
    load(tiny_file, changes=['family=[{type="folds", count=4}]', whole])


@pytest.mark.parametrize(
    "changes",
    [
        ['compare=[{use="separability", pool=28}]'],
        ['compare=[{use="on_part", of="spearman"}, {use="on_mask", of="cosine"}]'],
        ['represent={measures=["cka"], layers=["shared.0.weight#4"]}', "train.model={use='hyper_batch_ensemble'}"],
        ['represent={weights=["weight_distance"], tensors=["mean"]}', *twins("order=[0,1]", SVM)],
        ['family=[{type="folds", count=60}]'],
        ["train.model={use='mean_of', of='mlp', members=9}", "train.objective=adaptive_diversity"],
        [*twins("order=[0,1]", SVM), "train.objective=adaptive_diversity"],  # it is not asked
    ],
    ids=str,
)
def test_what_works_is_not_refused(tiny_file, changes):
    assert load(tiny_file, changes=changes).goals()


def test_layers_that_nobody_named_are_those_that_can_be_recorded(tiny_file):
    changes = ['represent={measures=["cka"]}', "train.model={use='hyper_batch_ensemble', members=2}"]
    names = ("members.0.conv1", "members.0.fc1", "members.1.conv1", "members.1.fc1")
    assert load(tiny_file, changes=changes).represent.layers == names
    assert load(tiny_file, changes=changes[:1]).represent.layers == ("fc1", "fc2")


def test_a_model_of_layers_that_are_called_twice_must_have_them_named():
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(self.layer(x.flatten(1)))

    model = normalised(Twice(), [0.0], [1.0])
    with pytest.raises(SpecError, match=r"represent.layers: expected layers .* called once, found none in Twice; name"):
        layers_to_record((), model, (1, 2, 2))
    assert layers_to_record(("layer#2",), model, (1, 2, 2)) == ("layer#2",)
    with pytest.raises(SpecError, match="KernelMachine"):
        layers_to_record(("mean",), normalised(rbf_svm((1, 2, 2), 2), [0.0], [1.0]), (1, 2, 2))
