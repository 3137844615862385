"""The Open Inference Protocol, version 2, over REST: what clients written for Triton and KServe speak."""
