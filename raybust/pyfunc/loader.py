"""MLflow runs this file, a copy of which stands in each registered model, to load the model."""

import mlflow

from raybust.pyfunc.model import CertifiedModel

mlflow.models.set_model(CertifiedModel())
