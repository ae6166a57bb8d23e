"""The optimum of a shard: the one displacement that minimizes a strongly convex objective, without noise.

n examples, C classes, P numbers of a displacement, N = n C.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from privshard.core.errors import InputError
from privshard.core.method import Constants, LinearMethod
from privshard.training.convex import ConvexLoss
from privshard.training.head_rows import head_rows
from privshard.training.kernel import kernel, kernel_width
from privshard.training.linear_map import LinearMap
from privshard.training.preconditioner import conjugate_gradients, nystrom

Route = Literal["primal", "dual"]
TOLERANCE = 1e-4
_RANK = 32
_NEWTON_STEPS = 50
_HALVINGS = 30
_EXPECTED_PRODUCTS = 200
_MAX_KERNEL_ROWS = 8192
_MAX_KERNEL_WIDTH = 1 << 16


@dataclass(frozen=True)
class Optimum:
    """A solution: fp32 tensors on the CPU, by which route, how far from stationary, after how many products.

    gradient_norm: of the objective, as the method itself computes it, relative to the one at zero. By strong
    convexity the exact optimum is at most gradient_norm |g(0)| / ridge away.
    """

    tensors: dict[str, Tensor]
    route: Route
    gradient_norm: float
    num_products: int
    train_s: float


def solve(
    method: LinearMethod,
    constants: Constants,
    *,
    labels_n: Tensor,
    ids: Sequence[str],
    loss: str,
    ridge: float,
    tolerance: float = TOLERANCE,
    max_products: int = 2000,
    max_rows: int = 512,
    route: Route | None = None,
    near: bool = False,
    on_product: Callable[[int], None] = lambda done: None,
) -> Optimum:
    """The D that minimizes (1/n) sum_i loss(f0(x_i) + J(x_i) D, y_i) + (ridge / 2) |D|^2.

    Newton's method with backtracking; its linear systems by one of two routes. "primal": conjugate gradients on exact
    products with J and J^T, truncated while far from the optimum, preconditioned by a Nystrom sketch of the first
    Hessian. "dual": D = J^T a, so with the kernel K = J J^T a system of N numbers, (Q K + ridge I) da = -g, solved
    directly. Without `route` the cheaper one is taken, by counting multiplications. The square loss needs one system,
    from which the primal route eliminates the head: its rows are the same for every class.

    Guaranteed: the norm of the gradient, recomputed by the method at the returned displacement, is at most `tolerance`
    of that at zero. The result is a function of the rows as a set: batches are cut in the order of ids, sums are in
    double precision, nothing is drawn (tests/training/test_solver.py: the same bits from permuted rows). Not
    guaranteed: equal bits across routes, devices or `max_rows`.

    constants, labels_n, ids: rows in any order, at least one; ids differ. ridge above 0. near: zero may be close to the
    optimum, as around a core; the gradient is then compared with that of a model whose logits are all zero, if that is
    larger, since no precision makes a gradient small beside one that is.

    InputError where the gradient is not small enough after `max_products` products with J and J^T, or stops to
    shrink: the ridge is too small for the precision of the method.
    """
    started = time.perf_counter()
    if not ridge > 0:
        raise InputError(
            f"training.weight_decay: expected a number above 0 for the exact optimum, got {ridge}.",
            remedy="It is the ridge that makes the optimum unique; 1e-3 to 1e-1 are usual.",
        )
    jacobian = LinearMap(method, constants, ids=ids, max_rows=max_rows, device=labels_n.device)
    problem = _Problem(jacobian, ConvexLoss(loss, labels_n[jacobian.order_n]), ridge, max_products, on_product)
    if near:
        problem.compare_with(torch.zeros_like(problem.base_nC))
    chosen = route or _cheaper(method, jacobian)
    if chosen == "dual":
        matrix = kernel(method, jacobian)
        if matrix is None:
            raise InputError(f"route: expected primal for the method {method.name}, whose gradients have no factors.")
        direction_P = _dual(problem, matrix, tolerance)
    else:
        direction_P = _squares(problem, method, tolerance) if loss == "square" else _primal(problem, tolerance)
    relative = problem.check(direction_P, tolerance)
    tensors = {name: tensor.cpu() for name, tensor in jacobian.tensors(direction_P).items()}
    return Optimum(tensors, chosen, relative, problem.done, time.perf_counter() - started)


class _Problem:
    """The objective of one shard, and the count of what it took so far."""

    def __init__(
        self, jacobian: LinearMap, loss: ConvexLoss, ridge: float, max_products: int, tell: Callable[[int], None]
    ) -> None:
        self.jacobian, self.loss, self.ridge, self.max_products = jacobian, loss, ridge, max_products
        self.done = 0
        self._tell = tell
        self.base_nC = jacobian.base_nC
        self.start = float(self.gradient(self.base_nC, torch.zeros(jacobian.size).to(self.base_nC)).norm())

    def compare_with(self, logits_nC: Tensor) -> None:
        """Measure gradients beside the one at these logits too, without a ridge."""
        self.start = max(
            self.start, float(self.gradient(logits_nC, torch.zeros(self.jacobian.size).to(logits_nC)).norm())
        )

    def count(self, products: int = 1) -> None:
        self.done += products
        self._tell(self.done)

    @property
    def left(self) -> int:
        return max(0, self.max_products - self.done)

    def gradient(self, logits_nC: Tensor, at_P: Tensor) -> Tensor:
        self.count()
        return self.jacobian.transposed(self.loss.slope(logits_nC)) + self.ridge * at_P

    def hessian(self, logits_nC: Tensor) -> Callable[[Tensor], Tensor]:
        """Products with J^T Q J, without the ridge."""

        def product(direction_P: Tensor) -> Tensor:
            self.count(2)
            moved_nC = self.jacobian.times(direction_P)
            return self.jacobian.transposed(self.loss.curvature(logits_nC, moved_nC))

        return product

    def step(self, logits_nC: Tensor, moved_nC: Tensor, slope: float, squares: tuple[float, float, float]) -> float:
        """The step length by backtracking: the objective along a direction needs no product at all.

        moved_nC: what the whole direction adds to the logits. slope: the objective's derivative along it. squares:
        |D|^2, <D, d> and |d|^2.
        """
        here, cross, along = squares
        value = float(self.loss.value(logits_nC)) + self.ridge / 2 * here
        length = 1.0
        for _ in range(_HALVINGS):
            penalty = self.ridge / 2 * (here + 2 * length * cross + length * length * along)
            if float(self.loss.value(logits_nC + length * moved_nC)) + penalty <= value + 1e-4 * length * slope:
                return length
            length /= 2
        return 0.0

    def check(self, at_P: Tensor, tolerance: float) -> float:
        """The relative gradient norm of what is returned, in fp32 as it is returned; InputError where it is large."""
        if not self.start > 0:
            return 0.0
        at_P = self.jacobian.flat(self.jacobian.tensors(at_P))
        logits_nC = self.base_nC + self.jacobian.times(at_P)
        relative = float(self.gradient(logits_nC, at_P).norm()) / self.start
        if not relative <= tolerance:
            raise InputError(
                f"training.optimizer exact: expected a gradient below {tolerance:g} of that at zero after at most "
                f"{self.max_products} products, got {relative:.3g} after {self.done}.",
                remedy=f"Raise training.weight_decay (it is {self.ridge:g}), or training.steps for more products.",
            )
        return relative


def _primal(problem: _Problem, tolerance: float) -> Tensor:
    jacobian, ridge = problem.jacobian, problem.ridge
    at_P = torch.zeros(jacobian.size, dtype=torch.float64, device=jacobian.device)
    logits_nC = problem.base_nC
    sketch = nystrom(
        problem.hessian(logits_nC),
        size=jacobian.size,
        rank=min(_RANK, logits_nC.numel(), problem.left // 4),
        ridge=ridge,
        device=jacobian.device,
    )
    for _ in range(_NEWTON_STEPS):
        gradient_P = problem.gradient(logits_nC, at_P)
        norm = float(gradient_P.norm())
        if norm <= tolerance / 2 * problem.start or not problem.left:
            break
        curved = problem.hessian(logits_nC)
        reached = norm / problem.start
        direction_P, _ = conjugate_gradients(
            lambda d_P, curved=curved: curved(d_P) + ridge * d_P,
            -gradient_P,
            preconditioner=sketch,
            tolerance=max(min(0.1, reached**0.5), tolerance / 4 / reached),
            max_products=problem.left // 2,
        )
        moved_nC = jacobian.times(direction_P)
        squares = (float(at_P @ at_P), float(at_P @ direction_P), float(direction_P @ direction_P))
        length = problem.step(logits_nC, moved_nC, float(gradient_P @ direction_P), squares)
        at_P = at_P + length * direction_P
        logits_nC = problem.base_nC + jacobian.times(at_P)
        if not length:
            break
    return at_P


def _squares(problem: _Problem, method: LinearMethod, tolerance: float) -> Tensor:
    """The optimum of the square loss, w / 2 |f0 - t + J D|^2 + ridge / 2 |D|^2 with w = 2 / (n C).

    With J D = J_b d + X h, the best head h beside d leaves M (f0 - t + J_b d) of the residuals, so that d solves
    (w J_b^T M J_b + ridge I) d = -w J_b^T M (f0 - t), by conjugate gradients; then h is known. There is no sketch: as a
    preconditioner of one system it saves about as many products as it takes.
    """
    jacobian, loss, base_nC = problem.jacobian, problem.loss, problem.base_nC
    head = head_rows(method, jacobian, ridge=problem.ridge * base_nC.numel() / 2)

    def pulled(cotangent_nC: Tensor) -> Tensor:
        problem.count()
        return kept_P * jacobian.transposed(cotangent_nC if head is None else head.rest(cotangent_nC))

    def product(direction_P: Tensor) -> Tensor:
        problem.count()
        moved_nC = jacobian.times(direction_P)
        return pulled(loss.curvature(base_nC, moved_nC)) + problem.ridge * direction_P

    heads = {} if head is None else head.tensors(torch.zeros(head.rows_nF.shape[1], base_nC.shape[1]).to(base_nC))
    kept_P = jacobian.flat({name: torch.ones_like(tensor) for name, tensor in jacobian.zero.items()} | heads)
    target_P = -pulled(loss.slope(base_nC))
    goal = tolerance / 2 * problem.start
    at_P, _ = conjugate_gradients(
        product,
        target_P,
        preconditioner=lambda residual_P: residual_P,
        tolerance=goal / max(goal, float(target_P.norm())),
        max_products=problem.left // 2,
    )
    if head is None:
        return at_P
    problem.count()
    slope_nC = loss.slope(base_nC + jacobian.times(at_P))
    best_FC = head.best(slope_nC) * (base_nC.numel() / 2)
    return at_P + jacobian.flat(jacobian.zero | head.tensors(best_FC))


def _dual(problem: _Problem, matrix_NN: Tensor, tolerance: float) -> Tensor:
    num, classes = problem.base_nC.shape
    size, ridge = num * classes, problem.ridge
    at_N = torch.zeros(size, dtype=torch.float64, device=matrix_NN.device)
    added_N = torch.zeros_like(at_N)
    for _ in range(_NEWTON_STEPS):
        logits_nC = problem.base_nC + added_N.view(num, classes)
        gradient_N = problem.loss.slope(logits_nC).flatten() + ridge * at_N
        image_N = matrix_NN @ gradient_N
        if float((gradient_N @ image_N).clamp_min(0).sqrt()) <= tolerance / 10 * problem.start:
            break
        curved_NN = _curved(problem.loss, logits_nC, matrix_NN)
        curved_NN.diagonal().add_(ridge)
        direction_N = -torch.linalg.solve(curved_NN, gradient_N)
        moved_N = matrix_NN @ direction_N
        squares = (float(at_N @ added_N), float(direction_N @ added_N), float(direction_N @ moved_N))
        slope = float(image_N @ direction_N)
        length = problem.step(logits_nC, moved_N.view(num, classes), slope, squares)
        at_N, added_N = at_N + length * direction_N, added_N + length * moved_N
        if not length:
            break
    problem.count()
    return problem.jacobian.transposed(at_N.view(num, classes))


def _curved(loss: ConvexLoss, logits_nC: Tensor, matrix_NN: Tensor) -> Tensor:
    """Q K, (N, N): the loss' curvature applied to every column of the kernel."""
    num, classes = logits_nC.shape
    size = num * classes
    if loss.kind == "square":
        return matrix_NN * (2 / classes / num)
    p_nC1 = torch.softmax(logits_nC, dim=1).unsqueeze(2)
    weighted_nCN = p_nC1 * matrix_NN.view(num, classes, size)
    return ((weighted_nCN - p_nC1 * weighted_nCN.sum(1, keepdim=True)) / num).view(size, size)


def _cheaper(method: LinearMethod, jacobian: LinearMap) -> Route:
    """The route with fewer multiplications; the primal one where the kernel doesn't fit."""
    size = jacobian.base_nC.numel()
    width = kernel_width(method, jacobian) if size <= _MAX_KERNEL_ROWS else None
    if width is None or width > _MAX_KERNEL_WIDTH:
        return "primal"
    newton_steps = 8
    dual = size**2 * width / 2 + newton_steps * 2 / 3 * size**3
    primal = 2 * _EXPECTED_PRODUCTS * len(jacobian) * 2 * jacobian.size
    return "dual" if dual < primal else "primal"
