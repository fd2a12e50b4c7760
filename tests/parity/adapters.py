""""<system>/<case>" -> the function that computes the case's outputs with jaxcell's public functions."""

from __future__ import annotations

import cpn_data
import cpn_inference
import cpn_losses
import cpn_metrics
import cpn_models
import cpn_targets
import cpn_training
import maunet_functions
import maunet_models
import mesmer_functions
import mesmer_models
import morphoseg_functions
import morphoseg_models
import sparseseunet_functions
import sparseseunet_models
import sparseseunet_training
import synthesis

PARTS = (cpn_data, cpn_inference, cpn_losses, cpn_metrics, cpn_models, cpn_targets, cpn_training, maunet_functions, maunet_models,
         mesmer_functions, mesmer_models, morphoseg_functions, morphoseg_models, sparseseunet_functions, sparseseunet_models,
         sparseseunet_training, synthesis)
ADAPTERS = {name: function for part in PARTS for name, function in part.ADAPTERS.items()}
TOLERANCES = {name: value for part in PARTS for name, value in part.TOLERANCES.items()}
SYSTEMS = ("cpn", "maunet", "mesmer", "morphoseg", "sparseseunet")      # the fixtures' folder of each system that jaxcell has
