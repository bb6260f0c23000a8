"""Plain stacks of ``Linear`` with ``ReLU`` or ``Tanh``, members side by side in memory.

A product of 5x5 weights and 256 rows is too small for a matrix routine. With the members last,
``(units, rows, slots)``, each weight is a vector over the members, and a layer is a few long
multiply-adds over memory, at the speed of the vector unit.

Where the time goes, on the network 2-5-5-1 with 256 rows and 1,024 members: 40 multiply-adds
forward, 40 products and sums for the gradients of the weights, 30 multiply-adds backward, each a
pass through the cache at about 0.1 ns per row and member. A loop that keeps everything in
registers needs 1.6 us per member and step; that is the floor, which a compiled step comes near to.
"""

from __future__ import annotations

from dataclasses import dataclass
import math

import torch
from torch import nn
from torch import Tensor
from torch.func import vmap

from optuna_ext.fused._engines import Engine
from optuna_ext.fused._engines import Program
from optuna_ext.fused._feed import Batch
from optuna_ext.fused._signature import stack_of
from optuna_ext.fused._unrolled import compiled
from optuna_ext.fused._unrolled import Dense
from optuna_ext.fused._unrolled import Step


_CHUNK = 3 * 2**17  # elements of the widest layer's activations, which then stay in the cache

_UNROLLED = 256  # multiplications per row up to which a step is compiled, in some seconds


