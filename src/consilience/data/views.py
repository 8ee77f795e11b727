"""Views: data sets made from another data set, which stays as it is."""

from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta

from consilience.component import dataset
from consilience.data.examples import Batch, Dataset, Example, Examples, fingerprint
from consilience.data.mnist10k import mnist10k
from consilience.errors import DataError


@dataset(version=1)
def subset(*, of: Dataset = mnist10k, count: Annotated[int, Meta(ge=1)]) -> Examples:
    """The first examples of another data set, with the ids they have there.

    Args:
        of: The data set that is shortened.
        count: How many examples are left.
    """
    return First(of(), count)


class First:
    """The first ``count`` of some examples."""

    def __init__(self, whole: Examples, count: int) -> None:
        """Check that there are as many.

        Raises:
            DataError: There are fewer examples, or none is left.
        """
        if not 1 <= count <= len(whole):
            raise DataError(
                f"subset: expected a count from 1 to {len(whole)}, the examples that there are, found {count}; "
                "change the count or take a larger data set"
            )
        self.whole, self.count = whole, count
        self.shape, self.classes, self.mean, self.sd = whole.shape, whole.classes, whole.mean, whole.sd
        # Of the whole's, so that no image is read for it: data that differ behind the last example differ here too.
        self.fingerprint = fingerprint(b"first", whole.fingerprint.encode(), str(count).encode())

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        self._check(index)
        return self.whole[index]

    def batch(self, ids: Sequence[int]) -> Batch:
        """These examples, stacked."""
        for index in ids:
            self._check(index)
        return self.whole.batch(ids)

    def _check(self, index: int) -> None:
        if not 0 <= index < self.count:  # an IndexError, because it ends a loop over the examples
            raise IndexError(f"subset: expected an id from 0 to {self.count - 1}, found {index}; raise the count")
