"""What the plan needs to know of a GPU: a plain record, made up freely on a machine that has none."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True, kw_only=True)
class DeviceInfo:
    """A GPU.

    Parameters
    ----------
    name : str
        As the driver calls it.
    ordinal : int
        Number of the device in this process.
    capability : tuple of int
        Compute capability, (9, 0) for a Hopper.
    multiprocessors : int
        Number of multiprocessors.
    shared_per_block : int
        Bytes of shared memory that one block may ask for.
    nvrtc : tuple of int
        Version of the run-time compiler.

    Examples
    --------
    >>> DeviceInfo(name="made up", ordinal=0, capability=(8, 6), multiprocessors=84, shared_per_block=101376).arch
    'sm_86'
    """

    name: str
    ordinal: int
    capability: tuple[int, int]
    multiprocessors: int
    shared_per_block: int
    nvrtc: tuple[int, int] = (13, 0)

    @property
    def arch(self) -> str:
        """Name of the architecture, as compilers spell it."""
        return f"sm_{self.capability[0]}{self.capability[1]}"


@cache
def device_info(ordinal: int) -> DeviceInfo:
    """Read a device's record through CuPy, once.

    Parameters
    ----------
    ordinal : int
        Number of the device.

    Returns
    -------
    DeviceInfo
        Its record.
    """
    from cupy.cuda import nvrtc, runtime

    properties = runtime.getDeviceProperties(ordinal)
    return DeviceInfo(
        name=properties["name"].decode(),
        ordinal=ordinal,
        capability=(int(properties["major"]), int(properties["minor"])),
        multiprocessors=int(properties["multiProcessorCount"]),
        shared_per_block=int(properties["sharedMemPerBlockOptin"]),
        nvrtc=nvrtc.getVersion(),
    )


def default_device() -> DeviceInfo | str:
    """Find the GPU that NumPy arrays travel to.

    Returns
    -------
    DeviceInfo or str
        CuPy's current device, or the reason why there is none.
    """
    reason = _why_none()
    if reason is not None:
        return reason
    import cupy

    return device_info(int(cupy.cuda.Device().id))  # asked every time: the current device is the thread's, and changes


def gpu_for(backend: str) -> DeviceInfo | None:
    """Give the GPU that a backend would use.

    Parameters
    ----------
    backend : str
        As in `attention`.

    Returns
    -------
    DeviceInfo or None
        None for ``numpy``, and where there is no GPU.
    """
    found = None if backend == "numpy" else default_device()
    return found if isinstance(found, DeviceInfo) else None


@cache
def _why_none() -> str | None:
    """Tell why CuPy has no GPU, if it has none; found out once, because a failed import is tried again each time."""
    try:
        import cupy

        device_info(int(cupy.cuda.Device().id))
    except Exception as error:  # a missing driver, a broken wheel, a read-only home: CuPy raises many kinds
        return f"{type(error).__name__}: {error}"
    return None
