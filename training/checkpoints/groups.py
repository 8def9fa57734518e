"""Groups of tensors that are made one at a time: what a checkpoint holds need not be in memory at once."""

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor

Group = Mapping[str, Tensor]


class Groups(Mapping[str, Group]):
    """A mapping from the names of groups to the groups, each of which is made when it is asked for.

    With sharded networks a group is made by all processes together, each asking for the same ones in the same order.
    One process writes them, the others call `make_rest`; so does the one that writes, in case it could not go on.
    """

    def __init__(self, makers: Mapping[str, Callable[[], Group]]):
        """`makers` make the groups, in the order in which they are to be asked for."""
        self._makers, self._made = dict(makers), set()

    def __getitem__(self, name: str) -> Group:
        self._made.add(name)
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)

    def make_rest(self) -> None:
        """Make, and throw away, the groups that were not asked for."""
        for name in self:
            if name not in self._made:
                self[name]
