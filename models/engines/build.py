"""Compiles a network to a TensorRT engine from the ONNX that ships."""

from typing import Any, Final

from unmask.errors import EngineError

_WORKSPACE_BYTES: Final = 1 << 30


def build_plan(tensorrt: Any, onnx: bytes, batch: int) -> bytes:
    """Compile a network whose first axis is the batch.

    The arithmetic is in half precision because the ONNX is. TensorRT before 11 also wants a flag for it, and TensorRT
    before 10 one that says that the batch is an axis like any other; later versions have neither.

    Args:
        tensorrt: the module, 8.6 or later.
        onnx: the network.
        batch: faces per call.

    Returns:
        The serialised engine.

    Raises:
        EngineError: TensorRT cannot read or compile the network.
    """
    errors: list[str] = []
    logger = _collector(tensorrt, errors)
    builder = tensorrt.Builder(logger)
    explicit = getattr(tensorrt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
    network = builder.create_network(0 if explicit is None else 1 << int(explicit))
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse(onnx):
        errors += [str(parser.get_error(i).desc()) for i in range(parser.num_errors)]
        raise EngineError(f"TensorRT cannot read the network: {_last(errors)}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(tensorrt.MemoryPoolType.WORKSPACE, _WORKSPACE_BYTES)
    if hasattr(tensorrt.BuilderFlag, "FP16"):
        config.set_flag(tensorrt.BuilderFlag.FP16)
    if hasattr(tensorrt.TacticSource, "CUDNN"):
        # cuDNN and cuBLAS, used by default before TensorRT 10 and unknown to TensorRT 11, are packages of their own.
        sources = (tensorrt.TacticSource.EDGE_MASK_CONVOLUTIONS, tensorrt.TacticSource.JIT_CONVOLUTIONS)
        config.set_tactic_sources(sum(1 << int(source) for source in sources))
    profile = builder.create_optimization_profile()
    for position in range(network.num_inputs):
        tensor = network.get_input(position)
        shape = (batch, *(int(size) for size in tuple(tensor.shape)[1:]))
        profile.set_shape(tensor.name, shape, shape, shape)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f"TensorRT cannot compile the network: {_last(errors)}")
    return bytes(plan)


def _collector(tensorrt: Any, errors: list[str]) -> Any:
    """A logger that keeps errors and lets nothing else through to the terminal."""

    class Collector(tensorrt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            tensorrt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (tensorrt.ILogger.Severity.ERROR, tensorrt.ILogger.Severity.INTERNAL_ERROR):
                errors.append(message)

    return Collector()


def _last(errors: list[str]) -> str:
    return " ".join((errors or ["it gives no reason"])[-1].split())
