"""Plain stacks of ``Linear`` with ``ReLU`` or ``Tanh``, without autograd.

A layer is one batched product, whose result lies in a buffer that the next step uses again: memory
that is new to the process costs more than the arithmetic done in it. Activations are kept as
``(slots, units, rows)``. With the many rows adjacent, and not the few units, products of 5x5
weights are six times as fast. Members are taken as many at a time as have their activations in the
cache.

Where the time goes: the network 2-5-5-1 with 256 rows and 1,024 members takes 7 us per member and
step, a ninth of it for the forward pass, a third each for the loss with its gradient (by autograd)
and for the backward pass, the rest for shuffling and taking the rows. Compiled, it takes less than
3 us: 0.8 for shuffling, at 3 ns per number of ``torch.randperm``, the rest for one program that
takes the rows, goes forward and backward, and of which the loss is a third. A loop that keeps
everything in registers needs 1.6 us without shuffling; that is the floor. On 64-128-128-10 with 64
rows and 32 members, more than half of 136 us are products at the speed of the matrix routine,
which is the floor there; the loss takes a ninth, Adam less.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
import math

import torch
from torch import nn
from torch import Tensor
from torch.func import vmap

from optuna_ext.fused._engines import Engine
from optuna_ext.fused._engines import Program
from optuna_ext.fused._feed import Batch
from optuna_ext.fused._feed import take
from optuna_ext.fused._losses import mean_loss
from optuna_ext.fused._rewritten import Rewritten
from optuna_ext.fused._signature import stack_of
from optuna_ext.fused._unrolled import compiled
from optuna_ext.fused._unrolled import Dense
from optuna_ext.fused._unrolled import Step


_CHUNK = 2**18  # elements of the widest layer's activations, which then stay in the cache

_UNROLLED = 128  # multiplications per row up to which a step is compiled, in up to 20 s

_FEW = 8  # features up to which products are faster with rows taken feature by feature


class StackEngine(Engine):
    """Forward and backward of a stack by batched products into buffers."""

    name = "stack"

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        layers = stack_of(program.model)
        if layers is None:
            raise ValueError(
                "engine must not be 'stack', because the model is no Sequential of Linear with "
                "ReLU or Tanh."
            )
        names = {id(parameter): name for name, parameter in program.model.named_parameters()}
        self._dense = [layer for layer in layers if isinstance(layer, nn.Linear)]
        self._relu = [type(layer) is nn.ReLU for layer in layers[1::2]]
        self._names = [
            (names[id(layer.weight)], None if layer.bias is None else names[id(layer.bias)])
            for layer in self._dense
        ]
        self._compiled: Step | None = None
        work = sum(layer.in_features * layer.out_features for layer in self._dense)
        if program.compile and work <= _UNROLLED and not program.weights.has_frozen:
            self._compiled = compiled(self._spelled_out(), program.loss)
        self._found = torch.zeros_like(program.weights.flat)
        self._chunks: dict[int, list[_Chunk]] = {}
        self._buffers: dict[tuple[object, ...], Tensor] = {}
        self._inputs: tuple[Tensor, Tensor] | None = None

    def _spelled_out(self) -> tuple[Dense, ...]:
        columns = self._program.weights.columns
        return tuple(
            Dense(
                weight=columns[weight].start,
                bias=None if bias is None else columns[bias].start,
                inputs=layer.in_features,
                outputs=layer.out_features,
                relu=self._activation(index),
            )
            for index, (layer, (weight, bias)) in enumerate(
                zip(self._dense, self._names, strict=True)
            )
        )

    def _activation(self, index: int) -> bool | None:
        return self._relu[index] if index < len(self._relu) else None

    @property
    def is_compiled(self) -> bool:
        """Whether its steps are compiled."""
        return self._compiled is not None

    @torch.no_grad()
    def gradients(self, batch: Batch) -> tuple[Tensor, Tensor]:
        p = self._program
        # The compiler takes sizes of one for constants, and would start anew.
        if self._compiled is not None and min(len(p.models), batch.n_rows) > 1:
            inputs = self._by_feature(batch.inputs)
            return self._compiled(
                p.weights.flat, inputs, batch.targets, batch.rows, batch.live, p.hyper
            )
        losses = p.weights.flat.new_empty(len(p.models))
        for chunk in self._chunks_of(batch.n_rows):
            x, y = self._taken(batch, chunk.some)
            live = None if batch.live is None else batch.live[chunk.some]
            outputs = chunk.forward(x)
            losses[chunk.some], upstream = self._loss(chunk, outputs, y, live, batch.shared)
            chunk.backward(x, upstream)
        return losses, self._found[:, : p.weights.frozen.start]

    @torch.enable_grad()
    def _loss(
        self, chunk: _Chunk, outputs: Tensor, y: Tensor, live: Tensor | None, shared: bool
    ) -> tuple[Tensor, Tensor]:
        """The losses, and the gradient of the outputs."""
        outputs = outputs.mT.detach().requires_grad_()
        hyper = {name: values[chunk.some] for name, values in self._program.hyper.items()}
        dims = (0, None if shared else 0, None if live is None else 0, 0)
        with Rewritten():
            losses = vmap(partial(mean_loss, self._program.loss), in_dims=dims)(
                outputs, y, live, hyper
            )
        (gradient,) = torch.autograd.grad(losses.sum(), outputs)
        return losses.detach(), gradient.mT

    @torch.no_grad()
    def outputs(self, x: Tensor) -> Tensor:
        chunks = self._chunks_of(len(x))
        return torch.cat([chunk.forward(x.mT).mT.clone() for chunk in chunks])

    def _taken(self, batch: Batch, some: slice) -> tuple[Tensor, Tensor]:
        """Take ``(slots, features, rows)``, or ``(features, rows)`` if shared; and the targets."""
        if batch.shared:
            return batch.x.mT, batch.y
        rows = batch.rows[some]  # type: ignore[index]
        if batch.inputs.shape[1] > _FEW:
            x = take(batch.inputs, rows).mT
        else:
            x = take(self._by_feature(batch.inputs), rows, 1).transpose(0, 1)
        return x, take(batch.targets, rows)

    def _by_feature(self, inputs: Tensor) -> Tensor:
        """The inputs ``(features, n)``, made once for the many steps of an epoch."""
        if self._inputs is None or self._inputs[0] is not inputs:
            self._inputs = inputs, inputs.mT.contiguous()
        return self._inputs[1]

    def _chunks_of(self, rows: int) -> list[_Chunk]:
        if rows not in self._chunks:
            slots = len(self._program.models)
            size = members_at_once(self._program.model, rows=rows, slots=slots)
            self._chunks[rows] = [
                self._chunk(slice(begin, min(begin + size, slots)), rows, size)
                for begin in range(0, slots, size)
            ]
        return self._chunks[rows]

    def _chunk(self, some: slice, rows: int, size: int) -> _Chunk:
        views = self._program.weights.views(self._program.weights.flat[some])
        gradients = self._program.weights.views(self._found[some])
        slots = some.stop - some.start

        def buffer(name: str, index: int, *shape: int) -> Tensor:  # which all chunks share
            key = name, index, size, *shape
            if key not in self._buffers:
                self._buffers[key] = self._found.new_empty((size, *shape))
            return self._buffers[key][:slots]

        layers = []
        for index, (weight, bias) in enumerate(self._names):
            inputs, outputs = self._dense[index].in_features, self._dense[index].out_features
            layers.append(
                _Layer(
                    weight=views[weight],
                    bias=None if bias is None else views[bias][..., None],
                    weight_gradient=gradients[weight],
                    bias_gradient=None if bias is None else gradients[bias][..., None],
                    outputs=buffer("outputs", index, outputs, rows),
                    downstream=buffer("downstream", index, inputs, rows) if index else None,
                    product=buffer("product", index, outputs, inputs),
                    relu=self._activation(index),
                )
            )
        return _Chunk(some=some, layers=layers)


def members_at_once(model: nn.Module, *, rows: int, slots: int) -> int:
    """Return how many members of a stack have their activations in the cache together."""
    widest = max(layer.out_features for layer in model.modules() if isinstance(layer, nn.Linear))
    size = max(16, _CHUNK // (widest * rows))
    return math.ceil(slots / math.ceil(slots / size))  # all about the same


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """A dense layer of some members.

    Its inputs are ``(slots, inputs, rows)``, or ``(inputs, rows)`` if all members share them.

    Args:
        weight:
            ``(slots, outputs, inputs)``.
        bias:
            ``(slots, outputs, 1)``.
        weight_gradient:
            Where to put the gradient.
        bias_gradient:
            Likewise.
        outputs:
            Where to put the outputs ``(slots, outputs, rows)``.
        downstream:
            Where to put the gradient of the inputs, if it is needed.
        product:
            Scratch of the shape of the weight, without gaps.
        relu:
            Whether the activation is ReLU or tanh; ``None`` if there is none.
    """

    weight: Tensor
    bias: Tensor | None
    weight_gradient: Tensor
    bias_gradient: Tensor | None
    outputs: Tensor
    downstream: Tensor | None
    product: Tensor
    relu: bool | None

    def forward(self, x: Tensor) -> Tensor:
        """Compute the outputs."""
        z = self.outputs
        if x.dim() == 2:
            torch.mm(self.weight.flatten(0, 1), x, out=z.view(-1, x.shape[1]))
            if self.bias is not None:
                z.add_(self.bias)
        elif self.bias is None:
            torch.bmm(self.weight, x, out=z)
        else:
            torch.baddbmm(self.bias, self.weight, x, out=z)
        if self.relu is not None:
            z.relu_() if self.relu else z.tanh_()
        return z

    def backward(self, x: Tensor, upstream: Tensor) -> Tensor | None:
        """Compute the gradients from that of the outputs before the activation."""
        if self.bias_gradient is not None:
            torch.sum(upstream, 2, keepdim=True, out=self.bias_gradient)
        if x.dim() == 2:
            product = self.product.view(-1, len(x))
            torch.mm(upstream.reshape(len(product), -1), x.mT, out=product)
        else:
            torch.bmm(upstream, x.mT, out=self.product)
        self.weight_gradient.copy_(self.product)
        if self.downstream is None:
            return None
        return torch.bmm(self.weight.mT, upstream, out=self.downstream)

    def before_activation(self, upstream: Tensor) -> Tensor:
        """Turn the gradient of the outputs into that before the activation, in its place."""
        if self.relu:
            torch.ops.aten.threshold_backward.grad_input(
                upstream, self.outputs, 0, grad_input=upstream
            )
        else:
            torch.ops.aten.tanh_backward.grad_input(upstream, self.outputs, grad_input=upstream)
        return upstream


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    """Members whose activations fit into the cache together."""

    some: slice
    layers: list[_Layer]

    def forward(self, x: Tensor) -> Tensor:
        """Compute the outputs of the last layer."""
        for layer in self.layers:
            x = layer.forward(x)
        return x

    def backward(self, x: Tensor, upstream: Tensor) -> None:
        """Compute all gradients from that of the outputs."""
        for below, layer in reversed([*zip([None, *self.layers], self.layers, strict=False)]):
            found = layer.backward(x if below is None else below.outputs, upstream)
            if below is not None and found is not None:
                upstream = below.before_activation(found)
