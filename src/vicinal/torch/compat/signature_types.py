"""Types of NATTEN's signatures."""

from torch import Tensor

from vicinal.compat.eras.knobs import KernelSchedule

NoneType = type(None)

Dimension1DType = tuple[int]
Dimension2DType = tuple[int, int]
Dimension3DType = tuple[int, int, int]
DimensionType = Dimension1DType | Dimension2DType | Dimension3DType
Dimension1DTypeOrDed = int | Dimension1DType
Dimension2DTypeOrDed = int | Dimension2DType
Dimension3DTypeOrDed = int | Dimension3DType
DimensionTypeOrDed = int | DimensionType

CausalArg1DType = tuple[bool]
CausalArg2DType = tuple[bool, bool]
CausalArg3DType = tuple[bool, bool, bool]
CausalArgType = CausalArg1DType | CausalArg2DType | CausalArg3DType
CausalArg1DTypeOrDed = bool | CausalArg1DType
CausalArg2DTypeOrDed = bool | CausalArg2DType
CausalArg3DTypeOrDed = bool | CausalArg3DType
CausalArgTypeOrDed = bool | CausalArgType

QKTileShapeType = (
    tuple[Dimension1DType, Dimension1DType]
    | tuple[Dimension2DType, Dimension2DType]
    | tuple[Dimension3DType, Dimension3DType]
)
FnaTileShapeType = FnaForwardConfigType = QKTileShapeType
FnaBackwardConfigType = (
    tuple[Dimension1DType, Dimension1DType, Dimension1DType, bool]
    | tuple[Dimension2DType, Dimension2DType, Dimension2DType, bool]
    | tuple[Dimension3DType, Dimension3DType, Dimension3DType, bool]
)
ListOrNestedTensor = list | Tensor

CutlassFnaForwardConfigType = CutlassFnaBackwardConfigType = QKTileShapeType
CutlassBlackwellFnaForwardConfigType = CutlassBlackwellFnaBackwardConfigType = QKTileShapeType
CutlassHopperFnaForwardConfigType = tuple[QKTileShapeType, KernelSchedule]
CutlassHopperFnaBackwardConfigType = FlexFnaForwardConfigType = QKTileShapeType

FmhaForwardConfigType = tuple[int, int]
CutlassFmhaForwardConfigType = FmhaForwardConfigType
CutlassFmhaBackwardConfigType = tuple[int, int, int, bool]
CutlassBlackwellFmhaForwardConfigType = CutlassBlackwellFmhaBackwardConfigType = FmhaForwardConfigType
CutlassHopperFmhaForwardConfigType = tuple[FmhaForwardConfigType, KernelSchedule]
CutlassHopperFmhaBackwardConfigType = FlexFmhaForwardConfigType = FmhaForwardConfigType
