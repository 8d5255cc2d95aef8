"""From a layer of the library to a fused block, by what the layer is made of and never by its family.

A layer qualifies when it has a norm, an attention with linear maps to queries, keys, values and back, another norm, and
a perceptron; nothing else that has weights. Whether the block then computes what the layer does is for the caller to
try (`peers.span`): a layer may do more than its parts show, and is left as it is then.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from peers.batch import Heads
from peers.fused import Attention, Beside, FusedBlock, Mlp, Norm, Part, WholeMlp
from peers.turns import Turning, pair_order
from swarm.packing import Packed, join

__all__ = ["fuse"]

NORM_TOLERANCE = 8  # units in the last place


def fuse(layer: nn.Module, heads: Heads, turnings: Iterable[Turning | None]) -> Iterator[FusedBlock]:
    """Blocks that may compute what `layer` does, one for each way in which it may turn its heads; none when it is made
    of other parts. Weights that are joined are copied; all others are the layer's own."""
    parts = [getattr(layer, name, None) for name in ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")]
    if not all(isinstance(part, nn.Module) for part in parts) or heads.width != heads.value_width:
        return
    before, attention, after, mlp = (part for part in parts if isinstance(part, nn.Module))
    if {id(w) for w in _weights(layer)} != {id(w) for part in parts if part is not None for w in _weights(part)}:
        return
    first, second = _norm(before), _norm(after)
    if first is None or second is None:
        return
    for turning in turnings:
        fused = _attention(attention, heads, turning)
        if fused is None:
            return
        perceptron, mlp_parts = _mlp(mlp)
        yield FusedBlock(first, fused[0], second, perceptron, fused[1] | mlp_parts)


def _attention(module: nn.Module, heads: Heads, turning: Turning | None) -> tuple[Attention, dict[str, Part]] | None:
    children = _with_weights(module)
    out = children.pop("o_proj", None)
    norms = [children.pop(name, None) for name in ("q_norm", "k_norm")]
    joined = _linears(children, ("q_proj", "k_proj", "v_proj"), ("qkv_proj",))
    if joined is None or out is None or not _is_linear(out) or children or list(module.parameters(recurse=False)):
        return None
    total = heads.query + 2 * heads.kv
    if _outputs(joined.values()) != total * heads.width:
        return None
    order = _order(heads, turning)
    norm = None
    if any(norms):
        each = [_norm(own) if own is not None else None for own in norms]
        norm = _head_norm(each, heads, turning)
        if norm is None:
            return None
    parts = _parts("self_attn", joined, "attention.joined", order) | _parts(
        "self_attn", {"o_proj": out}, "attention.out"
    )
    return Attention(_join(list(joined.values()), order), norm, _unmapped(out), heads, turning), parts


def _mlp(module: nn.Module) -> tuple[nn.Module, dict[str, Part]]:
    """Joined when it is the usual gated one, else the library's own."""
    children = _with_weights(module)
    down = children.pop("down_proj", None)
    act = getattr(module, "act_fn", getattr(module, "activation_fn", None))
    joined = _linears(children, ("gate_proj", "up_proj"), ("gate_up_proj",))
    if down is None or joined is None or not callable(act):
        return _whole(module)
    outputs = _outputs(joined.values())
    if not _is_linear(down) or children or list(module.parameters(recurse=False)) or outputs % 2:
        return _whole(module)
    quick = silu if _is_silu(act, like=_weights(module)[0]) else act
    parts = _parts("mlp", joined, "mlp.joined") | _parts("mlp", {"down_proj": down}, "mlp.down")
    return Mlp(_join(list(joined.values()), None), quick, _unmapped(down)), parts


def _whole(module: nn.Module) -> tuple[nn.Module, dict[str, Part]]:
    parts: dict[str, Part] = {}
    for path, linear in module.named_modules():
        if path and _is_linear(linear):
            parts |= _parts("mlp", {path: linear}, f"mlp.mlp.{path}")
    return WholeMlp(module), parts


def _parts(owner: str, linears: Mapping[str, nn.Module], path: str, order: Tensor | None = None) -> dict[str, Part]:
    """Of these linear layers of a layer's `owner`, which are one map at `path`, its rows in this order."""
    found: dict[str, Part] = {}
    begin = 0
    for name, linear in linears.items():
        outputs, inputs = _outputs([linear]), linear.in_features
        assert isinstance(inputs, int)
        own = None if order is None else order[begin : begin + outputs] - begin
        found[f"{owner}.{name}"] = Part(path, begin, outputs, inputs, own, len(linears) == 1 and order is None)
        begin += outputs
    return found


def _is_silu(act: Callable[[Tensor], Tensor], like: Tensor) -> bool:
    x = torch.linspace(-20, 20, 64, device=like.device)
    return torch.equal(act(x), silu(x))


def _weights(module: nn.Module) -> list[Tensor]:
    return [
        *module.parameters(),
        *(buffer for own in module.modules() if isinstance(own, Packed) for buffer in own.buffers()),
    ]


def _with_weights(module: nn.Module) -> dict[str, nn.Module]:
    return {name: child for name, child in module.named_children() if _weights(child)}


def _linears(children: dict[str, nn.Module], *choices: tuple[str, ...]) -> dict[str, nn.Module] | None:
    """The first choice of names that are all there, taken out of `children`."""
    for names in choices:
        if all(_is_linear(children.get(name)) for name in names):
            return {name: children.pop(name) for name in names}
    return None


def _is_linear(module: nn.Module | None) -> bool:
    return type(module) is nn.Linear or isinstance(module, Packed)


def _outputs(linears: Iterable[nn.Module]) -> int:
    return sum(linear.out_features for linear in linears if isinstance(linear, nn.Linear | Packed))


def _order(heads: Heads, turning: Turning | None) -> Tensor | None:
    """The rows of the joined weight in the order that the turning wants; None: as they are."""
    if turning is None or not turning.in_pairs:
        return None
    own = torch.tensor(pair_order(heads.width, turning.width))
    turned = torch.arange(heads.query + heads.kv)[:, None] * heads.width + own
    total = (heads.query + 2 * heads.kv) * heads.width
    return torch.cat([turned.flatten(), torch.arange(turned.numel(), total)])


def _join(linears: Sequence[nn.Module], order: Tensor | None) -> nn.Module:
    """One map to the outputs of all of them, in this order of rows."""
    if len(linears) == 1 and order is None:
        return linears[0]
    plain = [linear for linear in linears if isinstance(linear, nn.Linear)]
    if len(plain) == len(linears):
        return _joined(plain, order)
    packed = [linear for linear in linears if isinstance(linear, Packed)]
    joined = join(packed) if len(packed) == len(linears) else None
    if order is None:
        return joined or Beside(linears)
    assert joined is not None  # or nobody would have asked for another order
    return joined.ordered(order)


def _unmapped(linear: nn.Module) -> nn.Module:
    """Packed weights are views of a mapped file, and one that is left keeps all of the file in memory."""
    return join([linear]) or linear if isinstance(linear, Packed) else linear


def _joined(linears: Sequence[nn.Linear], order: Tensor | None) -> nn.Linear:
    weights = [linear.weight.detach() for linear in linears]
    biased = any(linear.bias is not None for linear in linears)
    with torch.device("meta"):
        joined = nn.Linear(linears[0].in_features, sum(len(weight) for weight in weights), bias=biased)
    joined.weight = nn.Parameter(_cat(weights, order), requires_grad=False)
    if biased:
        pairs = zip(linears, weights, strict=True)
        biases = [w.new_zeros(len(w)) if linear.bias is None else linear.bias.detach() for linear, w in pairs]
        joined.bias = nn.Parameter(_cat(biases, order), requires_grad=False)
    return joined


def _cat(parts: Sequence[Tensor], order: Tensor | None) -> Tensor:
    whole = parts[0] if len(parts) == 1 else torch.cat(list(parts))
    return whole if order is None else whole.index_select(0, order.to(whole.device))


def _norm(module: nn.Module) -> Norm | None:
    """The root mean square norm that `module` is; None when it is none."""
    parameters = list(module.parameters())
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if len(parameters) != 1 or parameters[0].dim() != 1 or not isinstance(eps, float):
        return None
    weight = parameters[0].detach()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, len(weight), generator=generator) * torch.tensor([[1e-3], [1.0], [1e3]])
    x = x.to(weight)
    expected = module(x)
    for own in (weight, 1 + weight):
        norm = Norm(own, eps)
        allowed = NORM_TOLERANCE * torch.finfo(weight.dtype).eps
        if torch.allclose(norm(x.clone()), expected, rtol=allowed, atol=allowed * float(expected.abs().max()) * 1e-3):
            return norm
    return None


def _head_norm(norms: Sequence[Norm | None], heads: Heads, turning: Turning | None) -> Norm | None:
    """Those of queries and of keys as one, in the order of the joined weight; None when they can't be one."""
    query, key = norms
    if query is None or key is None or query.eps != key.eps or {query.width, key.width} != {heads.width}:
        return None
    weight = torch.stack([query.weight, key.weight])
    if turning is not None and turning.in_pairs:
        weight = weight[:, pair_order(heads.width, turning.width)]
    return Norm(weight, query.eps, (heads.query, heads.kv))
