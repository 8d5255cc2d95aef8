"""`SwarmModelForCausalLM`: a Hugging Face model whose blocks are computed by the peers of a swarm.

It is an instance of the library's class too (`SwarmLlamaForCausalLM` of `LlamaForCausalLM`), and the library's code
runs for all but the blocks: embeddings, final norm, head, loss, all of `generate`. Only those weights are here.
"""

import inspect
import os
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Self

import torch
from torch import Tensor, nn
from transformers import (
    Cache,
    GenerationConfig,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer
from transformers.modeling_outputs import CausalLMOutputWithPast

from clients.ahead import DecodingAhead
from clients.assisted import AssistedDecoding
from clients.blocks import Peek, Remote, adopt_blocks, blocks_of
from clients.cache import Opener, SwarmCache
from clients.events import Observer
from clients.head import Head
from clients.hosted import HostedAdapters
from clients.loading import build
from clients.speculation import Assistant, Drafts, Speculation
from clients.streaming import TokenStream
from clients.training.adapters import Adapters
from clients.training.compression import Compress
from clients.training.hop import Cost
from clients.training.passing import differentiate
from clients.training.prefix import Prefix
from fault.audits import USUAL_RATE
from swarm.catalogue import default_cache
from swarm.checkpoint import resolve
from swarm.dtypes import NAMES
from swarm.errors import ModelError, UsageError
from swarm.training import PackedAdapter

if TYPE_CHECKING:  # heavy: it brings the network
    from clients.network import Network

__all__ = ["SwarmModelForCausalLM"]


class SwarmModelForCausalLM(HostedAdapters, AssistedDecoding, DecodingAhead, PreTrainedModel, GenerationMixin):  # type: ignore[misc,no-untyped-call]
    """Made by `from_pretrained`; a context manager. Any number of threads may use one model at once."""

    _blocks_path: ClassVar[str]  # of the list of blocks, as in "model.layers"; classes by `clients.loading` have it

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        adopt_blocks(self, self._blocks_path)
        self.base_model.register_forward_pre_hook(partial(_as_backbone, weakref.ref(self)), with_kwargs=True)
        self._connection: Opener | None = None
        self._max_positions: int | None = None
        self._caches: weakref.WeakSet[SwarmCache] = weakref.WeakSet()
        self._found, self._chosen = {}, None
        self._lock = threading.Lock()
        self._on_close = ExitStack()
        self._closed = False

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        name: str | Path,
        *,
        initial_peers: Sequence[str] = (),
        dtype: torch.dtype | None = None,
        codec: str | None = None,
        patience: float = 30.0,
        compress: str = "none",
        audit_rate: float = USUAL_RATE,
        cache: Path | None = None,
        connection: Opener | None = None,
        network: "Network | None" = None,
        observer: Observer | None = None,
        share_prefixes: bool = True,
        precision: str | Collection[str] | None = None,
        head: str | None = None,
        adapter: str | None = None,
    ) -> Self:
        """Join the swarm of a model, with embeddings, final norm and head on this machine.

        `name`: a hub id, a Hugging Face folder, a .gguf file or an alias. `initial_peers`: multiaddresses of peers of
        the swarm. `dtype` of what is local, by default the checkpoint's; `codec` of what travels, by default the one
        without loss for `dtype`. `patience`: seconds to wait for peers when there are none for some block. `compress`:
        "sums", "int8" or "auto", for training over slow lines; the latter two round. `audit_rate`: the share of steps
        of generation that other peers compute again, where there are any, so that who computes something else is found
        out. `cache`: where checkpoints are kept, and addresses of peers that were seen. A `connection` that is handed
        in is used instead of a new one, and stays open when the model is closed; a `network`, which several models can
        share, instead of `initial_peers`.
        `observer` is told what happens to sessions. With `share_prefixes`, peers compute beginnings that several
        prompts have in common just once, whoever sends them; so others can tell, from the time an answer takes, that
        somebody has sent the same beginning. `precision`: of the peers that may compute, such as "fp32" or ("int8",
        "int4"); by default any, and what replaces a lost peer computes as that did where it can be. `head`: "bf16",
        "int8" or "int4" for a faster head with some loss. `adapter`: one that peers host, see `load_hosted_adapter`.
        Raises ModelError, NetworkError.
        """
        compressing = Compress.of(compress)
        cache = cache or default_cache(os.environ)
        checkpoint = resolve(str(name), cache=cache)
        model = build(cls, checkpoint, dtype, head)
        model._max_positions = checkpoint.max_positions
        model._check_family()
        if connection is None:
            from clients.connection import Connection  # heavy: it brings the network

            codec = codec or NAMES.get(model.dtype, "fp32")
            join = network.connect if network else partial(Connection.open, initial_peers=initial_peers, memory=cache)
            opened = join(
                checkpoint,
                codec=codec,
                patience=patience,
                compress=compressing,
                audit_rate=audit_rate,
                observer=observer,
                share_prefixes=share_prefixes,
                precisions=(precision,) if isinstance(precision, str) else tuple(precision or ()),
            )
            model._on_close.callback(opened.close)
            connection = opened
        model._connection = connection
        if adapter is not None:
            with ExitStack() as stack:
                stack.callback(model.close)
                model.load_hosted_adapter(adapter)
                stack.pop_all()
        return model

    # --- forward ---

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """The library's forward. Without `past_key_values` the peers forget everything afterwards, unless `use_cache`
        is given: then the output's `past_key_values` go on from here, and closing them is up to the caller.

        Padding may be on either side; hidden states behind padding are zeros. Hidden states that can be had
        (`output_hidden_states`) are those before the first and behind the last block.
        """
        self._refuse_what_is_remote(kwargs)
        some = labels is None and isinstance(logits_to_keep, int) and not kwargs.get("output_hidden_states")
        told = self._tell_backbone(
            input_ids=input_ids,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            keep=int(logits_to_keep) if some else 0,
        )
        output: CausalLMOutputWithPast = super().forward(labels=labels, logits_to_keep=logits_to_keep, **told, **kwargs)
        return output

    @torch.no_grad()
    def packed_logits(self, tokens: Tensor, positions: Tensor, through: Callable[[Tensor], Tensor]) -> Tensor:
        """Logits [w, vocab] in fp32 on the CPU for any number of sequences, one after another in `tokens` [n] at
        `positions` [n]. `through` stands for the blocks: from embedded tokens [n, hidden] to those states [w, hidden]
        that come out where logits are wanted. Safe to use from many threads."""
        self._connected()
        output = super().forward(
            input_ids=tokens[None].to(self.device),
            position_ids=positions[None].to(self.device),
            use_cache=False,
            remote=_Packed(through),
        )
        logits: Tensor = output.logits[0].to("cpu", torch.float32)
        return logits

    @property
    def max_positions(self) -> int:
        """The longest row, in tokens."""
        assert self._max_positions is not None
        return self._max_positions

    @torch.no_grad()
    def embed(self, tokens: Tensor, start: int) -> Tensor:
        """What the first block is handed for `tokens` [n] at positions from `start` on: [n, hidden] on the CPU."""
        peek = Peek()
        positions = torch.arange(start, start + len(tokens))
        self.base_model(
            input_ids=tokens[None].to(self.device),
            position_ids=positions[None].to(self.device),
            use_cache=False,
            remote=peek,
        )
        if peek.hidden is None:
            raise ModelError(f"{type(self).__name__} does not call its blocks, so it can't be run in a swarm")
        return peek.hidden[0].to("cpu")

    # --- generate ---

    def new_cache(self, max_tokens: int = 0, *, adapters: Mapping[int, PackedAdapter] | None = None) -> SwarmCache:
        """Empty `past_key_values` for a chat of several calls; `max_tokens` over all rows is what peers are asked to
        keep room for. With `adapters`, by block, all of it is computed with them, in a model that PEFT has changed
        nothing of. Use it as a context manager, or close it."""
        with self._lock:
            cache = SwarmCache(
                self._connected(),
                self.embed,
                max_positions=self._max_positions,
                lease_tokens=max_tokens,
                adapters=adapters,
            )
            self._caches.add(cache)
        return cache

    def generate(  # type: ignore[override]
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        draft: Drafts | None = None,
        **kwargs: Any,
    ) -> Any:
        """The library's `generate`. Peers forget everything afterwards, unless `past_key_values` are handed in.

        With a `draft` the next tokens are guessed, and peers check as many of the guesses in one trip as pay on this
        chain; what comes out stays the same. It is "ngram", for what the sequence repeats, or a small model of the
        same tokenizer on this machine, or a `clients.drafts.Drafter`. For one sequence at a time.
        """
        self._connected()
        settings = (kwargs, vars(generation_config or self.generation_config))
        adapters, given = blocks_of(self).adapters(), kwargs.get("past_key_values")
        if given is None and self.training and adapters.drops:
            kwargs = {**kwargs, "use_cache": False}  # what is kept on peers drops nothing
        elif given is None and not any(of.get("use_cache") is False for of in settings):
            with self.new_cache() as cache, cache.adapted(**self._adapting(adapters)):
                return self._generate(inputs, generation_config, draft, {**kwargs, "past_key_values": cache})
        with given.adapted(**self._adapting(adapters)) if isinstance(given, SwarmCache) else nullcontext():
            return self._generate(inputs, generation_config, draft, kwargs)

    def _generate(
        self, inputs: Tensor | None, config: GenerationConfig | None, draft: Drafts | None, options: dict[str, Any]
    ) -> Any:
        if draft is not None:
            options = {**options, "assistant_model": self._assistant(draft, options)}
        return super().generate(inputs, generation_config=config, **options)  # type: ignore[misc]

    def _assistant(self, draft: Drafts, options: dict[str, Any]) -> Assistant:
        """What a draft is to the library. What it learns stays with the cache."""
        for other in ("assistant_model", "prompt_lookup_num_tokens"):
            if options.get(other) is not None:
                raise UsageError(f"draft and {other} are two ways to draft: leave one of them out")
        cache = self._own(options.get("past_key_values"))
        if cache is None:
            raise UsageError("drafts need a cache: leave use_cache=False out")
        cache.speculation = Speculation.of(draft, cache.speculation)
        return Assistant(cache.speculation, self.config)

    async def stream(
        self, input_ids: Tensor, generation_config: GenerationConfig | None = None, **kwargs: Any
    ) -> AsyncGenerator[int, None]:
        """The new tokens of one sequence, `input_ids` [1, n] or [n], as they come; for servers.

        Closing or cancelling the generator stops the generation, also in the middle of a step, and frees what peers
        held for it. A reader that falls behind makes the generation wait. Options are those of `generate`.
        """
        prompt = input_ids[None] if input_ids.dim() == 1 else input_ids
        given = self._own(kwargs.pop("past_key_values", None))
        criteria = kwargs.pop("stopping_criteria", ())
        cache = given if given is not None else self.new_cache()

        def generate(streamer: BaseStreamer, stop: StoppingCriteriaList) -> None:
            options = {**kwargs, "past_key_values": cache, "streamer": streamer, "stopping_criteria": stop}
            with cache.interruptible() if given is not None else cache:
                self.generate(prompt, generation_config, **options)

        stream = TokenStream(generate, interrupt=cache.interrupt, stopping_criteria=criteria)
        try:
            while (token := await stream.next()) is not None:
                yield token
        finally:
            await stream.stop()

    def _validate_generated_length(
        self, generation_config: GenerationConfig, input_ids_length: int, has_default_max_length: bool
    ) -> None:
        new = max(1, (generation_config.max_length or 0) - input_ids_length)
        if self._max_positions is not None and input_ids_length + new > self._max_positions:
            raise UsageError(
                f"{input_ids_length} tokens of prompt and up to {new} new ones are more than this model's context of "
                f"{self._max_positions}: shorten the prompt or lower max_new_tokens"
            )
        super()._validate_generated_length(generation_config, input_ids_length, has_default_max_length)  # type: ignore[misc]

    def _prepare_cache_for_generation(  # type: ignore[override]
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        generation_mode: object,
        batch_size: int,
        max_cache_length: int,
    ) -> None:
        """Size the cache: equal prompts are kept once, new tokens for every row."""
        if generation_config.cache_implementation is not None:
            raise UsageError("a swarm keeps its own cache: leave cache_implementation out")
        cache = self._own(model_kwargs.get("past_key_values"))
        if cache is None:
            return
        rows = batch_size * max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1)
        positions = model_kwargs.get("position_ids")
        prompt = 0 if positions is None else int(positions.shape[-1])
        cache.reserve(batch_size * prompt + rows * (max_cache_length - prompt))

    def activation_checkpointing_enable(self, *_: Any, **__: Any) -> None:
        """Nothing to do: all that is kept here is what enters each hop, and peers decide by their memory what they keep
        and what they compute again."""

    gradient_checkpointing_enable = activation_checkpointing_enable  # its name before

    def training_costs(self) -> list[Cost]:
        """What peers have computed so far for the training of this model."""
        connection = self._connected()
        return list(connection.submit(connection.training()).result().costs.values())

    def training_hops(self) -> int:
        """Of the chain that a batch would take now. Raises MissingBlocks."""
        connection = self._connected()

        async def planned() -> int:
            return len((await connection.training()).plan())

        return connection.submit(planned()).result()

    # --- ending ---

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Leave the swarm; safe to repeat. Whatever still runs in other threads ends with an error."""
        with self._lock:
            self._closed = True
            self._connection = None
            caches = list(self._caches)
        for cache in caches:
            cache.close()
        self._on_close.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- what differs from a model that has all its weights ---

    def save_pretrained(self, *_: Any, **__: Any) -> NoReturn:
        raise UsageError(
            f"the blocks' weights are not on this machine, so there is nothing to save; see {self.name_or_path}"
        )

    def push_to_hub(self, *_: Any, **__: Any) -> NoReturn:  # type: ignore[override]
        self.save_pretrained()

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of what is in memory, a packed copy of the head included: `numel` would count the blocks too, which are
        elsewhere."""
        tensors = [*self.parameters(), *(self.buffers() if return_buffers else ())]
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
        copies = [module.copy_bytes for module in self.modules() if isinstance(module, Head)]
        return sum([*storages.values(), *copies])

    # --- inside ---

    @property
    def connection(self) -> Opener:
        """The model's way into the swarm. Raises UsageError when it is closed."""
        return self._connected()

    def _connected(self) -> Opener:
        """Raises UsageError where there is none."""
        if self._connection is None:
            raise UsageError(
                "this model is closed" if self._closed else "use SwarmModelForCausalLM.from_pretrained to make a model"
            )
        return self._connection

    def _own(self, cache: Cache | None) -> SwarmCache | None:
        if cache is None or isinstance(cache, SwarmCache):
            return cache
        raise UsageError(f"past_key_values of a swarm's model come from model.new_cache(), not {type(cache).__name__}")

    def _tell_backbone(
        self,
        *,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        past_key_values: Cache | None,
        use_cache: bool | None,
        keep: int = 0,
    ) -> dict[str, Any]:
        """The same arguments as the library's code takes them, with what to do for the blocks; `keep`: how many of the
        last columns are wanted, 0 for all. Raises UsageError."""
        inputs = input_ids if input_ids is not None else inputs_embeds
        if inputs is None:
            raise UsageError("forward takes input_ids or inputs_embeds")
        batch, columns = inputs.shape[:2]
        prefix = Prefix.of(past_key_values)
        if prefix is not None:
            past_key_values, attention_mask = None, prefix.mask(attention_mask, columns)
        given = self._own(past_key_values)
        cache = given if given is not None else self.new_cache(batch * columns)
        mask, positions = cache.next_columns(attention_mask, batch, columns)
        if prefix is None:
            _check_positions(position_ids, positions, mask)
        else:
            positions = positions + prefix.length
        goes_on = given is not None or bool(use_cache)
        return {
            "input_ids": input_ids,
            "inputs_embeds": inputs_embeds,
            "position_ids": positions.to(inputs.device),
            "past_key_values": cache if goes_on else None,
            "use_cache": goes_on,
            "remote": _Step(cache, input_ids, mask, min(keep or columns, columns), self, goes_on, prefix),
        }

    def _refuse_what_is_remote(self, kwargs: dict[str, Any]) -> None:
        self._connected()
        for name in ("output_attentions", "output_router_logits"):
            if kwargs.pop(name, None):
                raise UsageError(f"{name} is not possible: that stays with the peers which compute the blocks")

    def _check_family(self) -> None:
        """Learn what the library's code gives to the blocks. Raises ModelError when it does not fit a swarm."""
        tokens = torch.arange(2)
        hidden = self.embed(tokens, 0)
        if hidden.shape != (2, self.config.hidden_size):
            raise ModelError(f"{type(self).__name__} hands its blocks {list(hidden.shape)}; it can't be run in a swarm")
        self.embeds_plainly = torch.equal(hidden, self.get_input_embeddings()(tokens.to(self.device)).to("cpu"))


