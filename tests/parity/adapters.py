""""<system>/<case>" -> the function that computes the case's outputs with jaxcell's public functions."""

from __future__ import annotations

import cpn_data
import cpn_inference
import cpn_losses
import cpn_metrics
import cpn_models
import cpn_targets
import cpn_training
import mesmer_functions
import mesmer_models
import sparseseunet_functions
import sparseseunet_models
import sparseseunet_training

PARTS = (cpn_data, cpn_inference, cpn_losses, cpn_metrics, cpn_models, cpn_targets, cpn_training, mesmer_functions, mesmer_models,
         sparseseunet_functions, sparseseunet_models, sparseseunet_training)
ADAPTERS = {name: function for part in PARTS for name, function in part.ADAPTERS.items()}
TOLERANCES = {name: value for part in PARTS for name, value in part.TOLERANCES.items()}
SYSTEMS = ("cpn", "mesmer", "sparseseunet")     # the fixtures' folder of each system that jaxcell has

_SYNTHESIS = "images are made by another network (pix2pix) or of other images: jaxcell has no system for that yet"
LATER = {f"sparseseunet/{case}": _SYNTHESIS for case in (
    "net_pix2pix_g", "net_pix2pix_g_train", "net_pix2pix_d", "net_pix2pix_d_train", "fn_copy_paste", "fn_gan_losses", "fn_fid")}
"""Cases that no system needs so far, and why; an adapter for one takes its line away."""
