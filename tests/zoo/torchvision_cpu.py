"""Import torchvision together with a CPU build of torch.

The wheels that package indexes carry hold operators for CUDA builds only, and importing them fails at the
first schema that is missing ("operator torchvision::nms does not exist"). No network of the zoo runs these.
"""

import torch

_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")


def import_torchvision() -> None:
    """Make `import torchvision` work, whichever build of torch is installed."""
    try:
        import torchvision
    except RuntimeError:
        for operator in ("nms", "qnms"):
            _LIBRARY.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision  # noqa: F401


import_torchvision()
