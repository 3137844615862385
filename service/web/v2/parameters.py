"""The parameters of an inference request and of its outputs: those of `/v1`, and the protocol's own."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from service.declarations import Declared, part_of, read, schema_of
from service.errors import MalformedRequest
from service.parameters import Reduction
from service.web.v2.request import Output
from service.web.v2.schemas import OutputParameters, Parameters, RequestedOutput, RequestParameters

# The protocol's unit.
MICROSECONDS = 1_000_000


def read_outputs(
    asked: Sequence[RequestedOutput] | None, parameters: Parameters
) -> tuple[tuple[Output, ...] | None, Output]:
    """The outputs asked for, and what holds for each where none is named.

    Raises:
        MalformedRequest: a parameter that is not taken here, or an output named twice.
        InvalidParameter: a wrong value.
    """
    request = _read(RequestParameters, parameters, "the request")
    default = Output("", part_of(request, Reduction), request.binary_data_output)
    if asked is None:
        return None, default
    if len({output.name for output in asked}) < len(asked):
        raise MalformedRequest("an output is named twice: ask for it once")
    return tuple(_output(output, default) for output in asked) or None, default


def read_timeout_s(parameters: Parameters) -> float | None:
    """The request's own deadline in seconds; 0 and none leave it to the operator.

    Raises:
        InvalidParameter
    """
    return _read(RequestParameters, parameters, "the request").timeout / MICROSECONDS or None


def _output(asked: RequestedOutput, default: Output) -> Output:
    """Each parameter of an output takes the place of the request's."""
    own = _read(OutputParameters, asked.parameters, f"output {asked.name[:100]!r}")
    given = {name: getattr(own, name) for name in asked.parameters if name in schema_of(Reduction)}
    binary = default.binary if own.binary_data is None else own.binary_data
    return Output(asked.name, replace(default.reduction, **given), binary, own.classification or None)


def _read(kind: type[Declared], given: Mapping[str, Any], owner: str) -> Declared:
    """Read the values of `/v1`; one channel may be a number here."""
    for name in given:
        if name not in schema_of(kind):
            raise MalformedRequest(
                f"{owner} has the parameter {name[:100]!r}, which is not taken here; there are: "
                f"{', '.join(schema_of(kind))}",
                parameter=name[:100],
            )
    values = {n: str(v) if n == "channels" and type(v) is int else v for n, v in given.items()}
    return read(kind, values, strict=True)
