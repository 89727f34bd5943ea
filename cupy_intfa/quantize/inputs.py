"""What the weight quantisers need to know of a linear layer's inputs, gathered batch by batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cupy_intfa.quantize.arithmetic import Array
from cupy_intfa.quantize.granularity import namespace_of


@dataclass(frozen=True, eq=False)
class LinearInputs:
    """Statistics of the inputs x of a layer y = x·Wᵀ, for each of its K input channels.

    Parameters
    ----------
    moment : array (K, K), float64
        Mean of xᵀx: half the Hessian of the layer's squared output error.
    mean_abs : array (K,), float64
        Mean of |x|.
    absmax : array (K,), float64
        Largest |x|.
    count : int
        Rows seen.
    """

    moment: Array
    mean_abs: Array
    absmax: Array
    count: int

    def output_error(self, weight: Array, stand_in: Array) -> float:
        """Tell how far a stand-in for the weight moves the output, relative to the output.

        Parameters
        ----------
        weight, stand_in : array (N, K)
            The weight, and what a quantiser made of it.

        Returns
        -------
        float
            √(Σ‖x·(W − Ŵ)ᵀ‖² / Σ‖x·Wᵀ‖²) over the inputs seen, exactly: the sums are traces of W·moment·Wᵀ.

        Examples
        --------
        >>> seen = observe_inputs(np.float32([[1, 0], [0, 2]]))
        >>> seen.output_error(np.float32([[3, 2]]), np.float32([[3, 1]]))
        0.4
        """
        xp = namespace_of(weight, stand_in)
        exact = weight.astype(np.float64)
        wrong = exact - stand_in
        return float(xp.sqrt(((wrong @ self.moment) * wrong).sum() / ((exact @ self.moment) * exact).sum()))


def observe_inputs(x: Array, seen: LinearInputs | None = None) -> LinearInputs:
    """Add a batch of inputs; the batch is not kept.

    Parameters
    ----------
    x : array (..., K)
        Floats.
    seen : LinearInputs, optional
        Of the batches before.

    Returns
    -------
    LinearInputs
        New ones; `seen` is unchanged.

    Raises
    ------
    ValueError
        For a batch that is empty, not finite, or of another K.

    Examples
    --------
    >>> observe_inputs(np.float32([[1, -3]]), observe_inputs(np.float32([[2, 1]]))).mean_abs.tolist()
    [1.5, 2.0]
    """
    xp = namespace_of(x)
    rows = x.reshape(-1, x.shape[-1]).astype(np.float64)
    if rows.size == 0 or not bool(xp.isfinite(rows).all()):
        raise ValueError(f"expected inputs that are finite and not empty, got shape {x.shape}")
    magnitude = xp.abs(rows)
    count = len(rows)
    batch = LinearInputs(rows.T @ rows / count, magnitude.mean(axis=0), magnitude.max(axis=0), count)
    if seen is None:
        return batch
    if len(seen.absmax) != rows.shape[1]:
        raise ValueError(f"expected {len(seen.absmax)} channels as before, got {rows.shape[1]}")
    share = count / (seen.count + count)
    return LinearInputs(
        moment=seen.moment + share * (batch.moment - seen.moment),
        mean_abs=seen.mean_abs + share * (batch.mean_abs - seen.mean_abs),
        absmax=xp.maximum(seen.absmax, batch.absmax),
        count=seen.count + count,
    )


def check_layer(weight: Array, inputs: LinearInputs) -> None:
    """Refuse a weight that is not a finite float matrix on these inputs.

    Raises
    ------
    ValueError
        If it is not.
    """
    xp = namespace_of(weight, inputs.moment)
    if weight.ndim != 2 or weight.shape[1] != len(inputs.absmax):
        raise ValueError(f"expected a weight (outputs, {len(inputs.absmax)}) for these inputs, got {weight.shape}")
    if not bool(xp.isfinite(weight).all()):
        raise ValueError("expected a finite weight, got NaN or infinity")
