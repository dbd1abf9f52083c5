"""What stands in a mask's place is no tensor: a model that computes with its mask is refused."""

from __future__ import annotations

from typing import Any, NoReturn

from patterncc.errors import BackendError


class MaskUsedError(BackendError, AttributeError):
    """A model computes with its mask; an AttributeError too, so that hasattr answers False."""


class NotAMask:
    """Refuses by name what tensors take: attributes, operators, functions of torch."""

    def __getattr__(self, name: str) -> NoReturn:
        raise _refused(f".{name}")

    def __getitem__(self, at: object) -> NoReturn:
        raise _refused("[...]")

    def _operator(self, other: object = None) -> NoReturn:
        raise _refused("an operator")

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _operator
    __and__ = __rand__ = __or__ = __ror__ = __invert__ = _operator
    __lt__ = __gt__ = __le__ = __ge__ = _operator

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> NoReturn:
        raise _refused(f"torch's {getattr(function, '__name__', function)}")


def _refused(use: str) -> MaskUsedError:
    return MaskUsedError(
        f"this model computes with its attention mask ({use}) and so may mask or add what no "
        "pattern holds; patterncc makes no mask, so this attention cannot be replaced: apply to "
        "another part or submodule, or run the model with the attention that it had"
    )
