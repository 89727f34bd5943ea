"""What a user would take instead: an adapter of a few lines for each, used where it is importable.

Each gets the same values as ours, handed over by DLPack and put, before the clock starts, into the dtype and the order
of axes that it asks for.
"""

from __future__ import annotations

import math
from functools import partial
from importlib import import_module
from typing import Any

from cupy_intfa.bench.cases import Case
from cupy_intfa.bench.contenders import Contender, Forms, Inputs

_E4M3_LARGEST = 448.0


def _tensors(inputs: Inputs) -> list[Any]:
    """See CuPy arrays as torch tensors."""
    import torch

    return [
        torch.from_dlpack(x) if x.dtype.name != "bfloat16" else torch.from_dlpack(x.view("int16")).view(torch.bfloat16)
        for x in inputs
    ]


def _bshd(x: Any) -> Any:
    """Give (B, S, H, D), contiguous."""
    return x.transpose(1, 2).contiguous()


def _to_bhsd(out: Any) -> Any:
    return out.transpose(1, 2)


def _to_fp8(x: Any, axes: tuple[int, ...]) -> tuple[Any, Any]:
    """Quantise to float8_e4m3 with one scale for all along the axes; give the values and the scales (float32)."""
    import torch

    scale = x.abs().amax(dim=axes, keepdim=True).float() / _E4M3_LARGEST
    return (x.float() / scale).to(torch.float8_e4m3fn), scale


