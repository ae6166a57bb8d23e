"""The current model of a workspace, loaded once, classifying images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from privshard.api import facts
from privshard.api.reading import current_model
from privshard.api.setup import Setup, flags_of, stored_recipe
from privshard.store.workspace import Workspace


class Predictor:
    """A composed model in memory. It stays the version that it was loaded as: after a removal, load another one.

    model: its version. classes: what it tells apart, in the order of the probabilities.
    """

    def __init__(self, workspace: str) -> None:
        """Load the workspace's current model; InputError where there is none."""
        from privshard.api import worker
        from privshard.api.composed import displacements
        from privshard.api.methods import make_method
        from privshard.composition.inference import ComposedModel

        with Workspace.open(workspace) as ws:
            setup, model = Setup.load(ws), current_model(ws)
            self.model = str(facts.version_name(model.version))
            self.classes = setup.classes
            self._flags = flags_of(stored_recipe(ws))
            self._device = worker.pick_device(self._flags)
            self._base = worker.open_base(setup.base, None, digest=setup.base_digest, objects=ws.objects)
            view = self._base.view.to(self._device)
            method = make_method(setup.method, view, core=self._base.core)
            parts = displacements(ws, model.composition, method=method, device=self._device)
            self._composed = ComposedModel(method, model=view.model, parts=parts)

    def __call__(self, images: Sequence[bytes]) -> list[dict[str, Any]]:
        """For each encoded image its label, the label's probability, and the probability of every class."""
        import torch

        from privshard.data.images import image_batches

        found: list[list[float]] = []
        for batch in image_batches(images, transform=self._base.transform, batch_size=self._flags.micro_batch):
            with torch.no_grad():
                logits_BC = self._composed(batch.to(self._device))
            found += torch.softmax(logits_BC.double(), dim=1).tolist()
        return [self._named(row) for row in found]

    def _named(self, row: Sequence[float]) -> dict[str, Any]:
        best = max(range(len(row)), key=row.__getitem__)
        probabilities = dict(zip(self.classes, row, strict=True))
        return {"label": self.classes[best], "probability": row[best], "probabilities": probabilities}
