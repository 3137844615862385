"""Sets of operators that more than one of the catalogue's rooms must agree on."""

# Operators of other domains may mean anything.
KNOWN_DOMAINS = ("", "com.microsoft")


def names(text: str) -> frozenset[str]:
    """A set of operators, written as words."""
    return frozenset(text.split())


# ONNX defines axis 0 of these as the batch, axis 1 as the channels and the others as space.
ORDERED = names(
    "Conv ConvTranspose FusedConv QLinearConv ConvInteger MaxPool AveragePool LpPool GlobalMaxPool "
    "GlobalAveragePool GlobalLpPool QLinearAveragePool QLinearGlobalAveragePool BatchNormalization "
    "InstanceNormalization GroupNormalization LRN ImageScaler Crop DepthToSpace SpaceToDepth"
)
# Each output has the axes of the first input; its sizes may differ.
UNARY = names(
    "Relu LeakyRelu PRelu Clip Sigmoid Tanh Elu Selu Celu ThresholdedRelu HardSigmoid HardSwish Mish "
    "Softplus Softsign Gelu FastGelu QuickGelu Swish Abs Neg Exp Log Sqrt Reciprocal Erf Floor Ceil "
    "Round Sign Sin Cos Not IsNaN IsInf Identity Dropout Cast CastLike Softmax LogSoftmax Hardmax "
    "LayerNormalization SimplifiedLayerNormalization RMSNormalization LpNormalization "
    "MeanVarianceNormalization QuantizeLinear DequantizeLinear DynamicQuantizeLinear Affine Shrink "
    "ParametricSoftplus ScaledTanh QLinearLeakyRelu QLinearSigmoid QLinearSoftmax CumSum"
)
# Inputs are broadcast against each other.
ELEMENTWISE = names(
    "Add Sub Mul Div Pow Mod Max Min Sum Mean Where Equal Greater Less GreaterOrEqual LessOrEqual "
    "And Or Xor QLinearAdd QLinearMul BitShift"
)
# Sizes change along axes that stay what they are.
RESIZING = names("Pad Slice Resize Upsample Split Expand Tile Trilu")

# The left operand's last axis, or the first of a Gemm that transposes it, is summed over.
CONTRACTIONS = names("Gemm MatMul MatMulInteger QLinearMatMul FusedMatMul")
