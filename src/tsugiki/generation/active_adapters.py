"""The adapters that the model of an engine computes with, changed only when a batch needs others."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING

from tsugiki.fast.mixed_batch import mixed_batch
from tsugiki.generation.batch import Row
from tsugiki.lora.hold import base_alone, set_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ActiveAdapters:
    """Which adapters of a model are active. All methods are for the thread that owns the model."""

    def __init__(self, model: "PreTrainedModel") -> None:
        self._model = model
        self._present: tuple[object, ...] | None = None
        self._entered = ExitStack()

    def activate(self, rows: Sequence[Row]) -> None:
        """Let the model compute these rows, each with its adapter."""
        model, names = self._model, [row.request.adapter for row in rows]
        first = names[0]
        if first is not None and rows[0].request.batch_mode != "mixed":
            self._enter((first,), lambda: _one_for_all(model, first))
        elif not any(names):
            self._enter((None,), lambda: base_alone(model))
        else:
            self._enter(("rows", *names), lambda: mixed_batch(model, names))

    def deactivate(self) -> None:
        """Leave the model as it was before `activate`, so that adapters can be added and removed."""
        self._present = None
        self._entered.close()

    def _enter(self, key: tuple[object, ...], context: Callable[[], AbstractContextManager[None]]) -> None:
        """Enter a context, unless it is the present one."""
        if key == self._present:
            return
        self.deactivate()
        self._entered.enter_context(context())
        self._present = key


@contextmanager
def _one_for_all(model: "PreTrainedModel", name: str) -> Iterator[None]:
    """Activate one adapter for all rows."""
    set_adapter(model, name)
    yield
