"""The private optimizer: Opacus' DP-SGD step on clipped sums, with the noise of a secret stream."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from opacus.accountants import RDPAccountant
from opacus.optimizers import DPOptimizer
from torch import Tensor

from privshard.core.errors import BudgetError, InputError, VerificationError
from privshard.core.privacy import GaussianEvent, MechanismPlan
from privshard.privacy.accounting import merged
from privshard.privacy.grid import release_on_grid
from privshard.privacy.mean import noisy_mean
from privshard.privacy.stream import ChaChaStream, add_normal_to_each


class PrivateOptimizer(DPOptimizer):
    """Opacus' `DPOptimizer` that is handed sum_u clip(g_u, C) instead of per-example gradients, built from a plan.

    One `release` is one step of the mechanism:

        grad = (sum_u clip(g_u, C) + N(0, (z C)^2)) / L,    then a step of the wrapped torch optimizer

    z, C, L and the number of steps are the plan's. Noise is drawn from `stream` in float64, parameter by parameter in
    sorted order of their names, and added before rounding to the parameter's type; with the plan's hardening "grid" it
    is drawn exactly, on a grid (`privshard.privacy.grid`). An accountant hook records every
    release: `events` is what ran, and `check_complete` compares it with what the plan was accounted for.

    Guaranteed: what runs is what the plan says, never more than its steps, each with its noise. Assumed of the caller:
    Poisson sampling at plan.sample_rate, and sums of which every unit's part has at most norm C
    (`privshard.privacy.clipping`). With noise 0 the same path adds nothing, and clipping is the caller's choice.

    optimizer: a torch optimizer of exactly `named_parameters`. stream: secret and used for nothing else.
    Compared with Opacus' own optimizer on per-example gradients in tests/privacy/test_optimizer.py.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        named_parameters: Mapping[str, torch.nn.Parameter],
        plan: MechanismPlan,
        stream: ChaChaStream,
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=plan.noise_multiplier,
            max_grad_norm=plan.max_grad_norm,
            expected_batch_size=plan.expected_units,  # pyright: ignore[reportArgumentType]  (used as a divisor only)
            loss_reduction="mean",
        )
        self.plan = plan
        self._named = {name: named_parameters[name] for name in sorted(named_parameters)}
        self._stream = stream
        self._accountant = RDPAccountant()
        self._means = 0
        self._steps = 0
        self.attach_step_hook(self._accountant.get_optimizer_hook_fn(plan.sample_rate))
        if {id(p) for p in self.params} != {id(p) for p in self._named.values()}:
            raise InputError(
                f"named_parameters: expected the {len(self.params)} parameters that the optimizer steps, "
                f"got {len(self._named)} others: {', '.join(self._named)}."
            )

    @property
    def events(self) -> tuple[GaussianEvent, ...]:
        """What has been released so far, as the accountant recorded it."""
        return tuple(GaussianEvent(noise, rate, steps) for noise, rate, steps in self._accountant.history)

    @property
    def accumulated_iterations(self) -> int:
        """One: a release is a whole Poisson batch, however many pieces it was summed in."""
        return 1

    def release(self, sums: Mapping[str, Tensor] | None) -> None:
        """One noisy step on the clipped `sums`, name -> tensor of the parameter's shape; None is an empty batch.

        Where the plan is private, an entry that is not finite counts as 0, because an abort would tell about the data.
        BudgetError after the plan's last step; InputError for other names or shapes than the parameters'.
        """
        self._check_plan()
        self._check_sums(sums)
        for name, parameter in self._named.items():
            total = torch.zeros_like(parameter) if sums is None else sums[name]
            parameter.summed_grad = total  # pyright: ignore[reportAttributeAccessIssue]
        self.add_noise()
        self.scale_grad()
        assert self.step_hook is not None
        self.step_hook(self)
        self._steps += 1
        self.original_optimizer.step()
        self.zero_grad(set_to_none=True)

    def release_mean(self, vector_UD: Tensor, *, radius: float) -> Tensor:
        """The noisy mean of the units' vectors, float64 on the CPU: the plan's one `mean_releases`.

        Each row is clipped to `radius` and joined with a constant, so sum and count are one Gaussian release of
        sensitivity sqrt(radius^2 + (radius / 4)^2); see `privshard.privacy.mean`.
        """
        if self.plan.mean_releases <= self._means:
            raise BudgetError(
                f"The plan has {self.plan.mean_releases} release(s) of a mean and all were taken.",
                remedy="Plan one before training starts.",
            )
        self._means += 1
        self._accountant.step(noise_multiplier=self.plan.noise_multiplier, sample_rate=1.0)
        return noisy_mean(
            vector_UD,
            radius=radius,
            noise_multiplier=self.plan.noise_multiplier,
            stream=self._stream,
            hardening=self.plan.hardening,
        )

    def add_noise(self) -> None:
        """Put summed gradient plus noise into every parameter's gradient, added in float64 or on a grid."""
        if self.plan.hardening == "grid" and self.plan.private:
            self._add_noise_on_grid()
            return
        std = self.plan.noise_multiplier * self.plan.max_grad_norm
        parameters = list(self._named.values())
        sums = [p.summed_grad.detach().to(p) for p in parameters]  # pyright: ignore[reportAttributeAccessIssue]
        if std > 0 and parameters[0].is_cuda:  # a launch a parameter would take longer than the noise itself
            noisy = add_normal_to_each(sums, std=std, stream=self._stream)
        else:
            noisy = [self._stream.add_normal(total, std=std) if std > 0 else total.clone() for total in sums]
        for parameter, total in zip(parameters, noisy, strict=True):
            parameter.grad = total

    def scale_grad(self) -> None:
        """Divide every gradient by the plan's expected number of units."""
        gradients = [p.grad for p in self._named.values() if p.grad is not None]
        torch._foreach_div_(gradients, self.plan.expected_units)

    def _add_noise_on_grid(self) -> None:
        """All parameters as one vector, in sorted order of their names: one grid, one release."""
        parameters = list(self._named.values())
        sums = [parameter.summed_grad for parameter in parameters]  # pyright: ignore[reportAttributeAccessIssue]
        flat = torch.cat([total.detach().double().cpu().flatten() for total in sums])
        noisy = release_on_grid(
            torch.nan_to_num(flat, nan=0.0, posinf=0.0, neginf=0.0),
            sensitivity=self.plan.max_grad_norm,
            noise_multiplier=self.plan.noise_multiplier,
            stream=self._stream,
        )
        for parameter, part in zip(parameters, noisy.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter).to(parameter)

    def step(self, closure: object = None) -> None:
        """Refused: a step without handed-in sums has no bound on what a unit contributes."""
        raise InputError("PrivateOptimizer.step: expected clipped sums.", remedy="Call release(sums) instead.")

    def check_complete(self) -> None:
        """VerificationError unless what ran is exactly what the plan was accounted for."""
        if merged(self.events) != merged(self.plan.events):
            raise VerificationError(
                f"The training released {self.events}, but its plan was accounted as {self.plan.events}.",
                remedy="Treat the attempt as spent and do not use its component.",
            )

    def _check_plan(self) -> None:
        settings = (self.noise_multiplier, self.max_grad_norm, self.expected_batch_size)
        planned = (self.plan.noise_multiplier, self.plan.max_grad_norm, self.plan.expected_units)
        if settings != planned:
            raise VerificationError(
                f"Noise, clipping norm and normaliser are {settings}, but the plan says {planned}.",
                remedy="Make another plan: an optimizer can't change the one it was built from.",
            )
        if self._steps >= self.plan.steps:
            raise BudgetError(
                f"The plan has {self.plan.steps} step(s) and all were taken.",
                remedy="Plan more steps before training starts.",
            )

    def _check_sums(self, sums: Mapping[str, Tensor] | None) -> None:
        wanted = {name: tuple(parameter.shape) for name, parameter in self._named.items()}
        given = wanted if sums is None else {name: tuple(tensor.shape) for name, tensor in sums.items()}
        if given != wanted:
            names = sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))
            shown = "; ".join(
                f"{name}: {wanted.get(name, 'none')}, got {given.get(name, 'none')}" for name in names[:3]
            )
            raise InputError(f"clipped sums: expected {shown}.")
