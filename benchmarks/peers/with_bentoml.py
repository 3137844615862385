"""BentoML: a service with a root input and a root output of bytes, both documented for raw bodies."""

from typing import Annotated

import bentoml
from bentoml.validators import ContentType

from benchmarks.peers.job import JOBS, WORKERS, Job


@bentoml.service(
    workers=int(WORKERS),
    threads=int(JOBS),
    logging={"access": {"enabled": False}},
    traffic={"timeout": 60},
)
class Maps:
    def __init__(self) -> None:
        self.job = Job()

    @bentoml.api
    def predict(
        self, image: bytes, /, ctx: bentoml.Context
    ) -> Annotated[bytes, ContentType("application/octet-stream")]:
        return self.job.answer(image, ctx.request.query_params["layer"])