def _sdpa(backend: str | None, case: Case, inputs: Inputs) -> Forms:
    """Attention of PyTorch, by one of its backends, or by the one that it picks itself."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    grouped = {"enable_gqa": True} if case.heads != case.kv_heads else {}
    attend = partial(
        torch.nn.functional.scaled_dot_product_attention, *_tensors(inputs), is_causal=case.causal, **grouped
    )
    if backend is None:
        return Forms(e2e=attend)
    chosen = getattr(SDPBackend, backend)

    def attend_by_backend() -> Any:
        with sdpa_kernel(chosen):
            return attend()

    return Forms(e2e=attend_by_backend)


def _fa3_bf16(case: Case, inputs: Inputs) -> Forms:
    """FlashAttention-3. The wheel is built without float16."""
    import torch

    run = import_module("fa3_fwd_interface").flash_attn_func
    q, k, v = (_bshd(x.to(torch.bfloat16)) for x in _tensors(inputs))
    return Forms(e2e=partial(run, q, k, v, causal=case.causal), decode=_to_bhsd)


def _fa3_fp8(case: Case, inputs: Inputs) -> Forms:
    """FlashAttention-3 in fp8: one scale for each (batch, key head), of its query heads together."""
    run = import_module("fa3_fwd_interface").flash_attn_func
    q, k, v = _tensors(inputs)
    groups = q.unflatten(1, (case.kv_heads, -1))
    (q8, sq), (k8, sk), (v8, sv) = _to_fp8(groups, (2, 3, 4)), _to_fp8(k, (2, 3)), _to_fp8(v, (2, 3))
    scales = {f"{name}_descale": s.flatten(1) for name, s in (("q", sq), ("k", sk), ("v", sv))}
    arrays = (_bshd(x) for x in (q8.flatten(1, 2), k8, v8))
    return Forms(kernel=partial(run, *arrays, causal=case.causal, **scales), decode=_to_bhsd)


def _cudnn_fp8(case: Case, inputs: Inputs) -> Forms:
    """Attention of cuDNN in fp8: one scale for each tensor, the output in fp8 too, which is all that Hopper has."""
    import torch

    cudnn = import_module("cudnn")
    quantised = [_to_fp8(x, (0, 1, 2, 3)) for x in _tensors(inputs)]
    arrays = [_bshd(x).transpose(1, 2) for x, _ in quantised]
    out = torch.empty_like(arrays[0])
    constant = partial(torch.full, (1, 1, 1, 1), device=out.device, dtype=torch.float32)
    p_scale = 256.0  # P is at most 1, and e4m3 ends at 448: a power of two below
    out_scale, amax_o, amax_s = constant(1.0), constant(0.0), constant(0.0)
    handle = cudnn.create_handle()
    cudnn.set_stream(handle=handle, stream=torch.cuda.current_stream().cuda_stream)
    graph = cudnn.pygraph(
        io_data_type=cudnn.data_type.FP8_E4M3,
        intermediate_data_type=cudnn.data_type.FLOAT,
        compute_data_type=cudnn.data_type.FLOAT,
        handle=handle,
    )
    given = [*arrays, *(s for _, s in quantised), constant(1.0 / p_scale), constant(p_scale), out_scale]
    nodes = [graph.tensor(dim=list(x.shape), stride=list(x.stride()), data_type=x.dtype) for x in given]
    scale = 1.0 / math.sqrt(case.head_dim)
    o, _, top_s, top_o = graph.sdpa_fp8(*nodes, is_inference=True, attn_scale=scale, use_causal_mask=case.causal)
    o.set_output(True).set_dim(list(out.shape)).set_stride(list(out.stride()))
    for node in (top_s, top_o):
        node.set_output(True).set_dim([1, 1, 1, 1]).set_stride([1, 1, 1, 1]).set_data_type(cudnn.data_type.FLOAT)
    graph.build([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    workspace = torch.empty(graph.get_workspace_size(), device=out.device, dtype=torch.uint8)
    pack = dict(zip((*nodes, o, top_s, top_o), (*given, out, amax_s, amax_o), strict=True))

    def run() -> Any:
        graph.execute(pack, workspace, handle=handle)
        return out

    run()  # with an output scale of 1, to learn what fills the range of the output
    out_scale.copy_(_E4M3_LARGEST / amax_o)
    return Forms(kernel=run, decode=lambda x: x.float() / out_scale)


def _comfy(case: Case, inputs: Inputs) -> Forms:
    """Both products in INT8, P unsigned."""
    if case.causal:
        raise NotImplementedError("comfy-kitchen has no causal mask")
    comfy = import_module("comfy_kitchen")
    q, k, v = _tensors(inputs)
    quantised = comfy.prequantize_int8_attention(q, k, v)
    return Forms(
        kernel=partial(comfy.int8_attention_from_prequantized, quantised),
        e2e=partial(comfy.int8_attention, q, k, v),
    )


def _sage1(case: Case, inputs: Inputs) -> Forms:
    """Q·Kᵀ in INT8, P·V in float16, in Triton."""
    quantise = import_module("sageattention.quant_per_block").per_block_int8
    run = import_module(f"sageattention.attn_qk_int8_per_block{'_causal' if case.causal else ''}").forward
    e2e = _sage2(case, inputs).e2e
    q, k, v = _tensors(inputs)
    q8, q_scale, k8, k_scale = quantise(q, k - k.mean(dim=2, keepdim=True))
    return Forms(kernel=partial(run, q8, k8, v, q_scale, k_scale, output_dtype=q.dtype), e2e=e2e)


def _sage2(case: Case, inputs: Inputs) -> Forms:
    """Q·Kᵀ in INT8, P·V in fp8."""
    if case.head_dim not in (64, 128):
        raise NotImplementedError("SageAttention is measured at D 64 and 128")
    q, k, v = _tensors(inputs)
    k = k.clone()  # version 1 subtracts the mean of K in place
    return Forms(e2e=partial(import_module("sageattention").sageattn, q, k, v, is_causal=case.causal))


RIVALS: tuple[Contender, ...] = (
    Contender("torch SDPA fp16", "torch", partial(_sdpa, None), ("torch",)),
    Contender("FA2 fp16", "torch", partial(_sdpa, "FLASH_ATTENTION"), ("torch",)),
    Contender("cuDNN fp16", "torch", partial(_sdpa, "CUDNN_ATTENTION"), ("torch",)),
    Contender("FA3 bf16", "fa3-fwd", _fa3_bf16, ("torch", "fa3_fwd_interface")),
    Contender("FA3 fp8", "fa3-fwd", _fa3_fp8, ("torch", "fa3_fwd_interface")),
    Contender("cuDNN fp8", "nvidia-cudnn-frontend", _cudnn_fp8, ("torch", "cudnn")),
    Contender("comfy-kitchen INT8", "comfy-kitchen", _comfy, ("torch", "comfy_kitchen")),
    Contender("SageAttention 1", "sageattention", _sage1, ("torch", "sageattention"), "1."),
    Contender("SageAttention 2", "sageattention", _sage2, ("torch", "sageattention"), "2."),
)
"""The rivals, in the order of the tables."""
