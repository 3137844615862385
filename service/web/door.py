"""What the routes find behind them: the pipeline, and whether the service is ready."""

from fastapi import Request

from service.errors import InvalidParameter, NotReady
from service.pipeline.admission import Permit
from service.pipeline.work import Pipeline
from service.web.visits import VISIT


class Readiness:
    """Whether new work should be sent here."""

    def __init__(self) -> None:
        self.is_loaded = False
        self.is_draining = False

    @property
    def ready(self) -> bool:
        """Models are loaded, and the service does not end."""
        return self.is_loaded and not self.is_draining

    def check(self) -> None:
        """Raises:
        NotReady: models are still loading, or the service is ending.
        """
        if self.is_draining:
            raise NotReady("the service is ending: send new work elsewhere", retry_after_s=1)
        if not self.is_loaded:
            raise NotReady("models are still loading; list_models shows which", retry_after_s=1)


async def refuse_parameters(request: Request) -> None:
    """For operations that take none.

    Raises:
        InvalidParameter
    """
    for name in request.query_params:
        raise InvalidParameter(
            f"there is no parameter {name[:100]!r}; /openapi.json shows all", parameter=name[:100]
        )


def permit_of(request: Request) -> Permit:
    """What this request holds."""
    permit: Permit = request.scope[VISIT]
    return permit


def pipeline_of(request: Request) -> Pipeline:
    """The one pipeline of this application."""
    pipeline: Pipeline = request.app.state.pipeline
    return pipeline


def readiness_of(request: Request) -> Readiness:
    """The one readiness of this application."""
    readiness: Readiness = request.app.state.readiness
    return readiness