@dataclass(frozen=True, slots=True)
class _Step(Remote):
    """Run the next columns of `cache`; only the last `keep` come back."""

    cache: SwarmCache
    tokens: Tensor | None
    mask: Tensor | None
    keep: int
    model: SwarmModelForCausalLM
    goes_on: bool  # whether the cache is wanted afterwards
    prefix: Prefix | None

    @property
    def settled(self) -> bool:
        return self.cache.settled

    def through(self, hidden: Tensor) -> Tensor:
        if not self.cache.settled:
            self.cache.adapt(**self.model._adapting(NO_ADAPTERS))
        with nullcontext() if self.goes_on else self.cache:
            return self.cache.advance(hidden, self.tokens, self.mask, self.keep)

    def differentiate(self, hidden: Tensor, adapters: Adapters) -> Tensor:
        learns = torch.is_grad_enabled() and (hidden.requires_grad or adapters.learn)
        if self.goes_on and (learns or self.prefix is not None or (self.model.training and adapters.drops)):
            raise UsageError(
                "peers keep nothing of a pass with gradients, dropout or a prefix: leave past_key_values out and give "
                "use_cache=False, or call it under torch.no_grad() after eval()"
            )
        if self.goes_on:
            self.cache.adapt(**self.model._adapting(adapters))
            return self.cache.advance(hidden, self.tokens, self.mask, self.keep)
        if self.model.hosted_adapter is not None:
            raise UsageError(
                f"gradients and prefixes don't go through {self.model.hosted_adapter}, which peers host: call it under "
                "torch.no_grad(), or load the adapter here with PEFT"
            )
        output = differentiate(
            self.model._connected(),
            hidden,
            self.mask,
            adapters if self.prefix is None else self.prefix.joined(adapters),
            training=self.model.training,
            max_positions=self.model._max_positions,
        )
        return output[:, output.shape[1] - self.keep :]