class StackEngine(Engine):
    """Forward and backward of a stack by multiply-adds that are vectorized over the members."""

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
        self._found = torch.zeros_like(program.weights.flat)
        self._chunks: dict[tuple[int, bool], list[_Chunk]] = {}
        self._buffers: dict[tuple[object, ...], Tensor] = {}
        self._inputs: tuple[Tensor, Tensor] | None = None
        self._compiled: Step | None = None
        work = sum(layer.in_features * layer.out_features for layer in self._dense)
        if program.compile and work <= _UNROLLED and not program.weights.has_frozen:
            self._compiled = compiled(self._spelled_out(), program.mean_loss)

    def _spelled_out(self) -> list[Dense]:
        columns = self._program.weights.columns
        return [
            Dense(
                weight=columns[weight].start,
                bias=None if bias is None else columns[bias].start,
                inputs=layer.in_features,
                outputs=layer.out_features,
                relu=self._relu[index] if index < len(self._relu) else None,
            )
            for index, (layer, (weight, bias)) in enumerate(
                zip(self._dense, self._names, strict=True)
            )
        ]

    def _compiled_gradients(self, step: Step, batch: Batch) -> tuple[Tensor, Tensor]:
        p = self._program
        if batch.shared:
            x, y = batch.x.T[..., None], batch.y
        else:
            x, y = self._gathered(batch, slice(None), None)
        losses, found = step(p.weights.flat.T, x, y, batch.live, p.hyper)
        return losses, found.T

    @torch.no_grad()
    def gradients(self, batch: Batch) -> tuple[Tensor, Tensor]:
        if self._compiled is not None:
            return self._compiled_gradients(self._compiled, batch)
        p = self._program
        losses = p.weights.flat.new_empty(len(p.models))
        rows = len(batch.inputs) if batch.rows is None else batch.rows.shape[-1]
        shared = batch.x if batch.shared else None
        for chunk in self._chunks_of(rows, shared=batch.shared):
            some = chunk.some
            live = None if batch.live is None else batch.live[some]
            y = batch.y if batch.shared else self._gathered(batch, some, chunk.inputs)[1]
            chunk.forward(shared)
            losses[some] = self._loss(chunk, y, live, shared=batch.shared)
            chunk.backward(shared)
        return losses, self._found[:, : p.weights.frozen.start]

    @torch.enable_grad()
    def _loss(self, chunk: _Chunk, y: Tensor, live: Tensor | None, *, shared: bool) -> Tensor:
        """Put the gradient of the outputs into the chunk; return the losses."""
        outputs = chunk.outputs.permute(2, 1, 0).requires_grad_()
        hyper = {name: values[chunk.some] for name, values in self._program.hyper.items()}
        dims = (0, None if shared else 0, None if live is None else 0, 0)
        losses = vmap(self._program.mean_loss, in_dims=dims)(outputs, y, live, hyper)
        (gradient,) = torch.autograd.grad(losses.sum(), outputs)
        chunk.upstream.copy_(gradient.permute(2, 1, 0))
        return losses.detach()

    @torch.no_grad()
    def outputs(self, x: Tensor) -> Tensor:
        found = []
        for chunk in self._chunks_of(len(x), shared=True):
            chunk.forward(x)
            found.append(chunk.outputs.permute(2, 1, 0).clone())
        return torch.cat(found)

    def _gathered(self, batch: Batch, some: slice, out: Tensor | None) -> tuple[Tensor, Tensor]:
        """Take rows of some members: ``(features, rows, slots)`` and ``(slots, rows, ...)``."""
        rows = batch.rows[some].T.contiguous()  # type: ignore[index]
        inputs = self._transposed(batch.inputs)
        if out is None:
            out = inputs.new_empty((len(inputs), *rows.shape))
        torch.index_select(inputs, 1, rows.flatten(), out=out.view(len(inputs), -1))
        y = batch.targets.index_select(0, rows.flatten())
        return out, y.view(*rows.shape, *y.shape[1:]).transpose(0, 1)

    def _transposed(self, inputs: Tensor) -> Tensor:
        """The inputs ``(features, n)``, made once for the many steps of an epoch."""
        if self._inputs is None or self._inputs[0] is not inputs:
            self._inputs = inputs, inputs.T.contiguous()
        return self._inputs[1]

    def _chunks_of(self, rows: int, *, shared: bool) -> list[_Chunk]:
        if (rows, shared) not in self._chunks:
            slots = len(self._program.models)
            widest = max(layer.out_features for layer in self._dense)
            size = max(16, _CHUNK // (widest * rows))
            size = math.ceil(slots / math.ceil(slots / size))  # all about the same
            self._chunks[rows, shared] = [
                self._chunk(slice(begin, min(begin + size, slots)), rows, shared=shared)
                for begin in range(0, slots, size)
            ]
        return self._chunks[rows, shared]

    def _chunk(self, some: slice, rows: int, *, shared: bool) -> _Chunk:
        views = self._program.weights.views(self._program.weights.flat[some])
        gradients = self._program.weights.views(self._found[some])
        slots = some.stop - some.start

        def buffer(name: object, width: int) -> Tensor:  # chunks of equal size share them
            shape = (width, rows, slots)
            if (name, *shape) not in self._buffers:
                self._buffers[name, *shape] = views[self._names[0][0]].new_empty(shape)
            return self._buffers[name, *shape]

        inputs = None if shared else buffer("inputs", self._dense[0].in_features)
        layers: list[_Layer] = []
        for index, (weight, bias) in enumerate(self._names):
            width = self._dense[index].out_features
            layers.append(
                _Layer(
                    weight=views[weight].permute(1, 2, 0),
                    bias=None if bias is None else views[bias].T[:, None],
                    weight_gradient=gradients[weight].permute(1, 2, 0),
                    bias_gradient=None if bias is None else gradients[bias].T[:, None],
                    inputs=layers[-1].outputs if layers else inputs,
                    outputs=buffer(index, width),
                    upstream=buffer(("upstream", index), width),
                    downstream=layers[-1].upstream if layers else None,
                    product=buffer("product", width),
                    relu=self._relu[index] if index < len(self._relu) else None,
                    relu_below=self._relu[index - 1] if layers else None,
                )
            )
        return _Chunk(some=some, inputs=inputs, layers=layers)


class _Layer:
    """A dense layer of some members, with the views that its operations need.

    Args:
        weight:
            ``(outputs, inputs, slots)``.
        bias:
            ``(outputs, 1, slots)``.
        weight_gradient:
            Where to put the gradient.
        bias_gradient:
            Likewise.
        inputs:
            ``(inputs, rows, slots)``, or ``None`` if they are rows that all members share.
        outputs:
            ``(outputs, rows, slots)``.
        upstream:
            Their gradient, before the activation.
        downstream:
            Where to put the gradient of the inputs, before their activation, if it is needed.
        product:
            Scratch of the shape of the outputs.
        relu:
            Whether the activation is ReLU or tanh; ``None`` if there is none.
        relu_below:
            Likewise, of the layer that gives the inputs.
    """

    def __init__(
        self,
        *,
        weight: Tensor,
        bias: Tensor | None,
        weight_gradient: Tensor,
        bias_gradient: Tensor | None,
        inputs: Tensor | None,
        outputs: Tensor,
        upstream: Tensor,
        downstream: Tensor | None,
        product: Tensor,
        relu: bool | None,
        relu_below: bool | None,
    ) -> None:
        self.outputs = outputs
        self.upstream = upstream
        self._weight, self._bias = weight, bias
        self._weight_gradient, self._bias_gradient = weight_gradient, bias_gradient
        self._inputs, self._downstream = inputs, downstream
        self._product = product
        self._relu, self._relu_below = relu, relu_below
        n_inputs, n_outputs = weight.shape[1], weight.shape[0]
        if inputs is not None:
            self._columns = [(weight[:, i, None], inputs[i]) for i in range(n_inputs)]
            self._sums = [(inputs[i], weight_gradient[:, i]) for i in range(n_inputs)]
        self._rows = [(weight[o, :, None], upstream[o]) for o in range(n_outputs)]

    def forward(self, shared: Tensor | None) -> None:
        """Compute the outputs; ``shared`` are the rows ``(rows, inputs)`` of all members."""
        z = self.outputs
        if self._inputs is None:
            torch.matmul(shared, self._weight, out=z)  # type: ignore[arg-type]
            if self._bias is not None:
                z.add_(self._bias)
        else:
            (weight, h), *rest = self._columns
            if self._bias is None:
                torch.mul(weight, h, out=z)
            else:
                torch.addcmul(self._bias, weight, h, out=z)
            for weight, h in rest:
                z.addcmul_(weight, h)
        if self._relu is not None:
            z.relu_() if self._relu else z.tanh_()

    def backward(self, shared: Tensor | None) -> None:
        """Compute the gradients from that of the outputs."""
        if self._bias_gradient is not None:
            torch.sum(self.upstream, 1, keepdim=True, out=self._bias_gradient)
        if self._inputs is None:
            torch.matmul(shared.T, self.upstream, out=self._weight_gradient)  # type: ignore[union-attr]
            return
        for h, gradient in self._sums:
            torch.sum(torch.mul(self.upstream, h, out=self._product), 1, out=gradient)
        if self._downstream is not None:
            (weight, upstream), *rest = self._rows
            z = torch.mul(weight, upstream, out=self._downstream)
            for weight, upstream in rest:
                z.addcmul_(weight, upstream)
            if self._relu_below:
                torch.ops.aten.threshold_backward.grad_input(z, self._inputs, 0, grad_input=z)
            else:
                torch.ops.aten.tanh_backward.grad_input(z, self._inputs, grad_input=z)


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    """Members whose activations fit into the cache together."""

    some: slice
    inputs: Tensor | None
    layers: list[_Layer]

    @property
    def outputs(self) -> Tensor:
        """``(outputs, rows, slots)``."""
        return self.layers[-1].outputs

    @property
    def upstream(self) -> Tensor:
        """The gradient of the outputs."""
        return self.layers[-1].upstream

    def forward(self, shared: Tensor | None) -> None:
        """Compute the outputs."""
        for layer in self.layers:
            layer.forward(shared)

    def backward(self, shared: Tensor | None) -> None:
        """Compute the gradients."""
        for layer in reversed(self.layers):
            layer.backward(shared)


def work_of(program: Program, batch: Batch) -> int:
    """Count the multiplications per row and member that are vectorized over the members.

    0 if the model is no stack. The first layer is a matrix product if all have the same rows.
    """
    layers = stack_of(program.model) or []
    dense = [layer for layer in layers if isinstance(layer, nn.Linear)]
    return sum(layer.in_features * layer.out_features for layer in dense[batch.shared :])
