"""Plain stacks of ``Linear`` with ``ReLU`` or ``Tanh``, members side by side in memory.

A product of 5x5 weights and 256 rows is too small for a matrix routine. With the members last,
``(units, rows, slots)``, each weight is a vector over the members, and a layer is a few long
multiply-adds over memory, at the speed of the vector unit. Measured on the network 2-5-5-1, 256
rows, 1,024 members, one core: 4.4 us per member and step, against 20 us by vmap and 1.6 us for a
loop written in C++.
"""

from __future__ import annotations

import torch
from torch import nn
from torch import Tensor
from torch.func import vmap

from optuna_ext.fused._engines import Engine
from optuna_ext.fused._engines import Program
from optuna_ext.fused._feed import Batch
from optuna_ext.fused._signature import stack_of


_CHUNK = 2**18  # elements of the widest layer's activations, which then stay in the cache
_Layer = tuple[Tensor, Tensor | None]


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
        self._activations = [type(layer) is nn.ReLU for layer in layers[1::2]]
        names = {id(p): name for name, p in program.model.named_parameters()}
        self._names = [
            (names[id(layer.weight)], None if layer.bias is None else names[id(layer.bias)])
            for layer in layers
            if isinstance(layer, nn.Linear)
        ]
        self._widths = [layer.out_features for layer in layers if isinstance(layer, nn.Linear)]

    def _layers(self, rows: Tensor) -> list[_Layer]:
        """Views ``(outputs, inputs, slots)`` and ``(outputs, 1, slots)`` of a matrix."""
        views = self._program.weights.views(rows)
        return [
            (
                views[weight].permute(1, 2, 0),
                None if bias is None else views[bias].permute(1, 0)[:, None],
            )
            for weight, bias in self._names
        ]

    @torch.no_grad()
    def gradients(self, batch: Batch) -> tuple[Tensor, Tensor]:
        p = self._program
        slots, rows = len(p.models), len(batch.x) if batch.shared else batch.rows.shape[1]
        found = torch.zeros_like(p.weights.flat)
        losses = p.weights.flat.new_empty(slots)
        at_once = max(16, _CHUNK // (max(self._widths) * rows))
        for begin in range(0, slots, at_once):
            some = slice(begin, begin + at_once)
            self._chunk(batch, some, found, losses)
        return losses, found[:, : p.weights.frozen.start]

    def _chunk(self, batch: Batch, some: slice, found: Tensor, losses: Tensor) -> None:
        p = self._program
        if batch.shared:
            x, y, live = batch.x.T[..., None], batch.y, None
        else:
            rows = batch.rows[some].T.contiguous()
            x = batch.inputs.T.index_select(1, rows.flatten()).view(-1, *rows.shape)
            y = batch.targets[rows].transpose(0, 1)
            live = None if batch.live is None else batch.live[some]
        layers = self._layers(p.weights.flat[some])
        activations = self._forward(x, layers)
        outputs = activations.pop().permute(2, 1, 0)
        hyper = {name: values[some] for name, values in p.hyper.items()}
        losses[some], upstream = self._loss(outputs, y, live, hyper, shared=batch.shared)
        self._backward(
            upstream.permute(2, 1, 0).contiguous(), activations, layers, self._layers(found[some])
        )

    @torch.enable_grad()
    def _loss(
        self,
        outputs: Tensor,
        y: Tensor,
        live: Tensor | None,
        hyper: dict[str, Tensor],
        *,
        shared: bool,
    ) -> tuple[Tensor, Tensor]:
        outputs = outputs.detach().requires_grad_()
        dims = (0, None if shared else 0, None if live is None else 0, 0)
        losses = vmap(self._program.mean_loss, in_dims=dims)(outputs, y, live, hyper)
        (upstream,) = torch.autograd.grad(losses.sum(), outputs)
        return losses.detach(), upstream

    def _forward(self, x: Tensor, layers: list[_Layer]) -> list[Tensor]:
        """The inputs of every layer, and the outputs."""
        found = [x]
        for index, (weight, bias) in enumerate(layers):
            z = _product(weight, found[-1], bias)
            if index < len(self._activations):
                z = z.relu_() if self._activations[index] else z.tanh_()
            found.append(z)
        return found

    def _backward(
        self,
        upstream: Tensor,
        inputs: list[Tensor],
        layers: list[_Layer],
        found: list[_Layer],
    ) -> None:
        scratch = torch.empty_like(upstream)
        for index in reversed(range(len(layers))):
            (weight, _), (weight_gradient, bias_gradient) = layers[index], found[index]
            h = inputs[index]
            if bias_gradient is not None:
                torch.sum(upstream, 1, keepdim=True, out=bias_gradient)
            if h.shape[2] == 1:
                torch.matmul(h[..., 0], upstream, out=weight_gradient)
            else:
                for i in range(len(h)):
                    torch.sum(torch.mul(upstream, h[i], out=scratch), 1, out=weight_gradient[:, i])
            if index:
                upstream = _transposed_product(weight, upstream)
                if self._activations[index - 1]:
                    upstream = torch.ops.aten.threshold_backward(upstream, h, 0)
                else:
                    upstream = torch.ops.aten.tanh_backward(upstream, h)
                scratch = h  # no longer needed

    @torch.no_grad()
    def outputs(self, x: Tensor) -> Tensor:
        layers = self._layers(self._program.weights.flat)
        return self._forward(x.T[..., None], layers)[-1].permute(2, 1, 0)


def _product(weight: Tensor, h: Tensor, bias: Tensor | None) -> Tensor:
    """Apply ``(outputs, inputs, slots)`` to ``(inputs, rows, slots)``."""
    if h.shape[2] == 1:  # all members have the same rows: one matrix product per unit
        z = torch.matmul(h[..., 0].T, weight)
        return z if bias is None else z.add_(bias)
    z = (
        weight[:, 0, None] * h[0]
        if bias is None
        else torch.addcmul(bias, weight[:, 0, None], h[0])
    )
    for i in range(1, len(h)):
        z.addcmul_(weight[:, i, None], h[i])
    return z


def _transposed_product(weight: Tensor, upstream: Tensor) -> Tensor:
    """Apply the transpose of ``(outputs, inputs, slots)`` to ``(outputs, rows, slots)``."""
    z = weight[0, :, None] * upstream[0]
    for o in range(1, len(upstream)):
        z.addcmul_(weight[o, :, None], upstream[o])
    return z


def work_of(program: Program, batch: Batch) -> int:
    """Count the multiplications per row and member that are vectorized over the members.

    0 if the model is no stack. The first layer is a matrix product if all have the same rows.
    """
    layers = stack_of(program.model) or []
    dense = [layer for layer in layers if isinstance(layer, nn.Linear)]
    return sum(layer.in_features * layer.out_features for layer in dense[batch.shared :])