@dataclass(frozen=True, slots=True)
class _Packed(Remote):
    """One row of columns that belong to many sequences."""

    do: Callable[[Tensor], Tensor]

    @property
    def settled(self) -> bool:
        return True  # whoever made `do` knows with which adapters

    def through(self, hidden: Tensor) -> Tensor:
        return self.do(hidden[0].to("cpu"))[None].to(hidden.device)


def _as_backbone(
    owner: "weakref.ref[SwarmModelForCausalLM]", backbone: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Before the library's model without its head runs: where it was called by itself, as trainers with a loss of their
    own do, it is told what to do for its blocks. Raises UsageError."""
    model = owner()
    if model is None or kwargs.get("remote") is not None:
        return None
    given = {**dict(zip(inspect.signature(backbone.forward).parameters, args, strict=False)), **kwargs}
    model._refuse_what_is_remote(given)
    told = model._tell_backbone(**{name: given.pop(name, None) for name in _COLUMNS})
    return (), {**given, **told}


NO_ADAPTERS = Adapters({})
_COLUMNS = ("input_ids", "inputs_embeds", "attention_mask", "position_ids", "past_key_values", "use_cache")


def _check_positions(given: Tensor | None, positions: Tensor, mask: Tensor | None) -> None:
    if given is None:
        return
    expected = given.to("cpu").expand_as(positions)
    same = expected == positions if mask is None else (expected == positions)[mask]
    if bool(same.all()):
        return
    if mask is None and bool((expected[:, 1:] == 0).any()):
        raise UsageError(
            "position_ids begin again within a row, as where several texts are packed into one: peers take one text a "
            "row, so give packing=False and padding_free=False"
        )
    raise UsageError("position_ids must count each row's real tokens from 0: leave them out, or pass an attention_mask")
