"""Muon for the matrices inside the layers, AdamW for everything else, one learning rate for both.

Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; the update's scale is that of
Liu et al. 2025, "Muon is scalable for LLM training", section 2.2, which lets both share a rate.
"""

from collections import defaultdict

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_NUM_ITERATIONS = 5
_MOMENTUM = 0.95
_BETAS = (0.9, 0.98)


def orthogonalize(x: Tensor) -> Tensor:
    """Push the singular values of each matrix of (n, rows, columns) towards 1, in bf16 on the GPU."""
    is_tall = x.shape[1] > x.shape[2]
    x = x.mT if is_tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    x = x.bfloat16() if x.is_cuda else x
    a, b, c = _COEFFICIENTS
    for _ in range(_NUM_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if is_tall else x


class Optimizer:
    """Steps over a model's parameters; its whole state is named tensors."""

    def __init__(self, model: nn.Module, weight_decay: float = 0.05) -> None:
        """Sort the parameters. Fused projections count as the matrices they are made of."""
        self.weight_decay = weight_decay
        self.matrices: dict[str, tuple[nn.Parameter, int]] = {}
        others: dict[str, nn.Parameter] = {}
        for name, parameter in model.named_parameters():
            is_inner = "layers." in name or "projector.mlp" in name
            if is_inner and parameter.dim() == 2:
                num_pieces = 2 if "gate_up" in name else 3 if "tower" in name and "qkv" in name else 1
                self.matrices[name] = (parameter, num_pieces)
            else:
                others[name] = parameter
        self.momenta = {name: torch.zeros_like(parameter) for name, (parameter, _) in self.matrices.items()}
        self.other_names = list(others)
        is_cuda = next(model.parameters()).is_cuda
        self.adam = torch.optim.AdamW(others.values(), betas=_BETAS, weight_decay=0.0, fused=is_cuda)

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Apply the gradients, which must exist for every parameter that took part, and forget them."""
        by_shape: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for name, (parameter, num_pieces) in self.matrices.items():
            if parameter.grad is None:
                continue
            momentum = self.momenta[name].lerp_(parameter.grad, 1 - _MOMENTUM)
            update = parameter.grad.lerp(momentum, _MOMENTUM)
            for piece, part in zip(parameter.chunk(num_pieces), update.chunk(num_pieces), strict=True):
                by_shape[tuple(part.shape)].append((piece, part))
        for shape, pairs in by_shape.items():
            updates = orthogonalize(torch.stack([part for _, part in pairs]))
            pieces = [piece for piece, _ in pairs]
            torch._foreach_mul_(pieces, 1 - rate * self.weight_decay)
            scale = -rate * 0.2 * max(shape) ** 0.5
            torch._foreach_add_(pieces, list((updates * scale).to(pieces[0].dtype).unbind()))
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.adam.step()
        for parameter, _ in self.matrices.values():
            parameter.grad = None
        self.adam.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """Every tensor that the next step depends on."""
        tensors = {f"momentum.{name}": tensor for name, tensor in self.momenta.items()}
        for name, parameter in zip(self.other_names, self.adam.param_groups[0]["params"], strict=True):
            for key, value in self.adam.state.get(parameter, {}).items():
                tensors[f"adam.{key}.{name}"] = value
        return tensors

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Go on from `state()`."""
        for name, momentum in self.momenta.items():
            momentum.copy_(tensors[f"momentum.{name}"])
        parameters = self.adam.param_groups[0]["params"]
        for name, parameter in zip(self.other_names, parameters, strict=True):
            keys = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"adam.{key}.{name}" in tensors]
            state = {key: tensors[f"adam.{key}.{name}"].clone() for key in keys}
            if state:
                self.adam.state[parameter] = {
                    key: value if key == "step" and not parameter.is_cuda else value.to(parameter.device)
                    for key, value in state.items()
                }
