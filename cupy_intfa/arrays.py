"""Which array library the caller uses: take its arrays in without a copy, give the same kind back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import array_api_compat
import ml_dtypes
import numpy as np

from cupy_intfa.quantize.arithmetic import Array

KINDS = ("numpy", "cupy", "torch", "jax")


@dataclass(frozen=True, eq=False)
class Operands:
    """The caller's arrays, seen as NumPy or CuPy arrays of the same memory.

    Parameters
    ----------
    arrays : tuple of array
        In the caller's order, shape and layout.
    kind : {"numpy", "cupy", "torch", "jax"}
        The caller's library.
    device : int or None
        CUDA device ordinal; None on the CPU.
    """

    arrays: tuple[Array, ...]
    kind: str
    device: int | None


def kind_of(x: object) -> str:
    """Name the library of an array.

    Parameters
    ----------
    x : object
        Anything.

    Returns
    -------
    {"numpy", "cupy", "torch", "jax"}
        Recognised through ``sys.modules``: nothing is imported.

    Raises
    ------
    TypeError
        When it is none of these.

    Examples
    --------
    >>> import numpy as np
    >>> kind_of(np.zeros(3))
    'numpy'
    >>> kind_of([1.0, 2.0])
    Traceback (most recent call last):
        ...
    TypeError: got a list: expected an array of numpy, cupy, torch or jax
    """
    kind = _kinds.get(type(x))
    if kind is None:
        kind = _kinds[type(x)] = _recognise(x)
    return kind


_kinds: dict[type, str] = {}  # asking array_api_compat costs as much as a kernel launch


def _recognise(x: object) -> str:
    if isinstance(x, np.ndarray):
        return "numpy"
    if array_api_compat.is_cupy_array(x):
        return "cupy"
    if array_api_compat.is_torch_array(x):
        return "torch"
    if array_api_compat.is_jax_array(x):
        return "jax"
    raise TypeError(f"got a {type(x).__name__}: expected an array of {', '.join(KINDS[:-1])} or {KINDS[-1]}")


_dtype_names: dict[Any, str] = {}


def dtype_name(x: Array) -> str:
    """Give the name of an array's dtype; NumPy builds it anew each time, in a microsecond."""
    name = _dtype_names.get(x.dtype)
    if name is None:
        name = _dtype_names[x.dtype] = x.dtype.name
    return name


def take_in(**named: Any) -> Operands:
    """See arrays of one library as NumPy (on the CPU) or CuPy (on a GPU) arrays, without copying.

    Parameters
    ----------
    **named
        The arrays, by the names that error messages use.

    Returns
    -------
    Operands
        Views in the order given.

    Raises
    ------
    TypeError
        For something that is no array, for arrays of different libraries, for a tensor that requires a gradient.
    ValueError
        For arrays on different devices.

    Examples
    --------
    >>> import numpy as np
    >>> take_in(q=np.zeros(2), k=np.zeros(2)).kind
    'numpy'
    """
    first = next(iter(named))
    kind = ""
    for name, x in named.items():
        try:
            found = kind_of(x)
        except TypeError as error:
            raise TypeError(f"{name}: {error}") from None
        kind = kind or found
        if found != kind:
            raise TypeError(f"{first} is a {kind} array and {name} a {found} array: expected one library")
    views: list[Array] = []
    devices: list[int | None] = []
    for name, x in named.items():
        view, device = _view(name, x, kind)
        if devices and device != devices[0]:
            raise ValueError(f"{first} is on {_place(devices[0])} and {name} on {_place(device)}: expected one device")
        views.append(view)
        devices.append(device)
    return Operands(tuple(views), kind, devices[0])


def on_stream(operands: Operands, device: int) -> AbstractContextManager[Any]:
    """Make a device CuPy's current one, and the caller's stream its current stream.

    Parameters
    ----------
    operands : Operands
        Whose library decides: torch has a current stream of its own; for the others CuPy's stays.
    device : int
        CUDA device ordinal.

    Returns
    -------
    context manager
        What happens inside is ordered with the caller's own work.
    """
    import cupy

    if operands.kind == "torch" and operands.device is not None:
        return _on_torch_stream(device)
    if cupy.cuda.runtime.getDevice() == device:
        return _NOWHERE_ELSE
    here: AbstractContextManager[Any] = cupy.cuda.Device(device)
    return here


_NOWHERE_ELSE = nullcontext()


@contextmanager
def _on_torch_stream(device: int) -> Iterator[None]:
    import cupy
    import torch

    with cupy.cuda.Device(device), cupy.cuda.Stream.from_external(torch.cuda.current_stream(device)):
        yield


def give_back(x: Array, operands: Operands) -> Any:
    """Turn a NumPy or CuPy result into an array of the caller's kind, without copying.

    Parameters
    ----------
    x : array
        NumPy when the operands are on the CPU, CuPy otherwise.
    operands : Operands
        What the caller passed.

    Returns
    -------
    array
        Of ``operands.kind``, on the same device.
    """
    if operands.kind == "torch":
        import torch

        # Not by DLPack: it would make torch's stream wait for CuPy's current one, which breaks the capture of a graph.
        if x.dtype.name == "bfloat16":
            return torch.as_tensor(x.view(np.int16)).view(torch.bfloat16)
        return torch.as_tensor(x)
    if operands.kind == "jax":
        import jax.numpy as jnp

        # JAX arrays are immutable and XLA may ask for another alignment: from NumPy it decides itself whether to copy.
        return jnp.asarray(x) if operands.device is None else jnp.from_dlpack(x)
    return x


def _place(device: int | None) -> str:
    return "the CPU" if device is None else f"CUDA device {device}"


def _view(name: str, x: Any, kind: str) -> tuple[Array, int | None]:
    if kind == "numpy":
        return x, None
    if kind == "cupy":
        return x, int(x.device.id)
    return _view_torch(name, x) if kind == "torch" else _view_jax(x)


def _view_torch(name: str, x: Any) -> tuple[Array, int | None]:
    if x.requires_grad:
        raise TypeError(f"{name} requires a gradient and there is no backward pass: pass {name}.detach()")
    bfloat16 = str(x.dtype) == "torch.bfloat16"
    if bfloat16:  # neither DLPack to NumPy nor the CUDA array interface has bfloat16: it travels as int16
        import torch

        x = x.view(torch.int16)
    if x.device.type == "cpu":
        view, device = np.from_dlpack(x), None
    else:
        import cupy

        view, device = cupy.asarray(x), int(x.device.index)  # not by DLPack, as in `give_back`
    return (view.view(ml_dtypes.bfloat16) if bfloat16 else view), device


def _view_jax(x: Any) -> tuple[Array, int | None]:
    device = next(iter(x.devices()))
    if device.platform == "cpu":
        return np.asarray(x), None
    import cupy

    return cupy.from_dlpack(x), int(device.local_hardware_id)
