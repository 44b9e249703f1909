"""A trained network as a model of MLflow: images in, classes with certified radii out.

MLflow runs `loader.py`, which stands beside the weights of a registered model; the weights are
safetensors, and nothing is unpickled.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.pyfunc import PythonModel

from raybust import api
from raybust.config import leaves_of
from raybust.trained import Trained, load_trained


class CertifiedModel(PythonModel):
    """The network of a checkpoint.

    `model_config` of MLflow's `load_model` takes the settings that `raybust predict` takes; a
    network `module:callable` is imported only if they name it in `model.name`.
    """

    network: Trained

    def load_context(self, context: Any) -> None:
        """Loads the network; MLflow calls it once.

        Args:
            context: MLflow's, with the artifacts `weights` and `manifest`.

        Raises:
            RequestError: its code is neither installed nor named.
        """
        folder = Path(context.artifacts["weights"]).parent
        given = {key: value for key, value in (context.model_config or {}).items() if value != ""}
        settings = leaves_of(given, "model_config")
        self.network = load_trained(folder, settings, with_data=False)

    def predict(self, context: Any, model_input: np.ndarray, params: Any = None) -> pd.DataFrame:
        """Returns the columns of `Prediction` for each image.

        Args:
            context: MLflow's.
            model_input: float32 (N, C, H, W) in [0, 1].
            params: `radius`, to decide only whether images are safe to it (negative: the full
                radius); `n` draws at most and `alpha` (0: the model's own); `plain`, for no noise
                and no certificate.

        Raises:
            RequestError: the images do not fit the network.
        """
        given = {key: value for key, value in (params or {}).items() if value is not None}
        settings = [f"certify.{key}={given[key]!r}" for key in ("n", "alpha") if given.get(key)]
        radius = given.get("radius", -1.0)
        found = api.predict(
            self.network,
            model_input,
            *settings,
            radius=None if radius < 0 else radius,
            plain=bool(given.get("plain", False)),
            workers=1,
        )
        return found.frame()
