"""Folds batch normalisation into convolutions, as the networks that ship have it."""

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from unmask.models.blocks import ConvNorm


def fold_norms(model: nn.Module) -> None:
    """Fold each batch normalisation into the convolution before it, in place; the model must be in eval mode."""
    for module in model.modules():
        if isinstance(module, ConvNorm):
            conv, norm = module[0], module[1]
            assert isinstance(conv, nn.Conv2d)
            assert isinstance(norm, nn.BatchNorm2d)
            module[0] = fuse_conv_bn_eval(conv, norm)
            module[1] = nn.Identity()
