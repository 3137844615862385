"""The parameters of an inference request and of its outputs."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from service.errors import InvalidParameter, MalformedRequest
from service.output.classes import MOST_CLASSES
from service.values import Reduction
from service.web.queries import JsonFeaturesQuery, reduction
from service.web.v2.request import Output
from service.web.v2.schemas import Parameters, RequestedOutput

REDUCING = ("channels", "region", "pool", "grid", "dtype")
OF_REQUESTS = ("binary_data_output", "timeout", "priority", *REDUCING)
OF_OUTPUTS = ("binary_data", "classification", *REDUCING)
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
    _check_names(parameters, OF_REQUESTS, "the request")
    binary = _boolean(parameters, "binary_data_output", default=False)
    shared = {name: value for name, value in parameters.items() if name in REDUCING}
    default = Output("", _reduction(shared), binary)
    if asked is None:
        return None, default
    if len({output.name for output in asked}) < len(asked):
        raise MalformedRequest("an output is named twice: ask for it once")
    return tuple(_output(output, default, shared) for output in asked) or None, default


def read_timeout_s(parameters: Parameters) -> float | None:
    """The request's own deadline in seconds; 0 and none leave it to the operator.

    Raises:
        InvalidParameter
    """
    timeout = parameters.get("timeout", 0)
    if type(timeout) is not int or timeout < 0:
        raise InvalidParameter("timeout is a whole number of microseconds", parameter="timeout")
    return timeout / MICROSECONDS or None


def _output(asked: RequestedOutput, default: Output, shared: Mapping[str, Any]) -> Output:
    parameters = asked.parameters
    _check_names(parameters, OF_OUTPUTS, f"output {asked.name[:100]!r}")
    own = {name: value for name, value in parameters.items() if name in REDUCING}
    return Output(
        asked.name,
        _reduction({**shared, **own}) if own else default.reduction,
        _boolean(parameters, "binary_data", default=default.binary),
        _classes(parameters),
    )


def _check_names(parameters: Parameters, allowed: Sequence[str], owner: str) -> None:
    for name in parameters:
        if name not in allowed:
            raise MalformedRequest(
                f"{owner} has the parameter {name[:100]!r}, which is not taken here; there are: "
                f"{', '.join(allowed)}",
                parameter=name[:100],
            )


def _boolean(parameters: Parameters, name: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InvalidParameter(f"{name} is true or false", parameter=name)
    return value


def _classes(parameters: Parameters) -> int | None:
    classes = parameters.get("classification", 0)
    if type(classes) is not int or not 0 <= classes <= MOST_CLASSES:
        raise InvalidParameter(
            f"classification is how many classes, at most {MOST_CLASSES}", parameter="classification"
        )
    return classes or None


def _reduction(given: Mapping[str, Any]) -> Reduction:
    """Of the values of `/v1`; one channel may be a number here."""
    values = {n: str(v) if n == "channels" and type(v) is int else v for n, v in given.items()}
    try:
        return reduction(JsonFeaturesQuery.model_validate(values))
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidParameter(
            f"{first['loc'][0]}: {first['msg']}", parameter=str(first["loc"][0])
        ) from error
