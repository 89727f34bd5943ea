"""GPUs made up for tests of the plan and of what it compiles: one per architecture, as a machine would report it."""

from cupy_intfa.device import DeviceInfo

# Compute capability → multiprocessors of a common card, KB of shared memory that a block may ask for (CUDA C++
# Programming Guide, "Technical Specifications per Compute Capability"), and the newest NVRTC that compiles for it.
_MADE_UP = {
    (6, 1): (20, 48, (12, 9)),
    (7, 0): (80, 96, (12, 9)),
    (7, 5): (40, 64, (13, 0)),
    (8, 0): (108, 163, (13, 0)),
    (8, 6): (84, 99, (13, 0)),
    (8, 9): (128, 99, (13, 0)),
    (9, 0): (132, 227, (13, 0)),
    (10, 0): (148, 227, (13, 0)),
    (12, 0): (170, 99, (13, 0)),
}

DEVICES = {
    f"sm_{major}{minor}": DeviceInfo(
        name=f"made up {major}.{minor}",
        ordinal=0,
        capability=(major, minor),
        multiprocessors=multiprocessors,
        shared_per_block=1024 * kilobytes,
        nvrtc=nvrtc,
    )
    for (major, minor), (multiprocessors, kilobytes, nvrtc) in _MADE_UP.items()
}
